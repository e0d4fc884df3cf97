"""The package as ``pip install`` leaves it: built as a wheel, used in a folder of its own, without this repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tiny_cohort import FAST, MODALITIES, write_scans

from mmfusion.files import Predictions

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder ``bin`` of a new environment with the wheel, and with the other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building writes into its folder
    shutil.copytree(PROJECT / "mmfusion", source / "mmfusion", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (wheel,) = folder.glob("mmfusion-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    Path(own, "others.pth").write_text(sysconfig.get_path("purelib"))
    return python.parent


@pytest.mark.slow
def test_a_wheel_does_the_whole_job(installed, tmp_path):
    scans = write_scans(tmp_path, {"A": MODALITIES, "B": ("pet", "mr"), "C": ("ct",)})
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(program, *words):
        done = subprocess.run(
            [installed / program, *map(str, words)], cwd=folder, env=plain, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = Path(run("python", "-c", "import mmfusion; print(mmfusion.__file__)").strip())
    assert where.is_relative_to(installed.parent)
    assert "--subjects" in run("mmfusion", "demo", "--help")
    run("mmfusion", "bundle", "new", "my study", "--strategy", "input", "--modalities", *MODALITIES)
    files = {str(path.relative_to(folder / "my study")) for path in (folder / "my study").rglob("*") if path.is_file()}
    template = PROJECT / "mmfusion" / "bundle" / "template"
    assert files == {str(path.relative_to(template)) for path in template.rglob("*") if path.is_file()}
    run("mmfusion", "simulate", "--out", "study", "--train-subjects", 40, "--test-subjects", 10)
    fast = [f"--{name}={value}" for name, value in (FAST | {"epochs": 1}).items()]
    given = ["--config_file", "my study/configs/train.yaml", "--cohort", "study", "--run_dir", "runs/a"]
    run("python", "-m", "monai.bundle", "run", *given, *fast)
    run("python", "-m", "monai.bundle", "run", "--config_file", "my study/configs/evaluate.yaml", "--run_dir", "runs/a")
    assert (folder / "runs" / "a" / "report.html").is_file()
    run("mmfusion", "bundle", "pack", "my study", "runs/a", "--dtype", "float16")
    run("mmfusion", "export", "my study", "--engine", "onnx")
    for engine in ("eager", "onnx"):
        run("mmfusion", "predict", "my study", scans, "--out", engine, "--engine", engine, "--workers", 1)
        rows = Predictions.read(folder / engine / "predictions.csv")
        assert [row["modalities"] for row in rows] == ["ct pet mr", "pet mr", "ct"]
    assert json.loads((folder / "onnx" / "predictions" / "C.json").read_text())["modalities_used"] == ["ct"]
