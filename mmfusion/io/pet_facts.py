"""What can be of a PET scan: bounds and contradictions of weight, dose, radionuclide and times.

One set of rules for all who say such things: the tags of DICOM, a PET-BIDS sidecar, the columns of a manifest. Each
function raises ``ValueError`` with what was found and what to do; who reads adds the name of the scan.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WEIGHTS_KG = (0.3, 500.0)  # from a preterm baby to more than a scanner carries
_DOSES_MBQ = (1.0, 10_000.0)
_HEIGHTS_CM = (30.0, 250.0)  # a height in meters or millimeters lies outside
KG_PER_UNIT = {"kg": 1.0, "g": 1e-3, "lb": 0.45359237}
"""Units that a header may have the body weight in, against DICOM."""

DECAY_CORRECTIONS = ("START", "ADMIN", "NONE")
"""DICOM's words for the time that values are decay corrected to: of the series, of the injection, of no other."""

HALF_LIVES_S = {
    "C11": 1221.84, "N13": 597.9, "O15": 122.24, "F18": 6586.2, "Cu64": 45723.6, "Ga68": 4062.6, "Br76": 58320.0,
    "Rb82": 75.45, "Y86": 53064.0, "Zr89": 282276.0, "Y90": 230580.0, "I124": 360806.4,
}  # fmt: skip
"""Half-lives of PET radionuclides, s, as in NuDat 3 (National Nuclear Data Center, Brookhaven)."""
_NO_POSITRONS = (
    "P32", "Cr51", "Co57", "Ga67", "Cu67", "Se75", "Kr81m", "Sr89", "Tc99m", "In111", "In113m", "I123", "I125", "I131",
    "Xe127", "Xe133", "Sm153", "Ho166", "Lu177", "Re186", "Re188", "Tl201", "Pb203", "Ra223",
)  # fmt: skip
_WORDS = {
    "C": "carbon", "N": "nitrogen", "O": "oxygen", "F": "fluorine|fluor", "Cu": "copper", "Ga": "gallium",
    "Br": "bromine", "Rb": "rubidium", "Y": "yttrium", "Zr": "zirconium", "I": "iodine", "P": "phosphorus",
    "Cr": "chromium", "Co": "cobalt", "Se": "selenium", "Kr": "krypton", "Sr": "strontium", "Tc": "technetium",
    "In": "indium", "Xe": "xenon", "Sm": "samarium", "Ho": "holmium", "Lu": "lutetium", "Re": "rhenium",
    "Tl": "thallium", "Pb": "lead", "Ra": "radium",
}  # fmt: skip
_CODES = {
    "C-105A1": "C11", "40565003": "C11", "C-107A1": "N13", "21576001": "N13", "C-B1038": "O15", "129504001": "O15",
    "C-111A1": "F18", "77004003": "F18", "C-127A2": "Cu64", "3932008": "Cu64", "C-131A3": "Ga68", "35337001": "Ga68",
    "C-113A2": "Br76", "79523006": "Br76", "C-159A2": "Rb82", "79197006": "Rb82", "C-162A3": "Y86", "10738001": "Y86",
    "C-168A4": "Zr89", "63360001": "Zr89", "C-162A7": "Y90", "14691008": "Y90", "C-114A5": "I124", "40937006": "I124",
    "C-163A8": "Tc99m", "72454006": "Tc99m", "C-145A4": "In111", "56609000": "In111", "C-114A4": "I123",
    "21572004": "I123", "C-114B1": "I131", "1368003": "I131", "C-101ED": "Lu177", "447553000": "Lu177",
    "C-131A2": "Ga67", "2008008": "Ga67", "C-138A9": "Tl201", "60057003": "Tl201",
}  # fmt: skip  # of DICOM's CID 18 and 4020, in SNOMED-RT (also as SNM3, 99SDM) and SNOMED CT; others by their meaning
_HALF_LIFE_TOLERANCE = 0.02  # tables of half-lives differ by up to 1.3 % (Rb82)

MAX_HALF_LIVES = 10.0
"""An injection that lies longer before the scan is a mistake in a date or time."""
USUAL_HALF_LIVES, _USUAL_S = 6.0, 3 * 3600.0  # an uptake above both leaves nothing to image; Cu64 is, up to 3 days
BEFORE_INJECTION_S = 300.0
"""A dynamic scan may begin so long before the injection, s."""


def check_weight(weight_kg: float) -> None:
    """Refuse a body weight that no patient has."""
    low, high = _WEIGHTS_KG
    if low <= weight_kg <= high:
        return
    hint = "If it is in grams, use --weight-unit g, or give" if low <= weight_kg / 1000 <= high else "Give"
    raise ValueError(f"a body weight of {weight_kg:g} kg cannot be. {hint} weight_kg in the manifest")


