"""The federated model against each site alone and against pooled training, on simulated subjects. SIMULATED DATA.

    python examples/federated/compare.py --out OUT

Three sites of different size and with different shares of the classes; the second has no PET. All train the same
network for as many passes over their own cases, and are judged on one large fresh test set. Prints a table and writes
``results.json`` beside this script.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import Agreement, read_agreement
from federate import federation, simulate
from monai.data import DataLoader, Dataset

from mmfusion.bundle import run_config
from mmfusion.cohort.simulate import MODALITIES, draw_subjects, observed_ceilings
from mmfusion.evaluation import classification_metrics, compare
from mmfusion.files import write_json
from mmfusion.predict import dataset_items, infer, load_model, probabilities
from mmfusion.prepare import Cohort, open_cohort, versions, write_case, write_cohort
from mmfusion.prepare.simulated import simulate_onto_grid, simulated_case, simulated_cohort
from mmfusion.transforms import LoadPreparedCased

HERE = Path(__file__).parent
SITES: dict[str, dict[str, Any]] = {
    "north": {"count": 150, "positive": 0.5, "missing": 0.05},
    "south": {"count": 110, "positive": 0.3, "missing": 0.05, "without": ("pet",)},
    "west": {"count": 70, "positive": 0.6, "missing": 0.05},
}
TEST = 400


def simulated_sites(out: Path, seed: int, case: dict[str, Any]) -> dict[str, Cohort]:
    """The cohort folder of each site, and ``pooled``, with the same cases in the same parts."""
    if (out / "pooled" / "cases.csv").is_file():  # written last
        return {name: open_cohort(out / name) for name in (*SITES, "pooled")}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*SITES, "pooled")}
    for number, (site, how) in enumerate(SITES.items()):
        drawn = {name: how[name] for name in ("positive", "missing")}
        subjects = draw_subjects(how["count"], 100 * (seed + 1) + number, prefix=site.upper(), **drawn)
        for place, subject in enumerate(subjects):
            lost = (*subject.missing, *how.get("without", ()))
            if len(set(lost)) < len(MODALITIES):
                subject = replace(subject, missing=lost)
                split = "validation" if place < how["count"] // 5 else "train"
                result = simulate_onto_grid(subject, case)
                for name in (site, "pooled"):
                    rows[name].append(write_case(out / name, simulated_case(subject, split), result, key="simulated"))
    return {name: write_cohort(out / name, {**case, "simulated": True}, rows[name], qc=False) for name in rows}


def trained(run: Path, cohort: Cohort, agreement: Agreement) -> Path:
    """One ordinary training on the modalities that the cohort's cases have."""
    there = [name for name in agreement.modalities if any(name in one.modalities for one in cohort.cases)]
    if not (run / "model.json").is_file():
        how = {**agreement.options, "modalities": there, "classes": list(agreement.classes)}
        run_config("train", cohort=str(cohort.folder), run_dir=str(run), epochs=agreement.epochs, **how)
    return run


def predicted(run: Path, test: Cohort) -> dict[str, np.ndarray]:
    """Probabilities ``[K]`` of the test cases that have a modality which the model reads, by case."""
    model, network = load_model(run)
    items = dataset_items(test, test.cases, model.modalities, model.classes)
    loader = DataLoader(Dataset(items, LoadPreparedCased(model.modalities, test.modalities)), batch_size=16)
    shares = probabilities(infer(network, loader), model)
    return {item["case"]: row for item, row in zip(items, shares, strict=True)}


def measured(said: dict[str, dict[str, np.ndarray]], test: Cohort, model: tuple[str, ...]) -> dict[str, Any]:
    """AUC of each model, and the federated one's minus it, on the cases that both answered."""
    out = {}
    for name, one in said.items():
        cases = [case.case for case in test.cases if case.case.id in one and case.case.id in said["federated"]]
        label = np.array([model.index(str(case.label)) for case in cases])
        own, federated = (np.stack([answer[case.id] for case in cases]) for answer in (one, said["federated"]))
        out[name] = {
            "auc": classification_metrics(label, own)["auc"].as_dict(),
            "log_loss": float(-np.log(own[np.arange(len(label)), label]).mean()),
            "federated_minus_this": None if name == "federated" else compare(label, federated, own).as_dict(),
        }
    return out


def main() -> None:
    """Simulate, train all, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; what is there is used again")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the subjects and of the training")
    parser.add_argument("--agreement", type=Path, default=HERE / "agreement.yaml")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in given.seed:
        agreement = read_agreement(given.agreement)
        agreement = replace(agreement, options={**agreement.options, "seed": seed})
        out, start = given.out / f"seed{seed}", time.perf_counter()
        cohorts = simulated_sites(out / "cohorts", seed, agreement.case)
        fresh = draw_subjects(TEST, 10_000 + seed, prefix="TEST", missing=0.05)
        test = simulated_cohort(out / "cohorts" / "test", [], fresh)
        runs = {"federated": out / "federated"}
        if not (runs["federated"] / "model.json").is_file():
            recipe = federation(agreement, {site: cohorts[site].folder for site in SITES}, runs["federated"])
            simulate(recipe, list(SITES), runs["federated"])
        runs["pooled"] = trained(out / "pooled", cohorts["pooled"], agreement)
        runs |= {f"{site} alone": trained(out / site, cohorts[site], agreement) for site in SITES}
        said = {name: predicted(run, test) for name, run in runs.items()}
        rows = measured(said, test, agreement.classes)
        ceiling = observed_ceilings(fresh)["all"]
        took = round(time.perf_counter() - start)
        found.append({"seed": seed, "ceiling": ceiling, "seconds": took, "models": rows})
        print(table(found[-1]))
    machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    facts = {"simulated": True, "machine": machine, "versions": versions(), "sites": SITES, "test": TEST}
    write_json({**facts, "seeds": found}, given.json)
    print(f"wrote {given.json}")


def table(found: dict[str, Any]) -> str:
    """A line a model."""

    def interval(one: dict[str, Any], sign: str = "") -> str:
        return f"{one['value']:{sign}.3f} [{one['low']:{sign}.3f}, {one['high']:{sign}.3f}]"

    lines = [
        f"\nSIMULATED DATA, seed {found['seed']}; the best possible AUC on these subjects is {found['ceiling']:.3f}",
        "  model          AUC [95 %]              n    federated minus this [95 %]  log loss",
    ]
    for name, one in found["models"].items():
        gap = one["federated_minus_this"]
        beside = "" if gap is None else interval(gap, "+")
        lines.append(f"  {name:12s}   {interval(one['auc'])}   {one['auc']['n']}   {beside:27s}  {one['log_loss']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
