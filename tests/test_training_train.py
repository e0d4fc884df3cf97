"""Training as a function: what it returns, how it goes on, and what it refuses before anything is written."""

import pytest
from tiny_cohort import FAST

from mmfusion.errors import CohortError, OptionError
from mmfusion.training import Run, train

TINY = FAST | {"encoder": "cnn", "width": 0.1, "epochs": 1}


def weights(folder):
    return (folder / "model.pt").read_bytes()


def test_a_run_is_trained_evaluated_and_reported(tiny_cohort, tmp_path, capsys):
    run = train(tiny_cohort, tmp_path / "run", **TINY)
    assert run == Run(tmp_path / "run") and run.metrics == {}
    assert capsys.readouterr().out.startswith("device cpu | train 14 (")
    metrics = run.evaluate(resamples=100, device="cpu")
    assert run.metrics["metrics"]["auc"]["value"] == metrics["metrics"]["auc"]["value"]
    assert run.report() == tmp_path / "run" / "report.html"


@pytest.mark.slow
def test_all_folds_are_trained_once(tiny_cohort, tmp_path, capsys):
    run = train(tiny_cohort, tmp_path, folds=2, **TINY)
    assert run.metrics["n"] == 24 and len(run.metrics["folds"]) == 2
    first = [weights(tmp_path / f"fold_{fold}") for fold in (0, 1)]
    (tmp_path / "fold_1" / "model.json").unlink()  # as if stopped before the second was finished
    capsys.readouterr()
    train(tiny_cohort, tmp_path, folds=2, **TINY)
    assert capsys.readouterr().out.count("device cpu | fold") == 1
    assert [weights(tmp_path / f"fold_{fold}") for fold in (0, 1)] == first
    with pytest.raises(CohortError, match=r"a finished training with other options \(dropout was 0.0 and is 0.5\)"):
        train(tiny_cohort, tmp_path, folds=2, **TINY, dropout=0.5)
    train(tiny_cohort, tmp_path, folds=2, **TINY, dropout=0.5, resume=False)
    assert [weights(tmp_path / f"fold_{fold}") == first[fold] for fold in (0, 1)] == [False, False]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"device": "cuda:7"}, "device cuda:7 cannot be used"),
        ({"precision": "fp16"}, "unknown precision 'fp16'. Known: float32, bfloat16"),
        ({"precision": "float16"}, "float16 needs a GPU"),
        ({"seed": "abc"}, "option seed takes a whole number, found 'abc'"),
        ({"weight_decay": float("inf")}, "option weight_decay takes a finite number, found inf"),
        ({"threads": 100_000}, "option threads must lie between 0 and 1024"),
        ({"learning_rte": 1.0}, "unknown option 'learning_rte'; did you mean 'learning_rate'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tiny_cohort, tmp_path, option, words):
    with pytest.raises(OptionError, match=words):
        train(tiny_cohort, tmp_path / "run", **TINY | option)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["study#1", "2024_01", "1e3", "a,b", "$x", "@run_dir"])
def test_any_name_of_a_folder_will_do(tiny_cohort, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    train(tiny_cohort, name, **TINY)
    assert (tmp_path / name / "model.pt").is_file()
