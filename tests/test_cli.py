"""The command line: every command on small files, its words, its exit status, and how little it imports."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from tiny_cohort import write_scans

from mmfusion import __version__, cli
from mmfusion.cli import main
from mmfusion.cohort import read_manifest
from mmfusion.io import load_transform, load_volume, save_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.prepare import open_cohort
from mmfusion.progress import progress_line
from mmfusion.volume import Volume

SHIFT = np.array([9.0, -6.0, 4.0])  # mm, from a point of the fixed scan to the same tissue in the moving one


def head(seed=0):
    """``[i, j, k]`` smooth structure inside an ellipsoid, odd and not cubic."""
    points = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in (41, 45, 37)], indexing="ij"), -1)
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=(41, 45, 37)), 2.5)
    return np.where((points**2).sum(-1) < 1, 100 + 600 * texture, 0).astype(np.float32)


@pytest.fixture
def pair(tmp_path):
    """The same MR twice, the second moved by :data:`SHIFT`."""
    affine = np.diag([4.0, 4.5, 5.0, 1.0])
    moved = affine.copy()
    moved[:3, 3] += SHIFT
    for name, where in (("fixed", affine), ("moving", moved)):
        save_volume(Volume(head(), where, modality="mr"), tmp_path / f"{name}.nii.gz")
    return str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")


@pytest.fixture
def manifest(tmp_path):
    return write_scans(tmp_path, {"A": ("ct", "pet"), "B": ("ct", "pet", "mr"), "C": ("pet",)})


# what a newcomer sees


def test_no_arguments_show_each_command_with_an_example(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, example in cli.EXAMPLES.items():
        assert example in text and cli.HELP[name] in text
    assert "python -m monai.bundle run --config_file BUNDLE/configs/train.yaml" in text
    assert "Research use only" in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_a_command_has_its_example_and_defaults(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and f"example: {cli.EXAMPLES[name]}" in text
    assert "None" not in text and (name != "prepare" or "(mm, default: 2.0 2.0 2.0)" in text)


def test_examples_are_commands_that_parse():
    for name, example in cli.EXAMPLES.items():
        assert vars(cli.make_parser().parse_args(example.split()[1:]))["command"] == name
    assert set(cli.EXAMPLES) == set(cli.COMMANDS) == set(cli.HELP) == set(cli.POSITIONALS)


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"mmfusion {__version__}\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["check", "m.csv", "--modalitis", "ct"], "unknown option '--modalitis'; did you mean '--modalities'?"),
        (["prepare", "m.csv"], "the following arguments are required: --out"),
        (["prepare", "m.csv", "--out", "c", "--register", "rigd"], "invalid choice: 'rigd'"),
        (["prepare", "m.csv", "--out", "c", "--spacing", "2", "2"], "expected 3 arguments"),
        (["demonstrate"], "invalid choice: 'demonstrate'"),
    ],
)
def test_a_command_line_that_does_not_parse_exits_with_2(given, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    heavy = ["torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "matplotlib"]
    code = f"import sys, mmfusion.cli; mmfusion.cli.main([]); print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_checking_and_preparing_need_neither_torch_nor_monai():
    code = (
        "import sys, mmfusion.cohort, mmfusion.prepare, mmfusion.registration; "
        "print([n for n in ('torch', 'monai', 'matplotlib.pyplot') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mmfusion", "check", "gone.csv"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "gone.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_stopping_says_that_work_is_kept(monkeypatch, capsys):
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "report", stopped)
    assert main(["report", "runs/a"]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_progress_is_few_plain_lines_in_a_file(capsys):
    show = progress_line("cases")
    for done in range(1, 101):
        show(done, 100, "S01 done")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1].startswith("cases 100/100 | 0 s, 0 s left S01 done")


def test_progress_is_one_moving_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = progress_line("cases")
    show(1, 2, "S01 done")
    show(2, 2, "S02 done")
    text = capsys.readouterr().err
    assert text.count("\r") == 2 and text.count("\n") == 1 and text.endswith("\n")


# the study


def dicom_tree(root):
    """Two subjects with CT and PET, one also with an MR; and a label table."""
    for subject in ("S01", "S02"):
        for modality, units in (("CT", "HU"), ("PT", "SUVbw"), *([("MR", "a.u.")] if subject == "S02" else [])):
            values = np.random.default_rng(len(subject + modality)).normal(100, 20, (9, 8, 7)).astype(np.float32)
            volume = Volume(values, np.diag([4.0, 4.0, 5.0, 1.0]), units=units)
            save_dicom_series(volume, root / subject / modality, modality=modality, patient_id=subject, tags={})
    scout = Volume(values[..., :2], np.eye(4), units="HU")
    save_dicom_series(scout, root / "S01" / "scout", modality="CT", patient_id="S01", tags={})
    (root / "labels.csv").write_text("subject,diagnosis\nS01,benign\nS02,malignant\nS03,benign\n")
    return root


def test_index_writes_the_manifest(tmp_path, capsys):
    root, out = dicom_tree(tmp_path / "dicom"), tmp_path / "manifest.csv"
    labels = ["--labels", str(root / "labels.csv"), "--label", "diagnosis"]
    assert main(["index", str(root), "--out", str(out), *labels]) == 0
    text = capsys.readouterr().out
    assert f"2 subjects, 2 cases (ct 2, pet 2, mr 1); 1 series not used; wrote {out}" in text
    assert "not used: " in text and "scout" in text and "S03" in text
    cases = read_manifest(out)
    assert [(case.subject, case.label, sorted(case.images)) for case in cases] == [
        ("S01", "benign", ["ct", "pet"]),
        ("S02", "malignant", ["ct", "mr", "pet"]),
    ]


def test_index_of_an_empty_folder_is_one_sentence(tmp_path, capsys):
    assert main(["index", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 1
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "m.csv").exists()


def test_check_of_a_good_study(manifest, capsys):
    assert main(["check", str(manifest)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 errors")


def test_check_lists_every_problem_and_exits_with_1(manifest, capsys):
    manifest.write_text("subject,ct,pet\nA,gone.nii.gz,A_pet.nii.gz\nA,A_ct.nii.gz,\nB,B_ct.nii.gz,lost.nii.gz\n")
    assert main(["check", str(manifest)]) == 1
    text = capsys.readouterr().out
    assert "gone.nii.gz" in text and "lost.nii.gz" in text and "A_ct.nii.gz" not in text
    assert text.splitlines()[-1].startswith("3 errors")


def test_prepare_writes_a_cohort_and_says_who_failed(manifest, tmp_path, capsys):
    good = (tmp_path / "B_mr.nii.gz").read_bytes()
    (tmp_path / "B_mr.nii.gz").write_bytes(b"not a volume")
    out = tmp_path / "cohort"
    grid = ["--spacing", "4", "5", "6", "--size", "17", "19", "18", "--center", "volume"]
    given = [*grid, "--register", "none", "--workers", "1"]
    assert main(["prepare", str(manifest), "--out", str(out), *given]) == 1
    text = capsys.readouterr()
    assert f"2 done, 0 doubtful, 1 failed | modalities ct, pet, mr | look at {out / 'qc.html'}" in text.out
    assert "subject B: " in text.err and "B_mr.nii.gz" in text.err and "cases 3/3" in text.err
    cohort = open_cohort(out)
    assert cohort.options["spacing"] == [4.0, 5.0, 6.0] and cohort.options["center"] == "volume"
    assert np.load(cohort.cases[0].file).shape == (3, 17, 19, 18)
    (tmp_path / "B_mr.nii.gz").write_bytes(good)
    assert main(["prepare", str(manifest), "--out", str(out), *given]) == 0
    assert "cases 3/3 | " in capsys.readouterr().err and open_cohort(out).count("done") == 3


def test_options_out_of_range_are_one_sentence(manifest, tmp_path, capsys):
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "c"), "--spacing", "0", "1", "1"]) == 1
    assert capsys.readouterr().err == "error: option spacing must lie between 0.1 and 50, found 0\n"


def test_report_writes_the_page_of_a_cohort_or_a_run_again(tiny_run, manifest, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n" and (run / "report.html").is_file()
    cohort, given = tmp_path / "cohort", ["--size", "9", "9", "9", "--register", "none", "--workers", "1"]
    main(["prepare", str(manifest), "--out", str(cohort), *given])
    (cohort / "qc.html").unlink()
    assert main(["report", str(cohort)]) == 0 and (cohort / "qc.html").is_file()
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "run the bundle's evaluate.yaml" in capsys.readouterr().err


# registration


def test_register_prints_json_and_writes_what_it_found(pair, tmp_path, capsys):
    out, transform = str(tmp_path / "out.nii.gz"), str(tmp_path / "out.tfm")
    assert main(["register", *pair, "--out", out, "--transform-out", transform, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"verdict", "score", "similarity_before", "similarity_after", "overlap", "rotation_deg"} <= set(found)
    assert found["verdict"] == "ok" and (found["out"], found["transform_out"]) == (out, transform)
    middle = np.array([80.0, 99.0, 90.0])
    matrix = np.array(found["fixed_to_moving"])
    np.testing.assert_allclose(matrix[:3, :3] @ middle + matrix[:3, 3], middle + SHIFT, atol=0.5)
    lps = np.array(sitk.ReadTransform(transform).TransformPoint((middle * [-1, -1, 1]).tolist()))
    np.testing.assert_allclose(lps * [-1, -1, 1], middle + SHIFT, atol=0.5)
    np.testing.assert_allclose(load_transform(transform).matrix, matrix, atol=1e-6)
    moved, fixed = load_volume(out, modality="mr"), load_volume(pair[0], modality="mr")
    assert moved.grid.same_as(fixed.grid) and np.abs(moved.array - fixed.array).mean() < 5


def test_register_speaks_to_people(pair, tmp_path, capsys):
    out = str(tmp_path / "out.nii.gz")
    assert main(["register", *pair, "--out", out, "--init", "centers"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("fixed_to_moving (RAS, mm):\n") and f"wrote {out}\n" in text
    assert "translation 11.5" in text and "verdict ok" in text


def test_register_none_leaves_the_scan_where_it_is(pair, tmp_path, capsys):
    main(["register", *pair, "--out", str(tmp_path / "o.nii.gz"), "--kind", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["fixed_to_moving"] == np.eye(4).tolist()


def test_register_names_the_file_that_is_missing(pair, tmp_path, capsys):
    assert main(["register", pair[0], "gone.nii.gz", "--out", str(tmp_path / "o.nii.gz")]) == 1
    assert capsys.readouterr().err.startswith("error: gone.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()
