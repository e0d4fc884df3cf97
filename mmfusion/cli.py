"""The command line: a thin front. Options come from :mod:`mmfusion.options`; heavy rooms are imported when used."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mmfusion import __version__
from mmfusion.errors import CohortError, MmfusionError, OptionError, ReadError, printable, sentence
from mmfusion.options import GROUPS, OPTIONS, Option, unknown
from mmfusion.progress import progress_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXAMPLES = {
    "index": "mmfusion index dicom/ --out manifest.csv --labels labels.csv --label diagnosis",
    "check": "mmfusion check manifest.csv",
    "prepare": "mmfusion prepare manifest.csv --out cohort --spacing 2 2 2 --size 96 96 96",
    "accept": 'mmfusion accept cohort SIM-0001 --note "PET breathes; the liver fits"',
    "register": "mmfusion register ct.nii.gz pet_dicom/ --out pet_on_ct.nii.gz --transform-out pet.tfm",
    "predict": "mmfusion predict bundles/feature_fusion_classification manifest.csv --out predictions",
    "export": "mmfusion export bundles/feature_fusion_classification --engine onnx",
    "report": "mmfusion report runs/a",
    "bundle new": "mmfusion bundle new my_study --modalities ct pet mr --classes no yes --strategy attention",
    "bundle pack": "mmfusion bundle pack my_study runs/a --dtype float16",
    "simulate": "mmfusion simulate --out study",
    "demo": "mmfusion demo --out runs/demo",
}

HELP = {
    "index": "walk a DICOM or BIDS tree and write the manifest",
    "check": "list every problem of a manifest, from headers (--deep: from voxels, too), or of a cohort folder",
    "prepare": "load, register, resample once, normalize: a manifest to a cohort folder",
    "accept": "settle a doubtful case of a cohort that you have looked at in qc.html",
    "register": "one pair of volumes in any readable format",
    "predict": "raw scans to class probabilities, by a bundle or a run; nothing of it is executed, but with --trust",
    "export": "write a model as TorchScript or ONNX beside its weights",
    "report": "write report.html of a run (or qc.html of a cohort) again",
    "bundle new": "write a MONAI bundle for a study",
    "bundle pack": "put the trained model of a run into a bundle",
    "simulate": "write the simulated study that the demo and the bundles are trained on, as a cohort folder",
    "demo": "the whole job on a simulated study, in a few minutes",
}

POSITIONALS = {
    "index": [("root", "folder to walk")],
    "check": [("manifest", "CSV or TSV with a column subject and one a modality; or a cohort folder")],
    "prepare": [("manifest", "CSV or TSV with a column subject and one a modality")],
    "accept": [("cohort", "cohort folder"), ("case", "case, as qc.html and cases.csv name it")],
    "register": [("fixed", "volume that stays, or mni152: the template"), ("moving", "volume that is brought to it")],
    "predict": [
        ("model", "bundle, run folder, or folder of the folds of a cross-validation"),
        ("manifest", "CSV or TSV with a column subject and one a modality; or a folder of DICOM studies"),
    ],
    "export": [("model", "bundle or run folder")],
    "report": [("run", "run or cohort folder")],
    "bundle new": [("bundle", "folder to write; its last part is the bundle's name")],
    "bundle pack": [("bundle", "bundle"), ("run", "run folder that was trained with it")],
    "simulate": [],
    "demo": [],
}

REQUIRED = dict.fromkeys(("index", "prepare", "register", "predict", "simulate", "demo"), ("out",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 1 an error that the user can mend, 130 stopped by Ctrl-C)."""
    parser = make_parser()
    known, unrecognized = parser.parse_known_args(arguments)
    given = vars(known)
    command = " ".join(filter(None, (given.pop("command"), given.pop("action", None)))) or None
    if unrecognized:
        if not unrecognized[0].startswith("-"):
            parser.error(f"'{unrecognized[0]}' is one word too many; a text or path with spaces stands in quotes")
        flags = [OPTIONS[name].flag for name in GROUPS[command or "report"]]
        parser.error(unknown("option", unrecognized[0], flags) if flags else f"unknown option '{unrecognized[0]}'")
    if command is None:
        print(overview())
        return 0
    try:
        return COMMANDS[command](**given)
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
    for name, example in EXAMPLES.items():
        lines += [f"  {name:11s} {HELP[name]}", f"              {example}"]
    lines += [
        "",
        "  train       (a MONAI bundle)",
        "              python -m monai.bundle run --config_file BUNDLE/configs/train.yaml --cohort cohort --run runs/a",
        "",
        "mmfusion COMMAND --help lists the options of a command.",
    ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The parser, made from the table of options."""
    parser = argparse.ArgumentParser(prog="mmfusion", description=overview().split("\n")[0])
    parser.add_argument("--version", action="version", version=f"mmfusion {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    bundle = commands.add_parser("bundle", help="write MONAI bundles: new, pack").add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    for name, text in HELP.items():
        among, short = (bundle, name.removeprefix("bundle ")) if name.startswith("bundle ") else (commands, name)
        sub = among.add_parser(
            short, help=text, description=text, epilog=f"example: {EXAMPLES[name]}", allow_abbrev=False
        )
        for positional, description in POSITIONALS[name]:
            sub.add_argument(positional, help=description)
        for option in GROUPS[name]:
            _add(sub, OPTIONS[option], required=option in REQUIRED.get(name, ()))
    return parser


def _add(parser: argparse.ArgumentParser, option: Option, required: bool) -> None:
    shown = " ".join(map(str, option.default)) if isinstance(option.default, list) else option.default
    notes = [f"default: {shown}"] if shown not in (None, False) else []
    text = option.help + (f" ({', '.join([*([option.unit] if option.unit else []), *notes])})" if notes else "")
    if option.kind is bool:
        action: Any = argparse.BooleanOptionalAction if option.default else "store_true"
        parser.add_argument(option.flag, action=action, default=None, help=text)
        return
    if option.kind is dict or option.each:
        parser.add_argument(option.flag, type=_table, required=required, help=text, metavar="YAML")
        return
    listed = option.choices and not option.point and option.count is None
    more: dict[str, Any] = {"choices": option.choices} if listed else {}
    if option.count is not None:
        more["nargs"] = option.count or "+"
    metavar = None if listed else option.name.upper() if option.kind is str else "N"
    parser.add_argument(option.flag, type=option.kind, required=required, help=text, metavar=metavar, **more)


def _table(text: str) -> Any:
    """``{name: value}``, or one value, as YAML has it."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a table as {{name: value}}") from error


