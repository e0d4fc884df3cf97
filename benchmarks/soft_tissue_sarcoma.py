"""The main path on the real soft-tissue sarcoma study (TCIA, CC BY 3.0), whose scans are aligned at rest.

    python benchmarks/soft_tissue_sarcoma.py ../shared/testdata/sts_dicom

PET and MR share CT's frame of reference: whatever registration moves them by is harm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mmfusion.cohort import build_index, check_manifest
from mmfusion.files import write_json
from mmfusion.prepare import prepare_cohort, versions

RESULTS = Path(__file__).parent / "results" / "soft_tissue_sarcoma.json"


def main() -> None:
    """Index, check, prepare; print what happened, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the DICOM study, with participants.csv")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        index = build_index(given.root, labels=given.root / "participants.csv", label="lung_metastasis")
        manifest = Path(scratch) / "manifest.csv"
        index.write(manifest)
        indexed = time.perf_counter()
        problems = Counter(problem.level for problem in check_manifest(manifest))
        checked = time.perf_counter()
        cohort = prepare_cohort(manifest, Path(scratch) / "cohort", center="mask")
        prepared = time.perf_counter()
    pairs = [
        {
            "case": row["case"],
            "modality": name,
            "motion_mm": float(row[f"{name}_motion_mm"]),
            "verdict": row[f"{name}_verdict"],
            "score": float(row[f"{name}_score"]),
        }
        for row in cohort.rows
        for name in row["modalities"].split()
        if name != row["reference"]
    ]
    motion = np.array([pair["motion_mm"] for pair in pairs])
    harm = [pair for pair in pairs if pair["motion_mm"] > 2 and pair["verdict"] == "ok"]
    facts = {
        "subjects": len({case.subject for case in index.cases}),
        "with_all": sum(set(case.images) == {"ct", "pet", "mr"} and case.mask is not None for case in index.cases),
        "problems": dict(problems),
        "seconds": {
            "index": round(indexed - start, 1),
            "check": round(checked - indexed, 1),
            "prepare": round(prepared - checked, 1),
        },
        "status": dict(Counter(row["status"] for row in cohort.rows)),
        "verdicts": {
            name: dict(Counter(p["verdict"] for p in pairs if p["modality"] == name)) for name in ("pet", "mr")
        },
        "moved_more_than_2_mm": int((motion > 2).sum()),
        "moved_more_than_2_mm_and_called_ok": len(harm),
        "worst_motion_mm": float(motion.max()),
    }
    for name, value in facts.items():
        print(f"{name:36s} {value}")
    write_json({"versions": versions(), **facts, "pairs": pairs}, RESULTS)
    print(f"wrote {RESULTS}")


if __name__ == "__main__":  # workers are started by spawn, which imports this file again
    main()
