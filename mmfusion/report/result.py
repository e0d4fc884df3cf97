"""What a run folder says, read once: options, split, predictions, metrics, history, and the cohort behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfusion.errors import CohortError
from mmfusion.files import Predictions, RunFolder, is_there, optional_fields, read_rows
from mmfusion.report.files import number


class Curve(NamedTuple):
    """One class against the rest, to draw: ``label [N]`` (0 or 1), ``probability [N]`` and ``subject [N]``.

    Of a cross-validation ``fold [N]`` says by which model each row was predicted; else it is None.
    """

    label: np.ndarray
    probability: np.ndarray
    subject: np.ndarray
    fold: np.ndarray | None = None

    def by_fold(self) -> list[Curve]:
        """The curves of the folds that have both classes, in the order of the rows; none without folds."""
        if self.fold is None:
            return []
        chosen = [self.fold == fold for fold in dict.fromkeys(self.fold.tolist())]
        curves = [Curve(self.label[rows], self.probability[rows], self.subject[rows]) for rows in chosen]
        return [curve for curve in curves if curve.has_both]

    @property
    def has_both(self) -> bool:
        """Whether there are rows of the class and rows of the rest."""
        return bool(0 < np.sum(self.label) < len(self.label))


def curves_of(predictions: Predictions) -> dict[str, Curve]:
    """Each class against the rest (two classes: the positive one), where a test part has both."""
    classes, label, fold = predictions.classes, predictions.label, predictions.fold
    shown = [1] if len(classes) == 2 else range(len(classes))
    curves = {
        classes[k]: Curve((label == k).astype(np.int64), predictions.probability[:, k], predictions.subject, fold)
        for k in shown
    }
    return {name: one for name, one in curves.items() if (one.has_both if one.fold is None else one.by_fold())}


@dataclass(frozen=True)
class Result:
    """A run folder."""

    folder: Path
    options: dict[str, Any]
    metrics: dict[str, Any]
    predictions: Predictions
    split: list[dict[str, str]]
    history: list[dict[str, str]]
    cohort: Path | None
    cases: list[dict[str, str]]
    cohort_options: dict[str, Any]

    @property
    def threshold(self) -> float | None:
        """At and above which class 1 of two is predicted; None in a cross-validation, where each fold has its own."""
        if self.metrics.get("folds"):
            return None
        found = number(self.metrics.get("threshold"))
        return 0.5 if found is None else found

    @property
    def modalities(self) -> list[str]:
        names = self.options.get("modalities")
        return names.split() if isinstance(names, str) else list(map(str, names if isinstance(names, list) else []))

    @property
    def simulated(self) -> bool:
        return any(bool(d.get("simulated")) for d in (self.metrics, self.options, self.cohort_options))

    @property
    def case_control(self) -> bool:
        """Whether a case-control design was declared: subjects were chosen by their label."""
        return bool(self.metrics.get("case_control"))

    @property
    def comparison(self) -> dict[str, dict[str, Any]]:
        """Modality to its estimates: ``auc`` alone and ``difference``, fusion minus alone."""
        found = self.metrics.get("comparison") or {}
        return {str(name): entry for name, entry in found.items() if isinstance(entry, dict)}

    @property
    def folds(self) -> dict[str, dict[str, Any]]:
        """Fold of a cross-validation to its numbers; empty without one, and where :attr:`pools_folds`."""
        given = {} if self.pools_folds else self.metrics.get("folds") or {}
        return {str(fold): entry for fold, entry in given.items() if isinstance(entry, dict)}

    @property
    def pools_folds(self) -> bool:
        """Whether these are metrics of an earlier version, whose AUC compares cases of different folds."""
        return "standard_deviation" in (self.metrics.get("folds") or {})

    @property
    def without_doubtful(self) -> dict[str, Any]:
        """The cases that were ``doubtful`` when the run was evaluated, and the ``auc`` of the others; empty if none."""
        estimate = self.metrics.get("without_doubtful")
        return estimate if isinstance(estimate, dict) else {}

    def estimate(self, name: str) -> dict[str, Any]:
        """A metric's Estimate as a dict; empty if there is none."""
        found = (self.metrics.get("metrics") or {}).get(name)
        return found if isinstance(found, dict) else {}


def read_result(run_dir: str | Path) -> Result:
    """Everything that a run folder holds, with the cohort's table if that folder is where the options say.

    Raises:
        CohortError: predictions or metrics are absent, or are no tables of predictions.
        ReadError: a file is damaged.
    """
    folder = Path(run_dir)
    remedy = f"run mmfusion evaluate {folder} first"
    files = RunFolder(folder)
    options = optional_fields(files.options)
    metrics = optional_fields(files.metrics, remedy) if files.predictions.is_file() else {}
    table = Predictions.read(files.predictions, remedy)
    predictions = labelled_part(table, str(metrics.get("part", "test")))
    _refuse_stale(folder, table, metrics)
    cohort = cohort_folder(folder, options.get("cohort"))
    return Result(
        folder=folder,
        options=options,
        metrics=metrics,
        predictions=predictions,
        split=read_rows(files.split),
        history=read_rows(files.history),
        cohort=cohort,
        cases=read_rows(cohort / "cases.csv") if cohort else [],
        cohort_options=optional_fields(cohort / "options.json") if cohort else {},
    )


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The models that made predictions, by the hash of their weights, sorted; none where it is not known."""
    return sorted({str(row["model"]) for row in rows if row.get("model")})


def _refuse_stale(folder: Path, rows: Iterable[Mapping[str, str]], metrics: dict[str, Any]) -> None:
    """Refuse metrics of other predictions, and predictions of another model, than those in the folder.

    Raises:
        CohortError: the models that made them differ.
    """
    made_by = models_of(rows)
    measured = {"predictions.csv": (made_by, metrics.get("models"))}
    comparison = metrics.get("comparison")
    for name, entry in comparison.items() if isinstance(comparison, dict) else ():
        single = RunFolder(folder).single(str(name))
        now = models_of(read_rows(single.predictions)) or [str(optional_fields(single.model).get("weights") or "")]
        then = entry.get("models") if isinstance(entry, dict) else None
        measured[f"single/{name}/predictions.csv"] = (now if all(now) else [], then)
    for file, (now, then) in measured.items():
        if now and then and now != then:
            raise CohortError(f"{folder / 'metrics.json'} is of an earlier {file}; evaluate {folder} again")
    run = RunFolder(folder)
    files = [run.model, *(fold.model for fold in run.folds().values())]
    models = {str(weights) for file in files if (weights := optional_fields(file).get("weights"))}
    if models and set(made_by) - models:
        raise CohortError(
            f"{folder / 'predictions.csv'} was made by another model than the one that is there now; evaluate again"
        )


def labelled_part(predictions: Predictions, part: str) -> Predictions:
    """The rows of one part that have a label, of which there must be some.

    Raises:
        CohortError: there are none.
    """
    chosen = predictions.labelled(part)
    if not len(chosen):
        raise CohortError(f"{chosen.path} has no rows of part '{part}' with a label: evaluate that part first")
    return chosen


def cohort_folder(run: Path, given: Any) -> Path | None:
    """The cohort's folder: relative to the run, beside it, or as given; None if it is nowhere."""
    if not given:
        return None
    places = (run / str(given), run.parent / str(given), Path(str(given)))
    return next((place for place in places if is_there(place / "cases.csv", Path.is_file)), None)
