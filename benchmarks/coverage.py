"""How often the intervals of mmfusion.evaluation hold the truth: simulated test sets whose truth is known.

    python benchmarks/coverage.py [--simulations 200] [--only cohort visits case-control folds difference]

Scores are binormal, so that the AUC of the population is known and the other metrics follow by integration; the
probabilities are the true ones, or twice as sure on the logit scale. A set with fewer than 5 subjects of a class is
drawn again. Beside our interval stand the two that are usual: the percentile bootstrap of plain resamples, and that of
resamples within the classes. A cell is a number of subjects, a prevalence, an AUC and a calibration; the nominal level
is 95 %, and the goal at least 90 % in every cell. With 200 simulations a cell has a standard error of 1.5 points; one
that misses the goal is simulated again, ten times as often.

    cohort         each subject has one row, n and prevalence are of the population
    visits         1 to 4 rows per subject, half of the variance of their scores shared
    case-control   the number of subjects of each class is fixed
    folds          ridge models fitted in 5 folds, and their difference: the truth is the mean AUC of models that are
                   trained on as many subjects
    difference     the paired difference of two fixed scores, and its p value under no difference
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from mmfusion.evaluation import classification_metrics, compare
from mmfusion.evaluation.rows import bootstrap_weights, check_rows
from mmfusion.evaluation.scores import METRICS, value_of
from mmfusion.files import write_json
from mmfusion.prepare import versions
from mmfusion.progress import progress_line

RESULTS = Path(__file__).parent / "results" / "coverage.json"
SIZES, PREVALENCES, AUCS, SURENESS = (40, 50, 100, 200, 400), (0.1, 0.2, 0.3, 0.5), (0.7, 0.8, 0.9, 0.95), (1.0, 2.0)
RESAMPLES, LEAST, FOLDS = 600, 5, 5
GOAL = 0.90

Cell = dict[str, Any]
Covered = dict[str, list[tuple[bool, float]]]


def main() -> None:
    """Simulate the parts that are asked for, print what falls short, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text())["cells"] if RESULTS.is_file() else []
    for part in given.only:
        cells = [{"part": part, **cell} for cell in cells_of(part)]
        progress, done = progress_line(part), []
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for row in pool.map(measure, cells, itertools.repeat(given.simulations)):
                done.append(row)
                progress(len(done), len(cells))
        kept = [row for row in kept if row["part"] != part] + done
        write_json({"versions": versions(), "simulations": given.simulations, "cells": kept}, RESULTS)
        print(table(done))
    print(f"written: {RESULTS}")


def cells_of(part: str) -> list[Cell]:
    """The cells of a part that expect at least 5 subjects of a class."""
    if part == "folds":
        return [
            {"n": n, "prevalence": p, "signal": s} for n, p, s in itertools.product(SIZES[1:], (0.2, 0.5), (0.8, 1.6))
        ]
    if part == "cohort":
        grid = itertools.product(SIZES, PREVALENCES, AUCS, SURENESS)
    else:
        grid = itertools.product((50, 100, 400), (0.1, 0.3, 0.5), (0.7, 0.9, 0.95), (1.0,))
    cells = [{"n": n, "prevalence": p, "auc": auc, "sureness": sure} for n, p, auc, sure in grid]
    return [cell for cell in cells if cell["n"] * cell["prevalence"] >= LEAST]


def measure(cell: Cell, simulations: int) -> Cell:
    """A cell, simulated; and where an interval of ours misses the goal, simulated anew ten times as often.

    Among a thousand intervals some miss it by chance: these have another, longer look, which alone counts.
    """
    row = simulate(cell, simulations)
    if all(one["coverage"] >= GOAL for name, one in row["coverage"].items() if name.endswith("ours")):
        return row
    return {**simulate(cell, 10 * simulations), "again": True}


def simulate(cell: Cell, simulations: int) -> Cell:
    """The coverage and the mean width of every interval of a cell."""
    generator = np.random.default_rng([simulations, *map(ord, json.dumps(cell, sort_keys=True))])
    covered: Covered = {}
    for name, interval, truth in PARTS[cell["part"]](cell, generator, simulations):
        low, high = interval
        covered.setdefault(name, []).append((low <= truth <= high, high - low))
    summary = {
        name: {
            "coverage": float(np.mean([inside for inside, _ in rows])),
            "width": float(np.mean([width for _, width in rows])),
            "intervals": len(rows),
        }
        for name, rows in covered.items()
    }
    return {**cell, "coverage": summary}


