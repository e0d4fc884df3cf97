"""Series with several kinds of image: Dixon, magnitude and phase."""

import numpy as np
import pytest
from io_dicom import voxels, write_enhanced, write_series
from pydicom import Dataset

from mmfusion.errors import ReadError
from mmfusion.io import load_volume, read_header, split_series
from mmfusion.io.image_kinds import IMAGE_KINDS, image_kind, split_kind

DIXON = {"water": ["W", "W"], "fat": ["F", "F"], "inphase": ["IP", "IP"], "opposed": ["OP", "OP"]}
UID = "1.2.840.5"


def write_kinds(folder, kinds, uid=UID, **tags):
    """One series of several kinds, each with voxels of its own; these, turned to RAS, by kind."""
    out = {}
    for n, (kind, words) in enumerate(kinds.items()):
        out[kind] = voxels(seed=n)
        image_type = ["ORIGINAL", "PRIMARY", *words]
        write_series(folder / "new", out[kind], series_uid=uid, Modality="MR", ImageType=image_type, **tags)
        for path in (folder / "new").iterdir():
            path.rename(folder / f"{uid}_{n}_{path.name}")
        (folder / "new").rmdir()
    return {kind: stored[::-1, ::-1] for kind, stored in out.items()}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("M_FFE\\M\\FFE", "magnitude"), ("PHASE MAP\\P\\FFE", "phase"), ("M\\ND\\NORM", "magnitude"),
        ("P\\ND", "phase"),
        ("R_FFE\\R\\FFE", "real"), ("I_FFE\\I\\FFE", "imaginary"), ("DIXON\\WATER", "water"), ("M\\WATER", "water"),
        ("DIXON\\FAT", "fat"), ("IN_PHASE", "inphase"), ("OPP_PHASE", "opposed"), ("OUT_PHASE", "opposed"),
        ("DIFFUSION\\ADC\\DIS2D", "adc"), ("ADC_UNSPECIFIED", "adc"), ("DIFFUSION\\TRACEW", "dwi"),
        ("DIFFUSION\\FA", "fa"), ("T1 MAP", "t1map"), ("T2_STAR MAP", "t2starmap"), ("R2_STAR", "r2starmap"),
        ("B0 MAP\\B0", "b0map"), ("T1\\NONE", "other"), ("M\\NORM\\F\\P", "magnitude"), ("", "other"),
    ],
)  # fmt: skip
def test_a_kind_is_told_by_image_type(words, kind):
    header = Dataset()
    header.Modality, header.ImageType = "MR", ["ORIGINAL", "PRIMARY", *words.split("\\")]
    assert image_kind("a.dcm", header) == kind and kind in IMAGE_KINDS
    header.Modality = "CT"
    assert image_kind("a.dcm", header) == "other"


def test_each_kind_is_named_behind_the_path_or_as_series(tmp_path):
    kinds = write_kinds(tmp_path, DIXON, AcquisitionTime="101010")
    for kind, array in kinds.items():
        for how in ({"path": f"{tmp_path}#{kind}"}, {"path": tmp_path, "series": f"40.5:{kind}"}):
            np.testing.assert_array_equal(load_volume(**how, modality=f"mr_{kind}").array, array)
    assert read_header(f"{tmp_path}#{UID}:fat").notes == read_header(f"{tmp_path}#fat", frame="last").notes == ()
    file = next(tmp_path.iterdir())
    np.testing.assert_array_equal(load_volume(f"{file}#opposed").array, kinds["opposed"])


@pytest.mark.parametrize("frame", [None, "first", "mean"])
def test_a_kind_is_not_guessed(tmp_path, frame):
    write_kinds(tmp_path, DIXON)
    listed = "water (6 images), fat (6 images), inphase (6 images), opposed (6 images). Name one behind the path, as #w"
    with pytest.raises(ReadError) as refused:
        read_header(tmp_path, frame=frame)
    assert f"{tmp_path} holds several kinds of image: {listed}ater" in str(refused.value)
    with pytest.raises(ReadError) as refused:
        read_header(f"{tmp_path}#{UID}:phase")
    assert f"{tmp_path} holds no image of kind phase: {listed}ater" in str(refused.value)


