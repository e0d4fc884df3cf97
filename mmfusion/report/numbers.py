"""The numbers of ``cases.csv`` that pages show, and which of them is the bad one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmfusion.report.files import modalities_of, number


def _decimals(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


def _percent(digits: int) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.{digits}f} %"


@dataclass(frozen=True)
class Number:
    """A column ``<key>`` of ``cases.csv``, or columns ``<modality>_<key>``.

    Attributes:
        key: the name of the column, without its modality.
        title: above it on the page.
        written: how a value is written.
        worst: ``min`` or ``max``: which value of several is the bad one, and comes first when cases are sorted.
        zero: whether 0 is worth a word.
    """

    key: str
    title: str
    written: Callable[[float], str]
    worst: Callable[..., float | None]
    zero: bool = True

    def of(self, row: Mapping[str, str], name: str = "") -> str | None:
        """The value of one modality (or template), or without a name that of the whole case, as it is written."""
        return self._written(number(row.get(f"{name}_{self.key}" if name else self.key)))

    def of_case(self, row: Mapping[str, str]) -> str | None:
        """The worst value of a case, as it is written.

        A low score of the template counts, a long way to it does not: where a head lies in its scan says nothing.
        """
        template = [row.get("template", "")] if self.worst is min else []
        columns = [self.key, *(f"{name}_{self.key}" for name in [*modalities_of(row), *template])]
        found = [value for column in columns if (value := number(row.get(column))) is not None]
        return self._written(self.worst(found, default=None))

    def _written(self, value: float | None) -> str | None:
        return None if value is None or (value == 0 and not self.zero) else self.written(value)


NUMBERS = (
    Number("score", "score", _decimals(3), min),
    Number("similarity_after", "similarity", _decimals(3), min),
    Number("overlap", "overlap", _percent(0), min),
    Number("translation_mm", "translation, mm", _decimals(1), max),
    Number("rotation_deg", "rotation, °", _decimals(1), max),
    Number("motion_mm", "motion, mm", _decimals(1), max),
    Number("folding", "folding", _percent(2), max, zero=False),
    Number("coverage", "grid seen", _percent(0), min),
    Number("foreground_outside", "foreground outside", _percent(1), max),
    Number("mask_outside", "mask outside", _percent(1), max),
)
"""In the order in which they are shown. A number that a cohort has no values of is not shown; a new column of
``cases.csv`` is one more line here."""
