"""The main path on the real soft-tissue sarcoma study, by the commands that a user types."""

import csv
import json

import pytest

from mmfusion.bundle import run_config
from mmfusion.cli import main
from mmfusion.cohort import read_manifest

TINY = {"width": 0.0625, "epochs": 2, "batch_size": 4, "augment": False, "test_share": 0.4}


@pytest.mark.slow
@pytest.mark.realdata
def test_from_a_folder_of_dicom_to_a_report(testdata, tmp_path, capsys):
    root, manifest, cohort, run = testdata / "sts_dicom", tmp_path / "m.csv", tmp_path / "cohort", tmp_path / "run"
    labels = ["--labels", str(root / "participants.csv"), "--label", "lung_metastasis"]
    assert main(["index", str(root), "--out", str(manifest), *labels]) == 0
    assert "20 subjects, 20 cases (ct 20, pet 20, mr 20, mask 20)" in capsys.readouterr().out
    assert main(["check", str(manifest)]) == 0

    grid = ["--center", "mask", "--spacing", "6", "6", "6", "--size", "26", "24", "22"]
    assert main(["prepare", str(manifest), "--out", str(cohort), *grid]) == 0
    with (cohort / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and {row["reference"] for row in rows} == {"ct"}
    for row in rows:  # scans of one frame of reference: moving them is harm, unless it is said
        for name in ("pet", "mr"):
            assert float(row[f"{name}_motion_mm"]) <= 2 or row[f"{name}_verdict"] == "doubtful"

    run_config("train", cohort=str(cohort), run_dir=str(run), **TINY)
    run_config("evaluate", run_dir=str(run))
    auc = json.loads((run / "metrics.json").read_text())["metrics"]["auc"]
    assert auc["n"] == 8 and 0 <= auc["low"] <= auc["value"] <= auc["high"] <= 1
    assert main(["report", str(run)]) == 0 and (run / "report.html").stat().st_size > 100_000

    new = tmp_path / "new.csv"  # two patients without labels, one without CT, which was the reference
    cases = read_manifest(manifest)[:2]
    lines = [f"{c.subject},{c.images['ct'] if i else ''},{c.images['pet']},{c.mask}" for i, c in enumerate(cases)]
    new.write_text("\n".join(["subject,ct,pet,mask", *lines]) + "\n")
    run_config("inference", run_dir=str(run), manifest=str(new), out=str(tmp_path / "new"))
    with (tmp_path / "new" / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert [row["modalities"] for row in predictions] == ["pet", "ct pet"]
    assert all(float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=1e-5) for row in predictions)
