"""PET-BIDS sidecars: what the JSON file beside a PET file in NIfTI says of its units, the injection and the times.

Fields and their meaning are those of the Brain Imaging Data Structure for PET (Norgaard et al., "PET-BIDS, an extension
to the brain imaging data structure for positron emission tomography", Sci Data 9 (2022), and the specification): times
in seconds from ``TimeZero``, a time of day; ``ImageDecayCorrectionTime`` is the time that decay corrected values refer
to. Body weight, height and sex are no fields of it: ``PatientWeight`` (kg), ``PatientSize`` (m) and ``PatientSex`` are
DICOM's, as converters write them, and ``BodyWeight`` (kg) is understood too.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import UnitsError
from mmfusion.files import read_fields
from mmfusion.io.suv import body_of, given, mean_decay, suv_per_bq
from mmfusion.io.times import MAX_HALF_LIVES, elapsed_s, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmfusion.io.header import Opened

_BQ_PER_ML = {"bq/ml": 1.0, "bqml": 1.0, "bq/cc": 1.0, "bq/cm3": 1.0, "kbq/ml": 1e3, "kbq/cc": 1e3, "mbq/ml": 1e6}
_SUV_UNITS = {
    "suvbw": "bw",
    "suvlbm": "lbm",
    "suvbsa": "bsa",
    "suv": "",
    "suvg/ml": "",
    "g/ml": "",
    "gml": "",
}  # "": not said
_DOSES_MBQ = (0.1, 10_000.0)
_MBQ = {"bq": 1e-6, "kbq": 1e-3, "mbq": 1.0, "gbq": 1e3}
HALF_LIVES_S = {
    "C11": 1221.84, "N13": 597.9, "O15": 122.24, "F18": 6586.2, "Cu64": 45723.6, "Ga68": 4062.6, "Br76": 58320.0,
    "Rb82": 75.45, "Y86": 53064.0, "Zr89": 282276.0, "I124": 360806.4,
}  # fmt: skip
"""Half-lives of PET radionuclides, s, as in NuDat 3 (National Nuclear Data Center, Brookhaven)."""
_ELEMENTS = {
    "carbon": "C", "nitrogen": "N", "oxygen": "O", "fluorine": "F", "fluor": "F", "copper": "Cu", "gallium": "Ga",
    "bromine": "Br", "rubidium": "Rb", "yttrium": "Y", "zirconium": "Zr", "iodine": "I",
}  # fmt: skip
_FIELDS = {
    "weight_kg": "PatientWeight",
    "height_cm": "PatientSize",
    "sex": "PatientSex",
    "dose_mbq": "InjectedRadioactivity",
    "half_life_s": "TracerRadionuclide",
    "injection_time": "InjectionStart",
    "acquisition_time": "ImageDecayCorrectionTime",
}
_TOLERANCE = 0.01  # two fields that say one thing may differ by rounding


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of a NIfTI file is, if it has one: the same name with ``.json``."""
    return path.with_name(re.sub(r"(\.(nii|hdr|img))?(\.gz)?$", "", path.name, flags=re.IGNORECASE) + ".json")


def _inherited(source: Path) -> Path | None:
    """A JSON file of its BIDS tree that applies to a PET file beside its own sidecar, by the inheritance principle."""
    above = [source.absolute().parent, *source.absolute().parent.parents]
    roots = [n for n, folder in enumerate(above) if (folder / "dataset_description.json").is_file()]
    if not source.name.startswith("sub-") or not roots:
        return None
    own = sidecar_of(source).stem.split("_")
    for folder in above[: roots[0] + 1]:
        for path in sorted(folder.glob("*pet.json")):
            *entities, suffix = path.stem.split("_")
            if path.name != sidecar_of(source).name and suffix == own[-1] and set(entities) <= set(own):
                return path
    return None


