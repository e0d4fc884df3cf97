"""What figures are drawn from: the ROC curve with its band, precision and recall, calibration, confusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfusion.errors import EvaluationError
from mmfusion.evaluation.folds import usable_folds
from mmfusion.evaluation.intervals import check_confidence, wilson
from mmfusion.evaluation.rows import Rows, bootstrap_weights, check_folds, check_rows
from mmfusion.evaluation.scores import class_counts


@dataclass(frozen=True)
class RocBand:
    """A ROC curve (``fpr [U], tpr [U]``) and its pointwise band (``low [G], high [G]`` at ``grid [G]``).

    The band is None where a class has fewer than 2 subjects, and in a cross-validation.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    grid: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class CalibrationBins:
    """Per bin ``[B]``: mean predicted probability, observed share, its Wilson interval, number of rows."""

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray


def roc_band(
    label: np.ndarray,
    probability: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    folds: np.ndarray | None = None,
    case_control: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    points: int = 101,
) -> RocBand:
    """The ROC curve of class 1, and a band from resampled subjects.

    The band is vertical: at each false positive rate the percentiles of the resampled true positive rates
    (Fawcett, Pattern Recognit. Lett. 2006). It holds at each point, not for the whole curve at once. Of a
    cross-validation the curve is the vertical mean of those of the folds, whose area is the mean of their AUCs but for
    the width of the grid, and there is no band.

    Args:
        label: ``[N]``, 0 or 1.
        probability: ``[N]`` the probability of class 1, or ``[N, 2]``.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.
        folds: ``[N]`` the test fold of each row; None: one model predicted all of them.
        case_control, resamples, seed, confidence: as in :func:`mmfusion.evaluation.classification_metrics`.
        points: G, the number of false positive rates of the band.

    Raises:
        EvaluationError: one class only, or no fold with both.
    """
    check_confidence(confidence)
    rows = _binary(label, probability, groups)
    grid = np.linspace(0, 1, points)
    if folds is not None:
        parts, _ = usable_folds("auc", rows, check_folds(folds, rows))
        if not parts:
            raise EvaluationError("a curve needs both classes, and no fold has both")
        curves = [[rates[0] for rates in _rates(part, np.ones((1, len(part.label))))] for part in parts]
        tpr = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
        return RocBand(np.r_[0, grid], np.r_[0, tpr], grid, None, None)
    fpr, tpr = (rates[0] for rates in _rates(rows, np.ones((1, len(rows.label)))))
    if rows.too_few:
        return RocBand(fpr, tpr, grid, None, None)
    drawn = []
    for weights in bootstrap_weights(rows, resamples, seed, case_control):
        drawn += [np.interp(grid, x, y) for x, y in zip(*_rates(rows, weights), strict=True)]
    low, high = np.quantile(np.stack(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return RocBand(fpr, tpr, grid, low, high)


def precision_recall_curve(label: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision ``[U]`` of class 1, one point per distinct probability, highest first.

    Args:
        label: ``[N]``, 0 or 1.
        probability: ``[N]`` the probability of class 1, or ``[N, 2]``.

    Raises:
        EvaluationError: one class only.
    """
    rows = _binary(label, probability, None)
    positives, negatives = (c[0, ::-1] for c in _counts(rows, np.ones((1, len(rows.label)))))
    detected = np.cumsum(positives)
    return detected / detected[-1], detected / (detected + np.cumsum(negatives))


def calibration_bins(label: np.ndarray, probability: np.ndarray, bins: int = 5) -> CalibrationBins:
    """Observed against predicted share of class 1, in bins with about equally many rows.

    Equal counts rather than equal widths, because a small test set leaves most bins of equal width empty. Rows
    of one probability stay together, so there may be fewer bins than asked for.

    Args:
        label: ``[N]``, 0 or 1.
        probability: ``[N]`` the probability of class 1, or ``[N, 2]``.
        bins: B, at most.
    """
    if bins < 1:
        raise EvaluationError(f"calibration needs 1 bin or more, found {bins}")
    rows = check_rows(label, probability)
    score = rows.probability[:, 1]
    edges = np.unique(np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    member = np.searchsorted(edges, score, side="left")
    _, member, n = np.unique(member, return_inverse=True, return_counts=True)
    predicted = np.bincount(member, weights=score) / n
    observed = np.bincount(member, weights=rows.label == 1) / n
    return CalibrationBins(predicted, observed, *wilson(observed, n), n)


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Counts ``[K, K]``: rows are the true class, columns the predicted one.

    Args:
        label, predicted: ``[N]`` class indices.
        classes: K; None: the largest index found, plus one.
    """
    label, predicted = np.asarray(label, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if label.shape != predicted.shape or label.size == 0:
        raise EvaluationError(f"{label.size} labels and {predicted.size} predictions; expected as many, 1 or more")
    highest = int(max(label.max(), predicted.max()))
    classes = highest + 1 if classes is None else classes
    if min(label.min(), predicted.min()) < 0 or highest >= classes:
        raise EvaluationError(f"classes must be 0 to {classes - 1}, found up to {highest}")
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _binary(label: np.ndarray, probability: np.ndarray, groups: np.ndarray | None) -> Rows:
    rows = check_rows(label, probability, groups)
    if rows.classes != 2:
        raise EvaluationError(f"a curve is of one class against the rest, found {rows.classes} classes")
    if rows.absent:
        raise EvaluationError(f"a curve needs both classes, all {len(rows.label)} rows are of class {rows.label[0]}")
    return rows


def _counts(rows: Rows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return class_counts(rows.label == 1, rows.probability[:, 1], weights)


def _rates(rows: Rows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates ``[R, U + 1]`` from (0, 0) to (1, 1)."""
    positives, negatives = (np.cumsum(c[:, ::-1], axis=1) for c in _counts(rows, weights))
    start = np.zeros((len(weights), 1))
    return (
        np.hstack([start, negatives / negatives[:, -1:]]),
        np.hstack([start, positives / positives[:, -1:]]),
    )
