"""Real scans: geometry as SimpleITK and nibabel find it, SUV by hand from the tags, values in the known ranges."""

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from mmfusion.errors import UnitsError
from mmfusion.io import find_series, load_mask, load_volume, read_header
from mmfusion.io.times import parse_time

pytestmark = pytest.mark.realdata


def by_simpleitk(folder):
    """Image and its ``[4, 4]`` index to RAS affine."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, affine = reader.Execute(), np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ affine


def assert_same(volume, array, affine, atol_mm=1e-2, rtol=1e-5):
    """The turned volume against the stored voxels of another reader."""
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), affine))
    np.testing.assert_allclose(
        volume.grid.corners(), type(volume.grid)(canonical.shape, canonical.affine).corners(), atol=atol_mm
    )
    np.testing.assert_allclose(volume.array, canonical.get_fdata(dtype=np.float32), rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("name", ["T2", "ADC", "DWI_calcb"])
def test_oblique_mr_agrees_with_simpleitk(testdata, name):
    folder = testdata / "prostatex0000_dicom" / name
    volume = load_volume(folder, modality="mr")
    assert_same(volume, *by_simpleitk(folder))
    assert volume.meta["stored_orientation"] == "LPS"


def test_one_sarcoma_patient(testdata):
    study = testdata / "sts_dicom" / "STS_002"
    ct, pet, mr = (load_volume(study / name) for name in ("CT", "PET", "MR_T1"))
    assert (ct.array.shape, pet.array.shape, mr.array.shape) == ((161, 143, 48), (30, 27, 48), (115, 90, 35))
    assert (ct.units, pet.units, mr.units) == ("HU", "SUVbw", "a.u.")
    assert ct.array.min() >= -1024 and 300 < ct.array.max() < 3072
    assert pet.array.min() >= 0 and 3 < pet.array.max() < 50
    assert ct.frame_of_reference == pet.frame_of_reference == mr.frame_of_reference != ""
    mask = load_mask(study / "CT_mask", ct.grid)
    assert mask.frame_of_reference == ct.frame_of_reference
    milliliters = mask.array.sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    # the polygons' own area (shoelace) times the slice step: a second way to the same volume
    drawn = pydicom.dcmread(study / "CT_mask" / "RS.dcm").ROIContourSequence[0].ContourSequence
    area = 0.0
    for contour in drawn:
        x, y, _ = np.reshape(contour.ContourData, (-1, 3)).astype(float).T
        area += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert milliliters == pytest.approx(area * 3.27 / 1000, rel=0.02)
    assert pet.array[load_mask(study / "CT_mask", pet.grid).array > 0].max() == pytest.approx(pet.array.max(), rel=0.3)


def test_ct_and_mr_of_the_sarcoma_study_agree_with_simpleitk(testdata):
    for name in ("CT", "MR_T1", "PET"):
        folder = testdata / "sts_dicom" / "STS_004" / name
        # GDCM rounds the small PET slopes to float32
        assert_same(load_volume(folder), *by_simpleitk(folder), rtol=1e-3 if name == "PET" else 1e-5)


@pytest.mark.slow
def test_the_whole_sarcoma_study_is_found_and_readable(testdata):
    counts = []
    series = find_series(testdata / "sts_dicom", progress=lambda *seen: counts.append(seen))
    assert len(series) == 80 and counts[-1][0] - counts[-1][1] == sum(len(one.files) for one in series)
    for patient in {one.patient_id for one in series}:
        own = {one.modality: one for one in series if one.patient_id == patient}
        assert set(own) == {"CT", "PT", "MR", "RTSTRUCT"}
        assert len({one.frame_of_reference for one in own.values()}) == 1
        assert own["RTSTRUCT"].referenced_series
        for modality in ("CT", "PT", "MR"):
            header, one = read_header(own[modality].folder), own[modality]
            assert header.shape == one.shape and header.orientation == "LPS"
            np.testing.assert_allclose(header.spacing, one.spacing, atol=0.01)


def test_suv_of_a_raw_whole_body_pet_by_hand(testdata):
    folder = testdata / "qin_headneck_pet_dicom" / "PET"
    volume = load_volume(folder, modality="pet")
    # 123.6 kg, 587.93 MBq at 08:45:00, scan at 10:27:31.687, half-life 6586.2 s
    elapsed = (10 - 8) * 3600 + (27 - 45) * 60 + 31.687
    factor = 123600 / (587.93e6 * 0.5 ** (elapsed / 6586.2))
    array, affine = by_simpleitk(folder)
    first = pydicom.dcmread(next(folder.glob("*.dcm")))
    dose = float(first.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose)
    assert dose == pytest.approx(587.93e6, rel=1e-4)
    # each slice has its own slope, which SimpleITK's series reader does not honor: rescale by hand
    assert volume.grid.shape == (168, 168, 160)
    for path in sorted(folder.glob("*.dcm"))[::40]:
        dataset = pydicom.dcmread(path)
        k = int(np.rint((float(dataset.ImagePositionPatient[2]) - volume.affine[2, 3]) / volume.spacing[2]))
        expected = dataset.pixel_array.T * float(dataset.RescaleSlope) * factor
        np.testing.assert_allclose(volume.array[::-1, ::-1, k], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(volume.grid.center, nib.affines.apply_affine(affine, (83.5, 83.5, 79.5)), atol=0.02)
    assert array.shape == volume.array.shape and 1 < np.percentile(volume.array[volume.array > 0.2], 99) < 30


def test_the_decay_rule_agrees_with_the_decay_factors_that_the_scanner_wrote(testdata):
    """DecayFactor (0054,1321) of a slice is that from the reference time to its frame, by the scanner's own account."""
    rate = np.log(2) / 6586.2
    implied = []
    for path in (testdata / "qin_headneck_pet_dicom" / "PET").glob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        within = rate * float(header.ActualFrameDuration) / 1000
        since = np.log(float(header.DecayFactor) * -np.expm1(-within) / within) / rate
        implied.append((parse_time(header.AcquisitionTime).total_seconds()) - since)
    assert len(implied) == 160
    # the reference that SUV takes for START: SeriesTime, 10:27:31.687
    np.testing.assert_allclose(implied, (10 * 60 + 27) * 60 + 31.687, atol=1)


