"""``python -m monai.bundle run`` as a user types it: from any folder, with any path, and with one sentence if it fails.

Starting Python and MONAI takes seconds, so most commands run here in this process: MONAI's own program with the words
of the command line; what leaves it goes to ``sys.excepthook``, as the interpreter does it.
"""

import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from tiny_cohort import FAST, MODALITIES, write_scans

from mmfusion.bundle import new_bundle, pack_model
from mmfusion.files import Predictions
from mmfusion.predict import load_model

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI: configurations are code


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory):
    """A bundle with weights; tests must not write into it."""
    folder = new_bundle(tmp_path_factory.mktemp("my bundles") / "my_study")
    pack_model(folder, tiny_run)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("my scans"), {"A": MODALITIES, "B": ("pet", "mr")})


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """A function (words) that runs ``monai.bundle run`` in an empty folder; returns (exit status, stderr)."""
    root, level = logging.getLogger(), logging.getLogger().level
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words):
        program = Path(monai.bundle.__file__).parent / "__main__.py"
        monkeypatch.setattr(sys, "argv", [str(program), "run", *map(str, words)])
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "monai.bundle", *sys.argv[1:]])
        status = 0
        capsys.readouterr()
        try:
            runpy.run_path(str(program), run_name="__main__")
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
        return status, capsys.readouterr().err

    yield run
    root.setLevel(level)


def options_file(path, **options):
    """A study's options as plain data."""
    path.write_text(yaml.safe_dump(options))
    return path


# from any folder, with any path


@pytest.mark.parametrize("relative", [True, False])
def test_inference_finds_its_bundle(bundle, scans, typed, relative):
    place = os.path.relpath if relative else str
    given = ["--manifest", place(scans), "--out", "my predictions", "--workers=1", "--device=cpu"]
    status, said = typed("--config_file", place(bundle / "configs" / "inference.yaml"), *given)
    assert status == 0 and "error" not in said
    rows = Predictions.read("my predictions/predictions.csv")
    assert [row["modalities"] for row in rows] == ["ct pet mr", "pet mr"]
    assert [path.name for path in Path().iterdir()] == ["my predictions"]


def test_inference_without_out_writes_into_the_bundle(bundle, scans, typed, tmp_path):
    mine = Path(shutil.copytree(bundle, tmp_path / "b"))
    status, _ = typed("--config_file", mine / "configs" / "inference.yaml", "--manifest", scans, "--workers=1")
    assert status == 0 and (mine / "inference" / "predictions.csv").is_file() and not list(Path().iterdir())


def test_a_study_with_its_options_in_one_file(bundle, tiny_cohort, typed):
    options = options_file(
        Path("my options.yaml"),
        config_file=os.path.relpath(bundle / "configs" / "train.yaml"),
        cohort=str(tiny_cohort),
        run_dir="my runs/a",
        modalities=["mr", "pet"],
        classes=["malignant", "benign"],
        strategy="decision",
        losses={"unimodal": 0.5},
        **FAST | {"epochs": 1},
    )
    status, said = typed("--args_file", options, "--epochs", "2")
    assert status == 0 and "epoch   2/2" in said
    model, network = load_model("my runs/a")
    assert model.modalities == ("mr", "pet") and model.classes == ("malignant", "benign")
    assert network.strategy == "decision"


@pytest.mark.slow
def test_a_new_study_is_trained_from_its_manifest(bundle, typed, tmp_path):
    subjects = {f"S{number:02}": ("ct", "pet") for number in range(20)}
    manifest = write_scans(tmp_path, subjects)
    first, *rows = manifest.read_text().split()
    manifest.write_text("\n".join([f"{first},label", *(f"{row},{number % 2}" for number, row in enumerate(rows))]))
    how = {"size": [17, 19, 18], "spacing": [8, 8, 8], "register": "none", "classes": "0,1", "workers": 1}
    given = [f"--{name}={value}" for name, value in (FAST | how).items()]
    status, _ = typed("--config_file", bundle / "configs" / "train.yaml", "--manifest", manifest, "--run_dir=r", *given)
    model, _ = load_model("r")
    assert status == 0 and model.classes == ("0", "1") and model.case["size"] == [17, 19, 18]