def check_height(height_cm: float) -> None:
    """Refuse a height that no patient has."""
    if not _HEIGHTS_CM[0] <= height_cm <= _HEIGHTS_CM[1]:
        raise ValueError(f"a height of {height_cm:g} cm cannot be (DICOM has meters); give height_cm in the manifest")


def check_dose(dose_mbq: float, name: str) -> None:
    """Refuse an injected activity that no patient gets; ``name`` is the tag, field or column that says it."""
    low, high = _DOSES_MBQ
    if not low <= dose_mbq <= high:
        raise ValueError(
            f"{name} is {dose_mbq:g} MBq; {low:g} to {high:g} MBq is expected. Correct it or its unit, or "
            "give dose_mbq in the manifest"
        )


@lru_cache(maxsize=64)
def nuclide_of(*texts: str) -> str:
    """The radionuclide, as ``F18``, by the first text that names one, in whatever writing; empty if none does.

    Codes of DICOM count, names (``^18^Fluorine``, ``F-18``, ``[18F]FDG``), and plain FDG as that of fluorine. A text
    that names several says nothing.
    """
    for text in texts:
        rules = _rules()
        candidates = {name for name, rule in rules.items() if rule.search(text)}
        if text in _CODES:
            candidates = {_CODES[text]}
        if not candidates:  # alone, in whatever capitals
            candidates = {
                name for name, rule in rules.items() if re.fullmatch(rule.pattern, text.strip(), re.IGNORECASE)
            }
        if not candidates and re.search(r"\bFDG\b|fluorodeoxyglucose", text, re.IGNORECASE):
            candidates = {"F18"}
        if len(candidates) == 1:
            return candidates.pop()
    return ""


@lru_cache(maxsize=1)
def _rules() -> dict[str, re.Pattern[str]]:
    """What finds each known radionuclide in a text: mass number and element, in either order."""
    between, rules = r"[\s^\[\]_-]*", {}
    for name in (*HALF_LIVES_S, *_NO_POSITRONS):
        symbol = re.sub(r"\d.*", "", name)
        mass = name.removeprefix(symbol).replace("m", "[mM]")
        element = rf"(?:{symbol}|{symbol.upper()}|(?i:{_WORDS[symbol]}))"
        rules[name] = re.compile(
            rf"(?<!\d){mass}{between}{element}(?![a-z])|(?<![A-Za-z]){element}{between}{mass}(?![\dm])"
        )
    return rules


def refuse_without_positrons(nuclide: str) -> None:
    """Refuse what is called PET of a radionuclide (:func:`nuclide_of`) that PET cannot see."""
    if nuclide in _NO_POSITRONS:
        raise ValueError(
            f"the radionuclide is {nuclide}, which emits no positrons, so this is no PET. Correct it, or take the "
            "values as they are with --suv none"
        )


def consistent_half_life(nuclide: str, written_s: float | None, name: str) -> float | None:
    """The half-life, s, from the radionuclide's name and what is written of it; None if neither is known.

    Args:
        nuclide: as of :func:`nuclide_of`.
        written_s: the half-life of a header.
        name: the tag or field that has it.
    """
    known, written = HALF_LIVES_S.get(nuclide), written_s if written_s and written_s > 0 else None
    if known and written and abs(written / known - 1) > _HALF_LIFE_TOLERANCE:
        raise ValueError(
            f"{name} {written:g} s is not that of the radionuclide {nuclide} ({known:g} s). Correct it, or give "
            "half_life_s in the manifest"
        )
    return written or known


def is_usual_uptake(elapsed_s: float, half_life_s: float) -> bool:
    """Whether a scan may begin so long after the injection (:data:`BEFORE_INJECTION_S` before it, if it is dynamic).

    Above :data:`MAX_HALF_LIVES` it may not, however short that is: the half-life may be in minutes.
    """
    latest_s = max(USUAL_HALF_LIVES * half_life_s, min(_USUAL_S, MAX_HALF_LIVES * half_life_s))
    return -BEFORE_INJECTION_S <= elapsed_s <= latest_s


def describe_uptake(elapsed_s: float, half_life_s: float) -> str:
    """``the injection lies 6.5 h after the scan``, or how long before it."""
    if elapsed_s < 0:
        return f"the injection lies {-elapsed_s / 3600:.1f} h after the scan"
    return (
        f"the injection lies {elapsed_s / 3600:.1f} h before the scan, {elapsed_s / half_life_s:.1f} half-lives of "
        f"the tracer ({half_life_s:.5g} s)"
    )
