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
from mmfusion.io.dates import DATES, ScanDate, scan_date
from mmfusion.io.load import VOLUMES
from mmfusion.io.pictures import UNSPECIFIED, rescale_type, why_no_volume
from mmfusion.io.sniff import ending_of
from mmfusion.io.spelling import folded, names_nobody, normal
from mmfusion.io.tags import (
    IDENTITY,
    NUCLEAR,
    claims_dicom,
    image_kinds,
    is_image,
    is_localizer,
    lenient_dicom,
    listed,
    number,
    read_tags,
    series_name,
)
from mmfusion.io.walk import Unread, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydicom import Dataset

_TAGS = (
    *IDENTITY, *DATES, "PatientID", "InstanceNumber", "ProtocolName", "SequenceName", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", "DetectorInformationSequence", "PhotometricInterpretation", "SamplesPerPixel",
    "RescaleType", "ReferencedFrameOfReferenceSequence", "ReferencedSeriesSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One DICOM series of one person: files that share its UID and that of its study, and the PatientID.

    Attributes:
        folder: the deepest folder that holds all its files.
        files: sorted paths, without copies.
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
    unusable: str = ""
    copies: tuple[Path, ...] = ()


@lenient_dicom()
def find_series(
    root: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    unread: Unread | None = None,
) -> list[Series]:
    """All DICOM series under ``root``, ordered by patient, study date, series number and UID.

    Files are told by content, not by name; only headers are read. Those that have the ending of a volume (``.nii.gz``,
    ``.zip``, ...) are not looked into. Files without a SeriesInstanceUID are one series if they lie in one folder and
    agree in study, modality, number and frame of reference.

    Args:
        root: folder to walk, see :func:`mmfusion.io.walk.walk`.
        progress: called now and then, and at the end, with (files read so far, files that were not DICOM).
        unread: takes everything else that lies there.

    Raises:
        ReadError: the folder does not exist, or may not be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ReadError(f"folder {root} does not exist")
    unread = Unread() if unread is None else unread
    groups: dict[tuple[str, str, str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    seen = skipped = 0
    for path in walk(root, unread):
        seen += 1
        found = _header(path, unread)
        if found is None:
            skipped += 1
        else:
            header, key = found
            groups[key].append((path, header))
        if progress and seen % 200 == 0:
            progress(seen, skipped)
    if progress:
        progress(seen, skipped)
    if root in unread.closed:
        raise ReadError(f"folder {root} cannot be read; check its permissions")
    _join_nameless(groups)
    series = []
    for members in _told_apart(groups):
        one, left_out = _sound_series(members)
        series += [one] if one else []
        unread.damaged += left_out
    return sorted(series, key=lambda s: (s.patient_id, s.study_date, s.study_uid, s.series_number or 0, s.series_uid))


def _header(path: Path, unread: Unread) -> tuple[Dataset, tuple[str, str, str, str]] | None:
    """The header of a DICOM file and what its series is known by; what is none goes where it belongs in ``unread``."""
    name = path.name
    companion = name.startswith("._")  # as macOS calls what it writes beside the file of that name
    if name.lower().endswith(VOLUMES) and not companion:
        unread.volumes.append(path)
        return None
    try:
        header = read_tags(path, _TAGS)
        if header is not None:
            with suppress(Exception):  # as in _sound_series
                place = "" if header.get("SeriesInstanceUID") else str(path.parent)
                person = folded(_patient(header))  # anonymizers give several people the same UIDs
                return header, (str(header.get("StudyInstanceUID", "")), series_name(header), place, person)
        if header is not None or claims_dicom(path):
            unread.damaged.append(path)
        else:
            unread.endings["._" if companion else ending_of(name)] += 1
    except ReadError:
        (unread.damaged if os.access(path, os.R_OK) else unread.closed).append(path)
    return None


def _join_nameless(groups: dict[tuple[str, str, str, str], list[tuple[Path, Dataset]]]) -> None:
    """Files without PatientID are of the one person whose files of the series lie in the same folder."""
    people: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for *series, person in groups:
        people[series[0], series[1], series[2]].append(person)
    for (study, name, place), found in people.items():
        if len(found) == 2 and "" in found:
            bare, named = (groups[study, name, place, person] for person in sorted(found))
            if {path.parent for path, _ in bare} <= {path.parent for path, _ in named}:
                named += groups.pop((study, name, place, ""))
                named.sort(key=lambda member: member[0])


def _told_apart(
    groups: dict[tuple[str, str, str, str], list[tuple[Path, Dataset]]],
) -> Iterator[list[tuple[Path, Dataset]]]:
    """The files of each series; without a PatientID that names somebody, scans of one place in two folders are two."""
    for (*_, person), members in groups.items():
        folders: dict[Path, list[tuple[Path, Dataset]]] = defaultdict(list)
        for path, header in members:
            folders[path.parent].append((path, header))
        if names_nobody(person) and len(folders) > 1 and _overlap(folders.values()):
            yield from folders.values()
        else:
            yield members


def _overlap(folders: Iterable[list[tuple[Path, Dataset]]]) -> bool:
    """True if two folders have images of one place or number that are no copies: their UIDs differ, or are no UIDs."""
    there: dict[str, str] = {}
    for members in folders:
        uids = Counter(str(header.get("SOPInstanceUID")) for _, header in members)
        here = {mark: str(header.get("SOPInstanceUID")) for _, header in members for mark in _marks(header)}
        if any(there.get(mark, uid) != uid or (mark in there and uids[uid] > 1) for mark, uid in here.items()):
            return True
        there |= here
    return False


def _marks(header: Dataset) -> list[str]:
    """What no two images of a scan have in common, as far as it can be read."""
    with suppress(Exception):
        return list(filter(None, (_text(header, tag) for tag in ("ImagePositionPatient", "InstanceNumber"))))
    return []


def _patient(header: Dataset) -> str:
    """The PatientID; empty if there is none, or none that can be decoded."""
    with suppress(Exception):
        return normal(_text(header, "PatientID"))
    return ""


def _sound_series(members: list[tuple[Path, Dataset]]) -> tuple[Series | None, list[Path]]:
    """The series without its damaged files, and these."""
    with suppress(Exception):  # pydicom converts a value when it is asked for, and raises nearly anything then
        return _series(*_without_copies(members)), []
    sound = [member for member in members if _is_sound(member)]
    kept = {path for path, _ in sound}
    return _series(*_without_copies(sound)) if sound else None, [path for path, _ in members if path not in kept]


def _is_sound(member: tuple[Path, Dataset]) -> bool:
    """True for a file that can be part of a series."""
    try:
        _series([member, member])
    except Exception:
        return False
    return True


def _series(members: list[tuple[Path, Dataset]], copies: tuple[Path, ...] = ()) -> Series:
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
        referenced_series=tuple(sorted({uid for _, header in members for uid in referenced_series(header)})),
        is_image=bool(images),
        is_localizer=bool(images) and all(is_localizer(header) for header in images),
        unusable=_unusable([header for _, header in members]),
        copies=copies,
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
        if not reason and header.get("SOPClassUID") == NUCLEAR and "TRANSMISSION" in image_kinds(header):
            reason = "an attenuation map"
        if not reason:
            break
    return reason


def _without_copies(members: list[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], tuple[Path, ...]]:
    """Each object once, out of one folder if it holds them all, and the copies: they have the UID and place of another.

    Without UIDs there are no copies.
    """
    uids = Counter(str(header.get("SOPInstanceUID") or "") for _, header in members)
    if "" in uids or len(uids) == len(members):
        return members, ()
    objects: dict[tuple[str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in members:
        objects[str(header.SOPInstanceUID), str(header.get("ImagePositionPatient"))].append((path, header))
    once = [same[0] for same in objects.values()]
    for folder in dict.fromkeys(path.parent for path, _ in members):
        here = [[one for one in same if one[0].parent == folder] for same in objects.values()]
        if all(here):
            once = [same[0] for same in here]
            break
    kept = {path for path, _ in once}
    return once, tuple(path for path, _ in members if path not in kept)


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
