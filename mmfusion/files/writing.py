"""Writing files so that a reader never sees half of one, and so that a full disk is one sentence."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import MmfusionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

TEMPORARY = ".mmfusion-tmp-"
"""How the names of all temporary files and folders begin, which nobody else's do."""

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO)
_FORMULA = re.compile(r"'*[=+\-@]")


def temporary_path(path: Path) -> Path:
    """A new name beside ``path``, with its ending, because writers choose the format by it."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name[-100:]}")


@contextmanager
def writing(path: str | Path, remedy: str = "free space, or choose another place") -> Iterator[None]:
    """Turns what the system says against writing into one sentence.

    Args:
        path: what is written, for the message.
        remedy: what to do.

    Raises:
        OutputError: the disk is full or read-only, the folder may not be written to, a name is too long, and the like.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): {remedy}") from error


def refusal_of_the_system(error: BaseException | None) -> OutputError | None:
    """One sentence for a full disk, a missing permission and the like, which libraries meet where they write; None for
    any other error."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    place = error.filename or "a file"
    return OutputError(f"{place} cannot be written or read ({error.strerror}): free space, or check its permissions")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed onto ``path`` on success and removed on error.

    The folder is made if needed.

    Raises:
        OutputError: see :func:`writing`; also where a library that writes says so in an error of its own.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            except (MmfusionError, OSError):
                raise
            except Exception:
                _try_to_write(temporary)  # ITK and torch do not say that the disk is full
                raise
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _try_to_write(path: Path) -> None:
    """Raises OSError where nothing can be written beside ``path``."""
    trial = temporary_path(path)
    try:
        with trial.open("wb") as stream:
            stream.write(bytes(2**20))
            os.fsync(stream.fileno())
    finally:
        trial.unlink(missing_ok=True)


def write_bytes(content: bytes, path: str | Path) -> None:
    """Write bytes, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(text: str, path: str | Path) -> None:
    """Write text (UTF-8, line ends as given), atomically."""
    write_bytes(text.encode(), path)


def write_json(obj: Any, path: str | Path) -> None:
    """Write JSON, atomically; see :func:`json_text`."""
    write_text(json_text(obj), path)


def json_text(obj: Any) -> str:
    """JSON. Arrays become lists, paths text, data classes objects, NaN and infinity null."""
    return json.dumps(to_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path, columns: Sequence[str] | None = None) -> None:
    """Write a table with a header line, atomically.

    Text that a spreadsheet would take for a formula has an apostrophe in front, which
    :func:`mmfusion.files.plain_cell` takes away again.

    Args:
        rows: one mapping per line; None and a missing key give an empty cell.
        path: the file to write.
        columns: order of the columns; the keys in the order of first appearance if None. Other keys are left out.
    """
    rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(safe_cell, columns))
    writer.writerows([safe_cell(row.get(name)) for name in columns] for row in rows)
    write_text(stream.getvalue(), path)


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins with ``=``, ``+``, ``-`` or ``@`` gets an
    apostrophe in front (so does text that has apostrophes before one of these). Numbers stay as they are."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def plain_cell(text: str) -> str:
    """The text that :func:`safe_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def to_disk(file: Path) -> None:
    """Return when the content of a file is safe from a power cut."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def clear_temporary(folders: Iterable[Path]) -> None:
    """Remove the temporary files and folders that killed commands left directly in these folders."""
    for folder in folders:
        if not folder.is_dir():
            continue
        for left in [entry for entry in os.scandir(folder) if entry.name.startswith(TEMPORARY)]:
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path, ignore_errors=True)
            else:
                Path(left.path).unlink(missing_ok=True)


def to_plain(obj: Any) -> Any:
    """What JSON knows, from what Python and numpy have."""
    if isinstance(obj, np.generic | np.ndarray):
        obj = obj.tolist()
    if isinstance(obj, dict):
        return {str(key): to_plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [to_plain(value) for value in obj]
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Path):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {item.name: to_plain(getattr(obj, item.name)) for item in dataclasses.fields(obj)}
    return obj
