"""Labels: from another table, joined by identifier and never by order; and those that are hardly meant as classes."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.cohort.table import MISSING, Problem, as_rows, listed, no_column, read_table
from mmfusion.errors import ManifestError, few
from mmfusion.io import clean_name, folded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmfusion.cohort.manifest import Case

_MOST_SHOWN = 10  # names in a message
_LIKE_NONE = ("na", "n/a", "nan", "none", "null", "nil", "<na>", "nat", ".", "-", "--", "?")
"""What programs and people write for an unknown value, in small letters; so are errors of Excel (``#N/A``)."""


def join_labels(
    cases: Sequence[Case],
    labels_file: str | Path,
    column: str,
    subject_column: str = "subject",
    *,
    named: Callable[[str], str] = str,
) -> tuple[list[Case], list[str]]:
    """Give cases the labels of a table, by identifier and never by order.

    If the table has a column ``session`` and the cases have sessions, both must match; else the subject alone.

    Args:
        cases: the cases.
        labels_file: CSV or TSV with one row a subject (or a subject and session).
        column: the column that holds the label.
        subject_column: the column that holds the subject.
        named: gives the name that a subject of the table has in ``cases``, as a pseudonym.

    Returns:
        The cases with labels (None where the table has none), and sentences that name who did not match, in
        either direction, with the nearest identifier.

    Raises:
        ReadError: the table does not exist or is not text.
        ManifestError: a column is missing or there twice, a row has more cells than the header, two rows of a
            subject contradict each other, a case already has another label, or no subject matches.
    """
    path = Path(labels_file)
    header, rows, left_out = read_table(path)
    needed = {subject_column: "", column: "Choose one with --label."}
    missing = [no_column(name, header, path.name, remedy) for name, remedy in needed.items() if name not in header]
    if missing:
        raise ManifestError(listed(missing, path.name))
    by_session = "session" in header and any(case.session for case in cases)
    labels: dict[tuple[str, ...], tuple[str, int]] = {}
    problems = []
    for line, row in as_rows(header, rows, path.name):
        subject = named(clean_name(row[subject_column]))
        key = (subject, row.get("session", "")) if by_session else (subject,)
        value = row.get(column, "")
        first, at = labels.setdefault(key, (value, line))
        if first != value:
            problem = f"{column} is {first!r} on line {at} and {value!r}"
            problems.append(Problem("error", line, " ".join(key).strip(), "", problem, "Keep one row a subject."))
    joined, unlabeled, used = [], [], set()
    for case in cases:
        subject = clean_name(case.subject)
        key = (subject, case.session) if by_session else (subject,)
        value = labels.get(key, ("", 0))[0]
        used.add(key)
        if value in MISSING:
            unlabeled.append(" ".join(key).strip())
        elif case.label not in (None, value):
            problem = f"label is {case.label!r} but {path.name} says {value!r}"
            problems.append(Problem("error", case.line, case.subject, "", problem, "Correct one of the two."))
        joined.append(replace(case, label=case.label if value in MISSING else value))
    if problems:
        raise ManifestError(listed(problems, path.name))
    spare = [" ".join(key).strip() for key in labels if key not in used]
    if cases and not used & labels.keys():
        raise ManifestError(
            f"no subject of the study is in column {subject_column} of {path.name}: the study has "
            f"{_with_nearest(unlabeled, spare)}; the table has {few(spare)}"
        )
    notes = [f"{path.name}: {one.problem}" for one in left_out]
    if unlabeled:
        notes.append(f"{path.name} has no {column} for {len(unlabeled)}: {_with_nearest(unlabeled, spare)}")
    if spare:
        notes.append(f"{len(spare)} of {path.name} are not in the study: {_with_nearest(spare, unlabeled)}")
    return joined, notes


def doubtful_labels(labels: Iterable[str | None], classes: Sequence[str] | None = None) -> list[Problem]:
    """Warnings about labels that are probably no classes of their own: words for "unknown", and spellings of one.

    Args:
        labels: that of each row, None if it has none.
        classes: the labels that were named as classes. These are meant, and others take no part; only another spelling
            of one of them is then in doubt.
    """
    count = Counter(label for label in labels if label is not None)
    found, spellings = [], defaultdict(list)
    for label, rows in sorted(count.items()):
        spellings[_spelling(label)].append(f"{label!r} ({rows} row{'s' * (rows != 1)})")
        if classes is None and (label.casefold() in _LIKE_NONE or label.startswith("#")):
            problem = f"label {spellings[_spelling(label)][-1]} looks like an unknown value, and counts as a class"
            remedy = "Leave the cell empty if it is unknown; if it is a class, name all classes in training (classes)."
            found.append(Problem("warning", 0, "", "", problem, remedy))
    meant = Counter(_spelling(label) for label in classes or () if label in count)
    for spelling, words in spellings.items():
        if len(words) > 1 and (classes is None or 0 < meant[spelling] < len(words)):
            problem = f"labels {' and '.join(words)} differ only in spelling"
            remedy = "Spell one class one way; if they are several, name all classes in training (classes)."
            found.append(Problem("warning", 0, "", "", problem, remedy))
    return found


def _spelling(label: str) -> str:
    """A label without case, width and repeated spaces; a number without zeros that mean nothing."""
    text = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return repr(float(text.replace(",", "."))) if re.fullmatch(r"[+-]?\d+([.,]\d*)?", text) else text


def _with_nearest(names: Sequence[str], candidates: Sequence[str]) -> str:
    """A few names, each with the nearest candidate in brackets."""

    def described(name: str) -> str:
        near = [other for other in candidates if folded(other) == folded(name)]
        near = near or difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
        return f"{name} (near: {near[0]})" if near else name

    return few([*map(described, names[:_MOST_SHOWN]), *names[_MOST_SHOWN:]], _MOST_SHOWN)
