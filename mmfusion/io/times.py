"""Clock times and dates with times as DICOM, ISO and people write them, and what passed between two of them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mmfusion.io.pet_facts import (
    BEFORE_INJECTION_S,
    MAX_HALF_LIVES,
    USUAL_HALF_LIVES,
    describe_uptake,
    is_usual_uptake,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_DAY_S = 86400.0
_Time = TypeVar("_Time", bound="datetime | timedelta")
_TIME = re.compile(
    r"(?:(\d{4})-?(\d\d)-?(\d\d)[ T]?)?(\d\d?(?=:)|\d\d):?([0-5]\d)(?::?([0-5]\d|60)(\.\d+)?)?"
    r"\s*([+-]\d\d:?\d\d|Z)?"
)


def parse_time(value: Any) -> datetime | timedelta | None:
    """A clock time (as time since midnight) or a date with time, in DICOM's or ISO form; None if there is none.

    ``084500``, ``08:45``, ``8:45`` (of spreadsheets), ``08:45:00.5``, ``20240102084500``, ``2024-01-02T08:45:00``. A
    date with time keeps its offset from UTC, if it has one (``+0100``, ``+01:00``, ``Z``).

    Raises:
        ValueError: the text is something else, or a clock time with an offset, for which the date is needed.
    """
    text = str(value if value is not None else "").strip()
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if not match or int(match[4]) > 23:
        raise ValueError(f"'{text}' is not a time; 08:45:00 or 2024-01-02T08:45:00 is expected")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    clock = timedelta(hours=int(hour), minutes=int(minute), seconds=int(second or 0) + float(fraction or 0))
    if not year and offset:
        raise ValueError(f"'{text}' has an offset from UTC, but no date. Give both, as 2024-01-02T08:45:00+01:00")
    if not year:
        return clock
    return datetime(int(year), int(month), int(day), tzinfo=parse_offset(offset)) + clock


def date_time(day: Any, time: Any) -> str:
    """A date, which may be absent, and a time as one text for :func:`parse_time`; empty without a time."""
    return f"{day or ''}{' ' if day else ''}{time}" if time else ""


def past_midnight(times: Sequence[_Time]) -> list[_Time]:
    """Times of one scan with a day added to those after midnight, if they lie more than 12 hours apart.

    They are clock times, or have one date for all: that of the evening, which was not changed at midnight.
    """
    dates = {time.date() for time in times if isinstance(time, datetime)}
    if len(dates) > 1 or not times:
        return list(times)
    last, day = clock(max(times, key=clock)), timedelta(days=1)
    return [cast("_Time", time + day) if last - clock(time) > timedelta(hours=12) else time for time in times]


def parse_offset(value: Any) -> tzinfo | None:
    """An offset from UTC, as ``+0100``, ``-05:00`` or ``Z``; None if there is none.

    Raises:
        ValueError: the text is something else.
    """
    text = str(value if value is not None else "").strip().replace("Z", "+0000")
    if not text:
        return None
    match = re.fullmatch(r"([+-])(\d\d):?(\d\d)", text)
    if not match:
        raise ValueError("an offset from UTC must be like +0100")
    return timezone((1 if match[1] == "+" else -1) * timedelta(hours=int(match[2]), minutes=int(match[3])))


def elapsed_s(
    injections: list[datetime | timedelta | None], scan: datetime | timedelta, half_life_s: float, doubts: list[str]
) -> float:
    """Seconds from injection to scan by the first injection time that is plausible (:func:`is_usual_uptake`).

    A clock time without a date means the last time before the scan that the clock showed it, so an injection
    before midnight is one of the day before. A full date that contradicts the scan counts if it is the scan's own or
    its neighbor; one that lies farther off (dates moved by anonymization) is passed over, and so is one with an offset
    from UTC if the scan has none, or the other way round.

    Args:
        injections: the same injection, by the source that is believed first.
        scan: the time that the values refer to.
        half_life_s: of the radionuclide.
        doubts: where a contradiction that was decided, or an uptake of many half-lives by the clock alone, is added.

    Raises:
        ValueError: dates that agree say that the injection lies after the scan or too long before it; no time is
            plausible; the clock alone does not say the day, since the tracer lives longer than one; or only one of the
            two has an offset.
    """
    one_offset, contradiction = False, ""
    by_clock: float | None = None
    for injection in injections:
        if injection is None:
            continue
        if has_offset(injection) != has_offset(scan):
            one_offset = True
            continue
        if isinstance(injection, datetime) and isinstance(scan, datetime):
            seconds = (scan - injection).total_seconds()
            if not is_usual_uptake(seconds, half_life_s):
                if abs((scan.date() - injection.date()).days) <= 1:
                    contradiction = describe_uptake(seconds, half_life_s)
                continue
        elif MAX_HALF_LIVES * half_life_s > _DAY_S:
            if contradiction:
                continue
            raise ValueError(
                f"a half-life of {half_life_s:g} s lets the injection lie days before the scan, and one of them has no "
                "date that can be used. Give injection_time and acquisition_time with dates in the manifest"
            )
        else:
            seconds = (clock(scan) - clock(injection)).total_seconds() % _DAY_S
            seconds -= _DAY_S if seconds >= _DAY_S - BEFORE_INJECTION_S else 0
            if not is_usual_uptake(seconds, half_life_s):
                by_clock = seconds if seconds <= MAX_HALF_LIVES * half_life_s else by_clock
                continue
        if contradiction:
            doubts.append(
                f"date and time say that {contradiction}; the time without the date, which contradicts it, is used. "
                "Check both, or give injection_time in the manifest"
            )
        return seconds
    if contradiction:
        raise ValueError(f"{contradiction}. Give injection_time and acquisition_time in the manifest, with dates")
    if by_clock is not None:
        doubts.append(
            f"{describe_uptake(by_clock, half_life_s)}, by the clock alone. Check both times, or give injection_time "
            "and acquisition_time in the manifest, with dates"
        )
        return by_clock
    if one_offset:
        raise ValueError(
            "only one of injection and scan has an offset from UTC. Give injection_time and acquisition_time in the "
            "manifest, both with it or both without"
        )
    raise ValueError(
        f"the injection lies after the scan or more than {USUAL_HALF_LIVES:g} half-lives (of {half_life_s:g} s) before "
        "it. Correct the times or the half-life, or give injection_time and acquisition_time in the manifest"
    )


def has_offset(when: datetime | timedelta) -> bool:
    """Whether it is a date with time that says its offset from UTC."""
    return isinstance(when, datetime) and when.tzinfo is not None


def clock(when: datetime | timedelta) -> timedelta:
    """The time since midnight."""
    return (
        when - datetime.combine(when.date(), datetime.min.time(), when.tzinfo) if isinstance(when, datetime) else when
    )
