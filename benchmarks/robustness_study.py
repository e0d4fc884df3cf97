"""A whole study in miniature, one folder of every kind that mmfusion writes, and the commands as functions.

The parts of `robustness.py` that attack folders, kill commands and fill disks share it. The commands run in this
process, so that some hundred of them are a matter of minutes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.bundle import new_bundle, run_config
from mmfusion.cli import main
from mmfusion.demo import TRAINING as DEMO_TRAINING
from mmfusion.errors import MmfusionError
from mmfusion.files import write_csv
from mmfusion.io import save_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Grid, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

GRID = ("--register", "none", "--spacing", "16", "16", "16", "--size", "8", "8", "8", "--workers", "1")
TRAINING: dict[str, Any] = {
    "encoder": "cnn", "width": 0.0625, "epochs": 1, "batch_size": 8, "augment": False, "device": "cpu", "workers": 1,
    "validation_share": 0.3, "test_share": 0.3,
}  # fmt: skip
PREPARING: dict[str, Any] = {"register": "none", "spacing": [16, 16, 16], "size": [8, 8, 8]}
MODALITIES = {"ct": ("HU", -1000.0, 40.0), "mr": ("a.u.", 0.0, 400.0)}


PRELOADED = ["mmfusion.cli", "mmfusion.demo", "monai.bundle", "monai.engines", "monai.handlers", "torch.optim", "onnx"]
"""Modules that a process for commands imports before it is forked."""


@dataclass(frozen=True)
class Outcome:
    """What a command ended with: its status, what it printed to stderr, and whether an error had no name."""

    status: int
    stderr: str
    crashed: bool = False

    @property
    def is_sentence(self) -> bool:
        """Whether it is a refusal as it is to be: status 1 and one line that begins with ``error:``."""
        lines = self.stderr.strip().splitlines()
        return self.status == 1 and not self.crashed and len(lines) == 1 and lines[0].startswith("error: ")


def scan(number: int, modality: str, size: tuple[int, int, int] = (12, 13, 14)) -> Volume:
    """An ellipsoid with noise, 120 mm wide."""
    units, outside, level = MODALITIES[modality]
    grid = Grid.around((5.0, -3.0, 8.0), (10.0, 10.0, 10.0), size)
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    inside = (((points - grid.center) / (35, 45, 50)) ** 2).sum(-1) < 1
    noise = np.random.default_rng(number).normal(1, 0.1, grid.shape)
    array = np.where(inside, level * noise, outside).astype(np.float32)
    return Volume(array, grid.affine, modality=modality, units=units)


def quietly(command: Callable[[], Any]) -> Outcome:
    """Run a command in this process as the command line would end it, with nothing printed."""
    out, err, logged = io.StringIO(), io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = command()
            outcome = result if isinstance(result, int) else 0, err.getvalue(), False
        except MmfusionError as error:  # of a configuration: mmfusion.bundle.begin prints it so
            outcome = 1, f"error: {error}\n", False
        except SystemExit as error:
            outcome = int(error.code or 0), err.getvalue(), False
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = 1, traceback.format_exc(), True
    logging.disable(logged)
    return Outcome(outcome[0], outcome[1], outcome[2] or "Traceback" in outcome[1])


def typed(*words: object) -> Outcome:
    """``mmfusion WORDS`` in this process."""
    return quietly(lambda: main([str(word) for word in words]))


def configured(name: str, **overrides: Any) -> Outcome:
    """``python -m monai.bundle run`` of a configuration of the template, in this process."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()}
    return quietly(lambda: run_config(name, **given))


def write_scans(folder: Path, subjects: int) -> Path:
    """NIfTI scans of so many subjects, one folder each, and their manifest with labels."""
    rows = []
    for number in range(subjects):
        row: dict[str, Any] = {"subject": f"P{number:02d}", "label": "ab"[number % 2]}
        for name in MODALITIES:
            row[name] = f"P{number:02d}/{name}.nii.gz"
            save_volume(scan(number, name), folder / row[name])
        rows.append(row)
    write_csv(rows, folder / "manifest.csv", ["subject", "label", *MODALITIES])
    two = [row | {"split": "train"} for row in rows[:2]]
    write_csv(two, folder / "two.csv", ["subject", "label", *MODALITIES, "split"])
    return folder / "manifest.csv"


