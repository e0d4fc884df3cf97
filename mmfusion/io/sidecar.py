"""PET-BIDS sidecars: what the JSON file beside a PET file in NIfTI says of its units, the injection and the times.

Fields and their meaning are those of the Brain Imaging Data Structure for PET (Norgaard et al., "PET-BIDS, an extension
to the brain imaging data structure for positron emission tomography", Sci Data 9 (2022), and the specification): times
in seconds from ``TimeZero``, a time of day; ``ImageDecayCorrectionTime`` is the time that decay corrected values refer
to. Body weight, height and sex are no fields of it: ``PatientWeight`` (kg), ``PatientSize`` (m) and ``PatientSex`` are
DICOM's, as converters write them, and ``BodyWeight`` (kg) is understood too. So are the other fields of dcm2niix:
``RadionuclideTotalDose`` (Bq), ``RadionuclideHalfLife`` (s), ``DecayCorrection``, ``SeriesTime``, ``AcquisitionTime``
and ``DecayFactor``. Where two fields contradict each other, both are named.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError, UnitsError
from mmfusion.files import read_fields
from mmfusion.io.pet_facts import (
    HALF_LIVES_S,
    KG_PER_UNIT,
    check_dose,
    consistent_half_life,
    nuclide_of,
    refuse_without_positrons,
)
from mmfusion.io.sidecar_fields import number_of, numbers_of, value_of
from mmfusion.io.sidecar_times import elapsed_of, reference_of
from mmfusion.io.suv import body_of, given, mean_decay, suv_per_bq

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmfusion.io.frame_choice import FrameTimes
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
_MBQ = {"bq": 1e-6, "kbq": 1e-3, "mbq": 1.0, "gbq": 1e3}
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


def _above(source: Path, other: Path) -> str:
    """Where another file lies, without its path and name, which messages of preparing must not tell."""
    up = len(source.absolute().parts) - len(other.parts)
    return f"{up} folder{'s' * (up > 1)} above it" if up else "beside it"


def frame_times(path: Path) -> FrameTimes:
    """Start and duration of each frame of a NIfTI file, s, as far as its sidecar says them.

    What is damaged counts as absent: :func:`apply_sidecar` names it, where it matters.
    """
    try:
        fields = read_fields(sidecar_of(path), "a sidecar") if sidecar_of(path).is_file() else {}
        starts, durations = (numbers_of(fields, name) for name in ("FrameTimesStart", "FrameDuration"))
    except (ReadError, ValueError):
        return []
    if not starts or not durations:
        return [(None, one) for one in durations]
    return list(zip(starts, durations, strict=True)) if len(starts) == len(durations) else []


def apply_sidecar(opened: Opened, suv: str, weight_unit: str, pet: Mapping[str, Any] | None) -> None:
    """Let a PET file come in SUV by what its sidecar says, if it has one; the manifest overrides it.

    Args:
        opened: the file; its voxels will be multiplied when they are read.
        suv: ``bw``, ``lbm`` or ``bsa``; ``none`` only names the units.
        weight_unit: what PatientWeight is in: ``kg``, ``g`` or ``lb``.
        pet: manifest columns (:data:`mmfusion.io.PET_DETAILS`).

    Raises:
        ReadError: the sidecar is damaged.
        UnitsError: a JSON further up in its BIDS tree applies, too; or the sidecar lacks something, contradicts
            itself, says what cannot be (:mod:`mmfusion.io.pet_facts`), or that the values are another SUV.
    """
    path = sidecar_of(opened.source)
    if suv != "none" and (inherited := _inherited(opened.source)):
        raise UnitsError(
            f"{opened.source}: fields of its PET-BIDS sidecar may be inherited from another *pet.json, "
            f"{_above(opened.source, inherited)}, which is not read. Put all fields into {path}"
        )
    if not path.is_file():
        return
    fields = read_fields(path, "a PET-BIDS sidecar, or none,")
    try:
        if suv == "none":
            factor, note, opened.pet_units = _own_units(fields)
        else:
            factor, note = _factor(fields, opened, suv, weight_unit, dict(pet or {}))
            opened.pet_units = f"SUV{suv}"
    except ValueError as error:
        raise UnitsError(f"{path}: {error}") from None
    opened.notes.append(f"by its PET-BIDS sidecar: {note}")
    opened.has_units = True
    stored = opened.read

    def read() -> np.ndarray:
        with np.errstate(over="ignore"):  # what is infinite then is refused as such
            return stored() * np.float32(factor)

    opened.read = read


def _own_units(fields: Mapping[str, Any]) -> tuple[float, str, str]:
    """The factor for values that are not turned into SUV, a sentence that says so, and their units."""
    factor = _BQ_PER_ML.get(_word(value_of(fields, "Units")))
    if factor is None:
        return 1.0, "values as they are stored, not SUV", "stored"
    return factor, "values in Bq/mL, not SUV", "Bq/mL"


def _factor(
    fields: Mapping[str, Any], opened: Opened, suv: str, weight_unit: str, pet: Mapping[str, Any]
) -> tuple[float, str]:
    """What the voxels are multiplied by, and a sentence that says so."""
    units = str(value_of(fields, "Units") or "")
    word = _word(units)
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
        raise ValueError(
            f"{found}; Bq/mL, kBq/mL, SUVbw, SUVlbm or SUVbsa is expected. Correct it, or take the values as they are "
            "with --suv none"
        )
    if str(value_of(fields, "AttenuationCorrection") or "").lower().startswith("none"):
        raise ValueError("SUV cannot be computed, AttenuationCorrection is none. Give the corrected reconstruction")
    body = body_of(pet, _body(fields, weight_unit), suv)
    dose = given(pet, "dose_mbq") or _dose_mbq(fields)
    half_life = given(pet, "half_life_s") or _half_life_s(fields)
    missing = [name for name, value in {**body, "dose_mbq": dose, "half_life_s": half_life}.items() if not value]
    reference, duration = reference_of(fields, opened, half_life, missing, pet)
    elapsed = elapsed_of(fields, reference, half_life, missing, pet, opened.doubts)
    if missing or not dose or not half_life or elapsed is None:
        lacking = ", ".join(_FIELDS.get(name, name) for name in missing)
        columns = ", ".join(name for name in missing if name in _FIELDS)
        remedy = f"Add it, or give {columns} in the manifest" if columns else "Add it"
        raise ValueError(f"SUV cannot be computed, it lacks {lacking}. {remedy}")
    factor = _BQ_PER_ML[word] * suv_per_bq(body, suv, dose, half_life, elapsed) * mean_decay(duration, half_life)
    return factor, f"{units} to SUV{suv} by {factor:.4g}"


def _body(fields: Mapping[str, Any], weight_unit: str) -> dict[str, Any]:
    dicom, weight_kg = number_of(fields, "PatientWeight"), number_of(fields, "BodyWeight")
    if dicom:
        dicom *= KG_PER_UNIT[weight_unit]
        if weight_kg and abs(dicom / weight_kg - 1) > _TOLERANCE:
            raise ValueError("PatientWeight and BodyWeight contradict each other. Correct it, or give weight_kg")
    height_m = number_of(fields, "PatientSize")
    return {
        "weight_kg": dicom or weight_kg,
        "height_cm": height_m and height_m * 100,
        "sex": value_of(fields, "PatientSex"),
    }


def _dose_mbq(fields: Mapping[str, Any]) -> float | None:
    """The activity at the injection, by BIDS' field and unit or by DICOM's in Bq."""
    dose, units = number_of(fields, "InjectedRadioactivity"), str(value_of(fields, "InjectedRadioactivityUnits") or "")
    total_bq = number_of(fields, "RadionuclideTotalDose")
    if dose is None:
        if total_bq is not None:
            check_dose(total_bq / 1e6, "RadionuclideTotalDose")
        return total_bq and total_bq / 1e6
    if _lower(units) not in _MBQ:
        found = f"is {units}" if units else "is missing"
        raise ValueError(f"InjectedRadioactivityUnits {found}; Bq, kBq, MBq or GBq is expected")
    dose_mbq = dose * _MBQ[_lower(units)]
    check_dose(dose_mbq, "InjectedRadioactivity")
    if total_bq and abs(dose_mbq / (total_bq / 1e6) - 1) > _TOLERANCE:
        raise ValueError(
            "InjectedRadioactivity and RadionuclideTotalDose (Bq) contradict each other. Correct it, or give dose_mbq "
            "in the manifest"
        )
    return dose_mbq


def _half_life_s(fields: Mapping[str, Any]) -> float | None:
    """By the radionuclide's name, in whatever order and writing, or as a converter has written it from DICOM."""
    text, written = str(value_of(fields, "TracerRadionuclide") or ""), number_of(fields, "RadionuclideHalfLife")
    nuclide = nuclide_of(text, str(value_of(fields, "Radiopharmaceutical") or ""))
    if text and not nuclide and not written:
        raise ValueError(
            f"TracerRadionuclide is {text}; the half-life is known of {', '.join(HALF_LIVES_S)}. Give half_life_s in "
            "the manifest"
        )
    refuse_without_positrons(nuclide)
    return consistent_half_life(nuclide, written, "RadionuclideHalfLife")


def _word(units: Any) -> str:
    """Units of values in one spelling."""
    return _lower(re.sub(r"[\s_()]", "", str(units or "")))


def _lower(units: str) -> str:
    """In small letters, but for milli, which would become mega."""
    return units if units.startswith("mB") else units.lower()
