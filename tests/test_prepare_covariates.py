"""What a cohort folder keeps of the manifest's other columns, of tables and of measurements."""

from pathlib import Path

import numpy as np
import pytest
import small_scans

from mmfusion.errors import CohortError, ManifestError, ReadError
from mmfusion.files import read_rows
from mmfusion.prepare import Cohort, choose_covariates, covariates_hash, features_for, open_cohort, prepare_cohort

GRID = {"spacing": [16, 16, 16], "size": [11, 13, 9], "register": "none", "workers": 1}


def study(folder: Path, **columns: list[str]) -> Path:
    return small_scans.write_study(folder, subjects=2, **columns)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with numbers, words and two columns of tables, and its cohort beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "Zimmermann.tsv").write_text("a\tb\tc\n1\t2\tn/a\n4\t\t-6e1\n")
    np.save(folder / "brain.npy", np.arange(3, dtype=np.int16))
    manifest = study(
        folder,
        age=["71.5", ""],
        sex=["f", "=m"],
        regions=["Zimmermann.tsv", ""],
        brain=["", "brain.npy"],
        site=["x", "y"],
    )
    prepare_cohort(manifest, folder / "cohort", **GRID)
    return manifest


def test_columns_are_kept_as_text_and_tables_by_their_values(prepared):
    cohort = open_cohort(prepared.parent / "cohort")
    rows = read_rows(cohort.folder / "covariates.csv", "", ("case",))
    assert rows == [{"case": "001", "age": "71.5", "sex": "f"}, {"case": "002", "age": "", "sex": "=m"}]
    columns = choose_covariates(cohort, ["regions", "brain", "site", "pet_coverage"])
    assert np.array_equal(columns["regions"]["001"], [[1, 2, np.nan], [4, np.nan, -60]], equal_nan=True)
    assert columns["regions"]["002"].shape == (2, 3) and np.isnan(columns["regions"]["002"]).all()
    assert columns["brain"]["002"].tolist() == [0, 1, 2] and columns["brain"]["002"].dtype == np.float32
    assert columns["site"] == {"001": "x", "002": "y"} and float(columns["pet_coverage"]["001"]) > 0
    for file in cohort.folder.rglob("*"):
        assert file.is_dir() or b"Zimmermann" not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agee", "unknown covariate 'agee'; did you mean 'age'"),
        ("label", "unknown covariate 'label'"),
        ("seconds", "unknown covariate 'seconds'"),
        ("pet_units", "unknown covariate 'pet_units'"),
    ],
)
def test_what_is_no_covariate(prepared, name, words):
    with pytest.raises(CohortError, match=words):
        choose_covariates(open_cohort(prepared.parent / "cohort"), [name])


def test_no_path_of_a_manifest_comes_into_its_cohort(tmp_path):
    """Beside paths of tables: those of other files, whether they exist or not, also in a single cell of a column."""
    (tmp_path / "Zimmermann.txt").write_text("remarks")
    (tmp_path / "f").mkdir()
    paths = {
        "other_mask": ["Zimmermann.nii.gz#1", ""],
        "mixed": ["Zimmermann.csv", "4"],
        "report": ["Zimmermann.txt", "no"],
        "gone": ["", "scans/Zimmermann/report.pdf"],
        "absolute": ["C:\\Zimmermann", ""],
    }
    kept = {"sex": ["f", "m"], "born": ["06/21/1950", "1.5"], "unit": ["mg/ml", "g/ml"]}
    folder = prepare_cohort(study(tmp_path, **paths, **kept), tmp_path / "cohort", **GRID).folder
    assert read_rows(folder / "covariates.csv")[0] == {"case": "001", **{name: one[0] for name, one in kept.items()}}
    assert "Zimmermann" not in (folder / "covariates.csv").read_text()


def test_new_cases_get_the_features_that_covariates_need(prepared, tmp_path):
    cohort = open_cohort(prepared.parent / "cohort")
    rows = [{**row, "pet_max_suv": "3", "pet_glcm_contrast": "2", "mask_shape_flatness": "1"} for row in cohort.rows]
    measured = Cohort(cohort.folder, cohort.options, rows)
    assert features_for(measured, ["age", "pet_max_suv"]) == ()
    assert set(features_for(measured, ["pet_glcm_contrast", "mask_shape_flatness", "a_first_b"])) == {"shape", "glcm"}


def test_covariates_change_without_preparing_again_and_the_hash_of_those_that_are_used_changes(prepared, tmp_path):
    manifest, out = tmp_path / "manifest.csv", tmp_path / "cohort"
    text = "subject,label,ct,age,sex\n001,0,001_ct.nii.gz,71.5,f\n"
    (tmp_path / "001_ct.nii.gz").write_bytes((prepared.parent / "001_ct.nii.gz").read_bytes())
    hashes, changed = [], []
    for content in (text, text.replace("71.5", "70")):
        manifest.write_text(content)
        cohort = prepare_cohort(manifest, out, **GRID)
        hashes.append([cohort.hash, covariates_hash(cohort, []), covariates_hash(cohort, ["sex"])])
        hashes[-1].append(covariates_hash(cohort, ["sex", "age"]))
        changed.append((out / "cases/001/image.npy").stat().st_mtime_ns)
    assert changed[0] == changed[1] and hashes[0][:3] == hashes[1][:3] and hashes[0][3] != hashes[1][3]
    assert hashes[0][0] == hashes[0][1] != hashes[0][2]


def test_a_cohort_of_an_earlier_version_is_to_be_prepared_again(prepared, tmp_path):
    cohort = open_cohort(prepared.parent / "cohort")
    for name in ("options.json", "cases.csv"):
        (tmp_path / name).write_bytes((cohort.folder / name).read_bytes())
    with pytest.raises(CohortError, match=r"no covariates\.csv: it keeps no covariates of its cases; prepare it again"):
        choose_covariates(open_cohort(tmp_path), ["age"])
    (tmp_path / "covariates.csv").write_text("case,age\n001,1\n")
    with pytest.raises(ReadError, match="it has no case 002"):
        choose_covariates(open_cohort(tmp_path), ["age"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1,2\n3\n", r"case 002: table t.csv in column t cannot be used: line 2 has 1 cells, the first row 2"),
        ("a,b\n3,x\n", "line 2 holds text, numbers are expected"),
        ("1,2\n", r"it has shape \[1, 2\], that of case 001 \[2, 2\]"),
        ("a,b\n", "it has 0 values"),
        (None, "it is not there"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_before_anything_is_prepared(tmp_path, content, words):
    np.save(tmp_path / "first.npy", np.eye(2))
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ManifestError, match=words):
        prepare_cohort(study(tmp_path, t=["first.npy", "t.csv"]), tmp_path / "cohort", **GRID)
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([{}]), "no array of NumPy"),
        (np.array(["x"]), "it holds <U1"),
        (np.array([np.inf]), "infinite"),
        (np.zeros(100_001), "it has 100,001 values, 1 to 100,000"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, array, words):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(ManifestError, match=words):
        prepare_cohort(study(tmp_path, t=["t.npy", ""]), tmp_path / "cohort", **GRID)
