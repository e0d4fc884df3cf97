"""The kinds of image that one MR series may hold: water and fat, magnitude and phase, diffusion and its maps."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mmfusion.errors import ReadError
from mmfusion.io.slices import frame_tag
from mmfusion.io.tags import listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

    from mmfusion.io.slices import Slice
    from mmfusion.io.zipped import DicomFile

_MAPS = {
    "t1map": "T1_MAP", "t2starmap": "T2_STAR_MAP T2STAR_MAP", "t2map": "T2_MAP", "r1map": "R1_MAP R1",
    "r2starmap": "R2_STAR_MAP R2STAR_MAP R2_STAR", "r2map": "R2_MAP R2", "pdmap": "PD_MAP", "b0map": "B0_MAP B0",
    "b1map": "B1_MAP B1", "fieldmap": "FIELD_MAP FIELDMAP",
}  # fmt: skip
_WORDS = {  # of what fits an image, the first counts: the water image of a Dixon series is a magnitude, too
    "adc": "ADC ADC_UNSPECIFIED ADC_MAP", "eadc": "EADC EXP_ADC EXPADC", "fa": "FA FA_MAP", **_MAPS,
    "fatfraction": "FF FAT_FRACTION FATFRACTION PDFF", "water": "W WATER WATER_ONLY", "fat": "F FAT FAT_ONLY",
    "inphase": "IP IN_PHASE INPHASE", "opposed": "OP OPP_PHASE OUT_PHASE OPPOSED_PHASE OUT_OF_PHASE OPPPHASE OUTPHASE",
    "velocity": "V VELOCITY VELOCITY_MAP", "phase": "P PHASE PHASE_MAP", "real": "R REAL", "imaginary": "I IMAGINARY",
    "dwi": "DIFFUSION TRACE TRACEW", "magnitude": "M MAGNITUDE",
}  # fmt: skip
_KINDS = {kind: frozenset(words.split()) for kind, words in _WORDS.items()}
_COMPLEX = ("magnitude", "phase", "real", "imaginary")
OTHER = "other"
IMAGE_KINDS = (*_KINDS, OTHER)
"""What an image of MR may be by its ImageType; ``other`` is what it says nothing of."""


def image_kind(path: DicomFile, header: Dataset, frame: int = 0) -> str:
    """What a plane shows by ImageType (0008,0008), else ComplexImageComponent (0008,9208): one of :data:`IMAGE_KINDS`.

    Of a multi-frame object its FrameType counts. Single letters mean something as third and fourth value only, and
    ``_FFE`` and the like behind one is the maker's name of the sequence. What is not MR is ``other``.

    Raises:
        ReadError: a value is damaged.
    """
    if header.get("Modality") != "MR":
        return OTHER
    about = "MRImageFrameTypeSequence"
    parts = listed(frame_tag(path, header, frame, about, "FrameType") or header.get("ImageType"))
    component = frame_tag(path, header, frame, about, "ComplexImageComponent") or header.get("ComplexImageComponent")
    words = [_word(part) for part in parts[2:]]
    said = {word for n, word in enumerate(words) if len(word) > 1 or n < 2}
    said |= {word[0] for word in words if word[1:2] == "_" and word[0] in "MPRI"}  # M_FFE, P_SE
    return next((kind for kind, names in _KINDS.items() if names & (said or {_word(component)})), OTHER)


def _word(value: object) -> str:
    return "_".join(str(value or "").upper().replace("*", " STAR ").replace("-", " ").replace("_", " ").split())


def kinds_of(path: DicomFile, header: Dataset) -> set[str]:
    """The kinds of image in one file."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or [None]
    return {image_kind(path, header, n) for n in range(len(frames))}


def in_order(kinds: Iterable[str]) -> tuple[str, ...]:
    """Each kind once, in the order of :data:`IMAGE_KINDS`."""
    present = set(kinds)
    return tuple(kind for kind in IMAGE_KINDS if kind in present)


def split_kind(name: str | None) -> tuple[str | None, str]:
    """What names a series, and the kind of image behind it: ``1.2.840:water``, ``water``; None or empty if absent."""
    before, _, kind = (name or "").rpartition(":")
    return (before or None, kind) if kind in IMAGE_KINDS else (name or None, "")


def of_one_kind(slices: list[Slice], wanted: str, source: object, notes: list[str]) -> list[Slice]:
    """The slices of the kind that is meant.

    Args:
        slices: of one series.
        wanted: one of :data:`IMAGE_KINDS`, or empty: all slices if none lies where another does; the magnitude,
            if nothing but parts of complex values lies beside it.
        source: what messages call the series.
        notes: takes that the magnitude was chosen.

    Raises:
        ReadError: there is no such kind; or there are several, and none was named.
    """
    places = {tuple(piece.position.round(1)) for piece in slices}
    if not wanted and len(places) == len(slices):
        return slices
    kinds = [image_kind(piece.path, piece.header, piece.frame) for piece in slices]
    present = in_order(kinds)
    if not wanted and len(present) == 1:
        return slices
    counts = ", ".join(f"{kind} ({Counter(kinds)[kind]} images)" for kind in present)
    if not wanted and "magnitude" in present and set(present) <= set(_COMPLEX):
        wanted = "magnitude"
        notes.append(f"the series holds {counts}: magnitude is used")
    if wanted not in present:
        problem = "several kinds of image" if not wanted else f"no image of kind {wanted}"
        raise ReadError(f"{source} holds {problem}: {counts}. Name one behind the path, as #{present[0]}, or by series")
    return [piece for piece, kind in zip(slices, kinds, strict=True) if kind == wanted]
