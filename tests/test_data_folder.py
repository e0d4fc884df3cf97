"""The examples in data/: they are what their script makes, ``check`` accepts them, and every volume loads."""

import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmfusion.cli import main
from mmfusion.cohort import check_manifest, read_manifest
from mmfusion.io import load_volume
from mmfusion.prepare import load_case
from mmfusion.volume import Grid, resample

DATA = Path(__file__).parents[1] / "data"
MANIFEST = DATA / "example_manifest.csv"
FILES = sorted((DATA / "tiny").glob("*.nii.gz"))


def test_the_script_makes_exactly_these_files(tmp_path):
    runpy.run_path(str(DATA / "make_tiny_volumes.py"))["make"](tmp_path)
    assert (tmp_path / MANIFEST.name).read_text() == MANIFEST.read_text()
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == [path.name for path in FILES]
    for path in FILES:
        header, made = (
            nib.Nifti1Header(image, check=False) for image in map(_header, (path, tmp_path / "tiny" / path.name))
        )
        assert header.binaryblock == made.binaryblock


def _header(path):
    import gzip

    return gzip.decompress(path.read_bytes())[:348]


def test_check_accepts_the_manifest_and_says_what_is_odd(capsys):
    assert main(["check", str(MANIFEST)]) == 0
    text = capsys.readouterr().out
    for words in (
        "ct LAS, pet RAS, mr PIR: reoriented",
        "sform and qform disagree by up to 7.8 mm; the sform is used",
        "over unit length; normalized",
        "sheared by 9.5 degrees",
        "lengths are in meters; converted to mm",
        "spacing 6.5 x 6.5 x 15 mm is unusual",
        "pixdim was not set (1 x 1 x 1); the voxel size of the sform is used",
        "0 errors, 1 warning, 9 notes",
    ):
        assert words in text


def test_no_file_is_larger_than_a_few_kilobytes():
    assert FILES and all(path.stat().st_size < 5000 for path in FILES)
    assert not [one for one in check_manifest(MANIFEST) if one.level == "error"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_volume_shows_the_same_head_at_the_same_place(path):
    """Whatever the header, the spot on the right, in front and above reads back with the value it was made with."""
    modality = path.name[4:].removesuffix(".nii.gz")
    pet = {"weight_kg": 71.5, "dose_mbq": 250, "injection_time": "08:12:00", "acquisition_time": "09:14:30"}
    volume = load_volume(path, modality=modality, pet=pet if path.name.startswith("003") else None)
    right, left = (
        resample(volume, Grid.around((x, 20, 20), (3, 3, 3), (1, 1, 1)), anti_alias=False).array.item()
        for x in (28, -28)
    )
    expected = {"ct": (60, 35), "pet": (9, 6), "mr": (560, 420)}[modality]
    np.testing.assert_allclose([right, left], expected, rtol=0.12)


def test_activity_becomes_suv_by_the_columns_of_the_manifest():
    """250 MBq, 62.5 minutes before the scan, 71.5 kg: 2350 Bq/mL for each unit of SUV (an independent formula)."""
    case = next(case for case in read_manifest(MANIFEST) if case.subject == "003")
    left_bq = 250e6 * np.exp(-np.log(2) * 62.5 * 60 / 6586.2)
    array = load_case(case)["pet"].array
    stored = nib.load(DATA / "tiny" / "003_pet.nii.gz").get_fdata()
    np.testing.assert_allclose(array.max(), stored.max() * 71.5e3 / left_bq, rtol=1e-5)
