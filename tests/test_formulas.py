"""Tables for spreadsheets: text that would be a formula carries an apostrophe, which every reader takes away again."""

import csv
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_cohort import FAST, write_scans, write_tiny_cohort

from mmfusion.bundle import run_config
from mmfusion.cli import main
from mmfusion.cohort import read_manifest
from mmfusion.files import plain_cell, read_rows, write_csv
from mmfusion.files.writing import safe_cell
from mmfusion.prepare import open_cohort

likely = st.text(alphabet="'=+-@1.eanif \t\"", max_size=8)  # of which most begin like a formula


@settings(deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(), likely))
def test_a_cell_comes_back_and_is_no_formula(text):
    safe = safe_cell(text)
    assert plain_cell(safe) == text
    assert not re.match(r"[=@]", safe) and (not re.match(r"[+-]", safe) or float(safe) is not None)


@settings(deadline=None, derandomize=True, database=None)
@given(st.one_of(st.integers(), st.floats(), st.none(), st.booleans()))
def test_numbers_are_untouched(value):
    assert safe_cell(value) is value
    assert safe_cell(str(value)) == str(value) == plain_cell(str(value))


def test_a_table_comes_back_whatever_its_names(tmp_path):
    rows = [{"=a": "=1", "+b": "-x", "-2": "-2"}, {"=a": "'=1", "+b": "@", "-2": "'a"}]
    write_csv(rows, tmp_path / "t.csv")
    assert read_rows(tmp_path / "t.csv") == rows
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file))[:2] == [["'=a", "'+b", "-2"], ["'=1", "'-x", "-2"]]


def test_subjects_join_from_the_index_to_the_cohort(tmp_path):
    study = tmp_path / "study"
    write_scans(tmp_path, dict.fromkeys(("=1+1", "-a", "@c"), ("ct",)))
    for subject in ("=1+1", "-a", "@c"):
        (study / subject).mkdir(parents=True)
        (tmp_path / f"{subject}_ct.nii.gz").rename(study / subject / "ct.nii.gz")
    known = {("-a", "c"), ("=1+1", "-b"), ("@c", "c")}
    write_csv([{"subject": subject, "=d": label} for subject, label in known], tmp_path / "labels.csv")
    manifest, cohort = tmp_path / "m.csv", tmp_path / "cohort"
    labels = ["--labels", str(tmp_path / "labels.csv"), "--label", "=d"]
    assert main(["index", str(study), "--out", str(manifest), *labels]) == 0
    assert "'=1+1," in manifest.read_text() and "\n=" not in manifest.read_text()
    assert {(case.subject, case.label) for case in read_manifest(manifest)} == known
    grid = ["--spacing", "9", "9", "9", "--size", "12", "13", "14", "--workers", "1"]
    assert main(["prepare", str(manifest), "--out", str(cohort), *grid]) == 0
    assert {(row["subject"], row["label"]) for row in open_cohort(cohort).rows} == known


def test_subjects_join_from_the_cohort_to_the_metrics(tmp_path):
    subjects = [f"{'=+-@'[number % 4]}x{number}" for number in range(16)]
    labels = ["=a", "-b"] * 8
    cohort, run = write_tiny_cohort(tmp_path / "cohort", labels, subject=subjects), tmp_path / "run"
    run_config("train", cohort=str(cohort.folder), run_dir=str(run), **{**FAST, "epochs": 1}, test_share=0.5)
    run_config("evaluate", run_dir=str(run), resamples=100, device="cpu")
    assert {row["case"] for row in read_rows(run / "split.csv")} == {row["case"] for row in cohort.rows}
    rows = read_rows(run / "predictions.csv")
    known = dict(zip(subjects, labels, strict=True))
    assert rows and all(row["label"] == known[row["subject"]] for row in rows)
    assert {"p_=a", "p_-b"} <= set(rows[0])
    for name in ("split.csv", "predictions.csv", "history.csv"):
        assert not re.search(r"(^|,)[=@]|(^|,)[+-][^\d]", (run / name).read_text(), flags=re.MULTILINE)
    assert main(["report", str(run)]) == 0
