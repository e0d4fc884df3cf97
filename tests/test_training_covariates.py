"""Covariates from a manifest to an answer: training, evaluation, folds, bundles, ONNX and new cases."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cohort import FAST, GRID, write_scans, write_tiny_cohort

from mmfusion import evaluate, train
from mmfusion.bundle import new_bundle, pack_model, run_config
from mmfusion.cohort import Case, read_manifest
from mmfusion.errors import CohortError, OptionError
from mmfusion.files import RunFolder, read_rows
from mmfusion.predict import export_model, load_members, load_model, predict_case, predict_manifest, read_model
from mmfusion.prepare.covariates import write_covariates

SIZE = 32
LABELS = ["benign", "malignant"] * (SIZE // 2)
SPLIT = (["train"] * 16 + ["validation"] * 8 + ["test"] * 8) * (SIZE // 32)
OPTIONS = {**FAST, "modality_drop": 0.0, "class_weights": False}


def write_cohort(folder: Path) -> Path:
    """The images are noise; ``age`` tells the classes apart, ``sex`` and ``coin`` do not."""
    cohort = write_tiny_cohort(folder, LABELS, split=SPLIT)
    noise, cases = np.random.default_rng(0), []
    for number, one in enumerate(cohort.cases):
        np.save(one.file, noise.normal(0.3, 0.1, (3, *GRID["size"])).astype(np.float32))
        age = f"{60 + 20 * (one.case.label == 'malignant') + noise.normal(0, 3):.1f}" if number != 3 else ""
        values = {"age": age, "sex": "fm"[number // 2 % 2], "coin": f"{noise.random():.3f}"}
        cases.append(Case(one.case.subject, covariates=values))
    table = {"table": {one.id: np.array([[float(one.covariates["age"] or "nan"), 1.0]]) for one in cases}}
    write_covariates(folder, cases, table)
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("study") / "cohort")


@pytest.fixture(scope="module")
def run(cohort: Path) -> Path:
    """Covariates alone, scalars and a table."""
    options = {**OPTIONS, "learning_rate": 0.05, "epochs": 8}
    return train(
        cohort, cohort.parent / "run", strategy="covariates", covariates=["table", "sex", "age"], **options
    ).path


def auc(run: Path) -> float:
    return evaluate(run, device="cpu", resamples=100)["metrics"]["auc"]["value"]


def test_covariates_alone_tell_what_only_they_know(run):
    assert auc(run) == 1
    about = json.loads((run / "model.json").read_text())
    assert [(one["name"], one["kind"], len(one["mean"])) for one in about["covariates"]] == [
        ("sex", "category", 1),
        ("age", "number", 1),
        ("table", "table", 2),
    ]
    assert read_model(run).build().covariates == 4


@pytest.mark.parametrize("head", ["logistic", "ridge"])
def test_a_fitted_head_reads_them_in_no_epoch(cohort, tmp_path, head):
    options = {**OPTIONS, "strategy": "covariates", "covariates": ["age", "sex"], "head": head}
    folder = train(cohort, tmp_path / "run", **options).path
    assert not RunFolder(folder).history.exists()
    assert load_model(folder)[1].classifier[1].weight.any() and auc(folder) == 1


def test_model_and_options_of_a_run_without_covariates_do_not_name_them(cohort, tmp_path):
    folder = train(cohort, tmp_path / "run", **OPTIONS | {"epochs": 1}).path
    about = json.loads((folder / "model.json").read_text())
    assert not {"covariates", "features"} & about.keys() and "conditioning" not in about["network"]


@pytest.mark.slow
def test_film_beats_the_images_that_know_nothing(cohort, tmp_path):
    options = {**OPTIONS, "epochs": 12, "learning_rate": 0.01}
    scores = [
        auc(train(cohort, tmp_path / str(n), **options, **more).path)
        for n, more in enumerate([{}, {"covariates": ["age"], "conditioning": "film"}])
    ]
    assert scores[0] < 0.8 and scores[1] > 0.9


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"covariates": ["agee"]}, CohortError, "unknown covariate 'agee'; did you mean 'age'"),
        ({"covariates": ["label"]}, CohortError, "unknown covariate 'label'"),
        ({"conditioning": "daft"}, OptionError, "option conditioning is daft, and there are no covariates"),
        ({"covariates": ["age"], "conditioning": "dafd"}, OptionError, "did you mean 'daft'"),
    ],
)
def test_what_is_refused_before_anything_is_written(cohort, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train(cohort, tmp_path / "run", **OPTIONS, **options)
    assert not (tmp_path / "run").exists()


def test_a_change_of_a_covariate_that_a_run_uses_is_noticed(cohort, run, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "cohort" / "covariates.csv"
    text = file.read_text()
    file.write_text(text.replace(",f,", ",m,", 1))
    with pytest.raises(CohortError, match="has changed since"):
        evaluate(tmp_path / "run", device="cpu", resamples=100)
    file.write_text(text.replace("0.", "1."))  # of coin, too, and of ages
    rows = text.splitlines()
    file.write_text("\n".join([rows[0], *(row.rsplit(",", 1)[0] + ",7" for row in rows[1:])]) + "\n")  # coin alone
    assert evaluate(tmp_path / "run", device="cpu", resamples=100)["n"] == 8


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw scans of three subjects, with covariates; the second has an unknown age, the third a strange sex."""
    folder = tmp_path_factory.mktemp("scans")
    manifest = write_scans(folder, {"N1": ["ct", "pet"], "N2": ["ct", "pet"], "N3": ["pet"]})
    for n in (1, 3):
        (folder / f"N{n}.csv").write_text(f"{80 - 20 * (n == 3)},1\n")
    header, *rows = manifest.read_text().splitlines()
    values = (",80,f,N1.csv", ",,m,", ",60,x,N3.csv")
    manifest.write_text("\n".join([header + ",age,sex,table", *(r + v for r, v in zip(rows, values, strict=True))]))
    return manifest


