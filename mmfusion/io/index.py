"""Finding DICOM series in a folder tree, from headers only."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import ReadError
from mmfusion.io.load import VOLUMES
from mmfusion.io.people import patient_of, split_by_person
from mmfusion.io.series import names_uid
from mmfusion.io.series_facts import SERIES_TAGS, Series, describe
from mmfusion.io.sniff import ending_of
from mmfusion.io.spelling import folded
from mmfusion.io.tags import claims_dicom, lenient_dicom, read_tags, series_name
from mmfusion.io.walk import Unread, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom import Dataset


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
    agree in study, modality, number and frame of reference; those with something else than a UID there (by which no
    path names a series of several folders), if they lie in one folder.

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
    groups: dict[tuple[str, ...], list[tuple[Path, Dataset]]] = defaultdict(list)
    seen = skipped = 0
    for path in walk(root, unread):
        seen += 1
        identified = _header(path, unread)
        if identified is None:
            skipped += 1
        else:
            header, key = identified
            groups[key].append((path, header))
        if progress and seen % 200 == 0:
            progress(seen, skipped)
    if progress:
        progress(seen, skipped)
    if root in unread.unreadable:
        raise ReadError(f"folder {root} cannot be read; check its permissions")
    series = []
    for members in split_by_person(groups):
        one, left_out = _sound_series(members)
        series += [one] if one else []
        unread.damaged += left_out
    return sorted(series, key=lambda s: (s.patient_id, s.study_date, s.study_uid, s.series_number or 0, s.series_uid))


def _header(path: Path, unread: Unread) -> tuple[Dataset, tuple[str, str, str, str]] | None:
    """The header of a DICOM file and the key of its series; None for any other file, which ``unread`` takes."""
    name = path.name
    companion = name.startswith("._")  # as macOS calls what it writes beside the file of that name
    if name.lower().endswith(VOLUMES) and not companion:
        unread.volumes.append(path)
        return None
    try:
        header = read_tags(path, SERIES_TAGS)
        if header is not None:
            with suppress(Exception):  # as in _sound_series
                series, person = series_name(header), folded(patient_of(header))
                place = "" if header.get("SeriesInstanceUID") and names_uid(series) else str(path.parent)
                return header, (str(header.get("StudyInstanceUID", "")), series, place, person)
        if header is not None or claims_dicom(path):
            unread.damaged.append(path)
        else:
            unread.endings["._" if companion else ending_of(name)] += 1
    except ReadError:
        (unread.damaged if os.access(path, os.R_OK) else unread.unreadable).append(path)
    return None


def _sound_series(members: list[tuple[Path, Dataset]]) -> tuple[Series | None, list[Path]]:
    """The series without its damaged files, and these."""
    with suppress(Exception):  # pydicom converts a value when it is asked for, and raises nearly anything then
        return describe(*_without_copies(members)), []
    sound = [member for member in members if _is_sound(member)]
    kept = {path for path, _ in sound}
    return describe(*_without_copies(sound)) if sound else None, [path for path, _ in members if path not in kept]


def _is_sound(member: tuple[Path, Dataset]) -> bool:
    """True for a file that can be part of a series."""
    try:
        describe([member, member])
    except Exception:
        return False
    return True


def _without_copies(members: list[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], tuple[Path, ...]]:
    """Each object of a series in several folders once, out of one folder if it holds them all, and the copies.

    They have the UID and the place of another; without UIDs there are none.
    """
    folders = dict.fromkeys(path.parent for path, _ in members)
    if len(folders) == 1:  # copies in it are left out when it is read
        return members, ()
    uids = Counter(str(header.get("SOPInstanceUID") or "") for _, header in members)
    if "" in uids or len(uids) == len(members):
        return members, ()
    objects: dict[tuple[str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in members:
        objects[str(header.SOPInstanceUID), str(header.get("ImagePositionPatient"))].append((path, header))
    once = [same[0] for same in objects.values()]
    for folder in folders:
        here = [[one for one in same if one[0].parent == folder] for same in objects.values()]
        if all(here):
            once = [same[0] for same in here]
            break
    kept = {path for path, _ in once}
    return once, tuple(path for path, _ in members if path not in kept)
