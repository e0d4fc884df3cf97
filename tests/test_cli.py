"""The command line: every command on small files, its words, its exit status, and how little it imports."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from registration_heads import error_mm
from registration_heads import scan as scan_head
from scipy.ndimage import gaussian_filter
from small_scans import write_study
from tiny_cohort import write_scans

from mmfusion import __version__, cli
from mmfusion.cli import main
from mmfusion.cohort import misplaced, read_manifest
from mmfusion.errors import CohortError, MmfusionError
from mmfusion.families import FAMILIES
from mmfusion.files import claim
from mmfusion.io import load_transform, load_volume, save_transform, save_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.prepare import open_cohort
from mmfusion.progress import progress_line
from mmfusion.registration import template
from mmfusion.systems import SYSTEMS
from mmfusion.volume import Displacement, Grid, Transform, Volume, resample

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
    for command in cli.COMMANDS.values():
        assert command.example in text and command.help in text
    assert "Research use only" in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_of_a_command_has_its_example_and_defaults(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and f"example: {cli.COMMANDS[name].example}" in text
    assert "None" not in text and (name != "prepare" or "(mm, default: 2.0 2.0 2.0)" in text)


def test_examples_are_commands_that_parse():
    for name, command in cli.COMMANDS.items():
        given = vars(cli.make_parser().parse_args(shlex.split(command.example)[1:]))
        assert " ".join(filter(None, (given["command"], given.get("action")))) == name
        assert command.help[0].isupper() and command.help[-1] != "."


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"mmfusion {__version__}\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["accept", "c", "1", "--note", "it", "fits"],
            "'fits' is one word too many; a text or path with spaces stands",
        ),
        (["check", "m.csv", "--modalitis", "ct"], "unknown option '--modalitis'; did you mean '--modalities'?"),
        (["prepare", "m.csv"], "the following arguments are required: --out"),
        (["prepare", "m.csv", "--out", "c", "--register", "rigd"], "invalid choice: 'rigd'"),
        (["prepare", "m.csv", "--out", "c", "--spacing", "2", "2"], "expected 3 arguments"),
        (["prepair", "m.csv"], "unknown command 'prepair'; did you mean 'prepare'? Known: index, check, prepare"),
        (["bundle", "pck"], "unknown command bundle 'pck'; did you mean 'pack'? Known: new, pack"),
        (["prepare", "m.csv", "--out", "none"], "the following arguments are required: --out"),
    ],
)
def test_a_command_line_that_does_not_parse_exits_with_2(given, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_help_and_lists_import_nothing_heavy():
    heavy = ["torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "matplotlib", "yaml"]
    code = (
        "import sys, mmfusion.cli as cli\n"
        "for given in ([], ['systems'], ['networks'], ['prepare', '--help']):\n"
        "    try:\n        cli.main(given)\n    except SystemExit:\n        pass\n"
        f"print([n for n in {heavy} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_systems_and_networks_are_listed(capsys):
    assert main(["systems"]) == main(["networks"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and system.help in text for name, system in SYSTEMS.items())
    assert "paper: Jang and Hwang" in text and "reconstructed: the way from 32 channels" in text
    assert all(part.help in text for family in FAMILIES.values() for part in family.values())
    assert max(map(len, text.splitlines())) <= 120


# who gave what


@pytest.fixture
def called(monkeypatch):
    """What ``prepare`` is called with."""
    given = {}
    monkeypatch.setitem(
        cli.COMMANDS,
        "prepare",
        replace(cli.COMMANDS["prepare"], run=lambda **how: given.update(how) or 0, keeps_given=True),
    )
    return given


def test_what_is_typed_comes_before_the_file(called, tmp_path):
    (tmp_path / "study.yaml").write_text("spacing: [3, 3, 4]\nregister: affine\nstrict: true\nsize: [9, 9, 9]\n")
    given = ["--options", str(tmp_path / "study.yaml"), "--register", "none", "--size", "none", "--no-strict"]
    assert main(["prepare", "m.csv", "--out", "c", *given]) == 0
    where = called.pop("given")
    assert called == {"manifest": "m.csv", "out": "c", "spacing": [3.0, 3.0, 4.0], "register": "none", "strict": False}
    assert where["spacing"] == {"value": [3, 3, 4], "from": "file"}
    assert where["size"] == {"value": "none", "from": "command line"} and where["register"]["value"] == "none"


def test_a_file_of_options_with_a_mistake_is_one_sentence(called, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text("spaceing: [3, 3, 4]\n")
    assert main(["prepare", "m.csv", "--out", "c", "--options", str(tmp_path / "study.yaml")]) == 1
    assert "study.yaml: unknown option 'spaceing'; did you mean 'spacing'?" in capsys.readouterr().err and not called


def test_a_bundle_of_a_system(tmp_path, capsys):
    given = ["--system", "m3t_joint", "--encoder-options", "{layers: 0, dim: 64, heads: 8}", "--fusion-options", "none"]
    assert main(["bundle", "new", str(tmp_path / "b"), *given]) == 0
    text = (tmp_path / "b" / "configs" / "train.yaml").read_text()
    options = yaml.safe_load(text[: text.index("# Pieces")])
    assert (options["strategy"], options["fusion"], options["norm"]) == ("attention", "joint", "batch")
    assert options["encoder_options"] == {"layers": 0, "dim": 64, "heads": 8} and "fusion_options" not in options


def test_checking_and_opening_a_cohort_need_neither_torch_nor_monai():
    code = (
        "import sys, mmfusion.cohort, mmfusion.prepare; "
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

    monkeypatch.setitem(cli.COMMANDS, "report", replace(cli.COMMANDS["report"], run=stopped))
    assert main(["report", "runs/a"]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_progress_is_few_plain_lines_in_a_file(capsys):
    show = progress_line("cases")
    for done in range(1, 101):
        show(done, 100, "S01 done")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert re.fullmatch(r"cases 100/100 \| \d+ a minute, 0 s, 0 s left S01 done", lines[-1])


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


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One of each kind of file and folder, by its name, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("my study")
    dicom_tree(folder / "dicom")
    (folder / "dicom" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 99)
    (folder / "manifest.csv").write_text("subject,ct\nS01,dicom/S01/CT\n")
    for kind in ("cohort", "run", "prediction"):
        claim(folder / kind, kind)
    (folder / "a.nii.gz").write_bytes(b"\x1f\x8b")
    return folder


INDEX = "first: mmfusion index '{0}/dicom' --out manifest.csv"
PREPARE = "first: mmfusion prepare '{0}/manifest.csv' --out cohort"
TRAIN = "mmfusion train '{0}/cohort' --out RUN"
GO_ON = "give the one that it was made from, or go on with: "


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("check dicom", "is a folder of scans, and a manifest (CSV or TSV) is expected; " + INDEX),
        ("check dicom/DICOMDIR", "is a scan, and a manifest (CSV or TSV) is expected; " + INDEX),
        ("check a.nii.gz", "first: mmfusion index '{0}' --out manifest.csv"),
        ("check run", GO_ON + "mmfusion predict '{0}/run' MANIFEST --out predictions"),
        ("prepare dicom --out o", "is a folder of scans, and a manifest (CSV or TSV) is expected; " + INDEX),
        ("prepare cohort --out o", "is a cohort folder, and a manifest (CSV or TSV) is expected; " + GO_ON + TRAIN),
        ("predict cohort manifest.csv --out o", "and a run folder or a bundle is expected; first: " + TRAIN),
        ("predict manifest.csv manifest.csv --out o", "and a run folder or a bundle is expected; " + PREPARE),
        ("predict dicom manifest.csv --out o", "and a run folder or a bundle is expected; " + INDEX),
        ("index manifest.csv --out o", "is a table, and a folder of scans is expected; " + GO_ON + PREPARE[7:]),
        ("register manifest.csv a.nii.gz --out o", "is a table, and a scan or a folder of scans is expected; " + GO_ON),
        ("accept manifest.csv 001", "is a table, and a cohort folder is expected; " + PREPARE),
        ("accept run 001", "is a run folder, and a cohort folder is expected; " + GO_ON),
        ("report manifest.csv", "and a cohort folder or a run folder or a bundle is expected; " + PREPARE),
    ],
)
def test_what_is_given_in_place_of_another_is_named_with_its_command(places, tmp_path, capsys, command, said):
    name, *given = command.split()
    given = [word if word.startswith("--") or word == "o" else str(places / word) for word in given]
    given = [str(tmp_path / word) if word == "o" else word for word in given]
    assert main([name, *given]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {given[0]} is a") and said.format(places) in printed
    assert printed.count("\n") == 1 and not (tmp_path / "o").exists()


def test_what_python_is_given_in_place_of_another(places, tmp_path):
    with pytest.raises(
        CohortError, match="manifest.csv is a table, and a cohort folder is expected; first: mmfusion prep"
    ):
        open_cohort(places / "manifest.csv")
    with pytest.raises(CohortError, match="run is a run folder, and a cohort folder is expected; give the one that"):
        open_cohort(places / "run")
    with pytest.raises(CohortError, match="it is not a finished cohort folder. Run: mmfusion prepare MANIFEST --out"):
        open_cohort(places / "cohort")
    assert misplaced(places / "manifest.csv", "manifest", "scans") == misplaced(places / "dicom", "scans") == ""
    (tmp_path / "notes").mkdir()
    assert misplaced(tmp_path / "notes", "manifest") == misplaced(tmp_path / "none", "manifest") == ""


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
    assert "subject B: mr is not a NIfTI file" in text.err and "cases 3/3" in text.err
    assert str(tmp_path) not in text.err
    cohort = open_cohort(out)
    assert cohort.options["spacing"] == [4.0, 5.0, 6.0] and cohort.options["center"] == "volume"
    assert np.load(cohort.cases[0].file).shape == (3, 17, 19, 18)
    (tmp_path / "B_mr.nii.gz").write_bytes(good)
    assert main(["prepare", str(manifest), "--out", str(out), *given]) == 0
    assert "cases 3/3 | " in capsys.readouterr().err and open_cohort(out).count("done") == 3
    assert main(["check", str(out)]) == 0
    assert "every file has the content that was written" in capsys.readouterr().out
    (out / "cases" / "A" / "image.npy").write_bytes(b"")
    assert main(["check", str(out)]) == 1
    assert "cases/A/image.npy is gone or damaged: delete cases/A and run mmfusion prep" in capsys.readouterr().out


def test_prepare_refuses_suv_max_where_pet_is_no_suv(manifest, tmp_path, capsys):
    given = ["--suv", "none", "--suv-max", "25"]  # the default, but given
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "c"), *given]) == 1
    assert "--suv-max is for SUV; with --suv none or --suvr use --pet-max" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_prepare_warns_of_a_grid_that_misses_the_body(manifest, tmp_path, capsys):
    given = ["--spacing", "4", "5", "6", "--size", "9", "7", "8", "--register", "none", "--workers", "1"]
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "a"), *given]) == 0
    warning = r"warning: in 3 of 3 cases more than half of the body falls outside the grid \([ABC]: \d\d%\): larger"
    assert re.search(warning, capsys.readouterr().err)
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "b"), "--center=1,-2,3", *given]) == 0
    assert "warning" not in capsys.readouterr().err
    assert open_cohort(tmp_path / "b").options["center"] == "1.0,-2.0,3.0"


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
    assert "run mmfusion evaluate" in capsys.readouterr().err


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


def test_register_takes_one_series_of_a_folder(pair, tmp_path, capsys):
    for path, uid in zip(pair, ("1.2.3", "1.2.4"), strict=True):
        save_dicom_series(load_volume(path), tmp_path / uid, modality="MR", patient_id="A", series_uid=uid)
        for file in (tmp_path / uid).iterdir():
            file.rename(tmp_path / f"{uid}{file.name}")
    given = ["--out", str(tmp_path / "o.nii.gz"), "--kind", "none", "--json"]
    assert main(["register", pair[0], str(tmp_path), *given]) == 1
    assert "holds 2 image series" in capsys.readouterr().err
    assert main(["register", f"{tmp_path}#1.2.3", pair[1], *given]) == 0


def test_register_names_the_file_that_is_missing(pair, tmp_path, capsys):
    assert main(["register", pair[0], "gone.nii.gz", "--out", str(tmp_path / "o.nii.gz")]) == 1
    assert capsys.readouterr().err.startswith("error: gone.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()


def bend_file(folder):
    """A displacement field about the head of :func:`pair`, up to some 6 mm."""
    field = np.random.default_rng(3).normal(0, 2, (6, 7, 5, 3))
    bend = Transform(
        Transform.rigid(translation_mm=SHIFT).matrix,
        Displacement(field, Grid.around((80, 99, 90), (30, 30, 30), (6, 7, 5))),
    )
    save_transform(bend, folder / "bend.h5")
    return bend, str(folder / "bend.h5")


def test_register_to_the_template(tmp_path, capsys):
    pose = Transform.rigid((4, -3, 7), (6, -9, 5))
    save_volume(scan_head("mr", pose, 1), tmp_path / "t1.nii.gz")
    given = ["register", "mni152", str(tmp_path / "t1.nii.gz"), "--overwrite", "--out", str(tmp_path / "o.nii.gz")]
    assert main([*given, "--transform-out", str(tmp_path / "o.tfm")]) == 0
    assert "verdict ok" in capsys.readouterr().out
    found = load_transform(tmp_path / "o.tfm")
    assert error_mm(found, Transform(), pose) < 2
    out = load_volume(tmp_path / "o.nii.gz")
    assert out.grid.same_as(template("mni152").volume.grid)
    # a transform that another program found is applied, not searched
    assert main([*given, "--kind", "none", "--transform-in", str(tmp_path / "o.tfm"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(facts["fixed_to_moving"], found.matrix, atol=1e-6)
    np.testing.assert_allclose(load_volume(tmp_path / "o.nii.gz").array, out.array, atol=0.1)
    assert facts["linear"] and facts["similarity_after"] > 0.2
    assert main([*given, "--init", "centers", "--fixed-mask", "m.nii.gz"]) == 1
    words = "mni152 has a start and a mask of its own; leave out --init --fixed-mask, or use --kind none"
    assert capsys.readouterr().err == f"error: {words}\n"


def test_register_starts_from_a_transform(pair, tmp_path, capsys):
    start = str(tmp_path / "start.tfm")
    save_transform(Transform.rigid(translation_mm=SHIFT + (6, -5, 4)), start)
    given = ["register", *pair, "--overwrite", "--out", str(tmp_path / "o.nii.gz"), "--json", "--transform-in", start]
    assert main([*given, "--kind", "translation"]) == 0
    matrix = np.array(json.loads(capsys.readouterr().out)["fixed_to_moving"])
    np.testing.assert_allclose(matrix[:3, 3], SHIFT, atol=0.5)
    assert main([*given, "--init", "centers"]) == 1
    assert "--transform-in and --init both say where to start; give one of them" in capsys.readouterr().err


def test_register_applies_a_field_and_says_so(pair, tmp_path, capsys):
    bend, file = bend_file(tmp_path)
    given = ["register", *pair, "--overwrite", "--out", str(tmp_path / "o.nii.gz"), "--transform-in", file]
    assert main([*given, "--kind", "none"]) == 0
    text = capsys.readouterr().out
    assert "after a displacement field of 6 x 7 x 5 voxels, up to " in text and "0.00% of it folds" in text
    assert "; --transform-out FILE.h5 keeps it" in text
    moving, fixed = (load_volume(path, modality="mr") for path in reversed(pair))
    expected = resample(moving, fixed.grid, bend).array
    np.testing.assert_allclose(load_volume(tmp_path / "o.nii.gz").array, expected, atol=0.1)
    assert main([*given, "--kind", "none", "--json", "--transform-out", str(tmp_path / "again.h5")]) == 0
    facts, again = json.loads(capsys.readouterr().out), load_transform(tmp_path / "again.h5")
    assert not facts["linear"] and facts["transform_out"] == str(tmp_path / "again.h5")
    points = fixed.grid.corners() * 0.5 + fixed.grid.center * 0.5
    np.testing.assert_allclose(again.apply(points), bend.apply(points), atol=1e-4)
    assert main(given) == 1
    words = f"{file} has a displacement field; a search starts from a linear transform. Use --kind none to apply it as"
    assert words in capsys.readouterr().err


def test_register_compares_only_what_the_masks_hold(pair, tmp_path, capsys):
    """The lower half of the moving head turns into something else; the mask leaves it out."""
    moving = load_volume(pair[1], modality="mr")
    array = moving.array.copy()
    array[:, :, :18] = np.where(array[:, :, :18] > 0, np.roll(array[:, :, :18], 5, axis=0), 0)
    save_volume(moving.replace(array=array), pair[1])
    upper = np.zeros(array.shape, np.uint8)
    upper[:, :, 19:] = 1
    save_volume(moving.replace(array=upper, units="label"), tmp_path / "mask.nii.gz")
    given = ["register", *pair, "--overwrite", "--out", str(tmp_path / "o.nii.gz"), "--json", "--init", "centers"]
    assert main([*given, "--moving-mask", str(tmp_path / "mask.nii.gz")]) == 0
    matrix = np.array(json.loads(capsys.readouterr().out)["fixed_to_moving"])
    middle = np.array([80.0, 99.0, 130.0])
    np.testing.assert_allclose(matrix[:3, :3] @ middle + matrix[:3, 3], middle + SHIFT, atol=0.7)
    save_volume(moving.replace(array=upper * 0, units="label"), tmp_path / "mask.nii.gz")
    assert main([*given, "--fixed-mask", str(tmp_path / "mask.nii.gz")]) == 1
    assert "is empty" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused_before_any_work(pair, manifest, tmp_path, capsys):
    for given in (["register", *pair], ["prepare", str(manifest)]):
        assert main([*given, "--out", str(tmp_path / "o.nii.gz"), "--device", "cudo"]) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: device cudo cannot be used: ") and text.endswith("or a device of this machine\n")
    assert not (tmp_path / "o.nii.gz").exists()


def test_prepare_passes_the_template_on(manifest, tmp_path, monkeypatch):
    given = {}

    def noted(manifest, out, **options):
        given.update(options)
        raise MmfusionError("enough")

    monkeypatch.setattr("mmfusion.prepare.prepare_cohort", noted)
    how = ["--to", "mni152", "--brain-mask", "--register", "deformable", "--device", "cuda:1"]
    assert main(["prepare", str(manifest), "--out", str(tmp_path / "c"), *how]) == 1
    assert (given["to"], given["brain_mask"], given["register"], given["device"]) == (
        *("mni152", True, "deformable", "cuda:1"),
    )


def test_clipped_pet_is_reported_when_it_is_prepared_and_when_a_cohort_is_checked(tmp_path, capsys):
    given = ["--modalities", "pet", "--spacing", "12", "11", "13", "--size", "9", "11", "7", "--workers", "1"]
    prepare = ["prepare", str(write_study(tmp_path, 2)), "--out", str(tmp_path / "a"), *given]
    words = re.compile(
        r"^warning: in 2 of 2 cases more than 5% of the hot volume \(SUV of 4 or more; brain, heart and bladder count, "
        r"too\) lies above suv_max 4\.5 and is clipped \(001: \d+%\): larger --suv-max$",
        re.MULTILINE,
    )
    assert main([*prepare, "--suv-max", "4.5"]) == 0
    assert words.search(capsys.readouterr().err)
    assert main(prepare) == 0
    said = capsys.readouterr().err
    assert words.search(said) and "note: suv_max 4.5 is kept, which this cohort was prepared with; the default" in said
    assert main(["check", str(tmp_path / "a")]) == 0
    assert words.search(capsys.readouterr().out)
    assert main([*prepare, "--suv-max", "25"]) == 0
    assert "suv_max" not in capsys.readouterr().err
