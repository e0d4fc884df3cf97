"""What a cohort knows of its cases beside their scans: the manifest's other columns, tables, and measurements."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort.covariates import as_number
from mmfusion.cohort.manifest import TABLE_SUFFIXES, VOLUME_SUFFIXES
from mmfusion.errors import CohortError, ManifestError, ReadError, first_line
from mmfusion.files import CohortFolder, atomic_path, is_there, read_cells, read_rows, refuse_special, write_csv
from mmfusion.options import unknown
from mmfusion.prepare.measuring import features_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmfusion.cohort import Case
    from mmfusion.prepare.folder import Cohort

LARGEST_TABLE = 100_000
"""Values of one table: all of them become inputs of the network."""

_NOT_MEASURED = (
    *("case", "subject", "session", "label", "split", "fold", "status", "reasons", "causes", "reference"),
    *("modalities", "file", "key", "seconds", "site"),
)
_PATH = re.compile(r"^(/|\\\\|[A-Za-z]:[\\/])|[\\/][^\\/]*\.[A-Za-z]\w*$")  # absolute, or with an ending
_KEY = "column "  # before the name of a column in the file of tables, where some names have a meaning


def read_tables(cases: Sequence[Case], manifest: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """The tables that columns of a manifest name: column to case id to its values, float32, NaN where unknown.

    A column is one of tables if every cell that is not empty ends in ``.csv``, ``.tsv`` or ``.npy``; paths are relative
    to the manifest.

    Raises:
        ManifestError: a table is not there, holds anything but numbers, or has another shape than that of the first
            case; all problems are listed.
    """
    folder, tables, problems = Path(manifest).absolute().parent, dict[str, dict[str, np.ndarray]](), []
    for name in dict.fromkeys(name for case in cases for name in case.covariates):
        files = {case.id: cell for case in cases if (cell := case.covariates.get(name))}
        if not files or not all(cell.lower().endswith(TABLE_SUFFIXES) for cell in files.values()):
            continue
        first, tables[name] = "", {}
        for case, cell in files.items():
            try:
                values = _read_table(folder / cell)
                first = first or case
                expected = tables[name].setdefault(first, values).shape
                if values.shape != expected:
                    raise ReadError(f"it has shape {list(values.shape)}, that of case {first} {list(expected)}")
                tables[name][case] = values
            except ReadError as error:
                problems.append(f"case {case}: table {cell} in column {name} cannot be used: {error}")
    if problems:
        head = f"{Path(manifest).name} names tables of covariates; correct them, or drop their column"
        raise ManifestError("\n  ".join([f"{head}:", *problems]))
    return tables


def write_covariates(
    folder: Path,
    cases: Iterable[Case],
    tables: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    manifest: str | Path | None = None,
) -> None:
    """Write ``covariates.csv``, and the tables as ``covariates.npz``, into a cohort folder, in place of earlier ones.

    Args:
        folder: the cohort folder.
        cases: all cases; their covariates are kept as text, as the manifest has them. A column with a path in it is
            left out: it may name a patient.
        tables: of :func:`read_tables`, in place of their paths.
        manifest: that the cases are from, if they are from any; paths are relative to it.
    """
    cases, files, tables = list(cases), CohortFolder(folder), tables or {}
    where = None if manifest is None else Path(manifest).absolute().parent
    names = dict.fromkeys(name for case in cases for name in case.covariates)
    paths = {name for name in names if any(_is_path(case.covariates.get(name, ""), where) for case in cases)}
    columns = ["case", *(name for name in names if name not in {"case", *tables, *paths})]
    write_csv([{**case.covariates, "case": case.id} for case in cases], files.covariates, columns)
    if not tables:
        files.tables.unlink(missing_ok=True)
        return
    arrays = {}
    for name, values in tables.items():
        unknown_values = np.full(next(iter(values.values())).shape, np.nan, np.float32)
        arrays[_KEY + name] = np.stack([values.get(case.id, unknown_values) for case in cases])
    with atomic_path(files.tables) as file, file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def covariate_columns(cohort: Cohort) -> dict[str, dict[str, Any]]:
    """All that can be a covariate: column to case id to its value, text (empty: unknown) or a table ``[...]``.

    These are the manifest's other columns, ``site``, and of ``cases.csv`` every column of numbers that was measured; a
    column of the manifest stands before a measurement of the same name.

    Raises:
        CohortError: the cohort was prepared by a version that did not keep them.
        ReadError: a file is damaged.
    """
    files, remedy = CohortFolder(cohort.folder), "it keeps no covariates of its cases; prepare it again (tensors stay)"
    rows = {row["case"]: row for row in read_rows(files.covariates, remedy, ("case",))}
    if lost := [row["case"] for row in cohort.rows if row["case"] not in rows]:
        raise ReadError(f"{files.covariates} is damaged: it has no case {lost[0]:.60}; prepare the cohort again")
    columns: dict[str, dict[str, Any]] = {
        name: {case: row[name] for case, row in rows.items()} for name in next(iter(rows.values())) if name != "case"
    }
    columns |= {name: dict(zip(rows, values, strict=True)) for name, values in _stored(files.tables, len(rows)).items()}
    if any(row["site"] for row in cohort.rows):
        columns["site"] = {row["case"]: row["site"] for row in cohort.rows}
    for name in cohort.rows[0]:
        cells = {row["case"]: row[name] for row in cohort.rows}
        measured = name not in _NOT_MEASURED and not name.endswith("_notes") and any(cells.values())
        if measured and all(as_number(cell) is not None for cell in cells.values() if cell):
            columns.setdefault(name, cells)
    return columns


def choose_covariates(cohort: Cohort, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The columns of these names, of :func:`covariate_columns`.

    Raises:
        CohortError: the cohort has no such column; and see :func:`covariate_columns`.
        ReadError: a file is damaged.
    """
    columns = covariate_columns(cohort)
    for name in names:
        if name not in columns:
            raise CohortError(f"{cohort.folder}: {unknown('covariate', name, columns)}")
    return {name: columns[name] for name in names}


