"""``metrics.json``: what the predictions of a run, or of all folds of a cross-validation, are worth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import CohortError, ReadError
from mmfusion.evaluation import Difference, Estimate, classification_metrics, compare
from mmfusion.files import Predictions, RunFolder, write_json
from mmfusion.predict import read_model
from mmfusion.report.result import models_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mmfusion.predict import Model

_AGAIN = "evaluate the run again"


def single_runs(run: str | Path) -> dict[str, Path]:
    """The runs below ``RUN/single`` that have predictions: each modality trained alone."""
    folders = sorted((Path(run) / "single").glob("*/predictions.csv"))
    return {path.parent.name: path.parent for path in folders}


def write_metrics(
    run: str | Path, resamples: int = 2000, seed: int = 0, case_control: bool = False, **more: Any
) -> dict[str, Any]:
    """Compute ``metrics.json`` from ``predictions.csv``, compared with the single modalities that have predictions.

    Where cases of doubtful preparation are among them, the AUC of the others stands beside that of all.
    The fusion and a modality alone are compared on the cases that both predicted, in pairs.
    Of a cross-validation, AUC and PR-AUC are means over the folds, and so are the differences of AUCs; the other
    metrics count the cases of all folds together, each at its own fold's threshold. ``folds`` has the numbers of each.

    Args:
        run: a run folder with ``predictions.csv``, or that of a cross-validation.
        resamples, seed: of the bootstrap.
        case_control: subjects were chosen by their label, so intervals take the number of each class as fixed.
        more: further plain entries of ``metrics.json``, as ``simulated=True`` or ``ceilings={...}``.

    Raises:
        CohortError: there are no predictions, or they have no labels.
        ReadError: they are damaged.
    """
    run = Path(run)
    fused = Predictions.read(run / "predictions.csv").labelled()
    if not len(fused):
        raise CohortError(f"{run / 'predictions.csv'} has no labels; metrics need them")
    models = _models(run, fused)
    model = next(iter(models.values()))
    fused = fused.in_order(model.classes)
    scored = _score(fused, models)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "case_control": case_control}
    without_doubtful = _without_doubtful(fused, scored, options)
    comparison: dict[str, Any] = {}
    pairs: dict[str, tuple[_Scored, _Scored]] = {}
    for name, folder in single_runs(run).items():
        alone = Predictions.read(folder / "predictions.csv")
        alone = alone.of_cases([case for case in alone.cases if case in set(fused.cases)]).in_order(model.classes)
        if not len(alone):  # evaluated on another part
            continue
        own, both = _score(alone, _models(folder, alone)), _score(fused.of_cases(alone.cases), models)
        if reason := _not_paired(both, own, name):
            difference = Difference(None, None, None, len(own.label), reason=reason)
        else:
            difference, pairs[name] = _difference(both, own, options), (both, own)
        comparison[name] = {
            "auc": own.auc(options).as_dict(),
            "fusion_auc": both.auc(options).as_dict(),
            "difference": difference.as_dict(),
            "models": models_of(alone),
        }
    by_fold: dict[str, Any] = {}
    if scored.folds:
        by_fold = {"folds": _by_fold(scored, pairs, model.classes, options), "notes": [_note(scored)]}
    out = {
        "part": fused[0]["part"],
        "n": len(fused),
        "classes": list(model.classes),
        "threshold": None if scored.folds else model.threshold,
        "case_control": case_control,
        "metrics": {name: estimate.as_dict() for name, estimate in scored.metrics(options).items()},
        **({"without_doubtful": without_doubtful} if without_doubtful else {}),
        "comparison": comparison,
        "models": models_of(fused),
        **by_fold,
        **more,
    }
    write_json(out, RunFolder(run).metrics)
    return out


@dataclass(frozen=True)
class _Scored:
    """Predictions to measure: ``label [N]``, ``probability [N, K]``, ``subject [N]``, ``threshold [N]``, ``fold [N]``.

    The fold is empty text where there is no cross-validation.
    """

    label: np.ndarray
    probability: np.ndarray
    subject: np.ndarray
    threshold: np.ndarray
    fold: np.ndarray

    @property
    def folds(self) -> list[str]:
        """The folds of a cross-validation, in order; empty without."""
        return sorted({str(fold) for fold in self.fold if fold}, key=int)

    @property
    def design(self) -> dict[str, Any]:
        """Who is a subject and what is a fold, as the functions of evaluation take it."""
        return {"groups": self.subject, "folds": self.fold if self.folds else None}

    def metrics(self, options: Mapping[str, Any], names: Collection[str] | None = None) -> dict[str, Estimate]:
        """The metrics of these names, or all; AUC and PR-AUC of a cross-validation are means over its folds."""
        given = {"metrics": names, "threshold": self.threshold, **self.design, **options}
        return classification_metrics(self.label, self.probability, **given)

    def auc(self, options: Mapping[str, Any]) -> Estimate:
        """The AUC alone."""
        return self.metrics(options, ["auc"])["auc"]

    def only(self, chosen: np.ndarray) -> _Scored:
        """Some of the rows, by a mask ``[N]``."""
        return _Scored(*(getattr(self, one.name)[chosen] for one in fields(self)))

    def of_fold(self, fold: str) -> _Scored:
        """The rows of one fold, as a test part of its own."""
        rows = self.only(self.fold == fold)
        return replace(rows, fold=np.full_like(rows.fold, ""))


def _score(predictions: Predictions, models: Mapping[str, Model]) -> _Scored:
    """The predictions as arrays, each row with the threshold of its fold's model."""
    thresholds = {fold: 0.5 if model.threshold is None else model.threshold for fold, model in models.items()}
    fold = np.array([""] * len(predictions)) if predictions.fold is None else predictions.fold
    threshold = np.array([thresholds[one] for one in fold.tolist()])
    return _Scored(predictions.label, predictions.probability, predictions.subject, threshold, fold)


