"""DICOM images that are no slices of gray values, and CT that is not in Hounsfield units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import ReadError, UnitsError
from mmfusion.io.header import kind_of
from mmfusion.io.slices import are_few
from mmfusion.io.tags import NUCLEAR, image_type, tomography

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

_NUCLEAR_KINDS = ("STATIC", "DYNAMIC", "WHOLE BODY", "GATED", "TOMO", "GATED TOMO", "RECON GATED TOMO")
_FRAMES = "PerFrameFunctionalGroupsSequence"
UNSPECIFIED = "US"  # what ITK writes, whatever the values are
_RESCALE_TYPES = ("HU", UNSPECIFIED, "HU_MOD", "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")  # DICOM PS3.3, C.11.1.1.2
_COLORS = ("PALETTE COLOR", "RGB", "ARGB", "HSV", "CMYK", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def why_no_volume(header: Dataset) -> str:
    """What an image is if its pixels are no slices of gray values; empty if they are."""
    kinds = image_type(header)
    if "MOSAIC" in kinds and _FRAMES not in header:
        return "a mosaic (all slices of a volume in one picture); convert it to NIfTI by dcm2niix"
    color = str(header.get("PhotometricInterpretation") or "MONOCHROME").upper()
    if not color.startswith("MONOCHROME"):
        kind = color if color in _COLORS else "of an unknown kind"
        return f"in colors ({kind}), not in gray values; export the images that it was made from"
    if header.get("SOPClassUID") == NUCLEAR and ("RECON TOMO" not in kinds or not tomography(header)):
        kind = next((kind for kind in _NUCLEAR_KINDS if kind in kinds), "unknown")
        return f"nuclear medicine of the kind {kind}, not RECON TOMO with a position; export the reconstructed slices"
    return ""


def without_pictures(
    files: list[tuple[DicomFile, Dataset]], inside: Sequence[DicomFile], source: object, notes: list[str]
) -> list[tuple[DicomFile, Dataset]]:
    """The files of a series without the few that are no slices of gray values, which ``notes`` takes.

    Args:
        files: of the series.
        inside: what lies there: files in order of name, or the members of a zip file.
        source: what messages call the series.
        notes: takes what was left out.

    Raises:
        ReadError: most of the files, or too many to be strays, are none.
    """
    reasons = {file: why_no_volume(header) for file, header in files}
    odd = [file for file, reason in reasons.items() if reason]
    if not odd:
        return files
    reason = reasons[odd[0]]
    if not are_few(len(odd), len(files)):
        which = "" if len(odd) == len(files) else f"{len(odd)} of {len(files)} files are no slices: the first "
        raise ReadError(f"{source}: {which or 'the series '}is {reason}")
    notes.append(f"{len(odd)} images left out ({named(odd, inside)}): the first is {reason.partition(';')[0]}")
    return [(file, header) for file, header in files if not reasons[file]]


def named(files: Iterable[DicomFile], inside: Sequence[DicomFile]) -> str:
    """Files by their number among those ``inside``, for names may be a patient's: ``number 3, 17 in order of name``."""
    which = set(files)
    order = "in order of name" if isinstance(inside[0], Path) else "in the zip file"
    return f"number {', '.join(str(n) for n, file in enumerate(inside, 1) if file in which)} {order}"


def rescale_type(header: Dataset) -> str:
    """What the values of a CT object are: ``HU``, also if it says nothing, or the first other RescaleType in it.

    Only words of the standard are told: the tag takes any text.
    """
    holders = [header]
    for group in ("SharedFunctionalGroupsSequence", _FRAMES) if _FRAMES in header else ():
        for item in header.get(group) or []:
            holders += item.get("PixelValueTransformationSequence") or []
    said = (holder.RescaleType for holder in holders if "RescaleType" in holder)
    words = (str(word or "HU").strip().upper() for word in said)
    word = next((word for word in words if word != "HU"), "HU")
    return word if word in _RESCALE_TYPES else "unknown"


def hounsfield(headers: Iterable[Dataset], modality: str, source: object) -> tuple[bool, list[str], list[str]]:
    """Whether CT is in Hounsfield units, and notes and doubts about it.

    Args:
        headers: of the objects of a series.
        modality: the study's word; if it says CT, the values must be Hounsfield units.
        source: what messages call the series.

    Raises:
        UnitsError: they are something else: an atomic number, a density, an iodine concentration.
    """
    words = sorted({rescale_type(header) for header in headers} - {"HU"})
    others = [word for word in words if word != UNSPECIFIED]
    if others and kind_of(modality) == "ct":
        raise UnitsError(
            f"{source}: values are not HU, RescaleType (0028,1054) is {others[0]}. Take the series in HU, or put the "
            "path in a column without the word ct, where it is read in its own units"
        )
    if others:
        return False, [f"values are not HU: RescaleType is {others[0]}; they stay as they are"], []
    unsure = "values may not be HU: RescaleType is US (unspecified), as some programs export CT. Look at air and water"
    return True, [], [unsure] if words else []
