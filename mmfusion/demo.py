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

from mmfusion.bundle import TEMPLATE, run_config
from mmfusion.cohort import Case, build_index, check_manifest, format_problems
from mmfusion.cohort.simulate import (
    SimulatedSubject,
    draw_subjects,
    mr_scaling,
    observed_ceilings,
    prepared_grid,
    simulate_volumes,
    target_registration_error,
    write_raw_study,
)
from mmfusion.errors import CohortError, printable
from mmfusion.evaluation import classification_metrics
from mmfusion.files import (
    CohortFolder,
    RunFolder,
    check_folder,
    claim,
    clear_if_free,
    optional_fields,
    write_json,
    writing,
)
from mmfusion.io import load_transform
from mmfusion.options import resolve
from mmfusion.predict import read_predictions
from mmfusion.prepare import (
    CaseResult,
    Cohort,
    open_cohort,
    prepare_cohort,
    refuse_contradictions,
    write_case,
    write_cohort,
)
from mmfusion.progress import progress_line
from mmfusion.report import write_report
from mmfusion.training import write_metrics
from mmfusion.volume import coverage, normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODALITIES = ("ct", "pet", "mr")
_FORMAT = "simulated"  # stands for the key of a case that comes from no file
GRID: dict[str, Any] = {"spacing": [4.0, 4.0, 4.0], "size": [40, 48, 40]}
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
    out: str | Path, *, subjects: int = 40, seed: int = 0, train: int = TRAIN, test: int = TEST, **training: Any
) -> int:
    """Simulate, index, check, prepare, train, evaluate, report; prints a table and where the pages are.

    Args:
        out: the folder to write; a second call with the same arguments goes on where the first stopped.
        subjects: how many go the whole way as raw scans.
        seed: of everything random.
        train, test: subjects simulated straight onto the prepared grid.
        training: overrides of the bundle's ``train.yaml``, beside :data:`TRAINING`.

    Returns:
        Exit status.
    """
    started, out = time.perf_counter(), Path(out)
    chosen = {**TRAINING, **training, "seed": seed}
    _refuse_another(out, {"subjects": subjects, "train": train, "test": test, **chosen})
    where = printable(out)
    print(f"SIMULATED DATA, seed {seed} | {subjects} subjects as raw scans, {train} + {test} on the grid | {where}")

    raw = draw_subjects(subjects, seed * 3 + 1, prefix="RAW", missing=0.08)
    prediction = out / "prediction"
    raw_cohort = _step("raw scans: simulate, index, check, prepare", lambda: _prepare_raw(out / "raw", prediction, raw))
    cohort = _step(
        "grid: simulate",
        lambda: simulate_study(out / "cohort", train_subjects=train, test_subjects=test, seed=seed),
    )

    run = out / "run"
    _step("train and evaluate the fusion", lambda: _train(cohort, run, chosen))
    for name in MODALITIES:
        alone = RunFolder(run).single(name).path
        _step(f"train and evaluate {name} alone", lambda n=name, to=alone: _train(cohort, to, chosen, [n]))
    _step(
        "predict on the raw scans",
        lambda: run_config(
            "inference", run_dir=str(run), manifest=str(out / "raw" / "manifest.csv"), out=str(prediction)
        ),
    )
    raw_cohort = write_cohort(raw_cohort.folder, {**raw_cohort.options, "simulated": True}, raw_cohort.rows)
    facts = _facts(out, raw, _drawn(train, test, seed)[1], raw_cohort)
    metrics = write_metrics(run, seed=seed, simulated=True, **facts)
    page = write_report(run)
    print(_table(metrics, facts, train, test, subjects))
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


