"""Writing DICOM: SimpleITK (GDCM) and our own reader find the voxels where they were, with the values they had."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from mmfusion.errors import GeometryError, OptionError, UnitsError, VoxelError
from mmfusion.io import load_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Transform, Volume

UNITS = {"CT": "HU", "PT": "SUVbw", "MR": "a.u."}


def volume(modality: str = "CT", shape=(11, 13, 17)) -> Volume:
    """An oblique volume of integers, negative ones too; every plane has another range."""
    affine = Transform.rigid((10, -7, 20), (-30, 12, 5)).matrix @ np.diag([2.0, 1.5, 3.3, 1.0])
    array = np.random.default_rng(3).integers(-900, 1500, shape).astype(np.float32)
    array = np.maximum(array, 0) * np.linspace(0.01, 1, shape[2], dtype=np.float32) if modality == "PT" else array
    return Volume(array, affine, modality.lower(), UNITS[modality])


def read_with_itk(folder) -> Volume:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps = np.block([[direction, np.array(image.GetOrigin())[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    return Volume(sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def values_at_voxels_of(source: Volume, found: Volume) -> np.ndarray:
    """``found`` at the voxel centers of ``source``, which must be voxel centers of ``found`` too."""
    world = source.grid.to_world(np.moveaxis(np.indices(source.array.shape), 0, -1))
    index = found.grid.to_index(world)
    assert np.abs(index - np.round(index)).max() < 1e-3
    return found.array[tuple(np.moveaxis(np.round(index).astype(int), -1, 0))]


@pytest.mark.parametrize("axes", ["LPS", "LPI", "PIL", "RAS", "ASL"])
@pytest.mark.parametrize("modality", ["CT", "PT", "MR"])
def test_simpleitk_finds_every_voxel_where_it_was(tmp_path, modality, axes):
    source = volume(modality)
    save_dicom_series(source, tmp_path, modality=modality, patient_id="S-01", axes=axes)
    found = values_at_voxels_of(source, read_with_itk(tmp_path))
    error = 0 if modality == "CT" else np.abs(source.array).max() / 65534 * 1.01
    np.testing.assert_allclose(found, source.array, atol=error + 1e-3)


def test_our_own_reader_agrees(tmp_path):
    source = volume("PT")
    save_dicom_series(source, tmp_path, modality="PT", patient_id="S-01", axes="LPI")
    found = load_volume(tmp_path, modality="pet")
    assert found.units == "SUVbw"
    np.testing.assert_allclose(values_at_voxels_of(source, found), source.array, atol=0.03)


def test_files_follow_the_axes(tmp_path):
    source = volume("MR")
    save_dicom_series(source, tmp_path, modality="MR", patient_id="S-01", axes="PIL")
    first, second = (pydicom.dcmread(tmp_path / f"{n:04d}.dcm") for n in (1, 2))
    columns, rows = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    step = np.array(second.ImagePositionPatient, float) - np.array(first.ImagePositionPatient, float)
    assert columns[1] > 0.9 and rows[2] < -0.9 and step[0] > 1.8  # to P, to I, to L (in LPS)
    assert (first.Rows, first.Columns, len(list(tmp_path.glob("*.dcm")))) == (17, 13, 11)
    assert [float(x) for x in first.PixelSpacing] == pytest.approx([3.3, 1.5])


def test_pet_has_a_slope_a_slice_and_keeps_the_faint_slices(tmp_path):
    source = volume("PT")
    save_dicom_series(source, tmp_path, modality="PT", patient_id="S-01", axes="RAS")
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert len({float(f.RescaleSlope) for f in files}) == 17
    for k, file in enumerate(files):
        error = np.abs(file.pixel_array.T * float(file.RescaleSlope) - source.array[:, :, k])
        assert error.max() <= source.array[:, :, k].max() / 65534 * 1.001


def test_a_slice_of_zeros_is_written(tmp_path):
    source = volume("PT")
    source.array[:, :, 4] = 0
    save_dicom_series(source, tmp_path, modality="PT", patient_id="S-01")
    assert not pydicom.dcmread(tmp_path / "0005.dcm").pixel_array.any()


def test_header_is_valid_and_names_no_one(tmp_path):
    uids = {"study_uid": "1.2.3", "series_uid": "1.2.4", "frame_of_reference": "1.2.5"}
    save_dicom_series(volume(), tmp_path, modality="CT", patient_id="S-01", tags={"PatientWeight": 71.5}, **uids)
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    head = files[0]
    assert (head.StudyInstanceUID, head.SeriesInstanceUID, head.FrameOfReferenceUID) == (
        "1.2.3",
        "1.2.4",
        "1.2.5",
    )
    assert head.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert head.file_meta.MediaStorageSOPInstanceUID == head.SOPInstanceUID
    assert (head.PatientID, str(head.PatientName), head.PatientBirthDate, head.PatientWeight) == (
        *("S-01", "S-01", ""),
        71.5,
    )
    assert len({f.SOPInstanceUID for f in files}) == 17
    assert (float(head.RescaleSlope), float(head.RescaleIntercept)) == (1, -1024)


def test_frame_of_reference_is_the_volumes_own(tmp_path):
    source = volume().replace(meta={"frame_of_reference": "1.2.9"})
    save_dicom_series(source, tmp_path, modality="CT", patient_id="S-01")
    assert pydicom.dcmread(tmp_path / "0001.dcm").FrameOfReferenceUID == "1.2.9"


def test_same_uids_give_the_same_bytes(tmp_path):
    uids = {"study_uid": "1.2.3", "series_uid": "1.2.4", "frame_of_reference": "1.2.5"}
    for name in "ab":
        save_dicom_series(volume(), tmp_path / name, modality="CT", patient_id="S-01", **uids)
    assert (tmp_path / "a" / "0007.dcm").read_bytes() == (tmp_path / "b" / "0007.dcm").read_bytes()


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({}, {"modality": "US"}, OptionError, "'US' cannot be written. Known: CT, PT, MR"),
        ({}, {"axes": "LRS"}, OptionError, "'LRS' must name one of L/R"),
        ({}, {"axes": "XYZ"}, OptionError, "'XYZ' must name"),
        ({"units": "a.u."}, {}, UnitsError, "CT is written in HU, found a.u."),
        ({"array": np.full((3, 4, 5), np.nan)}, {}, VoxelError, "not finite"),
        ({"affine": np.eye(4) + np.eye(4, k=1) * [0, 0.1, 0, 0]}, {}, GeometryError, "not at right angles"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, changes, options, error, message):
    with pytest.raises(error, match=message):
        save_dicom_series(
            volume().replace(**changes), tmp_path / "s", **{"modality": "CT", "patient_id": "S-01", **options}
        )
    assert not (tmp_path / "s").exists()


def test_a_folder_with_a_series_is_refused(tmp_path):
    save_dicom_series(volume(), tmp_path, modality="CT", patient_id="S-01")
    with pytest.raises(OptionError, match="already holds DICOM files; give an empty folder"):
        save_dicom_series(volume(), tmp_path, modality="CT", patient_id="S-01")
