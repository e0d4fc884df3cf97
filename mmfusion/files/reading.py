"""Reading JSON and tables that mmfusion wrote, or that others did: what is damaged is one sentence."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.errors import CohortError, MmfusionError, ReadError
from mmfusion.files.writing import plain_cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SEPARATOR_SAID = re.compile('"?sep=([,;|:\t])"?', re.IGNORECASE)  # no column of a table is called so
_MISREAD = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code raises that takes the content of a file for something else (torch says RuntimeError)."""


@contextmanager
def interpreting(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong while the content of a file of ours is understood into one sentence.

    A file that was cut, changed by hand, saved by a spreadsheet, or written by a newer version, can be wrong in more
    ways than can be listed; each of them is the same to the user.

    Args:
        path: the file.
        remedy: what to do.

    Raises:
        ReadError: something other than an :class:`MmfusionError` was raised.
    """
    try:
        yield
    except (MmfusionError, OSError):
        raise
    except _MISREAD as error:
        words = f"no entry {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ReadError(
            f"{path} is damaged, or was written by another version of mmfusion ({words[:200]}); {remedy}"
        ) from error


def is_special(path: Path) -> bool:
    """True for a pipe, a socket or a device, and links to them: reading one may never end."""
    return is_there(path) and not path.is_file() and not path.is_dir()


def refuse_special(path: Path) -> None:
    """Refuse what :func:`is_special`, before it is opened.

    Raises:
        ReadError: with what is expected.
    """
    if is_special(path):
        raise ReadError(f"{path} is a pipe, a socket or a device; a regular file or a folder is expected")


def read_text(path: Path, expected: str) -> str:
    """The text in a file in UTF-8, or in UTF-16 with a byte order mark (Excel's "Unicode text"), without the mark.

    Raises:
        ReadError: it cannot be read, is no regular file, or is in neither.
    """
    refuse_special(path)
    try:
        with path.open("rb") as stream:
            wide = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return path.read_text(encoding="utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(
            f"{path} is not text in UTF-8 ({error.reason}); {expected} is expected. Save it as UTF-8"
        ) from None
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror or error}); {expected} is expected") from None


def read_json(path: Path, expected: str) -> Any:
    """What is in a JSON file in UTF-8; ``expected`` says in an error what it should be.

    Raises:
        ReadError: the file cannot be read, or is not JSON.
    """
    try:
        content = json.loads(read_text(path, expected))
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair could be written nowhere
        return content
    except RecursionError:
        raise ReadError(f"{path} is nested too deeply; {expected} is expected. Correct or remove it") from None
    except ValueError as error:
        raise ReadError(
            f"{path} is not JSON, or is damaged ({error}); {expected} is expected. Correct or remove it"
        ) from None


def read_fields(path: Path, expected: str) -> dict[str, Any]:
    """The fields in a JSON file; see :func:`read_json`.

    Raises:
        ReadError: as there, or it is no object.
    """
    content = read_json(path, expected)
    if not isinstance(content, dict):
        raise ReadError(f"{path} holds no fields; {expected} is expected. Correct or remove it")
    return content


def optional_fields(path: Path, remedy: str = "") -> dict[str, Any]:
    """The fields in a JSON file of a cohort or run folder; without a remedy the file is optional and may be absent.

    Raises:
        CohortError: the file is absent and a remedy says what to run first.
        ReadError: see :func:`read_fields`.
    """
    return read_fields(path, "a file of mmfusion") if _is_wanted(path, remedy) else {}


def read_cells(path: Path, expected: str) -> list[tuple[int, list[str]]]:
    """Line (from 1) and cells of every row of a text table that is not blank; the first is the header.

    Columns are separated as a first line ``sep=;`` says (Excel); else by tabs if the header has one, or by
    commas or semicolons, whichever it has more of.

    Args:
        path: the file.
        expected: what it should be, for messages.

    Raises:
        ReadError: see :func:`read_text`; or the text is no table.
    """
    text = read_text(path, expected)
    if "\0" in text:
        raise ReadError(f"{path} is no table, it holds zero bytes; {expected} is expected. Save it as CSV in UTF-8")
    lines, before = io.StringIO(text, newline=""), 0
    header = text.split("\n", 1)[0]
    separator = "\t" if "\t" in header else max(",;", key=header.count)
    if said := _SEPARATOR_SAID.fullmatch(header.rstrip(" \r")):
        separator, before = said[1], 1
        lines.readline()
    rows, reader, line = [], csv.reader(lines, delimiter=separator), before + 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise ReadError(f"{path} is no table ({error}, line {line}); {expected} is expected. Write it again") from error
    return rows


def read_rows(path: Path, remedy: str = "", columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table of ours, as text; without a remedy the file is optional and may be absent.

    What spreadsheets make of it is understood, see :func:`read_cells`.

    Args:
        path: CSV.
        remedy: what to run if it is absent.
        columns: those that it must have.

    Raises:
        CohortError: the file is absent and a remedy says what to run first.
        ReadError: it is no text in UTF-8, no table, or lacks a column.
    """
    if not _is_wanted(path, remedy):
        return []
    header, *rows = [cells for _, cells in read_cells(path, "a table of mmfusion")] or [[]]
    names = [plain_cell(name.strip()) for name in header]
    if missing := [name for name in columns if name not in names]:
        raise ReadError(
            f"{path} has no column {', '.join(missing)}: it is damaged, or was written by another program; "
            "put back the file as mmfusion wrote it, or run the command again that wrote it"
        )
    return [
        {name: plain_cell(cell) for name, cell in zip_longest(names, cells[: len(names)], fillvalue="") if name}
        for cells in rows
    ]


def is_there(path: Path, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether a path is there; one that no file can have, as it is too long, is not."""
    with suppress(OSError):
        return kind(path)
    return False


def _is_wanted(path: Path, remedy: str) -> bool:
    if is_there(path, Path.is_file):
        return True
    if remedy:
        raise CohortError(f"{path.parent} has no {path.name}: {remedy}")
    return False
