"""Probabilities that mean what they say: the threshold, the temperature, and the correction of the class prior."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from mmfusion.errors import EvaluationError
from mmfusion.evaluation.rows import check_rows

_PRIOR_DEVIATION = 0.5  # of the log of a temperature


def choose_threshold(label: np.ndarray, probability_positive: np.ndarray) -> float:
    """The threshold with the greatest sensitivity + specificity - 1 on these rows (Youden, Cancer 1950).

    A case is called positive at and above it. Choose it on validation rows, never on test, and on many: if the
    probabilities mean what they say, the prevalence has the greatest expected sum, and where fewer than a hundred rows
    choose otherwise it is mostly by chance. More rows can mend probabilities that are too low or too high.

    Candidates are the midpoints between neighboring distinct probabilities, so that no row lies on the threshold. Of
    several best ones the one nearest to 0.5 is taken, the lower of two equally near. Where no candidate is better than
    chance, the answer is 0.5.

    Args:
        label: ``[N]``, 0 or 1.
        probability_positive: ``[N]`` the probability of class 1.

    Raises:
        EvaluationError: no rows, or rows of one class only.
    """
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


def fit_temperature(label: np.ndarray, logits: np.ndarray, prior_shift: np.ndarray | None = None) -> float:
    """The T for which ``softmax(logits / T + prior_shift)`` fits the labels best; fit it on validation rows.

    One number for all classes, which leaves the order of the cases as it is (Guo et al., ICML 2017, "On calibration of
    modern neural networks"). Few rows hardly move it from 1, and many decide: it is the greatest posterior under a
    normal prior of log T with mean 0 and deviation 0.5. As in Platt's scaling (1999), the target of a row is
    (n + 1) / (n + K) for its class and 1 / (n + K) for each other one, n being the rows of its class: a few rows that
    happen to be separated do not make the model certain. Both are needed: in simulation the prior keeps T from its
    bounds, and the targets lower the log loss further, as too low a T costs more than too high a one.

    Args:
        label: ``[N]``, 0 to K - 1.
        logits: ``[N, K]``.
        prior_shift: ``[K]``, log of target prior over training prior, see :func:`prior_correction`; zeros if None.

    Returns:
        T from 0.05 to 20; above 1 where the logits are too sure.

    Raises:
        EvaluationError: no rows, a label that is no class index, or logits or shifts that are not finite.
    """
    logits, label = np.asarray(logits, dtype=np.float64), np.asarray(label)
    if logits.ndim != 2 or len(logits) == 0 or label.shape != logits.shape[:1]:
        raise EvaluationError(
            f"a temperature needs logits [N, K] and labels [N], found {logits.shape} and {label.shape}"
        )
    from scipy.optimize import minimize_scalar  # late: each process that prepares a case would wait for it

    classes = logits.shape[1]
    if not np.isfinite(logits).all():
        raise EvaluationError("the logits hold NaN or infinite values; no temperature fits them")
    if not np.isin(label, np.arange(classes)).all():
        raise EvaluationError(f"labels must be 0 to {classes - 1}, found {label.min()} to {label.max()}")
    label = label.astype(np.int64)
    shift = np.zeros(classes) if prior_shift is None else np.asarray(prior_shift, dtype=np.float64)
    if shift.shape != (classes,) or not np.isfinite(shift).all():
        raise EvaluationError(f"the prior shift must be finite for each of {classes} classes, found {shift.tolist()}")
    count = np.bincount(label, minlength=classes)[label][:, None]
    target = np.where(np.eye(classes, dtype=bool)[label], count + 1, 1) / (count + classes)

    def loss(log_temperature: float) -> float:
        likelihood = (target * log_softmax(logits / np.exp(log_temperature) + shift, axis=1)).sum()
        return log_temperature**2 / (2 * _PRIOR_DEVIATION**2) - float(likelihood)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))
