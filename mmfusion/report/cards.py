"""One case of a cohort as pages show it: status, reasons, numbers, pictures before and after registration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.report import page
from mmfusion.report.album import Album
from mmfusion.report.files import modalities_of, number, read_pictures, reasons_of, status_of
from mmfusion.report.numbers import NUMBERS, Number
from mmfusion.report.page import Html, element, join, text
from mmfusion.report.pictures import comparison, equalized, palette, planes_of

GOOD_AND_BAD = (
    "Squares show the reference and the other modality by turns, both scaled by rank so that a body has the same "
    "gray in each. Squares should continue across borders; steps at the body contour mean misalignment; black "
    "squares lie outside the other scan. In the joint histograms (reference to the right, other modality upward, "
    "log counts) thin ridges after registration are good, a haze as wide as before is bad. Left of an axial or "
    "coronal picture is the patient's left (neurological display); letters name the directions."
)
_GIVEN = ("subject", "session", "label", "split", "fold", "site")


def case_card(cohort: Path, row: Mapping[str, str], album: Album | None = None) -> Html:
    """One case: status, what the manifest says of it, reasons, numbers, and its pictures before and after.

    Args:
        cohort: its folder.
        row: of ``cases.csv``.
        album: where the pictures lie; inside the page if None.
    """
    status, case = status_of(row), row.get("case", "?")
    parts = [
        element("h3", join([text(case), page.badge(status), element("span", _given(row), class_="soft")])),
        *(element("p", reason, class_="reason") for reason in reasons_of(row)),
        _decision(cohort, row),
        numbers_table(row),
        element("div", join(registration_pictures(cohort, row, album or Album())), class_="pairs"),
    ]
    return element("section", join(parts), class_=f"case {status}", id=f"case-{case}")


def registration_pictures(cohort: Path, row: Mapping[str, str], album: Album) -> list[Html]:
    """Checkerboards and joint histogram of the template, if there is one, and of each modality, before and after."""
    case, reference, template = (row.get(name, "") for name in ("case", "reference", "template"))
    arrays = read_pictures(cohort, case)

    @cache  # the reference is in every picture
    def gray(key: str) -> dict[str, np.ndarray]:
        return equalized(planes_of(arrays, key) or {})

    def compared(keys: tuple[str, str], names: tuple[str, str], words: str, counts: str) -> list[Html]:
        a, b, found = planes_of(arrays, keys[0]), planes_of(arrays, keys[1]), arrays.get(counts)
        if a is None or b is None or any(a[p].shape != b[p].shape for p in a):
            return []
        histogram = found if found is not None and found.ndim == 2 else None

        def draw() -> bytes:
            return page.png_of_array(comparison(gray(keys[0]), gray(keys[1]), histogram), palette())

        content = [*a.values(), *b.values(), *([] if histogram is None else [histogram])]
        png, url = album.add(case, content, draw)
        both = " and ".join(names)
        alt = f"Checkerboard of {both} of case {case}, {words}: axial, coronal and sagittal plane; joint histogram"
        return [page.figure(png, alt, f"{both}, {words}", url=url)]

    def pair(names: tuple[str, str], stages: Mapping[str, str], template_first: bool = False) -> Html:
        figures = []
        for key, words in stages.items():
            keys = (key, "reference") if template_first else ("reference", key)
            figures += compared(keys, names, words, f"histogram_{key}")
        shown = element("div", join(figures), class_="pair" if len(figures) > 1 else "pair single")
        return shown if figures else Html("")

    pairs = []
    if template:
        used = "used" if row.get(f"{template}_verdict") == "doubtful" else "after registration"
        stages = {"template": used, f"other_{template}": f"not used: {row.get(f'{template}_alternative')}"}
        pairs.append(pair((template, reference), stages, template_first=True))
    pairs += [pair((reference, name), _positions(arrays, row, name)) for name in modalities_of(row)]
    return [one for one in pairs if one]


def _positions(arrays: Mapping[str, np.ndarray], row: Mapping[str, str], name: str) -> dict[str, str]:
    """The pictures of a modality by key, with the words for each. Of a doubtful registration the position that was used
    comes first, those that were not beside it."""
    before, after, other = (f"{stage}_{name}" for stage in ("before", "after", "other"))
    kept = _position_kept(arrays, name)
    if row.get(f"{name}_verdict") != "doubtful":
        if kept:
            return {after: "position kept, so the same before and after registration"}
        return {before: "before registration", after: "after registration"}
    headers, alternative = "the position of the headers", row.get(f"{name}_alternative")
    mm, degrees = (number(row.get(f"{name}_{key}")) or 0 for key in ("motion_mm", "rotation_deg"))
    shown = {after: f"used: {headers if kept else f'moved by up to {mm:.0f} mm, turned by {degrees:.0f}°'}"}
    if planes_of(arrays, other):
        shown[other] = f"not used: {alternative}"
        alternative = ""
    return shown if kept else shown | {before: f"not used: {alternative or headers}"}


def _decision(cohort: Path, row: Mapping[str, str]) -> Html:
    """Of a doubtful case, what to type if it is right; of an accepted one, when a person said so, and why."""
    if status_of(row) == "doubtful":
        command = shlex.join(["mmfusion", "accept", cohort.resolve().name, row.get("case", "?")])
        return element("p", join(["If you find it right, type", element("code", command)]), class_="decision")
    if status_of(row) != "accepted":
        return Html("")
    date, note = row.get("accepted", ""), row.get("accepted_note", "")
    when = date.replace("T", " ").removesuffix("+00:00")
    return element("p", f"Accepted on {when} UTC" + (f": {note}" if note else ", without a note"), class_="decision")


def _position_kept(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    before, after = planes_of(arrays, f"before_{name}"), planes_of(arrays, f"after_{name}")
    return before is not None and after is not None and all(np.array_equal(before[p], after[p]) for p in before)


def numbers_table(row: Mapping[str, str]) -> Html:
    """What was measured for each modality of the case, and for its template; numbers that it has none of left out."""
    names = [*modalities_of(row), *([row["template"]] if row.get("template") else [])]
    if status_of(row) == "failed" or not names:
        return Html("")
    columns: dict[str, list[Any]] = {"modality": names, "verdict": [_verdict(row, name) for name in names]}
    for one in NUMBERS:
        columns[one.title] = [_change(one, row, name) for name in names]
    for title, key in {"source spacing, mm": "spacing", "orientation": "orientation", "units": "units"}.items():
        cells = [row.get(f"{name}_{key}") or None for name in names]
        columns[title] = [" × ".join(cell.split()) if cell else None for cell in cells]
    there = {title: cells for title, cells in columns.items() if any(cell is not None for cell in cells)}
    return page.table(list(there), zip(*there.values(), strict=True))


def _verdict(row: Mapping[str, str], name: str) -> Any:
    if name == row.get("reference"):
        return "reference"
    verdict = row.get(f"{name}_verdict")
    return page.badge(verdict) if verdict else None


def _change(one: Number, row: Mapping[str, str], name: str) -> str | None:
    """A number, and before it what it was before registration, if that is known."""
    value = one.of(row, name)
    before = number(row.get(f"{name}_{one.key.removesuffix('after')}before")) if one.key.endswith("_after") else None
    return value if before is None else f"{one.written(before)} → {value or '–'}"


def _given(row: Mapping[str, str]) -> str:
    """What the manifest says of the case, and the numbers of the whole case."""
    words = [f"{name} {row[name]}" for name in _GIVEN if row.get(name)]
    return " · ".join(words + [f"{one.title} {value}" for one in NUMBERS if (value := one.of(row))])