def apply_sidecar(opened: Opened, frame: int | None, suv: str, pet: Mapping[str, Any] | None) -> None:
    """Let a PET file come in SUV by what its sidecar says, if it has one; the manifest overrides it.

    Args:
        opened: the file; its voxels will be multiplied when they are read.
        frame: the index of the frame that is used, None for the mean of all.
        suv: ``bw``, ``lbm`` or ``bsa``.
        pet: manifest columns (:data:`mmfusion.io.PET_DETAILS`).

    Raises:
        ReadError: the sidecar is damaged.
        UnitsError: a JSON further up in its BIDS tree applies, too; or the sidecar lacks something, contradicts
            itself, or says that the values are another SUV.
    """
    path = sidecar_of(opened.source)
    if inherited := _inherited(opened.source):
        raise UnitsError(
            f"{opened.source}: fields of its PET-BIDS sidecar may be inherited from {inherited}, which is not read. "
            f"Put all fields into {path}"
        )
    if not path.is_file():
        return
    fields = read_fields(path, "a PET-BIDS sidecar, or none,")
    try:
        factor, note = _factor(fields, opened.frames, frame, suv, dict(pet or {}))
    except ValueError as error:
        raise UnitsError(f"{path}: {error}") from None
    opened.notes.append(f"by its PET-BIDS sidecar: {note}")
    opened.has_units = True
    stored = opened.read

    def read() -> np.ndarray:
        with np.errstate(over="ignore"):  # what is infinite then is refused as such
            return stored() * np.float32(factor)

    opened.read = read


def _factor(
    fields: Mapping[str, Any], frames: int, frame: int | None, suv: str, pet: Mapping[str, Any]
) -> tuple[float, str]:
    """What the voxels are multiplied by, and a sentence that says so."""
    units = str(_value(fields, "Units") or "")
    word = _lower(re.sub(r"[\s_()]", "", units))
    if word in _SUV_UNITS:
        kind = _SUV_UNITS[word]
        if (kind or "bw") != suv:
            raise ValueError(
                f"Units is {units}" + ("" if kind else ", taken as SUVbw") + f", but SUV{suv} is wanted. "
                f"Use --suv {kind or 'bw'}, or give the file in Bq/mL"
            )
        return 1.0, f"Units is {units}" + ("" if kind else "; taken as SUVbw")
    if word not in _BQ_PER_ML:
        found = f"Units is {units}" if units else "it lacks Units"
        raise ValueError(f"{found}; Bq/mL, kBq/mL, SUVbw, SUVlbm or SUVbsa is expected")
    if str(_value(fields, "AttenuationCorrection") or "").lower().startswith("none"):
        raise ValueError("SUV cannot be computed, AttenuationCorrection is none. Give the corrected reconstruction")
    body = body_of(pet, _body(fields), suv)
    dose = given(pet, "dose_mbq") or _dose_mbq(fields)
    half_life = given(pet, "half_life_s") or _half_life_s(fields)
    missing = [name for name, value in {**body, "dose_mbq": dose, "half_life_s": half_life}.items() if not value]
    reference, duration = _reference_s(fields, frames, frame, missing, pet)
    elapsed = _elapsed_s(fields, reference, half_life, missing, pet)
    if missing or not dose or not half_life:
        lacking = ", ".join(_FIELDS.get(name, name) for name in missing)
        columns = ", ".join(name for name in missing if name in _FIELDS)
        remedy = f"Add it, or give {columns} in the manifest" if columns else "Add it"
        raise ValueError(f"SUV cannot be computed, it lacks {lacking}. {remedy}")
    if elapsed is None or abs(elapsed) > MAX_HALF_LIVES * half_life:
        raise ValueError(
            f"SUV cannot be computed, the injection lies more than {MAX_HALF_LIVES:g} half-lives from the time that "
            "the values refer to. Correct the times, or give injection_time and acquisition_time in the manifest"
        )
    factor = _BQ_PER_ML[word] * suv_per_bq(body, suv, dose, half_life, elapsed) * mean_decay(duration, half_life)
    return factor, f"{units} to SUV{suv} by {factor:.4g}"


def _reference_s(
    fields: Mapping[str, Any], frames: int, frame: int | None, missing: list[str], pet: Mapping[str, Any]
) -> tuple[float | None, float]:
    """The time that the values refer to, s after TimeZero, and the s over which they are a mean that decayed."""
    starts, durations = _per_frame(fields, "FrameTimesStart", frames), _per_frame(fields, "FrameDuration", frames)
    corrected = _value(fields, "ImageDecayCorrected")
    if corrected is False:
        if frames > 1 and frame is None:
            raise ValueError(
                "the frames are not decay corrected (ImageDecayCorrected is false), so their mean is no SUV. Choose "
                "one with --frame"
            )
        missing += [name for name, values in (("FrameTimesStart", starts), ("FrameDuration", durations)) if not values]
        n = frame or 0
        return (starts[n] if starts else None), (durations[n] if durations else 0.0)
    told = parse_time(pet.get("acquisition_time")) is not None
    if corrected is not True and not told:
        missing.append("ImageDecayCorrected")
    reference = _number(fields, "ImageDecayCorrectionTime")
    if reference is None and not told:
        missing.append("acquisition_time")
    return reference, 0.0


