"""`mmfusion prepare` against a plain script on the real sarcoma study, and its memory as cases grow in number.

    python benchmarks/prepare.py ../shared/testdata/sts_dicom

Both sides turn the CT, PET and MR of each subject into one tensor at 2 mm, rigidly registered to CT. The plain script
is what one writes in an afternoon: a loop, SimpleITK with its usual Mattes settings, NIfTI files in between, MONAI
transforms; its own process, all cores for SimpleITK. Ours is the command, start of its workers included. The scans of
this study are aligned at rest, so a pair that ends more than 5 mm off over the CT's body has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "prepare.json"
SPACING, SIZE = (2.0, 2.0, 2.0), (96, 96, 96)
FAILED_MM = 5.0


def main() -> None:
    """Run both by turns, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the DICOM study")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 4], help="of the study, for the memory")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # the plain script, in a process of its own
    given = parser.parse_args()
    if given.plain:
        plain_script(given.root, given.plain)
        return

    from mmfusion.cohort import build_index
    from mmfusion.files import write_json
    from mmfusion.prepare import open_cohort, versions

    found: dict[str, Any] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        build_index(given.root).write(work / "manifest.csv")
        for n in range(given.repeats):
            out = work / f"cohort{n}"
            ours = measured(["-m", "mmfusion", "prepare", str(work / "manifest.csv"), "--out", str(out)])
            theirs = measured([__file__, str(given.root), "--plain", str(work / f"plain{n}")])
            found["ours"].append(ours)
            found["plain"].append(theirs)
            print(f"run {n + 1}: ours {ours['seconds']:.1f} s, plain {theirs['seconds']:.1f} s", flush=True)
        cohort = open_cohort(work / "cohort0")
        moved = json.loads((work / "plain0" / "moved.json").read_text())
        ours_moved = [motion_of(work / "cohort0", row, name) for row in cohort.rows for name in others_of(row)]
        plain_failed = [pair for pair in moved if not pair["mm"] <= FAILED_MM]
        ours_failed = [pair for pair in ours_moved if not pair["mm"] <= FAILED_MM]
        memory = [memory_of(work, count) for count in given.copies]
    ours_s, plain_s = (float(np.median([run["seconds"] for run in found[side]])) for side in ("ours", "plain"))
    cases = len(cohort.rows)
    facts = {
        "cases": cases,
        "ours_seconds": round(ours_s, 1),
        "plain_seconds": round(plain_s, 1),
        "ours_seconds_a_case": round(ours_s / cases, 2),
        "plain_seconds_a_case": round(plain_s / cases, 2),
        "times_faster": round(plain_s / ours_s, 2),
        "goal": "at least 2 times, and fewer cases that fail",
        "ours_failed_cases": len({pair["case"] for pair in ours_failed} | failed_cases(cohort.rows)),
        "plain_failed_cases": len({pair["case"] for pair in plain_failed}),
        "ours_failed_pairs": len(ours_failed),
        "plain_failed_pairs": len(plain_failed),
        "pairs": len(moved),
        "memory": memory,
    }
    for name, value in facts.items():
        print(f"{name:22s} {value}")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    write_json({"versions": versions(), **machine, **facts, "runs": found, "plain_pairs": moved}, RESULTS)
    print(f"wrote {RESULTS}")


def others_of(row: dict[str, str]) -> list[str]:
    """The modalities that were registered."""
    return [name for name in row["modalities"].split() if name != row["reference"]]


def motion_of(cohort: Path, row: dict[str, str], name: str) -> dict[str, Any]:
    """How far a pair of ours ended from rest, over the grid (which is centered on the body)."""
    from mmfusion.io import load_transform

    facts = json.loads((cohort / "cases" / row["case"] / "case.json").read_text())
    index = np.stack(np.meshgrid(*(np.linspace(0, n - 1, 9) for n in SIZE), indexing="ij"), -1).reshape(-1, 3)
    affine = np.asarray(facts["affine"])
    points = index @ affine[:3, :3].T + affine[:3, 3]
    moved = load_transform(cohort / "cases" / row["case"] / f"{name}.tfm").apply(points)
    return {"case": row["case"], "modality": name, "mm": float(np.linalg.norm(moved - points, axis=1).mean())}


def failed_cases(rows: list[dict[str, str]]) -> set[str]:
    """The cases that have no tensor."""
    return {row["case"] for row in rows if row["status"] == "failed"}


