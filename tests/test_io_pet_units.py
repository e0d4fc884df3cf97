"""PET without SUV: values as they are stored, and the ratio to a reference region."""

import numpy as np
import pytest
from io_dicom import pet_tags, voxels, write_series
from nibabel import Nifti1Image

from mmfusion.errors import OptionError, ReadError, UnitsError, VoxelError
from mmfusion.io import load_volume, read_header


@pytest.mark.parametrize(("units", "told"), [("BQML", "Bq/mL"), ("PROPCPS", "stored"), ("CNTS", "stored")])
def test_values_as_they_are_stored(tmp_path, units, told):
    stored, slopes = np.abs(voxels()), np.linspace(1, 6, 6)
    write_series(tmp_path, stored, slopes=slopes, **(pet_tags() | {"Units": units, "PatientWeight": None}))
    with pytest.raises(UnitsError, match="SUV cannot be computed"):
        load_volume(tmp_path, modality="pet")
    volume = load_volume(tmp_path, modality="pet", suv="none")
    np.testing.assert_allclose(volume.array[::-1, ::-1], stored * slopes, rtol=1e-6)
    assert volume.units == read_header(tmp_path, suv="none").units == told and not volume.meta["doubts"]
    assert volume.meta["notes"] == [f"values as they are stored, not SUV (Units {units})"]
    # a column that does not say PET takes what there is, and says so
    other = load_volume(tmp_path, modality="fdg")
    np.testing.assert_array_equal(other.array, volume.array)
    assert other.units == told and other.meta["doubts"][0].startswith("the values are not SUV: SUV cannot be computed")
    uncorrected = tmp_path / "uncorrected"
    write_series(uncorrected, stored, **(pet_tags() | {"CorrectedImage": ["DECY"]}))
    assert "may not be corrected for attenuation" in read_header(uncorrected, suv="none").doubts[0]


def test_a_ratio_to_a_reference_region(tmp_path):
    stored = np.abs(voxels((7, 5, 6))).astype(np.int16)
    affine = write_series(tmp_path / "pet", stored, **(pet_tags() | {"PatientWeight": None}))
    labels = np.zeros(stored.shape, np.int16)
    labels[1:4, 2:4, 1:3], labels[5, 1, 4] = 8, 2035  # as FreeSurfer numbers them
    file = tmp_path / "labels.nii.gz"
    Nifti1Image(labels, np.diag([-1.0, -1, 1, 1]) @ affine).to_filename(file)
    for text, inside in (("8", labels == 8), ("8+2035", labels > 0)):
        volume = load_volume(tmp_path / "pet", modality="pet", suvr=f"{file}#{text}")
        np.testing.assert_allclose(volume.array[::-1, ::-1], stored / stored[inside].mean(), rtol=1e-5)
        assert volume.units == "SUVR" and f"{inside.sum()} voxels" in volume.meta["notes"][-1]
    assert read_header(tmp_path / "pet", suvr=f"{file}#8").units == "SUVR"
    with pytest.raises(VoxelError, match=r"labels\.nii\.gz has no voxel of label 47; name a label"):
        load_volume(tmp_path / "pet", suvr=f"{file}#8+47")
    with pytest.raises(OptionError, match="suvr names label 0, which is the background"):
        read_header(tmp_path / "pet", suvr=f"{file}#8+0")
    with pytest.raises(OptionError, match="suvr is FILE#LABEL, the number of a region"):
        read_header(tmp_path / "pet", suvr=str(file))
    with pytest.raises(ReadError, match="nowhere.nii does not exist"):
        read_header(tmp_path / "pet", suvr=f"{tmp_path}/nowhere.nii#1")
    Nifti1Image(labels, np.diag([1.0, 1, 1, 1])).to_filename(file)  # another world
    with pytest.raises(VoxelError, match="reference region 8 of .* no voxel of the scan lies in it"):
        load_volume(tmp_path / "pet", suvr=f"{file}#8")
