"""Checked rows to evaluate, and the resampling of their subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmfusion.errors import EvaluationError

CHUNK = 4_000_000  # weights held at a time, about 32 MB


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
    def one_each(self) -> bool:
        """Whether each subject has one row."""
        return len(self.stratum) == len(self.label)

    @property
    def too_few(self) -> str:
        """Why subjects cannot be resampled for an interval; empty if they can."""
        counts = {k: self.subjects_of(k) for k in range(self.classes) if k not in self.absent}
        few = [f"{count} of class {k}" for k, count in counts.items() if count < 2]
        return f"an interval needs 2 subjects of each class, found {', '.join(few)}" if few else ""

    def part(self, mask: np.ndarray) -> Rows:
        """The rows where ``mask [N]`` is true."""
        return _rows(self.label[mask], self.probability[mask], self.subject[mask])


def check_rows(label: np.ndarray, probability: np.ndarray, groups: np.ndarray | None = None) -> Rows:
    """Rows to evaluate, checked.

    Args:
        label: ``[N]`` class indices.
        probability: ``[N, K]``, or ``[N]`` the probability of class 1 of two.
        groups: ``[N]`` subject identifiers; None: each row is a subject of its own.

    Raises:
        EvaluationError: no rows, lengths that differ, values that are no probabilities or no class indices, subjects
            that are missing or of several types.
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
            f"labels, probabilities and subjects must have one entry per row, found shapes {label.shape}, "
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
        others = sorted(set(label.tolist()) - set(range(classes)))
        raise EvaluationError(f"labels must be class indices 0 to {classes - 1}, found {others}")
    return _rows(label.astype(np.int64), probability, _check_names(groups, "subject"))


def check_folds(folds: np.ndarray, rows: Rows) -> np.ndarray:
    """``[N]`` the test fold of each row, as an array.

    Raises:
        EvaluationError: not one entry per row, or folds that are missing or of several types.
    """
    folds = np.asarray(folds)
    if folds.shape != rows.label.shape:
        raise EvaluationError(f"folds must have one entry per row, found {folds.shape} for {len(rows.label)} rows")
    return _check_names(folds, "fold")


def _check_names(names: np.ndarray, what: str) -> np.ndarray:
    """Subjects or folds ``[N]`` as they are, if they are all known and can be told apart: 1 is not "1"."""
    listed = names.tolist()
    if missing := [row for row, name in enumerate(listed) if name is None or name != name]:
        raise EvaluationError(f"{len(missing)} of {len(listed)} rows have no {what}, the first is row {missing[0]}")
    if len({isinstance(name, str) for name in listed}) > 1:
        raise EvaluationError(f"each row needs a {what} of one type, found text and numbers")
    return names


def _rows(label: np.ndarray, probability: np.ndarray, groups: np.ndarray) -> Rows:
    names, subject = np.unique(groups, return_inverse=True)
    has = np.zeros((len(names), probability.shape[1]), dtype=bool)
    has[subject, label] = True
    stratum = np.unique(has, axis=0, return_inverse=True)[1].ravel()
    return Rows(label, probability, subject.ravel(), stratum)


def bootstrap_weights(rows: Rows, resamples: int, seed: int, case_control: bool = False) -> Iterator[np.ndarray]:
    """How often each row is drawn, as chunks ``[r, N]`` that add up to ``resamples`` rows.

    Whole subjects are drawn with replacement, because the visits of one subject are not independent
    (cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 2007). They are drawn as a cohort was, without regard to
    their class, so that the number of subjects of a class varies as it would in another cohort; a draw that lacks a
    class is drawn again.

    Args:
        rows: to resample.
        resamples: R.
        seed: of the draws.
        case_control: subjects were chosen by their class, so they are drawn within strata of subjects that have the
            same classes, whose numbers are fixed.
    """
    if resamples < 1:
        raise EvaluationError(f"resamples must be 1 or more, found {resamples}")
    generator = np.random.default_rng(seed)
    subjects = len(rows.stratum)
    step = max(1, CHUNK // len(rows.label))
    strata = rows.stratum if case_control else np.zeros(subjects, dtype=np.int64)

    def draw(size: int) -> np.ndarray:
        counts = np.zeros((size, subjects), dtype=np.int64)
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            counts[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=size)
        return counts

    classes = np.eye(rows.classes)[rows.label][:, np.unique(rows.label)]
    for start in range(0, resamples, step):
        weights = draw(min(step, resamples - start))[:, rows.subject]
        while (lacking := (weights @ classes == 0).any(axis=1)).any():
            weights[lacking] = draw(int(lacking.sum()))[:, rows.subject]
        yield weights.astype(np.float64)
