"""report.html of a run folder: from the patients to the numbers, with what they rest on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import CohortError, ReadError
from mmfusion.files import Predictions, RunFolder, claim_place, interpreting, read_rows
from mmfusion.report import charts, page
from mmfusion.report.cards import GOOD_AND_BAD, case_card
from mmfusion.report.doubtful import doubtful_section
from mmfusion.report.files import (
    modalities_of,
    number,
    reasons_of,
    score_of,
    status_of,
    worst_first,
)
from mmfusion.report.folds import folds_section
from mmfusion.report.page import Html, element, join
from mmfusion.report.result import Curve, Result, cohort_folder, curves_of, labelled_part, read_result
from mmfusion.report.words import METRIC_NAMES, interval, p_value, summary, value, warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"train": "training", "head": "the head", "validation": "validation", "test": "test"}
MISTAKES = 30  # wrong cases listed, at most


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder, from its files and those of its cohort.

    Needed are ``predictions.csv`` and ``metrics.json``; whatever else is absent is left out of the page.

    Returns:
        The path of the page.

    Raises:
        CohortError: predictions or metrics are absent.
        ReadError: a file is damaged.
        OutputError: the folder is not ours, or cannot be written.
    """
    result = read_result(run_dir)
    claim_place(RunFolder(result.folder).page, "run")
    with interpreting(RunFolder(result.folder).metrics, "evaluate the run again"):
        return page.write_page(RunFolder(result.folder).page, *_page(result))


def _page(result: Result) -> tuple[str, list[Html]]:
    """Title and body."""
    name = result.folder.resolve().name
    banners = [element("p", "Research use only: not a medical device.", class_="banner")]
    if result.simulated:
        words = "Simulated data: these numbers show that the software works, not how well it does on patients."
        banners.append(element("p", words, class_="banner simulated"))
    body = [
        element("h1", f"Report of {name}"),
        *banners,
        element("p", summary(result), class_="lead"),
        page.section("Warnings", page.bullets(warnings(result), class_="warnings")),
        page.section("Patients", *_patients(result)),
        page.section(f"Performance on the {result.metrics.get('part', 'test')} part", *_performance(result)),
        page.section("Folds", *folds_section(result)),
        page.section("Doubtful cases", *doubtful_section(result)),
        page.section("Each modality alone", *_comparison(result)),
        page.section("Wrong cases", _mistakes(result)),
        page.section("The whole way from raw scans", *_raw_scans(result)),
        page.section("Registration", *_registration(result.cohort, result.cases, result.split)),
        page.section("Training", *_training(result)),
        page.section(
            "Options and versions",
            page.options_table(result.options, "Options of the run"),
            page.options_table(result.cohort_options, "Options of the cohort"),
        ),
    ]
    return f"Report of {name}", body


def _patients(result: Result) -> list[Html]:
    steps = [(f"{_cases(result.cases)}", "in the cohort")] if result.cases else []
    states = [status_of(row) for row in result.cases]
    if result.cases:
        steps.append((str(states.count("failed")), "failed in preparation, left out"))
        steps.append((str(states.count("doubtful")), "doubtful"))
        if accepted := states.count("accepted"):
            steps.append((str(accepted), "doubtful, and accepted by a person"))
    for part in PARTS:
        rows = [row for row in result.split if row.get("part") == part]
        if rows:
            steps.append((_cases(rows), f"for {PARTS[part]}"))
    flow = join(element("li", join([element("strong", count), words])) for count, words in steps)
    found = [element("ol", flow, class_="flow")] if steps else []
    found.append(_parts_table(result))
    failed = [
        f"{row.get('case')}: {'; '.join(reasons_of(row)) or 'no reason given'}"
        for row in result.cases
        if status_of(row) == "failed"
    ]
    if failed:
        found.append(element("p", "Left out, and why:"))
    return [*found, page.bullets(failed)]


def _parts_table(result: Result) -> Html:
    """Per part: cases, subjects, cases of each class, and cases that lack each modality."""
    by_case = {row.get("case"): row for row in result.cases}
    known = [(row.get("part"), row, by_case[row.get("case")]) for row in result.split if row.get("case") in by_case]
    if not known:
        return Html("")
    labels = sorted({case.get("label", "") for _, _, case in known})
    lines = []
    for part in PARTS:
        cases = [case for where, _, case in known if where == part]
        if cases:
            counts = [sum(case.get("label") == label for case in cases) for label in labels]
            missing = [sum(name not in modalities_of(case) for case in cases) for name in result.modalities]
            lines.append([part, len(cases), len({case.get("subject") for case in cases}), *counts, *missing])
    headers = ["part", "cases", "subjects", *(f"label {label}" for label in labels)]
    return page.table(headers + [f"without {name}" for name in result.modalities], lines)


def _performance(result: Result) -> list[Html]:
    figures = [*_curve_charts(result), _confusion_chart(result)]
    return [_metric_table(result), element("div", join(figures), class_="charts")]


