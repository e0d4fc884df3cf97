"""Writing files so that a reader never sees half of one, and reading JSON that others wrote."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed onto ``path`` on success and removed on error.

    The folder is made if needed. The temporary name keeps the ending, because writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: str | Path) -> None:
    """Write text (UTF-8, line ends as given), atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(obj: Any, path: str | Path) -> None:
    """Write JSON, atomically. Arrays become lists, paths text, data classes objects, NaN and infinity null."""
    write_text(json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def read_json(path: Path, expected: str) -> Any:
    """What is in a JSON file in UTF-8; ``expected`` says in an error what it should be.

    Raises:
        ReadError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ReadError(
            f"{path} is not JSON, or is damaged ({error}); {expected} is expected. Correct or remove it"
        ) from None


def read_fields(path: Path, expected: str) -> dict[str, Any]:
    """The fields in a JSON file; see :func:`read_json`.

    Raises:
        ReadError: as there, or it is no object.
    """
    found = read_json(path, expected)
    if not isinstance(found, dict):
        raise ReadError(f"{path} holds no fields; {expected} is expected. Correct or remove it")
    return found


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path, columns: Sequence[str] | None = None) -> None:
    """Write a table with a header line, atomically.

    Args:
        rows: one mapping a line; None and a missing key give an empty cell.
        path: the file to write.
        columns: order of the columns; the keys in the order of first appearance if None. Other keys are left out.
    """
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plain(obj: Any) -> Any:
    """What JSON knows, from what Python and numpy have."""
    if isinstance(obj, np.generic | np.ndarray):
        obj = obj.tolist()
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [_plain(value) for value in obj]
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Path):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {item.name: _plain(getattr(obj, item.name)) for item in dataclasses.fields(obj)}
    return obj
