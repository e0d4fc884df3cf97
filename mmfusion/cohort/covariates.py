"""Covariates as numbers: what each column means is fitted on the training subjects, and holds for every later case."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mmfusion.cohort.table import MISSING
from mmfusion.errors import CohortError, OptionError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOG = logging.getLogger(__name__)

MOST_LEVELS = 20
"""Different words of a category: each becomes an input of the network."""

KINDS = ("number", "category", "table")


@dataclass(frozen=True)
class Covariate:
    """How a column becomes inputs of a network: raw values, from which ``mean`` is taken, divided by ``sd``.

    Attributes:
        name: the column.
        kind: ``number``; ``category``, an input per level (of two levels, one: that of the second); or ``table``, an
            input per value.
        mean, sd: of each input over the training subjects; an input that is constant in them has ``sd`` 0, and is 0.
        levels: words of a category, sorted.
        shape: of a table.
    """

    name: str
    kind: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    levels: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def raw(self, value: Any) -> np.ndarray | None:
        """The inputs ``[W]`` of a value before they are standardized, NaN where unknown; None if it is not usable.

        Raises:
            CohortError: a table is expected and it is none, or has another shape.
        """
        if isinstance(value, str) and not is_known(value):
            return np.full(len(self.mean), np.nan)
        if self.kind == "table" and _shape(value) != self.shape:
            given = f"a table of shape {list(value.shape)}" if isinstance(value, np.ndarray) else "no table"
            raise CohortError(f"covariate {self.name} must be a table of shape {list(self.shape)}, found {given}")
        if self.kind != "table" and not isinstance(value, str):
            raise CohortError(f"covariate {self.name} must be a {self.kind}, found a table of shape {_shape(value)}")
        if self.kind == "table":
            return np.asarray(value, float).ravel()
        if self.kind == "number":
            number = as_number(value)
            return None if number is None else np.array([number])
        return _one_hot(value, self.levels) if value in self.levels else None


def fit_covariates(columns: Mapping[str, Mapping[str, Any]], subjects: Mapping[str, str]) -> tuple[Covariate, ...]:
    """What the columns mean, from the training cases: numbers and categories in the order given, then tables.

    Subjects count alike, however many cases they have.

    Args:
        columns: name to case id to its value: text, or a table.
        subjects: training case to its subject.

    Raises:
        OptionError: a column is unknown or constant in all training cases, or has too many different words.
    """
    layout = [_fit(name, {case: values[case] for case in subjects}, subjects) for name, values in columns.items()]
    return tuple(sorted(layout, key=lambda one: one.kind == "table"))


def encode_covariates(
    layout: Sequence[Covariate], columns: Mapping[str, Mapping[str, Any]], cases: Iterable[str]
) -> dict[str, np.ndarray]:
    """The inputs ``[C]`` float32 of each case, standardized, NaN where unknown.

    A column that is not there, a word that no training subject had, and text in place of a number count as unknown; a
    warning names the column.

    Raises:
        CohortError: a table has another shape than those of the training, or is none.
    """
    cases, parts = list(cases), []
    for one in layout:
        raw = np.full((len(cases), len(one.mean)), np.nan)
        strange = 0
        for row, case in zip(raw, cases, strict=True):
            if one.name in columns:
                values = one.raw(columns[one.name][case])
                strange += values is None
                row[...] = np.nan if values is None else values
        if one.name not in columns:
            _LOG.warning("covariate %s is in no column of these cases: it counts as unknown", printable(one.name))
        elif strange:
            _LOG.warning(
                "covariate %s has a value that no training subject had in %d of %d cases, where it counts as unknown",
                printable(one.name), strange, len(cases),
            )  # fmt: skip
        mean, sd = np.array(one.mean), np.array(one.sd)
        parts.append(np.where(sd > 0, (raw - mean) / np.where(sd > 0, sd, 1), np.where(np.isnan(raw), np.nan, 0)))
    inputs = np.concatenate(parts, 1).astype(np.float32) if parts else np.zeros((len(cases), 0), np.float32)
    return dict(zip(cases, inputs, strict=True))


def count_inputs(layout: Iterable[Covariate]) -> int:
    """C, the inputs of a network that these covariates make."""
    return sum(len(one.mean) for one in layout)


def as_layout(value: Any) -> tuple[Covariate, ...]:
    """A layout from what JSON holds of it (``dataclasses.asdict`` of each covariate).

    Raises:
        ValueError: with what is expected.
    """
    try:
        plain: list[dict[str, Any]] = [
            {name: tuple(part) if isinstance(part, list) else part for name, part in one.items()} for one in value
        ]
        layout = tuple(Covariate(**one) for one in plain)
        for one in layout:
            width = {"number": 1, "category": _width(one.levels), "table": math.prod(one.shape)}[one.kind]
            fits = isinstance(one.name, str) and len(one.mean) == len(one.sd) == width > 0
            if not fits or not np.isfinite([*one.mean, *one.sd]).all() or min(one.sd) < 0:
                raise ValueError
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError("a list of covariates, each with its name, kind, mean and sd") from None
    return layout


def as_number(text: str) -> float | None:
    """The number in a cell, None if it is none (``nan`` and ``inf`` are none, too)."""
    try:
        value = math.nan if "_" in text else float(text)  # Python reads 2024_01 as 202401
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_known(text: str) -> bool:
    """Whether a cell says anything."""
    return text not in MISSING and text.lower() != "nan"


def _fit(name: str, values: Mapping[str, Any], subjects: Mapping[str, str]) -> Covariate:
    """One column, from its values in the training cases."""
    texts = sorted({value for value in values.values() if isinstance(value, str) and is_known(value)})
    shape = next((_shape(value) for value in values.values() if not isinstance(value, str)), None)
    levels: tuple[str, ...] = ()
    if shape is not None:
        kind, width = "table", math.prod(shape)
    elif all(as_number(text) is not None for text in texts):
        kind, width = "number", 1
    else:
        kind, levels, width = "category", tuple(texts), _width(texts)
        if len(levels) > MOST_LEVELS:
            raise OptionError(
                f"covariate {name} holds text with {len(levels)} different values in the training cases, at most "
                f"{MOST_LEVELS} can be told apart; leave it out, or write numbers or fewer words"
            )
    blank = Covariate(name, kind, (0.0,) * width, (0.0,) * width, levels, shape or ())
    raw = np.stack([cast("np.ndarray", blank.raw(value)) for value in values.values()])  # [N, W]
    owners = np.array([subjects[case] for case in values])
    voices = np.stack([_mean(raw[owners == one]) for one in dict.fromkeys(owners)])  # [S, W]
    mean = _mean(voices)
    sd = np.sqrt(_mean((voices - mean) ** 2))
    # what rounding leaves of a constant is no deviation
    sd = np.where(sd > 1e-9 * np.maximum(np.abs(mean), 1e-30), sd, 0.0)
    if not np.nan_to_num(sd).any():
        known = "is unknown" if np.isnan(raw).all() else "is the same"
        raise OptionError(f"covariate {name} {known} in all training subjects, and tells nothing; leave it out")
    return Covariate(name, kind, _plain(mean), _plain(sd), levels, shape or ())


def _mean(values: np.ndarray) -> np.ndarray:
    """``[N, W]`` to ``[W]``: the mean of what is known, NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in np.nan_to_num(values))


def _width(levels: Sequence[str]) -> int:
    return 1 if len(levels) == 2 else len(levels)


def _one_hot(value: str, levels: Sequence[str]) -> np.ndarray:
    hot = np.array([float(value == level) for level in levels])
    return hot[1:] if len(levels) == 2 else hot


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, np.ndarray) else None