def test_suv_by_lean_body_mass_of_a_raw_pet_by_hand(testdata):
    folder = testdata / "qin_headneck_pet_dicom" / "PET"  # the DICOM has weight and sex, but no height
    with pytest.raises(UnitsError, match=r"DICOM lacks PatientSize \(0010,1020\)\. Give height_cm in the manifest"):
        read_header(folder, suv="lbm")
    lean = load_volume(folder, suv="lbm", pet={"height_cm": 180})
    mass = 9270 * 123.6 / (6680 + 216 * 123.6 / 1.8**2)
    np.testing.assert_allclose(lean.array, load_volume(folder).array * np.float32(mass / 123.6), rtol=1e-5)


def test_stored_suv_by_body_weight_is_no_other(testdata):
    with pytest.raises(UnitsError, match="SUV normalized by BW, but SUVlbm is wanted"):
        read_header(testdata / "sts_dicom" / "STS_002" / "PET", suv="lbm")


def test_a_real_series_in_a_zip_file(testdata, tmp_path):
    folder = testdata / "sts_dicom" / "STS_004" / "PET"
    packed = shutil.make_archive(str(tmp_path / "pet"), "zip", folder)
    np.testing.assert_array_equal(load_volume(packed).array, load_volume(folder).array)


def test_templates_stored_with_x_flipped_lie_on_each_other(testdata):
    folder = testdata / "mni_templates_2mm"
    flipped, straight = nib.load(folder / "SPM_SPECT.nii.gz"), nib.load(folder / "Rorden_scct.nii.gz")
    spect = load_volume(folder / "SPM_SPECT.nii.gz")
    assert spect.meta["stored_orientation"] == "".join(nib.aff2axcodes(flipped.affine))
    assert_same(spect, flipped.get_fdata(), flipped.affine)
    assert_same(load_volume(folder / "Rorden_scct.nii.gz", modality="ct"), straight.get_fdata(), straight.affine)
    stored = {path.name: read_header(path).orientation for path in folder.glob("*.nii.gz")}
    assert len(set(stored.values())) == 2


def test_phantom_and_ms_scans_agree_with_nibabel(testdata):
    for path in (
        testdata / "mri_dir_meat_phantom_1p5mm" / "MR_T2.nii.gz",
        testdata / "open_ms" / "longitudinal_raw" / "patient01" / "study1_T2W.nii.gz",
    ):
        image = nib.load(path)
        assert_same(load_volume(path), image.get_fdata(), image.affine)
