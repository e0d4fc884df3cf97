"""What a training tells TensorBoard and MLflow, through MONAI's handlers."""

import csv
import sqlite3

import pytest
from test_training_resume import train_until

from mmfusion.errors import OptionError
from mmfusion.training import open_study, trackers


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tensorboard_holds_the_history(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path, epochs=2, track="tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "validation_loss", "validation_auc"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == {int(row["epoch"]): pytest.approx(float(row[name])) for row in rows_of(run / "history.csv")}


@pytest.mark.slow
def test_mlflow_holds_the_history_and_the_options_and_nobody(train, tiny_cohort, tmp_path):
    pytest.importorskip("mlflow")
    train_until(tiny_cohort, tmp_path, epoch=2, iteration=1, track=["mlflow"], augment=False, dropout=0.0, epochs=3)
    options = {"epochs": 3, "modality_drop": 0.3, "width": 0.06, "track": ["mlflow"], "dropout": 0.0}
    train(tmp_path, **options)
    with sqlite3.connect(tmp_path / "mlruns.db") as store:
        ((name, status),) = store.execute("SELECT name, status FROM runs").fetchall()  # one run, which went on
        assert name.startswith(f"{tmp_path.name}-") and status == "FINISHED"
        told = dict(store.execute("SELECT key, value FROM params"))
        assert told["strategy"] == "single_level" and told["seed"] == "0" and told["spacing"] == "[4.0, 5.0, 6.0]"
        assert not any("/" in value for value in told.values())
        for name in ("train_loss", "validation_loss", "validation_auc"):
            found = store.execute("SELECT step, value FROM metrics WHERE key = ? ORDER BY step", (name,)).fetchall()
            wanted = [(int(row["epoch"]), float(row[name])) for row in rows_of(tmp_path / "history.csv")]
            assert found == wanted
    store.close()
    text = (tmp_path / "mlruns.db").read_bytes()
    assert b"S07" not in text and str(tiny_cohort).encode() not in text


def test_mlflow_reports_to_nobody_else(tiny_cohort, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.telemetry import get_telemetry_client

    assert trackers(open_study(tmp_path, cohort=tiny_cohort, track="mlflow")) == ["mlflow"]
    assert get_telemetry_client() is None


def test_a_tracker_that_is_not_installed_is_named(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfusion.training.tracking.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"track mlflow needs the package mlflow: pip install 'mmfusion\[mlflow\]'"):
        trackers(open_study(tmp_path, cohort=tiny_cohort, track=["mlflow"]))
    with pytest.raises(OptionError, match="unknown track 'wandb'.*Known: tensorboard, mlflow"):
        open_study(tmp_path, cohort=tiny_cohort, track=["wandb"])
    assert trackers(open_study(tmp_path, cohort=tiny_cohort)) == []


@pytest.mark.slow
def test_begun_anew_with_other_options_it_is_another_run(train, tiny_cohort, tmp_path):
    pytest.importorskip("mlflow")
    train_until(tiny_cohort, tmp_path, epoch=1, iteration=1, track=["mlflow"])
    train(tmp_path, epochs=1, resume=False, track=["mlflow"])
    with sqlite3.connect(tmp_path / "mlruns.db") as store:
        assert store.execute("SELECT status FROM runs ORDER BY start_time").fetchall() == [("RUNNING",), ("FINISHED",)]
    store.close()
