"""What each command writes where, and what it refuses (docs/outputs.md): files of others stay, whatever is run."""

import json
import shutil
import subprocess
import sys

import pytest
from tiny_cohort import MODALITIES, write_scans

from mmfusion.bundle import new_bundle, pack_model, run_config
from mmfusion.cli import main
from mmfusion.errors import MmfusionError, OutputError
from mmfusion.files import MARK, Predictions, claim, folder_kind, read_rows
from mmfusion.predict import predict_manifest
from mmfusion.prepare.simulated import simulate_study

GRID = ["--register", "none", "--workers", "1", "--spacing", "6", "6", "6", "--size", "12", "13", "14"]


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory):
    """Not to be written to."""
    folder = new_bundle(tmp_path_factory.mktemp("bundles") / "b")
    pack_model(folder, tiny_run)
    return folder


@pytest.fixture
def study(tmp_path):
    """A manifest of scans in a folder of their own, a label table, and a folder of somebody else."""
    (tmp_path / "study").mkdir()
    manifest = write_scans(tmp_path / "study", {"A": MODALITIES, "B": ("pet", "mr")})
    shutil.copytree(manifest.parent, tmp_path / "tree" / "A")
    for old in (tmp_path / "tree" / "A").glob("*_*.nii.gz"):
        old.rename(old.with_name(old.name.split("_")[1])) if old.name.startswith("A") else old.unlink()
    (tmp_path / "labels.csv").write_text("subject,diagnosis\nA,1\n")
    for name in (
        "options.json",
        "cases.csv",
        "predictions.csv",
        "predictions/thesis.txt",
        "cases/A/notes.txt",
        "demo.json",
    ):
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text("mine\n")
    return tmp_path


