"""Fields of a sidecar as numbers and times; a ``ValueError`` names one that is something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.io.tags import number
from mmfusion.io.times import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta


def per_frame(fields: Mapping[str, Any], name: str, frames: int) -> list[float]:
    """A number for each frame; empty if the field is absent."""
    values = numbers_of(fields, name)
    if values and len(values) != frames:
        raise ValueError(f"{name} has {len(values)} values, but the file has {frames} frames. Correct it")
    return values


def numbers_of(fields: Mapping[str, Any], name: str) -> list[float]:
    """One number or several; empty if the field is absent."""
    value = value_of(fields, name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [_finite(one, name) for one in values]


def value_of(fields: Mapping[str, Any], name: str) -> Any:
    """A field; None if it is absent, null, empty or BIDS' ``n/a``."""
    value = fields.get(name)
    return None if value in ("", "n/a") else value


def number_of(fields: Mapping[str, Any], name: str) -> float | None:
    """One number; None if the field is absent."""
    value = value_of(fields, name)
    return None if value is None else _finite(value, name)


def flag_of(fields: Mapping[str, Any], name: str) -> bool | None:
    """True or false; None if the field is absent."""
    value = value_of(fields, name)
    word = str(value).strip().lower()  # in quotes and as a number, too, as tables become JSON
    if value is None or word in ("true", "1", "false", "0"):
        return None if value is None else word in ("true", "1")
    raise ValueError(f"{name} is {value!r:.30}; true or false is expected. Correct it")


def _finite(value: Any, name: str) -> float:
    """A number, also one in quotes, as tables become JSON."""
    size = None if isinstance(value, bool) else number(value) if isinstance(value, int | float | str) else None
    if size is None or not np.isfinite(size):
        raise ValueError(f"{name} is {value!r:.30}, not a number. Correct it")
    return size


def time_of(fields: Mapping[str, Any], name: str) -> datetime | timedelta | None:
    """A time of day, or date and time; None if the field is absent."""
    try:
        return parse_time(value_of(fields, name))
    except ValueError:
        raise ValueError(f"{name} is not a time; 08:45:00 is expected. Correct it") from None
