"""What the tables of a BIDS tree say of a subject at a session: participants.tsv and the subjects' sessions.tsv."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmfusion.cohort.manifest import RESERVED, is_modality_key
from mmfusion.cohort.table import MISSING, Problem, as_rows, listed, no_column, read_table
from mmfusion.errors import ManifestError, few
from mmfusion.files import read_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_TAKEN_OVER = ("site", "split", "fold")  # mean the same in a manifest
_IN_UNITS = {"weight": ("weight_kg", "kg"), "height": ("height_cm", "cm")}


@dataclass(frozen=True)
class _Table:
    """A TSV file: its header, its rows by identifier (without ``sub-`` or ``ses-``), and the units of its columns."""

    header: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)


def session_facts(
    root: Path, rows: Sequence[tuple[str, str]], label: str | None, notes: list[str], named: Callable[[str], str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """What a :class:`~mmfusion.cohort.manifest.Case` takes beside its images: label, site, split, fold, covariates.

    ``sub-X/sub-X_sessions.tsv`` counts before ``participants.tsv``. ``weight`` and ``height`` become ``weight_kg`` and
    ``height_cm`` if the JSON of the table says kg and cm, and keep their names if not. Columns that would mean
    something else in a manifest are left out. Both is noted.

    Args:
        root: the BIDS tree.
        rows: subject and session, without ``sub-`` and ``ses-``.
        label: the column of the class; if None, column ``label`` where there is one.
        notes: what should be looked at is added here.
        named: gives the name that a subject has in messages.

    Raises:
        ReadError: a table or its JSON cannot be read.
        ManifestError: no table has the column of the class, or a table names somebody twice.
    """
    people = _read(root / "participants.tsv", "participants.tsv", "participant_id", "sub-", root, notes)
    visits = {
        subject: _read(
            root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv",
            f"sessions.tsv of subject {named(subject)}",
            *("session_id", "ses-", root, notes),
        )
        for subject in dict.fromkeys(subject for subject, _ in rows)
    }
    header = list(dict.fromkeys([*people.header, *(name for visit in visits.values() for name in visit.header)]))
    if label is not None and label not in header:
        if not header:
            raise ManifestError(f"the tree has no participants.tsv with a column {label}; give a table with --labels")
        other = "Choose one with --label, or give another table with --labels."
        raise ManifestError(listed([no_column(label, header, "participants.tsv", other)], "participants.tsv"))
    out = {}
    for subject, session in rows:
        values: dict[str, str] = {}
        for file, table, key in (("participants", people, subject), ("sessions", visits[subject], session)):
            names = _names(file, table, label or "label", notes)
            row = table.rows.get(key, {})
            values |= {name: "" for name in names.values() if name not in values}
            values |= {name: row[column] for column, name in names.items() if row.get(column, "") not in MISSING}
        given = {name: values.pop(name) for name in _TAKEN_OVER if name in values}
        out[subject, session] = {"label": values.pop("label", "") or None, **given, "covariates": values}
    if people.header:
        notes += _who_is_missing(people, dict.fromkeys(subject for subject, _ in rows), named)
    notes[:] = dict.fromkeys(notes)
    return out


def _read(path: Path, title: str, key: str, prefix: str, root: Path, notes: list[str]) -> _Table:
    """A table of the tree; an empty one if it is not there."""
    if not path.is_file():
        return _Table()
    header, lines, left_out = read_table(path)
    notes += [f"{title}: {one.problem}" for one in left_out]
    if key not in header:
        raise ManifestError(listed([no_column(key, header, title)], title))
    table, at = _Table([name for name in header if name != key]), dict[str, int]()
    for line, row in as_rows(header, lines, title):
        who = row.pop(key, "").removeprefix(prefix)
        if who in at:
            problem = f"{key} is that of line {at[who]} again"
            raise ManifestError(listed([Problem("error", line, "", "", problem, "Keep one row.")], title))
        table.rows[who], at[who] = row, line
    for description in (root / f"{key.split('_')[0]}s.json", path.with_suffix(".json")):  # the nearer one counts
        table.units.update(_units(description))
    return table


def _units(path: Path) -> dict[str, str]:
    """Units of columns by the JSON of a table (BIDS, "Tabular files")."""
    if not path.is_file():
        return {}
    found = read_fields(path, "an object of columns")
    return {name: str(about.get("Units", "")) for name, about in found.items() if isinstance(about, dict)}


def _names(file: str, table: _Table, label: str, notes: list[str]) -> dict[str, str]:
    """The manifest's name of each column that is taken."""
    out: dict[str, str] = {}
    for column in table.header:
        name, unit = _IN_UNITS.get(column.lower(), ("", ""))
        said = table.units.get(column, "")
        if column == label:
            out[column] = "label"
        elif name and said == unit and name in table.header:
            raise ManifestError(
                f"{file}.tsv has columns {column} (in {unit}) and {name}, which mean the same. Delete one of them."
            )
        elif name and said == unit:
            out[column] = name
        elif column not in _TAKEN_OVER and (column in RESERVED or is_modality_key(column)):
            notes.append(f"column {column} of {file}.tsv is left out: it means something else in a manifest; rename it")
        else:
            out[column] = column
        if name and out[column] == column:
            notes.append(
                f"column {column} of {file}.tsv is not taken as {name}: Units in {file}.json must be {unit}, "
                f"found {said or 'nothing'}"
            )
    return out


def _who_is_missing(people: _Table, subjects: Iterable[str], named: Callable[[str], str]) -> list[str]:
    unknown = [named(subject) for subject in subjects if subject not in people.rows]
    spare = [named(subject) for subject in people.rows if subject not in set(subjects)]
    notes = []
    if unknown:
        notes.append(f"participants.tsv has no row for {len(unknown)}: {few(unknown)}")
    if spare:
        notes.append(f"{len(spare)} of participants.tsv have no scan that is used: {few(spare)}")
    return notes
