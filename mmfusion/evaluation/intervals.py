"""Confidence intervals from counts, from errors, and from resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri, stdtrit

from mmfusion.errors import EvaluationError
from mmfusion.evaluation.rows import Rows


def check_confidence(confidence: float) -> None:
    """Raises EvaluationError where it is no share between 0 and 1."""
    if not 0 < confidence < 1:
        raise EvaluationError(f"confidence must lie between 0 and 1, found {confidence}")


def percentile(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of bootstrap draws ``[R]`` (Efron 1981)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def t_interval(value: float, error: float, freedom: float, confidence: float) -> tuple[float, float]:
    """``value`` -+ t ``error``, with ``freedom`` degrees of freedom."""
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return value - half, value + half


def logit_interval(value: float, error: float, freedom: float, confidence: float) -> tuple[float, float]:
    """t interval of a share between 0 and 1, on the logit scale by the delta method and turned back.

    It stays between 0 and 1, and is longer towards 0.5, as the distribution of a share near 0 or 1 is.
    """
    low, high = t_interval(float(logit(value)), error / (value * (1 - value)), freedom, confidence)
    return float(expit(low)), float(expit(high))


def log_interval(value: float, error: float, freedom: float, confidence: float, most: float) -> tuple[float, float]:
    """t interval of a positive mean, on the log scale by the delta method and turned back; it ends at ``most``."""
    low, high = t_interval(float(np.log(value)), error / value, freedom, confidence)
    return float(np.exp(low)), float(np.exp(min(high, np.log(most))))


def effective_freedom(variances: np.ndarray, freedoms: np.ndarray) -> float:
    """Degrees of freedom of a sum of independent estimated variances (Welch 1947, Satterthwaite 1946)."""
    return float(variances.sum() ** 2 / np.sum(variances**2 / freedoms))


def delong_components(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the share of negatives below it, for each negative the share of positives above it.

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, by midranks (Sun and Xu, IEEE Signal Process. Lett. 2014). The
    mean of either is the AUC.

    Args:
        positive: ``[N]`` bool, P of them true.
        scores: ``[..., N]``.

    Returns:
        ``[..., P]`` and ``[..., N - P]``.
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=-1)

    def below(chosen: np.ndarray) -> np.ndarray:
        return (ranks[..., chosen] - rankdata(scores[..., chosen], axis=-1)) / np.sum(~chosen)

    return below(positive), 1 - below(~positive)


def delong_interval(positive: np.ndarray, score: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Interval of an AUC from its standard error by DeLong, on the logit scale; None where that error is 0.

    It is 0 at an AUC of 0 and 1, and where all scores are equal.

    Args:
        positive: ``[N]`` bool, 2 or more of each.
        score: ``[N]``, one row per subject.
    """
    components = delong_components(positive, score)
    variances = np.array([np.var(values, ddof=1) / len(values) for values in components])
    if not variances.any():
        return None
    freedom = effective_freedom(variances, np.array([len(values) - 1 for values in components]))
    return logit_interval(float(components[0].mean()), float(np.sqrt(variances.sum())), freedom, confidence)


def mean_error(values: np.ndarray, rows: Rows, case_control: bool) -> tuple[float, float]:
    """Standard error of the mean of ``values [N]``, and its degrees of freedom; subjects are independent, rows are not.

    The degrees of freedom are the fewer of two estimates of what the variance V rests on. As a sum over the classes:
    where most of it comes from five positive subjects, it is no better than five numbers allow. And by the fourth
    moments of the subjects, 2 V^2 / Var(V): a few large values among many small ones allow no more either.
    """
    share = np.bincount(rows.subject, values - values.mean()) / len(values)
    members = np.bincount(rows.stratum)
    if case_control:
        share -= (np.bincount(rows.stratum, share) / members)[rows.stratum]
    count = members if case_control else np.full(len(members), len(share))
    variances = np.bincount(rows.stratum, share**2) * count / np.maximum(count - 1, 1)
    if not variances.any():
        return 0.0, 1.0
    by_class = effective_freedom(variances, np.maximum(members - 1, 1))
    squares = (share / np.abs(share).max()) ** 2
    spread = np.sum(squares**2) - np.sum(squares) ** 2 / len(squares)
    by_moments = 2 * np.sum(squares) ** 2 / max(float(spread), 1e-12)
    return float(np.sqrt(variances.sum())), float(min(by_class, by_moments))


def effective_count(right: np.ndarray, rows: Rows, case_control: bool, confidence: float) -> float:
    """The number of independent rows whose share would be as uncertain as that of ``right [N]`` is.

    That is N where each subject has one row. Else the variance of the share between subjects says how many it is worth,
    less what the few subjects leave unknown of this variance (Korn and Graubard, Survey Methodology 1998); the number
    of subjects where all rows agree.
    """
    if rows.one_each:
        return float(len(right))
    share = float(right.mean())
    error, freedom = mean_error(right, rows, case_control)
    if error == 0:
        return float(len(rows.stratum))
    level = (1 + confidence) / 2
    count = share * (1 - share) / error**2 * float(ndtri(level) / stdtrit(freedom, level)) ** 2
    return float(np.clip(count, 1, len(right)))


def wilson(share: float | np.ndarray, n: int | np.ndarray, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson score interval (1927) of an observed share of n; floats or arrays."""
    z = ndtri((1 + confidence) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


def mean_of_shares(shares: np.ndarray, counts: np.ndarray, confidence: float) -> tuple[float, float]:
    """Interval of the mean of independent shares ``[K]`` of ``counts [K]``, from the Wilson interval of each.

    The distances from each share to its ends are recovered and added in squares (Zou and Donner, Stat. Med. 2008).
    """
    lows, highs = wilson(shares, counts, confidence)
    value, k = float(shares.mean()), len(shares)
    low = value - np.sqrt(np.sum((shares - lows) ** 2)) / k
    high = value + np.sqrt(np.sum((highs - shares) ** 2)) / k
    return max(0.0, float(low)), min(1.0, float(high))


def newcombe(auc: float, positives: int, negatives: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC that stays honest at 0 and 1 (Newcombe, Stat. Med. 2006, part 2, method 5)."""
    from scipy.optimize import brentq

    z = ndtri((1 + confidence) / 2)
    extra = (positives + negatives) / 2 - 1

    def low(value: float) -> float:
        def gap(a: float) -> float:
            variance = a * (1 - a) * (1 + extra * ((1 - a) / (2 - a) + a / (1 + a))) / (positives * negatives)
            return value - a - z * np.sqrt(variance)

        return float(brentq(gap, 0.0, value - 1e-9)) if value > 1e-6 else 0.0

    return low(auc), 1 - low(1 - auc)


def corrected_error(values: np.ndarray, folds: int) -> float:
    """Standard error of the mean of ``values [J]``, one per test fold of cross-validations with ``folds`` folds.

    The folds share most of their training cases, so the variance s^2 / J of independent values is too small; the square
    of this is s^2 (1 / J + 1 / (folds - 1)), the second term being test over training cases (Nadeau and Bengio, Machine
    Learning 2003; Bouckaert and Frank, PAKDD 2004).
    """
    return float(np.std(values, ddof=1) * np.sqrt(1 / len(values) + 1 / (folds - 1)))
