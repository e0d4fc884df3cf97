"""The command line: one definition per command, the parser that is made from them, and what ends a command.

Options come from :mod:`mmfusion.options`, what a command does from :mod:`mmfusion.commands`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from mmfusion import __version__, commands
from mmfusion.errors import MmfusionError, sentence
from mmfusion.options import GROUPS, OPTIONS, Option, Settings, settle, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: called with the arguments and the options that were given, by name; returns the exit status.
        help: one sentence, without its period.
        example: a command line that works.
        arguments: what is given by position, with its help.
        groups: of options, see :data:`mmfusion.options.GROUPS`; with ``file`` they may come from a file, too.
        required: options without which there is nothing to do.
        keeps_given: ``run`` is told who gave which option, too, as ``given`` of :class:`mmfusion.options.Settings`.
    """

    run: Callable[..., int]
    help: str
    example: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    keeps_given: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options, in order."""
        return tuple(dict.fromkeys(name for group in self.groups for name in GROUPS[group]))

    def settle(self, typed: Mapping[str, Any]) -> Settings:
        """Put together what was typed and what the file of option ``options`` says.

        Raises:
            OptionError, ReadError: see :func:`mmfusion.options.settle` and :func:`mmfusion.files.read_options`.
        """
        typed = dict(typed)
        file: dict[str, Any] = {}
        if path := typed.pop("options", None):
            from mmfusion.files import read_options

            file = read_options(path, self.groups)
        return settle(self.groups, ("file", file), ("command line", typed))


_MANIFEST = "CSV or TSV with a column subject and one per modality"

COMMANDS: dict[str, Command] = {
    "index": Command(
        commands.index,
        "Walk a DICOM or BIDS tree and write the manifest",
        "mmfusion index dicom/ --out manifest.csv --labels labels.csv --label diagnosis",
        {"root": "folder to walk"},
        ("index",),
        ("out",),
    ),
    "check": Command(
        commands.check,
        "List every problem of a manifest, from headers (--deep: from voxels, too), or of a cohort folder",
        "mmfusion check manifest.csv",
        {"manifest": f"{_MANIFEST}; or a cohort folder"},
        ("check",),
    ),
    "prepare": Command(
        commands.prepare,
        "Load, register, resample once, normalize: a manifest to a cohort folder",
        "mmfusion prepare manifest.csv --out cohort --spacing 2 2 2 --size 96 96 96",
        {"manifest": _MANIFEST},
        ("prepare", "file"),
        ("out",),
    ),
    "accept": Command(
        commands.accept,
        "Settle a doubtful case of a cohort that you have looked at in qc.html",
        'mmfusion accept cohort SIM-0001 --note "PET breathes; the liver fits"',
        {"cohort": "cohort folder", "case": "case, as qc.html and cases.csv name it"},
        ("accept",),
    ),
    "register": Command(
        commands.register,
        "Register one pair of volumes in any readable format",
        "mmfusion register ct.nii.gz pet_dicom/ --out pet_on_ct.nii.gz --transform-out pet.tfm",
        {"fixed": "volume that stays, or mni152: the template", "moving": "volume that is brought to it"},
        ("register",),
        ("out",),
    ),
    "train": Command(
        commands.train,
        "Train a network on a cohort; with --folds every fold of a cross-validation, evaluated together",
        "mmfusion train cohort --out runs/a --strategy decision --epochs 50",
        {"cohort": "cohort folder that mmfusion prepare wrote"},
        ("out", "study", "device", "file"),
        ("out",),
        keeps_given=True,
    ),
    "evaluate": Command(
        commands.evaluate,
        "Predict the test part of a run, and write metrics with intervals and report.html",
        "mmfusion evaluate runs/a",
        {"run": "run folder, or folder of the folds of a cross-validation"},
        ("evaluation", "device"),
    ),
    "predict": Command(
        commands.predict,
        "Turn raw scans into class probabilities, by a bundle or a run; nothing of it is executed",
        "mmfusion predict bundles/feature_fusion_classification manifest.csv --out predictions",
        {
            "model": "bundle, run folder, or folder of the folds of a cross-validation",
            "manifest": f"{_MANIFEST}; or a folder of DICOM studies",
        },
        ("predict",),
        ("out",),
    ),
    "export": Command(
        commands.export,
        "Write a model as ONNX beside its weights",
        "mmfusion export bundles/feature_fusion_classification --engine onnx",
        {"model": "bundle or run folder"},
        ("export",),
    ),
    "report": Command(
        commands.report,
        "Write report.html of a run (or qc.html of a cohort) again",
        "mmfusion report runs/a",
        {"run": "run or cohort folder"},
    ),
    "bundle new": Command(
        commands.bundle_new,
        "Write a MONAI bundle for a study",
        "mmfusion bundle new my_study --modalities ct pet mr --classes no yes --strategy attention",
        {"bundle": "folder to write; its last part is the bundle's name"},
        ("bundle new", "file"),
    ),
    "bundle pack": Command(
        commands.bundle_pack,
        "Put the trained model of a run into a bundle",
        "mmfusion bundle pack my_study runs/a --dtype float16",
        {"bundle": "bundle", "run": "run folder that was trained with it"},
        ("bundle pack",),
    ),
    "simulate": Command(
        commands.simulate,
        "Write the simulated study that the demo and the bundles are trained on, as a cohort folder",
        "mmfusion simulate --out study",
        groups=("simulate",),
        required=("out",),
    ),
    "systems": Command(
        commands.systems, "List whole networks by name, with paper and what is reconstructed", "mmfusion systems"
    ),
    "networks": Command(commands.networks, "List the parts that networks are built from, by name", "mmfusion networks"),
    "demo": Command(
        commands.demo,
        "Do the whole job on a simulated study, in a few minutes",
        "mmfusion demo --out runs/demo",
        groups=("demo",),
        required=("out",),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 1 an error that the user can mend, 130 stopped by Ctrl-C)."""
    parser = make_parser()
    given = _parse(parser, list(sys.argv[1:] if arguments is None else arguments))
    name = " ".join(filter(None, (given.pop("command"), given.pop("action", None))))
    if not name:
        print(overview())
        return 0
    command = COMMANDS[name]
    try:
        positionals = {argument: given.pop(argument) for argument in command.arguments}
        settings = command.settle(given)
        if missing := [OPTIONS[option].flag for option in command.required if option not in settings.chosen]:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        told = {"given": settings.given} if command.keeps_given else {}
        return command.run(**positionals, **settings.chosen, **told)
    except MmfusionError as error:
        print(sentence(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from mmfusion.files import refusal_of_the_system

        if (refusal := refusal_of_the_system(error)) is None:
            raise
        print(sentence(refusal), file=sys.stderr)
        return 1


def overview() -> str:
    """The commands with one example each."""
    lines = ["mmfusion: PET, CT and MR to a diagnosis probability. Research use only; not a medical device.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:11s} {command.help}", f"              {command.example}"]
    lines += ["", "mmfusion COMMAND --help lists the options of a command."]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """A mistake is one sentence; the options stand in ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists the options\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser, made from the commands and the table of options."""
    parser = _Parser(prog="mmfusion", description=overview().split("\n")[0])
    parser.add_argument("--version", action="version", version=f"mmfusion {__version__}")
    places = {"": parser.add_subparsers(dest="command", metavar="COMMAND")}
    for name, command in COMMANDS.items():
        group, _, short = name.rpartition(" ")
        if group not in places:
            inner = ", ".join(one.partition(" ")[2] for one in COMMANDS if one.startswith(f"{group} "))
            made = places[""].add_parser(group, help=f"Write MONAI bundles: {inner}")
            places[group] = made.add_subparsers(dest="action", metavar="ACTION", required=True)
        example = f"example: {command.example}"
        sub = places[group].add_parser(
            short, help=f"{command.help}.", description=f"{command.help}.", epilog=example, allow_abbrev=False
        )
        for argument, text in command.arguments.items():
            sub.add_argument(argument, help=text)
        for option in command.options:
            _add(sub, OPTIONS[option], required=option in command.required, undo="options" in command.options)
    return parser


def _add(parser: argparse.ArgumentParser, option: Option, required: bool, undo: bool) -> None:
    """Add an option; ``undo``: a switch that a file may have turned on can be turned off."""
    shown = " ".join(map(str, option.default)) if isinstance(option.default, list) else option.default
    notes = [option.unit] if option.unit else []
    notes += [f"default: {shown}"] if shown not in (None, False) else []
    text = option.help + (f" ({', '.join(notes)})." if notes else ".")
    if option.kind is bool:
        action: Any = argparse.BooleanOptionalAction if option.default or undo else "store_true"
        parser.add_argument(option.flag, action=action, default=None, help=text)
        return
    if option.kind is dict or option.each:
        parser.add_argument(option.flag, type=_table, required=required, help=text, metavar="YAML")
        return
    more: dict[str, Any] = {"metavar": option.name.upper() if option.kind is str else "N"}
    if option.choices and not option.point:
        none = () if "none" in option.choices else ("none",)
        more = {"choices": (*option.choices, *none), "metavar": "{" + ",".join(map(str, option.choices)) + "}"}
    if option.count is not None:
        more["nargs"] = option.count or "+"
        more.pop("choices", None)  # names may be joined by commas: the option itself checks them
    parser.add_argument(option.flag, type=_reader(option), required=required, help=text, **more)


def _reader(option: Option) -> Callable[[str], Any]:
    """Text to the option's type; the word ``none`` stays."""

    def read(text: str) -> Any:
        return text if option.takes_away(text) else option.kind(text)

    read.__name__ = option.kind.__name__  # argparse names it: invalid float value
    return read


def _table(text: str) -> Any:
    """``{name: value}``, or one value, as YAML has it."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a table as {{name: value}}") from error


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """What was typed, by name, None for what was not; ends the program where it does not parse."""
    words = [word for word in arguments if not word.startswith("-")]
    known = list(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))
    if words and words[0] not in known:
        parser.error(unknown("command", words[0], known))
    actions = [name.partition(" ")[2] for name in COMMANDS if words and name.startswith(f"{words[0]} ")]
    if actions and len(words) > 1 and words[1] not in actions:
        parser.error(unknown(f"command {words[0]}", words[1], actions))
    parsed, unrecognized = parser.parse_known_args(_repeat_none(arguments))
    given = vars(parsed)
    if unrecognized:
        if not unrecognized[0].startswith("-"):
            parser.error(f"'{unrecognized[0]}' is one word too many; a text or path with spaces stands in quotes")
        name = " ".join(filter(None, (given["command"], given.get("action"))))
        flags = [OPTIONS[option].flag for option in COMMANDS[name].options] if name else []
        parser.error(unknown("option", unrecognized[0], flags) if flags else f"unknown option '{unrecognized[0]}'")
    return given


def _repeat_none(arguments: list[str]) -> list[str]:
    """``--spacing none`` with the word as often as argparse wants values."""
    counts = {option.flag: option.count for option in OPTIONS.values() if option.count}
    pairs = zip(["", *arguments], arguments, strict=False)
    return [one for flag, word in pairs for one in [word] * (counts.get(flag, 1) if word == "none" else 1)]
