"""Metrics of a classifier, each with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.evaluation.estimate import Estimate
from mmfusion.evaluation.folds import mean_of_folds
from mmfusion.evaluation.intervals import (
    check_confidence,
    delong_interval,
    effective_count,
    log_interval,
    logit_interval,
    mean_error,
    mean_of_shares,
    newcombe,
)
from mmfusion.evaluation.rows import Rows, bootstrap_weights, check_folds, check_rows
from mmfusion.evaluation.scores import (
    CLASS_OF,
    LOSSES,
    METRICS,
    RANKING,
    check_metric,
    check_threshold,
    is_right,
    largest_loss,
    losses,
    undefined,
    value_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmfusion.evaluation.scores import Threshold

_MANY = 20  # subjects of a class from which on the error of an AUC can be estimated from them alone


def classification_metrics(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    metrics: Collection[str] | None = None,
    threshold: Threshold = 0.5,
    groups: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    case_control: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """AUC, PR-AUC, balanced accuracy, accuracy, sensitivity, specificity, Brier score and log loss.

    Two classes: class 1 is positive, predicted where its probability is at least ``threshold``. More classes: AUC
    and PR-AUC are means over one-against-rest, the prediction is the most probable class, sensitivity and
    specificity are left out. PR-AUC is the average precision. The Brier score is the mean squared error of the
    positive class for two classes and the sum over classes for more (0..1 and 0..2).

    The interval is the one that ``benchmarks/coverage.py`` found to hold the truth as often as it says:

    =================  ==========================================  ===========================================
    metric             each subject has one row                    subjects have several rows
    =================  ==========================================  ===========================================
    AUC                DeLong on the logit scale, as far as        cluster bootstrap on the logit scale;
                       Newcombe's below 20 subjects of a class;    Newcombe's likewise
                       that alone at 0 and at 1; more classes:
                       bootstrap
    PR-AUC             bootstrap on the logit scale                cluster bootstrap on the logit scale
    shares             Wilson; balanced accuracy: those of the     the same, with the number of independent rows
                       classes combined                            that would vary as much
    Brier, log loss    t on the log scale                          the same, from sums over subjects
    =================  ==========================================  ===========================================

    With the fewest subjects some fall short of it: of Brier score and log loss 75 to 90 % where next to no row is
    wrong, as few errors are seen in a sample, and in a case-control design with five to ten positives whose
    probabilities are too sure. Below 20 subjects of a class the interval of the AUC holds the truth in up to 100 %, as
    the shape of the distributions cannot be known from so few. PR-AUC, and the AUC of more classes, have none where all
    are in order.

    Of a cross-validation, AUC and PR-AUC are means over the folds, see :func:`mean_of_folds`: cases that different
    models predicted cannot be ranked together. The others are of all rows.

    Args:
        label: ``[N]`` class indices.
        probability: ``[N, K]``, or ``[N]`` the probability of class 1.
        metrics: names of those to compute; None: all of them.
        threshold: for class 1 of two; ``[N]`` gives each row its own, as folds of a cross-validation have.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.
        folds: ``[N]`` the test fold of each row; None: one model predicted all of them.
        case_control: subjects were chosen by their class, so that the number of each is fixed; else they are taken as
            a cohort, in which it varies.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.
        confidence: of the interval.

    Raises:
        EvaluationError: no rows, lengths that differ, values that are no probabilities, subjects or folds that are
            missing, a threshold or a confidence out of range.
        OptionError: an unknown metric.
    """
    rows = check_rows(label, probability, groups)
    check_threshold(threshold, rows)
    check_confidence(confidence)
    by_fold = None if folds is None else check_folds(folds, rows)
    for name in metrics or ():
        check_metric(name)
    names = [name for name in METRICS if metrics is None or name in metrics]
    if rows.classes > 2:
        names = [name for name in names if name not in CLASS_OF]
    reasons = {name: undefined(name, rows) for name in names}
    resampled = [name for name in names if by_fold is None and not reasons[name] and _is_resampled(name, rows)]
    draws = _draws(resampled, rows, threshold, resamples, seed, case_control)
    estimates = {}
    for name in names:
        n = _cases(name, rows)
        if reasons[name]:
            estimates[name] = Estimate(None, None, None, n, reason=reasons[name])
        elif by_fold is not None and name in RANKING:
            estimates[name] = mean_of_folds(name, rows, by_fold, confidence)
        elif name not in resampled:
            estimates[name] = _analytic(name, rows, threshold, case_control, confidence)
        elif rows.too_few:
            estimates[name] = Estimate(value_of(name, rows, threshold), None, None, n, reason=rows.too_few)
        else:
            estimates[name] = _bootstrap(name, rows, threshold, draws[name], case_control, confidence)
    return estimates


def bootstrap_words(rows: Rows, resamples: int, case_control: bool) -> str:
    """How resamples were drawn, for the sentence that stands beside an interval."""
    design = ", stratified by class (case-control design)" if case_control else ""
    return f"{resamples} bootstrap resamples of {len(rows.stratum)} subjects{design}"


def _is_resampled(name: str, rows: Rows) -> bool:
    if name == "auc" and rows.classes == 2:
        return not rows.one_each and not rows.too_few
    return name in RANKING


def _draws(
    names: Collection[str], rows: Rows, threshold: Threshold, resamples: int, seed: int, case_control: bool
) -> dict[str, np.ndarray]:
    """Values ``[R]`` of each metric in the resamples; empty where subjects cannot be resampled."""
    if not names or rows.too_few:
        return {}
    weights = bootstrap_weights(rows, resamples, seed, case_control)
    chunks = [[METRICS[name](rows, chunk, threshold) for name in names] for chunk in weights]
    return {name: np.concatenate([chunk[index] for chunk in chunks]) for index, name in enumerate(names)}


def _cases(name: str, rows: Rows) -> int:
    return int(np.sum(rows.label == CLASS_OF[name])) if name in CLASS_OF else len(rows.label)


def _analytic(name: str, rows: Rows, threshold: Threshold, case_control: bool, confidence: float) -> Estimate:
    """The estimate with an interval that needs no resamples."""
    value, n, level = value_of(name, rows, threshold), _cases(name, rows), f"{100 * confidence:g} %"
    if name in LOSSES:
        if len(rows.stratum) < 2:
            return Estimate(value, None, None, n, reason="an interval needs 2 subjects, found 1")
        error, freedom = mean_error(losses(name, rows), rows, case_control)
        if error <= 1e-12 * max(value, 1):
            return Estimate(value, None, None, n, reason="all rows have the same loss, so its interval has no width")
        low, high = log_interval(value, error, freedom, confidence, largest_loss(name, rows.classes))
        method = f"{level} t interval on the log scale, {len(rows.stratum)} subjects"
        return Estimate(value, low, high, n, method)
    if name != "auc":
        return _shares(name, rows, threshold, case_control, confidence)
    interval = None if rows.too_few else delong_interval(rows.label == 1, rows.probability[:, 1], confidence)
    return _auc_of_two(value, interval, f"{level} DeLong interval on the logit scale", rows, confidence)


def _auc_of_two(
    value: float, interval: tuple[float, float] | None, method: str, rows: Rows, confidence: float
) -> Estimate:
    """The AUC of two classes; with few subjects of a class its interval reaches as far as Newcombe's.

    An error estimated from few subjects misses rare low scores, and Newcombe's takes the shape of the distributions
    for granted: each is too short where the other is not.
    """
    positives, negatives = rows.subjects_of(1), rows.subjects_of(0)
    if interval is not None and min(positives, negatives) >= _MANY:
        return Estimate(value, *interval, len(rows.label), method)
    low, high = newcombe(value, positives, negatives, confidence)
    words, counts = f"{100 * confidence:g} % Newcombe interval", f"{positives} and {negatives} subjects"
    if interval is not None:
        low, high = min(low, interval[0]), max(high, interval[1])
        words = f"{method}, or Newcombe's where it reaches further"
    return Estimate(value, low, high, len(rows.label), f"{words}; {counts}")


def _shares(name: str, rows: Rows, threshold: Threshold, case_control: bool, confidence: float) -> Estimate:
    """A share with its Wilson interval; the balanced accuracy with those of its classes combined."""
    value, n, level = value_of(name, rows, threshold), _cases(name, rows), f"{100 * confidence:g} %"
    right = is_right(rows, threshold)
    classes = [CLASS_OF[name]] if name in CLASS_OF else range(rows.classes)
    parts = [np.ones(len(right), bool)] if name == "accuracy" else [rows.label == k for k in classes]
    shares = np.array([right[part].mean() for part in parts])
    counts = np.array([effective_count(right[part], rows.part(part), case_control, confidence) for part in parts])
    low, high = mean_of_shares(shares, counts, confidence)
    words = "Wilson intervals of the classes, combined" if name == "balanced_accuracy" else "Wilson interval"
    visits = "" if rows.one_each else f", {counts.sum():.0f} effective subjects"
    return Estimate(value, low, high, n, f"{level} {words}{visits}")


def _bootstrap(
    name: str, rows: Rows, threshold: Threshold, drawn: np.ndarray, case_control: bool, confidence: float
) -> Estimate:
    """The estimate with a t interval on the logit scale, its error the deviation of the resamples ``[R]``."""
    value, n, interval = value_of(name, rows, threshold), _cases(name, rows), None
    method = f"{100 * confidence:g} % interval on the logit scale from "
    method += bootstrap_words(rows, len(drawn), case_control)
    if np.ptp(drawn) > 1e-12:
        rarest = min(rows.subjects_of(k) for k in range(rows.classes))
        interval = logit_interval(value, float(np.std(drawn)), rarest - 1, confidence)
    if name == "auc" and rows.classes == 2:
        return _auc_of_two(value, interval, method, rows, confidence)
    if interval is not None:
        return Estimate(value, *interval, n, method)
    reason = "all resamples give the same value, so a bootstrap interval would have no width"
    return Estimate(value, None, None, n, reason=reason)
