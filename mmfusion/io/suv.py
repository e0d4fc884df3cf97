"""Standardized uptake values (SUVbw, g/mL) from PET headers or from what the manifest says about the injection.

The decisions follow the vendor-neutral pseudo-code of QIBA (FDG-PET/CT SUV technical committee, "SUV vendor-neutral
pseudo-code, happy path" and "robust"), which IBSI refers to: SUVbw = activity concentration [Bq/mL] x body
weight [g] / injected activity [Bq], the latter decayed to the time that the image values refer to.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import UnitsError
from mmfusion.io.tags import listed, number, private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydicom import Dataset

PET_DETAILS = ("weight_kg", "dose_mbq", "injection_time", "acquisition_time", "half_life_s")
"""What a manifest may say about a PET scan; each overrides the DICOM tag of its meaning."""

F18_HALF_LIFE_S = 6586.2
_MAX_PLAUSIBLE_SUV = 1000.0
_MAX_HALF_LIVES = 10.0
_DAY_S = 86400.0
_TAG_NAMES = {
    "weight_kg": "PatientWeight (0010,1030)",
    "dose_mbq": "RadionuclideTotalDose (0018,1074)",
    "injection_time": "RadiopharmaceuticalStartTime (0018,1072)",
    "acquisition_time": "AcquisitionTime (0008,0032)",
    "half_life_s": "RadionuclideHalfLife (0018,1075)",
}


def suv_bw_factor(weight_kg: float, dose_mbq: float, half_life_s: float, elapsed_s: float) -> float:
    """SUVbw (g/mL) per Bq/mL.

    Args:
        weight_kg: body weight, kg.
        dose_mbq: injected activity at injection, MBq.
        half_life_s: of the radionuclide, s.
        elapsed_s: from injection to the time that the image values refer to, s.
    """
    return weight_kg * 1e3 / (dose_mbq * 1e6 * 2.0 ** (-elapsed_s / half_life_s))


def suv_factor(
    header: Dataset,
    *,
    first_acquisition: datetime | timedelta | None = None,
    pet: Mapping[str, Any] | None = None,
    source: object = "pet",
) -> float:
    """What turns the (rescaled) values of a DICOM PET slice into SUVbw, g/mL.

    Args:
        header: the tags of the slice.
        first_acquisition: earliest acquisition of the series; the slice's own if None. Values that were decay
            corrected to the START refer to the series time, or to this if the series time is later (then it is
            the time of a post-processing).
        pet: manifest columns (:data:`PET_DETAILS`) that override or fill in tags.
        source: what messages call the scan.

    Raises:
        UnitsError: a tag is missing or contradicts the others, or the image is not attenuation corrected.
    """
    units = str(header.get("Units") or "").upper()
    if units == "GML":
        suv_type = str(header.get("SUVType") or "BW").upper()
        if suv_type != "BW":
            raise UnitsError(
                f"{source}: values are SUV normalized by {suv_type}, not by body weight (BW); "
                "export the scan as BQML or SUVbw"
            )
        return 1.0
    to_bq = 1.0
    if units == "CNTS":
        philips_suv, philips_bq = (_philips_factor(header, element, source) for element in (0x00, 0x09))
        if philips_suv:
            return philips_suv
        if not philips_bq:
            raise UnitsError(
                f"{source}: SUV cannot be computed, values are counts (Units CNTS) and the DICOM lacks Philips' scale "
                "factors (7053,1000) and (7053,1009). Export it as BQML or SUVbw"
            )
        to_bq = philips_bq
    elif units != "BQML":
        found = f"Units (0054,1001) is {units}" if units else "DICOM lacks Units (0054,1001)"
        raise UnitsError(f"{source}: SUV cannot be computed, {found}; BQML, GML or CNTS is needed")
    try:
        return to_bq * _bq_factor(header, first_acquisition, dict(pet or {}), source)
    except ValueError as error:
        raise UnitsError(f"{source}: SUV cannot be computed, {error}") from None


def _philips_factor(header: Dataset, element: int, source: object) -> float:
    """A scale factor of Philips' private block; 0 if it is absent or, as Philips writes what it does not know, 0.

    Raises:
        UnitsError: it is something else than a positive number.
    """
    value = private(header, 0x7053, "Philips PET Private Group", element)
    factor = 0.0 if value in (None, "") else number(value)
    if factor is None or not 0 <= factor < float("inf"):
        raise UnitsError(
            f"{source}: SUV cannot be computed, Philips' scale factor (7053,10{element:02x}) is '{value}', not a "
            "positive number. Export it as BQML or SUVbw"
        )
    return factor


def _bq_factor(
    header: Dataset, first_acquisition: datetime | timedelta | None, pet: dict[str, Any], source: object
) -> float:
    corrected = {str(word).upper() for word in listed(header.get("CorrectedImage"))}
    decay = str(header.get("DecayCorrection") or "").upper()
    if "ATTN" not in corrected:
        raise UnitsError(
            f"{source}: SUV cannot be computed, CorrectedImage (0028,0051) lacks ATTN: the scan is not corrected for "
            "attenuation. Give the corrected reconstruction"
        )
    if decay not in ("START", "ADMIN", "NONE") or ("DECY" in corrected) != (decay != "NONE"):
        raise UnitsError(
            f"{source}: SUV cannot be computed, DecayCorrection (0054,1102) is '{decay}' and CorrectedImage "
            f"(0028,0051) {'has' if 'DECY' in corrected else 'lacks'} DECY; it cannot be known to which time the "
            "values refer. Export the scan again"
        )
    tracer = (header.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    dose_bq = number(tracer.get("RadionuclideTotalDose"))
    values = {
        "weight_kg": _given(pet, "weight_kg") or number(header.get("PatientWeight")),
        "dose_mbq": _given(pet, "dose_mbq") or (dose_bq and dose_bq / 1e6),
        "half_life_s": _given(pet, "half_life_s") or number(tracer.get("RadionuclideHalfLife")),
    }
    missing = [name for name, value in values.items() if not value or value <= 0]
    elapsed: float | None = 0.0
    if decay != "ADMIN":
        own = _acquired(header)
        scan = own if decay == "NONE" else _reference_time(header, first_acquisition or own)
        scan = parse_time(pet.get("acquisition_time")) or scan
        injections = [parse_time(pet.get("injection_time"))]
        if injections[0] is None:
            injections = [
                parse_time(tracer.get("RadiopharmaceuticalStartDateTime")),
                parse_time(tracer.get("RadiopharmaceuticalStartTime")),
            ]
        if scan is None:
            missing.append("acquisition_time")
        if not any(injections):
            missing.append("injection_time")
        if not missing and scan:
            elapsed = _elapsed_s(injections, scan, float(values["half_life_s"] or 0))
    if missing:
        raise UnitsError(
            f"{source}: SUV cannot be computed, DICOM lacks {', '.join(_TAG_NAMES[name] for name in missing)}. "
            f"Give {', '.join(missing)} in the manifest"
        )
    weight, dose, half_life = (float(value or 0) for value in values.values())
    if dose < 0.1:
        raise UnitsError(
            f"{source}: the injected dose is {dose * 1e6:g} Bq, which cannot be; (0018,1074) may be in MBq. "
            "Give dose_mbq in the manifest"
        )
    if elapsed is None:
        raise UnitsError(
            f"{source}: SUV cannot be computed, the injection lies more than {_MAX_HALF_LIVES:g} half-lives before the "
            "scan or after it. Give injection_time and acquisition_time in the manifest"
        )
    factor = suv_bw_factor(weight, dose, half_life, elapsed)
    if decay == "NONE":  # the measured mean over the frame, brought back to the frame's start
        decays = np.log(2) / half_life * (number(header.get("ActualFrameDuration")) or 0.0) / 1e3
        factor *= float(decays / -np.expm1(-decays)) if decays else 1.0
    return factor


def to_suv(array: np.ndarray, pet: Mapping[str, Any] | None, source: object, notes: list[str]) -> np.ndarray:
    """PET voxels of a file without tags (NIfTI, MHA, NRRD) as SUVbw, g/mL.

    Such files say nothing of units. Values up to 1000 are taken as SUVbw; larger ones cannot be and are taken as
    Bq/mL, which ``pet`` (:data:`PET_DETAILS`) turns into SUVbw. The half-life of fluorine-18 is the default.

    Raises:
        UnitsError: the values look like Bq/mL and ``pet`` does not say enough.
    """
    maximum = float(array.max()) if array.size else 0.0
    if not maximum > _MAX_PLAUSIBLE_SUV:
        return array
    try:
        factor, note = _table_factor(dict(pet or {}), maximum, source)
    except ValueError as error:
        raise UnitsError(f"pet file {source}: {error}") from None
    notes.append(note)
    return array * np.float32(factor)


def _table_factor(details: dict[str, Any], maximum: float, source: object) -> tuple[float, str]:
    """SUVbw per Bq/mL from manifest columns alone, and a sentence that says so."""
    missing = [name for name in ("weight_kg", "dose_mbq") if not _given(details, name)]
    injection, scan = parse_time(details.get("injection_time")), parse_time(details.get("acquisition_time"))
    missing += [name for name, value in (("injection_time", injection), ("acquisition_time", scan)) if value is None]
    if missing or scan is None:
        raise UnitsError(
            f"pet file {source}: maximum {maximum:,.0f} looks like Bq/mL, not SUV; convert it to SUVbw, or give "
            f"{', '.join(missing)} in the manifest"
        )
    half_life = _given(details, "half_life_s") or F18_HALF_LIFE_S
    elapsed = _elapsed_s([injection], scan, half_life)
    if elapsed is None:
        raise UnitsError(
            f"pet file {source}: injection_time lies more than {_MAX_HALF_LIVES:g} half-lives before acquisition_time "
            "or after it; correct them in the manifest"
        )
    factor = suv_bw_factor(float(details["weight_kg"]), float(details["dose_mbq"]), half_life, elapsed)
    assumed = "" if _given(details, "half_life_s") else " (fluorine-18)"
    return factor, f"Bq/mL to SUVbw by {factor:.4g} g/mL per Bq/mL, half-life {half_life:g} s{assumed}"


def _given(pet: Mapping[str, Any], name: str) -> float | None:
    """A positive number of the manifest; None if it is absent or empty.

    Raises:
        ValueError: it is there but not a positive number.
    """
    value = pet.get(name)
    if value is None or str(value).strip() == "":
        return None
    found = number(str(value).strip())
    if found is None or not 0 < found < float("inf"):
        raise ValueError(f"{name} must be a positive number, found '{value}'")
    return found


def _acquired(header: Dataset) -> datetime | timedelta | None:
    """When the slice was acquired."""
    return parse_time(header.get("AcquisitionDateTime")) or _joined(
        header.get("AcquisitionDate") or header.get("SeriesDate"), header.get("AcquisitionTime")
    )


def earliest_acquisition(headers: Iterable[Dataset]) -> datetime | timedelta | None:
    """When the first of a series' slices was acquired; None if no header says it."""
    try:
        times = [time for time in map(_acquired, headers) if time is not None]
    except ValueError:
        return None  # suv_factor names the broken tag, if it matters
    # with dates on some slices only, clock times cannot be compared with them
    dated = [time for time in times if isinstance(time, datetime)]
    return min(dated) if dated else min((time for time in times if isinstance(time, timedelta)), default=None)


