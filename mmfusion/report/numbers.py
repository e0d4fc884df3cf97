"""The numbers of ``cases.csv`` that pages show, and which of them is the bad one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmfusion.options import OPTIONS
from mmfusion.report.files import modalities_of, number
from mmfusion.volume import HOT_SUV

_MISSED = 0.5  # of a body; more than that outside the grid is reported
_CLIPPED = 0.05  # of a mask or hot volume; more than that above what becomes 1 is reported


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
    Number("clipped", "clipped", _percent(1), max, zero=False),
)
"""In the order in which they are shown. A number that a cohort has no values of is not shown; a new column of
``cases.csv`` is one more line here."""


def missed_words(rows: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> str:
    """A sentence if the grid was to hold the body and misses much of it; empty if not."""
    shares = {row.get("case", "?"): number(row.get("foreground_outside")) or 0.0 for row in rows}
    bad = sum(share > _MISSED for share in shares.values())
    if not bad or options["center"] != "foreground" or options["to"]:
        return ""
    worst = max(shares, key=lambda case: shares[case])
    return (
        f"in {bad} of {len(shares)} cases more than half of the body falls outside the grid "
        f"({worst}: {shares[worst]:.0%}): larger --spacing or --size, or --center mask"
    )


def clipped_words(rows: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> str:
    """A sentence if much of the masks (in a cohort without masks: of the hot volumes) is clipped; empty if not."""
    masked = [row for row in rows if number(row.get("mask_outside")) is not None]
    region = "mask" if masked else f"hot volume (SUV of {HOT_SUV:g} or more; brain, heart and bladder count, too)"
    shares: dict[str, float] = {}
    for row in masked or rows:
        values = [number(row.get(f"{name}_clipped")) for name in modalities_of(row)]
        if known := [value for value in values if value is not None]:
            shares[row.get("case", "?")] = max(known)
    bad = sum(share > _CLIPPED for share in shares.values())
    name = "suv_max" if options.get("pet_max") is None else "pet_max"
    level = number(options.get(name))
    if not bad or level is None:
        return ""
    worst = max(shares, key=lambda case: shares[case])
    return (
        f"in {bad} of {len(shares)} cases more than {_CLIPPED:.0%} of the {region} lies above {name} "
        f"{level:g} and is clipped ({worst}: {shares[worst]:.0%}): larger {OPTIONS[name].flag}"
    )
