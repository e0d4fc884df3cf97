"""What a person is told of a cohort when a command ends: how many cases, and what should be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmfusion.options import OPTIONS
from mmfusion.report.numbers import clipped_words, missed_words

if TYPE_CHECKING:
    from collections.abc import Container

    from mmfusion.prepare.folder import Cohort


def cohort_counts(cohort: Cohort) -> str:
    """How many cases are in each state; of accepted ones only if there are some."""
    counts = {status: cohort.count(status) for status in ("done", "doubtful", "accepted", "failed")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status != "accepted")


def cohort_warnings(cohort: Cohort) -> list[str]:
    """A sentence where much of the body lies outside the grid, and one where much of the hot volume is clipped."""
    return list(filter(None, (missed_words(cohort.rows, cohort.options), clipped_words(cohort.rows, cohort.options))))


def kept_words(cohort: Cohort, chosen: Container[str]) -> str:
    """A sentence if the cohort kept its own ``suv_max`` because none was chosen, and that is not the default."""
    kept: Any = cohort.options["suv_max"]
    default = OPTIONS["suv_max"].default
    if "suv_max" in chosen or kept == default:
        return ""
    return f"suv_max {kept:g} is kept, which this cohort was prepared with; the default is {default:g} (--suv-max)"
