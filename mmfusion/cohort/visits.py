"""Which scans of a subject are of one visit."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mmfusion.io import Series

SESSION_DAYS = 30
"""Days between scans of one session, if its modalities differ; CT and PET must be of one day."""


def visits(series: Sequence[Series], subject: str, days: int, notes: list[str]) -> list[list[Series]]:
    """The sessions of one subject, in order of time, by the rule of :func:`~mmfusion.cohort.tree.index_tree`.

    Args:
        series: the usable images of the subject.
        subject: what notes call it.
        days: the largest distance within a session.
        notes: takes what was joined, and what CT and PET were not.
    """
    out: list[list[Series]] = []
    for scans in _days(series):
        last = out[-1] if out else []
        apart = _apart(scans, last)
        split = _apart(_of(scans, "CT"), _of(last, "PT")) or _apart(_of(scans, "PT"), _of(last, "CT"))
        fits = last and not {one.modality for one in scans} & {one.modality for one in last}
        one_study = bool({one.study_uid for one in scans} & {one.study_uid for one in last})
        near = apart is None or apart <= days or one_study
        if fits and near and not split:
            when = "of unknown distance in time" if apart is None else f"{apart} days apart"
            what = "scans of one study" if one_study else "studies"
            notes.append(f"subject {subject}: {what} {when} with different modalities count as one session")
            last += scans
            continue
        if fits and near:
            notes.append(
                f"subject {subject}: ct and pet are {split} days apart, so they are different sessions; only the "
                "manifest can join them in one row"
            )
        out.append(list(scans))
    return out


def _days(series: Iterable[Series]) -> list[list[Series]]:
    """The scans of one study and day, in order of time; those without a date are with the first of their study."""
    studies: dict[str, list[list[Series]]] = defaultdict(list)
    for one in sorted(series, key=lambda one: one.scanned.order):
        parts = studies[one.study_uid]
        fitting = next((part for part in parts if not _apart([one], part)), None)
        if fitting is None:
            parts.append([one])
        else:
            fitting.append(one)
    parts_by_day = [part for parts in studies.values() for part in parts]
    return sorted(parts_by_day, key=lambda part: (max(one.scanned.order for one in part), part[0].study_uid))


def _of(series: Iterable[Series], modality: str) -> list[Series]:
    return [one for one in series if one.modality == modality]


def _apart(series: Iterable[Series], others: Sequence[Series]) -> int | None:
    """The largest number of days between two; None if none is known."""
    every = [one.scanned.days_from(other.scanned) for one in series for other in others]
    return max((days for days in every if days is not None), default=None)
