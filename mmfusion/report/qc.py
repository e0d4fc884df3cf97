"""qc.html of a cohort folder: a card a case, the worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.report import page
from mmfusion.report.files import (
    modalities_of,
    number,
    read_json,
    read_pictures,
    read_rows,
    reasons_of,
    score_of,
    status_of,
    worst_first,
)
from mmfusion.report.page import Html, element, join, text
from mmfusion.report.pictures import histogram_picture, planes_of, strip

PICTURED = 60  # cases with pictures, at most
BYTES = 13_000_000  # of pictures in one page, at most: browsers and mail stay fast

GOOD_AND_BAD = (
    "Squares show the reference and the other modality by turns, both scaled by rank so that a body has the same "
    "gray in each. Squares should continue across borders; steps at the body contour mean misalignment; black "
    "squares lie outside the other scan. In the joint histograms (reference to the right, other modality upward, "
    "log counts) thin ridges after registration are good, a haze as wide as before is bad. Left of an axial or "
    "coronal picture is the patient's left (neurological display); letters name the directions."
)


def write_qc(cohort_dir: str | Path) -> Path:
    """Write ``qc.html`` into a cohort folder, from its ``cases.csv``, ``options.json`` and ``cases/*/qc.npz``.

    Cases come worst first. The first 60 have pictures, or as many as fit into 13 MB; all are in the table.

    Returns:
        The path of the page.

    Raises:
        CohortError: there is no ``cases.csv``.
    """
    cohort = Path(cohort_dir)
    rows = worst_first(read_rows(cohort / "cases.csv", f"run `mmfusion prepare ... --out {cohort}` first"))
    options = read_json(cohort / "options.json")
    cards: list[Html] = []
    size = 0
    for index, row in enumerate(rows[:PICTURED]):
        card = case_card(cohort, row, index)
        size += len(card)
        if size > BYTES:
            break
        cards.append(card)
    body = [
        element("h1", "Quality of the prepared cases"),
        element("p", f"{cohort.resolve().name}: {_counts(rows)}", class_="lead"),
        element("p", "Research use only.", class_="banner"),
        element("p", "Simulated data: no patient.", class_="banner simulated") if options.get("simulated") else "",
        page.section("Cases, worst first", element("p", GOOD_AND_BAD, class_="soft"), *cards, _left_out(rows, cards)),
        page.section("All cases", _overview(rows, len(cards))),
        page.section("Options and versions", page.options_table(options, "Options of mmfusion prepare")),
    ]
    return page.write_page(cohort / "qc.html", f"QC of {cohort.resolve().name}", body)


def case_card(cohort: Path, row: dict[str, str], index: int) -> Html:
    """One case: status, reasons, numbers, and its pictures before and after."""
    status = status_of(row)
    heading = join([text(row.get("case", "?")), page.badge(status)])
    reasons = [element("p", reason, class_="reason") for reason in reasons_of(row)]
    parts = [element("h3", heading), *reasons, numbers_table(row), *registration_pictures(cohort, row)]
    return element("section", join(parts), class_=f"case {status}", id=f"case-{index}")


def registration_pictures(cohort: Path, row: dict[str, str]) -> list[Html]:
    """Checkerboard and joint histogram of the template, if there is one, and of each modality, before and after."""
    case, reference, template = (row.get(name, "") for name in ("case", "reference", "template"))
    arrays = read_pictures(cohort, case)

    def compared(keys: tuple[str, str], names: tuple[str, str], words: str, below: str, counts: str) -> list[Html]:
        a, b = (planes_of(arrays, key) for key in keys)
        if a is None or b is None or any(a[p].shape != b[p].shape for p in a):
            return []
        both = " and ".join(names)
        alt = f"Checkerboard of {both} of case {case}, {words}: three planes"
        board = page.figure(page.png_of_array(strip(a, b)), alt, f"{both}, {words}: axial, coronal, sagittal")
        found = arrays.get(counts)
        if found is None or np.ndim(found) != 2:
            return [board, Html("<div></div>")]
        alt = f"Joint histogram of {both} of case {case}, {words}"
        return [board, page.figure(page.png_of_array(histogram_picture(found)), alt, below, class_="small")]

    pairs = []
    if template:
        words = "after registration"
        given = ("template", "reference"), (template, reference), words, "joint histogram", "histogram_template"
        pairs.append(compared(*given))
    for name in modalities_of(row):
        stages = {"before": "before registration", "after": "after registration"}
        if _position_kept(arrays, name):
            stages = {"after": "position kept, so the same before and after registration"}
        pair = []
        for stage, words in stages.items():
            below = f"joint histogram {stage}" if len(stages) > 1 else "joint histogram"
            keys = "reference", f"{stage}_{name}"
            pair += compared(keys, (reference, name), words, below, f"histogram_{stage}_{name}")
        pairs.append(pair)
    return [element("div", join(pair), class_="pair") for pair in pairs if pair]


def _position_kept(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    before, after = planes_of(arrays, f"before_{name}"), planes_of(arrays, f"after_{name}")
    return before is not None and after is not None and all(np.array_equal(before[p], after[p]) for p in before)


def numbers_table(row: dict[str, str]) -> Html:
    """What was measured for each modality of the case, and for its template."""
    lines: list[list[Any]] = []
    names = [*modalities_of(row), *([row["template"]] if row.get("template") else [])]
    for name in names if status_of(row) != "failed" else []:
        spacing, orientation = row.get(f"{name}_spacing"), row.get(f"{name}_orientation")
        source = [
            " × ".join((spacing or "").split()) or None,
            orientation or None,
            row.get(f"{name}_units") or None,
        ]
        if name == row.get("reference"):
            lines.append([name, "reference", *[None] * 6, *source])
            continue
        before, after = (number(row.get(f"{name}_similarity_{stage}")) for stage in ("before", "after"))
        arrow = f"{_short(before)} → {_short(after)}" if before is not None or after is not None else None
        measured = [_short(number(row.get(f"{name}_{key}")), digits) for key, digits in
                    (("translation_mm", 1), ("rotation_deg", 1), ("motion_mm", 1))]  # fmt: skip
        overlap = number(row.get(f"{name}_overlap"))
        share = f"{100 * overlap:.0f} %" if overlap is not None else None
        score = _short(number(row.get(f"{name}_score")))
        lines.append([name, row.get(f"{name}_verdict") or None, score, arrow, share, *measured, *source])
    headers = ["modality", "verdict", "score", "similarity", "overlap", "translation, mm", "rotation, °",
               "motion, mm", "source spacing, mm", "orientation", "units"]  # fmt: skip
    return page.table(headers, lines) if lines else Html("")


def _overview(rows: list[dict[str, str]], pictured: int) -> Html:
    def link(index: int, row: dict[str, str]) -> Any:
        name = row.get("case", "?")
        return element("a", name, href=f"#case-{index}") if index < pictured else name

    lines = []
    for index, row in enumerate(rows):
        score = score_of(row)
        lines.append([
            link(index, row), row.get("subject"), page.badge(status_of(row)), row.get("label"), row.get("split"),
            row.get("site"), " ".join(modalities_of(row)), None if math.isinf(score) else f"{score:.3f}",
            "; ".join(reasons_of(row)),
        ])  # fmt: skip
    headers = ["case", "subject", "status", "label", "split", "site", "modalities", "lowest score", "reasons"]
    return page.table(headers, lines)


def _counts(rows: list[dict[str, str]]) -> str:
    states = [status_of(row) for row in rows]
    subjects = len({row.get("subject") for row in rows})
    return (
        f"{len(rows)} cases of {subjects} subjects: {states.count('ok')} ok, {states.count('doubtful')} doubtful, "
        f"{states.count('failed')} failed."
    )


def _left_out(rows: list[dict[str, str]], cards: list[Html]) -> Html:
    rest = len(rows) - len(cards)
    note = f"{rest} cases with higher scores have no pictures here; they are in the table below."
    return element("p", note, class_="soft") if rest else Html("")


def _short(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
