"""Who is simulated: the generating model, what could at best be known from it, and the true poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm, qmc, rankdata

from mmfusion.cohort.simulate.anatomy import CENTER, MODALITIES, head
from mmfusion.cohort.simulate.covariates import label_evidence, label_shifts
from mmfusion.errors import OptionError
from mmfusion.volume import Transform

# Two severities, normal with variance 1 in both classes; the positive class has these means, the other 0.
SHIFT = np.array([1.268, 1.349])  # mr, pet
CORRELATION = -0.3  # within a class, so that each says what the other does not
_COVARIANCE = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])


@dataclass(frozen=True)
class SimulatedSubject:
    """All that is needed to simulate one subject again, voxel by voxel.

    Attributes:
        subject: identifier with leading zeros, as in ``SIM-0007``.
        label: 0 or 1.
        mr_severity: how strong the atrophy is, in standard deviations from the mean of the healthy.
        pet_severity: how strong the hypometabolism is, likewise.
        poses: for each modality the rigid transform from the head frame to that scanner's world (RAS, mm).
        deformation_seed: of the individual shape of the head.
        noise_seed: of everything else: noise, gain, dose, weight, times.
        missing: modalities that were not acquired; never all.
    """

    subject: str
    label: int
    mr_severity: float
    pet_severity: float
    poses: Mapping[str, Transform]
    deformation_seed: int
    noise_seed: int
    missing: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that were acquired, in the order ct, pet, mr (the first is the reference)."""
        return tuple(name for name in MODALITIES if name not in self.missing)

    @property
    def reference_pose(self) -> Transform:
        """The head frame to the world of the reference, the subject's first modality."""
        return self.poses[self.modalities[0]]


def draw_subjects(
    count: int, seed: int, *, prefix: str = "SIM", missing: float = 0.0, positive: float = 0.5
) -> list[SimulatedSubject]:
    """Draw subjects from the generating model, in random order of labels.

    The severities are quasi-random (a scrambled Halton sequence for each class), so that even a few hundred
    subjects lie close to the model: their AUC strays less from the ceilings than that of independent subjects.
    Subjects of one seed are the same in every run; use another seed and prefix for other subjects.

    Args:
        count: how many subjects.
        seed: of all random numbers.
        prefix: of the identifiers; ``SIM`` gives ``SIM-0001``, ``SIM-0002``, ...
        missing: probability that a modality was not acquired, for each on its own; every subject keeps one.
        positive: share of subjects with label 1.

    Raises:
        OptionError: a share outside 0..1 or fewer than one subject.
    """
    if count < 1 or not 0 <= positive <= 1 or not 0 <= missing <= 1:
        raise OptionError(
            f"simulation needs count >= 1 and shares from 0 to 1, found count {count}, "
            f"missing {missing:g}, positive {positive:g}"
        )
    rng = np.random.default_rng(seed)
    labels = np.zeros(count, int)
    labels[: round(count * positive)] = 1
    rng.shuffle(labels)
    severity, root = np.empty((count, 2)), np.linalg.cholesky(_COVARIANCE)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        if rows.size:
            uniform = qmc.Halton(2, rng=rng).random(rows.size)
            severity[rows] = ndtri(np.clip(uniform, 1e-4, 1 - 1e-4)) @ root.T + label * SHIFT
    return [
        SimulatedSubject(
            subject=f"{prefix}-{number + 1:04d}",
            label=int(labels[number]),
            mr_severity=float(severity[number, 0]),
            pet_severity=float(severity[number, 1]),
            poses={name: _pose(rng) for name in MODALITIES},
            deformation_seed=int(rng.integers(2**31)),
            noise_seed=int(rng.integers(2**31)),
            missing=_missing(rng, missing),
        )
        for number in range(count)
    ]


def _pose(rng: np.random.Generator) -> Transform:
    """Up to 10 degrees about any axis through the middle of the head and up to 15 mm in any direction."""
    axes = rng.standard_normal((2, 3))
    turn, shift = axes / np.linalg.norm(axes, axis=1, keepdims=True) * rng.uniform(0, (10, 15))[:, None]
    return Transform.rigid(tuple(turn), tuple(shift), CENTER)


def _missing(rng: np.random.Generator, share: float) -> tuple[str, ...]:
    lost, kept = rng.random(len(MODALITIES)) < share, rng.integers(len(MODALITIES))
    if lost.all():
        lost[kept] = False
    return tuple(name for name, gone in zip(MODALITIES, lost, strict=True) if gone)