def simulate_study(
    out: str | Path,
    *,
    train_subjects: int = TRAIN,
    test_subjects: int = 1000,
    seed: int = 0,
    suv_max: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Cohort:
    """A cohort folder of the simulated study, whose cases are made where preparing would have put them.

    Args:
        out: the cohort folder; one that is finished is opened as it is.
        train_subjects: subjects to train on; the first fifth of them is the validation part.
        test_subjects: subjects of the test part, drawn anew.
        seed: of the subjects.
        suv_max: SUV that becomes 1; the default of ``mmfusion prepare`` if None.
        progress: called with (done, all, case) after each case.

    Raises:
        OptionError: a finished cohort has another ``suv_max``.
    """
    return simulated_cohort(Path(out), *_drawn(train_subjects, test_subjects, seed), progress, suv_max=suv_max)


def simulated_cohort(
    folder: Path,
    known: Sequence[SimulatedSubject],
    fresh: Sequence[SimulatedSubject],
    progress: Callable[[int, int, str], None] | None = None,
    suv_max: float | None = None,
) -> Cohort:
    """A cohort folder of these subjects: ``known`` to train and, the first fifth, to validate on; ``fresh`` to test."""
    files = CohortFolder(folder).claim("simulated cohort")
    if files.table.is_file():  # written last
        cohort = open_cohort(folder)
        refuse_contradictions(cohort, {"suv_max": suv_max})
        return cohort
    options = resolve({**GRID, "modalities": list(MODALITIES), "suv_max": suv_max}, "case")
    validation = len(known) // 5
    splits = ["validation"] * validation + ["train"] * (len(known) - validation) + ["test"] * len(fresh)
    rows = []
    with files.lock(), writing(folder):
        files.clear()
        for subject, split in zip([*known, *fresh], splits, strict=True):
            rows.append(write_case(folder, _case(subject, split), _on_grid(subject, options), key=_FORMAT))
            if progress:
                progress(len(rows), len(splits), subject.subject)
        return write_cohort(folder, {**options, "simulated": True}, rows, qc=False)


def _drawn(train: int, test: int, seed: int) -> tuple[list[SimulatedSubject], list[SimulatedSubject]]:
    """The subjects to train on, and those of the test."""
    known = draw_subjects(train, seed * 3 + 2, prefix="TRAIN", missing=0.05)
    return known, draw_subjects(test, seed * 3 + 3, prefix="TEST", missing=0.05)


def _case(subject: SimulatedSubject, split: str) -> Case:
    return Case(subject.subject, label=str(subject.label), split=split)


def _on_grid(subject: SimulatedSubject, options: dict[str, Any]) -> CaseResult:
    grid = prepared_grid(subject, tuple(options["spacing"]), tuple(options["size"]))
    volumes = simulate_volumes(subject, grid)
    image = np.zeros((len(MODALITIES), *grid.shape), np.float32)
    for name, volume in volumes.items():
        scaling = mr_scaling(volume) if name == "mr" else (0.0, 1.0)
        image[MODALITIES.index(name)] = normalize(
            volume, ct_window=tuple(options["ct_window"]), suv_max=options["suv_max"], mr_scaling=scaling
        )
    present = np.array([name in volumes for name in MODALITIES])
    valid = np.broadcast_to(coverage(grid, grid), image.shape) & present[:, None, None, None]
    return CaseResult(image, present, valid, MODALITIES, grid, reference=next(iter(volumes)))


def _train(cohort: Cohort, run: Path, training: dict[str, Any], modalities: list[str] | None = None) -> None:
    """``train.yaml`` and ``evaluate.yaml`` of the bundle, as ``python -m monai.bundle run`` would."""
    if not RunFolder(run).model.is_file():
        run_config("train", TEMPLATE, cohort=str(cohort.folder), run_dir=str(run), modalities=modalities, **training)
    run_config("evaluate", TEMPLATE, run_dir=str(run), seed=training["seed"])


def _facts(
    out: Path, raw: Sequence[SimulatedSubject], fresh: Sequence[SimulatedSubject], cohort: Cohort
) -> dict[str, Any]:
    """What only a simulation can know: ceilings, and how far registration missed; and the AUC on the raw scans."""
    rows = read_predictions(out / "prediction" / "predictions.csv")
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
