"""What the fields of our JSON files must be: a check each, which gives the value in its type or says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmfusion.errors import ReadError

Check = Callable[[Any], Any]
"""Takes what JSON holds, and returns it in its type or raises ValueError."""


def check_fields(
    path: Path | str, fields: Mapping[str, Any], checks: Mapping[str, Check], remedy: str
) -> dict[str, Any]:
    """The fields of a file, each checked; all of them must be there, and no others.

    Args:
        path: the file, or a part of it, for the message.
        fields: what it holds.
        checks: by name, one for each field that this version knows.
        remedy: what else helps, beside an update: ``train again``.

    Raises:
        ReadError: a field is absent, unknown, or of another type.
    """
    if others := sorted(set(fields) - set(checks)):
        raise ReadError(
            f"{path} has {', '.join(others[:5])}, which this version does not know: it was written by a newer version "
            f"of mmfusion; update mmfusion, or {remedy}"
        )
    if missing := [name for name in checks if name not in fields]:
        raise ReadError(
            f"{path} lacks {', '.join(missing[:5])}: it is damaged, or was written by another version of mmfusion; "
            f"{remedy}"
        )
    out = {}
    for name, check in checks.items():
        try:
            out[name] = check(fields[name])
        except ValueError as error:
            raise ReadError(
                f"{path}: {name} must be {error}, found {fields[name]!r:.60}: it is damaged, or was written by "
                f"another version of mmfusion; {remedy}"
            ) from None
    return out


def a_text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def a_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def a_number(value: Any) -> float:
    """A finite number."""
    if not _is_number(value):
        raise ValueError("a number")
    return float(value)


def a_positive_number(value: Any) -> float:
    """A number above zero."""
    if not _is_number(value) or value <= 0:
        raise ValueError("a number above 0")
    return float(value)


def a_table(value: Any) -> dict[str, Any]:
    """A table of names and values."""
    if not isinstance(value, dict):
        raise ValueError("a table of names and values")
    return value


def some_names(value: Any) -> tuple[str, ...]:
    """A list of names, at least one, each once."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError("a list of names")
    if len(set(value)) < len(value):
        raise ValueError("a list of names, each once")
    return tuple(value)


def some_positive_numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers above zero."""
    if not isinstance(value, list) or not value:
        raise ValueError("a list of numbers above 0")
    return tuple(a_positive_number(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def or_null(check: Check) -> Check:
    """Null, or what another check takes."""

    def checked(value: Any) -> Any:
        return None if value is None else check(value)

    return checked
