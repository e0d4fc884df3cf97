"""What every bundle run begins and ends with: a check of the command line, one-sentence errors, seeds and threads."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from mmfusion import errors
from mmfusion.bundle.given import check_overrides, config_files, configuration, given_words, options, under_monai
from mmfusion.errors import MmfusionError, OptionError, printable, sentence
from mmfusion.files import refusal_of_the_system
from mmfusion.options import OPTIONS, Settings
from mmfusion.report import write_report
from mmfusion.training import Study, open_study, start


def begin(seed: int | None = None, threads: int = 0, group: str = "") -> Settings | None:
    """Start a bundle run: what every configuration is made from, and the first entry of ``initialize``.

    Under ``python -m monai.bundle run`` a misspelt override is refused (MONAI accepts it silently), and an
    :class:`~mmfusion.errors.MmfusionError` ends the program with its one sentence instead of MONAI's long trace.
    Called from other programs, it only sets seed and threads.

    Args:
        seed: of everything random, and deterministic algorithms; None leaves all as it is.
        threads: CPU threads of torch; 0 leaves torch's own choice.
        group: of the options, a key of :data:`mmfusion.options.GROUPS`, which then give seed and threads.

    Returns:
        The options of the group, see :func:`mmfusion.bundle.given.options`.

    Raises:
        OptionError: a value does not fit, or seed and threads are given beside a group.
    """
    if under_monai():
        sys.excepthook = _one_sentence
        for handler in logging.getLogger().handlers:  # ignite logs the errors that end an engine
            handler.setFormatter(_Printable(handler.formatter))
        _restart_with_run_dir(sys.orig_argv)
        check_overrides(sys.argv[2:])
    settings = options(group) if group else None
    if settings is not None:
        if seed is not None or threads:
            raise OptionError("seed and threads are options of the configuration: give --seed, --threads")
        seed, threads = settings.used.get("seed"), settings.used["threads"]
    start(OPTIONS["seed"].check(seed), threads)
    return settings


def open_run(settings: Settings, device: Any) -> Study:
    """The study of ``train.yaml``, see :func:`mmfusion.training.open_study`.

    Args:
        settings: of :func:`begin`.
        device: to train on.

    Raises:
        OptionError: ``folds`` without ``fold``; and as there.
    """
    typed = [name for name, its in settings.given.items() if its["from"] == "command line"]
    if settings.used["fold"] is None and "folds" in typed and "folds" in settings.chosen:
        raise OptionError(
            "folds says how many there are, and this is one training: add --fold N, or train all by "
            "mmfusion train COHORT --out RUN --folds K"
        )
    chosen = {name: value for name, value in settings.chosen.items() if name != "run_dir"}
    context = {"device": device, "configuration": configuration(), "given": settings.given}
    return open_study(settings.used["run_dir"], **chosen, **context)


def root() -> str:
    """The bundle's folder: that of the configuration which ``python -m monai.bundle run`` was given, wherever it was
    started; the current folder in other programs, which say ``bundle_root`` themselves."""
    if not under_monai():
        return "."
    names = config_files(given_words(sys.argv[2:]))
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


def leave() -> None:
    """End a program of several processes at once, when all is written: at the usual end of Python, gloo's threads and
    the interpreter now and then wait for each other, or end a finished training with an error. Nothing elsewhere."""
    if under_monai():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def report(run: str | Path) -> Path:
    """Write ``report.html`` of a run, and say where it is."""
    path = write_report(Path(run))
    print(printable(f"report: {path}"), flush=True)
    return path


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