Intervals: TypeAlias = Iterator[tuple[str, tuple[float, float], float]]


def of_cohort(cell: Cell, generator: np.random.Generator, simulations: int) -> Intervals:
    """Each metric: ours, the plain and the stratified percentile interval."""
    truth = truth_of(cell["prevalence"], cell["auc"], cell["sureness"])
    for seed in range(simulations):
        yield from intervals(*draw(cell, generator), cell, truth, seed)


def of_case_control(cell: Cell, generator: np.random.Generator, simulations: int) -> Intervals:
    """The same where the number of subjects of each class is fixed, and declared to be."""
    truth = truth_of(cell["prevalence"], cell["auc"], cell["sureness"])
    label = (np.arange(cell["n"]) < round(cell["n"] * cell["prevalence"])).astype(int)
    for seed in range(simulations):
        probability = scores(label, generator.normal(size=label.size), cell)
        yield from intervals(label, probability, np.arange(label.size), cell, truth, seed, case_control=True)


def of_visits(cell: Cell, generator: np.random.Generator, simulations: int) -> Intervals:
    """The same with 1 to 4 rows per subject."""
    truth = truth_of(cell["prevalence"], cell["auc"], cell["sureness"])
    for seed in range(simulations):
        label, _, _ = draw(cell, generator)
        subject = np.repeat(np.arange(label.size), generator.integers(1, 5, size=label.size))
        shared, own = generator.normal(size=label.size)[subject], generator.normal(size=subject.size)
        probability = scores(label[subject], np.sqrt(0.5) * (shared + own), cell)
        yield from intervals(label[subject], probability, subject, cell, truth, seed)


def of_folds(cell: Cell, generator: np.random.Generator, simulations: int) -> Intervals:
    """The mean of the folds of a method, and the difference of two, whose truths are those of their training size."""
    runs = [cross_validation(cell, generator) for _ in range(simulations)]
    truth = np.mean([true for *_, true in runs], axis=0)
    for label, shares, fold, _ in runs:
        both, single = (classification_metrics(label, share, metrics=["auc"], folds=fold)["auc"] for share in shares)
        difference = compare(label, shares[0], shares[1], folds=fold)
        estimates = {"both": (both, truth[0]), "single": (single, truth[1])}
        estimates["difference"] = (difference, truth[0] - truth[1])
        for name, (estimate, true) in estimates.items():
            if estimate.low is not None and estimate.high is not None:
                yield f"{name} | ours", (estimate.low, estimate.high), true
        pooled = classification_metrics(label, shares[0], metrics=["auc"])["auc"]
        if pooled.low is not None and pooled.high is not None:
            yield "both | pooled rows", (pooled.low, pooled.high), truth[0]


def of_difference(cell: Cell, generator: np.random.Generator, simulations: int) -> Intervals:
    """The difference of two fixed scores that share half of their noise; and of two equally good ones, by p < 0.05."""
    other = cell | {"auc": max(0.6, cell["auc"] - 0.1)}
    for seed in range(simulations):
        label, _, _ = draw(cell, generator)
        shared, one, two = generator.normal(size=(3, label.size))
        noise = np.sqrt(0.5) * (shared + one), np.sqrt(0.5) * (shared + two)
        a, b, equal = scores(label, noise[0], cell), scores(label, noise[1], other), scores(label, noise[1], cell)
        difference = compare(label, a, b, resamples=RESAMPLES, seed=seed)
        if difference.low is not None and difference.high is not None:
            yield "auc difference | ours", (difference.low, difference.high), cell["auc"] - other["auc"]
        null = compare(label, a, equal, resamples=RESAMPLES, seed=seed)
        if null.p_value is not None:
            yield "no difference, p >= 0.05 | ours", (0.05, 1.0), null.p_value


