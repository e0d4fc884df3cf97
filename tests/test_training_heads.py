"""Heads that are fitted after training: on whom, with which weights, and trainings of zero epochs."""

import csv
from dataclasses import replace

import pytest
import torch
from tiny_cohort import FAST, write_scans, write_tiny_cohort

from mmfusion.bundle import run_config
from mmfusion.errors import ManifestError
from mmfusion.networks import FusionOutput, build
from mmfusion.networks.heads import FittedHead, LogisticHead
from mmfusion.networks.statistics import settle_statistics
from mmfusion.networks.trained import freeze, learns
from mmfusion.predict.preparing import _warn_of_training_subjects
from mmfusion.training import open_study, train, validation_transform
from mmfusion.training.heads import case_weights, fit_heads

TINY = FAST | {"encoder": "cnn", "width": 0.1, "epochs": 1}
FROZEN = TINY | {"freeze_encoders": True, "head": "logistic"}


def split_of(run):
    with (run / "split.csv").open(newline="") as file:
        return {row["case"]: row["part"] for row in csv.DictReader(file)}


@pytest.fixture
def fits(monkeypatch):
    """What heads are fitted on: (features, label, weight) of each."""
    calls, fit = [], FittedHead.fit
    monkeypatch.setattr(FittedHead, "fit", lambda head, *args: calls.append(args) or fit(head, *args))
    return calls


def test_from_cohort_to_prediction_in_zero_epochs(tiny_cohort, tmp_path, fits, capsys):
    run = train(tiny_cohort, tmp_path / "run", **FROZEN)
    folder = run.path
    assert "head" not in capsys.readouterr().out and set(split_of(folder).values()) == {"train", "validation", "test"}
    assert not (folder / "history.csv").exists() and not list((folder / "checkpoints").glob("*"))
    assert len(fits) == 1 and len(fits[0][0]) == list(split_of(folder).values()).count("train")
    metrics = run.evaluate(resamples=100, device="cpu")
    assert metrics["metrics"]["auc"]["value"] > 0.9  # of random encoders: the label is easy to see
    assert "Research use only" in run.report().read_text()
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert weights["classifier.1.weight"].any() and weights["standardize.0.norm.running_mean"].any()
    manifest = write_scans(tmp_path, {"A": ("ct", "pet"), "B": ("mr",)})
    assert len(run.predict(manifest, tmp_path / "out", workers=1).read_text().splitlines()) == 3


def test_the_bundle_does_the_same(tiny_cohort, tmp_path):
    train(tiny_cohort, tmp_path / "a", **FROZEN)
    run_config("train", cohort=str(tiny_cohort), run_dir=str(tmp_path / "b"), **FROZEN)
    assert (tmp_path / "a" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()


@pytest.mark.parametrize("strategy", ["decision", pytest.param("single_level", marks=pytest.mark.slow)])
def test_a_head_behind_trained_layers_is_fitted_on_subjects_that_they_have_not_seen(
    strategy, tmp_path, fits, capsys, caplog
):
    subject, session = [f"S{n // 2:02d}" for n in range(48)], ["1", "2"] * 24
    labels = [label for label in ["benign", "malignant"] * 12 for _ in "12"]
    cohort = write_tiny_cohort(tmp_path / "cohort", labels, {5: ["pet"]}, subject=subject, session=session)
    run = train(cohort.folder, tmp_path / "run", **TINY | {"strategy": strategy, "head": "ridge"}).path
    split = split_of(run)
    parts = {part: {case[:3] for case in split if split[case] == part} for part in split.values()}
    assert len(parts["head"]) == 4 and not parts["head"] & parts["train"]
    assert "train 20 (benign: 8, malignant: 12), head 8 (benign: 4, malignant: 4), " in capsys.readouterr().out
    assert len(fits) == {"decision": 3, "single_level": 1}[strategy]
    assert all(len(label) == 8 for _, label, _ in fits)  # and the training saw the others: its cases are its part
    _warn_of_training_subjects(parts["head"], run)
    assert "4 of 4 subjects were in the training or validation of this model" in caplog.text


class Memory(torch.nn.Module):
    """Features of a network that overfits: the label of each case that it was trained on, chance for all others."""

    def __init__(self, study):
        super().__init__()
        self.trained = torch.nn.Linear(1, 1)
        self.classifier = torch.nn.Sequential(LogisticHead(1, 2))
        load, self.memory = validation_transform(study), {}
        for part in ("train", "head"):
            for number, item in enumerate(sorted(study.items(part), key=lambda one: one["label"])):
                says = item["label"] if part == "train" else number % 2
                self.memory[float(load(item)["image"].sum())] = 2.0 * says - 1

    def outputs(self, image, present, covariates=None):
        features = torch.tensor([[self.memory[float(one.sum())]] for one in image])
        return FusionOutput(self.classifier(features), present, features=features)


def test_labels_that_a_network_remembers_do_not_reach_the_head(tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["benign", "malignant"] * 20)
    options = {name: value for name, value in TINY.items() if name != "device"} | {"head": "logistic"}
    study = open_study(tmp_path / "run", cohort=cohort.folder, head_share=1 / 3, **options)
    network = Memory(study)
    fit_heads(study, network)
    assert network.classifier[0].weight.abs().max() < 1e-6
    everyone = replace(study, parts={case: "train" if part == "head" else part for case, part in study.parts.items()})
    fit_heads(everyone, network)  # as if the head were fitted on all that the network was trained on
    assert network.classifier[0].weight.abs().max() > 0.5


def test_each_subject_counts_once_and_each_class_as_the_loss_saw_it():
    weight = case_weights(["A", "A", "A", "B", "C"], torch.tensor([0, 0, 0, 0, 1]), [0.25, 0.75])
    torch.testing.assert_close(weight / 5, torch.tensor([0.125 / 3] * 3 + [0.125, 0.75], dtype=torch.float64))


def test_frozen_encoders_keep_weights_and_statistics_and_the_rest_is_trained():
    torch.manual_seed(0)
    network = build("hybrid", "cnn", width=0.1, norm="batch", head="logistic")
    freeze(network, encoders=True)
    assert not learns(network) and not any(p.requires_grad for p in network.parameters())
    network = build("single_level", "cnn", width=0.1, norm="batch")
    freeze(network, encoders=True)
    assert learns(network) and all(p.requires_grad for p in network.classifier.parameters())
    before = {name: value.clone() for name, value in network.encoders.state_dict().items()}
    image, present = torch.rand(5, 3, 17, 19, 18), torch.ones(5, 3, dtype=torch.bool)
    network.train()(image, present).sum().backward()
    settle_statistics(network, [(image, present, None)])
    assert all(torch.equal(value, before[name]) for name, value in network.encoders.state_dict().items())
    assert network.standardize[0].norm.running_mean.any() and network.classifier[1].weight.grad.any()


def test_too_few_subjects_for_a_head_are_refused_before_anything_is_written(tmp_path):
    split = ["train"] * 6 + ["validation"] * 4 + ["test"] * 4
    cohort = write_tiny_cohort(tmp_path / "cohort", ["benign", "malignant"] * 7, split=split)
    with pytest.raises(ManifestError, match="benign has 3 subjects .*; train, head need at least 2 of each class"):
        train(cohort.folder, tmp_path / "run", **TINY, head="ridge")
    assert not (tmp_path / "run").exists()
