"""Pipes and endless devices among the files: nothing opens them, and nothing waits for them."""

import os
import shutil

import numpy as np
import pytest
from io_dicom import voxels, write_series
from tiny_cohort import write_scans

from mmfusion.cli import main
from mmfusion.cohort import build_index, check_manifest
from mmfusion.errors import ManifestError, ReadError
from mmfusion.files import read_json, write_csv
from mmfusion.io import load_mask, load_transform, load_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.prepare import prepare_cohort
from mmfusion.volume import Grid

WORDS = "is a pipe, a socket or a device; a regular file or a folder is expected"

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def put_specials(folder):
    """A pipe and a link to an endless device in a folder."""
    os.mkfifo(folder / "pipe.dcm")
    (folder / "zero").symlink_to("/dev/zero")


def test_the_index_counts_and_skips_them(tmp_path):
    write_series(tmp_path / "S1" / "ct", voxels((7, 5, 6)), PatientID="S1")
    put_specials(tmp_path / "S1" / "ct")
    os.mkfifo(tmp_path / "S1" / "pet.nii.gz")
    index = build_index(tmp_path)
    assert [list(case.images) for case in index.cases] == [["ct"]]
    assert "3 files are pipes, sockets or devices and were not read" in index.notes


def test_a_folder_of_dicom_is_read_without_them(tmp_path):
    write_scans(tmp_path, {"A": ("ct",)})
    save_dicom_series(
        load_volume(tmp_path / "A_ct.nii.gz", modality="ct"), tmp_path / "ct", modality="CT", patient_id="A"
    )
    before = load_volume(tmp_path / "ct").array
    put_specials(tmp_path / "ct")
    assert (load_volume(tmp_path / "ct").array == before).all()
    write_csv([{"subject": "S1", "ct": "ct"}], tmp_path / "m.csv")
    assert not [one for one in check_manifest(tmp_path / "m.csv", deep=True) if one.level == "error"]
    grid = {"spacing": [9.0, 9.0, 9.0], "size": [12, 13, 14]}
    assert prepare_cohort(tmp_path / "m.csv", tmp_path / "cohort", workers=1, **grid).count("failed") == 0


def test_a_bids_tree_names_them(tmp_path):
    write_scans(tmp_path, {"A": ("mr",)})
    (tmp_path / "bids" / "sub-A" / "anat").mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    shutil.copy(tmp_path / "A_mr.nii.gz", tmp_path / "bids" / "sub-A" / "anat" / "sub-A_T1w.nii.gz")
    os.mkfifo(tmp_path / "bids" / "sub-A" / "anat" / "sub-A_T2w.nii.gz")
    assert [str(one).partition(": it")[2] for one in build_index(tmp_path / "bids").others] == [
        " is a pipe, a socket or a device"
    ]


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.mha", "x.nrrd", "x.dcm", "x.zip", "x.img", "x"])
def test_a_scan_a_mask_or_a_transform_that_is_a_pipe_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    for read in (load_volume, lambda path: load_mask(path, Grid((5, 6, 7), np.eye(4))), load_transform):
        with pytest.raises(ReadError, match=WORDS):
            read(tmp_path / name)


@pytest.mark.parametrize("device", [False, True])
def test_a_table_a_cell_or_a_key_that_is_none_is_a_sentence(device, tmp_path, capsys):
    def put(name):
        (tmp_path / name).symlink_to("/dev/zero") if device else os.mkfifo(tmp_path / name)
        return tmp_path / name

    write_csv([{"subject": "S1", "ct": put("ct.nii.gz").name}], tmp_path / "m.csv")
    with pytest.raises(ManifestError, match="subject S1: ct path ct.nii.gz is a pipe, a socket or a device, and no"):
        prepare_cohort(tmp_path / "m.csv", tmp_path / "cohort", workers=1)
    assert len([one for one in check_manifest(tmp_path / "m.csv", deep=True) if one.level == "error"]) == 1
    write_series(tmp_path / "tree" / "S1", voxels((7, 5, 6)), PatientID="S1")
    index = ["index", str(tmp_path / "tree"), "--out", str(tmp_path / "out.csv")]
    assert main(["check", str(put("m"))]) == 1 and "is not a file" in capsys.readouterr().err
    assert main([*index, "--labels", str(put("labels")), "--label", "x"]) == 1
    assert "is not a file" in capsys.readouterr().err
    assert main([*index, "--pseudonymize", str(put("key"))]) == 1 and WORDS in capsys.readouterr().err
    with pytest.raises(ReadError, match=WORDS):
        read_json(put("x.json"), "anything")
