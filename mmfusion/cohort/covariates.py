"""Covariates as numbers: what each column means is fitted on the training subjects, and holds for every later case."""

from __future__ import annotations

import math


def as_number(text: str) -> float | None:
    """The number in a cell, None if it is none (``nan`` and ``inf`` are none, too)."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
