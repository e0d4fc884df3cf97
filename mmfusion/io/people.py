"""The person of each file of a series: anonymizers give the same UIDs to several people."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.io.spelling import clean_name, folded, names_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydicom import Dataset

_Files = list[tuple[Path, "Dataset"]]


def patient_of(header: Dataset) -> str:
    """The PatientID; empty if there is none, or none that can be decoded."""
    with suppress(Exception):  # pydicom raises nearly anything on damaged values
        return clean_name(str(header.get("PatientID") or ""))
    return ""


def person_digest(header: Dataset) -> str:
    """The same for all scans of one PatientID, in any spelling, without telling it; empty if it names nobody."""
    person = folded(patient_of(header))
    return "" if names_nobody(person) else hashlib.sha256(person.encode()).hexdigest()[:16]


def split_by_person(groups: Mapping[tuple[str, ...], _Files]) -> Iterator[_Files]:
    """The files of each series, split by person.

    Files without PatientID are of the one person whose files of the series lie in the same folder. Where no PatientID
    names somebody, images of one place or number in two folders are of two scans.

    Args:
        groups: files by what tells series apart, the person (:func:`~mmfusion.io.spelling.folded`) last.
    """
    series: dict[tuple[str, ...], dict[str, _Files]] = defaultdict(dict)
    for (*name, person), files in groups.items():
        series[tuple(name)][person] = files
    for people in series.values():
        if len(people) == 2 and "" in people:
            bare = people.pop("")
            ((person, named),) = people.items()
            if {path.parent for path, _ in bare} <= {path.parent for path, _ in named}:
                people[person] = sorted(named + bare, key=lambda file: file[0])
            else:
                people[""] = bare
        for person, files in people.items():
            yield from _split_by_folder(files) if names_nobody(person) else [files]


def _split_by_folder(files: _Files) -> list[_Files]:
    """The files by folder if two folders have images that are no copies at one place or of one number; else all."""
    folders: dict[Path, _Files] = defaultdict(list)
    for path, header in files:
        folders[path.parent].append((path, header))
    there: dict[str, str] = {}
    for members in folders.values():
        here = {mark: uid for _, header in members for mark, uid in _marks(header)}
        times = Counter(uid for _, header in members for _, uid in _marks(header)[:1])
        if any(there.get(mark, uid) != uid or (mark in there and times[uid] > 1) for mark, uid in here.items()):
            return list(folders.values())
        there |= here
    return [files]


def _marks(header: Dataset) -> list[tuple[str, str]]:
    """Each of what no two images of a scan have in common, with the UID of the image; empty where it is damaged."""
    with suppress(Exception):
        values = (str(header.get(tag) or "") for tag in ("ImagePositionPatient", "InstanceNumber"))
        return [(mark, str(header.get("SOPInstanceUID"))) for mark in values if mark]
    return []
