"""Clock times and dates with times as DICOM, ISO and people write them, and what passed between two of them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

MAX_HALF_LIVES = 10.0
"""An injection that lies longer before the scan is a mistake in a date or time."""

_DAY_S = 86400.0
_TIME = re.compile(r"(?:(\d{4})-?(\d\d)-?(\d\d)[ T]?)?(\d\d):?(\d\d)(?::?(\d\d)(\.\d+)?)?\s*(?:[+-]\d\d:?\d\d|Z)?")


def parse_time(value: Any) -> datetime | timedelta | None:
    """A clock time (as time since midnight) or a date with time, in DICOM's or ISO form; None if there is none.

    ``084500``, ``08:45``, ``08:45:00.5``, ``20240102084500``, ``2024-01-02T08:45:00``.

    Raises:
        ValueError: the text is something else.
    """
    text = str(value if value is not None else "").strip()
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a time; 08:45:00 or 2024-01-02T08:45:00 is expected")
    year, month, day, hour, minute, second, fraction = match.groups()
    clock = timedelta(hours=int(hour), minutes=int(minute), seconds=int(second or 0) + float(fraction or 0))
    if not year:
        return clock
    return datetime(int(year), int(month), int(day)) + clock


def joined(day: Any, time: Any) -> datetime | timedelta | None:
    """Two DICOM values, a date and a time, as one; the date may be absent."""
    return parse_time(f"{day or ''}{' ' if day else ''}{time}") if time else None


def elapsed_s(
    injections: list[datetime | timedelta | None], scan: datetime | timedelta, half_life_s: float
) -> float | None:
    """Seconds from injection to scan by the first injection time that is plausible; None if none is.

    A clock time without a date means the last time before the scan that the clock showed it, so an injection
    before midnight is one of the day before. A full date that lies after the scan or long before it (dates moved by
    anonymization) is passed over.
    """
    for injection in injections:
        if injection is None:
            continue
        if isinstance(injection, datetime) and isinstance(scan, datetime):
            seconds = (scan - injection).total_seconds()
        else:
            seconds = (clock(scan) - clock(injection)).total_seconds() % _DAY_S
        if 0 <= seconds <= MAX_HALF_LIVES * half_life_s:
            return seconds
    return None


def clock(when: datetime | timedelta) -> timedelta:
    """The time since midnight."""
    return when - datetime.combine(when.date(), datetime.min.time()) if isinstance(when, datetime) else when
