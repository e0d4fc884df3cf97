"""Finding DICOM series in a folder tree, from headers only."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.files import is_special
from mmfusion.io.dates import DATES, ScanDate, scan_date
from mmfusion.io.spelling import folded, names_nobody, normal
from mmfusion.io.tags import IDENTITY, claims_dicom, is_image, is_localizer, lenient_dicom, listed, number, read_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydicom import Dataset

_TAGS = (
    *IDENTITY, *DATES, "PatientID", "ProtocolName", "SequenceName", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PerFrameFunctionalGroupsSequence",
    "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One DICOM series of one person: files that share its UID and that of its study, and the PatientID.

    Attributes:
        folder: the deepest folder that holds all its files.
        files: sorted paths.
        patient_id: the study's identifier of the subject (0010,0020), in Unicode's form NFC.
        spellings: all that its files have as PatientID, sorted.
        study_date: ``yyyymmdd`` or empty; for ordering only.
        scanned: when it was made.
        modality: DICOM's word: ``CT``, ``PT``, ``MR``, ``RTSTRUCT``, ``SEG``, ...
        count: images (frames of a multi-frame object count).
        shape: ``(columns, rows, slices)`` of an image series, as stored.
        spacing: distances of pixels and slices in that order, mm; 0 where the header does not say.
        referenced_series: series UIDs that a mask (RTSTRUCT, SEG) was drawn on.
        is_image: slices or multi-frame volumes of anatomy.
        is_localizer: all its images are scout images.
    """

    folder: Path
    files: tuple[Path, ...]
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
    groups: dict[tuple[str, str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
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
            person = folded(_patient(header))  # anonymizers give several people the same UIDs
            uids = str(header.get("StudyInstanceUID", "")), str(header.SeriesInstanceUID)
            groups[*uids, person].append((path, header))
        if progress and seen % 200 == 0:
            progress(seen, skipped)
    if progress:
        progress(seen, skipped)
    if damaged is not None:
        damaged += broken
    _join_nameless(groups)
    found = []
    for members in _told_apart(groups):
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


def _join_nameless(groups: dict[tuple[str, str, str], list[tuple[Path, Dataset]]]) -> None:
    """Files without PatientID are of the one person whose files of the series lie in the same folder."""
    people: dict[tuple[str, str], list[str]] = defaultdict(list)
    for study, series, person in groups:
        people[study, series].append(person)
    for (study, series), found in people.items():
        if len(found) == 2 and "" in found:
            bare, named = (groups[study, series, person] for person in sorted(found))
            if {path.parent for path, _ in bare} <= {path.parent for path, _ in named}:
                named += groups.pop((study, series, ""))
                named.sort(key=lambda member: member[0])


def _told_apart(groups: dict[tuple[str, str, str], list[tuple[Path, Dataset]]]) -> Iterator[list[tuple[Path, Dataset]]]:
    """The files of each series; without a PatientID that names somebody, scans of one place in two folders are two."""
    for (_, _, person), members in groups.items():
        folders: dict[Path, list[tuple[Path, Dataset]]] = defaultdict(list)
        for path, header in members:
            folders[path.parent].append((path, header))
        if names_nobody(person) and len(folders) > 1 and _overlap(folders.values()):
            yield from folders.values()
        else:
            yield members


def _overlap(folders: Iterable[list[tuple[Path, Dataset]]]) -> bool:
    """True if two folders have images of one place that are no copies: their UIDs differ, or are no UIDs."""
    there: dict[str, str] = {}
    for members in folders:
        uids = Counter(str(header.get("SOPInstanceUID")) for _, header in members)
        here = {str(place): str(header.get("SOPInstanceUID")) for _, header in members if (place := _place(header))}
        if any(there.get(place, uid) != uid or (place in there and uids[uid] > 1) for place, uid in here.items()):
            return True
        there |= here
    return False


def _place(header: Dataset) -> str:
    with suppress(Exception):
        return _text(header, "ImagePositionPatient")
    return ""


def _patient(header: Dataset) -> str:
    """The PatientID; empty if there is none, or none that can be decoded."""
    with suppress(Exception):
        return normal(_text(header, "PatientID"))
    return ""


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
    images = [header for _, header in members if is_image(header)]
    count = sum(int(header.get("NumberOfFrames") or 1) for header in images) or len(members)
    shape, spacing = _extent(images, count) if images else (None, None)
    series_number = number(first.get("SeriesNumber"))
    return Series(
        folder=Path(os.path.commonpath([path.parent for path in files])),
        files=files,
        patient_id=next(filter(None, map(_patient, (header for _, header in members))), ""),
        spellings=tuple(sorted({_patient(header) for _, header in members} - {""})),
        study_uid=_text(first, "StudyInstanceUID"),
        study_date=_text(first, "StudyDate"),
        scanned=scan_date(first),
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
        is_localizer=bool(images) and all(is_localizer(header) for header in images),
    )


def _text(header: Dataset, tag: str) -> str:
    return str(header.get(tag) or "").strip()


def _extent(images: list[Dataset], count: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Stored size and spacing; the slice spacing is the median step of the positions, else the thickness."""
    first = images[0]
    rows = [float(value) for value in listed(first.get("PixelSpacing"))] or [0.0, 0.0]
    step = number(first.get("SliceThickness")) or 0.0
    axes = listed(first.get("ImageOrientationPatient"))
    positions = [header.ImagePositionPatient for header in images if header.get("ImagePositionPatient")]
    if len(axes) == 6 and len(positions) > 1:
        normal = np.cross(np.asarray(axes[:3], float), np.asarray(axes[3:], float))
        along = np.unique((np.asarray(positions, float) @ normal).round(3))
        step = float(np.median(np.diff(along))) if len(along) > 1 else step
    return (int(first.Columns), int(first.Rows), count), (rows[1], rows[0], step)


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