def _curve_charts(result: Result) -> list[Html]:
    """ROC, precision and recall, and reliability; empty where no test part has both classes."""
    own = curves_of(result.predictions)
    if not own:
        return []
    curves = own
    if len(result.predictions.classes) == 2:
        own = {"fusion" if len(result.modalities) > 1 else "this run": next(iter(own.values()))}
        curves = own | _single_curves(result)
    auc, precise = result.estimate("auc"), curves
    roc_words = "Band: pointwise 95 % interval over resampled subjects. Dashed: chance."
    precision_words = "Dashed: precision of chance, the share of positive cases."
    if result.predictions.fold is not None:
        roc_words = "Thin: one curve per fold. The others: means over the folds. Dashed: chance."
        precision_words, precise = f"One curve per fold. {precision_words}", own
    return [
        _chart(
            charts.chart_roc(curves, len(own), result.case_control),
            f"ROC curves of {', '.join(curves)}. AUC {value(auc)}, interval {interval(auc)}",
            roc_words,
        ),
        _chart(
            charts.chart_precision_recall(precise),
            f"Precision-recall curves of {', '.join(precise)}. Average precision {value(result.estimate('pr_auc'))}",
            precision_words,
        ),
        _chart(
            charts.chart_calibration(own),
            "Reliability diagram: observed against predicted share, with Wilson intervals",
            f"{_together(result)}On the dashed line a predicted probability is the share that is observed. "
            "Bars: 95 % Wilson.",
        ),
    ]


def _confusion_chart(result: Result) -> Html:
    """The confusion matrix, for two classes with the threshold and where it comes from."""
    predictions, threshold = result.predictions, result.threshold
    predicted = predictions.predicted(threshold)
    title, words = "Confusion", _together(result)
    if len(predictions.classes) == 2:
        title += " at " + ("each fold's threshold" if threshold is None else f"threshold {threshold:.3g}")
        rule = "was chosen on validation cases"  # always, in runs that do not name the rule
        if result.options.get("threshold_rule") == "prevalence":
            rule = f"is the share of {predictions.classes[-1]} among the training cases"
        words += f"The threshold {rule}. Shade: share of the true class."
    right = int(np.sum(predicted == predictions.label))
    return _chart(
        charts.chart_confusion(predictions.label, predicted, predictions.classes, title),
        f"Confusion matrix: {right} of {len(predicted)} cases are right",
        words,
    )


def _together(result: Result) -> str:
    """What figures of single cases show of a cross-validation; empty without one."""
    return "" if result.predictions.fold is None else "Cases of all folds together. "


def _metric_table(result: Result) -> Html:
    found = {name: e for name, e in (result.metrics.get("metrics") or {}).items() if isinstance(e, dict)}
    rows = []
    for name, estimate in found.items():
        notes = [str(estimate[key]) for key in ("method", "reason") if estimate.get(key)]
        label = METRIC_NAMES.get(name, name.replace("_", " "))
        rows.append([label, value(estimate), interval(estimate), estimate.get("n"), "; ".join(notes)])
    return page.table(["metric", "value", "interval", "cases", "note"], rows)


def _single_curves(result: Result) -> dict[str, Curve]:
    """The ROC curve of each modality trained alone, where its run has predictions of the same part."""
    found = {}
    for name in result.comparison or result.modalities:
        path = RunFolder(result.folder).single(name).predictions
        if not path.is_file():
            continue
        try:
            part = str(result.metrics.get("part", "test"))
            curves = curves_of(labelled_part(Predictions.read(path), part).in_order(result.predictions.classes))
        except (CohortError, ReadError):
            continue
        if curves:
            found[f"{name} alone"] = next(iter(curves.values()))
    return found


def _comparison(result: Result) -> list[Html]:
    if not result.comparison:
        return []
    ceilings = result.metrics.get("ceilings") or {}
    fused = "fusion"
    # the simulation calls the ceiling of all modalities together "all"
    limits = {
        fused if name == "all" else name: limit
        for name, entry in ceilings.items()
        if (limit := number(entry)) is not None
    }
    values = {fused: result.estimate("auc"), **{n: e.get("auc") or {} for n, e in result.comparison.items()}}
    differences = {name: entry.get("difference") or {} for name, entry in result.comparison.items()}
    rows = []
    for name, estimate in values.items():
        gap = differences.get(name, {})
        row = [
            name if name == fused else f"{name} alone",
            value(estimate),
            interval(estimate),
            estimate.get("n"),
        ]
        row += [value(gap) if gap else None, interval(gap) if gap else None]
        row.append(p_value(gap))
        if limits:
            row.append(f"{limits[name]:.3f}" if name in limits else None)
        rows.append(row)
    headers = ["input", "AUC", "interval", "cases", "fusion minus alone", "paired interval", "p"]
    note = (
        "Each modality was trained alone, with the same split and options. Differences are on the cases that both "
        "predicted, so they need not be those of the AUCs beside them."
    )
    if result.folds:
        note += " AUCs and differences are means over the folds."
    table = page.table(headers + (["ceiling"] if limits else []), rows)
    reasons = [f"{name}: {gap['reason']}" for name, gap in differences.items() if gap.get("reason")]
    others = [f"Ceiling of {name}: {entry}" for name, entry in ceilings.items() if name not in (*values, "all")]
    caption = "Lines are 95 % intervals. A difference whose line crosses zero is not shown by these subjects."
    if limits:
        caption += " Diamonds: the best AUC that the simulated data allow."
    if all(number(estimate.get("value")) is None for estimate in values.values()):
        return [element("p", note), table, page.bullets(reasons)]
    alt = "Forest plot: " + "; ".join(f"{name} AUC {value(e)} ({interval(e)})" for name, e in values.items())
    chart = _chart(charts.chart_forest(values, differences, limits), alt, caption)
    return [element("p", note), table, page.bullets(reasons), chart, page.bullets(others)]


