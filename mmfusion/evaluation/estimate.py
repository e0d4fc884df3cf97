"""A number with its interval, and the resampling of subjects that the intervals come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from mmfusion.errors import EvaluationError

CHUNK = 4_000_000  # weights held at a time, about 32 MB


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence interval, and where both come from.

    Attributes:
        value: the number; None where it cannot be computed.
        low, high: ends of the confidence interval; None where there is none.
        n: the cases that the value is computed from (sensitivity: the positive ones).
        method: how the interval was made; empty without one.
        reason: why value or interval is None, or a caution; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rows:
    """Checked input: ``label [N]``, ``probability [N, K]``, ``subject [N]`` (0..S-1), ``stratum [S]``."""

    label: np.ndarray
    probability: np.ndarray
    subject: np.ndarray
    stratum: np.ndarray

    @property
    def classes(self) -> int:
        return self.probability.shape[1]

    @property
    def absent(self) -> list[int]:
        """The classes that no row has."""
        return [k for k in range(self.classes) if not np.any(self.label == k)]

    def subjects_of(self, k: int) -> int:
        """How many subjects have a row of class k."""
        return np.unique(self.subject[self.label == k]).size

    @property
    def too_few(self) -> str:
        """Why no interval can be given; empty if one can."""
        counts = {k: self.subjects_of(k) for k in range(self.classes) if k not in self.absent}
        few = [f"{count} of class {k}" for k, count in counts.items() if count < 2]
        return f"an interval needs 2 subjects of each class, found {', '.join(few)}" if few else ""


def check_rows(label: np.ndarray, probability: np.ndarray, groups: np.ndarray | None = None) -> Rows:
    """Rows to evaluate, checked.

    Args:
        label: ``[N]`` class indices.
        probability: ``[N, K]``, or ``[N]`` the probability of class 1 of two.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.

    Raises:
        EvaluationError: no rows, lengths that differ, values that are no probabilities or no class indices.
    """
    label, probability = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if probability.ndim == 1:
        probability = np.stack([1 - probability, probability], axis=1)
    n = len(label)
    if n == 0:
        raise EvaluationError("there are no rows to evaluate; is this part of the split empty?")
    groups = np.arange(n) if groups is None else np.asarray(groups)
    if label.shape != (n,) or len(probability) != n or groups.shape != (n,):
        raise EvaluationError(
            f"labels, probabilities and subjects must have one entry a row, found shapes {label.shape}, "
            f"{probability.shape} and {groups.shape}"
        )
    if probability.ndim != 2 or probability.shape[1] < 2:
        raise EvaluationError(f"probabilities must be [N, K] with K >= 2, found shape {probability.shape}")
    bad = ~np.isfinite(probability).all(axis=1) | (probability < 0).any(axis=1)
    bad |= np.abs(probability.sum(axis=1) - 1) > 1e-3
    if bad.any():
        raise EvaluationError(
            f"{bad.sum()} of {n} rows are no probabilities (finite, >= 0, sum 1), the first is row "
            f"{int(np.argmax(bad))}: {np.round(probability[np.argmax(bad)], 4).tolist()}; pass logits through softmax"
        )
    classes = probability.shape[1]
    if not np.isin(label, np.arange(classes)).all():
        found = sorted(set(label.tolist()) - set(range(classes)))
        raise EvaluationError(f"labels must be class indices 0 to {classes - 1}, found {found}")
    label = label.astype(np.int64)
    names, subject = np.unique(groups, return_inverse=True)
    has = np.zeros((len(names), classes), dtype=bool)
    has[subject, label] = True
    stratum = np.unique(has, axis=0, return_inverse=True)[1].ravel()
    return Rows(label, probability, subject.ravel(), stratum)


def bootstrap_weights(rows: Rows, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, as chunks ``[r, N]`` that add up to ``resamples`` rows.

    Whole subjects are drawn with replacement, because the visits of one subject are not independent
    (cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 2007). They are drawn within strata of subjects that
    have the same classes, so that every resample has every class that the data have.
    """
    if resamples < 1:
        raise EvaluationError(f"resamples must be 1 or more, found {resamples}")
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // len(rows.label))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        counts = np.zeros((size, len(rows.stratum)))
        for stratum in np.unique(rows.stratum):
            members = np.flatnonzero(rows.stratum == stratum)
            share = np.full(len(members), 1 / len(members))
            counts[:, members] = generator.multinomial(len(members), share, size=size)
        yield counts[:, rows.subject]


def percentile(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of bootstrap draws ``[R]`` (Efron 1981)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson(share: float | np.ndarray, n: int | np.ndarray, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson score interval (1927) of an observed share of n; floats or arrays."""
    z = ndtri((1 + confidence) / 2)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


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
