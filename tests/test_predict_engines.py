"""One model, three engines; predictions in one line, with nothing of the bundle executed; ensembles."""

import gc
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from scipy.stats import entropy
from tiny_cohort import MODALITIES, write_scans

from mmfusion.bundle import TEMPLATE, new_bundle, pack_model, run_config
from mmfusion.cli import main
from mmfusion.cohort.simulate import draw_subjects, write_raw_study
from mmfusion.errors import CohortError, OptionError
from mmfusion.files import Predictions
from mmfusion.predict import (
    export_model,
    joint_model,
    load_engine,
    load_model,
    member_folders,
    predict_manifest,
    save_model,
    uncertainty,
)

SUBJECTS = {"A": MODALITIES, "B": ("pet", "mr"), "C": ("ct",)}


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory):
    """A bundle with a trained model and its export; tests must not write into it."""
    folder = new_bundle(tmp_path_factory.mktemp("bundles") / "a bundle")
    pack_model(folder, tiny_run)
    export_model(folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"), SUBJECTS)


@pytest.fixture(scope="module")
def predicted(bundle, scans, tmp_path_factory):
    """What the eager engine says of the scans."""
    return predict_manifest(bundle, scans, tmp_path_factory.mktemp("out"), workers=1)


def shares_of(path):
    return np.array([[float(row["p_benign"]), float(row["p_malignant"])] for row in Predictions.read(path)])


def test_onnx_predicts_the_same(bundle, scans, predicted, tmp_path):
    path = predict_manifest(bundle, scans, tmp_path, engine="onnx", workers=1, batch_size=2)
    np.testing.assert_allclose(shares_of(path), shares_of(predicted), atol=1e-5)


def test_the_bundle_configuration_predicts_the_same(bundle, scans, predicted, tmp_path):
    run_config("inference", bundle, manifest=str(scans), out=str(tmp_path), workers=1, device="cpu")
    np.testing.assert_allclose(shares_of(tmp_path / "predictions.csv"), shares_of(predicted), atol=1e-6)
    mine, theirs = (json.loads((p / "predictions" / "B.json").read_text()) for p in (predicted.parent, tmp_path))
    assert mine == theirs


@pytest.mark.slow
def test_cases_are_prepared_as_those_of_the_training_were(train, tmp_path):
    """The same scans, once in a cohort to train on and once as new cases: the same tensors, to the bit."""
    manifest = write_scans(
        tmp_path, {name: (("ct", "pet", "mr"), ("pet", "mr"))[n % 2] for n, name in enumerate("ABCDEFGH")}
    )
    lines = manifest.read_text().splitlines()
    known = tmp_path / "known.csv"
    known.write_text("\n".join([f"{lines[0]},label", *(f"{line},{n // 2 % 2}" for n, line in enumerate(lines[1:]))]))
    grid = {"spacing": [6.0, 5.0, 7.0], "size": [15, 20, 13], "suv_max": 7.0, "ct_window": [-100.0, 300.0]}
    shares = {"test_share": 0.0, "validation_share": 0.5}
    run = train(tmp_path / "run", cohort=None, manifest=str(known), epochs=1, workers=1, **grid, **shares)
    predict_manifest(run, manifest, tmp_path / "out", workers=1)
    trained, new = (sorted((folder / "cohort" / "cases").glob("*/image.npy")) for folder in (run, tmp_path / "out"))
    assert len(trained) == 8 and [a.read_bytes() for a in trained] == [b.read_bytes() for b in new]


def test_a_case_has_its_own_file(bundle, predicted):
    facts = json.loads((predicted.parent / "predictions" / "B.json").read_text())
    row = Predictions.read(predicted)[1]
    assert facts["modalities_used"] == ["pet", "mr"] and facts["modalities_absent"] == ["ct"]
    assert facts["probabilities"] == {name: float(row[f"p_{name}"]) for name in ("benign", "malignant")}
    assert facts["uncertainty"]["entropy"] == pytest.approx(entropy(shares_of(predicted)[1]), abs=1e-5)
    assert facts["uncertainty"]["epistemic"] is None and facts["predicted"] == row["predicted"]
    assert facts["preparation"]["status"] == "done" and facts["preparation"]["reference"] == "mr"
    assert facts["threshold"] == load_model(bundle)[0].threshold


def test_a_case_that_failed_has_a_file_that_says_why(bundle, tmp_path):
    manifest = write_scans(tmp_path, {"A": MODALITIES, "D": ("ct",)})
    (tmp_path / "D_ct.nii.gz").write_bytes(b"broken")
    predict_manifest(bundle, manifest, tmp_path / "out", workers=1)
    facts = json.loads((tmp_path / "out" / "predictions" / "D.json").read_text())
    assert facts["probabilities"] is facts["predicted"] is None and facts["preparation"]["status"] == "failed"
    assert facts["preparation"]["reasons"][0].startswith("ct is not a NIfTI file")


@pytest.mark.slow
def test_exports_of_monai_are_understood(bundle, scans, predicted, tmp_path):
    mine = shutil.copytree(bundle, tmp_path / "b")
    config = {
        "net_id": "network_def",
        "ckpt_file": str(mine / "models" / "model.pt"),
        "meta_file": str(mine / "configs" / "metadata.json"),
        "config_file": str(mine / "configs" / "inference.yaml"),
        "bundle_root": str(mine),
    }
    ckpt_export(filepath=str(mine / "models" / "model.ts"), **config)
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": {0: "batch"}}}
    shape = {"input_shape": [2, 3, 17, 19, 18], "use_trace": True, "converter_kwargs": names | {"dynamo": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace says of each size that it is a constant, which it shall be
        onnx_export(filepath=str(mine / "models" / "model.onnx"), **config, **shape)
        gc.collect()  # MONAI leaves a temporary file open
    path = predict_manifest(mine, scans, tmp_path / "onnx", engine="onnx", workers=1)
    np.testing.assert_allclose(shares_of(path), shares_of(predicted), atol=1e-5)


def test_load_engine_says_what_is_missing(tiny_run, bundle, tmp_path):
    with pytest.raises(OptionError, match="unknown engine 'onx'; did you mean 'onnx'"):
        load_engine(bundle, "onx")
    with pytest.raises(CohortError, match="has no model.onnx: run mmfusion export .* --engine onnx"):
        load_engine(tiny_run, "onnx")
    mine = shutil.copytree(bundle / "models", tmp_path / "mine")
    facts = json.loads((mine / "model.json").read_text())
    (mine / "model.json").write_text(json.dumps(facts | {"modalities": ["ct", "pet"]}))
    with pytest.raises(CohortError, match="model.onnx takes 3 channels, the model has 2 .ct, pet.; export it again"):
        load_engine(mine, "onnx")


# weights that are not this network's, or not weights


def test_weights_of_another_network_are_refused(tiny_run, tmp_path):
    mine = shutil.copytree(tiny_run, tmp_path / "run")
    facts = json.loads((mine / "model.json").read_text())
    (mine / "model.json").write_text(json.dumps(facts | {"network": facts["network"] | {"strategy": "decision"}}))
    words = r"weights of another network than strategy decision with ct, pet, mr and 2 classes: \d+ of \d+ differ, as "
    with pytest.raises(CohortError, match=words):
        load_model(mine)


def test_weights_that_would_run_code_are_refused(tiny_run, tmp_path):
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    mine = shutil.copytree(tiny_run, tmp_path / "run")
    (mine / "model.pt").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(CohortError, match="model.pt is not a file of weights alone, as mmfusion writes it"):
        load_model(mine)
    assert not (tmp_path / "pwned").exists()


def test_nothing_of_a_bundle_is_executed(bundle, scans, tmp_path):
    mine = shutil.copytree(bundle, tmp_path / "b")
    evil = f"$open({str(tmp_path / 'pwned')!r}, 'w')"
    for file in (mine / "configs").glob("*.yaml"):
        file.write_text(f"imports: [{json.dumps(evil)}]\ninitialize: [{json.dumps(evil)}]\n" + file.read_text())
    (mine / "configs" / "metadata.json").write_text(json.dumps({"name": evil}))
    (mine / "sitecustomize.py").write_text(evil[1:])
    assert main(["predict", str(mine), str(scans), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert len(Predictions.read(tmp_path / "out" / "predictions.csv")) == 3 and not (tmp_path / "pwned").exists()


def test_where_the_network_runs_and_how_long_a_case_may_take(bundle, scans, tmp_path, capsys):
    given = ["predict", str(bundle), str(scans), "--out", str(tmp_path / "out")]
    assert main([*given, "--device", "cuda:99"]) == 1
    assert "device cuda:99 cannot be used" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*given, "--device", "cpu", "--time-limit", "600", "--workers", "2"]) == 0


@pytest.mark.slow
def test_exported_networks_answer_without_monai(bundle, scans, tmp_path):
    code = (
        "import sys; from mmfusion.cli import main\n"
        f"given = ['predict', {str(bundle)!r}, {str(scans)!r}, '--out', 'out', '--engine', 'onnx']\n"
        "status = main(given)\n"
        "print(status, [name for name in ('monai', 'monai.bundle', 'ignite') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_folder_of_studies_will_do(bundle, tmp_path):
    write_raw_study(draw_subjects(1, 5), tmp_path / "studies")
    given = [str(bundle), str(tmp_path / "studies"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["predict", *given]) == 0
    assert (tmp_path / "out" / "manifest.csv").is_file()
    assert len(Predictions.read(tmp_path / "out" / "predictions.csv")) == 1


# ensembles


def test_the_members_of_an_ensemble_are_averaged(tiny_run, scans, predicted, tmp_path):
    model, network = load_model(tiny_run)
    for number, shift in enumerate((0.0, 3.0)):
        with torch.no_grad():
            network.classifier[-1].bias[0] += shift
        save_model(tmp_path / "cv" / f"fold_{number}", network, replace(model, threshold=0.2 + 0.4 * number))
    assert [one.name for one in member_folders(tmp_path / "cv")] == ["fold_0", "fold_1"]
    path = predict_manifest(tmp_path / "cv", scans, tmp_path / "out", workers=1)
    other = predict_manifest(tmp_path / "cv" / "fold_1", scans, tmp_path / "other", workers=1)
    np.testing.assert_allclose(shares_of(path), (shares_of(predicted) + shares_of(other)) / 2, atol=2e-6)
    facts = json.loads((tmp_path / "out" / "predictions" / "A.json").read_text())
    assert 0 < facts["uncertainty"]["epistemic"] < facts["uncertainty"]["entropy"] and facts["threshold"] == 0.4


def test_uncertainty_of_members_that_agree_and_that_do_not():
    alike = np.array([[[0.5, 0.5]], [[0.5, 0.5]]])
    assert np.allclose(uncertainty(alike), [[np.log(2)], [0]])
    apart = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert np.allclose(uncertainty(apart), [[np.log(2)], [np.log(2)]])


def test_members_must_fit_together(tiny_run):
    model, _ = load_model(tiny_run)
    with pytest.raises(
        CohortError, match="ensemble must have the same classes, found .* train the folds with the same"
    ):
        joint_model([model, replace(model, classes=("a", "b"))])


# the commands


def test_commands_from_a_bundle_to_predictions(tiny_run, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "new", "mine", "--modalities", "ct", "pet", "mr", "--classes", "no", "yes"]) == 0
    assert main(["predict", "mine", str(scans), "--out", "out"]) == 1
    assert (
        "error: the bundle mine has no weights yet: train, then mmfusion bundle pack mine RUN"
        in capsys.readouterr().err
    )
    assert main(["bundle", "pack", "mine", str(tiny_run), "--dtype", "float16"]) == 0
    assert main(["export", "mine"]) == 1 and "say what to export to: --engine onnx" in capsys.readouterr().err
    assert main(["export", "mine", "--engine", "onnx"]) == 0
    assert main(["predict", "mine", str(scans), "--out", "out", "--engine", "onnx", "--workers", "1"]) == 0
    assert "3 of 3 cases predicted | out/predictions.csv | look at out/cohort/qc.html" in capsys.readouterr().out
    rows = Predictions.read("out/predictions.csv")
    assert [row["modalities"] for row in rows] == ["ct pet mr", "pet mr", "ct"]


def test_bundle_new_reads_tables(tmp_path):
    given = ["--encoder", "{ct: cnn, pet: resnet10}", "--modalities", "ct", "pet", "--no-class-weights"]
    assert main(["bundle", "new", str(tmp_path / "b"), *given]) == 0
    text = (tmp_path / "b" / "configs" / "train.yaml").read_text()
    assert "\nencoder: {ct: cnn, pet: resnet10} #" in text and "\nclass_weights: false\n" in text
    assert TEMPLATE.is_dir()


def test_simulate_writes_a_cohort(tmp_path, capsys):
    sizes = ["--train-subjects", "40", "--test-subjects", "3"]
    assert main(["simulate", "--out", str(tmp_path / "study"), *sizes]) == 0
    assert capsys.readouterr().out == f"SIMULATED DATA | 43 cases | {tmp_path / 'study'}\n"
    assert (tmp_path / "study" / "cases.csv").is_file()
