"""qc.html of a cohort folder: a card a case, the worst first, to filter and sort in the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.files import CohortFolder, claim_place, optional_fields, read_rows
from mmfusion.report import page
from mmfusion.report.album import Album
from mmfusion.report.cards import GOOD_AND_BAD, case_card
from mmfusion.report.files import (
    STATES,
    causes_of,
    modalities_of,
    reasons_of,
    status_of,
    verdict_of,
    worst_first,
)
from mmfusion.report.numbers import NUMBERS, clipped_words
from mmfusion.report.page import NONE, Html, element, join, void

_NEEDED = ("case", "status")
INSIDE = 60  # cases whose pictures lie inside the page, at most: below 10 MB, which mail and browsers take


@dataclass(frozen=True)
class Column:
    """A column of the table of all cases, which is also what the page filters and sorts by.

    Attributes:
        key: its name in the address of the page.
        title: above it.
        cell: what a case has there; None is nothing.
        use: ``filter``, ``sort`` (by text), ``min`` or ``max`` (by number, the lowest or highest first), or none.
    """

    key: str
    title: str
    cell: Callable[[Mapping[str, str]], Any]
    use: str = ""


def _link(row: Mapping[str, str]) -> Html:
    case = row.get("case", "?")
    return element("a", case, href=f"#case-{case}")


def _reasons(row: Mapping[str, str]) -> Html | None:
    words = "; ".join(reasons_of(row))
    return element("span", words, class_="reasons") if words else None


def _given(name: str) -> Callable[[Mapping[str, str]], Any]:
    return lambda row: row.get(name) or None


COLUMNS = (
    Column("case", "case", _link, "sort"),
    Column("subject", "subject", _given("subject"), "sort"),
    Column("status", "status", lambda row: page.badge(status_of(row))),
    Column("reasons", "reasons", _reasons),
    Column("causes", "in doubt for", lambda row: " ".join(causes_of(row)) or None, "filter"),
    Column("accepted", "accepted", _given("accepted")),
    Column("verdict", "verdict", verdict_of, "filter"),
    *(Column(name, name, _given(name), "filter") for name in ("label", "split", "site")),
    Column("modalities", "modalities", lambda row: " ".join(modalities_of(row)) or None, "filter"),
    *(Column(one.key, one.title, one.of_case, one.worst.__name__) for one in NUMBERS),
)


def write_qc(cohort_dir: str | Path) -> Path:
    """Write ``qc.html`` into a cohort folder, from its ``cases.csv``, ``options.json`` and ``cases/*/qc.npz``.

    Every case has a card, the worst first. Up to 60 cases the pictures lie inside the page; of a larger cohort they lie
    in the folder ``qc`` beside it, the browser reads them as they are reached, and only those of new and changed cases
    are drawn.

    Returns:
        The path of the page.

    Raises:
        CohortError: there is no ``cases.csv``.
        OutputError: the folder is not ours, or cannot be written.
    """
    cohort = Path(cohort_dir)
    files = CohortFolder(cohort)
    rows = worst_first(read_rows(files.table, f"run `mmfusion prepare ... --out {cohort}` first", _NEEDED))
    claim_place(files.page, "cohort", "simulated cohort")
    options = optional_fields(files.options)
    folder = files.pictures
    album = Album(folder if len(rows) > INSIDE else None)
    cards = [case_card(cohort, row, album) for row in rows]
    columns = [column for column in COLUMNS if any(column.cell(row) is not None for row in rows)]
    body = [
        element("h1", "Quality of the prepared cases"),
        element("p", f"{cohort.resolve().name}: {_counts(rows)}", class_="lead"),
        element("p", "Research use only.", class_="banner"),
        element("p", "Simulated data: no patient.", class_="banner simulated") if options.get("simulated") else "",
        element("p", f"Warning: {clipped}.", class_="banner") if (clipped := clipped_words(rows, options)) else "",
        _what_to_do(cohort, rows),
        page.details("How to read the pictures", element("p", GOOD_AND_BAD)),
        _form(rows, columns),
        page.details("Table of all cases", _overview(rows, columns)),
        element("div", join(cards), id="cases"),
        page.section("Options and versions", page.options_table(options, "Options of mmfusion prepare")),
    ]
    path = page.write_page(files.page, f"QC of {cohort.resolve().name}", body, extra="qc")
    album.remove_others(folder)
    return path


def _counts(rows: Sequence[Mapping[str, str]]) -> str:
    states = Counter(status_of(row) for row in rows)
    subjects = len({row.get("subject") for row in rows})
    accepted = f"{states['accepted']} accepted, " if states["accepted"] else ""
    return (
        f"{len(rows)} cases of {subjects} subjects: {states['ok']} ok, {states['doubtful']} doubtful, {accepted}"
        f"{states['failed']} failed."
    )


def _what_to_do(cohort: Path, rows: Sequence[Mapping[str, str]]) -> Html:
    """How a person settles the doubtful cases, if there are any."""
    if not any(status_of(row) == "doubtful" for row in rows):
        return Html("")
    words = (
        "Doubtful cases are used. Compare the position that was used with the one beside it: if the used one is right, "
        "type the command of the case's card where the folder",
        element("code", cohort.resolve().name),
        "lies; add --note and words in quotes to say why. If not, correct the file, or leave the cell of that scan "
        "empty, and prepare again.",
    )
    return element("p", join(words))


def _overview(rows: Sequence[Mapping[str, str]], columns: Sequence[Column]) -> Html:
    lines = [[column.cell(row) for column in columns] for row in rows]
    attributes = [{"data_key": column.key, "data_use": column.use} for column in columns]
    caption = "Numbers are the worst of the modalities of a case."
    return page.table([column.title for column in columns], lines, caption, attributes=attributes, id_="overview")


def _form(rows: Sequence[Mapping[str, str]], columns: Sequence[Column]) -> Html:
    """What filters and sorts; hidden from readers without scripts, for whom it does nothing."""
    states = Counter(status_of(row) for row in rows)
    boxes = [_box("status", status, f"{status} ({states[status]})") for status in STATES if states[status]]
    choices = [_choice(column, rows) for column in columns if column.use == "filter"]
    sorts = {"": "worst first"} | {one.key: one.title for one in columns if one.use in ("sort", "min", "max")}
    find = void("input", type="search", name="find", placeholder="case, subject, reason", autocomplete="off")
    parts = [
        element("fieldset", join([element("legend", "status"), *boxes])),
        *choices,
        element("label", join(["find", find])),
        element("label", join(["sort by", _select("sort", sorts)])),
        _box("reverse", "1", "reversed"),
        element("label", join(["pictures", _select("pictures", {"": "two a row", "large": "one a row"})])),
        element("button", "Clear", type="button", id="clear"),
        element("output", "", id="shown", role="status", aria_live="polite"),
    ]
    return element("form", join(parts), id="choose", class_="choose", aria_label="Filter and sort", hidden="hidden")


def _choice(column: Column, rows: Sequence[Mapping[str, str]]) -> Html:
    """One value of a column, or any; empty if all cases have the same."""
    counts = Counter(column.cell(row) or NONE for row in rows)
    values = {"": "any"} | {value: f"{value} ({counts[value]})" for value in sorted(counts)}
    return element("label", join([column.title, _select(column.key, values)])) if len(counts) > 1 else Html("")


def _select(name: str, values: Mapping[str, str]) -> Html:
    return element("select", join(element("option", words, value=value) for value, words in values.items()), name=name)


def _box(name: str, value: str, words: str) -> Html:
    return element("label", join([void("input", type="checkbox", name=name, value=value), words]))
