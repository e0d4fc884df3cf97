"""What every bundle run begins with: a check of the command line, one-sentence errors, seeds and threads."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from mmfusion import errors
from mmfusion.errors import MmfusionError, OptionError, printable, sentence
from mmfusion.files import refusal_of_the_system
from mmfusion.options import OPTIONS, unknown
from mmfusion.report import write_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_OF_MONAI = ("config_file", "meta_file", "logging_file", "tracking", "args_file", "run_id", "init_id", "final_id",
             "workflow_name", "properties_path", "workflow_type")  # fmt: skip
_PLACES = ("_meta_", "bundle_root", "dataset_dir", "output_dir", "initialize", "imports")
_FOLLOWS = {"dataset_dir": ("cohort", "manifest"), "output_dir": ("run_dir", "out")}
"""What configurations say for MONAI's sake alone, by the options that it follows from: setting it changes nothing."""


def begin(seed: int | None = None, threads: int = 0) -> None:
    """Start a bundle run: the first entry of ``initialize`` in every configuration.

    Under ``python -m monai.bundle run`` a misspelt override is refused (MONAI accepts it silently), and an
    :class:`~mmfusion.errors.MmfusionError` ends the program with its one sentence instead of MONAI's long trace.
    Called from other programs, it only sets seed and threads.

    Args:
        seed: of everything random, and deterministic algorithms; None leaves all as it is.
        threads: CPU threads of torch; 0 leaves torch's own choice.
    """
    if _under_monai():
        sys.excepthook = _one_sentence
        for handler in logging.getLogger().handlers:  # ignite logs the errors that end an engine
            handler.setFormatter(_Printable(handler.formatter))
        _restart_with_run_dir(sys.orig_argv)
        check_overrides(sys.argv[2:])
    if threads:
        torch.set_num_threads(threads)
    if seed is not None:
        set_determinism(seed)


def root() -> str:
    """The bundle's folder: that of the configuration which ``python -m monai.bundle run`` was given, wherever it was
    started; the current folder in other programs, which say ``bundle_root`` themselves."""
    if not _under_monai():
        return "."
    names = _config_files(_given(sys.argv[2:]))
    folder = Path(names[0]).resolve().parent if names else Path("configs").resolve()
    return str(folder.parent if folder.name == "configs" else folder)


def require(**values: Any) -> None:
    """Refuse to run without an option that has no default, which a configuration can be read and checked without.

    Raises:
        OptionError: a value is None.
    """
    for name, value in values.items():
        if value is None:
            option = OPTIONS[name]
            raise OptionError(f"no {name} is given: add --{name} {name.upper()} ({option.help})")


def configuration() -> dict[str, Any]:
    """What decides the result of the configuration that is being run, beside its options: each value by its path.

    Named in a configuration as a component. MONAI gives a component no reference to the configuration it stands in, so
    the parser that is resolving it is looked up among the calls that lead here; without one there is nothing to tell.

    Returns:
        ``{"train#optimizer#_target_": "torch.optim.AdamW", ...}``, overrides by path (``--train#optimizer#lr``)
        included, without the options of :mod:`mmfusion.options`, which are compared by what they come to.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            own = {name: value for name, value in parser.get().items() if name not in (*OPTIONS, *_PLACES)}
            return dict(_flat(own))
        frame = frame.f_back
    return {}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in a configuration, each with its path."""
    if isinstance(value, (dict, list)) and value:
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(one, f"{path}#{name}" if path else str(name))
    else:
        yield path, value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def leave() -> None:
    """End a program of several processes at once, when all is written: at the usual end of Python, gloo's threads and
    the interpreter now and then wait for each other, or end a finished training with an error. Nothing elsewhere."""
    if _under_monai():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def report(run: str | Path) -> Path:
    """Write ``report.html`` of a run, and say where it is."""
    path = write_report(Path(run))
    print(printable(f"report: {path}"), flush=True)
    return path


def check_overrides(arguments: list[str]) -> None:
    """Refuse an override that names nothing in the configuration.

    Args:
        arguments: of ``monai.bundle run``, as ``--config_file X --epochs 3`` or ``--epochs=3``.

    Raises:
        OptionError: with the nearest name that exists.
    """
    given = _given(arguments)
    config = ConfigParser.load_config_files(_config_files(given))
    if "run" in given:  # of an arguments file: that of the command line has become run_dir
        raise OptionError("MONAI keeps the name run for what a configuration executes: write run_dir in the args_file")
    refuse_unknown([name for name in given if name not in _OF_MONAI], config, "--")


def refuse_unknown(names: Iterable[str], config: Mapping[str, Any], dashes: str = "") -> None:
    """Refuse a name (``epochs``, ``train#trainer#max_epochs``) that is not in a configuration, or has no effect there.

    Raises:
        OptionError: with the nearest option that exists, or those that have the effect.
    """
    parser = ConfigParser(dict(config))
    for name in names:
        if name in _FOLLOWS:
            others = [f"{dashes}{one}" for one in _FOLLOWS[name] if one in config] or [f"{dashes}run_dir"]
            raise OptionError(f"option {dashes}{name} follows from other options: give {' or '.join(others)} instead")
        if name not in parser:
            plain = [f"{dashes}{key}" for key in config if key in OPTIONS]
            raise OptionError(unknown("option", f"{dashes}{name}", plain))


def _given(arguments: list[str]) -> dict[str, Any]:
    """What the command line says, over what its ``--args_file`` says."""
    given = _pairs(arguments)
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    return given


def _config_files(given: Mapping[str, Any]) -> list[str]:
    files = given.get("config_file", "")
    names = files if isinstance(files, list) else [part.strip(" '\"") for part in files.strip("[]()").split(",")]
    return [name for name in names if name]


def _pairs(arguments: list[str]) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` as a dictionary, the way python-fire reads them."""
    out: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            after = arguments[position + 1] if position + 1 < len(arguments) else ""
            out[name.replace("-", "_")] = value if equals else after
    return out


def _under_monai() -> bool:
    program = Path(sys.argv[0])
    return program.name == "__main__.py" and program.parts[-3:-1] == ("monai", "bundle") and sys.argv[1:2] == ["run"]


def _restart_with_run_dir(command: list[str]) -> None:
    """``--run`` is what everyone types, but MONAI keeps the name ``run`` for the expressions that a configuration
    executes, and an override would replace them. So the same command starts again under the name that is free."""
    renamed = [
        "--run_dir" + argument[len("--run") :] if argument == "--run" or argument.startswith("--run=") else argument
        for argument in command
    ]
    if renamed != command:
        sys.stdout.flush()
        os.execv(sys.executable, renamed)


def own_error(error: BaseException | None) -> MmfusionError | None:
    """The error of ours behind one that MONAI raised: it wraps what a component raises in a RuntimeError.

    Of an error in a process that loads batches torch keeps only the text, with all traces in it.
    """
    while error is not None:
        if said := re.search(r"^mmfusion\.errors\.(\w+): (.+)$", str(error), re.MULTILINE):
            return getattr(errors, said[1], MmfusionError)(said[2])
        if isinstance(error, MmfusionError):
            return error
        if refusal := refusal_of_the_system(error):
            return refusal
        error = error.__cause__ or error.__context__
    return None


class _Printable(logging.Formatter):
    """What another formatter makes of a message, line by line without what a terminal obeys."""

    def __init__(self, other: logging.Formatter | None) -> None:
        super().__init__()
        self._other = other or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, self._other.format(record).split("\n")))


def _one_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """``sys.excepthook``: the one sentence of an error of ours, the trace of any other."""
    if own := own_error(error):
        print(sentence(own), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
