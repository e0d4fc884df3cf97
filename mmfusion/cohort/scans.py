"""What is wrong or doubtful with the scans of one row, from their headers and from their voxels."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort.copies import voxel_digest
from mmfusion.cohort.files import pet_details, region_of, with_region, without_paths
from mmfusion.cohort.table import Problem
from mmfusion.cohort.visits import SESSION_DAYS
from mmfusion.errors import MmfusionError, VoxelError
from mmfusion.files import is_special, is_there
from mmfusion.io import load_mask, load_volume, open_mask, read_header, split_series
from mmfusion.options import OPTIONS
from mmfusion.volume import HOT_SUV, SUV_MAX, SUV_UNITS, clip_level, clipped_share, foreground, overlap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mmfusion.cohort.manifest import Case
    from mmfusion.io import Header
    from mmfusion.volume import Volume

_NARROW, _WIDE = 0.1, 10.0  # mm: spacing outside is unusual
_SUV = ((-5, math.inf), (1, 300))  # somewhere is more than the mean of the body; the bladder may reach 100
USUAL = {  # unit: where the lowest and where the highest value of a scan usually lie
    "HU": ((-10240, -1), (100, 32767)),  # there is some air and some bone or contrast agent; the extended CT scale
    "SUVbw": _SUV,
    "SUVlbm": _SUV,
}
_SUV_REMEDY = "Check that the values are SUV: units, weight, dose and times."
_REMEDIES = {
    "HU": "Check that the values are HU: rescale slope and intercept applied.",
    "SUVbw": _SUV_REMEDY,
    "SUVlbm": _SUV_REMEDY,
}


def _is_there(cell: Path) -> bool:
    path = split_series(cell)[0]
    return is_there(path) and not is_special(path)


def header_problems(
    case: Case, reading: Mapping[str, Any], people: dict[str, Case], roi: Sequence[str] | None = None
) -> list[Problem]:
    """The headers of one row, one by one and against each other.

    Args:
        case: the row.
        reading: options of :func:`mmfusion.io.read_header`.
        people: the first row with a scan of each PatientID, by :attr:`mmfusion.io.Header.person`; takes those of this.
        roi: names the structures of the mask if the row does not.
    """
    out, headers = [], dict[str, "Header"]()
    case, reading = _with_region(case, reading)

    def say(level: str, modality: str, problem: str, remedy: str = "") -> None:
        out.append(Problem(level, case.line, case.subject, modality, problem, remedy))

    for name, path in case.images.items():
        if not _is_there(path):
            continue  # parse_manifest has said so
        try:
            header = read_header(path, modality=name, pet=pet_details(case), **reading)
            grid = header.grid
        except Exception as error:  # one bad file must never stop the check of the others
            say("error", name, *_failure(error, case))
            continue
        headers[name] = header
        for note in header.notes:
            say("note", name, note.removesuffix("."))
        for doubt in header.doubts:
            say("warning", name, *_split_remedy(doubt))
        low, high = min(grid.spacing), max(grid.spacing)
        if low < _NARROW or high > _WIDE:
            sizes = " x ".join(f"{size:.3g}" for size in grid.spacing)
            say("warning", name, f"spacing {sizes} mm is unusual", "Check the header's units and slice gap.")
    if case.mask is not None and _is_there(case.mask):
        try:
            mask = open_mask(case.mask, roi=case.roi or roi, assume_orientation=reading.get("assume_orientation"))
        except Exception as error:
            say("error", "mask", *_failure(error, case))
        else:
            for note in mask.notes:
                say("note", "mask", note)
            for doubt in mask.doubts:
                say("warning", "mask", *_split_remedy(doubt))
    persons = {header.person: name for name, header in headers.items() if header.person}
    if len(persons) > 1:
        problem = f"{' and '.join(sorted(persons.values()))} have different PatientIDs"
        say("warning", "", problem, "If they are of several people, put them into several rows.")
    for person, name in persons.items():
        first = people.setdefault(person, case)
        if first.subject != case.subject:
            remedy = "If they are one person, give them one subject: it could leak from train to test."
            say("warning", name, f"same PatientID as subject {first.subject} (line {first.line})", remedy)
    found = {name: header.orientation for name, header in headers.items()}
    if len(set(found.values())) > 1:
        say("note", "", f"{', '.join(f'{name} {axes}' for name, axes in found.items())}: reoriented")
    for one, other in combinations(headers, 2):
        kinds = {headers[name].modality for name in (one, other)}
        days = headers[one].scanned.days_from(headers[other].scanned)
        if days and days > (0 if kinds == {"ct", "pet"} else SESSION_DAYS):
            remedy = "Keep them in one row only if nothing changed in between."
            say("warning", "", f"{one} and {other} are {days} days apart", remedy)
        a, b = (headers[name].grid for name in (other, one))
        if overlap(a, b) >= 0.005:
            continue
        apart = float(np.linalg.norm(a.center - b.center))
        problem = f"{other} and {one} share 0 % of their field of view (centers {apart:.0f} mm apart)"
        frames = {headers[name].frame_of_reference for name in (one, other)}
        if len(frames) == 1 and "" not in frames:
            say("error", "", f"{problem} in one frame of reference", "Headers disagree; re-export.")
        else:
            say("warning", "", problem, "Registration will start from the centers (--init centers).")
    return out


def voxel_problems(
    case: Case,
    reading: Mapping[str, Any],
    found: Sequence[Problem],
    digests: list[tuple[Case, str, str]],
    roi: Sequence[str] | None = None,
    suv_max: float = SUV_MAX,
    pet_max: float | None = None,
) -> list[Problem]:
    """What the voxels of one row add to what was found in its headers; the digests of its scans are added."""
    out = []
    case, reading = _with_region(case, reading)
    unreadable = {one.modality for one in found if one.level == "error"}
    reported = {(one.modality, one.problem) for one in found}
    for name, path in case.images.items():
        if name in unreadable or not _is_there(path):
            continue
        try:
            volume = load_volume(path, modality=name, pet=pet_details(case), **reading)
            problems = [("note", note.removesuffix("."), "") for note in volume.meta["notes"]]
            problems += [("warning", *_split_remedy(doubt)) for doubt in volume.meta["doubts"]]
            problems += _values(volume)
            if level := clip_level(volume.units, suv_max, pet_max):
                problems += _clipping(volume, level, case, roi, reading.get("assume_orientation"))
            digests.append((case, name, voxel_digest(volume)))
        except Exception as error:  # nor a file that only its voxels show to be bad
            problems = [("error", *_failure(error, case))]
        out += [
            Problem(level, case.line, case.subject, name, problem, remedy)
            for level, problem, remedy in problems
            if (name, problem) not in reported
        ]
    return out


def _values(volume: Volume) -> Iterator[tuple[str, str, str]]:
    """Level, problem and remedy of everything doubtful in the values of a scan that could be loaded."""
    usual = USUAL.get(volume.units, ())
    extremes = float(volume.array.min()), float(volume.array.max())
    for word, value, (least, most) in zip(("lowest", "highest"), extremes, usual, strict=False):
        if not least <= value <= most:
            span = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            problem = f"the {word} value is {value:.5g} {volume.units}; {span} is usual"
            yield "warning", problem, _REMEDIES[volume.units]
    try:
        foreground(volume)
    except VoxelError:
        problem = "no foreground: nothing stands out from the background"
        yield "error", problem, "Export the scan again or leave the cell empty."


def _clipping(
    volume: Volume, level: float, case: Case, roi: Sequence[str] | None, assume_orientation: str | None
) -> Iterator[tuple[str, str, str]]:
    """A note if preparing will clip some of the mask (where the headers place it), or without one of the hot volume."""
    within, region = None, f"the hot volume (SUV of {HOT_SUV:g} or more)"
    if case.mask is not None:
        with suppress(Exception):  # a mask that cannot be read is reported with the headers
            mask = load_mask(case.mask, volume.grid, roi=case.roi or roi, assume_orientation=assume_orientation)
            if mask.array.any() and mask.frame_of_reference in ("", volume.frame_of_reference):
                within, region = mask.array > 0, "the mask"
    if share := clipped_share(volume, level, within):
        name = "suv_max" if volume.units in SUV_UNITS else "pet_max"
        highest = (volume.array if within is None else volume.array[within]).max()
        problem = f"{share:.1%} of {region} lies above {name} {level:g} and will be clipped (up to {highest:.4g})"
        yield "note", problem, f"A larger {OPTIONS[name].flag} keeps it."


def _with_region(case: Case, reading: Mapping[str, Any]) -> tuple[Case, dict[str, Any]]:
    """The case and the options of reading with its own reference region."""
    suvr = reading.get("suvr")
    case = with_region(case, suvr)
    return case, {**reading, "suvr": region_of(case, suvr)}


def _failure(error: Exception, case: Case) -> tuple[str, str]:
    """Problem and remedy of a scan that cannot be read; line and modality say which one it is."""
    text = str(error) if isinstance(error, MmfusionError) else f"unexpected {type(error).__name__}: {error}"
    return _split_remedy(without_paths(text, case))


def _split_remedy(text: str) -> tuple[str, str]:
    """Problem and remedy of a message: its first sentence, and what follows."""
    problem, _, remedy = text.removesuffix(".").partition(". ")
    return problem, f"{remedy}." if remedy else ""
