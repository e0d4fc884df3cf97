"""The bundles on the simulated study: does fusion beat the modality alone that scores highest, does a seed repeat?

    python benchmarks/bundles.py --work FOLDER [--bundles NAME ...] [--seeds 0 1 2 3] [--again NAME] [--pack]

For each bundle of ``bundles/``: the command of its page, ``train.yaml`` with ``docs/embedded_study.yaml``, for each
seed; for seed 0 also each modality alone with the same options; ``evaluate.yaml`` on 1000 fresh subjects. Every step is
a command of its own, as a user types it. What is finished in FOLDER stays, so that an interrupted run goes on. With
``--again``, seed 0 of that bundle is trained a second time, and the AUC compared. ``--pack`` puts the models of seed 0
into the bundles.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmfusion.bundle import pack_model
from mmfusion.files import write_json
from mmfusion.prepare import versions
from mmfusion.prepare.simulated import simulate_study

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "bundles.json"
MODALITIES = ("ct", "pet", "mr")
SUV_MAX = 10.0  # as docs/embedded_study.yaml of each bundle has it
NAMES = tuple(f"{name}_fusion_classification" for name in ("input", "feature", "decision", "m3t"))


def main() -> None:
    """Train, evaluate, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the study and the runs")
    parser.add_argument("--bundles", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--again", choices=NAMES, help="train seed 0 of this bundle twice")
    parser.add_argument("--pack", action="store_true", help="put the models of seed 0 into the bundles")
    given = parser.parse_args()
    study = simulate_study(given.work / "study", suv_max=SUV_MAX).folder
    known = json.loads(RESULTS.read_text())["bundles"] if RESULTS.is_file() else {}
    for name in given.bundles:
        rows = {}
        for seed in given.seeds:
            run = given.work / name / f"seed{seed}"
            seconds = train(name, study, run, seed)
            if seed == 0:
                for modality in MODALITIES:
                    train(name, study, run / "single" / modality, seed, modality)
            rows[str(seed)] = {**evaluated(name, run, again=seed == 0), "train_s": seconds}
        known[name] = summary(rows)
        if given.again == name:
            run = given.work / name / "again"
            train(name, study, run, 0)
            first, second = rows["0"]["auc"]["value"], evaluated(name, run)["auc"]["value"]
            known[name]["again"] = {"auc": second, "difference": second - first}
        if given.pack:
            pack_model(ROOT / "bundles" / name, given.work / name / "seed0", dtype="float16")
        machine = f"{platform.processor() or platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads"
        write_json({"machine": machine, "versions": versions(), "bundles": known}, RESULTS)
    print(table(known))


def train(name: str, study: Path, run: Path, seed: int, modality: str | None = None) -> float | None:
    """The documented command, unless the run is finished; returns its seconds."""
    if (run / "model.json").is_file():
        return None
    options = ROOT / "bundles" / name / "docs" / "embedded_study.yaml"
    alone = ["--modalities", f"['{modality}']"] if modality else []
    given = ["--args_file", options, "--cohort", study, "--run_dir", run, "--seed", seed, "--threads", 1, *alone]
    start = time.perf_counter()
    bundle_run(name, "train", *given)
    return round(time.perf_counter() - start, 1)


def evaluated(name: str, run: Path, again: bool = False) -> dict[str, Any]:
    """``metrics.json`` of the test part, in short; the single modalities first, which it compares with."""
    for alone in sorted((run / "single").glob("*")):
        if not (alone / "metrics.json").is_file():
            bundle_run(name, "evaluate", "--run_dir", alone)
    if again or not (run / "metrics.json").is_file():
        bundle_run(name, "evaluate", "--run_dir", run)
    found = json.loads((run / "metrics.json").read_text())
    return {
        "auc": found["metrics"]["auc"],
        "log_loss": found["metrics"]["log_loss"],
        "single": {one: (facts["auc"], facts["difference"]) for one, facts in found["comparison"].items()},
        "temperature": json.loads((run / "model.json").read_text())["temperature"],
    }


def bundle_run(name: str, config: str, *arguments: object) -> None:
    """``python -m monai.bundle run`` on a configuration of a bundle."""
    file = ROOT / "bundles" / name / "configs" / f"{config}.yaml"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", file, *arguments]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All seeds, and of seed 0 the modality alone with the highest AUC on these cases, with the paired difference."""
    values = [row["auc"]["value"] for row in rows.values()]
    out: dict[str, Any] = {"seeds": rows, "mean": statistics.mean(values)}
    if len(values) > 1:
        out["deviation"] = statistics.stdev(values)
    if single := rows.get("0", {}).get("single"):
        best = max(single, key=lambda one: single[one][0]["value"])
        out |= {"best_single": best, "single_auc": single[best][0], "difference": single[best][1]}
        out["beats_single"] = single[best][1]["low"] > 0
    return out


def table(bundles: dict[str, dict[str, Any]]) -> str:
    """What a reader wants to see."""

    def interval(one: dict[str, Any], sign: str = "") -> str:
        return f"{one['value']:{sign}.3f} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"

    lines = [
        f"{'bundle':32s} {'AUC, seed 0':22s} {'best alone, by this AUC':26s} {'fusion minus it':25s} "
        "seeds: mean, deviation"
    ]
    for name, one in bundles.items():
        first = one["seeds"].get("0")
        alone = f"{one['best_single']} {interval(one['single_auc'])}" if "best_single" in one else "-"
        gain = interval(one["difference"], "+") if "difference" in one else "-"
        spread = f"{one['mean']:.3f}, {one.get('deviation', float('nan')):.3f} ({len(one['seeds'])} seeds)"
        lines.append(f"{name:32s} {interval(first['auc']) if first else '-':22s} {alone:26s} {gain:25s} {spread}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
