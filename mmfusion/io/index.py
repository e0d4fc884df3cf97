"""Finding DICOM series in a folder tree, from headers only."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.files import is_special
from mmfusion.io.image_kinds import OTHER, in_order, kinds_of
from mmfusion.io.slices import frame_tag
from mmfusion.io.tags import (
    IDENTITY,
    claims_dicom,
    is_image,
    is_localizer,
    lenient_dicom,
    listed,
    number,
    numbers,
    read_tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom import Dataset

_Member = tuple[Path, "Dataset"]
_TAGS = (
    *IDENTITY, "PatientID", "StudyDate", "ProtocolName", "SequenceName", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PerFrameFunctionalGroupsSequence",
    "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence", "SharedFunctionalGroupsSequence",
    "ComplexImageComponent", "CorrectedImage", "ContrastBolusAgent", "ContrastBolusAgentSequence", "ScanningSequence",
    "EchoPlanarPulseSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "PhotometricInterpretation",
)  # fmt: skip
_NO_AGENT = (
    r"\W*|(0|no|none|not|nil|nein|without|ohne|kein\w*|sans|unknown)\b.*|non|n/?a?|nati\w+"  # what fills the tag
)
_IMAGE_TYPE, _POSITION, _PER_FRAME = 0x00080008, 0x00200032, 0x52009230
_SAME = (0x00280010, 0x00280011, 0x00200037, 0x00280030)  # Rows, Columns, ImageOrientationPatient, PixelSpacing
_SCALE = (0x00281052, 0x00281053)  # RescaleIntercept, RescaleSlope


@dataclass(frozen=True)
class Series:
    """One DICOM series.

    Attributes:
        folder: the deepest folder that holds all its files.
        files: sorted paths.
        patient_id: the study's identifier of the subject (0010,0020).
        study_date: ``yyyymmdd`` or empty; for ordering visits only.
        modality: DICOM's word: ``CT``, ``PT``, ``MR``, ``RTSTRUCT``, ``SEG``, ...
        count: images (frames of a multi-frame object count).
        shape: ``(columns, rows, slices)`` of an image series, as stored.
        spacing: distances of pixels and slices in that order, mm; 0 where the header does not say.
        referenced_series: series UIDs that a mask (RTSTRUCT, SEG) was drawn on.
        is_image: slices or multi-frame volumes of anatomy.
        is_localizer: all its images are scout images.
        kinds: of image in an image series (:data:`mmfusion.io.image_kinds.IMAGE_KINDS`), in that order.
        frames: images of one kind at one position, at most.
        is_plain_stack: evidently one image in evenly spaced slices; if not, only :func:`read_series_header` knows.
        corrected: whether CorrectedImage (0028,0051) has ATTN; None if the header does not have it.
        contrast_agent: whether ContrastBolusAgent (0018,0010) names one.
        echo_planar: whether ScanningSequence (0018,0020) says so.
    """

    folder: Path
    files: tuple[Path, ...]
    patient_id: str
    study_uid: str
    study_date: str
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
    kinds: tuple[str, ...] = ()
    frames: int = 1
    is_plain_stack: bool = False
    corrected: bool | None = None
    contrast_agent: bool = False
    echo_planar: bool = False


@lenient_dicom()
def find_series(
    root: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    damaged: list[Path] | None = None,
    special: list[Path] | None = None,
) -> list[Series]:
    """All DICOM series under ``root``, ordered by patient, study date, series number and UID.

    Files are told by content, not by name; only headers are read. Hidden files and DICOMDIR are left out.

    Args:
        root: folder to walk.
        progress: called now and then, and at the end, with (files read so far, files that were not DICOM).
        damaged: takes the files that are left out: DICOM with values that are none, or that says it is DICOM and is
            not; and what cannot be read at all.
        special: takes the pipes, sockets and devices, and the links to them, which are not opened.

    Raises:
        ReadError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise ReadError(f"folder {root} does not exist")
    groups: dict[tuple[str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    seen = skipped = 0
    broken: list[Path] = []
    for path in _walk(root):
        if is_special(path):
            if special is not None:
                special.append(path)
            continue
        seen += 1
        header = _header(path, broken)
        if header is None or not header.get("SeriesInstanceUID"):
            skipped += 1
        else:
            groups[str(header.get("StudyInstanceUID", "")), str(header.SeriesInstanceUID)].append((path, header))
        if progress and seen % 200 == 0:
            progress(seen, skipped)
    if progress:
        progress(seen, skipped)
    if damaged is not None:
        damaged += broken
    found = []
    for members in groups.values():
        one, left_out = _sound_series(members)
        found += [one] if one else []
        if damaged is not None:
            damaged += left_out
    return sorted(found, key=lambda s: (s.patient_id, s.study_date, s.study_uid, s.series_number or 0, s.series_uid))


def _header(path: Path, broken: list[Path]) -> Dataset | None:
    """The header of a DICOM file; what seems to be one and cannot be read is taken by ``broken``."""
    try:
        header = read_tags(path, _TAGS)
        if header is None and claims_dicom(path):
            broken.append(path)
    except ReadError:
        broken.append(path)
        return None
    return header


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                yield Path(folder, name)


def _sound_series(members: list[tuple[Path, Dataset]]) -> tuple[Series | None, list[Path]]:
    """The series without its damaged files, and these."""
    with suppress(Exception):  # pydicom converts a value when it is asked for, and raises nearly anything then
        return _series(members), []
    sound = [member for member in members if _is_sound(member)]
    kept = {path for path, _ in sound}
    return _series(sound) if sound else None, [path for path, _ in members if path not in kept]


def _is_sound(member: tuple[Path, Dataset]) -> bool:
    """True for a file that can be part of a series."""
    try:
        _series([member, member])
    except Exception:
        return False
    return True


def _series(members: list[tuple[Path, Dataset]]) -> Series:
    """What the headers of a series say."""
    files = tuple(path for path, _ in members)
    first = members[0][1]
    images = [(path, header) for path, header in members if is_image(header)]
    count = sum(int(header.get("NumberOfFrames") or 1) for _, header in images) or len(members)
    is_uniform, kinds = _is_uniform(images), _kinds(images)  # by values that were not converted yet
    shape, spacing, repeats, is_even = _extent(images, count) if images else (None, None, 1, False)
    corrected = [str(word).upper() for word in listed(first.get("CorrectedImage"))]
    series_number = number(first.get("SeriesNumber"))
    return Series(
        folder=Path(os.path.commonpath([path.parent for path in files])),
        files=files,
        patient_id=_text(first, "PatientID"),
        study_uid=_text(first, "StudyInstanceUID"),
        study_date=_text(first, "StudyDate"),
        series_uid=_text(first, "SeriesInstanceUID"),
        series_number=None if series_number is None else int(series_number),
        modality=_text(first, "Modality"),
        description=_text(first, "SeriesDescription"),
        protocol=_text(first, "ProtocolName") or _text(first, "SequenceName"),
        frame_of_reference=_text(first, "FrameOfReferenceUID") or _referenced_frame(first),
        image_type=tuple(str(part) for part in listed(first.get("ImageType"))),
        count=count,
        shape=shape,
        spacing=spacing,
        referenced_series=tuple(sorted({uid for _, header in members for uid in _referenced(header)})),
        is_image=bool(images),
        is_localizer=bool(images) and all(is_localizer(header) for _, header in images),
        kinds=kinds,
        frames=-(-repeats // max(len(kinds), 1)),
        is_plain_stack=is_even and is_uniform,
        corrected="ATTN" in corrected if corrected else None,
        contrast_agent=_has_agent(first),
        echo_planar="EP" in listed(first.get("ScanningSequence")) or _text(first, "EchoPlanarPulseSequence") == "YES",
    )


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
        all(tag in header for _, header in images for tag in _SCALE) and _text(first, "RescaleType") in ("", "HU")
    )
    return same and scaled and _PER_FRAME not in first and _text(first, "PhotometricInterpretation")[:4] == "MONO"


def _referenced(header: Dataset) -> Iterator[str]:
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
