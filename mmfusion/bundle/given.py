"""What a configuration of a bundle is run with: its options as they were typed, and what else differs from ours.

MONAI changes text on its way: ``#`` in any value becomes ``::``, and its command line (python-fire) reads ``2024_01``
as a number, ``a,b`` as a tuple and what follows ``#`` as a comment. So options are read here from where they were
given: the words of the command line, the files, or the arguments of :func:`mmfusion.bundle.run_config`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import yaml
from monai.bundle import ComponentLocator, ConfigParser

from mmfusion.errors import OptionError
from mmfusion.options import GROUPS, OPTIONS, Option, Settings, settle, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TEMPLATE = Path(__file__).parent / "template"
"""The bundle that ships with the package; those in ``bundles/`` are written from it."""

_OF_MONAI = ("config_file", "meta_file", "logging_file", "tracking", "args_file", "run_id", "init_id", "final_id",
             "workflow_name", "properties_path", "workflow_type")  # fmt: skip
_PLACES = ("_meta_", "bundle_root", "dataset_dir", "output_dir")
_FOLLOWS = {"dataset_dir": ("cohort", "manifest"), "output_dir": ("run_dir", "out")}
"""What configurations say for MONAI's sake alone, by the options that it follows from: setting it changes nothing."""
CODE = ("$", "@", "%")  # with which text begins that MONAI executes

_ARGUMENTS: ContextVar[tuple[list[str], dict[str, Any]] | None] = ContextVar("_ARGUMENTS", default=None)


@contextmanager
def called_with(files: list[str], overrides: Mapping[str, Any]) -> Iterator[None]:
    """While a configuration is run in this process: its files, and its overrides as the caller gave them."""
    token = _ARGUMENTS.set((files, dict(overrides)))
    try:
        yield
    finally:
        _ARGUMENTS.reset(token)


def options(group: str) -> Settings:
    """The options of the configuration that is being run: those in its files, below those of the command line.

    Args:
        group: a key of :data:`mmfusion.options.GROUPS`: all options that the configuration takes, whether it lists
            them or not.

    Raises:
        OptionError: a value does not fit; or it is text that MONAI has changed.
    """
    parser, names = _parser(), GROUPS[group]
    overrides: dict[str, Any] = {}
    if (arguments := _ARGUMENTS.get()) is not None:
        files, typed = arguments
        overrides = {name: _as_text(OPTIONS[name], value) for name, value in typed.items() if name in names}
        config: Mapping[str, Any] = ConfigParser.load_config_files(files)
    elif under_monai():
        words = given_words(sys.argv[2:])
        overrides = {name: _value(OPTIONS[name], value, parser) for name, value in words.items() if name in names}
        config = ConfigParser.load_config_files(config_files(words))
    else:
        config = parser.get()
        _refuse_changed({name: config[name] for name in names if name in config})
    of_files = {name: _value(OPTIONS[name], config[name], parser) for name in names if name in config}
    return settle(group, ("file", of_files), ("command line", overrides))


def _refuse_changed(given: Mapping[str, Any]) -> None:
    """Refuse text in which MONAI has replaced ``#``, where what was given is not to be had."""
    for name, value in given.items():
        if isinstance(value, str) and "::" in value:
            raise OptionError(
                f"option {name} is {value!r}: MONAI writes :: where # stands. Call mmfusion.bundle.run_config or "
                "mmfusion.train, which take any path, or choose a name without #"
            )


def _value(option: Option, value: Any, parser: ConfigParser) -> Any:
    """What a file or the command line gives: text is read, and an expression is what MONAI makes of it."""
    if isinstance(value, str):
        value = parser.get_parsed_content(option.name) if value.startswith(CODE) else _read(option, value)
    return _as_text(option, value)


def _as_text(option: Option, value: Any) -> Any:
    """Numbers as the text that they were typed as, where the option is text, as class labels 0 and 1."""
    if isinstance(value, (list, tuple)):
        return [str(one) if option.kind is str else one for one in value]
    return str(value) if option.kind is str and type(value) in (int, float) else value


def _read(option: Option, text: str) -> Any:
    """The value that a word of the command line stands for."""
    if text in ("null", "None"):
        return None
    if option.kind is str and not option.each:
        if option.count is None:
            return _unquoted(text)
        return [_unquoted(word.strip()) for word in text.strip("[]() ").split(",") if word.strip()]
    if option.kind is bool and text == "":  # the flag alone
        return True
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def configuration() -> dict[str, Any]:
    """What the configuration that is being run changes of the package's own ``train.yaml``, beside its options.

    Returns:
        Each value by its path, as ``{"train#optimizer#weight_decay": 0.5}``; None for what is left out.
    """
    own, usual = _parser(), ConfigParser(ConfigParser.load_config_file(str(TEMPLATE / "configs" / "train.yaml")))
    usual.resolve_macro_and_relative_ids()
    values, before = (dict(_flat(_rest(one.get()))) for one in (own, usual))
    return {path: values.get(path) for path in [*values, *before] if values.get(path) != before.get(path)}


