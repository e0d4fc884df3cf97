"""A training that was killed goes on, and ends exactly where the undisturbed one ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from tiny_cohort import FAST

from mmfusion.bundle import TEMPLATE, run_config
from mmfusion.errors import CohortError, MmfusionError, OptionError, OutputError
from mmfusion.files import MARK, RunFolder
from mmfusion.report import write_report
from mmfusion.training import open_study, write_metrics
from mmfusion.training.checkpoint import random_state, set_random_state

RANDOM = {"augment": True, "dropout": 0.3, "modality_drop": 0.3, "epochs": 4, "width": 0.06}
CONFIG = str(TEMPLATE / "configs" / "train.yaml")


class Killed(Exception):
    """What stands for the kill in this process."""


def train_until(cohort, run, epoch, iteration, **options):
    """A training that breaks off within an epoch, with nothing caught and nothing written afterwards."""
    given = FAST | RANDOM | {"cohort": str(cohort), "run_dir": str(run)} | options
    workflow = ConfigWorkflow(CONFIG, logging_file=False, workflow_type="train", **given)
    workflow.initialize()

    def kill(engine):
        if engine.state.epoch == epoch and engine.state.iteration % engine.state.epoch_length == iteration:
            raise Killed

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, kill)
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert isinstance(error.value.__cause__, Killed)


def history_of(run):
    with (run / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same(run, other):
    assert history_of(run) == history_of(other)
    for name in ("checkpoints/best.pt", "checkpoints/final.pt", "model.pt"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (run, other))
        assert all(torch.equal(value, two[key]) for key, value in one.items()), name
    assert (run / "model.json").read_text() == (other / "model.json").read_text()
    assert not (run / "checkpoints" / "resume.pt").exists()


# 14 cases: batches of 8 leave a small one, and those of 7 do not; only then is the loader's end seen late
@pytest.mark.parametrize(
    ("batch_size", "loaders"), [(8, 0), *(pytest.param(7, loaders, marks=pytest.mark.slow) for loaders in (0, 2))]
)
def test_a_training_that_broke_off_ends_as_if_it_had_not(train, tiny_cohort, tmp_path, capsys, batch_size, loaders):
    options = RANDOM | {"batch_size": batch_size, "loaders": loaders}
    train(tmp_path / "whole", **options)
    train_until(tiny_cohort, tmp_path / "broken", epoch=3, iteration=0, **options)
    assert len(history_of(tmp_path / "broken")) == 2
    capsys.readouterr()
    train(tmp_path / "broken", **options)
    assert "goes on after epoch 2 of an unfinished training" in capsys.readouterr().err
    assert_same(tmp_path / "broken", tmp_path / "whole")


def test_the_best_epoch_and_the_patience_are_remembered(train, tiny_cohort, tmp_path):
    stuck = {"learning_rate": 0.0, "patience": 3, "epochs": 6, "standardize": False}  # every epoch is as good
    train_until(tiny_cohort, tmp_path, epoch=3, iteration=1, **stuck)
    first = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    train(tmp_path, **RANDOM | stuck)
    assert len(history_of(tmp_path)) == 4  # the first epoch was the best, and three have passed
    last = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert all(torch.equal(value, last[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_finished_training_starts_anew(train, tmp_path, capsys):
    train(tmp_path, epochs=1)
    run_config("evaluate", run_dir=str(tmp_path), resamples=100)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file() and path.name != MARK}
    train(tmp_path, epochs=2)
    assert f"the earlier training in {tmp_path} was moved to" in capsys.readouterr().err
    assert len(history_of(tmp_path)) == 2 and not (tmp_path / "predictions.csv").exists()
    earlier = tmp_path / "earlier" / "1"
    kept = {path.name: path.read_bytes() for path in earlier.glob("*.*") if path.name != MARK}
    assert {name for name in first if kept[name] != first[name]} == {"options.json"} and kept.keys() == first.keys()
    run_config("evaluate", run_dir=str(earlier), resamples=100)  # it still knows its cohort
    assert sorted(path.name for path in (earlier / "checkpoints").iterdir()) == ["best.pt", "final.pt"]
    # results of the earlier model beside the new one, as an interrupted copy could leave them
    for name in ("predictions.csv", "metrics.json"):
        (tmp_path / name).write_bytes(first[name])
    for work in (write_report, write_metrics):
        with pytest.raises(CohortError, match=r"predictions.csv was made by another model than the one that is there"):
            work(tmp_path)


def test_a_move_that_is_ended_overwrites_nothing(train, tmp_path, monkeypatch):
    train(tmp_path, epochs=1)
    split, rename = (tmp_path / "split.csv").read_bytes(), Path.rename

    def stop(path, target):
        if path.name == "split.csv":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).move_away()
    monkeypatch.undo()
    train(tmp_path, epochs=1, validation_share=0.3)
    assert (tmp_path / "earlier" / "1" / "options.json").is_file()
    assert (tmp_path / "earlier" / "2" / "split.csv").read_bytes() == split
    with pytest.raises(OptionError, match="device cuda:7 cannot be used"):  # before anything is touched
        train(tmp_path, epochs=1, device="cuda:7")
    assert (tmp_path / "model.json").is_file() and not (tmp_path / "earlier" / "3").exists()


@pytest.mark.slow
def test_a_single_modality_that_was_trained_again_is_stale(train, tmp_path):
    for folder, more in {tmp_path / "single" / "ct": {"modalities": ["ct"]}, tmp_path: {}}.items():
        train(folder, epochs=1, **more)
        run_config("evaluate", run_dir=str(folder), resamples=100)
    train(tmp_path / "single" / "ct", epochs=1, modalities=["ct"], seed=3)
    with pytest.raises(CohortError, match=r"metrics.json is of an earlier single/ct/predictions.csv; evaluate"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_run_folder_has_one_writer_and_one_kind_of_training(train, tiny_cohort, tmp_path):
    study = open_study(tmp_path / "run", cohort=tiny_cohort)
    assert open_study(tmp_path / "run", cohort=tiny_cohort).lock is study.lock  # a program may set it up twice
    code = (
        "import sys; from mmfusion.training import open_study; from mmfusion.errors import CohortError\n"
        "try: open_study(sys.argv[1], cohort=sys.argv[2])\nexcept CohortError as error: print(error)"
    )
    other = [sys.executable, "-c", code, tmp_path / "run", tiny_cohort]
    said = subprocess.run(other, capture_output=True, text=True, check=True).stdout
    assert "run; wait until it has ended, or choose another folder" in said and "another training is writing" in said
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "best.pt").touch()
    with pytest.raises(OutputError, match="holds a training without folds"):
        open_study(tmp_path / "run", cohort=tiny_cohort, fold=0)
    folds = [open_study(tmp_path / "cv", cohort=tiny_cohort, fold=fold, folds=2) for fold in (0, 1)]  # at once
    assert folds[0].lock is not folds[1].lock
    with pytest.raises(OutputError, match="holds the folds of a cross-validation"):
        open_study(tmp_path / "cv", cohort=tiny_cohort)
    with pytest.raises(OutputError, match="is a cohort folder|is not empty and not a run folder|a simulated cohort"):
        open_study(tiny_cohort, cohort=tiny_cohort)


def test_an_unfinished_training_goes_on_with_its_own_options_alone(train, tiny_cohort, tmp_path, capsys):
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1)
    before = json.loads((tmp_path / "options.json").read_text())
    given = {"given": {"epochs": {"value": 4, "from": "file"}}}  # who gave an option does not count
    (tmp_path / "options.json").write_text(json.dumps(before | given))
    words = (
        r"holds an unfinished training with other options \(dropout was 0.3 and is 0.0, epochs was 4 and is 5\); start "
        r"it as before to go on with it, choose another run folder, or begin anew without resuming "
        r"\(--no-resume; of a bundle --resume False\)"
    )
    with pytest.raises(CohortError, match=words):
        train(tmp_path, **RANDOM | {"epochs": 5, "dropout": 0.0})
    assert (tmp_path / "checkpoints" / "resume.pt").is_file()
    train(tmp_path, **RANDOM | {"epochs": 1, "resume": False})
    assert "goes on" not in capsys.readouterr().err and len(history_of(tmp_path)) == 1
    assert (tmp_path / "earlier" / "1" / "checkpoints" / "resume.pt").is_file()


def test_overrides_by_path_count_too(train, tiny_cohort, tmp_path):
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1)
    words = r"with other options \(train#optimizer#weight_decay was None and is 0.5\); start it as before"
    with pytest.raises(CohortError, match=words):
        train(tmp_path, **RANDOM | {"train#optimizer#weight_decay": 0.5})


def test_a_damaged_checkpoint_is_refused(train, tiny_cohort, tmp_path):
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1)
    file = tmp_path / "checkpoints" / "resume.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MmfusionError, match="resume.pt is damaged, or was .* another version .* --resume False"):
        train(tmp_path, **RANDOM)


def test_as_many_processes_as_before(train, tiny_cohort, tmp_path):
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1)
    file = tmp_path / "checkpoints" / "resume.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"random": state["random"] * 2}, file)
    with pytest.raises(MmfusionError, match="was left by 2 processes, and this is a training by 1; start as many"):
        train(tmp_path, **RANDOM)


def test_checkpoints_are_of_the_network_alone(train, tiny_cohort, tmp_path):
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1)
    network = open_study(tmp_path / "other", cohort=tiny_cohort, width=0.06).model().build()
    state = torch.load(tmp_path / "checkpoints" / "resume.pt", weights_only=True)
    network.load_state_dict(state["network"])
    assert state["epoch"] == 1 and [row["epoch"] for row in state["history"]] == [1]


def test_random_states_are_put_back():
    from monai.data import DataLoader, Dataset

    from mmfusion.transforms import training_augmentation

    case = {"image": torch.rand(3, 9, 8, 7), "present": torch.tensor([True, True, True])}
    data = Dataset([case] * 4, training_augmentation(modality_drop=0.5))
    loader = DataLoader(data, batch_size=4, generator=torch.Generator().manual_seed(3))

    def draw():
        image = next(iter(loader))["image"]
        return [image, torch.rand(2), torch.randperm(9, generator=loader.generator), torch.tensor(np.random.rand(2))]

    draw()
    state = random_state(loader)
    first, second = draw(), draw()
    set_random_state(loader, state)
    again = draw()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def start(cohort, run, **options):
    given = FAST | RANDOM | {"cohort": str(cohort), "run_dir": str(run)} | options
    arguments = ["--config_file", CONFIG, *(f"--{name}={value}" for name, value in given.items())]
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_same_command(tiny_cohort, tmp_path):
    options = {
        "epochs": 12,
        "batch_size": 2,
        "encoder": "cnn",
        "width": 0.1,
    }  # so that there is an epoch to be killed in
    for run in ("whole", "killed"):
        process = start(tiny_cohort, tmp_path / run, **options)
        if run == "killed":
            while not (lines := process.stderr.readline()).startswith("epoch   3/12"):
                assert lines, "ended before it was killed"
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if run == "killed" else 0)
    assert not (tmp_path / "killed" / "model.pt").exists() and len(history_of(tmp_path / "killed")) < 12
    process = start(tiny_cohort, tmp_path / "killed", **options)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0 and "of an unfinished training" in said, said
    assert_same(tmp_path / "killed", tmp_path / "whole")
