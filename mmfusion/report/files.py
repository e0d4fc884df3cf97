"""Reading the files of a cohort or run folder, tolerant to what is optional."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.errors import CohortError

STATES = ("failed", "doubtful", "ok")
"""Of cases, and verdicts on registrations; the worst first."""


def read_rows(path: Path, remedy: str = "") -> list[dict[str, str]]:
    """The rows of a CSV file; without a remedy the file is optional and may be absent.

    Raises:
        CohortError: the file is absent and a remedy says what to run first, or it is no text.
    """
    if not path.is_file():
        if remedy:
            raise CohortError(f"{path.parent} has no {path.name}: {remedy}")
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{path} is no CSV table ({error}); write the folder again") from error


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """The object in a JSON file; without a remedy the file is optional and may be absent.

    Raises:
        CohortError: the file is absent and a remedy says what to run first, or it holds no JSON object.
    """
    if not path.is_file():
        if remedy:
            raise CohortError(f"{path.parent} has no {path.name}: {remedy}")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CohortError(f"{path} is no JSON ({error}); write the folder again") from error
    if not isinstance(content, dict):
        raise CohortError(f"{path} holds a {type(content).__name__}, expected an object; write the folder again")
    return content


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
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


def status_of(row: Mapping[str, str]) -> str:
    """``failed``, ``doubtful`` or ``ok``."""
    return {"done": "ok", "ok": "ok", "doubtful": "doubtful"}.get(row.get("status", ""), "failed")


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


def worst_first(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Failed, then doubtful, then the others by rising score."""
    return sorted(rows, key=lambda row: (STATES.index(status_of(row)), score_of(row)))