def refused(capsys, folder, words, *command):
    """The command ends in one sentence, and no file in the folder is new, gone or changed."""
    before = snapshot(folder)
    assert main([str(part) for part in command]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error, error
    assert snapshot(folder) == before


def test_folders_of_others_are_refused_by_every_command(study, bundle, tiny_run, capsys):
    manifest, theirs = study / "study" / "manifest.csv", study / "theirs"
    kinds = {"prepare": "a cohort folder", "predict": "a folder of predictions"}
    for command, words in {"prepare": [manifest, *GRID], "predict": [bundle, manifest]}.items():
        refused(capsys, study, f"is not empty and not {kinds[command]}", command, *words, "--out", theirs)
        refused(
            capsys,
            study,
            "lies inside" if command == "prepare" else "is not empty",
            command,
            *words,
            "--out",
            study / "study",
        )
        refused(capsys, study, "is a file, and", command, *words, "--out", study / "labels.csv")
    refused(capsys, study, "theirs is not empty and not a simulated cohort", "simulate", "--out", theirs)
    refused(capsys, study, "theirs is not empty and not a folder of the demo", "demo", "--out", theirs)
    refused(capsys, study, "theirs is not empty and not a bundle", "bundle", "new", theirs)
    refused(capsys, study, "theirs has no configs/metadata.json", "bundle", "pack", theirs, tiny_run)
    with pytest.raises(OutputError, match="theirs is not empty and not a run folder"):
        run_config("train", cohort=str(study), run_dir=str(theirs))


def test_a_manifest_beside_its_cohort_is_no_folder_of_predictions(study, bundle, tiny_cohort, capsys):
    shutil.copytree(tiny_cohort, study / "mine" / "cohort")
    shutil.copy(study / "study" / "manifest.csv", study / "mine")
    manifest = study / "study" / "manifest.csv"
    refused(capsys, study, "mine is not empty and not a folder", "predict", bundle, manifest, "--out", study / "mine")


def test_a_folder_is_never_taken_for_another(study, bundle, tiny_run, tiny_cohort, capsys):
    manifest = study / "study" / "manifest.csv"
    run, cohort = (shutil.copytree(one, study / name) for one, name in ((tiny_run, "run"), (tiny_cohort, "cohort")))
    shutil.copytree(bundle, study / "b")
    simulated = claim(study / "simulated", "simulated cohort")
    refused(capsys, study, "run is a run folder, and a cohort folder is", "prepare", manifest, *GRID, "--out", run)
    refused(capsys, study, "simulated is a simulated cohort, and", "prepare", manifest, *GRID, "--out", simulated)
    refused(capsys, study, "run is read and is", "predict", run, manifest, "--out", run)
    refused(capsys, study, "b is read and is", "predict", study / "b", manifest, "--out", study / "b")
    refused(capsys, study, "cohort is a cohort folder, and", "predict", run, manifest, "--out", cohort)
    refused(capsys, study, "cohort is a cohort folder, and a simulated", "simulate", "--out", cohort)
    with pytest.raises(OutputError, match="cohort is a cohort folder, and a run folder is to be written"):
        run_config("train", cohort=str(cohort), run_dir=str(cohort))
    with pytest.raises(OutputError, match="b is a bundle, and a run folder is to be written"):
        run_config("train", cohort=str(cohort), run_dir=str(study / "b"))
    with pytest.raises(OutputError, match=r"models is not empty and not a run folder"):
        run_config("train", cohort=str(cohort), run_dir=str(study / "b" / "models"))
    with pytest.raises(OutputError, match=r"manifest.csv is read and lies inside"):
        run_config("train", manifest=str(manifest), run_dir=str(study))


def test_single_files(study, capsys):
    tree, labels, mri = study / "tree", study / "labels.csv", study / "tree" / "A" / "mr.nii.gz"
    given = ["index", tree, "--labels", labels, "--label", "diagnosis"]
    new, key = study / "new.csv", study / "study.key"
    assert main([str(one) for one in (*given, "--out", new, "--pseudonymize", key)]) == 0
    secret = key.read_bytes()
    refused(capsys, study, "new.csv is there already; choose another name, or add --overwrite", *given, "--out", new)
    for more in ([], ["--overwrite"]):
        refused(capsys, study, "labels.csv is read by the same command", *given, "--out", labels, *more)
        refused(capsys, study, "mr.nii.gz is read by the same command", *given, "--out", mri, *more)
        refused(capsys, study, "is read by", *given, "--pseudonymize", key, "--out", key, *more)
        refused(capsys, study, "ct.nii.gz is read by", "register", tree / "A" / "ct.nii.gz", mri,
                "--out", tree / "A" / "ct.nii.gz", *more)  # fmt: skip
        refused(capsys, study, "is a folder", *given, "--out", tree, *more)
    out, tfm = study / "o.nii.gz", study / "o.tfm"
    command = [str(one) for one in ("register", tree / "A" / "ct.nii.gz", mri, "--kind", "none", "--out", out)]
    assert main([*command, "--transform-out", str(tfm)]) == 0
    tfm.write_text("mine")
    refused(capsys, study, "o.tfm is there already", *command[:-1], study / "new.nii.gz", "--transform-out", tfm)
    refused(capsys, study, "transforms are written as", *command[:-1], study / "new.nii.gz", "--transform-out", "a.csv")
    assert main([*command, "--overwrite", "--transform-out", str(tfm)]) == 0 and tfm.read_text() != "mine"
    assert main([str(one) for one in (*given, "--out", new, "--overwrite", "--pseudonymize", key)]) == 0
    assert key.read_bytes() == secret and "A" not in [row["subject"] for row in read_rows(new)]


def test_pages_of_others_stay(tiny_run, tmp_path, capsys):
    for name in ("predictions.csv", "metrics.json"):
        shutil.copy(tiny_run / name, tmp_path)
    (tmp_path / "report.html").write_text("mine")
    refused(capsys, tmp_path, "is not a run folder of mmfusion, and report.html is not written", "report", tmp_path)
    (tmp_path / "theirs" / "qc").mkdir(parents=True)
    (tmp_path / "theirs" / "qc" / "shot-0123456789ab.png").write_text("mine")
    (tmp_path / "theirs" / "cases.csv").write_text("case,subject,status,modalities\nx,x,done,ct\n")
    refused(capsys, tmp_path, "theirs is not a cohort folder or a simulated", "report", tmp_path / "theirs")


def test_predicting_again_replaces_its_own_files_only(bundle, tiny_run, study, capsys):
    out, manifest = study / "out", study / "study" / "manifest.csv"
    predict_manifest(bundle, manifest, out, workers=1)
    for name in ("thesis.txt", "predictions/thesis.json", "cohort/cases/A/notes.txt"):
        (out / name).write_text("mine")
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:2]))  # B is no longer asked for
    path = predict_manifest(bundle, manifest, out, workers=1)
    assert [path.name for path in sorted((out / "predictions").iterdir())] == ["A.json", "thesis.json"]
    assert [row["case"] for row in Predictions.read(path)] == ["A"] and (out / "thesis.txt").read_text() == "mine"
    assert (out / "cohort" / "cases" / "A" / "notes.txt").read_text() == "mine" and folder_kind(out) == "prediction"
    (out / "predictions" / "B.json").write_text((out / "predictions" / "A.json").read_text().replace('"A"', '"B"'))
    (out / "predictions.csv").write_bytes(b"\xff\xfe damaged")  # as a killed call and a bad copy could leave them
    predict_manifest(bundle, manifest, out, workers=1)
    assert [path.name for path in sorted((out / "predictions").iterdir())] == ["A.json", "thesis.json"]
    facts = json.loads((out / "predictions" / "A.json").read_text())
    assert facts["model"] == Predictions.read(path)[0]["model"] != ""


