"""Standardized uptake values: activity concentration over injected activity, times the size of the body.

SUVbw = activity concentration [Bq/mL] x body weight [g] / injected activity [Bq], the latter decayed to the time that
the image values refer to; SUVlbm takes the lean body mass [g] for the weight, SUVbsa the body surface area [cm2].

Lean body mass: Janmahasatian et al., "Quantification of lean bodyweight", Clin Pharmacokinet 44 (2005), which the
QIBA profile for FDG-PET/CT and the EANM guideline for FDG tumor imaging (Boellaard et al. 2015) recommend. Body surface
area: Du Bois and Du Bois, "A formula to estimate the approximate surface area if height and weight be known", Arch
Intern Med 17 (1916).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmfusion.io.pet_facts import HALF_LIVES_S, check_height, check_weight
from mmfusion.io.tags import number

if TYPE_CHECKING:
    from collections.abc import Mapping

PET_DETAILS = ("weight_kg", "height_cm", "sex", "dose_mbq", "injection_time", "acquisition_time", "half_life_s")
"""What a manifest may say about a PET scan; each overrides the header's value of its meaning."""

F18_HALF_LIFE_S = HALF_LIVES_S["F18"]
_SIZED_BY = {"bw": ("weight_kg",), "lbm": ("weight_kg", "height_cm", "sex"), "bsa": ("weight_kg", "height_cm")}
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}


def lean_body_mass_kg(weight_kg: float, height_cm: float, sex: str) -> float:
    """Lean body mass of an adult, kg, by Janmahasatian et al. 2005; ``sex`` is ``M`` or ``F``."""
    index = weight_kg / (height_cm / 100) ** 2
    return 9270 * weight_kg / (6680 + 216 * index if sex == "M" else 8780 + 244 * index)


def body_surface_m2(weight_kg: float, height_cm: float) -> float:
    """Body surface area, m2, by Du Bois and Du Bois 1916."""
    return 0.007184 * weight_kg**0.425 * height_cm**0.725


def suv_per_bq(body: Mapping[str, Any], suv: str, dose_mbq: float, half_life_s: float, elapsed_s: float) -> float:
    """SUV per Bq/mL.

    Args:
        body: ``weight_kg`` and, as far as ``suv`` needs them, ``height_cm`` and ``sex`` (:func:`body_of`).
        suv: ``bw``, ``lbm`` (both g/mL) or ``bsa`` (cm2/mL).
        dose_mbq: injected activity at injection, MBq.
        half_life_s: of the radionuclide, s.
        elapsed_s: from injection to the time that the image values refer to, s.
    """
    if suv == "bw":
        size = body["weight_kg"] * 1e3
    elif suv == "lbm":
        size = lean_body_mass_kg(body["weight_kg"], body["height_cm"], body["sex"]) * 1e3
    else:
        size = body_surface_m2(body["weight_kg"], body["height_cm"]) * 1e4
    return float(size / (dose_mbq * 1e6 * 2.0 ** (-elapsed_s / half_life_s)))


def mean_decay(duration_s: float, half_life_s: float) -> float:
    """What brings the mean activity over a time that was not decay corrected back to its beginning."""
    decays = math.log(2) / half_life_s * duration_s
    return decays / -math.expm1(-decays) if decays else 1.0


def body_of(pet: Mapping[str, Any], header: Mapping[str, Any], suv: str) -> dict[str, Any]:
    """What ``suv`` needs to know of the body, by the manifest's names; None where it is unknown.

    Args:
        pet: manifest columns (:data:`PET_DETAILS`).
        header: the same from the header of the scan, for what the manifest does not say.
        suv: ``bw``, ``lbm`` or ``bsa``.

    Raises:
        ValueError: something is not what it can be.
    """
    found: dict[str, Any] = {}
    for name in _SIZED_BY[suv]:
        if name == "sex":
            found[name] = _sex(pet.get(name)) or _SEXES.get(str(header.get(name) or "").strip().lower())
        else:
            value = given(pet, name) or number(header.get(name))
            found[name] = value if value and value > 0 else None
    if found.get("weight_kg"):
        check_weight(found["weight_kg"])
    if found.get("height_cm"):
        check_height(found["height_cm"])
    return found


def _sex(value: Any) -> str | None:
    text = str(value if value is not None else "").strip().lower()
    if text and text not in _SEXES:
        raise ValueError(f"sex must be M or F, found '{value}'")
    return _SEXES.get(text)


def given(pet: Mapping[str, Any], name: str) -> float | None:
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
