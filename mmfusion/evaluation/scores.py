"""The values of the metrics of a classifier.

Every metric is a function of weights ``[R, N]``, one row of weights per resample, and gives ``[R]`` values at once.
The value itself is that of one row of ones, so that value and resamples cannot come from different formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from mmfusion.errors import EvaluationError, OptionError
from mmfusion.evaluation.rows import Rows
from mmfusion.options import unknown

Threshold: TypeAlias = "float | np.ndarray"

RANKING = ("auc", "pr_auc")
"""Metrics of the order of the cases. Each fold of a cross-validation has a model with a scale of its own, so cases of
different folds cannot be ordered."""
CLASS_OF = {"sensitivity": 1, "specificity": 0}
"""Metrics of the rows of one class, which exist for two classes only, and that class."""
LOSSES = ("brier", "log_loss")
"""Metrics that are the mean of a loss of each row, see :func:`losses`."""
_LEAST = np.finfo(np.float64).eps  # a probability of 0 has the log loss of this one


def check_threshold(threshold: Threshold, rows: Rows) -> None:
    """Raises EvaluationError where it is neither one finite number nor one for each row."""
    given = np.asarray(threshold)
    numbers = given.dtype.kind in "biuf" and bool(np.isfinite(given).all())
    if not numbers or given.shape not in ((), rows.label.shape):
        raise EvaluationError(
            f"a threshold must be one finite number, or one for each of {len(rows.label)} rows, found "
            f"{repr(threshold) if given.shape == () else f'shape {given.shape}'}"
        )


def value_of(name: str, rows: Rows, threshold: Threshold) -> float:
    """One metric of the rows as they are."""
    return float(METRICS[name](rows, np.ones((1, len(rows.label))), threshold)[0])


def undefined(name: str, rows: Rows) -> str:
    """Why the metric cannot be computed from these rows; empty if it can."""
    if name in CLASS_OF:
        needed = [CLASS_OF[name]]
    else:
        needed = [] if name in ("accuracy", *LOSSES) else list(range(rows.classes))
    missing = [k for k in needed if k in rows.absent]
    if not missing:
        return ""
    if len(rows.absent) == rows.classes - 1:
        return f"one class only: all {len(rows.label)} rows are of class {rows.label[0]}"
    return f"no rows of class {', '.join(map(str, missing))}"


def class_counts(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted positives and negatives at each distinct score, ascending: two arrays ``[R, U]``.

    Args:
        positive: ``[N]`` bool.
        score: ``[N]``.
        weights: ``[R, N]``.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    weights, positive = weights[:, order], positive[order]
    return (
        np.add.reduceat(weights * positive, starts, axis=1),
        np.add.reduceat(weights * ~positive, starts, axis=1),
    )


def _auc(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    """Mann-Whitney form: the share of pairs in the right order, ties count half."""

    def one(k: int) -> np.ndarray:
        positives, negatives = class_counts(rows.label == k, rows.probability[:, k], weights)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        return (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))

    return _mean_over_classes(one, rows.classes)


def _pr_auc(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    """Average precision: the mean of the precision over the positives, without interpolation."""

    def one(k: int) -> np.ndarray:
        positives, negatives = class_counts(rows.label == k, rows.probability[:, k], weights)
        positives, negatives = positives[:, ::-1], negatives[:, ::-1]
        detected = np.cumsum(positives, axis=1)
        precision = detected / np.maximum(detected + np.cumsum(negatives, axis=1), 1e-300)
        return (positives * precision).sum(axis=1) / detected[:, -1]

    return _mean_over_classes(one, rows.classes)


def _mean_over_classes(one: Callable[[int], np.ndarray], classes: int) -> np.ndarray:
    return one(1) if classes == 2 else np.mean([one(k) for k in range(classes)], axis=0)


def is_right(rows: Rows, threshold: Threshold) -> np.ndarray:
    """``[N]`` 1 where the prediction is the label."""
    if rows.classes == 2:
        predicted = (rows.probability[:, 1] >= threshold).astype(np.int64)
    else:
        predicted = np.argmax(rows.probability, axis=1)
    return (predicted == rows.label).astype(np.float64)


def _recall(k: int) -> Callable[[Rows, np.ndarray, Threshold], np.ndarray]:
    """The metric "share of the rows of class k that are predicted right"."""

    def recall(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
        return _mean(is_right(rows, threshold), weights * (rows.label == k))

    return recall


def _balanced_accuracy(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    return np.mean([_recall(k)(rows, weights, threshold) for k in range(rows.classes)], axis=0)


def _accuracy(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    return _mean(is_right(rows, threshold), weights)


def losses(name: str, rows: Rows) -> np.ndarray:
    """``[N]`` the loss of each row, whose mean is the Brier score or the log loss."""
    if name == "brier":
        squares = ((rows.probability - np.eye(rows.classes)[rows.label]) ** 2).sum(axis=1)
        return squares / 2 if rows.classes == 2 else squares
    given = rows.probability[np.arange(len(rows.label)), rows.label]
    return -np.log(np.clip(given, _LEAST, 1))


def largest_loss(name: str, classes: int) -> float:
    """What the Brier score or the log loss of a row is at most."""
    if name == "brier":
        return 1.0 if classes == 2 else 2.0
    return float(-np.log(_LEAST))


def _loss(name: str) -> Callable[[Rows, np.ndarray, Threshold], np.ndarray]:
    return lambda rows, weights, threshold: _mean(losses(name, rows), weights)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


METRICS: dict[str, Callable[[Rows, np.ndarray, Threshold], np.ndarray]] = {
    "auc": _auc,
    "pr_auc": _pr_auc,
    "balanced_accuracy": _balanced_accuracy,
    "accuracy": _accuracy,
    **{name: _recall(k) for name, k in CLASS_OF.items()},
    **{name: _loss(name) for name in LOSSES},
}


def check_metric(name: str) -> None:
    """Refuse a name that is no metric.

    Raises:
        OptionError: an unknown metric.
    """
    if name not in METRICS:
        raise OptionError(unknown("metric", name, METRICS))