def shares(file: Path) -> dict[str, float]:
    return {row["case"]: float(row["p_malignant"]) for row in read_rows(file)}


def test_new_cases_are_encoded_as_the_training_by_every_way_of_predicting(run, scans, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        said = shares(predict_manifest(run, scans, tmp_path / "run", workers=1))
    assert "covariate sex has a value that no training subject had in 1 of 3 cases" in caplog.text
    assert said["N1"] > 0.75 > said["N2"] > 0.25 > said["N3"]
    model, network = load_model(run)
    cases = read_manifest(scans)
    alone = {one.id: predict_case(_located(one, scans.parent), model, network).probabilities for one in cases}
    assert {name: one["malignant"] for name, one in alone.items()} == pytest.approx(said, abs=2e-6)
    bundle = new_bundle(tmp_path / "bundle", modalities=["ct", "pet", "mr"], classes=["benign", "malignant"])
    pack_model(bundle, run)
    export_model(bundle, "onnx")
    for engine in ("eager", "onnx"):
        packed = shares(predict_manifest(bundle, scans, tmp_path / engine, engine=engine, workers=1))
        assert packed == pytest.approx(said, abs=2e-6)


@pytest.mark.slow
def test_the_configurations_of_a_bundle_give_the_same(cohort, run, scans, tmp_path):
    given = {"strategy": "covariates", "covariates": ["table", "sex", "age"], "learning_rate": 0.05, "epochs": 8}
    run_config("train", cohort=str(cohort), run_dir=str(tmp_path / "run"), **{**OPTIONS, **given})
    assert (tmp_path / "run" / "model.json").read_bytes() == (run / "model.json").read_bytes()
    out = {"manifest": str(scans), "out": str(tmp_path / "out"), "workers": 1, "device": "cpu"}
    run_config("inference", run_dir=str(run), **out)
    said = shares(predict_manifest(run, scans, tmp_path / "said", workers=1))
    assert shares(tmp_path / "out" / "predictions.csv") == pytest.approx(said, abs=2e-6)


def _located(case: Case, folder: Path) -> Case:
    """The case with the absolute path of its table."""
    table = case.covariates["table"]
    case.covariates["table"] = str(folder / table) if table else ""
    return case


def test_a_manifest_without_the_columns_is_predicted_on_with_a_warning(run, scans, tmp_path, caplog):
    bare = tmp_path / "bare.csv"
    rows = read_rows(scans)
    lines = [
        "subject,ct,pet",
        *(f"{r['subject']},{_absolute(r['ct'], scans)},{_absolute(r['pet'], scans)}" for r in rows),
    ]
    bare.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        said = shares(predict_manifest(run, bare, tmp_path / "out", workers=1))
    assert len(set(said.values())) == 1
    assert [name for name in ("age", "sex", "table") if f"covariate {name} is in no column" in caplog.text] == [
        "age",
        "sex",
        "table",
    ]


def _absolute(cell: str, manifest: Path) -> str:
    return str(manifest.parent / cell) if cell else ""


def test_features_among_the_covariates_are_computed_of_a_manifest_that_is_prepared_first(scans, tmp_path, monkeypatch):
    asked: dict[str, object] = {}
    monkeypatch.setattr("mmfusion.training.study.prepare_cohort", lambda *_, **options: asked.update(options))
    with pytest.raises(AttributeError):  # there is no cohort
        train(None, tmp_path / "run", manifest=str(scans), covariates=["age", "pet_glcm_contrast"], **OPTIONS)
    assert asked["features"] == ["glcm"]


@pytest.mark.slow
def test_each_fold_encodes_by_its_own_subjects(cohort, scans, tmp_path):
    options = {**OPTIONS, "learning_rate": 0.05, "epochs": 6, "strategy": "covariates", "covariates": ["age", "sex"]}
    run = train(cohort, tmp_path / "run", folds=2, **options).path
    members = load_members(run)
    means = [model.covariates[0].mean for model, _ in members]
    assert means[0] != means[1]
    said = shares(predict_manifest(run, scans, tmp_path / "out", workers=1))
    alone = [shares(predict_manifest(run / f"fold_{n}", scans, tmp_path / str(n), workers=1)) for n in (0, 1)]
    assert said == pytest.approx({name: (alone[0][name] + alone[1][name]) / 2 for name in said}, abs=2e-6)
    run_config("ensemble", run_dir=str(run), manifest=str(scans), out=str(tmp_path / "monai"), workers=1, device="cpu")
    assert shares(tmp_path / "monai" / "predictions.csv") == pytest.approx(said, abs=2e-6)
    known = torch.tensor([[1.0, -1.0, 0.5, torch.nan]])
    image, present = torch.zeros(1, 3, 5, 6, 7), torch.ones(1, 3)
    own = [load_model(run / f"fold_{n}")[1](image, present, known[:, 2 * n : 2 * n + 2]) for n in (0, 1)]
    assert all(torch.equal(net(image, present, known), one) for (_, net), one in zip(members, own, strict=True))


def test_a_measurement_is_a_covariate(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    file = tmp_path / "cohort" / "cases.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header + ",pet_max_suv", *(f"{row},{n * n}" for n, row in enumerate(rows))]) + "\n")
    options = {**OPTIONS, "strategy": "covariates", "covariates": ["pet_max_suv"]}
    model = read_model(train(tmp_path / "cohort", tmp_path / "run", **options).path)
    assert model.covariates[0].mean == (np.mean(np.arange(16) ** 2),)