def _difference(fused: _Scored, own: _Scored, options: Mapping[str, Any]) -> Difference:
    """The AUC of the fusion minus that of a modality alone, on the same cases in pairs, and within the same folds."""
    return compare(own.label, fused.probability, own.probability, **own.design, **options)


def _not_paired(fused: _Scored, own: _Scored, name: str) -> str:
    """Why a modality alone cannot be compared case by case within the folds; empty if it can."""
    if differ := int(np.sum(fused.label != own.label)):
        return f"{differ} of {len(own.label)} cases have another label in single/{name}; evaluate both again"
    differ = int(np.sum(fused.fold != own.fold))
    if not differ:
        return ""
    return (
        f"{differ} of {len(own.fold)} cases were tested in another fold in single/{name}, or in none; "
        "train both with the same folds"
    )


def _without_doubtful(predictions: Predictions, scored: _Scored, options: Mapping[str, Any]) -> dict[str, Any]:
    """Which cases are doubtful, and the AUC of the others; empty if none is. Accepted cases are not doubtful."""
    doubtful = [row["case"] for row in predictions if row.get("status") == "doubtful"]
    if not doubtful:
        return {}
    sure = np.array([case not in doubtful for case in predictions.cases])
    if sure.any():
        auc = scored.only(sure).auc(options)
    else:
        auc = Estimate(None, None, None, 0, reason="every case is doubtful")
    return {"doubtful": doubtful, "auc": auc.as_dict()}


def _models(run: Path, rows: Collection[Mapping[str, str]]) -> dict[str, Model]:
    """Fold to the model of the predictions in a run; the fold is empty where it is no cross-validation.

    Raises:
        CohortError: another model made them than the one that lies beside them now.
    """
    folds = list(dict.fromkeys(row.get("fold", "") for row in rows))
    if strange := [fold for fold in folds if fold and not fold.isdecimal()]:
        raise ReadError(f"{run / 'predictions.csv'} is damaged: fold is {strange[0]!r:.40}; {_AGAIN}")
    if len(folds) > 1 and "" in folds:
        raise ReadError(f"{run / 'predictions.csv'} is damaged: some cases have a fold and others none; {_AGAIN}")
    models = {fold: read_model(RunFolder(run).fold(fold).path if fold else run) for fold in folds}
    for row in rows:
        now = models[row.get("fold", "")].weights
        if now and row.get("model") not in (None, "", now):
            raise CohortError(
                f"{run / 'predictions.csv'} was made by another model than the one that is there now; evaluate again"
            )
    return models


def _by_fold(
    scored: _Scored,
    pairs: Mapping[str, tuple[_Scored, _Scored]],
    classes: tuple[str, ...],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Fold to its numbers: cases, subjects, cases of each class, AUC, threshold, log loss, and the single modalities.

    Args:
        scored: the predictions of all folds.
        pairs: modality to the predictions of fusion and of this modality alone, on the same cases.
        classes: their names, K.
        options: of the bootstrap.
    """
    table: dict[str, Any] = {}
    for fold in scored.folds:
        rows = scored.of_fold(fold)
        metrics = rows.metrics(options, ["auc", "log_loss"])
        table[fold] = {
            "n": len(rows.label),
            "subjects": len(set(rows.subject.tolist())),
            "count": {name: int(np.sum(rows.label == k)) for k, name in enumerate(classes)},
            "auc": metrics["auc"].as_dict(),
            "threshold": float(rows.threshold[0]) if len(classes) == 2 else None,
            "log_loss": metrics["log_loss"].as_dict(),
            "single": {
                name: {
                    "auc": own.of_fold(fold).auc(options).as_dict(),
                    "difference": _difference(fused.of_fold(fold), own.of_fold(fold), options).as_dict(),
                }
                for name, (fused, own) in pairs.items()
                if fold in own.folds
            },
        }
    return table


def _note(scored: _Scored) -> str:
    """What the numbers of a cross-validation are, for readers of ``metrics.json`` and of the page."""
    return (
        f"Cross-validation: each case was predicted by the one of {len(scored.folds)} models that was trained without "
        "it. AUC and PR-AUC are means over the folds: cases of different folds are not compared, because the "
        "probabilities of different models may differ in scale. All other metrics count the cases of all folds "
        f"together{', each at the threshold of its fold' if scored.probability.shape[1] == 2 else ''}."
    )
