"""What each command does and says: calls one function of a room and prints what came of it.

Arguments are the command's own and the options that were given, by name; others are left to the defaults of the rooms.
Rooms are imported when a command runs, so that ``--help`` and short commands do not wait for torch or MONAI.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any, TextIO

from mmfusion.errors import CohortError, OptionError, printable
from mmfusion.families import FAMILIES
from mmfusion.progress import progress_line
from mmfusion.systems import SYSTEMS


def say(text: object, file: TextIO | None = None) -> None:
    """Print one line, of which nothing is obeyed by a terminal."""
    print(printable(text), file=file)


def index(root: str, out: str, **options: Any) -> int:
    """Write a manifest, and say what is in it, what is not used, and what should be looked at."""
    from collections import Counter

    from mmfusion.cohort import write_index

    def count_files(files: int, _: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{files} files", end="", file=sys.stderr, flush=True)

    made = write_index(root, out, progress=count_files, **options)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    count = Counter(name for case in made.cases for name in (*case.images, *(["mask"] if case.mask else [])))
    scans = ", ".join(f"{name} {count[name]}" for name in (*made.modalities, "mask") if count[name])
    for unused in made.others:
        say(f"not used: {unused}" + ("" if "pseudonymize" in options else f" ({unused.path})"))
    for note in made.notes:
        say(f"note: {note}")
    subjects = len({case.subject for case in made.cases})
    say(f"{subjects} subjects, {len(made.cases)} cases ({scans}); {len(made.others)} series not used; wrote {out}")
    return 0


def check(manifest: str, deep: bool = False, modalities: list[str] | None = None, **options: Any) -> int:
    """Print the problems of a manifest, or of a cohort folder; 1 if there is an error."""
    from mmfusion.cohort import check_manifest, format_problems, misplaced

    if Path(manifest).is_dir() and not misplaced(manifest, "cohort"):
        return _check_cohort(manifest)
    show = progress_line("rows") if deep or sys.stderr.isatty() else None
    problems = check_manifest(manifest, modalities, deep=deep, progress=show, **options)
    print(format_problems(problems))
    return int(any(problem.level == "error" for problem in problems))


def _check_cohort(folder: str) -> int:
    from mmfusion.prepare import cohort_warnings, damaged_files, open_cohort

    damaged = damaged_files(folder)
    for name in damaged:
        say(f"{name} is gone or damaged: delete {name.rpartition('/')[0]} and run mmfusion prepare again")
    if not damaged:
        say(f"{folder}: every file has the content that was written")
    for warning in cohort_warnings(open_cohort(folder)):
        say(f"warning: {warning}")
    return int(bool(damaged))


def prepare(manifest: str, out: str, **options: Any) -> int:
    """Prepare a cohort folder, and say what failed and what should be looked at; 1 if a case failed."""
    from mmfusion.prepare import check_pet, cohort_counts, cohort_warnings, kept_words, prepare_cohort

    check_pet(options, given=True)
    cohort = prepare_cohort(manifest, out, progress=progress_line("cases"), **options)
    for row in cohort.rows:
        if row["status"] == "failed":
            say(f"subject {row['subject']}: {row['reasons']}", file=sys.stderr)
    for warning in cohort_warnings(cohort):
        say(f"warning: {warning}", file=sys.stderr)
    if kept := kept_words(cohort, options):
        say(f"note: {kept}", file=sys.stderr)
    say(f"{cohort_counts(cohort)} | modalities {', '.join(cohort.modalities)} | look at {Path(out) / 'qc.html'}")
    return int(cohort.count("failed") > 0)


def accept(cohort: str, case: str, **options: Any) -> int:
    """Record what a person decided on a case."""
    from mmfusion.prepare import accept_case, cohort_counts

    after = accept_case(cohort, case, **options)
    say(f"case {case} {'is no longer' if options.get('undo') else 'is'} accepted | {cohort_counts(after)}")
    return 0


def register(fixed: str, moving: str, out: str, **options: Any) -> int:
    """Register one file to another; 1 if the verdict is failed."""
    from mmfusion.prepare import pair_words, register_files

    as_json, transform_out = options.pop("json", False), options.get("transform_out")
    registration = register_files(fixed, moving, out, **options)
    if as_json:
        linear = registration.fixed_to_moving.is_linear
        print(json.dumps({**registration.as_dict(), "linear": linear, "out": out, "transform_out": transform_out}))
    else:
        print(pair_words(registration, field_is_kept=bool(transform_out)))
        say(f"wrote {out}" + (f" and {transform_out}" if transform_out else ""))
    return int(registration.verdict == "failed")


def train(cohort: str, out: str, **options: Any) -> int:
    """Train a network, or all folds of a cross-validation, which are evaluated, too."""
    from mmfusion.training import train

    run = train(cohort, out, **options)
    if run.metrics:
        _say_metrics(run.metrics, run.path)
    else:
        say(f"{run.path / 'model.pt'} | evaluate: mmfusion evaluate {run.path}")
    return 0


def evaluate(run: str, **options: Any) -> int:
    """Evaluate a run, and print its AUC."""
    from mmfusion.training import evaluate

    _say_metrics(evaluate(run, **options), Path(run))
    return 0


def _say_metrics(metrics: dict[str, Any], run: Path) -> None:
    from mmfusion.report.words import METRIC_NAMES, interval, value

    auc = metrics["metrics"]["auc"]
    words = f"{METRIC_NAMES['auc']} {value(auc)} (95 % interval {interval(auc)})"
    reason = f" ({auc['reason']})" if auc.get("reason") else ""
    say(f"{words}{reason} | {metrics['n']} cases of part {metrics['part']} | look at {run / 'report.html'}")


def predict(model: str, manifest: str, out: str, **options: Any) -> int:
    """Write predictions of raw scans; 1 if a case has none."""
    from mmfusion.files import read_rows
    from mmfusion.predict import member_folders, predict_manifest, read_model

    path = predict_manifest(model, manifest, out, progress=progress_line("predicted"), **options)
    predicted = [bool(row["predicted"]) for row in read_rows(path)]
    say(f"{sum(predicted)} of {len(predicted)} cases predicted | {path} | look at {Path(out) / 'cohort' / 'qc.html'}")
    print(read_model(member_folders(model)[0]).notice)
    return int(not all(predicted))


def export(model: str, engine: str = "eager") -> int:
    """Write an export of a model."""
    from mmfusion.predict import export_model

    if engine == "eager":
        raise OptionError("say what to export to: --engine onnx")
    say(export_model(model, engine))
    return 0


def report(run: str) -> int:
    """Write the page of a run or cohort again."""
    from mmfusion.cohort import misplaced
    from mmfusion.files import CohortFolder
    from mmfusion.report import write_qc, write_report

    if words := misplaced(run, "cohort", "model"):
        raise CohortError(words)
    is_cohort = CohortFolder(Path(run)).table.is_file()
    say(write_qc(run) if is_cohort else write_report(run))
    return 0


def bundle_new(bundle: str, **options: Any) -> int:
    """Write a bundle."""
    from mmfusion.bundle import new_bundle

    folder = new_bundle(bundle, **options)
    say(f"{folder} | train: python -m monai.bundle run --config_file {folder}/configs/train.yaml --cohort C --run R")
    return 0


def bundle_pack(bundle: str, run: str, **options: Any) -> int:
    """Put a trained model into a bundle."""
    from mmfusion.bundle import pack_model

    path = pack_model(bundle, run, **options)
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB) | predict: mmfusion predict {bundle} MANIFEST --out OUT")
    return 0


def simulate(out: str, **options: Any) -> int:
    """Write the simulated study."""
    from mmfusion.prepare.simulated import simulate_study

    cohort = simulate_study(out, progress=progress_line("simulated"), **options)
    say(f"SIMULATED DATA | {len(cohort.rows)} cases | {cohort.folder}")
    return 0


def demo(out: str, **options: Any) -> int:
    """Run the demo."""
    from mmfusion.demo import run_demo

    return run_demo(out, **options)


def systems() -> int:
    """Print every system: what it settles, its paper, and what is reconstructed."""
    for name, system in SYSTEMS.items():
        print(f"{name:16s} {system.help}")
        facts = {
            "settles": ", ".join(f"{option} {value}" for option, value in system.options.items()),
            "needs": ", ".join(system.needs),
            "paper": f"{system.paper} ({system.year})" if system.paper else "",
            "from": system.provenance,
            "reconstructed": system.reconstructed,
        }
        for what, words in facts.items():
            if words:
                print(textwrap.fill(f"{what}: {words}", 120, initial_indent=" " * 17, subsequent_indent=" " * 19))
    return 0


def networks() -> int:
    """Print every part of networks, by family."""
    for family, parts in FAMILIES.items():
        print(f"{family}")
        for name, part in parts.items():
            print(f"  {name:18s} {part.help}")
    return 0
