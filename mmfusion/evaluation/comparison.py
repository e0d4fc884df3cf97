"""Is one classifier better than another on the same subjects?"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from mmfusion.errors import EvaluationError
from mmfusion.evaluation.estimate import Difference
from mmfusion.evaluation.folds import difference_of_folds
from mmfusion.evaluation.intervals import check_confidence, delong_components, percentile
from mmfusion.evaluation.metrics import bootstrap_words
from mmfusion.evaluation.rows import bootstrap_weights, check_folds, check_rows
from mmfusion.evaluation.scores import (
    METRICS,
    RANKING,
    Threshold,
    check_metric,
    check_threshold,
    undefined,
    value_of,
)


def compare(
    label: np.ndarray,
    probability_a: np.ndarray,
    probability_b: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    case_control: bool = False,
    metric: str = "auc",
    threshold: Threshold | tuple[Threshold, Threshold] = 0.5,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The metric of a minus that of b, on the same rows, with a paired interval.

    Each resample of subjects is given to both, so that what is hard for both cancels out. The p value is twice the
    share of resamples on the rarer side of zero, the data themselves counted as one more of them: never below
    2 / (resamples + 1). Of a cross-validation AUC and PR-AUC are compared fold by fold, see
    :func:`mmfusion.evaluation.folds.difference_of_folds`.

    Args:
        label: ``[N]`` class indices.
        probability_a, probability_b: ``[N, K]``, or ``[N]`` the probability of class 1.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.
        folds: ``[N]`` the test fold of each row, the same for both; None: no cross-validation.
        metric: a name that :func:`classification_metrics` returns.
        threshold: for class 1 of two; ``[N]`` gives each row its own; a pair gives a and b their own.
        case_control, resamples, seed, confidence: as in :func:`classification_metrics`.

    Raises:
        EvaluationError: rows that do not fit together.
        OptionError: an unknown metric.
    """
    a, b = check_rows(label, probability_a, groups), check_rows(label, probability_b, groups)
    if a.classes != b.classes:
        raise EvaluationError(f"a has {a.classes} classes and b has {b.classes}; the two cannot be compared")
    check_metric(metric)
    measure = METRICS[metric]
    at_a, at_b = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    for one in (at_a, at_b):
        check_threshold(one, a)
    check_confidence(confidence)
    n = len(a.label)
    if reason := undefined(metric, a):
        return Difference(None, None, None, n, reason=reason)
    if folds is not None and metric in RANKING:
        return difference_of_folds(metric, a, b, check_folds(folds, a), confidence)
    value = value_of(metric, a, at_a) - value_of(metric, b, at_b)
    if a.too_few:
        return Difference(value, None, None, n, reason=a.too_few)
    weights = bootstrap_weights(a, resamples, seed, case_control)
    drawn = np.concatenate([measure(a, chunk, at_a) - measure(b, chunk, at_b) for chunk in weights])
    same = np.array_equal(a.probability, b.probability) and np.array_equal(at_a, at_b)
    if np.ptp(drawn) <= 1e-12 and not same:
        reason = "all resamples give the same difference, so the bootstrap interval would have no width"
        return Difference(value, None, None, n, reason=reason)
    drawn[np.abs(drawn) < 1e-12] = 0.0
    rarer = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    p_value = float(min(1, 2 * (rarer + 1) / (resamples + 1)))
    method = f"paired {100 * confidence:g} % percentile interval, {bootstrap_words(a, resamples, case_control)}"
    low, high = percentile(drawn, confidence)
    return Difference(value, min(low, value), max(high, value), n, method, p_value=p_value)


def delong(label: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Difference of two AUCs on the same rows, its standard error, and the two-sided p value.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988. It takes rows as independent: where
    subjects have several, use :func:`compare`.

    Args:
        label: ``[N]``, 0 or 1.
        a, b: ``[N]`` scores of the positive class.

    Raises:
        EvaluationError: fewer than 2 rows of a class, lengths that differ, or scores that are not finite.
    """
    positive = np.asarray(label) == 1
    scores = [np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)]
    if any(score.shape != positive.shape for score in scores):
        raise EvaluationError(f"labels and scores must have one length, found {len(label)}, {len(a)} and {len(b)}")
    if not np.isfinite(scores).all():
        raise EvaluationError("the scores hold NaN or infinite values; they cannot be ranked")
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise EvaluationError(f"DeLong's test needs 2 rows of each class, found {m} positive and {n} negative")
    above, below = delong_components(positive, np.stack(scores))
    auc = above.mean(axis=1)
    difference = float(auc[0] - auc[1])
    variance = np.var(above[0] - above[1], ddof=1) / m + np.var(below[0] - below[1], ddof=1) / n
    error = float(np.sqrt(variance))
    if error == 0:
        return difference, 0.0, 1.0 if difference == 0 else 0.0
    return difference, error, float(2 * ndtr(-abs(difference) / error))