def case_covariates(case: Case, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """As :func:`covariate_columns`, of one case that is in no cohort: paths of tables are relative to this folder.

    Args:
        case: with its covariates as text.
        facts: what preparing measured, as in ``cases.csv``.

    Raises:
        ManifestError: see :func:`read_tables`.
    """
    measured = {name: str(value) for name, value in facts.items() if isinstance(value, int | float)}
    texts = {**measured, "site": case.site, **case.covariates}
    return {name: {case.id: text} for name, text in texts.items()} | read_tables([case], "case")


def features_for(cohort: Cohort, names: Iterable[str]) -> tuple[str, ...]:
    """The values of option ``features`` that new cases need for these covariates, no others."""
    return tuple(features_of([name for name in names if name in cohort.rows[0]]))


def covariates_hash(cohort: Cohort, names: Sequence[str]) -> str:
    """The hash of a cohort; with ``names`` it changes with the values of these covariates, too.

    Raises:
        CohortError, ReadError: see :func:`choose_covariates`.
    """
    if not names:
        return cohort.hash
    digest = hashlib.sha256(cohort.hash.encode())
    for name, values in choose_covariates(cohort, names).items():
        for case in sorted(values):
            value = values[case]
            digest.update(
                f"\n{name}|{case}|".encode() + (value.encode() if isinstance(value, str) else value.tobytes())
            )
    return digest.hexdigest()[:16]


def _is_path(cell: str, folder: Path | None) -> bool:
    """Whether a cell names a file: by how it begins or ends, or because it is in ``folder``."""
    file = cell.split("#")[0]
    if file.lower().endswith((*VOLUME_SUFFIXES, *TABLE_SUFFIXES)) or _PATH.search(file):
        return True
    # a folder may be called as a word (f), or as a number (1.5)
    return folder is not None and bool(set(file) & set("/\\.")) and as_number(file) is None and is_there(folder / file)


def _read_table(file: Path) -> np.ndarray:
    """Values ``[...]`` float32 of a file of numbers, NaN where unknown (ReadError)."""
    refuse_special(file)
    if file.suffix.lower() == ".npy":
        values: np.ndarray
        try:
            values = np.lib.format.open_memmap(file, mode="r")  # np.load would also open archives and pickles
        except Exception as error:  # numpy reads the header as Python, and says so in many ways
            raise ReadError(f"it is no array of NumPy ({first_line(error)[:100]})") from None
        if values.dtype.kind not in "fiub":
            raise ReadError(f"it holds {values.dtype}, numbers are expected")
    else:
        values = _read_text(file)
    if not 0 < values.size <= LARGEST_TABLE:
        raise ReadError(f"it has {values.size:,} values, 1 to {LARGEST_TABLE:,} are expected")
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    if np.isinf(values).any():
        raise ReadError("it holds infinite values; write NaN where one is not known")
    return values


def _read_text(file: Path) -> np.ndarray:
    """Values ``[R, C]`` of a text table, of which the first row may be a header (ReadError)."""
    try:
        rows = read_cells(file, "a table of numbers")
    except ReadError:
        raise ReadError("it is not there, or no table in UTF-8") from None
    numbers = [(line, [as_number(cell.strip()) for cell in cells], cells) for line, cells in rows]
    if numbers and all(value is None and cell.strip() for value, cell in zip(*numbers[0][1:], strict=True)):
        numbers = numbers[1:]  # names of columns
    width = len(numbers[0][1]) if numbers else 0
    for line, values, cells in numbers:
        if len(values) != width:
            raise ReadError(f"line {line} has {len(values)} cells, the first row {width}")
        if any(value is None and cell.strip() not in ("", "n/a") for value, cell in zip(values, cells, strict=True)):
            raise ReadError(f"line {line} holds text, numbers are expected")
    return np.array([[np.nan if value is None else value for value in values] for _, values, _ in numbers], float)


def _stored(file: Path, rows: int) -> dict[str, np.ndarray]:
    """The tables of a cohort by column, ``[rows, ...]``."""
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tables = {name.removeprefix(_KEY): arrays[name] for name in arrays.files}
        if any(len(values) != rows for values in tables.values()):
            raise ValueError(f"its tables do not have {rows} rows")
    except Exception as error:  # of zip and NumPy alike
        raise ReadError(f"{file} is damaged ({first_line(error)[:100]}); prepare the cohort again") from None
    return tables
