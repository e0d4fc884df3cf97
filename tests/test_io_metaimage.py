"""MHA, MHD and NRRD: the world of ITK arrives in ours."""

import numpy as np
import pytest
import SimpleITK as sitk

from mmfusion.cohort.files import files_of
from mmfusion.errors import GeometryError, OrientationError, ReadError
from mmfusion.io import load_volume, read_header


def image(shape=(11, 13, 17), seed=0):
    found = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=shape[::-1]).astype(np.float32))
    found.SetSpacing((0.9, 1.1, 3.0))
    found.SetOrigin((5.0, -40.0, 12.0))
    c, s = np.cos(0.3), np.sin(0.3)
    found.SetDirection((c, -s, 0, s, c, 0, 0, 0, -1))
    return found


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd"])
def test_every_voxel_lies_where_itk_says(tmp_path, name):
    source = image()
    sitk.WriteImage(source, str(tmp_path / name))
    volume, header = load_volume(tmp_path / name, modality="ct"), read_header(tmp_path / name)
    assert header.grid.same_as(volume.grid) and volume.units == "HU"
    for index in ((0, 0, 0), (10, 3, 16), (4, 12, 7)):
        point = np.array(source.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        found = np.rint(volume.grid.to_index(point)).astype(int)
        np.testing.assert_allclose(volume.grid.to_world(found), point, atol=1e-4)
        assert volume.array[tuple(found)] == source[index]


def test_nrrd_without_a_space_has_no_left_and_right(tmp_path):
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 4 5\nspacings: 1 2 3\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(60))
    with pytest.raises(OrientationError, match=r"a\.nrrd names no space; left and right are unknown"):
        read_header(tmp_path / "a.nrrd")
    (tmp_path / "a.nhdr").write_bytes(header.rstrip() + b"\ndata file: a.raw\n")
    (tmp_path / "a.raw").write_bytes(bytes(60))
    with pytest.raises(OrientationError, match=r"a\.nhdr names no space; left and right are unknown"):
        read_header(tmp_path / "a.nhdr")


def test_frames_need_a_choice(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)  # [t, z, y, x]
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "a.mha"))
    with pytest.raises(ReadError, match=r"shape \(4, 5, 6, 3\): 3 frames"):
        read_header(tmp_path / "a.mha")
    for frame, expected in {"last": array[2], "mean": array.mean(0)}.items():
        volume = load_volume(tmp_path / "a.mha", frame=frame)
        np.testing.assert_allclose(volume.array[::-1, ::-1], expected.T, atol=1e-6)  # x and y turn from LPS to RAS


def test_vector_2d_and_damaged_files_are_named(tmp_path):
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorFloat32, 3), str(tmp_path / "v.mha"))
    with pytest.raises(ReadError, match=r"v\.mha has 3 values a voxel"):
        read_header(tmp_path / "v.mha")
    sitk.WriteImage(sitk.Image([4, 5], sitk.sitkFloat32), str(tmp_path / "flat.mha"))
    with pytest.raises(GeometryError, match=r"shape \(4, 5\): a 2D image"):
        read_header(tmp_path / "flat.mha")
    (tmp_path / "x.nrrd").write_bytes(b"nothing")
    with pytest.raises(ReadError, match=r"x\.nrrd cannot be read"):
        read_header(tmp_path / "x.nrrd")


def test_missing_pixel_file_is_found_when_reading(tmp_path):
    sitk.WriteImage(image(), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(ReadError, match=r"a\.mhd cannot be read: .*Copy or export it again"):
        load_volume(tmp_path / "a.mhd")


def test_a_header_brings_the_voxels_that_it_names(tmp_path):
    sitk.WriteImage(image(), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").rename(tmp_path / "doe.raw")
    header = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(header.replace("a.raw", "doe.raw"))
    assert files_of(tmp_path / "a.mhd") == [tmp_path / "a.mhd", tmp_path / "doe.raw"]
