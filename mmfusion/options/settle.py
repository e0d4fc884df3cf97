"""The one place where values of options are put together: who gave what, and what is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmfusion.errors import OptionError
from mmfusion.options.option import NONE, unknown
from mmfusion.options.table import GROUPS, OPTIONS
from mmfusion.systems import SYSTEMS, System


@dataclass(frozen=True)
class Settings:
    """Options, put together.

    Attributes:
        used: the value of every option of the group: what was chosen, or the built-in default.
        chosen: the values that were given and not taken away again, for functions that have defaults of their own; what
            a system settles is among them, its name is not.
        given: for each option that was given, ``{"value": ..., "from": ...}``: as the highest place that names it has
            it, and that place. What takes away (``none``) stands here, too.
    """

    used: dict[str, Any]
    chosen: dict[str, Any]
    given: dict[str, dict[str, Any]]


def settle(
    group: str | tuple[str, ...],
    *places: tuple[str, Mapping[str, Any]],
    systems: Mapping[str, System] = SYSTEMS,
) -> Settings:
    """Put the options of a group together: built-in defaults, below what each place gives, the highest last.

    None means "not given". The word ``none`` takes away what lower places give, see :meth:`Option.takes_away`. The row
    of a system stands directly below the options of the highest place that names one; of its options, those that the
    group does not have are left out.

    Args:
        group: a key of :data:`GROUPS`, or several.
        places: name and options of each, the lowest first: ``("file", {...}), ("command line", {...})``.
        systems: the rows that option ``system`` names.

    Raises:
        OptionError: a name does not exist in the group, or a value does not fit.
    """
    names = tuple(dict.fromkeys(n for one in ((group,) if isinstance(group, str) else group) for n in GROUPS[one]))
    for _, options in places:
        for name in options:
            if name not in names:
                raise OptionError(unknown("option", name, names))
    chosen: dict[str, Any] = {}
    given: dict[str, dict[str, Any]] = {}
    for place, options in _with_system(places, names, systems):
        for name, value in options.items():
            if value is None:
                continue
            option = OPTIONS[name]
            if option.takes_away(value):
                value = NONE
                chosen.pop(name, None)
            else:
                chosen[name] = option.check(value)
            given[name] = {"value": value, "from": place}
    used = {name: chosen.get(name, OPTIONS[name].default) for name in names}
    chosen.pop("system", None)
    return Settings(used, chosen, {name: given[name] for name in names if name in given})


def _with_system(
    places: tuple[tuple[str, Mapping[str, Any]], ...], names: tuple[str, ...], systems: Mapping[str, System]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The places, and below the highest one that names a system its row."""
    naming = [number for number, (_, options) in enumerate(places) if options.get("system") is not None]
    if not naming:
        return list(places)
    name = places[naming[-1]][1]["system"]
    if OPTIONS["system"].takes_away(name):
        return list(places)
    if name not in systems:
        raise OptionError(unknown("system", name, systems))
    row = {option: value for option, value in systems[name].options.items() if option in names}
    return [*places[: naming[-1]], (f"system {name}", row), *places[naming[-1] :]]


def resolve(given: Mapping[str, Any], group: str) -> dict[str, Any]:
    """All options of a group: what is given in one place, checked, and the defaults of the rest.

    Args:
        given: option values by name; None counts as not given.
        group: a key of :data:`GROUPS`.

    Raises:
        OptionError: a name does not exist in the group, or a value does not fit.
    """
    return settle(group, ("call", given)).used
