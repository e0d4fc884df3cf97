"""The manifest: one table that says who is in the study and where their volumes lie.

::

    subject,session,label,ct,pet,mr,mask,site,split,fold,weight_kg
    001,,0,scans/001_ct.nii.gz,scans/001_pet.nii.gz,,,a,train,,71.5

A row is a case: one subject at one session. ``subject`` is required, everything else is optional. Cells are text:
``001`` and ``NA`` stay what they are. An empty cell (or ``n/a``, as in BIDS) of a modality is a missing modality.
Paths are relative to the folder of the manifest, or absolute.
"""

from __future__ import annotations

import difflib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmfusion.cohort.inputs import misplaced
from mmfusion.cohort.table import MISSING, Problem, header_problems, listed, no_column, read_table, too_long
from mmfusion.errors import ManifestError, ReadError
from mmfusion.files import is_special, is_there, write_csv
from mmfusion.io import VOLUMES, split_series

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MODALITIES = ("ct", "pet", "mr", "spect", "t1", "t1gd", "t1ce", "t2", "flair", "pd", "adc", "dwi", "swi")
"""Column names that always are modalities, also with ``_`` and something behind them, in the order of writing."""

VOLUME_SUFFIXES = (*VOLUMES, ".dcm")
"""How the names of volume files end."""

TABLE_SUFFIXES = (".csv", ".tsv", ".npy")
"""How files end that are tables of covariates, see :func:`mmfusion.prepare.read_tables`."""

PARTS = ("train", "validation", "test")
"""The words of column ``split``."""

LONGEST_ID, LONGEST_NAME = 150, 60
"""Characters of a case's id and of a modality's name: both become names of files, which may have 255."""

_FILE_NAME = re.compile(rf"\w[\w.+-]{{,{LONGEST_NAME - 1}}}")

RESERVED = ("subject", "session", "label", "mask", "roi", "reference_region", "site", "split", "fold")


