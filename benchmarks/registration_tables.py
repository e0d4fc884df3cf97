"""Numbers with intervals from the rows of `registration.py`, and the goals that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
OURS, FAILED_MM = "ours", 5.0
ORDER = ("ours", "elastix", "ants", "greedy", "simpleitk")
_RESAMPLES = 1000


def interval(clusters: Sequence[str], statistic: Callable[[np.ndarray], float]) -> list[float | None]:
    """Of ``statistic(indices)``: the value, and the 95 % bootstrap interval over whole clusters."""
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    members = [np.flatnonzero(which == number) for number in range(len(names))]
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        value = statistic(np.arange(len(which)))
        draws = [
            statistic(np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))]))
            for _ in range(_RESAMPLES)
        ]
    kept = [draw for draw in draws if not np.isnan(draw)]
    ends = np.percentile(kept, (2.5, 97.5), method="nearest") if kept else (np.nan, np.nan)
    return [None if np.isnan(number) else float(number) for number in (value, *ends)]


def cluster(row: Row) -> str:
    """Subjects in the real study, whose trials share anatomy; else each pair stands alone."""
    return row["subject"] if row["set"].startswith("sts") else f"{row['subject']}/{row['trial']}"


def column(rows: Iterable[Row], key: str) -> np.ndarray:
    """``[N]``; what a tool did not deliver is infinitely wrong (``tre_mm``), or nan."""
    missing = np.inf if key == "tre_mm" else np.nan
    return np.array([missing if row.get(key) is None else row[key] for row in rows], float)


def summary(rows: list[Row]) -> dict[str, Any]:
    """Of one tool on one set."""
    tre = column(rows, "tre_mm")
    facts = {
        "n": len(rows),
        "median_tre_mm": interval([cluster(row) for row in rows], lambda index: float(np.median(tre[index]))),
        "worst_mm": float(tre.max()),
        "failures": int((tre > FAILED_MM).sum()),
        "wall_s": float(np.nanmedian(column(rows, "seconds"))),
        "cpu_s": float(np.nanmedian(column(rows, "cpu_seconds"))),
        "peak_mib": float(np.nanmedian(column(rows, "peak_mib"))),
    }
    if rows[0].get("floor_mm", 0) > 0.01:
        facts["rigid_floor_mm"] = float(np.median(column(rows, "floor_mm")))
    if rows[0].get("negative_jacobians") is not None:
        facts["negative_jacobians"] = float(column(rows, "negative_jacobians").mean())
    return facts


def ratios(ours: list[Row], peer: list[Row]) -> dict[str, Any]:
    """Ours over a peer on the pairs that both did: medians, and numbers of failures; with intervals."""
    of_peer = {(row["subject"], row["trial"]): row for row in peer}
    pairs = [(row, of_peer[row["subject"], row["trial"]]) for row in ours if (row["subject"], row["trial"]) in of_peer]
    if not pairs:
        return {"n": 0}
    clusters, sides = [cluster(row) for row, _ in pairs], list(zip(*pairs, strict=True))
    facts: dict[str, Any] = {"n": len(pairs)}
    for name, key in (("tre", "tre_mm"), ("wall", "seconds"), ("cpu", "cpu_seconds"), ("peak", "peak_mib")):
        a, b = (column(side, key) for side in sides)
        facts[name] = interval(clusters, lambda i, a=a, b=b: float(np.nanmedian(a[i]) / np.nanmedian(b[i])))
    a, b = (column(side, "tre_mm") > FAILED_MM for side in sides)
    facts["failures"] = interval(clusters, lambda i: float(a[i].sum() / b[i].sum()) if b[i].any() else np.nan)
    facts["failures_of"] = [int(a.sum()), int(b.sum())]
    return facts


def verdicts(rows: list[Row]) -> dict[str, Any]:
    """How well our verdict tells failures from good results."""
    failed, clusters = column(rows, "tre_mm") > FAILED_MM, [cluster(row) for row in rows]
    ok, score = np.array([row.get("verdict") == "ok" for row in rows]), column(rows, "score")

    def share(which: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda i: float(ok[i][which[i]].mean()) if which[i].any() else np.nan

    return {
        "n": len(rows),
        "failures": int(failed.sum()),
        "failures_called_ok_n": int((failed & ok).sum()),
        "auc": interval(clusters, lambda i: auc(score[i][failed[i]], score[i][~failed[i]])),
        "failures_called_ok": interval(clusters, share(failed)),
        "good_called_ok": interval(clusters, share(~failed)),
    }


def auc(failed: np.ndarray, good: np.ndarray) -> float:
    """The probability that a failure has the lower score; ties count half."""
    failed, good = failed[np.isfinite(failed)], np.sort(good[np.isfinite(good)])
    if not failed.size or not good.size:
        return float("nan")
    below, upto = np.searchsorted(good, failed, "left"), np.searchsorted(good, failed, "right")
    return float(1 - (below + upto).mean() / 2 / good.size)


def parts(name: str, rows: list[Row], off: tuple[str, ...]) -> dict[str, list[Row]]:
    """A set as a whole, its halves, and without subjects whose truth is known to be off."""
    out = {"all": rows}
    if name.startswith("sts"):
        out |= {half: [row for row in rows if row["pair"]["half"] == half] for half in ("tune", "holdout")}
        if name == "sts-ct-mr":
            fits = {f"{key}, fits at rest": [r for r in some if r["subject"] not in off] for key, some in out.items()}
            out |= fits
    else:
        for key in ("view", "moving"):
            for value in sorted({row["pair"][key] for row in rows if key in row["pair"]}):
                out[value] = [row for row in rows if row["pair"].get(key) == value]
    return {key: some for key, some in out.items() if some}


def describe(rows: list[Row], off: tuple[str, ...]) -> dict[str, Any]:
    """All numbers: for each set and part of it each tool, our ratios to it, and our verdicts."""
    out: dict[str, Any] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        out[name] = {}
        for part, some in parts(name, [row for row in rows if row["set"] == name], off).items():
            by_tool = {tool: [row for row in some if row["tool"] == tool] for tool in ORDER}
            by_tool = {tool: those for tool, those in by_tool.items() if those}
            facts: dict[str, Any] = {"tools": {tool: summary(those) for tool, those in by_tool.items()}}
            if OURS in by_tool:
                facts["ours_over"] = {t: ratios(by_tool[OURS], those) for t, those in by_tool.items() if t != OURS}
                facts["verdicts"] = verdicts(by_tool[OURS])
            out[name][part] = facts
    return out


def pooled_verdicts(rows: list[Row], off: tuple[str, ...]) -> dict[str, Any]:
    """Our verdicts over both sets of the sarcoma study."""
    some = [row for row in rows if row["set"].startswith("sts") and row["tool"] == OURS]
    fits = [row for row in some if not (row["set"] == "sts-ct-mr" and row["subject"] in off)]
    out = {}
    for word, those in (("", some), (", fits at rest", fits)):
        for half in ("all", "tune", "holdout"):
            chosen = [row for row in those if half in ("all", row["pair"]["half"])]
            if chosen:
                out[half + word] = verdicts(chosen)
    return out
