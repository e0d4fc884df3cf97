"""Is one classifier better than another on the same subjects?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from mmfusion.errors import EvaluationError
from mmfusion.evaluation.estimate import Estimate, bootstrap_weights, check_rows, percentile
from mmfusion.evaluation.metrics import METRICS, bootstrap_method, metric_named, undefined, value_of


@dataclass(frozen=True)
class Difference(Estimate):
    """An :class:`Estimate` of a difference, with the two-sided bootstrap p value of "no difference"."""

    p_value: float | None = None


def compare(
    label: np.ndarray,
    probability_a: np.ndarray,
    probability_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    metric: str = "auc",
    threshold: float | tuple[float, float] = 0.5,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The metric of a minus that of b, on the same rows, with a paired interval.

    Each resample of subjects is given to both, so that what is hard for both cancels out. The p value is twice
    the smaller share of resamples on either side of zero, never below 1 / resamples.

    Args:
        label: ``[N]`` class indices.
        probability_a, probability_b: ``[N, K]``, or ``[N]`` the probability of class 1.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.
        metric: a name that :func:`classification_metrics` returns.
        threshold: for class 1 of two; a pair gives a and b their own.
        resamples, seed, confidence: as in :func:`classification_metrics`.

    Raises:
        EvaluationError: rows that do not fit together.
        OptionError: an unknown metric.
    """
    a, b = check_rows(label, probability_a, groups), check_rows(label, probability_b, groups)
    if a.classes != b.classes:
        raise EvaluationError(f"a has {a.classes} classes and b has {b.classes}; the two cannot be compared")
    measure = METRICS[metric_named(metric)]
    at_a, at_b = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    n = len(a.label)
    if reason := undefined(metric, a):
        return Difference(None, None, None, n, reason=reason)
    value = value_of(metric, a, at_a) - value_of(metric, b, at_b)
    if a.too_few:
        return Difference(value, None, None, n, reason=a.too_few)
    drawn = np.concatenate([measure(a, w, at_a) - measure(b, w, at_b) for w in bootstrap_weights(a, resamples, seed)])
    same = np.array_equal(a.probability, b.probability) and at_a == at_b
    if np.ptp(drawn) <= 1e-12 and not same:
        reason = "all resamples give the same difference, so the bootstrap interval would have no width"
        return Difference(value, None, None, n, reason=reason)
    drawn[np.abs(drawn) < 1e-12] = 0.0
    share = 2 * min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    method = f"paired {bootstrap_method(a, resamples, confidence)}"
    p_value = float(np.clip(share, 1 / resamples, 1))
    return Difference(value, *percentile(drawn, confidence), n, method, p_value=p_value)


def delong(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Difference of two AUCs on the same rows, its standard error, and the two-sided p value.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by midranks (Sun and Xu, IEEE Signal Process. Lett. 2014).
    It takes rows as independent: with several visits a subject, use :func:`compare`.

    Args:
        label: ``[N]``, 0 or 1.
        a, b: ``[N]`` scores of the positive class.

    Raises:
        EvaluationError: fewer than 2 rows of a class, or lengths that differ.
    """
    from scipy.stats import rankdata

    positive = np.asarray(label) == 1
    scores = [np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)]
    if any(score.shape != positive.shape for score in scores):
        raise EvaluationError(f"labels and scores must have one length, found {len(label)}, {len(a)} and {len(b)}")
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise EvaluationError(f"DeLong's test needs 2 rows of each class, found {m} positive and {n} negative")
    # for each positive the share of negatives below it, for each negative the share of positives above it
    above = np.stack([(rankdata(s)[positive] - rankdata(s[positive])) / n for s in scores])
    below = np.stack([1 - (rankdata(s)[~positive] - rankdata(s[~positive])) / m for s in scores])
    auc = above.mean(axis=1)
    difference = float(auc[0] - auc[1])
    variance = np.var(above[0] - above[1], ddof=1) / m + np.var(below[0] - below[1], ddof=1) / n
    error = float(np.sqrt(variance))
    if error == 0:
        return difference, 0.0, 1.0 if difference == 0 else 0.0
    return difference, error, float(2 * ndtr(-abs(difference) / error))