def _say(text: object, file: TextIO | None = None) -> None:
    """Print one line, of which nothing is obeyed by a terminal."""
    print(printable(text), file=file)


def _index(
    root: str, out: str, labels: str | None, label: str | None, subject_from: str | None, pseudonymize: str | None,
    overwrite: bool | None,
) -> int:  # fmt: skip
    from collections import Counter

    from mmfusion.cohort import build_index, is_input
    from mmfusion.files import check_output_file

    reads = [labels, pseudonymize, out if is_input(out, root) else None]
    check_output_file(out, overwrite=bool(overwrite), reads=reads)

    def seen(files: int, _: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{files} files", end="", file=sys.stderr, flush=True)

    how: dict[str, Any] = {"labels": labels, "label": label, "subject_from": subject_from, "pseudonymize": pseudonymize}
    index = build_index(root, **how, progress=seen)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    check_output_file(out, overwrite=bool(overwrite), reads=reads)  # walking takes its time
    index.write(out)
    count = Counter(name for case in index.cases for name in (*case.images, *(["mask"] if case.mask else [])))
    found = ", ".join(f"{name} {count[name]}" for name in (*index.modalities, "mask") if count[name])
    subjects = len({case.subject for case in index.cases})
    for unused in index.others:
        _say(f"not used: {unused}" + ("" if pseudonymize else f" ({unused.path})"))
    for note in index.notes:
        _say(f"note: {note}")
    _say(f"{subjects} subjects, {len(index.cases)} cases ({found}); {len(index.others)} series not used; wrote {out}")
    return 0


def _check(manifest: str, deep: bool | None, modalities: list[str] | None, **options: Any) -> int:
    from mmfusion.cohort import check_manifest, format_problems, misplaced

    if Path(manifest).is_dir() and not misplaced(manifest, "cohort"):
        return _check_cohort(manifest)
    show = progress_line("rows") if deep or sys.stderr.isatty() else None
    given = {name: value for name, value in options.items() if value is not None}
    problems = check_manifest(manifest, modalities, deep=bool(deep), progress=show, **given)
    print(format_problems(problems))
    return int(any(problem.level == "error" for problem in problems))


def _check_cohort(folder: str) -> int:
    from mmfusion.prepare import damaged_files, open_cohort

    damaged = damaged_files(folder)
    for name in damaged:
        case = name.rpartition("/")[0]
        _say(f"{name} is gone or damaged: delete {case} and run mmfusion prepare again")
    if not damaged:
        _say(f"{folder}: every file has the content that was written")
    if clipped := _values_clipped(open_cohort(folder)):
        _say(f"warning: {clipped}")
    return int(bool(damaged))


def _prepare(manifest: str, out: str, **options: Any) -> int:
    from mmfusion.prepare import check_pet, prepare_cohort

    given = {name: value for name, value in options.items() if value is not None}
    check_pet(given, given=True)
    cohort = prepare_cohort(manifest, out, progress=progress_line("cases"), **given)
    for row in cohort.rows:
        if row["status"] == "failed":
            _say(f"subject {row['subject']}: {row['reasons']}", file=sys.stderr)
    for warning in filter(None, (_bodies_missed(cohort), _values_clipped(cohort))):
        _say(f"warning: {warning}", file=sys.stderr)
    if "suv_max" not in given and cohort.options["suv_max"] != OPTIONS["suv_max"].default:
        _say(
            f"note: suv_max {cohort.options['suv_max']:g} is kept, which this cohort was prepared with; the default is "
            f"{OPTIONS['suv_max'].default:g} (--suv-max)",
            file=sys.stderr,
        )
    _say(f"{_counts(cohort)} | modalities {', '.join(cohort.modalities)} | look at {Path(out) / 'qc.html'}")
    return int(cohort.count("failed") > 0)


def _counts(cohort: Any) -> str:
    """How many cases are in each state; of accepted ones only if there are some."""
    counts = {status: cohort.count(status) for status in ("done", "doubtful", "accepted", "failed")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status != "accepted")


def _accept(cohort: str, case: str, note: str | None, undo: bool | None) -> int:
    from mmfusion.prepare import accept_case

    after = accept_case(cohort, case, note=note, undo=bool(undo))
    _say(f"case {case} {'is no longer' if undo else 'is'} accepted | {_counts(after)}")
    return 0


def _bodies_missed(cohort: Any) -> str:
    """A warning if the grid was to hold the body and misses much of it; empty if not."""
    from mmfusion.report.files import number

    shares = {row["case"]: number(row.get("foreground_outside")) or 0.0 for row in cohort.rows}
    bad = [case for case, share in shares.items() if share > 0.5]
    if not bad or cohort.options["center"] != "foreground" or cohort.options["to"]:
        return ""
    worst = max(bad, key=lambda case: shares[case])
    return (
        f"in {len(bad)} of {len(shares)} cases more than half of the body falls outside the grid "
        f"({worst}: {shares[worst]:.0%}): larger --spacing or --size, or --center mask"
    )


def _values_clipped(cohort: Any) -> str:
    """A warning if much of the masks, or of the hot volumes, is clipped; empty if not."""
    from mmfusion.report.numbers import clipped_words

    return clipped_words(cohort.rows, cohort.options)


def _register(
    fixed: str, moving: str, out: str, transform_out: str | None, json: bool | None, device: str | None,
    fixed_modality: str | None, moving_modality: str | None, frame: str | None, assume_orientation: str | None,
    nan: str | None, suv: str | None, overwrite: bool | None, **how: str | None,
) -> int:  # fmt: skip
    from mmfusion.cohort import misplaced
    from mmfusion.files import check_output_file
    from mmfusion.io import (
        check_transform_name,
        check_volume_name,
        load_volume,
        save_transform,
        save_volume,
        split_series,
    )
    from mmfusion.registration import TEMPLATES, template
    from mmfusion.volume import check_device, resample

    check_device(device or "cpu")
    named = [fixed, moving, *(how[name] for name in ("transform_in", "fixed_mask", "moving_mask"))]
    reads = [split_series(path)[0] for path in named if path]
    for scan in reads[:2]:
        if words := misplaced(scan, "scan", "scans"):
            raise ReadError(words)
    check_output_file(check_volume_name(out), overwrite=bool(overwrite), reads=reads)
    if transform_out:
        check_output_file(check_transform_name(transform_out), overwrite=bool(overwrite), reads=[*reads, out])
    reading: dict[str, Any] = {"frame": frame, "assume_orientation": assume_orientation}
    reading |= {"nan": nan or "refuse", "suv": suv or "bw"}
    to_template = fixed in TEMPLATES and not Path(fixed).exists()
    if to_template:
        still = template(fixed).volume
    else:
        still = load_volume(fixed, modality=fixed_modality or "", **reading)
    other = load_volume(moving, modality=moving_modality or "", **reading)
    found = _found(still, other, fixed if to_template else "", device or "cpu", assume_orientation, **how)
    for path in (out, transform_out):  # registering takes its time
        if path:
            check_output_file(path, overwrite=bool(overwrite), reads=reads)
    save_volume(resample(other, still.grid, found.fixed_to_moving), out)
    if transform_out:
        save_transform(found.fixed_to_moving, transform_out)
    print(_registration_text(found, out, transform_out, as_json=bool(json)))
    return int(found.verdict == "failed")


def _found(
    still: Any, other: Any, head: str, device: str, assume_orientation: str | None,
    kind: str | None, init: str | None, transform_in: str | None, fixed_mask: str | None, moving_mask: str | None,
) -> Any:  # fmt: skip
    """The registration of one pair, as the options say; ``head`` names the template, if that is the fixed volume."""
    from mmfusion.io import load_mask, load_transform
    from mmfusion.registration import measure, register, register_to_template

    start = load_transform(transform_in) if transform_in else None
    if start is not None and init:
        raise OptionError("--transform-in and --init both say where to start; give one of them")
    if head and kind != "none":
        names = {"init": init, "transform_in": transform_in, "fixed_mask": fixed_mask, "moving_mask": moving_mask}
        given = [OPTIONS[name].flag for name, value in names.items() if value]
        if given:
            raise OptionError(
                f"{head} has a start and a mask of its own; leave out {' '.join(given)}, or use --kind none"
            )
        return register_to_template(other, head, kind=kind or "affine", device=device, threads=_threads())
    masks = {
        f"{side}_mask": load_mask(path, volume.grid, assume_orientation=assume_orientation).array > 0
        for side, path, volume in (("fixed", fixed_mask, still), ("moving", moving_mask, other))
        if path
    }
    if start is not None and not start.is_linear:
        if kind != "none":
            raise OptionError(
                f"{transform_in} has a displacement field; a search starts from a linear transform. "
                "Use --kind none to apply it as it is"
            )
        return measure(still, other, start, **masks, threads=_threads())
    how: dict[str, Any] = {**masks, "init": init or "auto" if start is None else start, "device": device}
    return register(still, other, kind or "rigid", **how, threads=_threads())


def _threads() -> int:
    return min(os.cpu_count() or 1, 8)  # a single pair gains nothing from more


def _registration_text(found: Any, out: str, transform_out: str | None, as_json: bool) -> str:
    matrix, field = found.fixed_to_moving.matrix, found.fixed_to_moving.displacement
    if as_json:
        files = {"out": out, "transform_out": transform_out}
        return json.dumps({**found.as_dict(), "linear": found.fixed_to_moving.is_linear, **files})
    rows = "\n".join("  " + " ".join(f"{value:10.4f}" for value in row) for row in matrix)
    reasons = "".join(f"\n  {printable(reason)}" for reason in found.reasons)
    reasons += f"\n  not used: {found.alternative.words}" if found.alternative else ""
    bend = ""
    if field is not None:
        shape = " x ".join(map(str, field.grid.shape))
        bend = (
            f"after a displacement field of {shape} voxels, up to {(field.array**2).sum(-1).max() ** 0.5:.1f} mm; "
            f"{found.folding:.2%} of it folds" + ("" if transform_out else "; --transform-out FILE.h5 keeps it") + "\n"
        )
    return (
        f"fixed_to_moving (RAS, mm):\n{rows}\n{bend}"
        f"translation {found.translation_mm:.2f} mm, rotation {found.rotation_deg:.2f} degrees\n"
        f"similarity {found.similarity_before:.4f} before, {found.similarity_after:.4f} after; "
        f"overlap {found.overlap:.0%}\n"
        f"verdict {found.verdict}{reasons}\n"
        + printable(f"wrote {out}" + (f" and {transform_out}" if transform_out else ""))
    )


def _predict(model: str, manifest: str, out: str, **how: Any) -> int:
    from mmfusion.files import read_rows
    from mmfusion.predict import member_folders, predict_manifest, read_model

    given = {name: OPTIONS[name].check(value) for name, value in how.items() if value is not None}
    path = predict_manifest(model, manifest, out, progress=progress_line("predicted"), **given)
    predicted = [bool(row["predicted"]) for row in read_rows(path)]
    _say(f"{sum(predicted)} of {len(predicted)} cases predicted | {path} | look at {Path(out) / 'cohort' / 'qc.html'}")
    print(read_model(member_folders(model)[0]).notice)
    return int(not all(predicted))


def _export(model: str, engine: str | None) -> int:
    from mmfusion.predict import export_model

    if engine in (None, "eager"):
        raise OptionError("say what to export to: --engine onnx or --engine torchscript")
    _say(export_model(model, str(engine)))
    return 0


def _bundle_new(bundle: str, **options: Any) -> int:
    from mmfusion.bundle import new_bundle

    folder = new_bundle(bundle, **options)
    _say(f"{folder} | train: python -m monai.bundle run --config_file {folder}/configs/train.yaml --cohort C --run R")
    return 0


def _bundle_pack(bundle: str, run: str, dtype: str | None) -> int:
    from mmfusion.bundle import pack_model

    path = pack_model(bundle, run, dtype=dtype or OPTIONS["dtype"].default)
    _say(f"{path} ({path.stat().st_size / 1e6:.1f} MB) | predict: mmfusion predict {bundle} MANIFEST --out OUT")
    return 0


def _simulate(out: str, **options: Any) -> int:
    from mmfusion.prepare.simulated import simulate_study

    given = {name: OPTIONS[name].check(value) for name, value in options.items() if value is not None}
    cohort = simulate_study(out, progress=progress_line("simulated"), **given)
    _say(f"SIMULATED DATA | {len(cohort.rows)} cases | {cohort.folder}")
    return 0


def _report(run: str) -> int:
    from mmfusion.cohort import misplaced
    from mmfusion.files import CohortFolder
    from mmfusion.report import write_qc, write_report

    if words := misplaced(run, "cohort", "model"):
        raise CohortError(words)
    is_cohort = CohortFolder(Path(run)).table.is_file()
    _say(write_qc(run) if is_cohort else write_report(run))
    return 0


def _demo(out: str, subjects: int | None, seed: int | None) -> int:
    from mmfusion.demo import run_demo

    return run_demo(out, subjects=OPTIONS["subjects"].check(subjects) or OPTIONS["subjects"].default, seed=seed or 0)


COMMANDS: dict[str, Callable[..., int]] = {
    "index": _index,
    "check": _check,
    "prepare": _prepare,
    "accept": _accept,
    "register": _register,
    "predict": _predict,
    "export": _export,
    "report": _report,
    "bundle new": _bundle_new,
    "bundle pack": _bundle_pack,
    "simulate": _simulate,
    "demo": _demo,
}
