"""What the headers of one DICOM series say, without its pixels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.io.dates import DATES, ScanDate, scan_date
from mmfusion.io.image_kinds import OTHER, in_order, kinds_of
from mmfusion.io.people import patient_of
from mmfusion.io.pictures import UNSPECIFIED, rescale_type, why_no_volume
from mmfusion.io.slices import frame_tag
from mmfusion.io.tags import (
    IDENTITY,
    NUCLEAR,
    corrections,
    image_type,
    is_image,
    is_localizer,
    listed,
    number,
    numbers,
    series_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

_Member = tuple[Path, "Dataset"]
SERIES_TAGS = (
    *IDENTITY, *DATES, "PatientID", "InstanceNumber", "ProtocolName", "SequenceName", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", "DetectorInformationSequence", "PhotometricInterpretation", "SamplesPerPixel",
    "RescaleType", "RescaleSlope", "RescaleIntercept", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence",
    "ComplexImageComponent", "CorrectedImage", "ContrastBolusAgent", "ContrastBolusAgentSequence", "ScanningSequence",
    "EchoPlanarPulseSequence",
)  # fmt: skip
"""The tags that :func:`describe` reads."""
_NO_AGENT = (
    r"\W*|(0|no|none|not|nil|nein|without|ohne|kein\w*|sans|unknown)\b.*|non|n/?a?|nati\w+"  # what fills the tag
)
_IMAGE_TYPE, _POSITION, _PER_FRAME = 0x00080008, 0x00200032, 0x52009230
_SAME = (0x00280010, 0x00280011, 0x00200037, 0x00280030)  # Rows, Columns, ImageOrientationPatient, PixelSpacing
_SCALE = (0x00281052, 0x00281053)  # RescaleIntercept, RescaleSlope


@dataclass(frozen=True)
class Series:
    """One DICOM series of one person: files that share its UID and that of its study, and the PatientID.

    Attributes:
        folder: the deepest folder that holds all its files.
        files: sorted paths, without copies.
        folders: in which these lie.
        patient_id: the study's identifier of the subject (0010,0020), in Unicode's form NFC.
        spellings: all that its files have as PatientID, sorted.
        study_date: ``yyyymmdd`` or empty; for ordering only.
        scanned: when it was made.
        series_uid: SeriesInstanceUID, or what :func:`mmfusion.io.tags.series_name` gives without one.
        modality: DICOM's word: ``CT``, ``PT``, ``MR``, ``RTSTRUCT``, ``SEG``, ...
        count: images (frames of a multi-frame object count).
        shape: ``(columns, rows, slices)`` of an image series, as stored.
        spacing: distances of pixels and slices in that order, mm; 0 where the header does not say.
        referenced_series: series UIDs that a mask (RTSTRUCT, SEG) was drawn on.
        is_image: slices or multi-frame volumes of anatomy.
        is_localizer: all its images are scout images.
        unusable: why its images are no volume of gray values in the units of their modality; empty if they are.
        copies: paths of files that are copies of others, not among ``files``.
        kinds: of image in an image series (:data:`mmfusion.io.image_kinds.IMAGE_KINDS`), in that order.
        frames: images of one kind at one position, at most.
        is_plain_stack: evidently one image in evenly spaced slices; if not, only :func:`read_series_header` knows.
        corrected: whether CorrectedImage (0028,0051) has ATTN; None if the header does not have it.
        contrast_agent: whether ContrastBolusAgent (0018,0010) names one.
        echo_planar: whether ScanningSequence (0018,0020) says so.
    """

    folder: Path
    files: tuple[Path, ...]
    folders: frozenset[Path]
    patient_id: str
    spellings: tuple[str, ...]
    study_uid: str
    study_date: str
    scanned: ScanDate
    series_uid: str
    series_number: int | None
    modality: str
    description: str
    protocol: str
    frame_of_reference: str
    image_type: tuple[str, ...]
    count: int
    shape: tuple[int, int, int] | None
    spacing: tuple[float, float, float] | None
    referenced_series: tuple[str, ...]
    is_image: bool
    is_localizer: bool
    unusable: str = ""
    copies: tuple[Path, ...] = ()
    kinds: tuple[str, ...] = ()
    frames: int = 1
    is_plain_stack: bool = False
    corrected: bool | None = None
    contrast_agent: bool = False
    echo_planar: bool = False


def describe(members: list[tuple[Path, Dataset]], copies: tuple[Path, ...] = ()) -> Series:
    """What the headers of a series, and of files that are copies of others, say."""
    folders = frozenset(path.parent for path, _ in members)
    people = dict.fromkeys(patient_of(header) for _, header in members)
    people.pop("", None)
    first = members[0][1]
    images = [(path, header) for path, header in members if is_image(header)]
    masks = [] if images else [header for _, header in members]
    count = sum(int(header.get("NumberOfFrames") or 1) for _, header in images) or len(members)
    is_uniform, kinds = _is_uniform(images), _kinds(images)  # by values that were not converted yet
    shape, spacing, repeats, is_even = _extent(images, count) if images else (None, None, 1, False)
    corrected = corrections(first)
    series_number = number(first.get("SeriesNumber"))
    return Series(
        folder=Path(os.path.commonpath(folders)),
        files=tuple(path for path, _ in members),
        folders=folders,
        patient_id=next(iter(people), ""),
        spellings=tuple(sorted(people)),
        study_uid=_text(first, "StudyInstanceUID"),
        study_date=_text(first, "StudyDate"),
        scanned=scan_date(first),
        series_uid=series_name(first),
        series_number=None if series_number is None else int(series_number),
        modality=_text(first, "Modality"),
        description=_text(first, "SeriesDescription"),
        protocol=_text(first, "ProtocolName") or _text(first, "SequenceName"),
        frame_of_reference=_text(first, "FrameOfReferenceUID") or _referenced_frame(first),
        image_type=tuple(str(part) for part in listed(first.get("ImageType"))),
        count=count,
        shape=shape,
        spacing=spacing,
        referenced_series=tuple(sorted({uid for header in masks for uid in referenced_series(header)})),
        is_image=bool(images),
        is_localizer=bool(images) and all(is_localizer(header) for _, header in images),
        unusable=_unusable([header for _, header in members]),
        copies=copies,
        kinds=kinds,
        frames=-(-repeats // max(len(kinds), 1)),
        is_plain_stack=is_even and is_uniform and spacing is not None and min(spacing) > 0,
        corrected="ATTN" in corrected if corrected else None,
        contrast_agent=_has_agent(first),
        echo_planar="EP" in listed(first.get("ScanningSequence")) or _text(first, "EchoPlanarPulseSequence") == "YES",
    )


def _unusable(headers: list[Dataset]) -> str:
    """Why no image of a series is a volume that its modality promises; empty if one is."""
    reason = ""
    for header in headers:
        reason = why_no_volume(header)
        if not reason and header.get("Modality") == "CT" and rescale_type(header) not in ("HU", UNSPECIFIED):
            reason = (
                f"not HU, but of RescaleType {rescale_type(header)}; a column without the word ct takes it as it is"
            )
        if not reason and header.get("SOPClassUID") == NUCLEAR and "TRANSMISSION" in image_type(header):
            reason = "an attenuation map"
        if not reason:
            break
    return reason


def _text(header: Dataset, tag: str) -> str:
    return str(header.get(tag) or "").strip()


def _has_agent(header: Dataset) -> bool:
    named = not re.fullmatch(_NO_AGENT, _text(header, "ContrastBolusAgent").lower())
    return named or bool(header.get("ContrastBolusAgentSequence"))


def _distinct(images: list[_Member], tag: int) -> list[_Member]:
    """One of the images for each value of a tag as it is written."""
    return list({str(_unconverted(one[1], tag)): one for one in images}.values())


def _kinds(images: list[_Member]) -> tuple[str, ...]:
    """The kinds of image in a series; each multi-frame object may hold several."""
    if not images or images[0][1].get("Modality") != "MR":
        return (OTHER,) if images else ()
    several = [one for one in images if _PER_FRAME in one[1]]
    return in_order(kind for one in several or _distinct(images, _IMAGE_TYPE) for kind in kinds_of(*one))


def _extent(images: list[_Member], count: int) -> tuple[tuple[int, int, int], tuple[float, float, float], int, bool]:
    """Stored size and spacing, how many images lie at one place, and whether all follow each other in even steps.

    The slice spacing is the median step of the positions, else the thickness.
    """
    path, first = images[0]
    rows = numbers(frame_tag(path, first, 0, "PixelMeasuresSequence", "PixelSpacing")) or [0.0, 0.0]
    step = number(frame_tag(path, first, 0, "PixelMeasuresSequence", "SliceThickness")) or 0.0
    axes = numbers(frame_tag(path, first, 0, "PlaneOrientationSequence", "ImageOrientationPatient"))
    positions = np.asarray([position for one in images for position in _positions(*one)], float)
    repeats, is_even = 1, False
    if len(axes) == 6 and len(positions) > 1:
        normal = np.cross(np.asarray(axes[:3], float), np.asarray(axes[3:], float))
        along = (positions @ normal).round(3)
        places, counts = np.unique(along, return_counts=True)
        step = float(np.median(np.diff(places))) if len(places) > 1 else step
        repeats = int(counts.max())
        is_even = repeats == 1 and len(along) == count and _is_straight(positions[np.argsort(along)])
    return (int(first.Columns), int(first.Rows), count), (rows[1], rows[0], step), repeats, is_even


def _positions(path: Path, header: Dataset) -> Iterator[Any]:
    if _PER_FRAME not in header:
        position = _unconverted(header, _POSITION)
        if isinstance(position, bytes):
            position = [float(one) for one in position.strip(b"\0 ").split(b"\\")] if position else None
        if position:
            yield position
        return
    for n in range(len(header.PerFrameFunctionalGroupsSequence)):
        position = frame_tag(path, header, n, "PlanePositionSequence", "ImagePositionPatient")
        if position:
            yield position


def _unconverted(header: Dataset, tag: int) -> Any:
    """The value as it is written, if it was not asked for yet: pydicom takes long to convert it."""
    return getattr(header.get_item(tag), "value", None)


def _is_straight(positions: np.ndarray) -> bool:
    """Whether sorted positions ``[N, 3]`` lie on even steps from the first to the last, to a hundredth of a mm."""
    even = np.linspace(positions[0], positions[-1], len(positions))
    return bool(np.abs(positions - even).max() < 0.01)


def _is_uniform(images: list[_Member]) -> bool:
    """Whether all slices are evidently gray images of one size, orientation and spacing, and those of CT in HU."""
    if not images:
        return False
    first = images[0][1]
    same = all(len(_distinct(images, tag)) == 1 and tag in first for tag in _SAME)
    scaled = first.get("Modality") != "CT" or (
        all(tag in header for _, header in images for tag in _SCALE) and rescale_type(first) == "HU"
    )
    return same and scaled and _PER_FRAME not in first and not why_no_volume(first)


def referenced_series(header: Dataset) -> Iterator[str]:
    """Series UIDs named by a SEG directly and by an RTSTRUCT through frame of reference and study."""
    for series in header.get("ReferencedSeriesSequence") or []:
        yield _text(series, "SeriesInstanceUID")
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield _text(series, "SeriesInstanceUID")


def _referenced_frame(header: Dataset) -> str:
    frames = header.get("ReferencedFrameOfReferenceSequence") or []
    return _text(frames[0], "FrameOfReferenceUID") if frames else ""