def _evidence(has_mr: bool, has_pet: bool) -> np.ndarray:
    """``[2]`` weights of (mr, pet) severity in the log likelihood ratio that uses the given ones (LDA)."""
    use = np.flatnonzero([has_mr, has_pet])
    weights = np.zeros(2)
    weights[use] = np.linalg.solve(_COVARIANCE[np.ix_(use, use)], SHIFT[use])
    return weights


def ceilings(covariates: Sequence[str] = ()) -> dict[str, float]:
    """The best AUC that any classifier can reach: from ``ct``, ``pet``, ``mr`` alone and from ``all``.

    With ``covariates`` (names of :func:`draw_covariates`), from the scans and these: for ``ct``, which knows nothing,
    from the covariates alone. Scans and covariates are complete.

    With normal severities of equal covariance the best score is linear and its AUC is
    ``Phi(sqrt(shift' covariance^-1 shift / 2))`` (Su and Liu, JASA 1993): 0.5, 0.830, 0.815 and 0.941. CT shows
    healthy tissue only, in every subject, so it knows nothing about the label. Covariates are independent of the
    severities within a class, so that squared distances of the classes add up.

    Raises:
        OptionError: there is no such covariate.
    """
    known = sum(shift**2 for shift in label_shifts(covariates))
    use = {"ct": (False, False), "pet": (False, True), "mr": (True, False), "all": (True, True)}
    return {name: float(norm.cdf(np.sqrt((_evidence(*flags) @ SHIFT + known) / 2))) for name, flags in use.items()}


def observed_ceilings(subjects: Sequence[SimulatedSubject], covariates: Sequence[str] = ()) -> dict[str, float]:
    """The AUC of the best score (from the true severities) on these very subjects: ``ct``, ``pet``, ``mr``, ``all``.

    With ``covariates``, from the scans and these, as in :func:`ceilings`. A missing scan or value tells nothing about
    the label (log likelihood ratio 0), so ceilings fall where some are missing.

    Raises:
        OptionError: the subjects have one label only, or there is no such covariate.
    """
    labels = np.array([s.label for s in subjects])
    if len(np.unique(labels)) < 2:
        raise OptionError("an AUC needs subjects of both labels; draw more subjects or set positive nearer to 0.5")

    known = [label_evidence(subject, covariates) for subject in subjects]

    def auc(wanted: Sequence[str]) -> float:
        scores = []
        for s, evidence in zip(subjects, known, strict=True):
            weights = _evidence(*(name in wanted and name not in s.missing for name in ("mr", "pet")))
            # minus the value midway between the classes, so that 0 means "nothing known"
            scores.append(weights @ (np.array([s.mr_severity, s.pet_severity]) - SHIFT / 2) + evidence)
        positives = int(labels.sum())
        above = rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
        return float(above / (positives * (len(labels) - positives)))

    return {name: auc(MODALITIES if name == "all" else (name,)) for name in (*MODALITIES, "all")}


def true_fixed_to_moving(subject: SimulatedSubject, fixed: str, moving: str) -> Transform:
    """The rigid transform from the world of one scan to that of another, which a registration should find."""
    return subject.poses[fixed].inverse().compose(subject.poses[moving])


def brain_landmarks() -> np.ndarray:
    """``[N, 3]`` points spread evenly over the brain (every 20 mm), head frame, RAS mm."""
    model = head()
    lattice = np.stack(np.meshgrid(*[np.arange(-120.0, 121.0, 20.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    index = np.round(model.grid.to_index(lattice)).astype(int)
    lattice, index = (a[((index >= 0) & (index < model.grid.shape)).all(1)] for a in (lattice, index))
    brain = model.tissue["gm"] + model.tissue["wm"]
    return lattice[brain[tuple(index.T)] > 0.5]


def target_registration_error(subject: SimulatedSubject, fixed: str, moving: str, transform: Transform) -> float:
    """How far ``transform`` (fixed_to_moving) misplaces the brain: mean distance over the landmarks, mm."""
    points = brain_landmarks()
    placed, true = transform.apply(subject.poses[fixed].apply(points)), subject.poses[moving].apply(points)
    return float(np.linalg.norm(placed - true, axis=1).mean())


def to_plain(subject: SimulatedSubject) -> dict[str, Any]:
    """A subject as plain data for JSON; :func:`from_plain` reads it."""
    poses = {name: pose.matrix.tolist() for name, pose in subject.poses.items()}
    return {**vars(subject), "poses": poses, "missing": list(subject.missing)}


def from_plain(facts: Mapping[str, Any]) -> SimulatedSubject:
    """The subject that :func:`to_plain` wrote."""
    poses = {name: Transform(np.array(matrix)) for name, matrix in facts["poses"].items()}
    return SimulatedSubject(**{**facts, "poses": poses, "missing": tuple(facts["missing"])})