def write_dicom(folder: Path) -> Path:
    """A tree of DICOM of two subjects, with CT and MR each."""
    for number, name in enumerate(("P00", "P01")):
        frame = f"1.2.3.{number + 1}"
        for modality, word in (("ct", "CT"), ("mr", "MR")):
            save_dicom_series(
                scan(number, modality), folder / name / modality, modality=word, patient_id=name,
                study_uid=f"1.2.3.4.{number + 1}", frame_of_reference=frame,
            )  # fmt: skip
    return folder


def write_bids(root: Path) -> Path:
    """A BIDS tree of two subjects with a T1-weighted scan each."""
    root.mkdir(parents=True)
    about = {"Name": "made", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(about))
    (root / "README").write_text("Made for a benchmark.\n")
    (root / "participants.tsv").write_text("participant_id\tlabel\nsub-1\ta\nsub-2\tb\n")
    for number in (1, 2):
        path = root / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz"
        save_volume(scan(number, "mr"), path)
    return root


def make_study(box: Path, subjects: int = 16) -> dict[str, Outcome]:
    """Everything that the commands read, and a folder of every kind that they write but the demo.

    Args:
        box: the folder to fill: ``scans``, ``dicom``, ``bids``, ``labels.csv``, ``key``; ``cohort``, ``run``,
            ``folds``, ``prediction``, ``bundle`` (packed), ``plain_bundle``, ``simulated``.
        subjects: how many have scans and are trained on.

    Returns:
        What the commands that made them ended with.
    """
    manifest, two = write_scans(box / "scans", subjects), box / "scans" / "two.csv"
    write_dicom(box / "dicom")
    write_bids(box / "bids")
    (box / "labels.csv").write_text("subject,diagnosis,notes\nP00,a,only copy\nP01,b,only copy\n")
    (box / "key").write_text("0123456789abcdef" * 4 + "\n")
    train = {**TRAINING, "cohort": box / "cohort"}
    done = {
        "prepare": typed("prepare", manifest, "--out", box / "cohort", *GRID),
        "index": typed("index", box / "dicom", "--out", box / "dicom.csv"),
        "train": configured("train", run_dir=box / "run", **train),
        "evaluate": configured("evaluate", run_dir=box / "run", resamples=100, device="cpu"),
    }
    for fold in (0, 1):
        done[f"fold {fold}"] = configured("train", run_dir=box / "folds", fold=fold, folds=2, **train)
    done["bundle new"] = quietly(lambda: new_bundle(box / "plain_bundle", modalities=["ct", "mr"]))
    shutil.copytree(box / "plain_bundle", box / "bundle")
    done["bundle pack"] = typed("bundle", "pack", box / "bundle", box / "run")
    done["predict"] = typed("predict", box / "bundle", two, "--out", box / "prediction", "--workers", 1)
    done["simulate"] = quietly(lambda: small_simulation(box / "simulated"))
    return done


def add_variants(box: Path) -> None:
    """More folders of the same commands, to be written to again, and the first files of a demo."""
    typed("prepare", box / "scans" / "two.csv", "--out", box / "small", *GRID)
    typed("prepare", box / "scans" / "two.csv", "--out", box / "small_nifti", *GRID, "--save-nifti")
    train = {**TRAINING, **PREPARING, "manifest": box / "scans" / "manifest.csv"}
    configured("train", run_dir=box / "manifest_run", **train)
    begun = {"subjects": 4, "train": 20, "test": 10, **DEMO_TRAINING, "epochs": 1, "seed": 0}
    (box / "demo").mkdir()
    (box / "demo" / "demo.json").write_text(json.dumps(begun))
    if (box / "run" / ".mmfusion.json").exists():
        (box / "demo" / ".mmfusion.json").write_text('{"kind": "demo"}')
    shutil.copytree(box / "run", box / "demo" / "run")


SMALL_DEMO = {"subjects": 4, "train_subjects": 20, "test_subjects": 10}


def small_demo(out: Path) -> int:
    """``mmfusion demo`` on as few subjects as there can be."""
    from mmfusion.demo import run_demo

    return run_demo(out, **SMALL_DEMO, epochs=1)


def small_simulation(out: Path) -> int:
    """``mmfusion simulate`` of fewer subjects than the command line allows."""
    from mmfusion.prepare.simulated import simulate_study

    simulate_study(out, train_subjects=5, test_subjects=1)
    return 0