@dataclass(frozen=True)
class Case:
    """One row of the manifest: a subject at a session.

    Attributes:
        subject: the person, by the study's identifier.
        session: the visit; empty if there is only one.
        label: the class as text, None if unknown.
        images: the modalities that are present, each a path as :func:`mmfusion.io.split_series` reads it.
        mask: a mask (NIfTI, RTSTRUCT or SEG) that belongs to the images, a path as in ``images``: with ``#NAME`` if
            one of its structures is meant.
        site: where the scans were made.
        split: ``train``, ``validation``, ``test`` or empty.
        fold: number of the cross-validation fold as text, or empty.
        covariates: every other column, as text; empty where unknown.
        line: line in the file, from 1; 0 if the case comes from no file.
        roi: which structures of the mask are meant, if its path does not say it; as in
            :func:`mmfusion.io.load_mask`.
        reference_region: label map and label (``FILE#LABEL``) that PET is to be a ratio to, with ``suvr``.
    """

    subject: str
    session: str = ""
    label: str | None = None
    images: dict[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    site: str = ""
    split: str = ""
    fold: str = ""
    covariates: dict[str, str] = field(default_factory=dict)
    line: int = 0
    roi: str = ""
    reference_region: Path | None = None

    @property
    def id(self) -> str:
        """``subject`` or ``subject_session``, safe as the name of a folder: ``[A-Za-z0-9._-]``, no leading dot."""
        name = f"{self.subject}_{self.session}" if self.session else self.subject
        return re.sub(r"^\.|[^A-Za-z0-9._-]", "_", name)


def read_manifest(
    path: str | Path, modalities: Sequence[str] | None = None, *, files_must_exist: bool = True
) -> list[Case]:
    """Read a manifest: CSV, also as spreadsheets and pandas write it, see :func:`~mmfusion.cohort.table.read_table`.

    Which columns are modalities: those named in ``modalities``. If None, of the columns that have no meaning of
    their own (:data:`RESERVED`) and whose name does not end in ``mask`` or ``seg``: those with a known key
    (:data:`MODALITIES`, in any case), those that begin with a known key and ``_`` unless they hold numbers, and those
    whose cells all look like paths (the ending of a volume file, or the name of an existing file or folder, but for
    tables as ``.csv``). The rest are covariates.

    Args:
        path: the manifest.
        modalities: columns to read as modalities, in this order.
        files_must_exist: refuse paths that do not exist. Switch off for a prepared cohort whose sources moved.

    Raises:
        ReadError: the manifest does not exist or is not text.
        ManifestError: anything wrong in it; all problems are listed, with their lines.
    """
    return read_study(path, modalities, files_must_exist=files_must_exist)[0]


def read_study(
    path: str | Path, modalities: Sequence[str] | None = None, *, files_must_exist: bool = True
) -> tuple[list[Case], list[str]]:
    """As :func:`read_manifest`, with the modalities that some case has, in the order of the columns (or as given)."""
    manifest = parse_manifest(path, modalities, files_must_exist=files_must_exist)
    if errors := [problem for problem in manifest.problems if problem.level == "error"]:
        raise ManifestError(listed(errors, Path(path).name))
    return manifest.cases, [name for name in manifest.modalities if any(name in one.images for one in manifest.cases)]


class Manifest(NamedTuple):
    """What a manifest holds: the cases that could be read, the modality columns in order, problems and notes."""

    cases: list[Case]
    modalities: list[str]
    problems: list[Problem]


def parse_manifest(
    path: str | Path, modalities: Sequence[str] | None = None, *, files_must_exist: bool = True
) -> Manifest:
    """As :func:`read_manifest`, but problems are returned, not raised.

    Raises:
        ReadError: the manifest does not exist or is not text.
    """
    path = Path(path)
    if words := misplaced(path, "manifest"):
        raise ReadError(words)
    header, rows, notes = read_table(path)
    problems = _header_problems(header, path.name) + notes
    if "subject" not in header:
        return Manifest([], [], problems)
    width = len(header)
    problems += too_long(rows, width)
    table = [
        (line, dict(zip(reversed(header), reversed((cells + [""] * width)[:width]), strict=True)))
        for line, cells in rows  # reversed: of two columns with one name the first counts
        if not any(cells[width:])
    ]
    found = [name for name in dict.fromkeys(header) if _is_modality(name, table, path.parent)]
    wanted = found if modalities is None else list(modalities)
    problems += [no_column(name, header, path.name) for name in wanted if name not in header]
    modalities = [name for name in wanted if name in header]
    problems += [_no_file_name(name) for name in modalities if not _FILE_NAME.fullmatch(name)]
    covariates = [name for name in header if name and name not in {*RESERVED, *found, *modalities}]
    if not modalities:
        problem = f"{path.name} has columns {', '.join(header)}; none of them is a modality"
        remedy = "Name a column ct, pet or mr, or say which columns are modalities with --modalities."
        problems.append(Problem("error", 1, "", "", problem, remedy))
    if not rows:
        problems.append(Problem("error", 1, "", "", f"{path.name} has no case, only a header"))
    cases = []
    for line, row in table:
        case, wrong = _case(line, row, modalities, covariates, path.parent, files_must_exist)
        problems += wrong
        if case.subject:
            cases.append(case)
    problems += _duplicates(cases)
    return Manifest(cases, modalities, sorted(problems, key=lambda problem: problem.line))


def write_manifest(cases: Iterable[Case], path: str | Path, modalities: Sequence[str] | None = None) -> None:
    """Write cases as a manifest (CSV) that :func:`read_manifest` reads back; atomically.

    Paths become relative to the manifest's folder unless the two share only the root of the file system.

    Args:
        cases: the rows, in this order.
        path: the file to write.
        modalities: order of the modality columns; the usual order if None.
    """
    cases, path = list(cases), Path(path)
    if modalities is None:
        modalities = order_modalities(name for case in cases for name in case.images)
    optional = [name for name in ("session", "label", "site", "split", "fold") if any(getattr(c, name) for c in cases)]
    covariates = list(dict.fromkeys(name for case in cases for name in case.covariates))
    files = [name for name in ("mask", "reference_region") if any(getattr(case, name) for case in cases)]
    roi = ["roi"] if any(case.roi for case in cases) else []
    folder = path.parent.absolute()
    header = ["subject", *optional, *modalities, *files, *roi, *covariates]
    rows = []
    for case in cases:
        row = {"subject": case.subject, **{name: getattr(case, name) or "" for name in optional}}
        row |= {name: _relative(file, folder) for name, file in case.images.items() if name in modalities}
        row |= {name: _relative(file, folder) for name in files if (file := getattr(case, name))}
        row |= dict.fromkeys(roi, case.roi)
        rows.append(row | case.covariates)
    write_csv(rows, path, header)


def order_modalities(names: Iterable[str]) -> list[str]:
    """Each name once: in the order of :data:`MODALITIES` by how they begin, then by name."""

    def key(name: str) -> tuple[int, str]:
        stem = name.lower().split("_")[0]
        return (MODALITIES.index(stem) if stem in MODALITIES else len(MODALITIES), name)

    return sorted(set(names), key=key)


def _header_problems(header: list[str], file: str) -> list[Problem]:
    problems = header_problems(header)
    if "subject" not in header:
        problems.append(no_column("subject", header, file))
    return problems


def is_modality_key(name: str) -> bool:
    """True for a known key (:data:`MODALITIES`) or one with ``_`` and something behind it, in any case."""
    return name.lower().split("_")[0] in MODALITIES


def _is_modality(name: str, table: Sequence[tuple[int, dict[str, str]]], folder: Path) -> bool:
    """The rule of :func:`read_manifest` for one column."""
    key = name.lower()
    if not name or name in RESERVED or key.endswith(("mask", "seg")):
        return False
    if key in MODALITIES:
        return True
    cells = [row[name] for _, row in table if row[name] not in MISSING]
    if is_modality_key(name):
        return not (cells and all(_is_number(cell) for cell in cells))
    return bool(cells) and all(_looks_like_path(cell, folder) for cell in cells)


def _looks_like_path(cell: str, folder: Path) -> bool:
    path = split_series(_path(cell, folder))[0]
    if cell.lower().endswith(TABLE_SUFFIXES):
        return False
    return path.name.lower().endswith(VOLUME_SUFFIXES) or (not _is_number(cell) and is_there(path))


def _path(cell: str, folder: Path) -> Path:
    """The path in a cell, relative to ``folder``; with ``/`` in place of backslashes if only that exists."""

    def located(text: str) -> Path:
        path = Path(text)
        with suppress(RuntimeError):  # nobody is called as it says behind ~
            path = path.expanduser()
        return folder.absolute() / path

    path, plain = located(cell), located(cell.replace("\\", "/"))
    if plain != path and not is_there(split_series(path)[0]) and is_there(split_series(plain)[0]):
        return plain
    return path


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _case(
    line: int,
    row: dict[str, str],
    modalities: Sequence[str],
    covariates: Sequence[str],
    folder: Path,
    files_must_exist: bool,
) -> tuple[Case, list[Problem]]:
    """One row as a case, and what is wrong with it."""
    subject, problems = row["subject"], []

    def wrong(modality: str, problem: str, remedy: str) -> None:
        problems.append(Problem("error", line, _short(subject), modality, problem, remedy))

    def value(name: str) -> str:
        cell = row.get(name, "")
        return "" if cell in MISSING else cell

    def located(name: str, otherwise: str) -> Path | None:
        if not value(name):
            return None
        path = _path(value(name), folder)
        if "\\" in value(name) and "\\" not in str(path):
            problems.append(Problem("note", line, _short(subject), name, "backslashes in the path are read as /"))
        if files_must_exist and not is_there(split_series(path)[0]):
            kind = "file" if value(name).lower().endswith(VOLUME_SUFFIXES) else "path"
            wrong(name, f"{name} {kind} {_short(value(name))} does not exist", otherwise)
        elif files_must_exist and is_special(split_series(path)[0]):
            wrong(name, f"{name} path {value(name)} is a pipe, a socket or a device, and no regular file", otherwise)
        return path

    if not subject:
        wrong("", "the row has no subject", "Give the subject or drop the row.")
    images = {}
    for name in modalities:
        label = name.upper() if name in MODALITIES else name
        remedy = f"Fix the path, leave the cell empty to go on without {label} for this subject, or drop the row."
        if path := located(name, remedy):
            images[name] = path
    if modalities and not images:
        wrong("", f"the row has no modality (none of {', '.join(modalities)})", "Give one or drop the row.")
    split, fold = value("split").lower(), re.sub(r"\.0+$", "", value("fold"))  # a float where other rows have none
    if split not in ("", *PARTS):
        near = difflib.get_close_matches(split, PARTS, n=1, cutoff=0.3)
        guess = f"Did you mean {near[0]}? " if near else ""
        wrong("", f"split is {split!r}", f"{guess}Known: {', '.join(PARTS)}.")
    if fold and not fold.isdecimal():
        wrong("", f"fold is {fold!r}", "Folds are numbered 0, 1, 2 and so on.")
    case = Case(
        subject=subject,
        session=row.get("session", "") if row.get("session") != "n/a" else "",
        label=value("label") or None,
        images=images,
        mask=located("mask", "Fix the path or leave the cell empty."),
        roi=value("roi"),
        reference_region=located("reference_region", "Fix the path or leave the cell empty."),
        site=value("site"),
        split=split,
        fold=str(int(fold)) if fold.isdecimal() else fold,
        covariates={name: value(name) for name in covariates},
        line=line,
    )
    if case.roi and case.mask and split_series(case.mask)[1]:
        wrong("mask", "the mask names a structure behind #, and column roi names one", "Name it in one place.")
    if len(case.id) > LONGEST_ID:
        wrong("", f"subject and session have {len(case.id)} characters, more than {LONGEST_ID}", "Shorten them.")
    return case, problems


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_ID else f"{text[:40]}..."


def _no_file_name(name: str) -> Problem:
    """The problem of a modality whose name cannot be that of a file, nor a word of a list."""
    words = f"column {_short(name)} is a modality, and no file can be called so"
    remedy = f"Rename it: letters, digits, '.', '_', '+' and '-', at most {LONGEST_NAME} characters."
    return Problem("error", 1, "", "", words, remedy)


def _duplicates(cases: Sequence[Case]) -> list[Problem]:
    """Rows that claim the same subject and session, or the same folder name."""
    problems: list[Problem] = []
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.id.lower(), case)  # many disks do not tell capital letters from small ones
        if other is case:
            continue
        if (other.subject, other.session) == (case.subject, case.session):
            visit = f"session {case.session}" if case.session else "the same session"
            problem = f"{visit} is already on line {other.line}"
            remedy = "A row is one subject at one session: tell visits apart in column session."
        else:
            problem = f"the row would share the folder name {case.id} with line {other.line}"
            remedy = "Rename one: letters, digits, '.', '_' and '-' stay, anything else becomes '_'."
            if other.id != case.id:
                remedy = "Rename one: many disks take capital and small letters of a name as the same."
        problems.append(Problem("error", case.line, case.subject, "", problem, remedy))
    return problems


def _relative(path: Path, folder: Path) -> str:
    path = path.absolute()
    shared = os.path.commonpath([path, folder]) if path.drive == folder.drive else path.anchor
    return Path(path if shared == path.anchor else os.path.relpath(path, folder)).as_posix()
