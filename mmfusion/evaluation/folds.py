"""Metrics of a cross-validation that compare cases with each other: within the folds, then over them."""

from __future__ import annotations

import numpy as np
from scipy.special import stdtr

from mmfusion.evaluation.estimate import Difference, Estimate
from mmfusion.evaluation.intervals import corrected_error, logit_interval, newcombe, t_interval
from mmfusion.evaluation.rows import Rows
from mmfusion.evaluation.scores import undefined, value_of


def mean_of_folds(name: str, rows: Rows, folds: np.ndarray, confidence: float) -> Estimate:
    """The mean of a ranking metric over the test folds, with a corrected t interval on the logit scale.

    ``logit(m) -+ t(J - 1) sqrt(v) / (m (1 - m))`` for J folds of mean m, where v is the corrected variance of
    :func:`corrected_error`. At m = 1 the AUC of two classes has Newcombe's interval.

    Args:
        name: one of :data:`~mmfusion.evaluation.scores.RANKING`.
        rows: of all folds.
        folds: ``[N]`` the fold of each row; one without all classes is left out.
        confidence: of the interval.
    """
    parts, caution = usable_folds(name, rows, folds)
    n = sum(len(part.label) for part in parts)
    if not parts:
        return Estimate(None, None, None, n, reason="no fold has all classes")
    values = np.array([value_of(name, part, 0.5) for part in parts])
    value, level = float(values.mean()), f"{100 * confidence:g} %"
    words = f"mean of {len(values)} folds; {level}"
    if name == "auc" and rows.classes == 2 and value in (0.0, 1.0):
        positives, negatives = (sum(part.subjects_of(k) for part in parts) for k in (1, 0))
        low, high = newcombe(value, positives, negatives, confidence)
        return Estimate(value, low, high, n, f"{words} Newcombe interval", caution)
    if reason := _no_interval(values):
        return Estimate(value, None, None, n, reason="; ".join(filter(None, [reason, caution])))
    freedom = len(values) - 1
    low, high = logit_interval(value, corrected_error(values, len(np.unique(folds))), freedom, confidence)
    method = f"{words} corrected t interval on the logit scale, {freedom} degrees of freedom (Nadeau and Bengio 2003)"
    return Estimate(value, low, high, n, method, caution)


def difference_of_folds(name: str, a: Rows, b: Rows, folds: np.ndarray, confidence: float) -> Difference:
    """The mean over the test folds of the metric of a minus that of b, with the corrected t interval and p value.

    ``m -+ t(J - 1) sqrt(v)``, v as in :func:`corrected_error`, ends at -1 and 1. It tests the way of training, not the
    trained models: what another draw of subjects to train and to test on would give.
    """
    (parts_a, caution), (parts_b, _) = usable_folds(name, a, folds), usable_folds(name, b, folds)
    n = sum(len(part.label) for part in parts_a)
    if not parts_a:
        return Difference(None, None, None, n, reason="no fold has all classes")
    pairs = zip(parts_a, parts_b, strict=True)
    values = np.array([value_of(name, one, 0.5) - value_of(name, other, 0.5) for one, other in pairs])
    value = float(values.mean())
    if np.array_equal(a.probability, b.probability):
        return Difference(0.0, 0.0, 0.0, n, "the two have the same probabilities", caution, p_value=1.0)
    if reason := _no_interval(values):
        return Difference(value, None, None, n, reason="; ".join(filter(None, [reason, caution])))
    error, freedom = corrected_error(values, len(np.unique(folds))), len(values) - 1
    low, high = t_interval(value, error, freedom, confidence)
    method = (
        f"mean of {len(values)} paired folds; {100 * confidence:g} % corrected t interval, "
        f"{freedom} degrees of freedom (Nadeau and Bengio 2003)"
    )
    p_value = float(2 * stdtr(freedom, -abs(value) / error))
    return Difference(value, max(low, -1.0), min(high, 1.0), n, method, caution, p_value=p_value)


def usable_folds(name: str, rows: Rows, folds: np.ndarray) -> tuple[list[Rows], str]:
    """The rows of each fold for which the metric is defined, and a caution that names the other folds."""
    usable, lacking = [], []
    for fold in np.unique(folds):
        part = rows.part(folds == fold)
        if undefined(name, part):
            lacking.append(str(fold))
        else:
            usable.append(part)
    return usable, f"left out for lack of a class: fold {', '.join(lacking)}" if lacking else ""


def _no_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return "an interval over folds needs 2 of them with all classes"
    return "all folds give the same value, so the interval would have no width" if np.ptp(values) <= 1e-12 else ""