def test_magnitude_is_taken_beside_phase_with_a_note(tmp_path):
    kinds = write_kinds(tmp_path, {"magnitude": ["M", "ND"], "phase": ["P", "ND"]})
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, kinds["magnitude"])
    assert volume.meta["notes"] == ["the series holds phase (6 images), magnitude (6 images): magnitude is used"]
    np.testing.assert_array_equal(load_volume(f"{tmp_path}#phase").array, kinds["phase"])
    assert read_header(f"{tmp_path}#magnitude").notes == ()


def test_frames_are_those_of_one_kind(tmp_path):
    for n, echo in enumerate((4, 9)):
        (tmp_path / f"{n}").mkdir()
        kinds = write_kinds(tmp_path / f"{n}", {"magnitude": ["M"], "phase": ["P"]}, EchoTime=echo)
        for path in (tmp_path / f"{n}").iterdir():
            path.rename(tmp_path / f"{n}_{path.name}")
    with pytest.raises(ReadError, match="has EchoTime 4.0, 9.0 ms: 2 frames"):
        read_header(f"{tmp_path}#phase")
    np.testing.assert_array_equal(load_volume(f"{tmp_path}#phase", frame=1).array, kinds["phase"])


def test_of_several_series_those_that_hold_the_kind_are_meant(tmp_path):
    write_kinds(tmp_path, {"water": ["W"]}, "1.2.3.11111111", SeriesDescription="fat and water")
    fat = write_kinds(tmp_path, {"fat": ["F"]}, "1.2.3.22222222", SeriesDescription="made")
    np.testing.assert_array_equal(load_volume(f"{tmp_path}#fat").array, fat["fat"])
    assert read_header(tmp_path, series="1.2.3.11111111:water").shape == (7, 5, 6)
    write_kinds(tmp_path, {"magnitude": ["M"]}, "1.2.3.33333333", SeriesDescription="phase sensitive")
    assert read_header(tmp_path, series="phase").shape == (7, 5, 6), "no series holds phase: a word of a description"
    write_kinds(tmp_path, {"fat": ["F"]}, "1.2.3.44444444")
    with pytest.raises(ReadError, match="holds 2 image series: ...22222222 MR number 4, 6 files; ...44444444 MR"):
        read_header(f"{tmp_path}#fat")


@pytest.mark.parametrize("by", ["FrameType", "ComplexImageComponent"])
def test_frames_of_a_multiframe_object_may_differ_in_kind(tmp_path, by):
    stored = [voxels(seed=1), voxels(seed=2)]
    types = {"FrameType": ["M", "P"], "ComplexImageComponent": ["MAGNITUDE", "PHASE"]}[by]
    tags = [{by: ["ORIGINAL", "PRIMARY", one, "NONE"] if by == "FrameType" else one} for one in types for _ in range(6)]
    groups = [{"MRImageFrameTypeSequence": one} for one in tags]
    write_enhanced(tmp_path, np.concatenate(stored, axis=2), [*range(6)] * 2, groups)
    np.testing.assert_array_equal(load_volume(tmp_path).array, stored[0][::-1, ::-1])
    np.testing.assert_array_equal(load_volume(f"{tmp_path}#phase").array, stored[1][::-1, ::-1])


def test_kinds_of_slices_that_do_not_repeat_a_place_are_one_volume(tmp_path):
    def alternate(dataset, n):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M" if n % 2 else "OTHER"]

    write_series(tmp_path, voxels(), Modality="MR", edit=alternate)
    assert read_header(tmp_path).shape == (7, 5, 6)


def test_names_are_split():
    assert split_kind("1.2.840:water") == ("1.2.840", "water") and split_kind("water") == (None, "water")
    assert split_kind("a:b") == ("a:b", "") and split_kind(None) == (None, "")
    assert split_series("gone#1.2.840:water")[1] == "1.2.840:water" and split_series("gone#water")[1] is None
