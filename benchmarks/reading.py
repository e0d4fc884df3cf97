"""Reading scans against MONAI, nibabel and SimpleITK: time, and memory beside the float32 volume.

    python benchmarks/reading.py [--testdata FOLDER]

A head-sized volume of 256^3 int16 voxels (.nii.gz, .nii), a CT series of 120 slices of 512 x 512 pixels, both made
here, and if the folder of real scans is there a PET series and the index of a whole study. The ways take turns, so
that what else the machine does meets all of them; the shortest of several runs counts, with the files in the cache of
the file system. Peak memory is that of a fresh process: the most it held while reading, less what it held before, as
a multiple of the float32 volume. What each way gives differs: MONAI's is not turned to RAS, SimpleITK's and nibabel's
are not checked, SimpleITK's stay in the type of the file, and only ours knows SUV.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from mmfusion.cohort import build_index
from mmfusion.files import write_json
from mmfusion.io import load_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.prepare import versions
from mmfusion.volume import Grid, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "reading.json"
TESTDATA = Path(os.environ.get("MMFUSION_TESTDATA", Path(__file__).parents[2] / "shared" / "testdata"))
INDEX_GOAL_S = 6.0
MEMORY_GOAL = 2.0
GOALS = (  # scan, the way that ours is compared with, at most this share of its time
    ("nii.gz", "MONAI", 0.3),
    ("CT series", "MONAI", 0.7),
    ("CT series", "SimpleITK", 1.2),
    ("PET series", "MONAI", 0.7),
    ("PET series", "SimpleITK", 1.2),
)


def main() -> None:
    """Time and weigh all ways on each scan, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--testdata", type=Path, default=TESTDATA, help="folder of real scans")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--weigh", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.weigh:
        print(json.dumps(weigh(*given.weigh)))
        return
    with tempfile.TemporaryDirectory() as folder:
        scans = make_scans(Path(folder))
        pet = given.testdata / "qin_headneck_pet_dicom" / "PET"
        if pet.is_dir():
            scans["PET series"] = pet
        results = [measured(name, path, given.repeats) for name, path in scans.items()]
    goals = [judged(results, *goal) for goal in GOALS]
    for result in results:
        share = result["ways"]["mmfusion"]["peak_memory"]
        if result["scan"] in ("nii.gz", "CT series"):
            goals.append(goal(f"{result['scan']}: peak memory, multiples of the volume", share, MEMORY_GOAL))
    study = given.testdata / "sts_dicom"
    if study.is_dir():
        seconds = min(timed(lambda: build_index(study)) for _ in range(3))
        files = sum(len(names) for _, _, names in os.walk(study))
        goals.append(goal(f"index of {files} files, seconds", seconds, INDEX_GOAL_S))
    for one in goals:
        if one:
            print(f"{'reached' if one['reached'] else 'NOT REACHED':12s} {one['goal']}: {one['found']:.3f}")
    machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    write_json(
        {
            "machine": machine,
            "versions": versions() | {"isal": version("isal")},
            "repeats": given.repeats,
            "results": results,
            "goals": [one for one in goals if one],
        },
        RESULTS,
    )
    print(f"wrote {RESULTS}")


def make_scans(folder: Path) -> dict[str, Path]:
    """Soft blobs with noise in a ball and little noise around: the head packs to half its size, as real ones do."""
    rng = np.random.default_rng(0)

    def blobs(shape: tuple[int, ...], scale: float) -> np.ndarray:
        smooth = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 3)
        return smooth * np.float32(scale / smooth.std())

    head = blobs((256, 256, 256), 300) + rng.normal(0, 12, (256, 256, 256))
    outside = ((np.indices(head.shape, np.int16) - 128.0) ** 2).sum(0) > 120**2
    head[outside] = rng.integers(-2, 3, int(outside.sum()))
    image = nib.Nifti1Image(head.astype(np.int16), np.diag([-1, 1, 1.2, 1]))
    paths = {"nii.gz": folder / "head.nii.gz", "nii": folder / "head.nii"}
    for path in paths.values():
        nib.save(image, path)
    body = np.rint(blobs((512, 512, 120), 200)).clip(-1000, 2000).astype(np.float32)
    grid = Grid.around((0, 0, 0), (0.8, 0.8, 2.5), body.shape)
    series = save_dicom_series(
        Volume(body, grid.affine, "ct", "HU"), folder / "ct", modality="CT", patient_id="benchmark"
    )
    return paths | {"CT series": series}


