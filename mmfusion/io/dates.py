"""On which day a scan was made, and how many days lie between two."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mmfusion.io.times import clock, parse_time

if TYPE_CHECKING:
    from pydicom import Dataset

DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime")
"""The tags that :func:`scan_date` reads."""

_ONE_VISIT = timedelta(hours=12)  # scans around midnight have two dates


@dataclass(frozen=True)
class ScanDate:
    """When a scan was made, as far as its header says.

    Attributes:
        study: StudyDate; collections may give it to scans of several days.
        acquired: day of the acquisition, else of the series.
        time: time of the acquisition.
    """

    study: date | None = None
    acquired: date | None = None
    time: timedelta | None = None

    @property
    def order(self) -> tuple[date, date]:
        """What sorts scans by time; those without a date come first."""
        study = self.study or date.min
        return self.acquired or study, study

    def days_from(self, other: ScanDate) -> int | None:
        """Days between two scans; None if unknown. 0 also around midnight, less than 12 hours apart.

        What differs counts: anonymization sets one of the dates to the same day for all, or takes one away.
        """
        pairs = ((self.study, other.study), (self.acquired or self.study, other.acquired or other.study))
        days = max((abs((one - two).days) for one, two in pairs if one and two), default=None)
        if days == 1 and self.acquired and other.acquired and self.time is not None and other.time is not None:
            return int(abs(self.acquired - other.acquired + self.time - other.time) >= _ONE_VISIT)
        return days


def scan_date(header: Dataset) -> ScanDate:
    """When the images of a DICOM file were made; values that are no dates count as absent."""
    whole = _time(header.get("AcquisitionDateTime"))
    if isinstance(whole, datetime):
        return ScanDate(_day(header.get("StudyDate")), whole.date(), clock(whole))
    acquired, time = _day(header.get("AcquisitionDate")), _time(header.get("AcquisitionTime"))
    return ScanDate(
        study=_day(header.get("StudyDate")),
        acquired=acquired or _day(header.get("SeriesDate")),
        time=time if acquired and isinstance(time, timedelta) else None,
    )


def _day(value: Any) -> date | None:
    try:
        return date.fromisoformat(str(value or "").strip().replace(".", ""))  # 2024.01.02 before DICOM 3
    except ValueError:
        return None


def _time(value: Any) -> datetime | timedelta | None:
    try:
        return parse_time(value)
    except ValueError:
        return None
