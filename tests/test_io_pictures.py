"""DICOM images that are no stack of gray values, or not in the units of their modality; and tomograms that are one."""

import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import item, new_file, save, voxels, write_enhanced, write_series
from pydicom import dcmread

from mmfusion.cohort import build_index
from mmfusion.errors import ReadError, UnitsError
from mmfusion.io import find_series, load_volume, read_header

NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"
TILTED = [0.96, 0.28, 0, -0.224, 0.768, -0.6]


def write_tomogram(folder, stored, *, step=4.0, axes=TILTED, kind="RECON TOMO", order=None, **tags):
    """A classic NM object of ``stored [column, row, slice]`` whose frame n is slice ``order[n]``."""
    columns, rows, count = stored.shape
    order = list(range(count)) if order is None else order
    place = item(DetectorInformationSequence={"ImagePositionPatient": [-10, 20, 30], "ImageOrientationPatient": axes})
    base = {
        "Modality": "NM", "ImageType": ["ORIGINAL", "PRIMARY", kind, "EMISSION"], "SeriesInstanceUID": "1.2.55",
        "StudyInstanceUID": "1.2.840.1", "Rows": rows, "Columns": columns, "NumberOfFrames": count,
        "NumberOfSlices": count, "SliceVector": [n + 1 for n in order], "SpacingBetweenSlices": step,
        "SliceThickness": 4.0, "PixelSpacing": [1.1, 0.8], "SamplesPerPixel": 1, "BitsAllocated": 16,
        "PhotometricInterpretation": "MONOCHROME2", "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "DetectorInformationSequence": place.DetectorInformationSequence,
    }  # fmt: skip
    dataset = new_file(NUCLEAR, **(base | tags))
    dataset.PixelData = np.ascontiguousarray(stored[:, :, order].T.astype("<i2")).tobytes()
    return save(dataset, folder / "spect.dcm")


@pytest.mark.parametrize("step", [4.0, -4.0])
def test_the_sign_of_the_spacing_says_to_which_side_a_tomogram_is_stacked(tmp_path, step):
    stored = voxels((7, 5, 9))
    write_tomogram(tmp_path, stored, step=step, order=[3, 0, 8, 1, 4, 2, 7, 5, 6])
    volume = load_volume(tmp_path, modality="spect")
    normal = np.cross(TILTED[:3], TILTED[3:])
    for index in ((0, 0, 0), (6, 1, 8), (2, 4, 3)):
        columns, rows, slices = index
        place = np.array([-10, 20, 30]) + 0.8 * columns * np.array(TILTED[:3]) + 1.1 * rows * np.array(TILTED[3:])
        found = volume.grid.to_index((place + step * slices * normal) * [-1, -1, 1])
        np.testing.assert_allclose(found, np.rint(found), atol=1e-4)
        assert volume.array[tuple(np.rint(found).astype(int))] == stored[index]
    assert (volume.units, volume.modality) == ("a.u.", "spect")


@pytest.mark.parametrize("step", [4.0, -4.0])
def test_a_tomogram_lies_where_itk_finds_it(tmp_path, step):
    stored = voxels((7, 5, 9))
    image = sitk.ReadImage(str(write_tomogram(tmp_path, stored, step=step)))
    volume = load_volume(tmp_path)
    for index in ((0, 0, 0), (6, 1, 8), (2, 4, 3)):
        found = volume.grid.to_index(np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1])
        assert volume.array[tuple(np.rint(found).astype(int))] == image[index] == stored[index]


@pytest.mark.parametrize("tags", [{"SpacingBetweenSlices": None}, {"SliceVector": [1, 2]}])
def test_a_tomogram_whose_slices_are_not_placed_is_refused(tmp_path, tags):
    write_tomogram(tmp_path, voxels((7, 5, 9)), **tags)
    with pytest.raises(ReadError, match=r"SpacingBetweenSlices \(0018,0088\), whose sign .* or SliceVector"):
        read_header(tmp_path)


@pytest.mark.parametrize("kind", ["STATIC", "GATED", "TOMO", "RECON GATED TOMO"])
def test_other_nuclear_medicine_is_named_and_left_out(tmp_path, kind):
    write_tomogram(tmp_path / "S01" / "nm", voxels((7, 5, 9)), kind=kind)
    with pytest.raises(ReadError, match=rf"nuclear medicine of the kind {kind}, not RECON TOMO"):
        read_header(tmp_path / "S01" / "nm")
    write_series(tmp_path / "S01" / "ct", voxels())
    index = build_index(tmp_path)
    assert set(index.cases[0].images) == {"ct"} and f"of the kind {kind}" in index.others[0].reason


