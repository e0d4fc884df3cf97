"""Probabilities that mean what they say: the threshold, and the correction of the class prior."""

from __future__ import annotations

import numpy as np

from mmfusion.errors import EvaluationError, OptionError
from mmfusion.evaluation.estimate import check_rows
from mmfusion.options import unknown


def choose_threshold(label: np.ndarray, probability_positive: np.ndarray, rule: str = "youden") -> float:
    """The threshold at and above which a case is called positive; choose it on validation rows, never on test.

    ``youden`` maximizes sensitivity + specificity - 1 (Youden, Cancer 1950). Candidates are the midpoints between
    neighboring distinct probabilities, so that no row lies on the threshold. Of several best ones the one nearest
    to 0.5 is taken, the lower of two equally near. Where no candidate is better than chance, the answer is 0.5.

    Args:
        label: ``[N]``, 0 or 1.
        probability_positive: ``[N]`` the probability of class 1.

    Raises:
        EvaluationError: no rows, or rows of one class only.
        OptionError: an unknown rule.
    """
    if rule != "youden":
        raise OptionError(unknown("threshold rule", rule, ("youden",)))
    rows = check_rows(label, np.asarray(probability_positive).reshape(-1))
    if rows.absent:
        raise EvaluationError(
            f"a threshold needs both classes, found {len(rows.label)} rows, all of class {rows.label[0]}; "
            "use 0.5 or a larger validation part"
        )
    score, positive = rows.probability[:, 1], rows.label == 1
    values = np.unique(score)
    candidates = (values[1:] + values[:-1]) / 2
    called = score >= candidates[:, None]
    # whole numbers, so that ties are exact: J times positives times negatives
    found = (called & positive).sum(axis=1) * int((~positive).sum())
    gain = found - (called & ~positive).sum(axis=1) * int(positive.sum())
    if len(candidates) == 0 or gain.max() <= 0:
        return 0.5
    best = candidates[gain == gain.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def prior_correction(probability: np.ndarray, training_prior: np.ndarray, target_prior: np.ndarray) -> np.ndarray:
    """Probabilities as they would be had the classes been as frequent in training as they are in the target.

    ``p_target(k | x)`` is proportional to ``p(k | x) * target_prior[k] / training_prior[k]`` (Saerens, Latinne and
    Decaestecker, Neural Computation 2002). A class-weighted cross-entropy trains with the effective prior
    ``frequency[k] * weight[k]``, normalized; to undo the weights, pass that as ``training_prior`` and the plain
    frequencies as ``target_prior``. With weights that balance the classes, ``training_prior`` is uniform.

    Args:
        probability: ``[N, K]`` of the network.
        training_prior: ``[K]`` that the network has learned; scaled to sum 1.
        target_prior: ``[K]`` that the probabilities shall be for; scaled to sum 1.

    Returns:
        ``[N, K]``, rows sum to 1.

    Raises:
        EvaluationError: priors that are not positive, or whose length is not K.
    """
    probability = np.asarray(probability, dtype=np.float64)
    ratio = []
    for name, prior in (("training", training_prior), ("target", target_prior)):
        prior = np.asarray(prior, dtype=np.float64)
        if probability.ndim != 2 or prior.shape != probability.shape[1:]:
            raise EvaluationError(
                f"the {name} prior has shape {prior.shape}, the probabilities {probability.shape}; "
                "expected [K] and [N, K]"
            )
        if not (np.isfinite(prior).all() and (prior > 0).all()):
            raise EvaluationError(f"the {name} prior must be positive for each class, found {prior.tolist()}")
        ratio.append(prior / prior.sum())
    corrected = probability * (ratio[1] / ratio[0])
    return corrected / corrected.sum(axis=1, keepdims=True)