def _rest(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in (*OPTIONS, *_PLACES)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in a configuration, each with its path."""
    if isinstance(value, (dict, list)) and value:
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(one, f"{path}#{name}" if path else str(name))
    else:
        yield path, value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _parser() -> ConfigParser:
    """The parser that is resolving the configuration.

    MONAI gives a component no reference to the configuration it stands in, so it is looked up among the calls that
    lead here; outside of a configuration there is none, and nothing was given.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    return ConfigParser({})


def check_overrides(arguments: list[str]) -> None:
    """Refuse an override that names nothing in the configuration, and a word that belongs to no option.

    Args:
        arguments: of ``monai.bundle run``, as ``--config_file X --epochs 3`` or ``--epochs=3``.

    Raises:
        OptionError: with the nearest name that exists.
    """
    given = given_words(arguments)
    config = ConfigParser.load_config_files(config_files(given))
    if "run" in given:  # of an arguments file: that of the command line has become run_dir
        raise OptionError("MONAI keeps the name run for what a configuration executes: write run_dir in the args_file")
    for before, word in zip(["", *arguments], arguments, strict=False):
        takes_it = before.startswith("--") and "=" not in before
        if not word.startswith("--") and not takes_it and word not in config:
            raise OptionError(f"{word!r} belongs to no option; a list is one word, as --modalities ct,pet,mr")
    refuse_unknown({name: value for name, value in given.items() if name not in _OF_MONAI}, config, "--")


def refuse_unknown(given: Mapping[str, Any], config: Mapping[str, Any], dashes: str = "") -> None:
    """Refuse a name (``epochs``, ``train#trainer#max_epochs``) that is not in a configuration, or has no effect there.

    An argument of a component that its configuration leaves out may be given, as ``train#optimizer#betas``; of a
    component that is given another ``_target_``, its arguments.

    Raises:
        OptionError: with the nearest option that exists, or those that have the effect.
    """
    parser = ConfigParser(deepcopy(dict(config)))
    parser.update({name: value for name, value in given.items() if name in parser and name.endswith("#_target_")})
    settings = config.get("settings")
    group = GROUPS.get(str(settings.get("group")), ()) if isinstance(settings, dict) else ()
    plain = list(dict.fromkeys([*(name for name in config if name in OPTIONS), *group]))
    for name in given:
        if name == "run":
            raise OptionError("MONAI keeps the name run for what a configuration executes: give run_dir instead")
        if name in _FOLLOWS:
            others = [f"{dashes}{one}" for one in _FOLLOWS[name] if one in plain] or [f"{dashes}run_dir"]
            raise OptionError(f"option {dashes}{name} follows from other options: give {' or '.join(others)} instead")
        if name not in parser and name not in plain and not _is_argument(name, parser):
            raise OptionError(unknown("option", f"{dashes}{name}", [f"{dashes}{one}" for one in plain]))


def _is_argument(name: str, parser: ConfigParser) -> bool:
    """Whether ``component#name`` is an argument that the component's class or function takes by this name."""
    component, _, argument = name.rpartition("#")
    target = parser[component].get("_target_") if component in parser and isinstance(parser[component], dict) else None
    if not isinstance(target, str):
        return False
    module = ComponentLocator().get_component_module_name(target)
    maker: Any = locate(target if module is None or isinstance(module, list) else f"{module}.{target}")
    if not callable(maker):
        return False
    parameters = inspect.signature(maker).parameters
    return argument in parameters or any(
        one.kind is one.VAR_KEYWORD for one in parameters.values()
    )  # it says no itself


def given_words(arguments: list[str]) -> dict[str, Any]:
    """What the command line says, as text, over what its ``--args_file`` says."""
    given = pairs(arguments)
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    return given


def config_files(given: Mapping[str, Any]) -> list[str]:
    """The files of ``--config_file``, which may be several in one word."""
    files = given.get("config_file", "")
    names = files if isinstance(files, list) else [part.strip(" '\"") for part in files.strip("[]()").split(",")]
    return [name for name in names if name]


def pairs(arguments: list[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` as a dictionary, the way python-fire reads them."""
    out: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            after = arguments[position + 1] if position + 1 < len(arguments) else ""
            out[name.replace("-", "_")] = value if equals else "" if after.startswith("--") else after
    return out


def under_monai() -> bool:
    """Whether this program is ``python -m monai.bundle run``."""
    program = Path(sys.argv[0])
    return program.name == "__main__.py" and program.parts[-3:-1] == ("monai", "bundle") and sys.argv[1:2] == ["run"]
