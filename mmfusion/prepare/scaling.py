"""What makes the values of a scan comparable between patients, by its unit and the options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import OptionError
from mmfusion.volume import (
    PET_UNITS,
    SUV_MAX,
    Volume,
    clip_level,
    clip_suv,
    landmarks,
    normalize,
    normalize_mr,
    standardize,
)
from mmfusion.volume.standardize import PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SUV_MAX_BEFORE = 10.0  # the default of earlier versions, which stands in files of PET that is no SUV, too


def scaling(
    name: str, volume: Volume, options: Mapping[str, Any], body_of: Callable[[], np.ndarray]
) -> Callable[[Volume], np.ndarray]:
    """The map of this scan's values; statistics of MR, and of PET that is no SUV, come from the native scan, before any
    resampling.

    Args:
        name: the modality, whose standard scale is taken.
        volume: the native scan.
        options: ``ct_window``, ``suv_max``, ``pet_max``, ``mr_normalize``, ``mr_standard``.
        body_of: gives the foreground of the scan, if it is needed.

    Raises:
        VoxelError: the foreground of such a scan is empty or constant.
        OptionError: there is no standard scale for it.
    """
    if (level := clip_level(volume.units, options["suv_max"], options["pet_max"])) is not None:
        return lambda v: clip_suv(v.array, level)
    mr = (0.0, 1.0)
    if volume.units == "a.u.":
        body = body_of()
        if options["mr_normalize"] == "histogram":
            own, scale = landmarks(volume.array, body), _scale_of(options["mr_standard"], name)
            return lambda v: standardize(v.array, own, scale)
        mr = normalize_mr(volume.array, body, options["mr_normalize"])
    elif volume.units in PET_UNITS:
        mr = normalize_mr(volume.array, body_of(), "percentile")
    window = tuple(options["ct_window"])
    return lambda v: normalize(v, ct_window=window, mr_scaling=mr)


def is_suv(options: Mapping[str, Any]) -> bool:
    """Whether PET is read as SUV, rather than as it is stored or as a ratio to a reference region."""
    return options.get("suv") != "none" and options.get("suvr") is None


def check_pet(options: Mapping[str, Any], *, given: bool = False) -> None:
    """Refuse options of PET that do not go together.

    Args:
        options: of the group ``case``.
        given: they are what was given; else defaults are among them, and a ``suv_max`` that is the default, or was that
            of an earlier version, is none.

    Raises:
        OptionError: ``suv_max`` where PET is no SUV, ``pet_max`` where it is, or ``suvr`` beside a kind of SUV.
    """
    suv, own = options.get("suv") or "bw", not is_suv(options)
    if options.get("suvr") is not None and suv not in ("bw", "none"):
        raise OptionError(f"--suvr is a ratio of values, whatever their units; leave out --suv {suv}")
    if own and options.get("suv_max") not in ((None,) if given else (None, SUV_MAX, _SUV_MAX_BEFORE)):
        raise OptionError("--suv-max is for SUV; with --suv none or --suvr use --pet-max, in the units of the scans")
    if not own and options.get("pet_max") is not None:
        raise OptionError("--pet-max is for PET that is no SUV (--suv none, --suvr); use --suv-max")


def parse_standard(standard: str | None) -> dict[str, np.ndarray]:
    """The option ``mr_standard``: the scale of each modality; empty if there is none.

    Raises:
        OptionError: it is something else.
    """
    try:
        scales = {name: np.asarray(scale, float) for name, scale in json.loads(standard or "{}").items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        scales = {"": np.zeros(0)}
    for scale in scales.values():
        if scale.shape != (len(PERCENTILES),) or not np.isfinite(scale).all() or (np.diff(scale) < 0).any():
            raise OptionError(
                f"option mr_standard is JSON with {len(PERCENTILES)} rising numbers for each modality, as in the "
                "options.json of a cohort; found something else"
            )
    return scales


def _scale_of(standard: str | None, name: str) -> np.ndarray:
    scales = parse_standard(standard)
    if name not in scales:
        raise OptionError(
            f"mr_normalize is histogram, but there is no standard scale for {name}: mmfusion prepare fits it on the "
            "training subjects; for single cases give the mr_standard of a prepared cohort (in its options.json)"
        )
    return scales[name]
