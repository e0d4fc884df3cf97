"""What passed between the injection and the time that the values of a PET file refer to, by its sidecar."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mmfusion.io.pet_facts import DECAY_CORRECTIONS, describe_uptake, is_usual_uptake
from mmfusion.io.sidecar_fields import flag_of, number_of, numbers_of, per_frame, time_of, value_of
from mmfusion.io.suv import mean_decay
from mmfusion.io.times import clock, elapsed_s, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from mmfusion.io.header import Opened

_DECAY_TOLERANCE = 0.02  # so far may two times that say one thing differ, in what they make of the values


def reference_of(
    fields: Mapping[str, Any], opened: Opened, half_life: float | None, missing: list[str], pet: Mapping[str, Any]
) -> tuple[float | None, float]:
    """The time that the values refer to, s after TimeZero, and the s over which they are a mean that decayed."""
    starts, durations = (per_frame(fields, name, opened.frames) for name in ("FrameTimesStart", "FrameDuration"))
    corrected, decay = flag_of(fields, "ImageDecayCorrected"), _decay(fields)
    if decay and corrected is not None and corrected != (decay != "NONE"):
        raise ValueError(
            f"ImageDecayCorrected is {str(corrected).lower()}, but DecayCorrection is {decay}. Correct one"
        )
    if corrected is False or decay == "NONE":
        if not opened.choice.single:
            raise ValueError(
                "the frames are not decay corrected (ImageDecayCorrected is false), so their mean is no SUV. Choose "
                "one with --frame"
            )
        missing += [name for name, values in (("FrameTimesStart", starts), ("FrameDuration", durations)) if not values]
        n = opened.choice.indices[0]
        return (starts[n] if starts else None), (durations[n] if durations else 0.0)
    if parse_time(pet.get("acquisition_time")) is not None:
        return number_of(fields, "ImageDecayCorrectionTime"), 0.0
    if corrected is not True and not decay:
        missing.append("ImageDecayCorrected")
    first = (starts[0] if starts else None), (durations[0] if durations else None)
    reference = number_of(fields, "ImageDecayCorrectionTime")
    if decay == "ADMIN":
        injected = number_of(fields, "InjectionStart")
        if reference is None or injected is None or not half_life:
            return injected if reference is None else reference, 0.0
        if _differ(reference, injected, half_life):
            raise ValueError(
                f"ImageDecayCorrectionTime ({reference:g} s after TimeZero) contradicts DecayCorrection ADMIN, by "
                f"which values refer to the injection ({injected:g} s). Correct what is wrong, or give injection_time "
                "and acquisition_time in the manifest"
            )
        return reference, 0.0
    if decay == "START":
        reference = _start_s(fields, reference, first, half_life)
    if reference is None:
        missing.append("acquisition_time")
    return reference, 0.0


def _start_s(
    fields: Mapping[str, Any],
    reference: float | None,
    first: tuple[float | None, float | None],
    half_life: float | None,
) -> float | None:
    """What ``DecayCorrection: START`` refers to, s after TimeZero: the series, unless its time is that of a processing.

    Args:
        fields: of the sidecar.
        reference: its ImageDecayCorrectionTime.
        first: start, s after TimeZero, and duration of the first frame.
        half_life: s.

    Raises:
        ValueError: SeriesTime or DecayFactor say another time than ImageDecayCorrectionTime, or than each other.
    """
    acquired, series = _clock_s(fields, "AcquisitionTime"), _clock_s(fields, "SeriesTime")
    acquired = first[0] if acquired is None else acquired
    if series is not None and acquired is not None and series > acquired:
        series = None  # a later time is that of a processing
    said = series if series is not None else acquired
    name = "ImageDecayCorrectionTime"
    if reference is None:
        reference, name = said, "SeriesTime" if series is not None else "the start of the first frame"
    factor = (numbers_of(fields, "DecayFactor") or [0.0])[0]
    if reference is None or not half_life:
        return reference
    if acquired is not None and first[1] is not None and factor > 0:
        by_factor = acquired - half_life * math.log2(factor / mean_decay(first[1], half_life))
        if _differ(by_factor, reference, half_life):
            raise ValueError(
                f"{name} ({reference:g} s after TimeZero) contradicts DecayFactor, by which the values refer to "
                f"{by_factor:.0f} s. Correct TimeZero or what is wrong, or give acquisition_time in the manifest"
            )
    elif series is not None and _differ(series, reference, half_life):
        raise ValueError(
            f"{name} ({reference:g} s after TimeZero) contradicts SeriesTime, which DecayCorrection START refers to "
            f"({series:g} s). Correct what is wrong, or give acquisition_time in the manifest"
        )
    return reference


def _differ(a_s: float, b_s: float, half_life_s: float) -> bool:
    return abs(2 ** ((a_s - b_s) / half_life_s) - 1) > _DECAY_TOLERANCE


def _clock_s(fields: Mapping[str, Any], name: str) -> float | None:
    """A time of day in s after TimeZero, at most half a day before or after it; None if one of the two is absent."""
    zero, when = _zero(fields), time_of(fields, name)
    if zero is None or when is None:
        return None
    return ((clock(when) - clock(zero)).total_seconds() + 43200) % 86400 - 43200


def _zero(fields: Mapping[str, Any]) -> datetime | timedelta | None:
    """What the fields in seconds are relative to; without TimeZero, in DICOM's words, the first frame."""
    zero = time_of(fields, "TimeZero")
    return time_of(fields, "AcquisitionTime") if zero is None and _decay(fields) else zero


def _decay(fields: Mapping[str, Any]) -> str:
    """DICOM's word for what decay correction refers to; empty if the sidecar has none of them."""
    word = str(value_of(fields, "DecayCorrection") or "").upper()
    return word if word in DECAY_CORRECTIONS else ""


def elapsed_of(
    fields: Mapping[str, Any],
    reference_s: float | None,
    half_life_s: float | None,
    missing: list[str],
    pet: Mapping[str, Any],
    doubts: list[str],
) -> float | None:
    """Seconds from the injection to the time that the values refer to; times of the manifest override."""
    injected_s = number_of(fields, "InjectionStart")
    injection, scan = parse_time(pet.get("injection_time")), parse_time(pet.get("acquisition_time"))
    if _decay(fields) == "ADMIN" and scan is None and (injected_s is None or injected_s == reference_s):
        return 0.0
    if injection is None and injected_s is None:
        missing.append("injection_time")
    if injection is None and scan is None:
        if injected_s is None or reference_s is None or not half_life_s:
            return None
        if not is_usual_uptake(reference_s - injected_s, half_life_s):
            raise ValueError(
                f"SUV cannot be computed, {describe_uptake(reference_s - injected_s, half_life_s)}. Correct "
                "InjectionStart and the other times, or give injection_time and acquisition_time in the manifest"
            )
        return reference_s - injected_s
    zero = _zero(fields)
    if zero is None and (injection is None or scan is None):
        missing.append("TimeZero")
    if missing or half_life_s is None:
        return None
    if scan is None and zero is not None and reference_s is not None:
        scan = zero + timedelta(seconds=reference_s)
    if injection is None and zero is not None and injected_s is not None:
        injection = zero + timedelta(seconds=injected_s)
    return None if scan is None else elapsed_s([injection], scan, half_life_s, doubts)