def test_where_every_case_fails_there_are_rows_with_reasons(bundle, study, capsys):
    manifest = study / "study" / "manifest.csv"
    for scan in manifest.parent.glob("*.nii.gz"):
        scan.write_bytes(b"broken")
    assert main(["predict", str(bundle), str(manifest), "--out", str(study / "a"), "--workers", "1"]) == 1
    assert "0 of 2 cases predicted" in capsys.readouterr().out
    run_config("inference", bundle, manifest=str(manifest), out=str(study / "b"), workers=1, device="cpu")
    rows, same = (read_rows(study / name / "predictions.csv") for name in "ab")
    assert rows == same and [row["case"] for row in rows] == ["A", "B"] and not any(row["predicted"] for row in rows)
    assert all("is not a NIfTI file" in row["reasons"] for row in rows)
    assert (study / "a" / "predictions" / "A.json").is_file()


def test_subjects_of_the_training_are_warned_of(tiny_run, tmp_path, caplog):
    known = next(row["subject"] for row in read_rows(tiny_run / "split.csv") if row["part"] == "train")
    tested = next(row["subject"] for row in read_rows(tiny_run / "split.csv") if row["part"] == "test")
    known = f"{known.lower()}."  # in another spelling
    manifest = write_scans(tmp_path, {known: MODALITIES, tested: MODALITIES})
    predict_manifest(tiny_run, manifest, tmp_path / "out", workers=1)
    assert f"1 of 2 subjects were in the training or validation of this model ({known})" in caplog.text


@pytest.mark.slow
def test_a_finished_simulated_cohort_is_opened_and_a_begun_one_begins_again(tmp_path):
    cohort = simulate_study(tmp_path / "c", train_subjects=40, test_subjects=2)
    assert folder_kind(cohort.folder) == "simulated cohort"
    before = snapshot(cohort.folder)
    assert simulate_study(tmp_path / "c", train_subjects=40, test_subjects=2).hash == cohort.hash
    assert snapshot(cohort.folder) == before
    (cohort.folder / "cases.csv").unlink()
    (cohort.folder / "options.json").unlink()
    assert simulate_study(tmp_path / "c", train_subjects=40, test_subjects=2).hash == cohort.hash


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 3000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tiny_run, tiny_cohort, bundle, study, size):
    """A limit on the size of files, which the system keeps, stands for the disk."""
    code = (
        "import resource, signal, sys; from mmfusion.cli import main\n"
        "import mmfusion.bundle, mmfusion.predict, mmfusion.report, matplotlib.pyplot\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); sys.exit(main(sys.argv[1:]))"
    )
    run, made = shutil.copytree(tiny_run, study / "run"), shutil.copytree(bundle, study / "b")
    options = json.loads((run / "options.json").read_text())
    (run / "options.json").write_text(json.dumps(options | {"cohort": str(tiny_cohort)}))
    scan = study / "tree" / "A" / "mr.nii.gz"
    commands = [["report", run], ["bundle", "new", study / "c"], ["bundle", "pack", made, run],
                ["export", made, "--engine", "onnx"]]  # fmt: skip
    if size == 0:
        commands += [["index", study / "tree", "--out", study / "m.csv"],
                     ["register", scan, scan, "--kind", "none", "--out", study / "o.nii.gz"]]  # fmt: skip
    before = {name: content for name, content in snapshot(study).items() if not name.endswith("report.html")}
    for command in commands:
        done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (command, done.stderr)
        assert done.stderr.startswith("error: ") and " cannot be written (File too large)" in done.stderr
    after = snapshot(study)
    assert {name for name in before if after.get(name) != before[name]} == set()
    assert {name for name in after if name not in before} <= {"run/report.html"}


def test_the_mark_is_the_only_thing_that_a_refused_training_leaves(tiny_cohort, tmp_path):
    with pytest.raises(MmfusionError, match="unknown encoder 'resnet11'"):
        run_config("train", cohort=str(tiny_cohort), run_dir=str(tmp_path / "run"), encoder="resnet11")
    assert not (tmp_path / "run").exists() or [path.name for path in (tmp_path / "run").iterdir()] == [MARK]
