"""Cross-validation: a run a fold, all of them evaluated together, and their ensemble."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tiny_cohort import FAST, GRID, MODALITIES, write_scans, write_tiny_cohort

from mmfusion.bundle import TEMPLATE, run_config
from mmfusion.errors import CohortError, LeakageError, OptionError
from mmfusion.files import Predictions
from mmfusion.options import OPTIONS
from mmfusion.predict import (
    fold_runs,
    joint_model,
    load_members,
    load_model,
    predict_manifest,
    probabilities,
)
from mmfusion.prepare import open_cohort
from mmfusion.training import open_study, write_metrics

CONFIGS = TEMPLATE / "configs"
FOLDS = 3


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cross_validation(train, tmp_path_factory):
    """Three folds of the tiny cohort, trained and evaluated; tests must not write into it."""
    folder = tmp_path_factory.mktemp("cross_validation") / "cv"
    for fold in range(FOLDS):
        train(folder, fold=fold, folds=FOLDS)
    run_config("evaluate_folds", run_dir=str(folder), resamples=100, device="cpu")
    return folder


@pytest.fixture
def copy(cross_validation, tmp_path):
    """One that a test may write into; its cohort lies elsewhere now."""
    return shutil.copytree(cross_validation, tmp_path / "cv")


# a fold's run


def test_each_fold_is_a_run_whose_test_is_the_fold(cross_validation):
    seen = []
    for fold in range(FOLDS):
        split = rows_of(cross_validation / f"fold_{fold}" / "split.csv")
        test = {row["case"] for row in split if row["part"] == "test"}
        assert test == {row["case"] for row in split if row["fold"] == str(fold)}
        assert {row["part"] for row in split} == {"train", "validation", "test"} and len(split) == 24
        options = json.loads((cross_validation / f"fold_{fold}" / "options.json").read_text())
        assert (options["fold"], options["folds"]) == (fold, FOLDS)
        seen += test
    assert len(seen) == len(set(seen)) == 24


def test_evaluate_works_on_the_run_of_a_fold(copy, cross_validation, tiny_cohort):
    options = json.loads((copy / "fold_1" / "options.json").read_text())
    (copy / "fold_1" / "options.json").write_text(json.dumps(options | {"cohort": str(tiny_cohort)}))
    (copy / "fold_1" / "predictions.csv").unlink()
    run_config("evaluate", run_dir=str(copy / "fold_1"), resamples=100, device="cpu")
    for name in ("predictions.csv", "metrics.json"):
        assert (copy / "fold_1" / name).read_text() == (cross_validation / "fold_1" / name).read_text()


def test_column_fold_decides_and_its_numbers_stay(tmp_path):
    fold = [str(3 + number % 4 // 2) for number in range(24)]
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 12, fold=fold)
    study = open_study(tmp_path / "cv", cohort=cohort.folder, fold=4)
    assert study.run == tmp_path / "cv" / "fold_4" and "| fold 4 of 2 |" in study.summary()
    assert [row["fold"] for row in rows_of(study.run / "split.csv")] == fold
    with pytest.raises(OptionError, match="^there is no fold 2; this study has the folds 3, 4$"):
        open_study(tmp_path / "cv", cohort=cohort.folder, fold=2)


def test_folds_share_the_cohort_of_a_manifest(tmp_path):
    manifest = write_scans(tmp_path, {f"S{n}": ("ct", "pet") for n in range(16)})
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},label", *(f"{row},{n % 2}" for n, row in enumerate(rows))]))
    for fold in range(2):
        study = open_study(tmp_path / "cv", manifest=manifest, workers=1, fold=fold, folds=2, **GRID)
        assert study.cohort.folder == tmp_path / "cv" / "cohort" and study.run == tmp_path / "cv" / f"fold_{fold}"
        assert [len(study.cases(part)) for part in ("train", "validation", "test")] == [4, 4, 8]


def test_a_subject_in_two_folds_is_a_leak(tmp_path):
    subject, fold = [f"S{n}" for n in range(15)] + ["S0"], [str(n // 2 % 2) for n in range(15)] + ["1"]
    session = ["1"] * 15 + ["2"]
    cohort = write_tiny_cohort(tmp_path / "c", ["no", "yes"] * 8, subject=subject, fold=fold, session=session)
    with pytest.raises(LeakageError, match="^1 subject is in both fold 0 and fold 1: S0. Splits are by subject"):
        open_study(tmp_path / "cv", cohort=cohort.folder, fold=0)
    assert not (tmp_path / "cv").exists()


def test_test_cases_of_column_split_are_in_no_fold(tmp_path, caplog):
    split = ["test"] * 4 + ["train"] * 20
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 12, split=split)
    study = open_study(tmp_path / "cv", cohort=cohort.folder, fold=0)
    assert sorted(study.parts) == [f"S{n:02d}" for n in range(4, 24)] and len(study.cases("test")) == 4
    assert "column split: 4 test cases stay out of all folds" in caplog.text


def test_a_scale_fitted_on_other_subjects_is_told(tiny_cohort, tmp_path, caplog):
    cohort = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    options = json.loads((cohort / "options.json").read_text())
    (cohort / "options.json").write_text(json.dumps(options | {"mr_normalize": "histogram"}))
    open_study(tmp_path / "cv", cohort=cohort, fold=0)
    assert "may rest on subjects that are the test of some folds" in caplog.text


# all folds together


def test_every_case_is_predicted_once_by_the_model_without_it(cross_validation):
    rows = rows_of(cross_validation / "predictions.csv")
    assert len({row["case"] for row in rows}) == len(rows) == 24
    for fold in range(FOLDS):
        own = [{**row, "fold": str(fold)} for row in rows_of(cross_validation / f"fold_{fold}" / "predictions.csv")]
        assert [row for row in rows if row["fold"] == str(fold)] == own
    assert {row["part"] for row in rows_of(cross_validation / "split.csv")} == {"test"}


def test_metrics_are_means_over_folds_and_keep_each_folds_threshold(cross_validation):
    rows = Predictions.read(cross_validation / "predictions.csv")
    metrics = json.loads((cross_validation / "metrics.json").read_text())
    label = np.array([row["label"] == "malignant" for row in rows])
    share, fold = np.array([float(row["p_malignant"]) for row in rows]), np.array([row["fold"] for row in rows])
    threshold = {str(k): load_model(cross_validation / f"fold_{k}")[0].threshold for k in range(FOLDS)}
    called = [p >= threshold[k] for p, k in zip(share, fold, strict=True)]
    assert metrics["metrics"]["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(label, called))
    assert [row["predicted"] == "malignant" for row in rows] == called
    shares = [load_model(cross_validation / f"fold_{k}")[0].target_prior[1] for k in range(FOLDS)]
    assert list(threshold.values()) == shares  # of the fold's own training cases
    aucs = [roc_auc_score(label[fold == k], share[fold == k]) for k in threshold]
    assert [one["auc"]["value"] for one in metrics["folds"].values()] == pytest.approx(aucs) and metrics["n"] == 24
    assert metrics["metrics"]["auc"]["value"] == pytest.approx(np.mean(aucs))
    assert {fold: one["threshold"] for fold, one in metrics["folds"].items()} == threshold
    for k in threshold:  # what evaluating the fold by itself says
        own = json.loads((cross_validation / f"fold_{k}" / "metrics.json").read_text())["metrics"]
        assert {name: metrics["folds"][k][name] for name in ("auc", "log_loss")} == {
            n: own[n] for n in ("auc", "log_loss")
        }


def test_report_counts_what_was_predicted(cross_validation):
    page, rows = (cross_validation / "report.html").read_text(), Predictions.read(cross_validation / "predictions.csv")
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert f"Confusion matrix: {right} of 24 cases are right" in page
    assert "each case was predicted by the one of 3 models that was trained without it" in page


def test_options_of_all_folds_are_what_they_have_in_common(cross_validation, tiny_cohort):
    options = json.loads((cross_validation / "options.json").read_text())
    assert "fold" not in options and options["folds"] == FOLDS and options["width"] == FAST["width"]
    assert (cross_validation / options["cohort"]).resolve() == tiny_cohort.resolve()


def test_modalities_alone_are_compared_over_all_folds(copy, train):
    alone = copy / "single" / "pet"
    shutil.copytree(copy, alone, ignore=shutil.ignore_patterns("single"))
    metrics = write_metrics(copy, resamples=100)
    assert metrics["comparison"]["pet"]["auc"]["n"] == 24 and metrics["comparison"]["pet"]["difference"]["value"] == 0


# what is refused


def test_folds_that_are_missing_are_named(copy, tmp_path):
    (copy / "fold_1" / "model.json").unlink()
    words = r"cv has no finished run of fold 1 \(there are to be 3\): mmfusion train COHORT --out .*cv --fold 1$"
    with pytest.raises(CohortError, match=words):
        run_config("evaluate_folds", run_dir=str(copy))
    shutil.rmtree(copy / "fold_0")
    with pytest.raises(CohortError, match="has no finished run of fold 0, 1 "):
        load_members(copy)
    with pytest.raises(CohortError, match=r"has no finished run of a fold \(fold_0, fold_1, ...\): mmfusion train"):
        fold_runs(tmp_path)
    for name in ("evaluate_folds", "ensemble"):
        with pytest.raises(CohortError, match="no run is given: add --run RUN, a folder with the runs of all folds"):
            run_config(name, **({"manifest": "manifest.csv"} if name == "ensemble" else {}))
    with pytest.raises(CohortError, match="cv holds the runs of several folds: use evaluate_folds.yaml or ensemble"):
        run_config("evaluate", run_dir=str(copy))


@pytest.mark.parametrize("name", ["seed", "epochs", "cohort_hash", "class_weights"])
def test_folds_that_do_not_belong_together(copy, name):
    options = json.loads((copy / "fold_2" / "options.json").read_text())
    (copy / "fold_2" / "options.json").write_text(
        json.dumps(options | {name: 7, "threads": 3, "given": {"seed": {"value": 7, "from": "file"}}})
    )
    with pytest.raises(
        CohortError, match=f"fold_2 differs from .*fold_0 in {name}; the folds of a cross-validation have"
    ):
        fold_runs(copy)


def test_a_training_that_did_not_finish_leaves_no_model_of_an_earlier_split(copy, tiny_cohort):
    for fold in range(FOLDS):
        open_study(copy, cohort=tiny_cohort, fold=fold, folds=FOLDS, seed=1)  # as if killed in the first epoch
    with pytest.raises(CohortError, match="has no finished run of a fold"):
        fold_runs(copy)


def test_folds_of_other_cases_and_other_numbers(copy):
    text = (copy / "fold_1" / "split.csv").read_text()
    (copy / "fold_1" / "split.csv").write_text(text.replace("S05", "S99"))
    with pytest.raises(CohortError, match="fold_1 differs from .*fold_0 in folds of the cases"):
        load_members(copy)
    shutil.rmtree(copy / "fold_1")
    shutil.copytree(copy / "fold_0", copy / "fold_1")
    with pytest.raises(CohortError, match="fold_1 was not trained as a fold of that number"):
        load_members(copy)


def test_bayesian_heads_differ_in_the_weight_of_their_divergence(train, tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 11)
    for fold in range(FOLDS):
        train(tmp_path / "cv", cohort=str(cohort.folder), fold=fold, folds=FOLDS, head="bayesian", epochs=1)
    weights = {
        json.loads((run / "options.json").read_text())["losses"]["kl"] for run in fold_runs(tmp_path / "cv").values()
    }
    assert len(weights) > 1


# the ensemble


@pytest.fixture(scope="module")
def ensemble(cross_validation, tmp_path_factory):
    """Predictions on three subjects, one of which lacks ct, and one of which is broken."""
    folder = tmp_path_factory.mktemp("scans")
    manifest = write_scans(folder, {"A": ("ct", "pet", "mr"), "B": ("pet", "mr"), "C": ("ct",), "D": ("mr",)})
    (folder / "C_ct.nii.gz").write_bytes(b"broken")
    out = {"run_dir": str(cross_validation), "manifest": str(manifest), "out": str(folder / "out"), "workers": 1}
    workflow = run_config("ensemble", **out, batch_size=2, device="cpu")
    return workflow, folder / "out"


def members_of(folder):
    return [load_model(folder / f"fold_{fold}") for fold in range(FOLDS)]


def test_the_ensemble_is_the_mean_of_its_members(ensemble, cross_validation):
    rows = Predictions.read(ensemble[1] / "predictions.csv")
    members = [load_model(cross_validation / f"fold_{fold}") for fold in range(FOLDS)]
    level = np.mean([model.threshold for model, _ in members])
    cases = {one.case.id: one for one in open_cohort(ensemble[1] / "cohort").cases}
    assert [row["case"] for row in rows] == ["A", "B", "D"]
    for row in rows:
        one = cases[row["case"]]
        image, present = torch.from_numpy(np.load(one.file))[None], [name in one.modalities for name in MODALITIES]
        with torch.no_grad():
            said = [probabilities(network(image, torch.tensor([present])), model)[0] for model, network in members]
        mean = np.mean(said, axis=0)
        assert float(row["p_malignant"]) == pytest.approx(mean[1], abs=2e-6) and np.ptp(said, axis=0)[1] > 1e-3
        assert row["predicted"] == ("malignant" if mean[1] >= level else "benign")
        disagreement = entropy(mean) - np.mean([entropy(one) for one in said])
        assert float(row["epistemic"]) == pytest.approx(disagreement, abs=2e-6)


def test_the_ensemble_is_what_predicts_in_one_line(ensemble, cross_validation):
    manifest, out = ensemble[1].parent / "manifest.csv", ensemble[1].parent / "again"
    path = predict_manifest(cross_validation, manifest, out, workers=1, batch_size=2)
    assert path.read_bytes() == (ensemble[1] / "predictions.csv").read_bytes()
    facts = [(folder / "predictions" / "B.json").read_text() for folder in (out, ensemble[1])]
    assert facts[0] == facts[1] and json.loads(facts[0])["modalities_absent"] == ["ct"]


def test_one_line_needs_all_folds_too(copy):
    shutil.rmtree(copy / "fold_1")
    with pytest.raises(CohortError, match="has no finished run of fold 1"):
        predict_manifest(copy, "manifest.csv", copy / "out")


def test_models_alone_are_an_ensemble_too(copy):
    for fold in range(FOLDS):
        for name in ("options.json", "split.csv"):
            (copy / f"fold_{fold}" / name).unlink()
    assert len(load_members(copy)) == FOLDS


def test_the_ensemble_has_all_properties_and_the_usual_defaults(ensemble):
    workflow = ensemble[0]
    assert isinstance(workflow, ConfigWorkflow) and workflow.check_properties() == []
    for name in ("ensemble", "evaluate_folds"):
        text = (CONFIGS / f"{name}.yaml").read_text()
        plain = yaml.safe_load(text[: text.index("# Pieces")])
        given = {key: value for key, value in plain.items() if key not in ("device", "batch_size")}
        assert given == {key: OPTIONS[key].default for key in given}


@pytest.mark.slow
def test_three_classes_have_no_threshold(train, tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["a", "b", "c"] * 8)
    for fold in range(2):
        train(tmp_path / "cv", cohort=str(cohort.folder), fold=fold, folds=2, epochs=1)
    run_config("evaluate_folds", run_dir=str(tmp_path / "cv"), resamples=100, device="cpu")
    assert joint_model([model for model, _ in load_members(tmp_path / "cv")]).threshold is None
    assert json.loads((tmp_path / "cv" / "metrics.json").read_text())["n"] == 24


# as a user types it


@pytest.mark.slow
def test_all_of_it_from_another_folder(tiny_cohort, tmp_path):
    def monai_bundle(name, **given):
        options = [f"--{key}={value}" for key, value in given.items()]
        command = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(CONFIGS / f"{name}.yaml"),
            *options,
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    fast = FAST | {"epochs": 1, "cohort": tiny_cohort, "run_dir": "runs of mine/cv", "folds": 2}
    first = monai_bundle("train", **fast, fold=0)
    assert first.returncode == 0 and "device cpu | fold 0 of 2 | train" in first.stdout, first.stderr
    early = monai_bundle("evaluate_folds", run_dir="runs of mine/cv")
    assert early.returncode == 1 and early.stderr.strip().splitlines()[-1].startswith(
        "error: runs of mine/cv has no finished run of fold 1 (there are to be 2): mmfusion train COHORT --out"
    )
    assert monai_bundle("train", **fast, fold=1).returncode == 0
    done = monai_bundle("evaluate_folds", run_dir="runs of mine/cv", resamples=100, device="cpu")
    assert done.returncode == 0 and "report: runs of mine/cv/report.html" in done.stdout, done.stderr
    manifest = write_scans(tmp_path, {"A": ("ct", "pet"), "B": ("mr",)})
    done = monai_bundle("ensemble", run_dir="runs of mine/cv", manifest=manifest, out="out", workers=1, device="cpu")
    assert done.returncode == 0 and len(Predictions.read(tmp_path / "out" / "predictions.csv")) == 2, done.stderr
