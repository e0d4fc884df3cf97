"""``mmfusion demo``: the whole job on the simulated study, with the commands a user would type.

Some subjects go the whole way as raw DICOM and NIfTI scans (index, check, prepare with registration, predict). The
others, which training and a test of useful size need, are simulated straight onto the prepared grid; the table says
how many of each. Everything here is simulated, and every page says so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort import build_index, check_manifest, format_problems
from mmfusion.cohort.simulate import (
    MODALITIES,
    SimulatedSubject,
    draw_subjects,
    observed_ceilings,
    target_registration_error,
    write_raw_study,
)
from mmfusion.errors import CohortError, printable
from mmfusion.evaluation import classification_metrics
from mmfusion.files import Predictions, RunFolder, check_folder, claim, clear_if_free, optional_fields, write_json
from mmfusion.io import load_transform
from mmfusion.predict import predict_manifest
from mmfusion.prepare import Cohort, prepare_cohort, write_cohort
from mmfusion.prepare.simulated import GRID, simulate_study, study_subjects
from mmfusion.progress import progress_line
from mmfusion.report import write_report
from mmfusion.training import evaluate, train, write_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAIN, TEST = 400, 400  # subjects simulated onto the grid
TRAINING: dict[str, Any] = {
    "strategy": "single_level",
    "encoder": "resnet10",
    "width": 0.125,
    "epochs": 24,
    "batch_size": 16,
    "learning_rate": 0.003,
    "patience": 24,
    "augment": True,
    "modality_drop": 0.0,
}


def run_demo(
    out: str | Path,
    *,
    subjects: int = 40,
    seed: int = 0,
    train_subjects: int = TRAIN,
    test_subjects: int = TEST,
    **training: Any,
) -> int:
    """Simulate, index, check, prepare, train, evaluate, report; prints a table and where the pages are.

    Args:
        out: the folder to write; a second call with the same arguments goes on where the first stopped.
        subjects: how many go the whole way as raw scans.
        seed: of everything random.
        train_subjects, test_subjects: simulated straight onto the prepared grid.
        training: options of :func:`mmfusion.train`, in place of :data:`TRAINING`.

    Returns:
        Exit status.
    """
    started, out = time.perf_counter(), Path(out)
    chosen = {**TRAINING, **training, "seed": seed}
    _refuse_another(out, {"subjects": subjects, "train": train_subjects, "test": test_subjects, **chosen})
    where = printable(out)
    print(
        f"SIMULATED DATA, seed {seed} | {subjects} subjects as raw scans, {train_subjects} + {test_subjects} on the "
        f"grid | {where}"
    )

    raw = draw_subjects(subjects, seed * 3 + 1, prefix="RAW", missing=0.08)
    prediction = out / "prediction"
    raw_cohort = _step("raw scans: simulate, index, check, prepare", lambda: _prepare_raw(out / "raw", prediction, raw))
    cohort = _step(
        "grid: simulate",
        lambda: simulate_study(out / "cohort", train_subjects=train_subjects, test_subjects=test_subjects, seed=seed),
    )

    run = out / "run"
    _step("train and evaluate the fusion", lambda: _train(cohort, run, chosen))
    for name in MODALITIES:
        alone = RunFolder(run).single(name).path
        _step(f"train and evaluate {name} alone", lambda n=name, to=alone: _train(cohort, to, chosen, [n]))
    _step(
        "predict on the raw scans",
        lambda: predict_manifest(run, out / "raw" / "manifest.csv", prediction),
    )
    raw_cohort = write_cohort(raw_cohort.folder, {**raw_cohort.options, "simulated": True}, raw_cohort.rows)
    facts = _facts(out, raw, study_subjects(train_subjects, test_subjects, seed)[1], raw_cohort)
    metrics = write_metrics(run, seed=seed, simulated=True, **facts)
    page = write_report(run)
    print(_table(metrics, facts, train_subjects, test_subjects, subjects))
    print(f"took {time.perf_counter() - started:.0f} s | SIMULATED DATA: these numbers say nothing about any disease")
    print(printable(f"registration of the raw scans: {prediction / 'cohort' / 'qc.html'}"))
    print(printable(f"report: {page}"))
    return 0


def _refuse_another(out: Path, arguments: dict[str, Any]) -> None:
    """A folder holds one demo: what other arguments left there would not fit to what these make."""
    check_folder(out, "demo")
    path = out / "demo.json"
    written = optional_fields(path) or arguments
    other = [f"{name} {written.get(name)}" for name in arguments if written.get(name) != arguments[name]]
    if other:
        raise CohortError(f"{out} holds a demo with {', '.join(other)}; choose another --out")
    clear_if_free(claim(out, "demo"))
    write_json(arguments, path)


def _step(what: str, work: Any) -> Any:
    start = time.perf_counter()
    print(f"-- {what}", file=sys.stderr, flush=True)
    result = work()
    print(f"   {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return result


def _prepare_raw(folder: Path, prediction: Path, subjects: Sequence[SimulatedSubject]) -> Cohort:
    """The commands index, check and prepare on the raw scans; where they are predicted on later, they are ready."""
    study = folder / "study"
    if not (study / "truth.json").is_file():
        write_raw_study(subjects, study, progress=progress_line("scanned"))
    manifest = folder / "manifest.csv"
    build_index(study, labels=study / "labels.csv", label="label").write(manifest)
    print(format_problems(check_manifest(manifest)).splitlines()[-1])
    show = progress_line("prepared")
    claim(prediction, "prediction")
    return prepare_cohort(manifest, prediction / "cohort", modalities=list(MODALITIES), progress=show, **GRID)


def _train(cohort: Cohort, run: Path, training: dict[str, Any], modalities: list[str] | None = None) -> None:
    if not RunFolder(run).model.is_file():
        train(cohort.folder, run, modalities=modalities, **training)
    evaluate(run, seed=training["seed"])


def _facts(
    out: Path, raw: Sequence[SimulatedSubject], fresh: Sequence[SimulatedSubject], cohort: Cohort
) -> dict[str, Any]:
    """What only a simulation can know: ceilings, and how far registration missed; and the AUC on the raw scans."""
    rows = Predictions.read(out / "prediction" / "predictions.csv")
    truth = {subject.subject: subject for subject in raw}
    label = np.array([truth[row["subject"]].label for row in rows])
    shares = np.array([float(row["p_1"]) for row in rows])
    errors: list[dict[str, Any]] = []
    for row in cohort.rows:
        for name in row["modalities"].split():
            if name != row["reference"]:
                found = load_transform(cohort.folder / "cases" / row["case"] / f"{name}.tfm")
                miss = target_registration_error(truth[row["subject"]], row["reference"], name, found)
                errors.append(
                    {"case": row["case"], "modality": name, "error_mm": miss, "verdict": row[f"{name}_verdict"]}
                )
    write_json(errors, out / "registration_errors.json")
    misses = np.array([one["error_mm"] for one in errors])
    return {
        "ceilings": observed_ceilings(fresh),
        "raw": {
            "cohort": "../prediction/cohort",
            "n": len(rows),
            "failed": cohort.count("failed"),
            "auc": classification_metrics(label, shares)["auc"].as_dict(),
            "ceiling": observed_ceilings(raw)["all"],
            "registration": {
                "pairs": len(misses),
                "median_mm": float(np.median(misses)),
                "worst_mm": float(misses.max()),
                "within_2_mm": float((misses <= 2).mean()),
                "beyond_2_mm_not_doubtful": sum(one["error_mm"] > 2 and one["verdict"] == "ok" for one in errors),
            },
        },
    }


def _table(metrics: dict[str, Any], facts: dict[str, Any], train: int, test: int, subjects: int) -> str:
    """The small table at the end."""

    def interval(found: dict[str, Any], sign: str = "") -> str:
        value, low, high = (
            "-" if found[key] is None else f"{found[key]:{sign}.3f}" for key in ("value", "low", "high")
        )
        return f"{value} [{low}, {high}]"

    def row(name: str, auc: dict[str, Any], ceiling: float, difference: dict[str, Any] | None = None) -> str:
        beside = "" if difference is None else interval(difference, "+")
        return f"  {name:18s} {interval(auc):20s} {auc['n']:5d}   {ceiling:.3f}   {beside}".rstrip()

    ceilings, found = facts["ceilings"], facts["raw"]["registration"]
    lines = [
        "",
        f"Trained on {train} simulated subjects; {test} fresh ones on the grid and {subjects} raw ones for the test.",
        "  AUC on the test    value [95 % interval]    n   ceiling   fusion minus this one [95 %]",
        row("fusion", metrics["metrics"]["auc"], ceilings["all"]),
        *(
            row(f"{name} alone", one["auc"], ceilings[name], one["difference"])
            for name, one in metrics["comparison"].items()
        ),
        row("fusion, raw scans", facts["raw"]["auc"], facts["raw"]["ceiling"]),
        f"Registration of {found['pairs']} raw pairs: median {found['median_mm']:.2f} mm, "
        f"worst {found['worst_mm']:.2f} mm over brain landmarks; "
        f"{found['within_2_mm']:.0%} within 2 mm; beyond and not called doubtful: {found['beyond_2_mm_not_doubtful']}.",
    ]
    return "\n".join(lines)
