"""Files with options by name, in YAML or JSON, that a person writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmfusion.errors import OptionError, ReadError
from mmfusion.files.reading import read_text
from mmfusion.options import OPTIONS, settle

_EXPECTED = "a file with options by name, in YAML or JSON,"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_options(path: str | Path, group: str | tuple[str, ...]) -> dict[str, Any]:
    """The options in a file: ``{name: value}``, all of them options of the group, with values that fit; null stays.

    It is plain data: nothing in it is executed. What it names is not read here: a path in it is relative to the
    current folder, as on the command line.

    Args:
        path: YAML or JSON.
        group: a key of :data:`mmfusion.options.GROUPS`, or several.

    Raises:
        ReadError: the file cannot be read, or is neither YAML nor JSON.
        OptionError: it holds something else than options of this group, or a value does not fit.
    """
    import yaml  # late: only who has such a file waits for it

    try:
        content = yaml.safe_load(read_text(Path(path), _EXPECTED))
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ReadError(f"{path} is neither YAML nor JSON ({problem[:150]}); {_EXPECTED} is expected") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise OptionError(f"{path} holds no options by name; write one a line, as `spacing: [2, 2, 2]`")
    if "options" in content:
        raise OptionError(f"{path} names a further file of options; give one file, and leave options out of it")
    options = {name: _as_number(name, value) for name, value in content.items()}
    try:
        settle(group, ("file", options))
    except OptionError as error:
        quotes = _quotes(options)
        raise OptionError(f"{path}: {error}{quotes}") from None
    return options


def _as_number(name: str, value: Any) -> Any:
    """``1e-3``, which YAML takes for text, as the number that it is; anything else as it is."""
    wanted = name in OPTIONS and OPTIONS[name].kind is float
    return float(value) if wanted and isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _quotes(options: dict[str, Any]) -> str:
    """A hint for text that YAML takes for something else: ``no`` for False, ``007`` for 7."""
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        if name in OPTIONS and OPTIONS[name].kind is str and any(isinstance(one, (bool, int, float)) for one in values):
            return f"; write {name} in quotes"
    return ""