def _reference_time(header: Dataset, acquired: datetime | timedelta | None) -> datetime | timedelta | None:
    """The time that START-corrected values refer to."""
    series = _joined(header.get("SeriesDate"), header.get("SeriesTime"))
    if isinstance(series, datetime) and isinstance(acquired, datetime):
        late = series > acquired
    else:
        late = series is not None and acquired is not None and _clock(series) > _clock(acquired)
    return parse_time(private(header, 0x0009, "GEMS_PETD_01", 0x0D)) or acquired if late or series is None else series


def _joined(day: Any, time: Any) -> datetime | timedelta | None:
    return parse_time(f"{day or ''}{' ' if day else ''}{time}") if time else None


_TIME = re.compile(r"(?:(\d{4})-?(\d\d)-?(\d\d)[ T]?)?(\d\d):?(\d\d)(?::?(\d\d)(\.\d+)?)?\s*(?:[+-]\d\d:?\d\d|Z)?")


def parse_time(value: Any) -> datetime | timedelta | None:
    """A clock time (as time since midnight) or a date with time, in DICOM's or ISO form; None if there is none.

    ``084500``, ``08:45``, ``08:45:00.5``, ``20240102084500``, ``2024-01-02T08:45:00``.

    Raises:
        ValueError: the text is something else.
    """
    text = str(value if value is not None else "").strip()
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a time; 08:45:00 or 2024-01-02T08:45:00 is expected")
    year, month, day, hour, minute, second, fraction = match.groups()
    clock = timedelta(hours=int(hour), minutes=int(minute), seconds=int(second or 0) + float(fraction or 0))
    if not year:
        return clock
    return datetime(int(year), int(month), int(day)) + clock


def _elapsed_s(
    injections: list[datetime | timedelta | None], scan: datetime | timedelta, half_life_s: float
) -> float | None:
    """Seconds from injection to scan by the first injection time that is plausible; None if none is.

    A clock time without a date means the last time before the scan that the clock showed it, so an injection
    before midnight is one of the day before. A full date that lies after the scan or long before it (dates moved by
    anonymization) is passed over.
    """
    for injection in injections:
        if injection is None:
            continue
        if isinstance(injection, datetime) and isinstance(scan, datetime):
            seconds = (scan - injection).total_seconds()
        else:
            seconds = (_clock(scan) - _clock(injection)).total_seconds() % _DAY_S
        if 0 <= seconds <= _MAX_HALF_LIVES * half_life_s:
            return seconds
    return None


def _clock(when: datetime | timedelta) -> timedelta:
    return when - datetime.combine(when.date(), datetime.min.time()) if isinstance(when, datetime) else when
