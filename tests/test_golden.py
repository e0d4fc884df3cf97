"""Files and numbers of an earlier version are promises: what tests/golden/make.py wrote then holds now.

Trainings give the same bytes on the kind of machine that wrote them, and elsewhere the same probabilities to 1e-4.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import mmfusion.training
from mmfusion.bundle import run_config
from mmfusion.errors import CohortError
from mmfusion.files import Predictions, RunFolder
from mmfusion.predict import load_model
from mmfusion.prepare import open_cohort, versions

HERE = Path(__file__).parent / "golden"
sys.path.insert(0, str(HERE))
import make  # noqa: E402 (its folder is no package)

GOLDEN = json.loads((HERE / "golden.json").read_text())


@pytest.fixture
def golden(tmp_path):
    """A copy that tests may write into; the cohort is the same."""
    for name in ("run", "stopped", "bundle", "cohort"):
        shutil.copytree(HERE / name, tmp_path / name)
    return tmp_path


def probabilities(text):
    rows = list(csv.DictReader(text.splitlines()))
    return {row["case"]: float(row["p_malignant"]) for row in rows}


def evaluate(run):
    run_config("evaluate", run_dir=str(run), resamples=100, device="cpu", threads=1, **{"run#2": None})


def assert_golden(run, name):
    made, expected = make.results(run), GOLDEN["systems"][name]
    assert probabilities(made["predictions.csv"]) == pytest.approx(probabilities(expected["predictions.csv"]), abs=1e-4)
    if make.machine() == GOLDEN["machine"]:
        assert made == expected


@pytest.mark.parametrize("name", make.SYSTEMS)
def test_a_training_gives_what_it_gave(name, tmp_path):
    run_config("train", cohort=str(HERE / "cohort"), run_dir=str(tmp_path), **make.FAST, **make.SYSTEMS[name])
    evaluate(tmp_path)
    assert_golden(tmp_path, name)


@pytest.mark.parametrize("name", make.SYSTEMS)
def test_the_function_gives_the_same_bytes(name, tmp_path):
    run = mmfusion.training.train(HERE / "cohort", tmp_path, **make.FAST, **make.SYSTEMS[name])
    run.evaluate(resamples=100, device="cpu", threads=1)
    assert_golden(tmp_path, name)


def test_an_earlier_bundle_trains_as_it_did(golden):
    run_config("train", golden / "bundle", cohort=str(golden / "cohort"), run_dir=str(golden / "new"), **make.FAST)
    evaluate(golden / "new")
    assert_golden(golden / "new", "feature")


def test_an_earlier_cohort_is_opened_as_it_is(golden):
    cohort = open_cohort(golden / "cohort")
    assert len(cohort.cases) == 22
    assert cohort.hash == json.loads((golden / "run" / "options.json").read_text())["cohort_hash"]


def test_an_earlier_run_is_evaluated_and_reported(golden):
    before = probabilities((golden / "run" / "predictions.csv").read_text())
    run_config("evaluate", run_dir=str(golden / "run"), resamples=100, device="cpu", threads=1)
    assert probabilities((golden / "run" / "predictions.csv").read_text()) == pytest.approx(before, abs=1e-6)
    assert "research use only" in (golden / "run" / "report.html").read_text().lower()


def test_an_earlier_training_that_was_stopped_goes_on(golden, capsys):
    options = golden / "stopped" / "options.json"
    before = json.loads(options.read_text())
    before["versions"]["mmfusion"] = versions()["mmfusion"]
    options.write_text(json.dumps(before))
    given = {**make.FAST, **make.OPTIONS}
    if before["versions"] != versions():  # of torch and others: the same numbers cannot be promised
        with pytest.raises(CohortError, match="versions was"):
            run_config("train", cohort=str(golden / "cohort"), run_dir=str(golden / "stopped"), **given)
        return
    mmfusion.training.train(golden / "cohort", golden / "stopped", **given)
    assert "goes on after epoch 1" in capsys.readouterr().err
    evaluate(golden / "stopped")
    assert_golden(golden / "stopped", "feature")
    assert RunFolder(golden / "stopped").model.is_file()


def test_an_earlier_bundle_has_the_weights_of_its_run(golden):
    _, network = load_model(golden / "bundle")
    _, trained = load_model(golden / "run")
    image = torch.rand(3, 3, 11, 13, 12, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0]])
    with torch.no_grad():
        answers = network(image, present).softmax(1), trained(image, present).softmax(1)
    assert torch.equal(*answers)
    assert len(Predictions.read(golden / "run" / "predictions.csv")) == 4
