"""What one option is, and the check of a value; sentences for names that do not exist."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmfusion.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

NONE = "none"


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as in Python, YAML and JSON; on the command line with dashes.
        kind: ``str``, ``int``, ``float`` or ``bool``: the type of the value, or of each value of a list; ``dict``: a
            table of names and values, of which the values are checked where it is used.
        default: the value when none is given; None means "not set".
        help: one sentence for people, without its period.
        unit: physical unit of the number, if it has one.
        choices: allowed values (of a table: allowed names); empty allows all.
        count: None for a single value, 0 for a list of any length but zero, n for a list of exactly n.
        low, high: allowed range of a number, both ends included.
        rising: the values of a list must rise.
        point: beside the choices, a point as text: ``x,y,z``.
        each: one value for all modalities, or a table with one for each.
    """

    name: str
    kind: type
    default: Any
    help: str
    unit: str = ""
    choices: tuple[Any, ...] = ()
    count: int | None = None
    low: float = float("-inf")
    high: float = float("inf")
    rising: bool = False
    point: bool = False
    each: bool = False

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")

    def takes_away(self, value: Any) -> bool:
        """Whether ``value`` is the word ``none``, which takes away what a lower place gives.

        Where ``none`` is a value of the option itself, it is that value. An empty table in place of one value for each
        modality takes away, too; of a table, ``{}`` is a value: the table without entries.
        """
        if self.each and value == {}:
            return True
        words = value if self.count is not None and isinstance(value, (list, tuple)) and value else [value]
        return NONE not in self.choices and all(isinstance(word, str) and word == NONE for word in words)

    def check(self, value: Any) -> Any:
        """``value`` in this option's type.

        Raises:
            OptionError: the value has another type, is not allowed, or is out of range.
        """
        if value is None:
            return None
        if self.each and isinstance(value, Mapping):
            return {str(name): self._check_one(one) for name, one in value.items()}
        if self.count is None:
            return self._check_one(value)
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if self.choices:  # also as a,b
            values = [part for one in values for part in (one.split(",") if isinstance(one, str) else [one])]
        if not values or (self.count and len(values) != self.count):
            wanted = f"{self.count} values" if self.count else "at least one value"
            raise OptionError(f"option {self.name} takes {wanted}, found {value!r}")
        checked = [self._check_one(one) for one in values]
        if self.rising and checked != sorted(set(checked)):
            raise OptionError(f"option {self.name} takes rising values, found {' '.join(map(str, checked))}")
        if self.kind is str and len(set(checked)) < len(checked):
            raise OptionError(f"option {self.name} names something twice: {' '.join(checked)}")
        return checked

    def _check_one(self, value: Any) -> Any:
        wanted: Any = {float: (int, float), dict: Mapping}.get(self.kind, self.kind)
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise OptionError(
                f"option {self.name} takes {_KIND_WORDS[self.kind]}, found {value!r} ({type(value).__name__})"
            )
        value = self.kind(value)
        if self.point and (point := _as_point(value)):
            return point
        for one in value if self.kind is dict else [value]:
            if self.choices and one not in self.choices:
                raise OptionError(unknown(self.name.replace("_", " "), one, self.choices))
        if self.kind in (int, float) and not self.low <= value <= self.high:
            span = (
                f"lie between {self.low:g} and {self.high:g}"
                if self.high < float("inf")
                else f"be {self.low:g} or more"
            )
            raise OptionError(f"option {self.name} must {span}, found {value:g}")
        return value


def _as_point(text: str) -> str | None:
    """``x,y,z`` in one spelling; None if it is no point."""
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        return None
    return ",".join(map(repr, numbers)) if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    dict: "a table of names and values",
}


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """The sentence for a name that does not exist: ``unknown encoder 'resnet11'; did you mean 'resnet10'? ...``."""
    names = [str(one) for one in known]
    near = nearest(str(name), names)
    guess = f"; did you mean '{near}'?" if near else "."
    return f"unknown {what} '{name}'{guess} Known: {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that is spelled most like ``name``, in whatever case; None if none is near."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None