def ways(path: Path) -> dict[str, Callable[[], Any]]:
    """What reads a file, or a folder of DICOM."""
    if path.is_dir():
        return {
            "mmfusion": lambda: load_volume(path),
            "MONAI": monai_reader(path),
            "SimpleITK": lambda: itk_series(path),
        }
    return {
        "mmfusion": lambda: load_volume(path),
        "MONAI": monai_reader(path),
        "nibabel": lambda: nib.load(path).get_fdata(dtype=np.float32),
        "SimpleITK": lambda: sitk.ReadImage(str(path)),
    }


def monai_reader(path: Path) -> Callable[[], Any]:
    """MONAI's LoadImage; imported late, since it weighs."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from monai.data import PydicomReader
    from monai.transforms import LoadImage

    load = LoadImage(reader=PydicomReader() if path.is_dir() else None, image_only=True)
    return lambda: load(path)


def itk_series(folder: Path) -> Any:
    """As in SimpleITK's own example."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def timed(way: Callable[[], Any]) -> float:
    """Seconds; what is read is let go after the clock stops."""
    start = time.perf_counter()
    kept = way()
    seconds = time.perf_counter() - start
    del kept
    return seconds


def measured(name: str, path: Path, repeats: int) -> dict[str, Any]:
    """Seconds and memory of each way, and a block of the table."""
    ready = ways(path)
    seconds: dict[str, list[float]] = {way: [] for way in ready}
    for repeat in range(repeats + 1):
        for way, read in ready.items():
            spent = timed(read)
            if repeat:
                seconds[way].append(spent)
    volume = load_volume(path)
    print(f"{name} {volume.array.shape}")
    found = {}
    for way, spent in seconds.items():
        answer = subprocess.run(
            [sys.executable, __file__, "--weigh", way, path], capture_output=True, text=True, check=True
        )
        peak = json.loads(answer.stdout.splitlines()[-1]) / volume.array.nbytes
        found[way] = {"best_seconds": min(spent), "seconds": spent, "peak_memory": peak}
        print(f"  {way:10s} {min(spent):7.3f} s  peak {peak:5.2f} volumes", flush=True)
    return {"scan": name, "shape": volume.array.shape, "ways": found}


def weigh(way: str, path: str) -> int:
    """Bytes that this process holds at most while it reads, beyond what it held before (Linux)."""

    def kib(what: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what))

    read = ways(Path(path))[way]
    small = Path(tempfile.mkdtemp()) / "small.nii.gz"  # what the first reading imports does not count
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), small)
    load_volume(small)
    small.unlink()
    small.parent.rmdir()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = kib("VmRSS")
    kept = read()
    peak = kib("VmHWM") - before
    del kept
    return peak * 1024


def judged(results: list[dict[str, Any]], scan: str, other: str, most: float) -> dict[str, Any] | None:
    """The goal of a share of another's time; None if the scan was not there."""
    found = next((result["ways"] for result in results if result["scan"] == scan), None)
    if found is None:
        return None
    share = found["mmfusion"]["best_seconds"] / found[other]["best_seconds"]
    return goal(f"{scan}: share of the time of {other}", share, most)


def goal(name: str, found: float, most: float) -> dict[str, Any]:
    """A row of the goals."""
    return {"goal": f"{name}, at most {most}", "found": found, "reached": bool(found <= most)}


if __name__ == "__main__":
    main()