def test_tomograms_become_a_column_and_their_attenuation_maps_do_not(tmp_path):
    write_tomogram(tmp_path / "S01" / "a", voxels((7, 5, 9)))
    kinds = ["ORIGINAL", "PRIMARY", "RECON TOMO", "TRANSMISSION"]
    write_tomogram(tmp_path / "S01" / "b", voxels((7, 5, 9)), ImageType=kinds, SeriesInstanceUID="1.2.56")
    index = build_index(tmp_path)
    assert [case.images["spect"].name for case in index.cases] == ["a"]
    assert [one.reason for one in index.others] == ["an attenuation map"]


def test_a_mosaic_is_never_a_picture(tmp_path):
    kinds = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    times = {"edit": lambda d, n: setattr(d, "AcquisitionTime", f"1000{n:02d}"), "step": (0, 0, 0)}
    write_series(tmp_path / "S01" / "bold", voxels((12, 12, 4)), Modality="MR", ImageType=kinds, **times)
    for frame in (None, "first", "mean"):
        with pytest.raises(ReadError, match=r"bold: the series is a mosaic .*; convert it to NIfTI by dcm2niix"):
            read_header(tmp_path / "S01" / "bold", frame=frame)
    write_series(tmp_path / "S01" / "ct", voxels())
    index = build_index(tmp_path)
    assert set(index.cases[0].images) == {"ct"} and "a mosaic" in index.others[0].reason


def test_an_enhanced_object_may_keep_the_word_mosaic(tmp_path):
    stored = voxels()
    write_enhanced(tmp_path, stored, range(6), [{}] * 6)
    path = tmp_path / "one.dcm"
    dataset = dcmread(path)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    dataset.save_as(path)
    assert load_volume(tmp_path).array.shape == stored.shape


@pytest.mark.parametrize("color", ["PALETTE COLOR", "RGB", "YBR_FULL"])
def test_colors_are_no_gray_values(tmp_path, color):
    write_series(tmp_path, voxels(), Modality="MR", edit=lambda d, n: setattr(d, "PhotometricInterpretation", color))
    with pytest.raises(ReadError, match=rf"the series is in colors \({color}\), not in gray values; export"):
        read_header(tmp_path)
    assert find_series(tmp_path)[0].unusable.startswith("in colors")


def test_one_color_picture_among_the_slices_is_left_out_and_named(tmp_path):
    def edit(dataset, n):
        if n == 19:  # lies beyond the others, so nothing is missing
            dataset.PhotometricInterpretation = "PALETTE COLOR"

    stored = voxels((7, 5, 20))
    write_series(tmp_path, stored, edit=edit)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, stored[::-1, ::-1, :19])
    number = 1 + sorted(path.name for path in tmp_path.iterdir()).index(f"{19 * 5 % 20:03d}_19.dcm")
    assert volume.meta["notes"][0].startswith(f"1 images left out (number {number} in order of name): the first is in")
    assert find_series(tmp_path)[0].unusable == ""


def test_ct_that_is_not_in_hounsfield_units_is_not_ct(tmp_path):
    write_series(tmp_path / "S01" / "z", voxels(), RescaleType="Z_EFF")
    with pytest.raises(UnitsError, match=r"values are not HU, RescaleType \(0028,1054\) is Z_EFF\. Take the series"):
        read_header(tmp_path / "S01" / "z", modality="ct")
    header = read_header(tmp_path / "S01" / "z", modality="zeff")
    assert (header.units, header.notes) == ("a.u.", ("values are not HU: RescaleType is Z_EFF; they stay as they are",))
    write_series(tmp_path / "S01" / "ct", voxels(), RescaleType="HU", SeriesNumber=9)
    index = build_index(tmp_path)
    assert index.cases[0].images["ct"].name == "ct" and "of RescaleType Z_EFF" in index.others[0].reason


def test_enhanced_ct_says_its_units_in_its_frames(tmp_path):
    write_enhanced(tmp_path, voxels(), range(6), [{}] * 6)
    path = tmp_path / "one.dcm"
    dataset = dcmread(path)
    dataset.Modality = "CT"
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleType = "MGML"
    dataset.save_as(path)
    with pytest.raises(UnitsError, match=r"RescaleType \(0028,1054\) is MGML"):
        read_header(tmp_path, modality="ct")
    assert "MGML" in find_series(tmp_path)[0].unusable


def test_ct_of_unspecified_units_is_doubted(tmp_path):
    """ITK writes so, whatever the values are."""
    write_series(tmp_path, voxels(), RescaleType="US")
    header = read_header(tmp_path, modality="ct")
    assert header.units == "HU" and "RescaleType is US (unspecified)" in header.doubts[0]
    assert find_series(tmp_path)[0].unusable == ""
