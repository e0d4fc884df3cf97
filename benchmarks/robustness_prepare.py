"""What ends or hinders `mmfusion prepare`: kill -9 at random moments, a full disk, a read-only one, a file that goes.

The parts of `robustness.py` that need whole runs of the command. Each gives plain facts for the JSON.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmfusion.cohort import build_index
from mmfusion.cohort.simulate import draw_subjects, write_raw_study
from mmfusion.prepare import damaged_files

GRID = ("--spacing", "3", "3", "3", "--size", "48", "56", "48")


def study(folder: Path, subjects: int) -> Path:
    """A simulated raw study and its manifest."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        write_raw_study(draw_subjects(subjects, 0), folder / "raw")
        build_index(folder / "raw").write(manifest)
    return manifest


def command(manifest: Path, out: Path, *more: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "mmfusion", "prepare", str(manifest), "--out", str(out), *GRID, *more]


def results(out: Path) -> dict[str, str]:
    """Digests of all tensors and transforms."""
    files = [*out.glob("cases/*/image.npy"), *out.glob("cases/*/*.tfm"), *out.glob("cases/*/*.h5")]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def killed(work: Path, moments: int = 30, subjects: int = 12, seed: int = 0) -> dict[str, Any]:
    """Kill the command at random moments of its run, start it again, and compare with an undisturbed run."""
    work = work / "killed"
    manifest, rng = study(work, subjects), random.Random(seed)
    start = time.perf_counter()
    subprocess.run(command(manifest, work / "whole", "--workers", "2"), check=False, capture_output=True)
    whole_s, whole = time.perf_counter() - start, results(work / "whole")
    runs = []
    for n in range(moments):
        out, moment = work / f"run{n}", rng.uniform(0.3, whole_s)
        workers = str(rng.choice([1, 2, 3]))
        run = subprocess.Popen(
            command(manifest, out, "--workers", workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        done = len(list(out.glob("cases/*/case.json")))
        subprocess.run(
            command(manifest, out, "--workers", str(rng.choice([1, 2, 3]))), check=False, capture_output=True
        )
        same = results(out) == whole and not damaged_files(out)
        left = [path.name for path in (out / "cases").iterdir() if path.name.startswith(".")]
        runs.append({"after_s": round(moment, 2), "workers": workers, "cases_done": done, "identical": same})
        runs[-1]["left_over"] = left
        print(f"kill {n + 1}/{moments}: {runs[-1]}", flush=True)
    good = sum(run["identical"] and not run["left_over"] for run in runs)
    return {
        "undisturbed_s": round(whole_s, 1),
        "moments": moments,
        "identical": good,
        "files": len(whole),
        "runs": runs,
    }


def hindered(work: Path, subjects: int = 6) -> dict[str, Any]:
    """A full disk, a read-only one, and a scan that disappears meanwhile. The first two need the right to mount."""
    work = work / "hindered"
    manifest = study(work, subjects)
    subprocess.run(command(manifest, work / "whole", "--workers", "2"), check=False, capture_output=True)
    whole = results(work / "whole")
    out: dict[str, Any] = {}
    disk = work / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        out["disk"] = "not run: no right to mount"
    else:
        try:
            out["full"] = [_full(manifest, disk, whole, mib) for mib in (1, 2, 3, 5, 8)]
            out["read_only"] = _read_only(manifest, disk)
        finally:
            subprocess.run(["umount", disk], check=True)
    out["disappears"] = _disappears(manifest, work)
    return out


def _full(manifest: Path, disk: Path, whole: dict[str, str], mib: int) -> dict[str, Any]:
    cohort = disk / f"cohort{mib}"
    subprocess.run(["mount", "-o", f"remount,rw,size={mib}m", disk], check=True)
    run = subprocess.run(command(manifest, cohort, "--workers", "2"), check=False, capture_output=True, text=True)
    whole_cases = all((case / "case.json").exists() for case in cohort.glob("cases/[!.]*"))
    subprocess.run(["mount", "-o", "remount,rw,size=256m", disk], check=True)
    subprocess.run(command(manifest, cohort, "--workers", "2"), check=False, capture_output=True)
    facts = {
        "size_mib": mib,
        "exit": run.returncode,
        "message": run.stderr.strip().splitlines()[-1:] or [""],
        "named": run.stderr.strip().splitlines()[-1:][0].startswith("error: ") and "Traceback" not in run.stderr,
        "nothing_half_written": whole_cases,
        "identical_after_more_space": results(cohort) == whole,
    }
    subprocess.run(["rm", "-r", cohort], check=True)
    print(f"full disk: {facts}", flush=True)
    return facts


def _read_only(manifest: Path, disk: Path) -> dict[str, Any]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    run = subprocess.run(command(manifest, disk / "new"), check=False, capture_output=True, text=True)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    facts = {
        "exit": run.returncode,
        "message": run.stderr.strip(),
        "named": run.stderr.startswith("error: ") and "Traceback" not in run.stderr,
    }
    print(f"read-only: {facts}", flush=True)
    return facts


def _disappears(manifest: Path, work: Path) -> dict[str, Any]:
    """The last subject's PET goes away while the first ones are prepared."""
    import csv

    from mmfusion.prepare import open_cohort

    with manifest.open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row.get("pet")][-1]
    folder = manifest.parent / last["pet"].partition("#")[0]
    out = work / "disappears"
    run = subprocess.Popen(command(manifest, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("cases/*/case.json")) and run.poll() is None:
        time.sleep(0.05)
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    message = run.communicate()[1]
    hidden.rename(folder)
    rows = {row["subject"]: row for row in open_cohort(out).rows}
    facts = {
        "exit": run.returncode,
        "failed": [subject for subject, row in rows.items() if row["status"] == "failed"],
        "reasons": rows[last["subject"]]["reasons"],
        "named": rows[last["subject"]]["status"] == "failed" and "Traceback" not in message,
        "others_done": all(row["status"] != "failed" for subject, row in rows.items() if subject != last["subject"]),
    }
    print(f"a scan disappears: {facts}", flush=True)
    return facts