def draw(cell: Cell, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and subjects ``[N]`` of a cohort with at least 5 subjects of each class."""
    while True:
        label = (generator.random(cell["n"]) < cell["prevalence"]).astype(int)
        if LEAST <= label.sum() <= cell["n"] - LEAST:
            break
    return label, scores(label, generator.normal(size=label.size), cell), np.arange(label.size)


def scores(label: np.ndarray, noise: np.ndarray, cell: Cell) -> np.ndarray:
    """Probabilities of class 1 from standard normal noise; their logits are the true ones times the sureness."""
    distance = np.sqrt(2) * norm.ppf(cell["auc"])
    prior = np.log(cell["prevalence"] / (1 - cell["prevalence"]))
    return expit(cell["sureness"] * (distance * (noise + distance * label) - distance**2 / 2 + prior))


@cache
def truth_of(prevalence: float, auc: float, sureness: float, points: int = 400_000) -> dict[str, float]:
    """Every metric of the population, from evenly spaced quantiles of the noise."""
    label = (np.arange(points) < round(prevalence * points)).astype(int)
    noise = np.concatenate([norm.ppf((np.arange(k) + 0.5) / k) for k in (label.sum(), points - label.sum())])
    cell = {"prevalence": prevalence, "auc": auc, "sureness": sureness}
    rows = check_rows(label, scores(label, noise, cell))
    return {name: value_of(name, rows, prevalence) for name in METRICS}


def intervals(
    label: np.ndarray,
    probability: np.ndarray,
    subject: np.ndarray,
    cell: Cell,
    truth: dict[str, float],
    seed: int,
    case_control: bool = False,
) -> Intervals:
    """Each metric's interval: ours, the plain and the stratified percentile interval."""
    at = {"threshold": cell["prevalence"], "groups": subject}
    ours = classification_metrics(label, probability, **at, case_control=case_control, resamples=RESAMPLES, seed=seed)
    for name, estimate in ours.items():
        if estimate.low is not None and estimate.high is not None:
            yield f"{name} | ours", (estimate.low, estimate.high), truth[name]
    rows = check_rows(label, probability, subject)
    for usual, stratified in (("percentile", False), ("stratified percentile", True)):
        (weights,) = bootstrap_weights(rows, RESAMPLES // 3, seed, stratified)
        for name, metric in METRICS.items():
            low, high = np.quantile(metric(rows, weights, cell["prevalence"]), [0.025, 0.975])
            yield f"{name} | {usual}", (float(low), float(high)), truth[name]


def cross_validation(
    cell: Cell, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ridge models of eight features and of the first four, fitted in stratified folds.

    Returns:
        Labels ``[N]``, probabilities ``[2, N]``, folds ``[N]``, and the mean true AUC of the models ``[2]``.
    """
    n, features = cell["n"], 8
    effect = cell["signal"] / np.sqrt(features) * np.ones(features)
    label = (np.arange(n) < round(n * cell["prevalence"])).astype(int)
    values = generator.normal(size=(n, features)) + label[:, None] * effect
    fold = np.empty(n, dtype=int)
    for k in (0, 1):
        members = generator.permutation(np.flatnonzero(label == k))
        fold[members] = np.arange(len(members)) % FOLDS
    shares, true = np.empty((2, n)), np.zeros((2, FOLDS))
    for (row, used), k in itertools.product(enumerate((features, features // 2)), range(FOLDS)):
        test = fold == k
        x, y = values[~test, :used], label[~test] - label[~test].mean()
        weight = np.linalg.solve((x - x.mean(0)).T @ (x - x.mean(0)) + 10 * np.eye(used), (x - x.mean(0)).T @ y)
        shares[row, test] = expit(4 * (values[test, :used] - x.mean(0)) @ weight)
        true[row, k] = norm.cdf(weight @ effect[:used] / np.sqrt(2 * weight @ weight))
    return label, shares, fold, true.mean(axis=1)


def table(rows: list[Cell]) -> str:
    """The lowest and mean coverage of each interval over the cells, and ours that miss the goal or never miss."""
    names = sorted({name for row in rows for name in row["coverage"]})
    lines = [f"{'interval':48s} {'lowest':>7s} {'mean':>7s} {'highest':>7s} {'width':>8s}"]
    for name in names:
        summaries = [row["coverage"][name] for row in rows if name in row["coverage"]]
        shares, width = [one["coverage"] for one in summaries], np.mean([one["width"] for one in summaries])
        lines.append(f"{name:48s} {min(shares):7.1%} {np.mean(shares):7.1%} {max(shares):7.1%} {width:8.3f}")
    for row, name in itertools.product(rows, names):
        one = row["coverage"].get(name)
        if one and name.endswith("ours") and not GOAL <= one["coverage"] <= 0.99:
            where = ", ".join(
                f"{key} {value}" for key, value in row.items() if key not in ("coverage", "part", "again")
            )
            lines.append(f"{'below the goal' if one['coverage'] < GOAL else 'above 99 %'}: {name} at {where}: "
                         f"{one['coverage']:.1%}")  # fmt: skip
    return "\n".join(lines)


PARTS = {
    "cohort": of_cohort,
    "visits": of_visits,
    "case-control": of_case_control,
    "folds": of_folds,
    "difference": of_difference,
}


if __name__ == "__main__":
    main()
