"""Reading the files of a cohort or run folder, tolerant to what is optional."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STATES = ("failed", "doubtful", "accepted", "ok")
"""Of cases, and verdicts on registrations (none of which is ``accepted``); the worst first."""

CAUSES = ("reading", "registration", "mask", "coverage")
"""Of doubt: what a scan holds, where it lies, the mask, and what the scan saw of the grid."""


def number(value: Any) -> float | None:
    """A finite number, or None for an empty cell, a word or NaN."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def read_pictures(cohort: Path, case: str) -> dict[str, np.ndarray]:
    """The arrays of a case's ``qc.npz``; empty where there is none or it cannot be read."""
    path = cohort / "cases" / case / "qc.npz"
    if Path(case).name != case or case in ("", "..") or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return {name: one for name, one in found.items() if one.ndim == 2 and one.size and one.dtype.kind in "iuf"}
    except Exception:  # of zip, zlib and numpy alike
        return {}


def status_of(row: Mapping[str, str]) -> str:
    """``failed``, ``doubtful``, ``accepted`` or ``ok``."""
    status = row.get("status", "")
    return "ok" if status == "done" else status if status in STATES else "failed"


def verdict_of(row: Mapping[str, str]) -> str | None:
    """The worst verdict on a registration of the case, its template included; None where nothing was registered."""
    found = [row.get(f"{name}_verdict") for name in (*modalities_of(row), row.get("template"))]
    return next((verdict for verdict in STATES if verdict in found), None)


def score_of(row: Mapping[str, str]) -> float:
    """The lowest registration score of the case, its template included; infinite where nothing was registered."""
    scores = [number(row.get(f"{name}_score")) for name in (*modalities_of(row), row.get("template"))]
    return min((score for score in scores if score is not None), default=math.inf)


def modalities_of(row: Mapping[str, str]) -> list[str]:
    """The modalities that the case has, the reference first."""
    names, reference = row.get("modalities", "").split(), row.get("reference", "")
    return sorted(names, key=lambda name: name != reference)


def reasons_of(row: Mapping[str, str]) -> list[str]:
    """Why the case failed or is doubtful; " | " lies between sentences, which may hold semicolons."""
    return [reason.strip() for reason in row.get("reasons", "").split(" | ") if reason.strip()]


def causes_of(row: Mapping[str, str]) -> list[str]:
    """What a doubtful or accepted case is, or was, in doubt for, of :data:`CAUSES`."""
    return row.get("causes", "").split()


def worst_first(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Failed, then doubtful, then accepted, then the others, each by rising score."""
    return sorted(rows, key=lambda row: (STATES.index(status_of(row)), score_of(row)))
