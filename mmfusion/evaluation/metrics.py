"""Metrics of a classifier, each with its interval.

Every metric is a function of weights ``[R, N]``, one row of weights a resample, and gives ``[R]`` values at once.
The value itself is the case of one row of ones, so that value and interval cannot come from different formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from mmfusion.errors import OptionError
from mmfusion.evaluation.estimate import (
    Estimate,
    Rows,
    bootstrap_weights,
    check_rows,
    newcombe,
    percentile,
    wilson,
)
from mmfusion.options import unknown

Threshold: TypeAlias = "float | np.ndarray"


def classification_metrics(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    threshold: Threshold = 0.5,
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """AUC, PR-AUC, balanced accuracy, accuracy, sensitivity, specificity, Brier score and log loss.

    Two classes: class 1 is positive, predicted where its probability is at least ``threshold``. More classes: AUC
    and PR-AUC are means over one-against-rest, the prediction is the most probable class, sensitivity and
    specificity are left out. PR-AUC is the average precision. The Brier score is the mean squared error of the
    positive class for two classes and the sum over classes for more (0..1 and 0..2).

    Intervals are percentiles of a bootstrap over subjects, stratified by class. Where every resample gives the
    same value (a perfect test set), that interval would have no width and claim certainty; Newcombe's (AUC) or
    Wilson's interval (shares) stands in its place, or none.

    Args:
        label: ``[N]`` class indices.
        probability: ``[N, K]``, or ``[N]`` the probability of class 1.
        threshold: for class 1 of two; ``[N]`` gives each row its own, as folds of a cross-validation have.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.
        confidence: of the interval.

    Raises:
        EvaluationError: no rows, lengths that differ, or values that are no probabilities.
    """
    rows = check_rows(label, probability, groups)
    names = [name for name in METRICS if rows.classes == 2 or name not in ("sensitivity", "specificity")]
    reasons = {name: undefined(name, rows) for name in names}
    defined = [name for name in names if not reasons[name]]
    draws: dict[str, list[np.ndarray]] = {name: [] for name in defined}
    if not rows.too_few:
        for weights in bootstrap_weights(rows, resamples, seed):
            for name in defined:
                draws[name].append(METRICS[name](rows, weights, threshold))
    estimates = {}
    for name in names:
        n = _cases(name, rows)
        if reasons[name]:
            estimates[name] = Estimate(None, None, None, n, reason=reasons[name])
            continue
        value = value_of(name, rows, threshold)
        if rows.too_few:
            estimates[name] = Estimate(value, None, None, n, reason=rows.too_few)
            continue
        drawn = np.concatenate(draws[name])
        if np.ptp(drawn) > 1e-12:
            method = bootstrap_method(rows, resamples, confidence)
            estimates[name] = Estimate(value, *percentile(drawn, confidence), n, method)
        else:
            estimates[name] = _without_spread(name, value, rows, n, threshold, confidence)
    return estimates


def value_of(name: str, rows: Rows, threshold: Threshold) -> float:
    """One metric of the rows as they are."""
    return float(METRICS[name](rows, np.ones((1, len(rows.label))), threshold)[0])


def undefined(name: str, rows: Rows) -> str:
    """Why the metric cannot be computed from these rows; empty if it can."""
    needed = {"sensitivity": [1], "specificity": [0], "accuracy": [], "brier": [], "log_loss": []}
    missing = [k for k in needed.get(name, range(rows.classes)) if k in rows.absent]
    if not missing:
        return ""
    if len(rows.absent) == rows.classes - 1:
        return f"one class only: all {len(rows.label)} rows are of class {rows.label[0]}"
    return f"no rows of class {', '.join(map(str, missing))}"


def bootstrap_method(rows: Rows, resamples: int, confidence: float) -> str:
    """The sentence that stands beside an interval."""
    return (
        f"{100 * confidence:g} % percentile bootstrap, {resamples} resamples of {len(rows.stratum)} subjects, "
        "stratified by class"
    )


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
        found = np.cumsum(positives, axis=1)
        precision = found / np.maximum(found + np.cumsum(negatives, axis=1), 1e-300)
        return (positives * precision).sum(axis=1) / found[:, -1]

    return _mean_over_classes(one, rows.classes)


def _mean_over_classes(one: Callable[[int], np.ndarray], classes: int) -> np.ndarray:
    return one(1) if classes == 2 else np.mean([one(k) for k in range(classes)], axis=0)


def _right(rows: Rows, threshold: Threshold) -> np.ndarray:
    """``[N]`` 1 where the prediction is the label."""
    if rows.classes == 2:
        predicted = (rows.probability[:, 1] >= threshold).astype(np.int64)
    else:
        predicted = np.argmax(rows.probability, axis=1)
    return (predicted == rows.label).astype(np.float64)


def _recall(k: int) -> Callable[[Rows, np.ndarray, Threshold], np.ndarray]:
    def recall(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
        return _mean(_right(rows, threshold), weights * (rows.label == k))

    return recall


def _balanced_accuracy(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    return np.mean([_recall(k)(rows, weights, threshold) for k in range(rows.classes)], axis=0)


def _accuracy(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    return _mean(_right(rows, threshold), weights)


def _brier(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    squares = ((rows.probability - np.eye(rows.classes)[rows.label]) ** 2).sum(axis=1)
    return _mean(squares / 2 if rows.classes == 2 else squares, weights)


def _log_loss(rows: Rows, weights: np.ndarray, threshold: Threshold) -> np.ndarray:
    given = rows.probability[np.arange(len(rows.label)), rows.label]
    return _mean(-np.log(np.clip(given, np.finfo(np.float64).eps, 1)), weights)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


METRICS: dict[str, Callable[[Rows, np.ndarray, Threshold], np.ndarray]] = {
    "auc": _auc,
    "pr_auc": _pr_auc,
    "balanced_accuracy": _balanced_accuracy,
    "accuracy": _accuracy,
    "sensitivity": _recall(1),
    "specificity": _recall(0),
    "brier": _brier,
    "log_loss": _log_loss,
}


def metric_named(name: str) -> str:
    """The name itself, if there is such a metric."""
    if name not in METRICS:
        raise OptionError(unknown("metric", name, METRICS))
    return name


def _cases(name: str, rows: Rows) -> int:
    of_class = {"sensitivity": 1, "specificity": 0}
    return int(np.sum(rows.label == of_class[name])) if name in of_class else len(rows.label)


def _without_spread(name: str, value: float, rows: Rows, n: int, threshold: Threshold, confidence: float) -> Estimate:
    """The estimate where all resamples agree: an interval that does not need their spread, or none."""
    level = f"{100 * confidence:g} %"
    subjects = [rows.subjects_of(k) for k in range(rows.classes)]
    caution = "all resamples give the same value, so the bootstrap interval would have no width"
    if name == "auc" and rows.classes == 2:
        low, high = newcombe(value, subjects[1], subjects[0], confidence)
        return Estimate(value, low, high, n, f"{level} Newcombe interval", caution)
    if name in ("sensitivity", "specificity", "accuracy"):
        count = {"sensitivity": subjects[-1], "specificity": subjects[0]}.get(name, len(rows.stratum))
        low, high = wilson(value, count, confidence)
        return Estimate(value, float(low), float(high), n, f"{level} Wilson interval", caution)
    if name == "balanced_accuracy":
        # intervals of the classes' shares, recovered and added in squares (Zou and Donner, Stat. Med. 2008)
        recalls = np.array([float(_recall(k)(rows, np.ones((1, len(rows.label))), threshold)[0])
                            for k in range(rows.classes)])  # fmt: skip
        lows, highs = wilson(recalls, np.array(subjects), confidence)
        low = value - np.sqrt(np.sum((recalls - lows) ** 2)) / rows.classes
        high = value + np.sqrt(np.sum((highs - recalls) ** 2)) / rows.classes
        method = f"{level} Wilson intervals of the classes, combined"
        return Estimate(value, max(0.0, float(low)), min(1.0, float(high)), n, method, caution)
    return Estimate(value, None, None, n, reason=caution)
