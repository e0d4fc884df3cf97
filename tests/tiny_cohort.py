"""A cohort folder made in a second: noise, with the label written into one channel, and modalities missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfusion.cohort import Case
from mmfusion.files import write_csv
from mmfusion.io import save_volume
from mmfusion.options import resolve
from mmfusion.prepare import CaseResult, Cohort, write_case, write_cohort
from mmfusion.volume import Grid, Volume

MODALITIES = ("ct", "pet", "mr")
GRID: dict[str, Any] = {"spacing": [4.0, 5.0, 6.0], "size": [17, 19, 18], "register": "none"}
OPTIONS = resolve({**GRID, "modalities": list(MODALITIES)}, "case")
FAST = {
    "encoder": "resnet10",
    "width": 0.125,
    "epochs": 2,
    "batch_size": 8,
    "augment": False,
    "learning_rate": 0.003,
    "device": "cpu",
}
"""Overrides of train.yaml that make a training a matter of seconds."""


def write_tiny_cohort(
    folder: Path,
    labels: Sequence[str],
    missing: Mapping[int, Iterable[str]] | None = None,
    **given: Sequence[str],
) -> Cohort:
    """A case a label; ``pet`` shines in every class but the first.

    Args:
        folder: the cohort folder to write.
        labels: of each case, in order.
        missing: by number of the case, the modalities that it lacks.
        given: further fields of :class:`~mmfusion.cohort.Case`, a list each, as ``split=[...]``.
    """
    noise, first, rows = np.random.default_rng(len(labels)), min(filter(None, labels), default=""), []
    grid = Grid.around((0, 0, 0), GRID["spacing"], GRID["size"])
    for number, label in enumerate(labels):
        lost = (missing or {}).get(number, ())
        present = np.array([name not in lost for name in MODALITIES])
        image = noise.normal(0.3, 0.1, (len(MODALITIES), *grid.shape)).astype(np.float32)
        image[1, 4:12, 5:14, 6:13] += 0.5 * (label != first)
        image *= present[:, None, None, None]
        valid = np.broadcast_to(present[:, None, None, None], image.shape)
        fields = {"subject": f"S{number:02d}"} | {name: values[number] for name, values in given.items()}
        case = Case(**fields, label=label or None)
        rows.append(write_case(folder, case, CaseResult(image, present, valid, MODALITIES, grid, "ct"), key="made"))
    return write_cohort(folder, OPTIONS, rows, qc=False)


def write_scans(folder: Path, subjects: Mapping[str, Sequence[str]]) -> Path:
    """NIfTI files of an ellipsoid in HU, SUV and a.u. for subjects with these modalities; returns the manifest."""
    grid = Grid.around((5.0, -3.0, 8.0), (4.0, 5.0, 6.0), (21, 23, 19))
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    inside = (((points - grid.center) / (30, 40, 45)) ** 2).sum(-1) < 1
    levels = {"ct": ("HU", -1000.0, 40.0), "pet": ("SUVbw", 0.1, 3.0), "mr": ("a.u.", 0.0, 400.0)}
    rows = []
    for number, (subject, modalities) in enumerate(subjects.items()):
        noise, row = np.random.default_rng(number), {"subject": subject}
        for name in modalities:
            units, outside, level = levels[name]
            array = np.where(inside, level * noise.normal(1, 0.1, grid.shape), outside).astype(np.float32)
            row[name] = f"{subject}_{name}.nii.gz"
            save_volume(Volume(array, grid.affine, modality=name, units=units), folder / row[name])
        rows.append(row)
    columns = [name for name in MODALITIES if any(name in row for row in rows)]
    write_csv(rows, folder / "manifest.csv", ["subject", *columns])
    return folder / "manifest.csv"


def evaluate(run: Path, **overrides: Any) -> None:
    """Write predictions and metrics of a run, without the page, whose charts take longest."""
    from mmfusion.bundle import run_config

    run_config("evaluate", **({"run_dir": str(run), "resamples": 100, "device": "cpu", "run#2": None} | overrides))


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 subjects, 12 of each class; five lack a modality, three of them ``ct``, the reference."""
    labels = ["benign", "malignant"] * 12
    missing = {0: ["ct"], 1: ["pet"], 2: ["mr"], 3: ["ct"], 9: ["ct", "mr"]}
    return write_tiny_cohort(tmp_path_factory.mktemp("tiny") / "cohort", labels, missing).folder


@pytest.fixture(scope="session")
def train(tiny_cohort: Path) -> Callable[..., Path]:
    """A function (run folder, overrides) that trains on the tiny cohort in this process."""

    def run(folder: Path, **overrides: Any) -> Path:
        from mmfusion.bundle import run_config

        run_config("train", **(FAST | {"cohort": str(tiny_cohort), "run_dir": str(folder)} | overrides))
        return folder

    return run


@pytest.fixture(scope="session")
def tiny_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained and evaluated; tests must not write into it."""
    from mmfusion.bundle import run_config

    folder = train(tmp_path_factory.mktemp("tiny_run") / "run")
    run_config("evaluate", run_dir=str(folder), resamples=100, device="cpu")
    return folder