def monai_bundle(folder, *words):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "monai.bundle", "run", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_train_evaluate_and_predict_from_another_folder(bundle, tiny_cohort, scans, tmp_path):
    configs = Path(os.path.relpath(bundle / "configs", tmp_path))
    options_file(tmp_path / "options.yaml", cohort=str(tiny_cohort), **FAST)
    done = monai_bundle(
        tmp_path, "--config_file", configs / "train.yaml", "--args_file", "options.yaml", "--run", "my runs/a"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my runs" / "a" / "model.pt").is_file() and "epoch   2/2 | train loss" in done.stderr
    assert "\ndevice cpu | train 14 (" in done.stdout

    run = tmp_path / "my runs" / "a"
    done = monai_bundle("/", "--config_file", bundle / "configs" / "evaluate.yaml", "--run_dir", run, "--resamples=100")
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.json").is_file() and f"report: {run / 'report.html'}" in done.stdout

    given = ["--run_dir", "my runs/a", "--manifest", scans, "--workers", "1"]
    done = monai_bundle(tmp_path, "--config_file", configs / "inference.yaml", *given)
    assert done.returncode == 0, done.stderr
    assert len(Predictions.read(run / "inference" / "predictions.csv")) == 2


# what fails ends with one sentence


def one_sentence(result):
    """The line that an ended command leaves on stderr, beside MONAI's warning."""
    status, said = result
    lines = [line for line in said.splitlines() if line.strip()]
    assert status == 1 and "Traceback" not in said
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_misspelt_overrides(bundle, typed):
    config = bundle / "configs"
    said = one_sentence(typed("--config_file", config / "train.yaml", "--learning_rte", "5"))
    assert said.startswith("unknown option '--learning_rte'; did you mean '--learning_rate'?")
    said = one_sentence(typed("--config_file", config / "inference.yaml", "--manifst=m.csv"))
    assert said.startswith("unknown option '--manifst'; did you mean '--manifest'?")
    said = one_sentence(typed("--config_file", config / "inference.yaml", "--cohort=c"))
    assert said.startswith("unknown option '--cohort'")
    options = options_file(Path("options.yaml"), config_file=str(config / "evaluate.yaml"), run="runs/a")
    assert "write run_dir in the args_file" in one_sentence(typed("--args_file", options))
    assert [path.name for path in Path().iterdir()] == ["options.yaml"]


def test_no_manifest(bundle, typed):
    said = one_sentence(typed("--config_file", bundle / "configs" / "inference.yaml", "--out", "o"))
    assert said.startswith("no manifest is given: add --manifest MANIFEST")
    said = one_sentence(typed("--config_file", bundle / "configs" / "train.yaml", "--run_dir", "r"))
    assert said.startswith("give either --cohort COHORT (prepared before) or --manifest MANIFEST")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["train", "inference"])
def test_a_manifest_that_does_not_exist(bundle, typed, name):
    where = "--run_dir=r" if name == "train" else "--out=o"
    said = one_sentence(typed("--config_file", bundle / "configs" / f"{name}.yaml", "--manifest", "my m.csv", where))
    assert said.startswith("my m.csv does not exist or is not a file") and not list(Path().iterdir())


def test_a_run_or_cohort_that_does_not_exist(bundle, typed):
    said = one_sentence(typed("--config_file", bundle / "configs" / "train.yaml", "--run_dir=r", "--cohort", "my c"))
    assert said.startswith("my c ")
    said = one_sentence(typed("--config_file", bundle / "configs" / "evaluate.yaml", "--run_dir", "my run"))
    assert said.startswith("my run has no model.json: it is not a finished run or bundle")
    assert one_sentence(typed("--config_file", bundle / "configs" / "evaluate.yaml")).startswith("no run is given")


def test_wrong_modalities_and_classes(bundle, tiny_cohort, typed):
    given = ["--config_file", bundle / "configs" / "train.yaml", "--cohort", tiny_cohort, "--run_dir", "r"]
    said = one_sentence(typed(*given, "--modalities", "['ct','spect']"))
    assert said == f"modality spect is not in the cohort {tiny_cohort}; it has ct, pet, mr"
    said = one_sentence(typed(*given, "--classes", "['benign','malignent']"))
    assert said.startswith("unknown class 'malignent'; did you mean 'malignant'?")
    assert one_sentence(typed(*given, "--strategy", "decission")).startswith(
        "unknown strategy 'decission'; did you mean"
    )
    assert one_sentence(typed(*given, "--epochs", "two")) == "option epochs takes a whole number, found 'two' (str)"
    assert not list(Path().iterdir())


def test_scans_of_other_modalities(bundle, scans, typed, tmp_path):
    (tmp_path / "m.csv").write_text(f"subject,spect\nA,{scans.parent / 'A_pet.nii.gz'}\n")
    said = one_sentence(typed("--config_file", bundle / "configs" / "inference.yaml", "--manifest", tmp_path / "m.csv"))
    assert said == f"{tmp_path / 'm.csv'} has none of the model's modalities ct, pet, mr; it has spect"


def test_a_checkpoint_of_another_strategy(bundle, train, scans, typed, tmp_path):
    other = train(tmp_path / "other", strategy="decision", epochs=1)
    mine = Path(shutil.copytree(bundle, tmp_path / "my copy"))
    shutil.copy(other / "model.pt", mine / "models" / "model.pt")
    said = one_sentence(typed("--config_file", mine / "configs" / "inference.yaml", "--manifest", scans, "--out=o"))
    assert "my copy/models/model.pt holds the weights of another network than strategy single_level with" in said
    torch.save({"weights": torch.zeros(3)}, mine / "models" / "model.pt")
    said = one_sentence(typed("--config_file", mine / "configs" / "inference.yaml", "--manifest", scans, "--out=o"))
    assert "holds the weights of another network" in said
    (mine / "models" / "model.pt").write_bytes(b"not weights")
    said = one_sentence(typed("--config_file", mine / "configs" / "inference.yaml", "--manifest", scans, "--out=o"))
    assert "model.pt is not a file of weights alone" in said and not list(Path().iterdir())


def test_a_bundle_without_weights(scans, typed, tmp_path):
    new_bundle(tmp_path / "new")
    given = ["--config_file", tmp_path / "new" / "configs" / "inference.yaml", "--manifest", scans]
    said = one_sentence(typed(*given))
    folder = tmp_path / "new"
    assert said == f"the bundle {folder} has no weights yet: train, then mmfusion bundle pack {folder} RUN"


@pytest.mark.slow
def test_the_sentence_is_all_that_a_process_leaves(bundle, tiny_cohort, tmp_path):
    given = ["--cohort", tiny_cohort, "--run_dir", "r", "--learning_rte", "5"]
    done = monai_bundle(tmp_path, "--config_file", bundle / "configs" / "train.yaml", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1].startswith("error: unknown option '--learning_rte'; did you mean")
