"""The goals of registration, and the tables that `registration.py` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from registration_tables import FAILED_MM, OURS

Facts = dict[str, Any]
_COUNTED_FROM = 20  # pairs: from fewer, a share of failures says nothing


def goals(sets: Facts, verdict: Facts) -> list[Facts]:
    """Each goal that the rows allow to be judged: its figure with interval, its limit, and whether it is reached."""
    return [
        {"goal": text, "figure": figure, "limit": limit, "reached": reached(figure[0], limit)}
        for text, figure, limit in _goals(sets, verdict)
        if figure and figure[0] is not None
    ]


def reached(value: float, limit: str) -> bool:
    """Of a limit as ``<= 0.3``."""
    sign, number = limit.split()
    return value <= float(number) if sign == "<=" else value >= float(number)


def _goals(sets: Facts, verdict: Facts) -> Iterator[tuple[str, list | None, str]]:
    def over(name: str, tool: str, what: str) -> list | None:
        return sets.get(name, {}).get("all", {}).get("ours_over", {}).get(tool, {}).get(what)

    yield "rigid wall / elastix", over("heads-rigid", "elastix", "wall"), "<= 0.30"
    yield "rigid wall / ANTs", over("heads-rigid", "ants", "wall"), "<= 0.025"
    yield "rigid median TRE / best peer", worst_ratio(sets, "heads-rigid", "all", "tre"), "<= 0.6"
    yield "affine wall / elastix rigid and affine", over("heads-affine", "elastix", "wall"), "<= 0.25"
    yield "rigid peak memory / elastix", over("heads-rigid", "elastix", "peak"), "<= 0.5"
    capture = sets.get("capture", {}).get("all", {}).get("tools", {}).get(OURS)
    yield f"capture: failures (of {capture['n'] if capture else 50})", capture and [capture["failures"]], "<= 0"
    for name in ("sts-ct-pet", "sts-ct-mr"):
        for part in sets.get(name, {}):
            if part not in ("tune", "tune, fits at rest"):
                yield f"{name} ({part}): failures / best peer's", failure_ratio(sets, name, part), "<= 0.5"
    for part, found in verdict.items():
        if part not in ("tune", "tune, fits at rest"):
            yield f"verdict ({part}): AUC", found["auc"], ">= 0.95"
            yield f"verdict ({part}): failures called ok", found["failures_called_ok"], "<= 0.05"
            yield f"verdict ({part}): good called ok", found["good_called_ok"], ">= 0.85"
    for name in ("open-ms", "open-ms-affine"):
        yield f"{name}: median TRE / best peer", worst_ratio(sets, name, "all", "tre"), "<= 1"
    yield "deformable TRE / SyN", over("deformable", "ants", "tre"), "<= 1"
    yield "deformable wall / SyN", over("deformable", "ants", "wall"), "<= 1"


def worst_ratio(sets: Facts, name: str, part: str, what: str) -> list | None:
    """Ours over the peer that does best on the pairs it shares with ours: the largest of the ratios."""
    found = sets.get(name, {}).get(part, {}).get("ours_over", {}).values()
    return max((one[what] for one in found if one["n"] and one[what][0] is not None), default=None)


def failure_ratio(sets: Facts, name: str, part: str) -> list | None:
    """Ours over the peer with the fewest failures; where that one has none, 0 if ours has none and else infinity.

    Peers that ran on a few pairs only are left out.
    """
    found = [one for one in sets[name][part].get("ours_over", {}).values() if one["n"] >= _COUNTED_FROM]
    if not found:
        return None
    best = min(found, key=lambda one: one["failures_of"][1] / one["n"])
    ours, peer = best["failures_of"]
    return best["failures"] if peer else [0.0 if ours == 0 else float("inf")]


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def spread(figure: list | None, digits: int = 3) -> str:
    """``value [low, high]``."""
    if not figure:
        return "-"
    if len(figure) == 1:
        return number(figure[0], digits)
    return f"{number(figure[0], digits)} [{number(figure[1], digits)}, {number(figure[2], digits)}]"


def lines(sets: Facts, verdict: Facts) -> Iterator[str]:
    """The tables as text."""
    heads = ("tool", "n", "median TRE mm", "worst", "failed", "wall s", "CPU s", "MiB")
    layout = "  {:10s}{:>5s}  {:24s}{:>8s}{:>7s}{:>9s}{:>9s}{:>7s}"
    for name, of_set in sets.items():
        for part, facts in of_set.items():
            yield f"\n{name}, {part}  (failed: mean error > {FAILED_MM:g} mm)"
            yield layout.format(*heads)
            for tool, row in facts["tools"].items():
                cells = [number(row[key]) for key in ("worst_mm", "failures", "wall_s", "cpu_s")]
                cells = [tool, str(row["n"]), spread(row["median_tre_mm"]), *cells, f"{row['peak_mib']:.0f}"]
                folds = row.get("negative_jacobians")
                yield layout.format(*cells) + ("" if folds is None else f"  negative Jacobians {folds:.2%}")
            floors = [row["rigid_floor_mm"] for row in facts["tools"].values() if "rigid_floor_mm" in row]
            if floors:
                yield f"  the best rigid motion leaves {max(floors):.2f} mm: the truth is an affine"
            for tool, ratio in facts.get("ours_over", {}).items():
                if ratio["n"] and part == "all":  # those of the parts are in the JSON
                    words = [f"{key} {spread(ratio[key], 2)}" for key in ("tre", "wall", "cpu", "peak")]
                    ours, peer = ratio["failures_of"]
                    yield f"  ours / {tool} ({ratio['n']} pairs): {', '.join(words)}, failures {ours} / {peer}"
            if name.startswith("sts") and "verdicts" in facts:
                yield f"  verdict: {verdict_words(facts['verdicts'])}"
    for part, facts in verdict.items():
        yield f"\nverdict, both sarcoma sets, {part}: {verdict_words(facts)}"
    yield "\n  {:58s}{:28s}{:10s}{}".format("goal", "figure [95 %]", "limit", "reached")
    for goal in goals(sets, verdict):
        figure = spread(goal["figure"])
        yield f"  {goal['goal']:58s}{figure:28s}{goal['limit']:10s}{'yes' if goal['reached'] else 'NO'}"


def verdict_words(facts: Facts) -> str:
    return (
        f"AUC {spread(facts['auc'])}, {facts['failures_called_ok_n']} of {facts['failures']} failures called ok "
        f"({spread(facts['failures_called_ok'], 2)}), good called ok {spread(facts['good_called_ok'], 2)}"
    )
