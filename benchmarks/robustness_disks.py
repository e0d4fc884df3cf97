"""Disks that are too small, and one that may not be written to: each command ends in one sentence, and goes on later.

The disk is a file system in memory (tmpfs), filled up but for a share of what the command writes. That needs the right
to mount one.
"""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from robustness_study import (
    GRID,
    PRELOADED,
    PREPARING,
    TRAINING,
    Outcome,
    configured,
    make_study,
    quietly,
    small_simulation,
    typed,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SIZE_MIB = 96
SHARES = (0.0, None, 0.1, 0.5, 0.9)
"""Of what a command writes, that are free; None is one page of 4 KiB."""


@dataclass(frozen=True)
class Writing:
    """A command that writes to the disk.

    Attributes:
        run: from (study, disk); it writes below the disk.
        starts: folders of the study that are copied to the disk before.
        files: single files that it writes, which are either whole or absent.
    """

    run: Callable[[Path, Path], Outcome]
    starts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def commands() -> dict[str, Writing]:
    """The commands by name."""
    how = {"workers": 1, "device": "cpu"}

    def prepare(study: Path, disk: Path, *more: object) -> Outcome:
        return typed("prepare", study / "scans/two.csv", "--out", disk / "out", *GRID, *more)

    def train(study: Path, disk: Path, **given: Any) -> Outcome:
        return configured("train", run_dir=disk / "out", **(TRAINING | {"epochs": 2} | given))

    def register(study: Path, disk: Path) -> Outcome:
        names = ("--fixed-modality", "ct", "--moving-modality", "ct", "--kind", "none")
        scans = (study / f"scans/P0{number}/ct.nii.gz" for number in (0, 1))
        return typed("register", *scans, "--out", disk / "out.nii.gz", "--transform-out", disk / "out.tfm", *names)

    def export(engine: str) -> Callable[[Path, Path], Outcome]:
        return lambda _, disk: typed("export", disk / "run", "--engine", engine)

    def evaluate(name: str, run: str) -> Callable[[Path, Path], Outcome]:
        return lambda _, disk: configured(name, run_dir=disk / run, resamples=100, device="cpu")

    return {
        "prepare": Writing(prepare),
        "prepare --save-nifti": Writing(lambda s, d: prepare(s, d, "--save-nifti")),
        "prepare, 2 workers": Writing(lambda s, d: prepare(s, d, "--workers", "2")),
        "train --cohort": Writing(lambda s, d: train(s, d, cohort=s / "cohort")),
        "train --manifest": Writing(lambda s, d: train(s, d, manifest=s / "scans/manifest.csv", **PREPARING)),
        "train --fold": Writing(lambda s, d: train(s, d, cohort=s / "cohort", fold=0, folds=2)),
        "evaluate": Writing(evaluate("evaluate", "run"), ("run",)),
        "evaluate_folds": Writing(evaluate("evaluate_folds", "folds"), ("folds",)),
        "predict": Writing(
            lambda s, d: typed("predict", s / "bundle", s / "scans/two.csv", "--out", d / "out", "--workers", 1)
        ),
        "predict of DICOM": Writing(
            lambda s, d: typed("predict", s / "bundle", s / "dicom", "--out", d / "out", "--workers", 1)
        ),
        "inference.yaml": Writing(
            lambda s, d: configured("inference", run_dir=d / "run", manifest=s / "scans/two.csv", **how), ("run",)
        ),
        "ensemble.yaml": Writing(
            lambda s, d: configured("ensemble", run_dir=d / "folds", manifest=s / "scans/two.csv", **how), ("folds",)
        ),
        "index": Writing(lambda s, d: typed("index", s / "dicom", "--out", d / "out.csv"), files=("out.csv",)),
        "index, key": Writing(
            lambda s, d: typed("index", s / "dicom", "--out", d / "out.csv", "--pseudonymize", d / "new.key"),
            files=("out.csv",),
        ),
        "register": Writing(register, files=("out.nii.gz", "out.tfm")),
        "report RUN": Writing(lambda _, d: typed("report", d / "run"), ("run",)),
        "report COHORT": Writing(lambda _, d: typed("report", d / "small"), ("small",)),
        "bundle new": Writing(lambda _, d: typed("bundle", "new", d / "out", "--modalities", "ct", "mr")),
        "bundle pack": Writing(lambda s, d: typed("bundle", "pack", d / "plain_bundle", s / "run"), ("plain_bundle",)),
        "export --engine onnx": Writing(export("onnx"), ("run",)),
        "simulate": Writing(lambda _, d: quietly(lambda: small_simulation(d / "out"))),
    }


def answer(name: str, study: Path, disk: Path, sender: Connection) -> None:
    """Run a command, in a process of its own: libraries may end it where a disk is full."""
    torch.set_num_threads(1)
    outcome = commands()[name].run(study, disk)
    sender.send((outcome.status, outcome.stderr, outcome.crashed))


def run(name: str, study: Path, disk: Path) -> Outcome:
    """What a command ended with, in a process that has imported everything before."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(name, study, disk, sender))
    process.start()
    sender.close()
    try:
        outcome = Outcome(*receiver.recv())
    except EOFError:
        process.join()
        outcome = Outcome(process.exitcode or 1, f"the process ended with {process.exitcode}", crashed=True)
    process.join()
    return outcome


def half_written(folder: Path) -> list[str]:
    """Files that cannot be read as what their name says, and temporary ones that were left."""
    bad = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.startswith(".mmfusion-tmp-"):
            bad.append(f"{name} is left")
        elif path.is_file() and not path.is_symlink() and path.name != "ballast":
            try:
                _read(path)
            except Exception as error:
                bad.append(f"{name} is not whole ({type(error).__name__})")
    return bad


def _read(path: Path) -> None:
    """Read a file to its end as what its name says."""
    name = path.name
    if not path.stat().st_size:
        raise ValueError("empty")
    if name.endswith(".json"):
        json.loads(path.read_text())
    elif name.endswith(".csv"):
        rows = list(csv.reader(path.read_text().splitlines()))
        if len({len(row) for row in rows}) != 1 or not path.read_text().endswith("\n"):
            raise ValueError("rows of several lengths")
    elif name.endswith(".html"):
        if not path.read_text().rstrip().endswith("</html>"):
            raise ValueError("no end")
    elif name.endswith(".npy"):
        np.load(path)
    elif name.endswith(".npz"):
        with np.load(path) as arrays:
            [arrays[one] for one in arrays]
    elif name.endswith(".pt"):
        torch.load(path, map_location="cpu", weights_only=True)
    elif name.endswith(".onnx"):
        import onnx

        onnx.checker.check_model(onnx.load(path))
    elif name.endswith(".nii.gz"):
        gzip.decompress(path.read_bytes())
        np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    elif name.endswith((".tfm", ".h5")):
        sitk.ReadTransform(str(path))
    elif name.endswith(".yaml"):
        import yaml

        yaml.safe_load(path.read_text())
    elif zipfile.is_zipfile(path):
        zipfile.ZipFile(path).testzip()


def disks(work: Path, only: str = "") -> dict[str, Any]:
    """Every command on each disk; those whose names hold ``only``."""
    work, tries = work / "disks", []
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    disk, study = work / "disk", work / "study"
    disk.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", disk], capture_output=True
    ).returncode:
        print("not run: no right to mount a disk")
        return {"disk": "not run: no right to mount"}
    try:
        bad = {name: outcome for name, outcome in make_study(study).items() if outcome.status}
        if bad:
            raise RuntimeError(f"the study cannot be made: {bad}")
        typed("prepare", study / "scans" / "two.csv", "--out", study / "small", *GRID)
        for name, command in commands().items():
            if only in name:
                tries += _on_disks(name, command, study, disk)
                well = sum(not one["status"] for one in tries if one["command"] == name)
                print(f"  {name}: {well} of 6 ended well", flush=True)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=False)
        subprocess.run(["umount", disk], check=True)
    failures = [one for one in tries if one["faults"]]
    print(f"{len(tries)} commands on small or read-only disks: {len(failures)} with faults")
    return {"tries": tries, "failures": failures, "reached": not failures}


def _on_disks(name: str, command: Writing, study: Path, disk: Path) -> list[dict[str, Any]]:
    _reset(disk, study, command)
    before = _used(disk)
    outcome = run(name, study, disk)
    if outcome.status:
        raise RuntimeError(f"{name} ended with {outcome}")
    need = _used(disk) - before
    tries = []
    for share in SHARES:
        free = 4096 if share is None else int(share * need)
        _reset(disk, study, command)
        ballast = disk / "ballast"
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(_free(disk) - free, 1))
        tries.append(_tried(name, f"{free} of {need} bytes free", command, study, disk, ballast.unlink))
        if share == 0.9 and tries[-1]["status"] == 0:
            tries[-1]["note"] = "that was enough"
    _reset(disk, study, command)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    tries.append(_tried(name, "read-only", command, study, disk,
                        lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True)))  # fmt: skip
    return tries


def _tried(
    name: str, words: str, command: Writing, study: Path, disk: Path, relieve: Callable[[], object]
) -> dict[str, Any]:
    """Run the command on the disk as it is, and once more when there is space."""
    outcome, faults = run(name, study, disk), []
    lines = outcome.stderr.strip().splitlines()
    if outcome.crashed:
        faults.append(f"ends with a trace: {lines[-1]}")
    elif outcome.status and (not lines[-1].startswith("error: ") or sum(one.startswith("error") for one in lines) > 1):
        faults.append(f"does not end in one sentence (status {outcome.status}: {lines[-2:]})")
    elif not outcome.status and (words == "read-only" or words.startswith("0 of")):
        faults.append("ends well, though nothing can be written")
    faults += half_written(disk)
    relieve()
    for file in command.files:  # one that is whole would be replaced with --overwrite only
        if _is_whole(disk / file):
            (disk / file).unlink()
    again = run(name, study, disk)
    if again.status:
        last = (again.stderr.strip().splitlines() or [""])[-1]
        faults.append(f"does not end well with more space (status {again.status}: {last})")
    faults += [f"with more space: {one}" for one in half_written(disk)]
    message = (lines or [""])[-1].replace(f"{disk}/", "")
    facts = {"command": name, "disk": words, "status": outcome.status, "message": message, "faults": faults}
    if faults:
        print(f"  {name} | {words} | {'; '.join(faults)[:400]}", flush=True)
    return facts


def _is_whole(path: Path) -> bool:
    """Whether a file is there and can be read."""
    try:
        _read(path)
    except Exception:
        return False
    return True


def _reset(disk: Path, study: Path, command: Writing) -> None:
    """An empty disk but for what the command begins with."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (disk / "cohort").symlink_to(study / "cohort")  # runs name it by its relative path
    for name in command.starts:
        shutil.copytree(study / name, disk / name)


def _used(disk: Path) -> int:
    facts = os.statvfs(disk)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _free(disk: Path) -> int:
    facts = os.statvfs(disk)
    return facts.f_bavail * facts.f_frsize
