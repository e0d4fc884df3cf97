"""A cohort folder: made once, what changed made again, bad cases reported, and the same whoever makes it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import voxels, write_series
from small_scans import GRIDS, scan, write_study

from mmfusion import __version__
from mmfusion.cohort import Case, read_manifest
from mmfusion.cohort.simulate import (
    brain_landmarks,
    draw_subjects,
    native_grids,
    simulate_volumes,
    target_registration_error,
)
from mmfusion.errors import CohortError, ManifestError, OptionError, OutputError, ReadError
from mmfusion.files import MARK, TEMPORARY, write_csv
from mmfusion.io import load_transform, load_volume, save_volume
from mmfusion.options import LATER, resolve
from mmfusion.prepare import (
    Doubt,
    damaged_files,
    open_cohort,
    prepare_case,
    prepare_cohort,
    prepare_volumes,
    refuse_contradictions,
    write_case,
)
from mmfusion.prepare import cohort as room
from mmfusion.prepare.exclusive import exclusive
from mmfusion.prepare.folder import read_case
from mmfusion.prepare.sources import case_key, source_digests
from mmfusion.volume import Displacement, Grid, Transform

OPTIONS = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "register": "none"}


def prepare(manifest, out, **options):
    """The cohort, and what was prepared for it."""
    steps = []
    cohort = prepare_cohort(manifest, out, workers=1, progress=lambda *step: steps.append(step), **OPTIONS | options)
    return cohort, [words.split()[0] for _, _, words in steps]


def interrupt(done, of, words):
    raise KeyboardInterrupt


def written(out):
    """When each tensor was written, ns."""
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(Path(out).glob("cases/*/image.npy"))}


def alter(path):
    """Change what a scan holds, a little."""
    volume = load_volume(path, modality="mr")
    save_volume(volume.replace(array=volume.array * np.float32(0.99)), path)


def rewrite(manifest, change):
    with manifest.open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of three subjects, the last without CT, and its cohort. Not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    manifest = write_study(folder, split=["train", "train", "test"], weight_kg=["70", "", ""])
    return manifest, prepare(manifest, folder / "cohort")[0]


@pytest.fixture
def study(made, tmp_path):
    """A copy to change: its manifest, and its cohort folder, prepared."""
    shutil.copytree(made[0].parent, tmp_path, dirs_exist_ok=True)
    cohort, _ = prepare(tmp_path / "manifest.csv", tmp_path / "cohort")  # files that moved are looked at, and kept
    return tmp_path / "manifest.csv", cohort


def test_what_is_in_the_folder(made):
    cohort = made[1]
    assert (cohort.modalities, cohort.count("done"), cohort.count("failed")) == (("ct", "pet", "mr"), 3, 0)
    assert sorted(p.name for p in cohort.folder.iterdir()) == [
        ".mmfusion.json",
        "cases",
        "cases.csv",
        "covariates.csv",
        "options.json",
        "qc.html",
    ]
    files = {p.name: sorted(file.name for file in p.iterdir()) for p in (cohort.folder / "cases").iterdir()}
    assert files == {
        "001": ["case.json", "image.npy", "mr.tfm", "pet.tfm", "qc.npz"],
        "002": ["case.json", "image.npy", "mr.tfm", "pet.tfm", "qc.npz"],
        "003": ["case.json", "image.npy", "pet.tfm", "qc.npz"],
    }
    page = (cohort.folder / "qc.html").read_text()
    assert all(case in page for case in files) and "data:image/png" in page


def test_the_table_of_cases(made):
    rows = {row["case"]: row for row in made[1].rows}
    assert list(made[1].rows[0])[:14] == [
        *("case", "subject", "session", "label", "split", "fold", "site"),
        *("status", "reasons", "reference", "modalities", "file", "key", "seconds"),
    ]
    assert [(row["reference"], row["modalities"]) for row in rows.values()] == [
        ("ct", "ct pet mr"),
        ("ct", "ct pet mr"),
        ("mr", "pet mr"),
    ]
    assert [(row["label"], row["split"], row["status"]) for row in rows.values()] == [
        ("0", "train", "done"),
        ("1", "train", "done"),
        ("0", "test", "done"),
    ]
    first = rows["001"]
    assert (first["pet_units"], first["ct_spacing"], first["mr_verdict"]) == ("SUVbw", "7 8 9", "ok")
    assert float(first["pet_overlap"]) > 0.9 and float(first["pet_translation_mm"]) == 0 and "ct_overlap" not in first
    assert rows["003"]["ct_spacing"] == ""


def test_options_and_versions_are_recorded(made):
    options = json.loads((made[1].folder / "options.json").read_text())
    assert options["versions"]["mmfusion"] == __version__ and options["versions"]["SimpleITK"][0].isdigit()
    assert {**options, **OPTIONS, "modalities": ["ct", "pet", "mr"], "reference": ["ct", "mr", "pet"]} == options
    assert open_cohort(made[1].folder).options == made[1].options and "versions" not in made[1].options


def test_tensors_are_those_of_prepare_case(made):
    manifest, cohort = made
    for case, one in zip(read_manifest(manifest), cohort.cases, strict=True):
        result = prepare_case(case, modalities=list(cohort.modalities), **OPTIONS)
        np.testing.assert_array_equal(np.load(one.file), result.image)
        assert result.image.shape == (3, 9, 11, 7) and one.case.id == case.id
        facts = json.loads((one.file.parent / "case.json").read_text())
        np.testing.assert_array_equal(facts["affine"], result.grid.affine)
    last = cohort.cases[2]
    assert (last.modalities, last.case.label, last.case.split) == (("pet", "mr"), "0", "test")
    assert not np.load(last.file)[0].any()


def test_the_device_is_no_part_of_a_case(study, monkeypatch):
    monkeypatch.setattr(room, "check_device", lambda device: None)
    assert prepare(study[0], study[1].folder, device="cuda")[1] == []
    assert room._processes(0, 99, "cuda") <= 4 and room._processes(7, 99, "cuda") == 7
    assert (room._processes(1, 99), room._processes(8, 3), room._processes(0, 1)) == (0, 3, 1)


def test_transforms_that_bend_are_written_whole(tmp_path):
    grid = Grid.around((0, 0, 0), (20, 20, 20), (5, 6, 4))
    bend = Transform(displacement=Displacement(np.random.default_rng(0).normal(0, 2, (5, 6, 4, 3)), grid))
    result = prepare_volumes({"ct": scan("ct"), "pet": scan("pet"), "mr": scan("mr")}, **OPTIONS)
    found = dict(result.registrations)
    found["pet"] = replace(found["pet"], fixed_to_moving=bend)
    write_case(tmp_path, Case("001"), replace(result, registrations=found))
    folder = tmp_path / "cases" / "001"
    assert sorted(path.name for path in folder.iterdir()) == ["case.json", "image.npy", "mr.tfm", "pet.h5", "qc.npz"]
    points = np.random.default_rng(1).uniform(-40, 40, (9, 3))
    np.testing.assert_allclose(load_transform(folder / "pet.h5").apply(points), bend.apply(points), atol=1e-4)
    assert json.loads((folder / "case.json").read_text())["world"] == "ct"


def test_nothing_is_prepared_twice(study):
    manifest, cohort = study
    before, table = written(cohort.folder), (cohort.folder / "cases.csv").read_text()
    again, done = prepare(manifest, cohort.folder)
    assert done == [] and written(cohort.folder) == before and again.hash == cohort.hash
    assert (cohort.folder / "cases.csv").read_text() == table


def test_only_what_changed_is_prepared_again(study):
    manifest, cohort = study
    before = written(cohort.folder)
    alter(manifest.parent / "002_pet.nii.gz")
    again, done = prepare(manifest, cohort.folder)
    assert done == ["002"] and again.hash != cohort.hash
    assert {case for case, time in written(cohort.folder).items() if time != before[case]} == {"002"}
    (manifest.parent / "001_pet.json").write_text('{"Units": "SUVbw"}')
    assert prepare(manifest, cohort.folder)[1] == ["001"]
    rewrite(manifest, lambda row: {**row, "weight_kg": "71" if row["subject"] == "003" else row["weight_kg"]})
    assert prepare(manifest, cohort.folder)[1] == ["003"]
    changed, done = prepare(manifest, cohort.folder, suv_max=7.0)
    assert done == ["001", "002", "003"] and changed.options["suv_max"] == 7
    rewrite(manifest, lambda row: {**row, "mr": "" if row["subject"] == "001" else row["mr"]})
    smaller, done = prepare(manifest, cohort.folder, suv_max=7.0)
    assert done == ["001"] and smaller.rows[0]["modalities"] == "ct pet"


def test_files_that_only_moved_or_were_touched_are_looked_at_and_kept(study):
    manifest, cohort = study
    before = written(cohort.folder)
    os.utime(manifest.parent / "002_pet.nii.gz", (1, 1))
    again, done = prepare(manifest, cohort.folder)
    assert done == ["002"] and written(cohort.folder) == before and again.hash == cohort.hash
    assert prepare(manifest, cohort.folder)[1] == []  # now their new times are known
    elsewhere = manifest.parent / "moved"
    elsewhere.mkdir()
    for path in manifest.parent.glob("*.*"):
        path.rename(elsewhere / path.name)
    again, done = prepare(elsewhere / "manifest.csv", cohort.folder)
    assert done == ["001", "002", "003"] and written(cohort.folder) == before and again.hash == cohort.hash


def test_a_sidecar_and_the_type_of_the_tensor_count(study):
    manifest, cohort = study
    whole = np.load(cohort.cases[0].file)
    half, done = prepare(manifest, cohort.folder, dtype="float16")
    assert done == ["001", "002", "003"] and np.load(half.cases[0].file).dtype == np.float16
    np.testing.assert_allclose(np.load(half.cases[0].file), whole, atol=5e-4)
    assert half.hash != cohort.hash and half.options == cohort.options
    (manifest.parent / "001_mr.json").write_text("{}")
    assert prepare(manifest, cohort.folder, dtype="float16")[1] == ["001"]


def test_lost_and_damaged_files_are_found(study):
    manifest, cohort = study
    assert damaged_files(cohort.folder) == []
    for name in ("001/image.npy", "003/pet.tfm"):
        file = cohort.folder / "cases" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (cohort.folder / "cases" / "002" / "mr.tfm").unlink()
    assert damaged_files(cohort.folder) == ["cases/001/image.npy", "cases/002/mr.tfm", "cases/003/pet.tfm"]
    assert prepare(manifest, cohort.folder)[1] == ["002"]  # what is not whole is made again
    (cohort.folder / "cases" / "003" / "case.json").write_text("{")
    assert damaged_files(cohort.folder) == ["cases/001/image.npy", "cases/003/case.json"]


def test_files_that_change_while_they_are_read_fail_the_case(study, monkeypatch):
    manifest, cohort = study
    file = manifest.parent / "002_pet.nii.gz"
    alter(file)

    def slow(case, **options):
        os.utime(file, (2, 2))
        return prepare_case(case, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room, "prepare_case", slow)
        row = prepare(manifest, cohort.folder)[0].rows[1]
    assert row["reasons"] == "its files changed while they were read; run the same command again"

    def gone(case):
        file.unlink()
        return source_digests(case)

    with monkeypatch.context() as patch:
        patch.setattr(room, "source_digests", gone)
        row = prepare(manifest, cohort.folder)[0].rows[1]
    assert row["reasons"] == (
        "pet cannot be read (No such file or directory); put it back, or take it out of the manifest"
    )


def test_the_one_file_that_is_meant_counts_and_its_neighbors_do_not(tmp_path):
    """Two series in one flat folder, each named by one of its files, and two masks."""
    flat, masks = tmp_path / "flat", tmp_path / "masks"
    for n, name in enumerate("ab"):
        write_series(tmp_path / name, voxels(seed=n), series_uid=f"1.2.{n}")
        flat.mkdir(exist_ok=True)
        for path in (tmp_path / name).iterdir():
            path.rename(flat / f"{name}{path.name}")
    masks.mkdir()
    for name in "ab":
        (masks / f"{name}.dcm").write_bytes(name.encode())

    def key(image, mask):
        case = Case("1", images={"ct": flat / f"{image}000_0.dcm"}, mask=masks / f"{mask}.dcm")
        return case_key(case, {}, source_digests(case))

    assert len({key(image, mask) for image in "ab" for mask in "ab"}) == 4
    one, other = (source_digests(Case("1", images={"ct": f"{flat}#1.2.{n}"}))["ct"] for n in (0, 1))
    assert one != other  # which series is meant is part of what was looked at
    before = key("a", "a")
    (masks / "c.dcm").write_bytes(b"another patient's")
    assert key("a", "a") == before


def test_what_is_left_of_an_ended_run_writes_nothing(study):
    manifest, cohort = study
    case = read_manifest(manifest)[0]
    before = written(cohort.folder)
    with exclusive(cohort.folder) as token:
        order = room._Order(cohort.folder, cohort.options | {"suv_max": 3.0}, {"dtype": "float32", "save_nifti": False,
                            "keep_paths": False}, "cpu", token)  # fmt: skip
    with pytest.raises(CohortError, match="the run that this case belongs to has ended; nothing is written into"):
        room._prepare_one(case, order)
    with exclusive(cohort.folder), pytest.raises(CohortError, match="has ended"):
        room._failed(case, order, "lost")
    assert written(cohort.folder) == before and open_cohort(cohort.folder).count("done") == 3


@pytest.mark.slow
def test_nifti_of_other_options_goes_and_values_must_fit(study, monkeypatch):
    manifest, cohort = study
    prepare(manifest, cohort.folder, save_nifti=True)
    assert (cohort.folder / "nifti" / "sub-001").exists()
    prepare(manifest, cohort.folder)
    assert not (cohort.folder / "nifti" / "sub-001").exists()

    def large(case, **options):
        result = prepare_case(case, **options)
        doubt = Doubt("mask", f"mask: mask {case.images['pet']}: odd")
        return replace(result, image=result.image * 1e6, doubts=(doubt,))

    monkeypatch.setattr(room, "prepare_case", large)
    rows = prepare(manifest, cohort.folder, dtype="float16")[0].rows
    assert "does not fit float16; use --dtype float32, or look at" in rows[0]["reasons"]
    rows = prepare(manifest, cohort.folder, suv_max=9.0)[0].rows
    assert rows[0]["reasons"] == "mask: mask pet: odd"


def test_a_cohort_without_the_usual_modalities_goes_on_elsewhere(tmp_path):
    for name in ("t1", "t2"):
        save_volume(scan("mr"), tmp_path / f"{name}.nii.gz")
    (tmp_path / "m.csv").write_text("subject,t1,t2\n1,t1.nii.gz,t2.nii.gz\n")
    first, _ = prepare(tmp_path / "m.csv", tmp_path / "a")
    assert prepare(tmp_path / "m.csv", tmp_path / "b", **{**first.options, **OPTIONS})[0].hash == first.hash


def test_one_folder_is_written_by_one_command(study):
    manifest, cohort = study

    def again(*_):
        prepare(manifest, cohort.folder)

    with pytest.raises(CohortError, match="another mmfusion prepare is writing into .*cohort; wait until"):
        prepare_cohort(manifest, cohort.folder, workers=1, progress=again, **OPTIONS | {"suv_max": 7.0})
    assert prepare(manifest, cohort.folder)[0].count("done") == 3


@pytest.mark.slow
def test_files_of_others_stay_whatever_is_prepared(study):
    manifest, cohort = study
    names = ["cases/001/notes.txt", "cases/001/.tmp-draft", "cases/.git/HEAD", "qc/a.png"]
    names.append("nifti/sub-001/anat/lesion.nii.gz")
    prepare(manifest, cohort.folder, save_nifti=True)
    for name in names:
        (cohort.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (cohort.folder / name).write_text("mine")
    prepare(manifest, cohort.folder, save_nifti=True, suv_max=9.0)
    prepare(manifest, cohort.folder, suv_max=8.0)
    read_manifest(manifest)[0].images["ct"].write_bytes(b"broken")
    assert prepare(manifest, cohort.folder)[0].count("failed") == 1
    assert {(cohort.folder / name).read_text() for name in names} == {"mine"}
    assert sorted(path.name for path in (cohort.folder / "cases" / "001").iterdir()) == [".tmp-draft", "notes.txt"]
    assert [path.name for path in (cohort.folder / "nifti").rglob("sub-*/**/*") if path.is_file()] == ["lesion.nii.gz"]


def test_a_case_that_is_being_written_again_counts_as_not_prepared(study, monkeypatch):
    manifest, cohort = study

    def stop(*_, **__):
        raise KeyboardInterrupt

    prepare(manifest, cohort.folder, save_nifti=True)
    monkeypatch.setattr("mmfusion.prepare.folder._remove_files", stop)  # after all files have their names
    monkeypatch.setattr("mmfusion.prepare.cohort.write_case", stop)  # before
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(manifest, cohort.folder, workers=1, save_nifti=True, **OPTIONS | {"suv_max": 7.0})
    assert read_case(cohort.folder, "001")["key"] == "" and "nifti" in str(read_case(cohort.folder, "001")["checksums"])
    monkeypatch.undo()
    again, done = prepare(manifest, cohort.folder)
    assert done == ["001", "002", "003"] and again.hash == cohort.hash
    assert [path for path in (cohort.folder / "nifti").rglob("sub-*") if path.is_file()] == []


def test_files_that_were_announced_are_never_forgotten_and_others_never_believed(study, monkeypatch):
    manifest, cohort = study
    shutil.rmtree(cohort.folder / "cases")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmfusion.prepare.cohort.write_case", stop)  # after the NIfTI files of the first case
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(manifest, cohort.folder, workers=1, save_nifti=True, **OPTIONS)
    monkeypatch.undo()
    assert list(cohort.folder.glob("nifti/sub-001/*/*.nii.gz"))
    prepare(manifest, cohort.folder)
    assert not list(cohort.folder.glob("nifti/sub-*"))
    (cohort.folder / "my" / "notes").mkdir(parents=True)
    (cohort.folder / "my" / "notes" / "thesis.txt").write_text("mine")
    file = cohort.folder / "cases" / "001" / "case.json"
    record = json.loads(file.read_text())
    names = ("my/notes/thesis.txt", "cases/001/../../my/notes/thesis.txt", "cases/002/image.npy")
    file.write_text(json.dumps(record | {"checksums": record["checksums"] | dict.fromkeys(names, "")}))
    prepare(manifest, cohort.folder, suv_max=3.0)
    assert (cohort.folder / "my" / "notes" / "thesis.txt").read_text() == "mine"
    assert (cohort.folder / "cases" / "002" / "image.npy").is_file()


def test_scans_are_never_where_a_cohort_is_written(study, tmp_path):
    manifest, _ = study
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    before = {path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="is read and lies inside"):
        prepare(manifest, manifest.parent)
    with pytest.raises(OutputError, match=r"is not empty and not a cohort folder \(it holds 'thesis.txt'\)"):
        prepare(manifest, tmp_path / "run")
    assert {path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()} == before


def test_labels_change_the_hash_but_no_tensor(study):
    manifest, cohort = study
    rewrite(manifest, lambda row: {**row, "label": "1", "site": "a"})
    again, done = prepare(manifest, cohort.folder)
    assert done == [] and again.hash != cohort.hash
    assert [(one.case.label, one.case.site) for one in again.cases] == [("1", "a")] * 3
    assert prepare(manifest, cohort.folder)[0].hash == again.hash


def test_the_hash_knows_options_and_status(made):
    cohort = made[1]
    other = replace(cohort, options={**cohort.options, "suv_max": 7.0})
    fewer = replace(cohort, rows=cohort.rows[:2])
    failed = replace(cohort, rows=[{**cohort.rows[0], "status": "failed"}, *cohort.rows[1:]])
    turned = replace(cohort, rows=cohort.rows[::-1])
    assert len({one.hash for one in (cohort, other, fewer, failed)}) == 4 and turned.hash == cohort.hash
    assert [one.case.id for one in failed.cases] == ["002", "003"] and failed.count("failed") == 1


def test_voxels_beside_a_header_and_slices_in_a_folder_count(tmp_path):
    ct = sitk.GetImageFromArray(scan("ct").array.T.astype(np.int16))
    ct.SetSpacing(GRIDS["ct"].spacing)
    (tmp_path / "flat").mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(ct, str(tmp_path / "flat" / f"{name}.mhd"))
    for name in ("c", "d"):
        write_series(tmp_path / name, voxels((13, 11, 9)), step=(0, 0, 6.0), spacing=(6.0, 5.0))
    slices = sorted((tmp_path / "d").iterdir())
    cells = {"a": "flat/a.mhd", "b": "flat/b.mhd", "c": "c", "d": f"d/{slices[0].name}"}
    manifest = tmp_path / "m.csv"
    manifest.write_text("subject,ct\n" + "".join(f"{name},{cell}\n" for name, cell in cells.items()))
    cohort, done = prepare(manifest, tmp_path / "out", center="volume")
    assert done == list("abcd") and cohort.count("done") == 4
    for path, case in ((tmp_path / "flat" / "a.raw", "a"), (slices[3], "d"), (tmp_path / "c" / slices[1].name, "c")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
        assert prepare(manifest, tmp_path / "out", center="volume")[1] == [case]


def test_a_bad_case_stops_no_other(study):
    manifest, cohort = study
    file = manifest.parent / "002_mr.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    broken, done = prepare(manifest, cohort.folder)
    assert done == ["002"] and [row["status"] for row in broken.rows] == ["done", "failed", "done"]
    assert broken.rows[1]["reasons"].startswith("mr cannot be read: Compressed file ended before")
    assert broken.rows[1]["file"] == broken.rows[1]["key"] == ""
    assert sorted(written(cohort.folder)) == ["001", "003"]  # no tensor of yesterday is left to be taken for today's
    assert [one.case.id for one in broken.cases] == ["001", "003"] and "mr cannot be read: Compr" in page_of(cohort)
    named, done = prepare(manifest, cohort.folder, keep_paths=True)  # a failed case is tried again
    assert done == ["001", "002", "003"] and str(file) in named.rows[1]["reasons"]
    file.write_bytes(whole)
    mended, done = prepare(manifest, cohort.folder)
    assert done == ["001", "002", "003"] and mended.count("done") == 3


def page_of(cohort):
    return (cohort.folder / "qc.html").read_text()


@pytest.mark.parametrize("error", [ZeroDivisionError("by chance"), PermissionError("not yours")])
def test_an_unexpected_error_is_a_failed_case_with_its_trace(study, monkeypatch, error):
    manifest, cohort = study
    alter(manifest.parent / "002_pet.nii.gz")

    def fail(case, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(room, "prepare_case", fail)
        row = prepare(manifest, cohort.folder)[0].rows[1]
    assert (
        row["reasons"] == f"unexpected {type(error).__name__}: {error.args[0]} (trace in cases/002.error.txt)"
        and row["status"] == "failed"
    )
    trace = cohort.folder / "cases" / "002.error.txt"
    assert "Traceback" in trace.read_text()
    assert prepare(manifest, cohort.folder)[0].count("done") == 3 and not trace.exists()


def test_a_folder_that_cannot_be_written_is_named(made):
    with pytest.raises(OutputError, match=r"/proc/no cannot be written \(.*\): free space, or choose"):
        prepare(made[0], "/proc/no")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_stops_at_once_and_leaves_nothing_half_written(made, tmp_path, workers):
    """A limit on the size of files, which the system keeps, stands for the disk."""
    code = (
        "import resource, signal, sys; from mmfusion.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); sys.exit(main(sys.argv[1:]))"
    )
    options = ["--spacing", "12", "11", "13", "--size", "9", "11", "7", "--register", "none"]
    command = ["prepare", str(made[0]), "--out", str(tmp_path), "--workers", str(workers), *options]
    run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert run.returncode == 1
    assert re.fullmatch(
        r"(stopping: .*\n)?error: case 00\d cannot be written \(.*\): free space, or .* goes on where it .*\n",
        run.stderr,
    )
    assert sorted(tmp_path.rglob("*")) == [tmp_path / MARK, tmp_path / "cases"]
    assert prepare(made[0], tmp_path)[0].hash == made[1].hash


def test_an_interrupted_run_goes_on_where_it_stopped(made, tmp_path):
    manifest, whole = made

    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(manifest, tmp_path, workers=1, progress=interrupt, **OPTIONS)
    assert list(written(tmp_path)) == ["001"]
    (tmp_path / "cases" / f"{TEMPORARY}1-002").mkdir()  # what a killed process leaves
    with pytest.raises(CohortError, match=r"has no options\.json: it is not a finished cohort folder"):
        open_cohort(tmp_path)
    cohort, done = prepare(manifest, tmp_path)
    assert done == ["002", "003"] and cohort.hash == whole.hash
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == ["001", "002", "003"]


def test_an_interrupted_change_leaves_no_folder_of_two_minds(study):
    manifest, cohort = study

    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(manifest, cohort.folder, workers=1, progress=interrupt, **OPTIONS | {"size": [5, 5, 5]})
    with pytest.raises(CohortError, match=r"has no cases\.csv"):
        open_cohort(cohort.folder)
    again, done = prepare(manifest, cohort.folder)
    assert done == ["001"] and again.hash == cohort.hash


def test_two_workers_make_the_same_bytes_also_after_trouble(made, tmp_path):
    manifest, whole = made
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(manifest, tmp_path, workers=2, progress=interrupt, **OPTIONS)
    before = written(tmp_path)
    cohort = prepare_cohort(manifest, tmp_path, workers=2, **OPTIONS)
    assert before and before.items() <= written(tmp_path).items() and cohort.hash == whole.hash
    for mine, theirs in zip(cohort.cases, whole.cases, strict=True):
        assert mine.file.read_bytes() == theirs.file.read_bytes()
    assert [row["case"] for row in cohort.rows] == ["001", "002", "003"]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(made, tmp_path, share):
    """The long run, at 30 random moments, is in benchmarks/robustness.py."""
    options = ["--spacing", "12", "11", "13", "--size", "9", "11", "7", "--register", "none", "--workers", "2"]
    command = [sys.executable, "-m", "mmfusion", "prepare", str(made[0]), *options, "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "timed")], check=True, capture_output=True)
    whole_s = time.monotonic() - start
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    time.sleep(share * whole_s)
    killed.kill()
    killed.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    cohort = open_cohort(tmp_path / "killed")
    assert cohort.hash == made[1].hash and damaged_files(cohort.folder) == []
    for path in sorted(made[1].folder.glob("cases/*/*.*")):
        if path.suffix in (".npy", ".tfm"):
            assert (cohort.folder / path.relative_to(made[1].folder)).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in (cohort.folder / "cases").iterdir()) == ["001", "002", "003"]


def troubled(case, order):
    """Prepare in the process of a worker, where the second case brings trouble."""
    if case.id == "002":
        exec(os.environ["TROUBLE"])
    return room._prepare_one(case, order)


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        pytest.param("import ctypes; ctypes.string_at(0)", "its process was ended by SIGSEGV", marks=pytest.mark.slow),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, most likely for lack of memory"),
        pytest.param("import time; time.sleep(600)", "took longer than 30 s", marks=pytest.mark.slow),
    ],
    ids=["crash", "kill", "hang"],
)
def test_a_case_that_ends_its_process_stops_no_other(made, tmp_path, monkeypatch, trouble, why):
    manifest, whole = made
    monkeypatch.setenv("TROUBLE", trouble)
    monkeypatch.setattr(room, "_prepare_one", troubled)
    limit = 30 if "longer" in why else 600  # a busy machine takes its time to start a process
    cohort = prepare_cohort(manifest, tmp_path / "cohort", workers=2, time_limit=limit, **OPTIONS)
    assert [(row["status"], row["reasons"]) for row in cohort.rows] == [("done", ""), ("failed", why), ("done", "")]
    for mine, theirs in zip(cohort.cases, (whole.cases[0], whole.cases[2]), strict=True):
        assert mine.file.read_bytes() == theirs.file.read_bytes()


def test_strict_stops_at_the_first_case_that_fails(study):
    manifest, cohort = study
    for name in ("001_mr.nii.gz", "002_mr.nii.gz"):
        (manifest.parent / name).write_bytes(b"")
    with pytest.raises(CohortError, match=r"stopped at case 001 \(2 of 3 were tried\): mr is not a NIfTI"):
        prepare_cohort(manifest, cohort.folder, workers=1, strict=True, **OPTIONS)
    assert prepare(manifest, cohort.folder)[0].count("failed") == 2


def test_modalities_select_and_order(made, tmp_path):
    cohort, _ = prepare(made[0], tmp_path, modalities=["mr", "ct"])
    assert cohort.modalities == ("mr", "ct") and [one.modalities for one in cohort.cases][1:] == [("mr", "ct"), ("mr",)]
    whole = np.load(made[1].cases[0].file)
    np.testing.assert_array_equal(np.load(cohort.cases[0].file), whole[[2, 0]])


def test_channels_follow_the_columns_not_the_order_of_rows(made, tmp_path):
    with made[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not rows[-1]["ct"]  # which now comes first
    shuffled = [{**row, **{n: made[0].parent / row[n] for n in ("ct", "pet", "mr") if row[n]}} for row in rows[::-1]]
    write_csv(shuffled, tmp_path / "m.csv", list(rows[0]))
    cohort, _ = prepare(tmp_path / "m.csv", tmp_path / "cohort")
    assert cohort.options == made[1].options and cohort.modalities == ("ct", "pet", "mr")
    for one, other in zip(sorted(cohort.cases, key=lambda c: c.case.id), made[1].cases, strict=True):
        np.testing.assert_array_equal(np.load(one.file), np.load(other.file))


def test_a_cohort_keeps_the_order_that_it_has(study):
    manifest, cohort = study
    prepare(manifest, cohort.folder, modalities=["mr", "ct"])
    again, steps = prepare(manifest, cohort.folder)
    assert again.modalities == ("mr", "ct", "pet") and len(steps) == 3
    assert prepare(manifest, cohort.folder)[1] == []
    (cohort.folder / "options.json").write_text("[")
    assert prepare(manifest, cohort.folder)[0].modalities == ("ct", "pet", "mr")


def test_a_file_that_is_not_there_is_named_with_its_line(study):
    manifest, cohort = study
    (manifest.parent / "002_mr.nii.gz").unlink()
    with pytest.raises(
        ManifestError, match=r"subject 002: mr file 002_mr\.nii\.gz does not exist \(manifest\.csv line 3"
    ):
        prepare(manifest, cohort.folder)
    assert open_cohort(cohort.folder).count("done") == 3  # nothing was begun


def test_folders_that_are_no_cohort(made, tmp_path):
    with pytest.raises(CohortError, match=r"nowhere has no options\.json.*Run: mmfusion prepare MANIFEST --out .*nowh"):
        open_cohort(tmp_path / "nowhere")
    shutil.copy(made[1].folder / "options.json", tmp_path)
    with pytest.raises(CohortError, match=r"has no cases\.csv"):
        open_cohort(str(tmp_path))


def test_options_that_contradict_the_cohort(made):
    cohort = made[1]
    refuse_contradictions(cohort, {"spacing": (12, 11, 13), "size": None, "modalities": ["mr"], "suv_max": 25})
    with pytest.raises(
        OptionError, match=r"option size is \[8, 8, 8\], but the cohort .*cohort was prepared with \[9,"
    ):
        refuse_contradictions(cohort, {"size": [8, 8, 8]})
    with pytest.raises(OptionError, match=r"modality t2 is not in the cohort .*; it has ct, pet, mr"):
        refuse_contradictions(cohort, {"modalities": ["ct", "t2"]})
    with pytest.raises(OptionError, match="unknown option 'centre'; did you mean 'center'"):
        refuse_contradictions(cohort, {"centre": "volume"})


def test_transforms_in_the_folder_are_within_2_mm_of_the_truth(tmp_path):
    """As ITK reads them: a point of the CT (LPS) to the same point of the head in PET and MR."""
    subject = draw_subjects(1, 11)[0]
    coarse = {
        name: Grid.around(grid.center, (6, 6.5, 7), np.multiply(grid.shape, grid.spacing) // (6, 6.5, 7))
        for name, grid in native_grids(subject).items()
    }
    for name, volume in simulate_volumes(subject, coarse).items():
        save_volume(volume, tmp_path / f"{name}.nii.gz")
    (tmp_path / "m.csv").write_text("subject,ct,pet,mr\nSIM,ct.nii.gz,pet.nii.gz,mr.nii.gz\n")
    cohort, _ = prepare(tmp_path / "m.csv", tmp_path / "out", register="rigid")
    assert cohort.count("done") == 1
    flip, points = np.array([-1.0, -1, 1]), brain_landmarks()[::5]
    for name in ("pet", "mr"):
        file = cohort.folder / "cases" / "SIM" / f"{name}.tfm"
        found = sitk.ReadTransform(str(file))
        placed = [np.array(found.TransformPoint(p.tolist())) * flip for p in subject.poses["ct"].apply(points) * flip]
        misses = np.linalg.norm(placed - subject.poses[name].apply(points), axis=1)
        assert misses.max() < 2 and len(misses) > 20
        assert target_registration_error(subject, "ct", name, load_transform(file)) == pytest.approx(
            misses.mean(), abs=0.2
        )
        unmoved = np.linalg.norm(subject.poses["ct"].apply(points) - subject.poses[name].apply(points), axis=1)
        assert unmoved.mean() > 4  # so that doing nothing would not pass


@pytest.mark.slow
@pytest.mark.realdata
def test_three_sarcoma_patients(testdata, tmp_path):
    names = ("STS_002", "STS_004", "STS_012")
    root = testdata / "sts_dicom"
    rows = [f"{n},{root}/{n}/CT,{root}/{n}/PET,{root}/{n}/MR_T1,{root}/{n}/CT_mask\n" for n in names]
    (tmp_path / "m.csv").write_text("subject,ct,pet,mr,mask\n" + "".join(rows))
    options = {"center": "mask", "spacing": [4.0, 4.0, 4.0], "size": [24, 22, 20]}
    cohort = prepare_cohort(tmp_path / "m.csv", tmp_path / "out", workers=2, **options)
    assert cohort.count("failed") == 0 and len(cohort.cases) == 3
    for one, row in zip(cohort.cases, cohort.rows, strict=True):
        image = np.load(one.file)
        assert image.shape == (3, 24, 22, 20) and np.isfinite(image).all() and image.any((1, 2, 3)).all()
        assert row["reference"] == "ct" and float(row["pet_motion_mm"]) < 20 and float(row["ct_coverage"]) > 0.8


def test_a_case_without_registration_writes_no_transform(tmp_path):
    save_volume(scan("pet"), tmp_path / "pet.nii.gz")
    result = prepare_case(Case("7", images={"pet": tmp_path / "pet.nii.gz"}), pictures=False, **OPTIONS)
    row = room.write_case(tmp_path, Case("7", session="b", label="x"), result)
    assert sorted(p.name for p in (tmp_path / "cases" / "7_b").iterdir()) == ["case.json", "image.npy"]
    assert (row["case"], row["label"], row["pet_spacing"]) == ("7_b", "x", "9 7.5 8") and GRIDS["pet"].spacing[0] == 9


def test_a_cohort_of_a_version_without_later_options_is_read(study):
    path = study[1].folder / "options.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in facts.items() if name not in LATER}))
    assert open_cohort(study[1].folder).options == study[1].options
    path.write_text(json.dumps({name: value for name, value in facts.items() if name != "suv"}))
    with pytest.raises(ReadError, match="lacks suv"):
        open_cohort(study[1].folder)


def test_a_cohort_of_the_earlier_default_keeps_it(tmp_path):
    """``suv_max`` was 10 where nothing was given, and is 25 now."""
    manifest, asked = write_study(tmp_path, 2), {"modalities": ["pet"]}
    before, _ = prepare(manifest, tmp_path / "a", suv_max=10.0, **asked)
    opened, tensors = open_cohort(before.folder), written(before.folder)
    assert opened.options["suv_max"] == 10
    again, done = prepare(manifest, before.folder, **asked)
    assert done == [] and again.hash == before.hash
    alter(manifest.parent / "002_pet.nii.gz")
    assert prepare(manifest, before.folder, **asked)[1] == ["002"]
    expected = prepare_case(read_manifest(manifest)[1], suv_max=10.0, pictures=False, **asked, **OPTIONS)
    np.testing.assert_array_equal(np.load(before.cases[1].file), expected.image)  # as the others: no mixture
    assert written(before.folder)["001"] == tensors["001"]
    refuse_contradictions(opened, {"suv_max": None})
    with pytest.raises(OptionError, match=r"suv_max is 25\.0, but the cohort .*a was prepared with 10\.0"):
        refuse_contradictions(opened, {"suv_max": 25.0})
    anew, done = prepare(manifest, before.folder, suv_max=25.0, **asked)
    assert done == ["001", "002"] and anew.options["suv_max"] == 25


def test_a_range_of_suv_is_kept_for_suv_only(tmp_path):
    def kept(before, **options):
        (tmp_path / "options.json").write_text(json.dumps(before))
        return room._kept_suv_max(resolve(options, "case"), room._options_before(tmp_path))

    assert room._kept_suv_max(resolve({}, "case"), room._options_before(tmp_path / "new")) == 25
    assert kept({"suv": "bw", "suv_max": 7.0}) == kept({"suv_max": 7.0}, suv="lbm") == 7  # earlier files lack options
    assert kept({"suv_max": 7.0}, suv="none") == kept({"suv_max": 7.0}, suvr="manifest") == 25
    assert kept({"suv": "none", "suv_max": 10.0}) == kept({"suvr": "manifest", "suv_max": 10.0}) == 25
    assert kept({"suv_max": "ten"}) == 25  # damaged, and written again


def test_the_reference_region_of_pet_counts_and_its_path_is_not_kept(tmp_path):
    manifest = write_study(tmp_path / "study", 2)
    for n in (1, 2):
        labels = (scan("pet").array > 3).astype(np.uint8)
        save_volume(scan("pet").replace(array=labels, units="label"), tmp_path / "study" / f"00{n}_regions.nii.gz")
    asked = {"register": "none", "size": [12, 12, 12], "workers": 1, "modalities": ["pet"]}
    first = prepare_cohort(manifest, tmp_path / "a", suvr=f"{tmp_path}/study/{{subject}}_regions.nii.gz#1", **asked)
    assert first.options["suvr"] == "manifest" and {row["pet_units"] for row in first.rows} == {"SUVR"}
    assert str(tmp_path) not in (tmp_path / "a" / "options.json").read_text()
    text = manifest.read_text().splitlines()
    rows = [f"{line},{word}" for line, word in zip(text, ("reference_region", "001_regions.nii.gz#1", ""), strict=True)]
    manifest.write_text("\n".join(rows))
    second = prepare_cohort(manifest, tmp_path / "a", suvr="manifest", **asked)
    assert [row["status"] for row in second.rows] == ["done", "failed"]
    assert second.rows[0]["key"] == first.rows[0]["key"] != second.rows[1]["key"]
    with pytest.raises(OptionError, match="--suv-max is for SUV"):
        prepare_cohort(manifest, tmp_path / "b", suv="none", suv_max=12.0, **asked)


def test_a_reference_that_is_no_modality_is_refused(tmp_path):
    (tmp_path / "pet.nii.gz").touch()
    (tmp_path / "manifest.csv").write_text("subject,pet\n001,pet.nii.gz\n")
    with pytest.raises(OptionError, match="unknown reference 'CT'. Known: pet"):
        prepare_cohort(tmp_path / "manifest.csv", tmp_path / "cohort", reference=["CT"])
