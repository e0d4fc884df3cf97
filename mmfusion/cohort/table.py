"""Tables as text, and what can be wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmfusion.errors import ManifestError, ReadError, printable
from mmfusion.files import is_there, plain_cell, read_cells
from mmfusion.options import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

MISSING = ("", "n/a")
"""What an unknown value looks like: an empty cell, or as in BIDS."""

_OTHER_NAMES = ("participantid", "subjectid", "patientid", "patient", "participant", "id", "case")


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


class Table(NamedTuple):
    """A table as text.

    Attributes:
        header: names of the columns.
        rows: line in the file, from 1, and cells of every row that is not blank.
        notes: what was left out of it.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    notes: list[Problem]


def read_table(path: Path) -> Table:
    """A table as people and programs write it (:func:`mmfusion.files.read_cells`), all cells stripped.

    Columns without a name are left out if no row has anything there, as a spreadsheet adds them; the first also if it
    numbers the rows, as pandas and R write them.

    An apostrophe that :func:`mmfusion.files.write_csv` put before a cell, so that no spreadsheet takes it for a
    formula, is taken away.

    Raises:
        ReadError: the file does not exist, is no text table, or is empty.
    """
    if not is_there(path, Path.is_file):
        raise ReadError(f"{path} does not exist or is not a file; a CSV or TSV table is needed.")
    expected = "a CSV or TSV table (in Excel 'CSV UTF-8')"
    rows = [(line, [plain_cell(cell.strip()) for cell in cells]) for line, cells in read_cells(path, expected)]
    if not rows:
        raise ReadError(f"{path} is empty; a header line with a column subject is needed.")
    (line, header), *rows = rows
    columns = list(zip_longest(*(cells for _, cells in rows), fillvalue=""))
    spare = {n for n, name in enumerate(header) if not name and (n >= len(columns) or not any(columns[n]))}
    notes = []
    if columns and not header[0] and _are_numbers(columns[0]):
        spare.add(0)
        notes.append(Problem("note", line, "", "", "the first column has no name and numbers the rows; left out"))

    def kept(cells: list[str]) -> list[str]:
        return [cell for n, cell in enumerate(cells) if n not in spare]

    return Table(kept(header), [(line, kept(cells)) for line, cells in rows], notes)


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether these number the rows: whole numbers, each once, also with gaps where rows were filtered or sorted."""
    return len(set(cells)) == len(cells) and all(re.fullmatch("0|[1-9][0-9]*", cell) for cell in cells)


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


def no_column(name: str, header: Sequence[str], file: str, otherwise: str = "") -> Problem:
    """The problem of a missing column, with the nearest one that is there, or what to do ``otherwise``."""
    near = nearest(name, reversed(header))
    if name == "subject":
        plain = {"".join(filter(str.isalnum, column.lower())): column for column in reversed(header)}
        near = next((plain[one] for one in ("subject", *_OTHER_NAMES) if one in plain), near)
    remedy = f"Did you mean '{near}'?" if near else otherwise or f"Add a column {name}."
    if near and name == "subject":
        remedy = f"Did you mean '{near}'? Rename it to subject."
    return Problem("error", 0, "", "", f"{file} has columns {', '.join(header)}; no column {name}", remedy)
