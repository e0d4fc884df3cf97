"""SUV of PET files without tags (NIfTI, MHA, NRRD), from what the manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import UnitsError
from mmfusion.io.pet_facts import check_dose
from mmfusion.io.suv import F18_HALF_LIFE_S, body_of, given, suv_per_bq
from mmfusion.io.times import elapsed_s, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_PLAUSIBLE_SUV = 1000.0


def to_suv(
    array: np.ndarray,
    suv: str,
    pet: Mapping[str, Any] | None,
    source: object,
    notes: list[str],
) -> np.ndarray:
    """PET voxels of a file without tags (NIfTI, MHA, NRRD) as SUV, g/mL (``bsa``: cm2/mL).

    Such files say nothing of units. Values up to 1000 are taken as SUVbw; larger ones cannot be and are taken as
    Bq/mL, which ``pet`` (:data:`mmfusion.io.PET_DETAILS`) turns into SUV. The half-life of fluorine-18 is the default.

    Raises:
        UnitsError: the values look like Bq/mL and ``pet`` does not say enough, or like SUVbw and another is wanted.
    """
    maximum = float(array.max()) if array.size else 0.0
    if not maximum > _MAX_PLAUSIBLE_SUV:
        if suv != "bw":
            raise UnitsError(
                f"pet file {source}: nothing says by what its SUV is normalized, so it is taken as SUVbw, but SUV{suv} "
                "is wanted. Say its Units in a sidecar (.json), or leave out --suv"
            )
        return array
    try:
        factor, note = _factor(dict(pet or {}), suv, maximum, source, [])
    except ValueError as error:
        raise UnitsError(f"pet file {source}: {error}") from None
    notes.append(note)
    return array * np.float32(factor)


def doubts_of(pet: Mapping[str, Any], suv: str) -> list[str]:
    """Doubts about PET columns of the manifest, beside a file without tags: only its voxels tell if it needs them."""
    doubts: list[str] = []
    if not all(pet.get(name) for name in ("weight_kg", "dose_mbq", "injection_time", "acquisition_time")):
        return []
    try:
        _factor(dict(pet), suv, 0.0, "", doubts)
    except UnitsError:
        return []
    except ValueError as error:
        doubts.append(f"columns of the manifest: {error}")
    return doubts


def _factor(pet: dict[str, Any], suv: str, maximum: float, source: object, doubts: list[str]) -> tuple[float, str]:
    """SUV per Bq/mL from manifest columns alone, and a sentence that says so."""
    body, dose = body_of(pet, {}, suv), given(pet, "dose_mbq")
    injection, scan = parse_time(pet.get("injection_time")), parse_time(pet.get("acquisition_time"))
    needed = body | {"dose_mbq": dose, "injection_time": injection, "acquisition_time": scan}
    missing = [name for name, value in needed.items() if value is None]
    if missing or scan is None or dose is None:
        raise UnitsError(
            f"pet file {source}: maximum {maximum:,.0f} looks like Bq/mL, not SUV; convert it to SUV{suv}, or give "
            f"{', '.join(missing)} in the manifest"
        )
    half_life = given(pet, "half_life_s") or F18_HALF_LIFE_S
    check_dose(dose, "dose_mbq")
    elapsed = elapsed_s([injection], scan, half_life, doubts)
    factor = suv_per_bq(body, suv, dose, half_life, elapsed)
    assumed = "" if given(pet, "half_life_s") else " (fluorine-18)"
    return factor, f"Bq/mL to SUV{suv} by {factor:.4g} per Bq/mL, half-life {half_life:g} s{assumed}"
