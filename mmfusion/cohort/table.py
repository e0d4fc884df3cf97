"""Tables as text, and what can be wrong with them."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import ManifestError, ReadError, printable
from mmfusion.files import is_there, plain_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING = ("", "n/a")
"""What an unknown value looks like: an empty cell, or as in BIDS."""

_OTHER_NAMES = ("participant_id", "subject_id", "patient_id", "patient", "participant", "id", "case")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing, about a study.

    Attributes:
        level: ``error`` (the study cannot be used as it is), ``warning`` or ``note``.
        line: line in the manifest, from 1; 0 if it concerns the whole file.
        subject, modality: whom and what it concerns; empty if all.
        problem: what was found and what was expected, without a full stop.
        remedy: what to do.
    """

    level: str
    line: int
    subject: str
    modality: str
    problem: str
    remedy: str = ""

    def sentence(self, file: str = "manifest") -> str:
        """The problem as a message that stands alone."""
        who = f"subject {self.subject}: " if self.subject else ""
        where = f" ({file} line {self.line})" if self.line else ""
        return printable(f"{who}{self.problem}{where}. {self.remedy}".strip())


def listed(problems: Sequence[Problem], file: str) -> str:
    """One problem as its sentence, several as a list."""
    sentences = [problem.sentence(file) for problem in problems]
    if len(sentences) == 1:
        return sentences[0]
    return "\n  ".join([f"{printable(file)} has {len(sentences)} problems:", *sentences])


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line, cells) of every row that is not blank, all stripped text; the separator by the header.

    An apostrophe that :func:`mmfusion.files.write_csv` put before a cell, so that no spreadsheet takes it for a
    formula, is taken away.

    Raises:
        ReadError: the file does not exist, is not text, or is empty.
    """
    if not is_there(path, Path.is_file):
        raise ReadError(f"{path} does not exist or is not a file; a CSV or TSV table is needed.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{path} is not a text table in UTF-8; save it as 'CSV UTF-8'.") from error
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else max(",;", key=first.count)
    rows, start = [], 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((start, [plain_cell(cell.strip()) for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ReadError(f"{path} is not a text table: {error} (line {reader.line_num}).") from error
    if not rows:
        raise ReadError(f"{path} is empty; a header line with a column subject is needed.")
    return rows[0][1], rows[1:]


def header_problems(header: Sequence[str], *, named: bool = True) -> list[Problem]:
    """Columns of one name, and if ``named`` those without."""
    problems = []
    for name, count in Counter(header).items():
        if not name and named:
            problems.append(Problem("error", 1, "", "", "a column has no name", "Name it or delete it."))
        elif name and count > 1:
            problem = f"column {name} appears {count} times"
            problems.append(Problem("error", 1, "", "", problem, "Rename or delete the others."))
    return problems


def too_long(rows: Sequence[tuple[int, list[str]]], width: int) -> list[Problem]:
    """Rows with cells that no column has: those before them may be in the wrong column."""
    remedy = "Put cells that contain the separator in quotes."
    return [
        Problem("error", line, "", "", f"the row has {len(cells)} cells, the header has {width}", remedy)
        for line, cells in rows
        if any(cells[width:])
    ]


def as_rows(
    header: Sequence[str], rows: Sequence[tuple[int, list[str]]], file: str
) -> list[tuple[int, dict[str, str]]]:
    """Rows by the names of their columns; cells that are not there are empty.

    Raises:
        ManifestError: two columns of one name, or a row with more cells than columns.
    """
    if problems := [*header_problems(header, named=False), *too_long(rows, len(header))]:
        raise ManifestError(listed(problems, file))
    return [(line, dict(zip_longest(header, cells[: len(header)], fillvalue=""))) for line, cells in rows]


def no_column(name: str, header: Sequence[str], file: str) -> Problem:
    """The problem of a missing column, with the nearest one that is there."""
    lower = {column.lower(): column for column in reversed(header)}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    if name == "subject":
        near = [column for column in ("subject", *_OTHER_NAMES) if column in lower][:1] or near
    remedy = f"Did you mean '{lower[near[0]]}'?" if near else f"Add a column {name}."
    if near and name == "subject":
        remedy = f"Did you mean '{lower[near[0]]}'? Rename it to subject."
    return Problem("error", 0, "", "", f"{file} has columns {', '.join(header)}; no column {name}", remedy)
