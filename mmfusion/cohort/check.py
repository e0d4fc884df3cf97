"""Look at a whole study before anything is computed: every problem, from the headers or from the voxels too."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from mmfusion.cohort.copies import copies, same_files
from mmfusion.cohort.labels import doubtful_labels
from mmfusion.cohort.manifest import Case, parse_manifest
from mmfusion.cohort.scans import header_problems, voxel_problems
from mmfusion.cohort.splits import LEAK_REMEDY, leakage
from mmfusion.cohort.table import Problem
from mmfusion.errors import printable
from mmfusion.io import SPELLING_DIFFERENCES, check_frame, folded
from mmfusion.volume import SUV_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_LEVELS = ("error", "warning", "note")


def check_manifest(
    path: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
    roi: Sequence[str] | None = None,
    suv_max: float = SUV_MAX,
    pet_max: float | None = None,
    **reading: Any,
) -> list[Problem]:
    """Everything that is wrong, doubtful or worth knowing about a study; never stops at the first problem.

    Reads the manifest and the headers of all volumes, no voxels (but compares contents where two subjects have
    files of one size). Errors are what keeps the study, or the row, from being used as it is.

    With ``deep``, the voxels of one scan after another are read, too: values that are not finite, all equal, not
    plausible (:data:`~mmfusion.cohort.scans.USUAL`) or without foreground, PET that looks like Bq/mL or will be
    clipped, and scans that have the same voxels, whatever their files are.

    Args:
        path: the manifest.
        modalities: columns to read as modalities; see :func:`~mmfusion.cohort.manifest.read_manifest`.
        deep: read the voxels.
        progress: called with the number of rows done and of all rows.
        roi: the structures of masks, in rows that name none; see :func:`mmfusion.io.load_mask`.
        suv_max, pet_max: the values of PET that will become 1.
        reading: options of :func:`mmfusion.io.read_header`, such as ``assume_orientation``.

    Returns:
        The problems, errors first, then by line.

    Raises:
        ReadError: the manifest itself does not exist or is not text.
        OptionError: ``frame`` is no choice of frames.
    """
    check_frame(reading.get("frame"))
    cases, _, problems = parse_manifest(path, modalities)
    problems += _labels(cases) + _parts(cases) + _subjects(cases) + _modalities(cases)
    digests: list[tuple[Case, str, str]] = []
    people: dict[str, Case] = {}
    for done, case in enumerate(cases, 1):
        of_headers = header_problems(case, reading, people, roi)
        problems += of_headers
        if deep:
            problems += voxel_problems(case, reading, of_headers, digests, roi, suv_max, pet_max)
        if progress:
            progress(done, len(cases))
    problems += copies(digests, "voxels") if deep else copies(same_files(cases), "content")
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
    table = [("line", "subject", "modality", "problem", "remedy"), *(tuple(map(printable, row)) for row in rows)]
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
    out += doubtful_labels(case.label for case in cases)
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
    out = []
    for parts in ({case.id: case.split for case in cases}, folds):
        if found := leakage(cases, parts):
            out.append(Problem("error", 0, "", "", found, LEAK_REMEDY))
        elif found := leakage(cases, parts, zeros=True):
            out.append(Problem("warning", 0, "", "", found, LEAK_REMEDY))
    return out


def _subjects(cases: Sequence[Case]) -> list[Problem]:
    """Names that may be spellings of one person."""
    spelled: dict[str, dict[str, int]] = defaultdict(dict)
    for case in cases:
        spelled[folded(case.subject)].setdefault(case.subject, case.line)
    remedy = "If it is one person, spell it one way. A split that is drawn keeps both on one side."
    out = []
    for names in spelled.values():
        (first, at), *others = names.items()
        problem = f"may be {first} (line {at}): the names differ {SPELLING_DIFFERENCES}"
        out += [Problem("warning", line, subject, "", problem, remedy) for subject, line in others]
    return out


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


def _ranges(lines: Iterable[int]) -> str:
    """``2-21, 30`` for line numbers."""
    spans: list[list[int]] = []
    for line in sorted(set(lines)):
        if spans and line == spans[-1][1] + 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans)