def _elapsed_s(
    fields: Mapping[str, Any],
    reference_s: float | None,
    half_life_s: float | None,
    missing: list[str],
    pet: Mapping[str, Any],
) -> float | None:
    """Seconds from the injection to the time that the values refer to; times of the manifest override."""
    injected_s = _number(fields, "InjectionStart")
    injection, scan = parse_time(pet.get("injection_time")), parse_time(pet.get("acquisition_time"))
    if injection is None and injected_s is None:
        missing.append("injection_time")
    if injection is None and scan is None:
        return None if injected_s is None or reference_s is None else reference_s - injected_s
    zero = parse_time(_value(fields, "TimeZero"))
    if zero is None and (injection is None or scan is None):
        missing.append("TimeZero")
    if missing or half_life_s is None:
        return None
    if scan is None and zero is not None and reference_s is not None:
        scan = zero + timedelta(seconds=reference_s)
    if injection is None and zero is not None and injected_s is not None:
        injection = zero + timedelta(seconds=injected_s)
    return None if scan is None else elapsed_s([injection], scan, half_life_s)


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    weights = [value for name in ("PatientWeight", "BodyWeight") if (value := _number(fields, name))]
    if len(weights) > 1 and abs(weights[0] / weights[1] - 1) > _TOLERANCE:
        raise ValueError("PatientWeight and BodyWeight contradict each other. Correct it, or give weight_kg")
    height_m = _number(fields, "PatientSize")
    return {
        "weight_kg": next(iter(weights), None),
        "height_cm": height_m and height_m * 100,
        "sex": _value(fields, "PatientSex"),
    }


def _dose_mbq(fields: Mapping[str, Any]) -> float | None:
    dose, units = _number(fields, "InjectedRadioactivity"), str(_value(fields, "InjectedRadioactivityUnits") or "")
    if dose is None:
        return None
    if _lower(units) not in _MBQ:
        found = f"is {units}" if units else "is missing"
        raise ValueError(f"InjectedRadioactivityUnits {found}; Bq, kBq, MBq or GBq is expected")
    dose_mbq = dose * _MBQ[_lower(units)]
    if not _DOSES_MBQ[0] <= dose_mbq <= _DOSES_MBQ[1]:
        raise ValueError(
            f"InjectedRadioactivity is {dose_mbq:g} MBq; {_DOSES_MBQ[0]:g} to {_DOSES_MBQ[1]:g} MBq is expected. "
            "Correct it or its units, or give dose_mbq in the manifest"
        )
    return dose_mbq


def _half_life_s(fields: Mapping[str, Any]) -> float | None:
    """By the radionuclide's name, in whatever order and writing, or as a converter has written it from DICOM."""
    text, written = str(_value(fields, "TracerRadionuclide") or ""), _number(fields, "RadionuclideHalfLife")
    letters, digits = re.sub(r"[^A-Za-z]", "", text).lower(), re.sub(r"\D", "", text)
    name = _ELEMENTS.get(letters, letters.capitalize()) + digits
    known = HALF_LIVES_S.get(name)
    if text and known is None and not written:
        raise ValueError(
            f"TracerRadionuclide is {text}; the half-life is known of {', '.join(HALF_LIVES_S)}. Give half_life_s in "
            "the manifest"
        )
    if known and written and abs(written / known - 1) > _TOLERANCE:
        raise ValueError(
            f"TracerRadionuclide is {text}, but RadionuclideHalfLife {written:g} s is not that of it ({known:g} s). "
            "Correct it, or give half_life_s in the manifest"
        )
    return written or known


def _per_frame(fields: Mapping[str, Any], name: str, frames: int) -> list[float]:
    """A number for each frame; empty if the field is absent."""
    value = _value(fields, name)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if len(values) != frames:
        raise ValueError(f"{name} has {len(values)} values, but the file has {frames} frames. Correct it")
    return [_finite(one, name) for one in values]


def _value(fields: Mapping[str, Any], name: str) -> Any:
    """A field; None if it is absent, null, empty or BIDS' ``n/a``."""
    value = fields.get(name)
    return None if value in ("", "n/a") else value


def _lower(units: str) -> str:
    """In small letters, but for milli, which would become mega."""
    return units if units.startswith("mB") else units.lower()


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = _value(fields, name)
    return None if value is None else _finite(value, name)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{name} is {value!r:.30}, not a number. Correct it")
    return float(value)
