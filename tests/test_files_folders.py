"""Whose folder it is: marks, folders from before there were marks, inputs, and single files."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from mmfusion.errors import CohortError, OutputError
from mmfusion.files import (
    KINDS,
    MARK,
    TEMPORARY,
    atomic_path,
    check_folder,
    check_output_file,
    claim,
    claim_place,
    clear_temporary,
    folder_kind,
    lock_folder,
    lock_for_process,
    write_csv,
    write_json,
)


def snapshot(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_new_folder_an_empty_one_and_its_own_are_taken(tmp_path):
    for name in ("new", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
            (tmp_path / name / ".DS_Store").touch()
            (tmp_path / name / f"{TEMPORARY}0123-mark").touch()  # of a command that was killed
        for _ in range(2):
            assert claim(tmp_path / name, "cohort") == tmp_path / name
        assert json.loads((tmp_path / name / MARK).read_text())["kind"] == "cohort" == folder_kind(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_kind_is_refused(tmp_path, kind):
    claim(tmp_path / "a", kind)
    for other in KINDS:
        if other != kind:
            with pytest.raises(OutputError, match=f"is {KINDS[kind].words}, and {KINDS[other].words} is to be written"):
                claim(tmp_path / "a", other)


def test_what_is_not_ours_is_refused_before_anything_is_touched(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "options.json").write_text('{"theme": "dark"}')
    (tmp_path / "theirs" / "cases.csv").write_text("case\n1\n")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "newer").mkdir()
    write_json({"kind": "hologram"}, tmp_path / "newer" / MARK)
    before = snapshot(tmp_path)
    for kind in KINDS:
        with pytest.raises(OutputError, match=r"is not empty and not .* \(it holds 'cases.csv' and 1 more\)"):
            claim(tmp_path / "theirs", kind)
        with pytest.raises(OutputError, match="file is a file, and"):
            claim(tmp_path / "file", kind)
        with pytest.raises(OutputError, match="a folder of kind 'hologram', of another version"):
            claim(tmp_path / "newer", kind)
    assert snapshot(tmp_path) == before


def write_old(folder, kind):
    """The files by which a folder from before there were marks is known."""
    versions = {"versions": {"mmfusion": "0.1.0"}}
    key = {"cohort": "abc", "simulated cohort": "simulated"}.get(kind)
    if key:
        write_json({"size": [8, 8, 8], **versions}, folder / "options.json")
        write_csv([{"case": "1", "status": "done", "file": "f", "key": key}], folder / "cases.csv")
    elif kind == "run":
        write_json({"cohort_hash": "1", **versions}, folder / "options.json")
    elif kind == "prediction":
        write_csv([dict.fromkeys(("case", "subject", "session", "part"), "1")], folder / "predictions.csv")
        write_old(folder / "cohort", "cohort")
    elif kind == "bundle":
        write_json({"required_packages_version": {"mmfusion": "0.1.0"}}, folder / "configs" / "metadata.json")
    elif kind == "demo":
        write_json(dict.fromkeys(("subjects", "train", "test", "seed", "epochs"), 8), folder / "demo.json")
    else:
        write_json({"subjects": []}, folder / "truth.json")


@pytest.mark.parametrize("kind", KINDS)
def test_folders_from_before_marks_are_known_by_their_own_files(tmp_path, kind):
    write_old(tmp_path / "a", kind)
    assert folder_kind(tmp_path / "a") == kind
    claim(tmp_path / "a", kind)
    assert json.loads((tmp_path / "a" / MARK).read_text())["kind"] == kind
    (tmp_path / "a" / MARK).write_text('{"kind": ')  # a damaged mark says nothing
    assert folder_kind(tmp_path / "a") == kind


def test_unfinished_old_cohorts_and_folds_are_known(tmp_path):
    write_json({"key": "abc", "checksums": {}}, tmp_path / "c" / "cases" / "1" / "case.json")
    write_old(tmp_path / "folds" / "fold_3", "run")
    assert (folder_kind(tmp_path / "c"), folder_kind(tmp_path / "folds")) == ("cohort", "run")
    (tmp_path / "study").mkdir()  # a manifest and its cohort side by side are no predictions
    (tmp_path / "c").rename(tmp_path / "study" / "cohort")
    (tmp_path / "study" / "manifest.csv").touch()
    assert folder_kind(tmp_path / "study") == ""


def test_inputs_may_not_lie_inside_nor_the_folder_inside_a_series(tmp_path):
    scan, series = tmp_path / "study" / "a.nii", tmp_path / "study" / "dicom"
    series.mkdir(parents=True)
    scan.touch()
    (tmp_path / "link").symlink_to(tmp_path / "study")
    check_folder(tmp_path / "study" / "derivatives", "cohort", reads=[scan], series=[series])
    for out in (tmp_path / "study", tmp_path / "link", tmp_path, tmp_path / "study" / "x" / ".."):
        with pytest.raises(OutputError, match=r"a\.nii is read and lies inside .*; choose another folder"):
            check_folder(out, "cohort", reads=[scan])
    with pytest.raises(OutputError, match=r"link.* lies inside .*dicom, a series that is read"):
        check_folder(tmp_path / "link" / "dicom" / "new", "cohort", series=[series])


def test_single_files(tmp_path):
    path, other = tmp_path / "m.csv", tmp_path / "labels.csv"
    assert check_output_file(path) == path
    other.write_text("mine")
    with pytest.raises(OutputError, match=r"labels.csv is there already; choose another name, or add --overwrite"):
        check_output_file(other)
    assert check_output_file(other, overwrite=True, reads=[None, path]) == other
    (tmp_path / "link.csv").symlink_to(other)
    os.link(other, tmp_path / "hard.csv")
    for name in (other, tmp_path / "link.csv", tmp_path / "hard.csv", tmp_path / "x" / ".." / "labels.csv"):
        with pytest.raises(OutputError, match="is read by the same command"):
            check_output_file(name, overwrite=True, reads=[other])
    with pytest.raises(OutputError, match="is a folder, and a file is to be written"):
        check_output_file(tmp_path, overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "dangling"):
        with pytest.raises(OutputError, match="no regular file"):
            check_output_file(tmp_path / name, overwrite=True)


def test_a_pipe_among_the_files_that_tell_a_kind_is_not_waited_for(tmp_path):
    for name in (MARK, "options.json", "cases.csv", "model.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(OutputError, match="is not empty and not a cohort folder"):
        claim(tmp_path, "cohort")


def test_files_of_ours_are_written_in_our_folders_only(tmp_path):
    write_old(tmp_path / "run", "run")
    (tmp_path / "run" / f"{TEMPORARY}ab-report.html").touch()
    claim_place(tmp_path / "run" / "report.html", "cohort", "run")
    assert folder_kind(tmp_path / "run") == "run" and (tmp_path / "run" / MARK).is_file()
    assert not list((tmp_path / "run").glob(f"{TEMPORARY}*"))
    (tmp_path / "theirs").mkdir()
    with pytest.raises(OutputError, match=r"theirs is not a run folder of mmfusion, and report.html is not written"):
        claim_place(tmp_path / "theirs" / "report.html", "run")


def test_only_temporary_files_are_cleared(tmp_path):
    (tmp_path / f"{TEMPORARY}ab-case" / "deep").mkdir(parents=True)
    (tmp_path / f"{TEMPORARY}cd-table.csv").touch()
    kept = [tmp_path / name for name in (".tmp-draft.txt", ".hidden", "notes.txt")]
    for path in kept:
        path.touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{TEMPORARY}x").touch()
    clear_temporary([tmp_path, tmp_path / "nowhere"])
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "sub", tmp_path / "sub" / f"{TEMPORARY}x"])


def test_a_library_that_hides_a_full_disk_is_understood(tmp_path):
    """A limit on the size of files, which the system keeps, stands for the disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from mmfusion.files import atomic_path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        "with atomic_path(Path(sys.argv[1]) / 'a.pt') as path:\n    raise RuntimeError('PytorchStreamWriter failed')"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].endswith(
        "a.pt cannot be written (File too large): free space, or choose another place"
    )
    with pytest.raises(RuntimeError, match="its own"), atomic_path(tmp_path / "b.pt"):
        raise RuntimeError("its own fault")
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_program_also_where_children_live_on(tmp_path):
    code = (
        "import os, sys, time; from mmfusion.files import lock_for_process\n"
        "lock = lock_for_process(sys.argv[1], 'train')\n"
        "child = os.fork()\n"
        "if not child: os.close(1); time.sleep(60)\nprint(child, flush=True); os._exit(0)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    lock_folder(tmp_path, "train").release()
    os.kill(int(run.stdout), 9)


def test_locks(tmp_path):
    with lock_folder(tmp_path, "train"):
        with pytest.raises(CohortError, match="another train is writing into"):
            lock_folder(tmp_path, "train")
        with pytest.raises(CohortError, match="another train is writing into"):
            lock_for_process(tmp_path, "train")
    first = lock_for_process(tmp_path, "train")
    assert lock_for_process(tmp_path, "train") is first
    code = f"from mmfusion.files import lock_for_process as lock; lock({str(tmp_path)!r}, 'train')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and "another train is writing into" in other.stderr
    pickle.loads(pickle.dumps(first)).release()  # a copy holds nothing
    with pytest.raises(CohortError, match="another train"):
        lock_folder(tmp_path, "train")
    first.release()
    again = lock_for_process(tmp_path, "train")
    assert again is not first
    del again  # whoever forgets the lock gives it back
    lock_folder(tmp_path, "train").release()
