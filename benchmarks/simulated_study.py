"""The demo on several seeds: does fusion beat the modality alone that scores highest, and is registration right?

python benchmarks/simulated_study.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

from mmfusion.demo import run_demo
from mmfusion.files import write_json
from mmfusion.prepare import versions

RESULTS = Path(__file__).parent / "results" / "simulated_study.json"


def main() -> None:
    """Run the seeds, print a line each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=None, help="keep the folders of the runs here")
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (given.out or Path(scratch)) / f"seed{seed}"
            start = time.perf_counter()
            run_demo(folder, seed=seed)
            metrics = json.loads((folder / "run" / "metrics.json").read_text())
            rows.append({"seed": seed, "seconds": round(time.perf_counter() - start, 1), **_facts(metrics)})
            write_json(
                {"machine": f"{platform.processor() or platform.machine()}", "versions": versions(), "seeds": rows},
                RESULTS,
            )
    print("\nseed  fusion AUC            best alone, by this AUC  difference              raw AUC  worst mm  seconds")
    for row in rows:
        fused, alone, gap, raw = row["fusion"], row["best_alone"], row["difference"], row["raw"]
        print(
            f"{row['seed']:4d}  {fused['value']:.3f} [{fused['low']:.3f}, {fused['high']:.3f}]  "
            f"{alone['modality']:>4s} {alone['auc']:.3f}               "
            f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]  "
            f"{raw['auc']['value']:.3f}    {raw['registration']['worst_mm']:.2f}      {row['seconds']:.0f}"
        )
    print(f"wrote {RESULTS}")


def _facts(metrics: dict) -> dict:
    """What the table needs of metrics.json; best alone is picked by its AUC on the test itself, which flatters it."""
    best = max(metrics["comparison"], key=lambda name: metrics["comparison"][name]["auc"]["value"])
    return {
        "fusion": metrics["metrics"]["auc"],
        "alone": {name: one["auc"] for name, one in metrics["comparison"].items()},
        "best_alone": {"modality": best, "auc": metrics["comparison"][best]["auc"]["value"]},
        "difference": metrics["comparison"][best]["difference"],
        "ceilings": metrics["ceilings"],
        "raw": metrics["raw"],
    }


if __name__ == "__main__":  # workers are started by spawn, which imports this file again
    main()
