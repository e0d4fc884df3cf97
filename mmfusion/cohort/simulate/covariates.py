"""What is known of a simulated subject beside its scans: covariates that carry a known part of the label, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import OptionError
from mmfusion.options import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.cohort.simulate.subjects import SimulatedSubject

COVARIATES = ("age", "sex", "memory_score", "noise", "site")

# Mean of the healthy and standard deviation in both classes: years, points of a T score, no unit.
_NORMAL = {"age": (70.0, 8.0), "memory_score": (50.0, 10.0), "noise": (10.0, 1.0)}
# What the positive class has more, in standard deviations: an AUC of 0.65 and of 0.70 (sqrt(2) times Phi^-1 of it).
_SHIFT = {"age": 0.545, "memory_score": -0.742}
_UNKNOWN = 0.05  # share of the values of each covariate but the site
_STREAM = 4  # of the subject's random numbers; 0 to 3 draw its scans and its studies


def draw_covariates(subject: SimulatedSubject) -> dict[str, str]:
    """The covariates of a subject, as text; empty where unknown (5 % of each, but not of the site).

    ``age`` (years) and ``memory_score`` (points) carry a part of the label, independent of the severities and of each
    other within a class; ``sex`` (F, M), ``site`` (A, B, C) and ``noise`` carry none. They follow from the subject and
    are drawn from random numbers of their own, so that its scans are the same with and without them.
    """
    rng = np.random.default_rng([subject.noise_seed, _STREAM])
    values = {
        name: f"{mean + deviation * (rng.standard_normal() + subject.label * _SHIFT.get(name, 0.0)):.2f}"
        for name, (mean, deviation) in _NORMAL.items()
    }
    values |= {"sex": "FM"[rng.integers(2)], "site": "ABC"[rng.integers(3)]}
    for name in COVARIATES:
        if name != "site" and rng.random() < _UNKNOWN:
            values[name] = ""
    return {name: values[name] for name in COVARIATES}


def label_evidence(subject: SimulatedSubject, covariates: Sequence[str]) -> float:
    """Log likelihood ratio of the label, positive to negative, from these covariates of a subject; 0: nothing known.

    Raises:
        OptionError: there is no such covariate.
    """
    values = draw_covariates(subject)
    evidence = 0.0
    for name, shift in zip(covariates, label_shifts(covariates), strict=True):
        if shift and values[name]:
            mean, deviation = _NORMAL[name]
            evidence += shift * ((float(values[name]) - mean) / deviation - shift / 2)
    return evidence


def label_shifts(covariates: Sequence[str]) -> list[float]:
    """How far the classes lie apart in each of these covariates, in standard deviations.

    Raises:
        OptionError: there is no such covariate.
    """
    for name in covariates:
        if name not in COVARIATES:
            raise OptionError(unknown("simulated covariate", name, COVARIATES))
    return [_SHIFT.get(name, 0.0) for name in covariates]