def _mistakes(result: Result) -> Html:
    """The wrong cases, the most confident mistake first."""
    predictions = result.predictions
    predicted = predictions.predicted(result.threshold)
    wrong = np.flatnonzero(predicted != predictions.label)
    if wrong.size == 0:
        return element("p", "None.")
    given = predictions.probability[wrong, predictions.label[wrong]]
    lines = []
    for index in wrong[np.argsort(given, kind="stable")][:MISTAKES]:
        row, classes = predictions.rows[index], predictions.classes
        probability = f"{predictions.probability[index, predictions.label[index]]:.3f}"
        names = [classes[predictions.label[index]], classes[predicted[index]]]
        lines.append([row.get("case"), row.get("subject"), *names, probability, row.get("modalities")])
    headers = ["case", "subject", "true class", "predicted", "probability of the true class", "modalities"]
    more = f", {MISTAKES} of them shown" if wrong.size > MISTAKES else ""
    caption = f"{wrong.size} of {len(predicted)} cases{more}, the most confident mistakes first"
    return page.table(headers, lines, caption)


def _raw_scans(result: Result) -> list[Html]:
    """What the simulated study adds: cases that went the whole way, how registration did against the truth."""
    raw = result.metrics.get("raw") or {}
    if not raw:
        return []
    auc, found = raw.get("auc") or {}, raw.get("registration") or {}
    table = page.table(
        ["cases", "failed", "AUC", "interval", "ceiling"],
        [[raw.get("n"), raw.get("failed"), value(auc), interval(auc), f"{raw.get('ceiling', float('nan')):.3f}"]],
        "Simulated subjects as raw DICOM and NIfTI: indexed, checked, prepared with registration, predicted.",
    )
    errors = element(
        "p",
        f"Registration against the known poses, mean over brain landmarks, {found.get('pairs', 0)} pairs: median "
        f"{found.get('median_mm', float('nan')):.2f} mm, worst {found.get('worst_mm', float('nan')):.2f} mm, "
        f"{found.get('within_2_mm', float('nan')):.0%} within 2 mm; beyond 2 mm and not called doubtful: "
        f"{found.get('beyond_2_mm_not_doubtful', 0)}.",
    )
    cohort = cohort_folder(result.folder, raw.get("cohort"))
    cases = read_rows(cohort / "cases.csv") if cohort else []
    return [table, errors, *_registration(cohort, cases, [])]


def _registration(cohort: Path | None, cases: list[dict[str, str]], split: list[dict[str, str]]) -> list[Html]:
    """The worst and the median case of those that the run used (of all, without a split)."""
    if cohort is None:
        return []
    used = {row.get("case") for row in split} or {row.get("case") for row in cases}
    rows = [row for row in worst_first(cases) if row.get("case") in used and status_of(row) != "failed"]
    rows = [row for row in rows if score_of(row) < float("inf")]
    if not rows:
        return []
    middle = len(rows) // 2
    chosen = {"Lowest score": 0, "Median score": middle} if middle else {"Lowest score": 0}
    parts = [element("p", GOOD_AND_BAD, class_="soft")]
    for words, index in chosen.items():
        parts += [
            element("p", f"{words} of {len(rows)} registered cases:"),
            case_card(cohort, rows[index]),
        ]
    return [*parts, element("p", "All cases are in qc.html of the cohort folder.", class_="soft")]


def _training(result: Result) -> list[Html]:
    if not result.history:
        return []
    last = result.history[-1]
    numbers = ", ".join(f"{name.replace('_', ' ')} {cell}" for name, cell in last.items() if number(cell) is not None)
    return [_chart(charts.chart_training(result.history), f"Training curves; the last row is {numbers}")]


def _chart(drawing: Figure, alt: str, caption: str = "") -> Html:
    return page.figure(page.png_of_figure(drawing), alt, caption)


def _cases(rows: list[dict[str, str]]) -> str:
    cases, subjects = len(rows), len({row.get("subject") for row in rows})
    return f"{cases} case{'s' * (cases != 1)}" + (f", {subjects} subjects" if subjects != cases else "")
