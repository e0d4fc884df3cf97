"""Where things lie in the two folders that a study has: the cohort, prepared once, and a run, one training."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.files.folders import claim
from mmfusion.files.locks import FolderLock, lock_folder, lock_for_process
from mmfusion.files.reading import optional_fields
from mmfusion.files.writing import clear_temporary, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Place:
    """A file or folder of a folder, by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: Any, _: type | None = None) -> Path:
        return Path(folder.path / self._name)


@dataclass(frozen=True)
class CohortFolder:
    """A cohort folder: see :mod:`mmfusion.prepare.folder` for what its files hold."""

    path: Path

    options = _Place("options.json")
    table = _Place("cases.csv")
    """Written last: with it the cohort is finished."""
    cases = _Place("cases")
    covariates = _Place("covariates.csv")
    tables = _Place("covariates.npz")
    """Covariates that are tables."""
    landmarks = _Place("landmarks")
    nifti = _Place("nifti")
    accepted = _Place("accepted.json")
    """What persons decided on doubtful cases."""
    page = _Place("qc.html")
    pictures = _Place("qc")
    """Of the page, where it has too many for itself."""

    def record(self, case_id: str) -> Path:
        """The description of a prepared case, and of its files."""
        return self.cases / case_id / "case.json"

    def claim(self, kind: str = "cohort", *, reads: Iterable[Path] = (), series: Iterable[Path] = ()) -> CohortFolder:
        """Make and mark it, see :func:`mmfusion.files.claim`.

        Raises:
            OutputError: it is not ours, or cannot be written.
        """
        claim(self.path, kind, reads=reads, series=series)
        with writing(self.path):
            self.cases.mkdir(exist_ok=True)
        return self

    def lock(self) -> FolderLock:
        """Its lock, for one command alone.

        Raises:
            CohortError: another command has it.
        """
        return lock_folder(self.path, "mmfusion prepare")

    def clear(self) -> None:
        """Remove the temporary files of killed commands, in all folders that commands write in."""
        clear_temporary([self.path, self.cases, *self.cases.iterdir(), self.nifti, self.landmarks, self.pictures])


@dataclass(frozen=True)
class RunFolder:
    """A run folder: see :mod:`mmfusion.training.study` for what its files hold."""

    path: Path

    options = _Place("options.json")
    configuration = _Place("configuration.json")
    split = _Place("split.csv")
    history = _Place("history.csv")
    checkpoints = _Place("checkpoints")
    best = _Place("checkpoints/best.pt")
    final = _Place("checkpoints/final.pt")
    resume = _Place("checkpoints/resume.pt")
    """While a training is unfinished: all that it takes to go on."""
    model = _Place("model.json")
    weights = _Place("model.pt")
    predictions = _Place("predictions.csv")
    metrics = _Place("metrics.json")
    page = _Place("report.html")
    cohort = _Place("cohort")
    """Of a manifest that was prepared for this run."""

    def fold(self, number: int | str) -> RunFolder:
        """The run of a fold of a cross-validation."""
        return RunFolder(self.path / f"fold_{number}")

    def folds(self) -> dict[int, RunFolder]:
        """The folds that have a folder, in order."""
        names = (folder.name[len("fold_") :] for folder in self.path.glob("fold_*"))
        return {number: self.fold(number) for number in sorted(int(name) for name in names if name.isdecimal())}

    def single(self, modality: str) -> RunFolder:
        """The run of a modality alone."""
        return RunFolder(self.path / "single" / modality)

    def way_to(self, folder: Path) -> str:
        """The path from here to another folder, as ``options.json`` names the cohort; also through links."""
        return os.path.relpath(os.path.realpath(folder), os.path.realpath(self.path))

    def claim(self) -> RunFolder:
        """Make and mark it, see :func:`mmfusion.files.claim`.

        Raises:
            OutputError: it is not ours, or cannot be written.
        """
        claim(self.path, "run")
        return self

    def lock(self) -> FolderLock:
        """Its lock, for one program alone.

        Raises:
            CohortError: another program has it.
        """
        return lock_for_process(self.path, "training")

    def clear(self) -> None:
        """Remove the temporary files of killed commands."""
        clear_temporary([self.path, self.checkpoints])

    def holds_training(self) -> bool:
        """Whether a training has left anything in it that cost time."""
        return any(file.exists() for file in (self.best, self.final, self.resume, self.weights, self.model))

    def move_away(self) -> Path | None:
        """Move what an earlier training made to ``earlier/<number>``, and return that folder; None if there is nothing.

        Its results are not those of the next training, and nobody loses a model by starting a command twice.

        Raises:
            OutputError: it cannot be moved.
        """
        made = [self.best, self.final, self.resume, self.weights, self.model, self.history]
        made += [self.path / name for name in EXPORTS] + [self.predictions, self.metrics, self.page]
        if not any(file.exists() for file in made):
            return None
        numbers = [int(folder.name) for folder in self.path.glob("earlier/*") if folder.name.isdecimal()]
        place = self.path / "earlier" / str(max(numbers, default=0) + 1)
        with writing(place):
            place.mkdir(parents=True)
            # first what tells who was in which part: nothing of it can then be overwritten, whatever ends this
            options = optional_fields(self.options)
            if "cohort" in options:
                options["cohort"] = RunFolder(place).way_to(self.path / str(options["cohort"]))
            write_json(options, RunFolder(place).options)
            self.options.unlink(missing_ok=True)
            for file in (self.split, self.configuration, *made):
                target = place / file.relative_to(self.path)
                target.parent.mkdir(exist_ok=True)
                with suppress(FileNotFoundError):
                    file.rename(target)
        return place


ONNX = "model.onnx"
EXPORTS = (ONNX, "model.ts")
"""Files beside the weights that answer without this package: what ``mmfusion export`` and MONAI's ``ckpt_export``
write. They go where the weights go."""
