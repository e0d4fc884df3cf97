"""From a trained model to probabilities: batches, the model on disk, the prediction file, and the inference bundle."""

import csv
import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cohort import GRID, MODALITIES, OPTIONS, write_scans, write_tiny_cohort

from mmfusion.bundle import run_config
from mmfusion.errors import CohortError, ManifestError, OptionError, VoxelError
from mmfusion.files import Predictions
from mmfusion.predict import (
    Model,
    PrepareFusionBatch,
    check_batch,
    dataset_items,
    infer,
    load_model,
    prepare_for,
    probabilities,
    read_model,
    save_model,
    weights_hash,
    write_predictions,
)
from mmfusion.prepare import open_cohort
from mmfusion.training import open_study


def model(**given) -> Model:
    """A description of a small network."""
    facts = {
        "modalities": MODALITIES,
        "classes": ("no", "yes"),
        "network": {"strategy": "input", "encoder": "resnet10", "width": 0.125},
        "case": OPTIONS,
        "training_prior": (0.5, 0.5),
        "target_prior": (0.8, 0.2),
    }
    return Model(**(facts | given))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_items_hold_path_presence_and_class_number(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    items = dataset_items(cohort, cohort.cases, ["mr", "ct"], ["benign", "malignant"])
    assert len(items) == 23  # S09 has pet alone
    first = items[0]
    assert (first["case"], first["label"], first["modalities"]) == ("S00", 0, "mr")
    assert first["present"].tolist() == [True, False] and first["image"].endswith("cases/S00/image.npy")


def test_items_have_no_label_where_it_is_not_a_class(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    items = dataset_items(cohort, cohort.cases[:2], ["ct", "mr"], ["malignant", "other"])
    assert "label" not in items[0] and items[1]["label"] == 0


def test_items_of_no_case_are_refused(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    with pytest.raises(CohortError, match="no case of .* has any of the modalities spect"):
        dataset_items(cohort, cohort.cases, ["spect"])


def test_check_batch_names_the_cases():
    image, present = torch.zeros(3, 2, 2, 2, 2), torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    with pytest.raises(VoxelError, match="^B: all modalities are absent; a case needs at least one$"):
        check_batch(image, present, ["A", "B", "C"])
    image[2, 1, 0, 1, 0] = torch.nan
    with pytest.raises(VoxelError, match="^row 2: the image holds NaN or infinite values"):
        check_batch(image, present | True)


def test_prepare_batch_hands_presence_to_the_network():
    batch = {"image": torch.ones(2, 1, 3, 3, 3), "present": torch.ones(2, 1).bool(), "case": ["A", "B"]}
    image, label, nothing, extra = PrepareFusionBatch()(batch, "cpu")
    assert image.shape == (2, 1, 3, 3, 3) and label is None and nothing == () and extra["present"].all()
    assert PrepareFusionBatch()(batch | {"label": torch.tensor([0, 1])}, "cpu")[1].tolist() == [0, 1]


def test_prepare_batch_checks_values():
    batch = {"image": torch.full((1, 1, 3, 3, 3), torch.inf), "present": torch.ones(1, 1).bool(), "case": ["S7"]}
    with pytest.raises(VoxelError, match="S7: the image holds NaN or infinite values; prepare the case again"):
        PrepareFusionBatch()(batch, "cpu")


def test_probabilities_are_bayes_rule_at_the_training_subjects_prior():
    # a balanced loss taught the network p(x | yes) / p(x | no) = 3; one subject in five has the class
    logits = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    found = probabilities(logits, model())
    assert found[0, 1] == pytest.approx(0.2 * 3 / (0.2 * 3 + 0.8 * 1))
    assert found[1, 1] == pytest.approx(0.2) and found.sum(1) == pytest.approx([1, 1])


def test_probabilities_without_weights_are_softmax():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    same = model(classes=("a", "b", "c"), training_prior=(0.2, 0.3, 0.5), target_prior=(0.2, 0.3, 0.5))
    np.testing.assert_allclose(probabilities(logits, same), logits.softmax(1), atol=1e-6)


def test_infer_keeps_order_and_equals_the_network():
    torch.manual_seed(0)
    network, image, present = model().build(), torch.rand(5, 3, 9, 8, 7), torch.ones(5, 3).bool()
    present[1, 2] = False
    batches = [{"image": image[part], "present": present[part]} for part in (slice(0, 2), slice(2, 5))]
    found = infer(network, batches)
    with torch.no_grad():
        torch.testing.assert_close(found, network.eval()(image, present))


def test_model_comes_back_from_disk(tmp_path):
    torch.manual_seed(0)
    network, about = model().build(), model(threshold=0.4)
    save_model(tmp_path, network, about)
    again, loaded = load_model(tmp_path)
    assert replace(again, weights="") == about and not loaded.training
    assert again.weights == weights_hash(network.state_dict()) == read_model(tmp_path).weights
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_a_model_of_a_simulated_cohort_says_so_beside_every_prediction(tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 6)
    options = json.loads((cohort.folder / "options.json").read_text())
    study = open_study(tmp_path / "run", cohort=cohort.folder, width=0.125)
    assert study.model().notice == "Research use only; not a medical device."
    (cohort.folder / "options.json").write_text(json.dumps(options | {"simulated": True}))
    told = open_study(tmp_path / "run", cohort=cohort.folder, width=0.125).model()
    assert told.simulated and told.notice.endswith(
        "trained on SIMULATED data: its probabilities say nothing about any patient."
    )


def test_model_file_holds_tensors_only(tiny_run):
    weights = torch.load(tiny_run / "model.pt", weights_only=True)
    assert isinstance(weights, OrderedDict | dict) and all(torch.is_tensor(value) for value in weights.values())


def test_load_model_says_what_is_wrong(tmp_path):
    with pytest.raises(CohortError, match="no run is given: add --run RUN"):
        load_model(None)
    with pytest.raises(CohortError, match="has no model.json: it is not a finished run"):
        load_model(tmp_path)
    save_model(tmp_path, model().build(), model())
    (tmp_path / "model.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CohortError, match="written by another version of mmfusion"):
        load_model(tmp_path)


def test_threshold_decides_between_two_classes_the_largest_among_more(tmp_path):
    from mmfusion.predict.predictions import _outcome

    assert _outcome(np.array([0.6, 0.4]), model(threshold=0.4))["predicted"] == "yes"
    assert _outcome(np.array([0.6, 0.4]), model())["predicted"] == "no"
    assert _outcome(np.array([0.3, 0.5, 0.2]), model(classes=("a", "b", "c")))["predicted"] == "b"


def test_predictions_list_every_case_of_the_cohort(tmp_path):
    cohort = write_tiny_cohort(tmp_path, ["no", "yes", ""], {1: ["ct", "mr"]})
    failed = {**cohort.rows[2], "case": "S03", "subject": "S03", "status": "failed", "reasons": "broken file"}
    cohort.rows.append(failed)
    rows = [
        {"case": name, "subject": name, "p_no": 0.5, "p_yes": 0.5, "predicted": "no", "modalities": "ct mr"}
        for name in ("S00", "S02")
    ]
    small = model(modalities=("ct", "mr"))
    write_predictions(tmp_path / "predictions.csv", rows, small, "inference", cohort)
    found = {row["case"]: row for row in rows_of(tmp_path / "predictions.csv")}
    assert [found[name]["status"] for name in found] == ["done", "done", "done", "failed"]
    assert found["S00"]["label"] == "no" and found["S02"]["label"] == ""
    assert (found["S01"]["reasons"], found["S01"]["p_yes"]) == ("has none of ct, mr", "")
    assert (found["S03"]["reasons"], found["S03"]["part"]) == ("broken file", "inference")
    assert [row["case"] for row in Predictions.read(tmp_path / "predictions.csv")] == ["S00", "S02"]


def test_a_table_that_is_not_there_asks_for_the_step_before(tmp_path):
    with pytest.raises(CohortError, match="has no predictions.csv: run mmfusion evaluate, or mmfusion predict, first"):
        Predictions.read(tmp_path / "predictions.csv")


def test_prepare_for_refuses_what_cannot_be_predicted(tmp_path):
    manifest = write_scans(tmp_path, {"A": ["mr"]})
    with pytest.raises(CohortError, match="has none of the model's modalities ct, pet; it has mr"):
        prepare_for(model(modalities=("ct", "pet")), manifest, tmp_path / "out")
    manifest.write_text("subject,mr\nA,gone.nii.gz\n")
    with pytest.raises(ManifestError, match=r"gone.nii.gz does not exist"):
        prepare_for(model(), manifest, tmp_path / "out")


def test_prepare_for_keeps_a_reference_that_the_network_does_not_use(tmp_path):
    manifest = write_scans(tmp_path, {"A": ["ct", "pet"], "B": ["pet"]})
    cohort = prepare_for(model(modalities=("pet",)), manifest, tmp_path / "out", workers=1)
    assert cohort.modalities == ("ct", "pet") and [row["reference"] for row in cohort.rows] == ["ct", "pet"]
    assert {name: cohort.options[name] for name in GRID} == GRID


@pytest.fixture(scope="module")
def inference(tiny_run, tmp_path_factory):
    """Predictions on five subjects without labels: one lacks ct, one has ct alone, one has a broken file."""
    folder = tmp_path_factory.mktemp("scans")
    everything = {"A": MODALITIES, "B": ("pet", "mr"), "C": ("ct",), "D": MODALITIES, "E": MODALITIES}
    manifest = write_scans(folder, everything)
    (folder / "D_ct.nii.gz").write_bytes((folder / "D_ct.nii.gz").read_bytes()[:200])
    out = folder / "out"
    run_config(
        "inference", run_dir=str(tiny_run), manifest=str(manifest), out=str(out), workers=1, batch_size=3, device="cpu"
    )
    return out


def test_inference_needs_no_labels(inference):
    rows = {row["case"]: row for row in rows_of(inference / "predictions.csv")}
    assert [rows[name]["modalities"] for name in "ABCE"] == ["ct pet mr", "pet mr", "ct", "ct pet mr"]
    assert {row["part"] for row in rows.values()} == {"inference"} and {row["label"] for row in rows.values()} == {""}
    for name in "ABCE":
        shares = [float(rows[name][f"p_{one}"]) for one in ("benign", "malignant")]
        assert sum(shares) == pytest.approx(1, abs=2e-6) and rows[name]["predicted"] in ("benign", "malignant")


def test_a_broken_file_fails_alone(inference):
    failed = [row for row in rows_of(inference / "predictions.csv") if row["status"] == "failed"]
    assert [row["case"] for row in failed] == ["D"] and failed[0]["predicted"] == failed[0]["p_benign"] == ""
    assert failed[0]["reasons"].startswith("ct is not a NIfTI file, or is damaged")
    assert (inference / "cohort" / "qc.html").is_file()


def test_inference_predicts_what_the_network_says(inference, tiny_run):
    about, network = load_model(tiny_run)
    cohort = open_cohort(inference / "cohort")
    for one in cohort.cases:
        image = torch.from_numpy(np.load(one.file))[None]
        present = torch.tensor([[name in one.modalities for name in about.modalities]])
        with torch.no_grad():
            wanted = probabilities(network(image, present), about)[0, 1]
        row = next(row for row in Predictions.read(inference / "predictions.csv") if row["case"] == one.case.id)
        assert float(row["p_malignant"]) == pytest.approx(wanted, abs=1e-5)


def test_inference_without_the_reference_column(tiny_run, tmp_path):
    manifest = write_scans(tmp_path, {"A": ("pet", "mr"), "B": ("mr",)})
    assert manifest.read_text().startswith("subject,pet,mr\n")
    run_config(
        "inference", run_dir=str(tiny_run), manifest=str(manifest), out=str(tmp_path / "out"), workers=1, device="cpu"
    )
    rows = Predictions.read(tmp_path / "out" / "predictions.csv")
    assert [row["modalities"] for row in rows] == ["pet mr", "mr"]


def test_inference_of_one_modality_still_centers_on_the_reference(train, tmp_path):
    run = train(tmp_path / "run", modalities=["pet"], epochs=1)
    manifest = write_scans(tmp_path, {"A": ("ct", "pet"), "B": ("ct",)})
    out = tmp_path / "out"
    run_config("inference", run_dir=str(run), manifest=str(manifest), out=str(out), workers=1, device="cpu")
    rows = rows_of(out / "predictions.csv")
    assert [(row["case"], row["modalities"], row["reasons"]) for row in rows] == [
        ("A", "pet", ""),
        ("B", "", "has none of pet"),
    ]
    assert open_cohort(out / "cohort").rows[0]["reference"] == "ct"


def test_inference_asks_for_a_manifest_and_a_run(tiny_run):
    with pytest.raises(
        OptionError, match="no manifest is given: add --manifest MANIFEST .Manifest to prepare first, or"
    ):
        run_config("inference", run_dir=str(tiny_run))
    with pytest.raises(CohortError, match="the bundle .*template has no weights yet"):
        run_config("inference", manifest="manifest.csv")
