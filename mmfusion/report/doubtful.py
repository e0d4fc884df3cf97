"""What doubtful cases mean for a result: how many there are by cause, and the AUC with and without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmfusion.report import page
from mmfusion.report.files import CAUSES, causes_of, status_of
from mmfusion.report.page import Html, element
from mmfusion.report.result import Result
from mmfusion.report.words import interval, value

_UNKNOWN = "not recorded"  # by an earlier version


def doubtful_section(result: Result) -> list[Html]:
    """A table of causes by part, the AUC with and without the doubtful cases, and whether that is still up to date."""
    return [one for one in (_by_cause(result), _auc(result), _outdated(result)) if one]


def _by_cause(result: Result) -> Html:
    parts = {row.get("case"): row.get("part", "") for row in result.split}
    shown = [part for part in ("train", "head", "validation", "test") if part in parts.values()]
    doubtful = [row for row in result.cases if status_of(row) == "doubtful"]
    accepted = [row for row in result.cases if status_of(row) == "accepted"]
    if not doubtful and not accepted:
        return Html("")

    def line(words: str, rows: Sequence[Mapping[str, str]]) -> list[object]:
        return [words, len(rows), *(sum(parts.get(row.get("case")) == part for row in rows) for part in shown)]

    by_cause: dict[str, list[Mapping[str, str]]] = {cause: [] for cause in CAUSES}
    for row in doubtful:
        for cause in causes_of(row) or [_UNKNOWN]:
            by_cause.setdefault(cause, []).append(row)
    lines = [line(cause, rows) for cause, rows in by_cause.items() if rows]
    lines.append(line("all doubtful cases", doubtful))
    if accepted:
        lines.append(line("accepted by a person", accepted))
    caption = "A case may be in doubt for several causes. Those that a person accepted do not count as doubtful."
    return page.table(["in doubt for", "cohort", *shown], lines, caption)


def _auc(result: Result) -> Html:
    entry = result.without_doubtful
    if not entry:
        return Html("")
    count = len(entry["doubtful"])
    estimates = {"all cases": result.estimate("auc"), f"without the {count} doubtful": entry["auc"]}
    rows = [[name, value(e), interval(e), e.get("n"), e.get("reason")] for name, e in estimates.items()]
    return page.table(["AUC", "value", "interval", "cases", "note"], rows)


def _outdated(result: Result) -> Html:
    """A sentence if other cases are doubtful now than when the run was evaluated."""
    evaluated = {row.get("case") for row in result.predictions.rows}
    now = {row.get("case") for row in result.cases if status_of(row) == "doubtful"} & evaluated
    if not result.cases or now == set(result.without_doubtful.get("doubtful", ())):
        return Html("")
    words = f"Since the evaluation doubts were settled or came up ({len(now)} cases are doubtful now). Evaluate again."
    return element("p", words)
