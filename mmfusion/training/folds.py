"""Predictions for cases by models that were not trained on them, which stacking learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def out_of_fold(
    fit: Callable[[np.ndarray], Any],
    predict: Callable[[Any, np.ndarray], np.ndarray],
    subjects: Sequence[str],
    folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Predict each case with a model that saw no case of its subject (Wolpert, Neural Networks 1992).

    The subjects, not the cases, are dealt to the folds at random, so that a subject with several cases does not leak.

    Args:
        fit: from the row numbers of the cases to train on to a model.
        predict: from a model and the row numbers of ``n`` cases to an array ``[n, ...]``, as logits ``[n, M, K]``.
        subjects: ``[N]``, the subject of each case.
        folds: how many models are trained, each without its own share of the subjects.
        seed: of the deal.

    Returns:
        ``[N, ...]``, in the order of ``subjects``.

    Raises:
        CohortError: fewer than two folds, or more folds than subjects.
    """
    names, which = np.unique(np.asarray(subjects), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise CohortError(f"folds must be from 2 to the number of subjects ({len(names)}), found {folds}")
    fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)[which]
    parts = [np.flatnonzero(fold == number) for number in range(folds)]
    said = [np.asarray(predict(fit(np.flatnonzero(fold != number)), rows)) for number, rows in enumerate(parts)]
    return np.concatenate(said)[np.argsort(np.concatenate(parts))]
