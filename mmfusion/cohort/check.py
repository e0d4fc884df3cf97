"""Look at a whole study before anything is computed: every problem, from the headers alone."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort.manifest import Case, parse_manifest
from mmfusion.cohort.splits import LEAK_REMEDY, leakage
from mmfusion.cohort.table import Problem
from mmfusion.errors import MmfusionError
from mmfusion.io import read_header, split_series
from mmfusion.volume import overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mmfusion.io import Header

_LEVELS = ("error", "warning", "note")
_NARROW, _WIDE = 0.1, 10.0  # mm: spacing outside is unusual


def check_manifest(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **reading: Any,
) -> list[Problem]:
    """Everything that is wrong, doubtful or worth knowing about a study; never stops at the first problem.

    Reads the manifest and the headers of all volumes, no voxels (but compares contents where two subjects have
    files of one size). Errors are what keeps the study, or the row, from being used as it is.

    Args:
        path: the manifest.
        modalities: columns to read as modalities; see :func:`~mmfusion.cohort.manifest.read_manifest`.
        progress: called with the number of rows done and of all rows.
        reading: options of :func:`mmfusion.io.read_header`, such as ``assume_orientation``.

    Returns:
        The problems, errors first, then by line.

    Raises:
        ReadError: the manifest itself does not exist or is not text.
    """
    cases, problems = parse_manifest(path, modalities)
    problems += _labels(cases) + _parts(cases) + _subjects(cases) + _modalities(cases)
    for done, case in enumerate(cases, 1):
        problems += _volumes(case, reading)
        if progress:
            progress(done, len(cases))
    problems += _same_content(cases)
    return sorted(problems, key=lambda one: (_LEVELS.index(one.level), one.line))


def format_problems(problems: Sequence[Problem]) -> str:
    """The table ``line  subject  modality  problem  remedy``, and the counts as the last line.

    A problem that more than two rows share is one line of the table; notes also if only their numbers differ.
    """
    groups: dict[tuple[str, ...], list[Problem]] = defaultdict(list)
    for one in sorted(problems, key=lambda one: _LEVELS.index(one.level)):
        kind = re.sub(r"\d[\d.e+-]*", "#", one.problem) if one.level == "note" else one.problem
        groups[one.level, one.modality, kind, one.remedy].append(one)
    rows = []
    for members in groups.values():
        first, same = members[0], len({one.problem for one in members}) == 1
        if len(members) <= 2:
            who = [(str(one.line or ""), one.subject, one.problem) for one in members]
        else:
            problem = first.problem if same else f"{first.problem} (others likewise)"
            who = [(_ranges(one.line for one in members), f"{len(members)} rows", problem)]
        rows += [
            (lines, subject, first.modality, f"{first.level}: {problem}", first.remedy)
            for lines, subject, problem in who
        ]
    count = Counter(one.level for one in problems)
    last = ", ".join(f"{count[level]} {level}{'' if count[level] == 1 else 's'}" for level in _LEVELS)
    if not rows:
        return last
    table = [("line", "subject", "modality", "problem", "remedy"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*text, "", last])


def _labels(cases: Sequence[Case]) -> list[Problem]:
    subjects: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.label is not None:
            subjects[case.label].add(case.subject)
    if not cases:
        return []
    if not subjects:
        return [Problem("note", 0, "", "", "no row has a label", "Enough to predict; training needs them.")]
    out = [
        Problem("warning", case.line, case.subject, "", "no label", "Training leaves this row out.")
        for case in cases
        if case.label is None
    ]
    if len(subjects) == 1:
        problem = f"every label is {next(iter(subjects))!r}"
        out.append(Problem("error", 0, "", "", problem, "Training needs at least two classes."))
    for label, who in sorted(subjects.items()):
        if len(who) < 2 <= len(subjects):
            problem = f"class {label} has one subject, {next(iter(who))}"
            out.append(Problem("error", 0, "", "", problem, "Each class needs two; add some or drop it."))
    return out


def _parts(cases: Sequence[Case]) -> list[Problem]:
    """Leaks between the parts of columns ``split`` and ``fold``."""
    folds = {case.id: int(case.fold) for case in cases if case.fold.isdecimal()}
    found = [leakage(cases, {case.id: case.split for case in cases}), leakage(cases, folds)]
    return [Problem("error", 0, "", "", problem, LEAK_REMEDY) for problem in found if problem]


def _subjects(cases: Sequence[Case]) -> list[Problem]:
    spelled: dict[str, dict[str, int]] = defaultdict(dict)
    for case in cases:
        spelled[case.subject.casefold()].setdefault(case.subject, case.line)
    return [
        Problem("warning", line, subject, "", f"differs from {first} (line {at}) only in capitals", remedy)
        for (first, at), *others in (list(names.items()) for names in spelled.values())
        for subject, line in others
        for remedy in ["If it is one person, spell it one way: it could leak from train to test."]
    ]


def _modalities(cases: Sequence[Case]) -> list[Problem]:
    names = {name for case in cases for name in case.images}
    if len(names) == 1:
        problem = f"the only modality is {next(iter(names))}"
        return [Problem("note", 0, "", "", problem, "Nothing can be fused.")]
    return [
        Problem("note", case.line, case.subject, name, f"only {name}", "Nothing can be fused in this row.")
        for case in cases
        if len(case.images) == 1
        for name in case.images
    ]


def _volumes(case: Case, reading: Mapping[str, Any]) -> list[Problem]:
    """The headers of one row, one by one and against each other."""
    out, headers = [], dict[str, "Header"]()

    def say(level: str, modality: str, problem: str, remedy: str = "") -> None:
        out.append(Problem(level, case.line, case.subject, modality, problem, remedy))

    details = {name: value for name, value in case.covariates.items() if value}  # weight_kg, dose_mbq, ...
    for name, path in case.images.items():
        if not split_series(path)[0].exists():
            continue  # parse_manifest has said so
        try:
            header = read_header(path, modality=name, pet=details, **reading)
            grid = header.grid
        except MmfusionError as error:
            problem, _, remedy = str(error).removesuffix(".").partition(". ")
            say("error", name, problem, f"{remedy}." if remedy else "")
            continue
        headers[name] = header
        for note in header.notes:
            say("note", name, note.removesuffix("."))
        low, high = min(grid.spacing), max(grid.spacing)
        if low < _NARROW or high > _WIDE:
            sizes = " x ".join(f"{size:.3g}" for size in grid.spacing)
            say("warning", name, f"spacing {sizes} mm is unusual", "Check the header's units and slice gap.")
    found = {name: header.orientation for name, header in headers.items()}
    if len(set(found.values())) > 1:
        say("note", "", f"{', '.join(f'{name} {axes}' for name, axes in found.items())}: reoriented")
    for one, other in combinations(headers, 2):
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


def _same_content(cases: Sequence[Case]) -> list[Problem]:
    """The same scan under two subjects, or twice in one row."""
    sizes: dict[Any, list[tuple[Case, str, Path]]] = defaultdict(list)
    for case in cases:
        for name, path in case.images.items():
            if (size := _size(path)) is not None:
                sizes[size].append((case, name, path))
    out = []
    for members in sizes.values():
        if len(members) == 1:
            continue
        first: dict[str, tuple[Case, str]] = {}
        for case, name, path in members:
            other, modality = first.setdefault(_content(path), (case, name))
            who = f"subject {other.subject} {modality} (line {other.line})"
            if other.subject != case.subject:
                remedy = "If they are one person, give them one subject: it could leak from train to test."
                out.append(Problem("warning", case.line, case.subject, name, f"same content as {who}", remedy))
            elif other is case and name != modality:
                problem = f"same content as {modality} of this row"
                out.append(Problem("warning", case.line, case.subject, name, problem, "Fix one path."))
    return out


def _size(path: Path) -> Any:
    """What two equal scans have in common and a directory listing tells; None if there is nothing to read."""
    location, series = split_series(path)
    if location.is_file():
        return location.stat().st_size
    return series or (len(_files(location)) or None)


def _content(path: Path) -> str:
    """A digest of a file, or of the voxels of the middle image of a DICOM folder (identifiers may differ)."""
    location, series = split_series(path)
    if series:
        return series
    if location.is_dir():
        import pydicom  # late: it costs a third of a second and most checks never come here

        files = _files(location)
        data = pydicom.dcmread(files[len(files) // 2], force=True).get("PixelData", b"")
        # an image of one value says nothing: fall back to the path, which is unique
        data = data if len(set(data[:: max(1, len(data) // 4096)])) > 2 else str(location.resolve()).encode()
        return hashlib.sha256(data).hexdigest()
    with location.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _ranges(lines: Iterable[int]) -> str:
    """``2-21, 30`` for line numbers."""
    spans: list[list[int]] = []
    for line in sorted(set(lines)):
        if spans and line == spans[-1][1] + 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans)