def measured(arguments: list[str]) -> dict[str, Any]:
    """Wall time, s, and the largest memory, MiB, that a command and its processes held at once."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks = {"all": 0.0, "parent": 0.0, "worker": 0.0}

    def watch() -> None:
        while process.poll() is None:
            sizes = {pid: resident_mib(pid) for pid in (process.pid, *descendants(process.pid))}
            peaks["all"] = max(peaks["all"], sum(sizes.values()))
            peaks["parent"] = max(peaks["parent"], sizes.pop(process.pid))
            peaks["worker"] = max(peaks["worker"], *sizes.values(), 0.0)
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    return {"seconds": round(seconds, 2), "code": code, **{f"{k}_mib": round(v) for k, v in peaks.items()}}


def resident_mib(pid: int) -> float:
    """Memory that a process holds, MiB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return []
    return [one for child in children for one in (child, *descendants(child))]


def memory_of(work: Path, count: int) -> dict[str, Any]:
    """Peak memory of the command on several copies of the study, each subject under another name."""
    lines = (work / "manifest.csv").read_text().splitlines()
    rows = [f"copy{n}_{line}" for n in range(count) for line in lines[1:]]
    manifest = work / f"copies{count}.csv"
    manifest.write_text("\n".join([lines[0], *rows]) + "\n")
    run = measured(["-m", "mmfusion", "prepare", str(manifest), "--out", str(work / f"copies{count}")])
    print(f"{len(rows)} cases: {run}", flush=True)
    return {"cases": len(rows), **run}


def plain_script(root: Path, out: Path) -> None:
    """What one writes without mmfusion."""
    import SimpleITK as sitk
    from monai.transforms import (
        Compose,
        ConcatItemsd,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        ResizeWithPadOrCropd,
        ScaleIntensityRanged,
        ScaleIntensityRangePercentilesd,
        Spacingd,
    )
    from registration_peers import Sitk

    names = ("ct", "pet", "mr")
    to_tensor = Compose([
        LoadImaged(names),
        EnsureChannelFirstd(names),
        Orientationd(names, axcodes="RAS", labels=None),
        Spacingd(names, pixdim=SPACING, mode="bilinear"),
        ScaleIntensityRanged(["ct"], -160, 240, 0, 1, clip=True),
        ScaleIntensityRanged(["pet"], 0, 10, 0, 1, clip=True),
        ScaleIntensityRangePercentilesd(["mr"], 0, 99, 0, 1, clip=True),
        ResizeWithPadOrCropd(names, SIZE),
        ConcatItemsd(names, "image"),
    ])  # fmt: skip
    out.mkdir()
    moved = []
    for subject in sorted(path for path in root.iterdir() if path.is_dir()):
        files = {}
        fixed = read_series(sitk, subject / "CT")
        for name, folder in (("ct", "CT"), ("pet", "PET"), ("mr", "MR_T1")):
            image = fixed if name == "ct" else read_series(sitk, subject / folder)
            if name != "ct":
                transform = Sitk().transform(fixed, image, "rigid", "geometry")
                moved.append({"case": subject.name, "modality": name, "mm": moved_mm(sitk, fixed, transform)})
                image = sitk.Resample(image, fixed, transform, sitk.sitkLinear, 0.0)
            files[name] = str(out / f"{subject.name}_{name}.nii.gz")
            sitk.WriteImage(image, files[name])
        np.save(out / f"{subject.name}.npy", np.asarray(to_tensor(files)["image"]))
    (out / "moved.json").write_text(json.dumps(moved))


def read_series(sitk: Any, folder: Path) -> Any:
    """A DICOM series as SimpleITK reads it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.Cast(reader.Execute(), sitk.sitkFloat32)


def moved_mm(sitk: Any, fixed: Any, transform: Any) -> float:
    """The mean way that a transform moves the points of the fixed scan's body."""
    body = np.argwhere(sitk.GetArrayFromImage(fixed)[::4, ::8, ::8] > -300)[:, ::-1] * (8, 8, 4)
    points = [fixed.TransformIndexToPhysicalPoint(index.tolist()) for index in body[:: max(1, len(body) // 500)]]
    return float(np.mean([np.linalg.norm(np.subtract(transform.TransformPoint(point), point)) for point in points]))


if __name__ == "__main__":
    main()
