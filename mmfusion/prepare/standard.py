"""The stage before preparing that histogram standardization needs: one scale a modality, from training cases alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ManifestError, OptionError
from mmfusion.prepare.case import load_case
from mmfusion.volume import correct_bias, foreground, landmarks, standard_scale
from mmfusion.volume.standardize import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmfusion.cohort import Case

LOADING = ("modalities", "suv", "suvr", "weight_unit", "frame", "assume_orientation", "nan", "bias_correction")
"""The options that decide the landmarks of a scan."""


def training_cases(cases: Sequence[Case]) -> list[Case]:
    """Those that the scale may be fitted on.

    Raises:
        ManifestError: none is marked, so that a fit would see test subjects.
    """
    found = [case for case in cases if case.split == "train"]
    if not found:
        raise ManifestError(
            "--mr-normalize histogram is fitted on training subjects only, and no row has 'train' in column split; "
            "fill it, or use percentile or zscore"
        )
    return found


def landmarks_of(case: Case, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """The landmarks of each MR scan of a case, by modality."""
    out = {}
    for name, volume in load_case(case, **options).items():
        if volume.units == "a.u.":
            volume = correct_bias(volume, foreground(volume)) if options["bias_correction"] else volume
            out[name] = landmarks(volume.array, foreground(volume)).tolist()
    return out


def are_landmarks(kept: Any) -> bool:
    """Whether that is what :func:`landmarks_of` gave, and not a file that somebody changed."""
    return isinstance(kept, dict) and all(
        isinstance(values, list)
        and len(values) == len(PERCENTILES)
        and all(isinstance(one, float) and math.isfinite(one) for one in values)
        for values in kept.values()
    )


def fit_standard(found: Iterable[Mapping[str, Sequence[float]]]) -> str:
    """The option ``mr_standard``: a scale for each modality, as JSON.

    Raises:
        OptionError: no training case has an MR that can be read.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for one in found:
        for name, values in one.items():
            by_name.setdefault(name, []).append(np.asarray(values))
    if not by_name:
        raise OptionError("--mr-normalize histogram: no training case has an MR that can be read; use percentile")
    scales = {name: standard_scale(values).round(9).tolist() for name, values in sorted(by_name.items())}
    return json.dumps(scales, sort_keys=True)
