"""DICOM series made awkward on purpose, against SimpleITK's own series reader where it reads them right."""

import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import new_file, save, voxels, write_series
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage, JPEGLSLossless

from mmfusion.errors import ReadError, UnitsError, VoxelError
from mmfusion.io import load_volume, read_header

TILTED = (0.96, 0.28, 0, -0.224, 0.768, -0.6)  # an oblique plane: orthogonal unit vectors
NORMAL = np.cross(TILTED[:3], TILTED[3:])


def ras(affine):
    return np.diag([-1.0, -1, 1, 1]) @ affine


def same(volume, stored, affine):
    """Every stored voxel [column, row, slice] is found at its place in the world."""
    index = np.stack(np.meshgrid(*map(np.arange, stored.shape), indexing="ij"), -1)
    world = index @ ras(affine)[:3, :3].T + ras(affine)[:3, 3]
    found = np.rint(volume.grid.to_index(world)).astype(int)
    np.testing.assert_allclose(volume.grid.to_world(found), world, atol=1e-3)
    np.testing.assert_allclose(volume.array[tuple(np.moveaxis(found, -1, 0))], stored, rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 2.5)),
        ((1, 0, 0, 0, 1, 0), (0, 0, -2.5)),
        ((0, 1, 0, 0, 0, -1), (3, 0, 0)),
        ((1, 0, 0, 0, 0, -1), (0, 4, 0)),
        (TILTED, tuple(NORMAL * 3.3)),
    ],
    ids=["axial", "axial down", "sagittal", "coronal", "oblique"],
)
def test_slices_are_sorted_by_where_they_lie(tmp_path, axes, step):
    stored = voxels()
    affine = write_series(tmp_path, stored, axes=axes, step=step)
    volume = load_volume(tmp_path)
    same(volume, stored, affine)
    assert read_header(tmp_path).grid.same_as(volume.grid)
    assert (volume.units, volume.modality, volume.frame_of_reference) == ("HU", "ct", "1.2.3")


def test_geometry_and_values_agree_with_simpleitk(tmp_path):
    write_series(tmp_path, voxels(), axes=TILTED, step=tuple(NORMAL * 3.3), slopes=2.0, intercept=-1024)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image, volume = reader.Execute(), load_volume(tmp_path)
    for index in ((0, 0, 0), (6, 0, 5), (2, 4, 3)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        found = volume.grid.to_index(point)
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        assert volume.array[tuple(np.rint(found).astype(int))] == image[index]


def test_each_slice_has_its_own_rescale_slope(tmp_path):
    stored, slopes = voxels(), np.linspace(0.5, 3, 6)
    affine = write_series(tmp_path, stored, slopes=slopes, intercept=-7)
    same(load_volume(tmp_path), stored * slopes - 7, affine)


def test_one_file_of_the_folder_stands_for_its_series(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored)
    write_series(tmp_path / "other", voxels(seed=1))
    (tmp_path / "other" / "000_0.dcm").rename(tmp_path / "zzz.dcm")
    same(load_volume(tmp_path / "000_0.dcm"), stored, affine)


def test_several_series_are_listed_and_one_can_be_named(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored, series_uid="1.2.3.11111111", SeriesDescription="thin")
    for n, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"a{n}")
    write_series(tmp_path, voxels(seed=1), series_uid="1.2.3.22222222", SeriesDescription="thick", Modality="MR")
    with pytest.raises(
        ReadError, match=r"2 image series: \.\.\.11111111 CT number 4, 6 files; \.\.\.22222222 MR number 4"
    ):
        read_header(tmp_path)
    same(load_volume(tmp_path, series_uid="11111111"), stored, affine)
    with pytest.raises(ReadError, match="no DICOM image of series 9"):
        read_header(tmp_path, series_uid="9")


def test_missing_slices_are_counted(tmp_path):
    write_series(tmp_path, voxels((7, 5, 9)))
    for path in [*tmp_path.glob("*_3.dcm"), *tmp_path.glob("*_4.dcm"), *tmp_path.glob("*_7.dcm")]:
        path.unlink()
    with pytest.raises(ReadError, match=r"3 of 9 slices are missing, the first after 35\.0 mm .*spacing 2\.50 mm"):
        read_header(tmp_path)


def test_repeated_positions_are_refused_but_copies_of_a_file_are_not(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "000_0.dcm").read_bytes())
    volume = load_volume(tmp_path)
    same(volume, stored, affine)
    assert volume.meta["notes"] == ["1 files are copies of others; left out"]
    write_series(
        tmp_path / "b", stored, series_uid="1.2", edit=lambda d, n: d.ImagePositionPatient.__setitem__(2, n // 2)
    )
    with pytest.raises(ReadError, match=r"6 slices at 3 positions.*several frames \(time, echo, b-value\)"):
        read_header(tmp_path / "b")


def test_unequal_steps_are_refused_and_jitter_is_not(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path / "a", stored, edit=lambda d, n: shift(d, 0.015 * (-1) ** n))
    assert load_volume(tmp_path / "a").array.shape == stored.shape
    np.testing.assert_allclose(load_volume(tmp_path / "a").spacing[2], affine[2, 2], atol=0.01)
    write_series(tmp_path / "b", stored, edit=lambda d, n: shift(d, 0.8 * (n > 3)))
    with pytest.raises(ReadError, match=r"slices are 2\.50 to 3\.30 mm apart; equal steps"):
        read_header(tmp_path / "b")
    write_series(tmp_path / "c", stored, edit=lambda d, n: shift(d, 0.3 * n * n, axis=0))
    with pytest.raises(ReadError, match=r"shifted sideways by up to [\d.]+ mm from a straight stack"):
        read_header(tmp_path / "c")
    write_series(tmp_path / "d", voxels((7, 5, 40)), edit=lambda d, n: shift(d, 0.002 * n * n))
    with pytest.raises(ReadError, match=r"slices are 2\.50 to 2\.65 mm apart"):
        read_header(tmp_path / "d")


def shift(dataset, mm, axis=2):
    dataset.ImagePositionPatient[axis] = round(float(dataset.ImagePositionPatient[axis]) + mm, 4)


def test_mixed_orientations_and_sizes_are_refused(tmp_path):
    def turn(dataset, n):
        if n == 2:
            dataset.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]

    def widen(dataset, n):
        if n == 2:
            dataset.PixelSpacing = [1.1, 0.9]

    write_series(tmp_path / "a", voxels(), edit=turn)
    write_series(tmp_path / "b", voxels(), edit=widen)
    with pytest.raises(ReadError, match="different orientations"):
        read_header(tmp_path / "a")
    with pytest.raises(ReadError, match="different sizes or pixel spacings"):
        read_header(tmp_path / "b")


def test_gantry_tilt_gives_a_sheared_affine_with_a_note(tmp_path):
    stored, step = voxels(), (0, 2.5 * np.tan(np.radians(15)), 2.5)
    affine = write_series(tmp_path, stored, step=step)
    volume = load_volume(tmp_path)
    same(volume, stored, affine)
    assert "sheared by 15.0 degrees" in volume.meta["notes"][0]


def test_localizers_reports_and_other_files_are_left_out(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored, series_uid="1.2.9")

    def scout(dataset, n):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    write_series(tmp_path / "s", stored[:, :, :1], series_uid="1.2.9", edit=scout)
    (tmp_path / "s" / "000_0.dcm").rename(tmp_path / "scout.dcm")
    save(new_file(Modality="SR", SeriesInstanceUID="1.2.10"), tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    volume = load_volume(tmp_path)
    same(volume, stored, affine)
    assert volume.meta["notes"] == ["1 localizer images left out"]


def test_a_single_slice_takes_its_thickness_from_the_header(tmp_path):
    write_series(tmp_path / "a", voxels((7, 5, 1)))
    assert load_volume(tmp_path / "a").spacing == pytest.approx((0.8, 1.1, 9.0))
    write_series(tmp_path / "b", voxels((7, 5, 1)), SliceThickness=None)
    with pytest.raises(ReadError, match="single slice whose thickness"):
        read_header(tmp_path / "b")


def test_folders_and_files_without_an_image_are_named(tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        read_header(tmp_path / "nope")
    save(new_file(Modality="RTSTRUCT", SeriesInstanceUID="1.2.10"), tmp_path / "a" / "rs.dcm")
    with pytest.raises(ReadError, match=r"holds no DICOM image with a position \(found RTSTRUCT\)"):
        read_header(tmp_path / "a")
    (tmp_path / "x.bin").write_bytes(b"nothing")
    with pytest.raises(ReadError, match=r"x\.bin is not a DICOM file"):
        read_header(tmp_path / "x.bin")
    write_series(tmp_path / "b", voxels(), edit=lambda d, n: delattr(d, "ImageOrientationPatient"))
    with pytest.raises(ReadError, match=r"DICOM lacks .*ImageOrientationPatient"):
        read_header(tmp_path / "b")


def test_the_header_decides_the_modality_and_contradictions_are_refused(tmp_path):
    write_series(tmp_path, voxels(), Modality="MR")
    assert load_volume(tmp_path, modality="t1").units == "a.u."
    assert read_header(tmp_path, modality="mr_t1").modality == "mr"
    with pytest.raises(ReadError, match="is given as ct, but its DICOM modality is MR"):
        read_header(tmp_path, modality="ct")


def test_ct_without_rescaling_has_no_hounsfield_units(tmp_path):
    write_series(tmp_path, voxels(), edit=lambda d, n: delattr(d, "RescaleIntercept"))
    with pytest.raises(UnitsError, match=r"HU cannot be known, DICOM lacks .*RescaleIntercept \(0028,1052\)"):
        read_header(tmp_path)


def test_constant_and_cut_off_pixels_are_named(tmp_path):
    write_series(tmp_path / "a", np.zeros((7, 5, 6), np.int16))
    with pytest.raises(VoxelError, match="every voxel is 0"):
        load_volume(tmp_path / "a")
    write_series(tmp_path / "b", voxels(), edit=lambda d, n: setattr(d, "PixelData", d.PixelData[:20]))
    with pytest.raises(ReadError, match=r"\.dcm: pixels cannot be read \("):
        load_volume(tmp_path / "b")


def test_a_compression_that_cannot_be_decoded_is_named(tmp_path):
    def squeeze(dataset, n):
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        frame = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00abcd\xfe\xff\xdd\xe0\x00\x00\x00\x00"
        dataset["PixelData"].VR, dataset.PixelData = "OB", frame
        dataset["PixelData"].is_undefined_length = True

    write_series(tmp_path, voxels(), edit=squeeze)
    with pytest.raises(ReadError, match=r"compressed as JPEG-LS Lossless.*cannot be decoded here"):
        load_volume(tmp_path)


def test_no_name_or_birth_date_gets_out(tmp_path):
    write_series(tmp_path, voxels())
    volume = load_volume(tmp_path)
    assert "Secret" not in repr(volume.meta) and "1950" not in repr(volume.meta)


def test_color_pixels_are_refused(tmp_path):
    def color(dataset, n):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 7, 0, bytes(7 * 5 * 3 + 1)

    write_series(tmp_path, voxels(), Modality="MR", edit=color)
    with pytest.raises(ReadError, match="one gray value a pixel is expected"):
        load_volume(tmp_path)


def test_enhanced_multiframe_object(tmp_path):
    stored = voxels()
    write_series(tmp_path / "classic", stored)
    dataset = new_file(EnhancedMRImageStorage, Modality="MR", SeriesInstanceUID="1.2.77", Rows=5, Columns=7)
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 6, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    order = [3, 0, 5, 1, 4, 2]
    dataset.PixelData = np.stack([stored[:, :, n].T for n in order]).astype("<i2").tobytes()
    dataset.SharedFunctionalGroupsSequence = [
        nested(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [1.1, 0.8], "SliceThickness": 2.5},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        nested(
            PlanePositionSequence={"ImagePositionPatient": [-10, 20, 30 + 2.5 * n]},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 0},
        )
        for n in order
    ]
    save(dataset, tmp_path / "enhanced" / "one.dcm")
    classic, enhanced = load_volume(tmp_path / "classic"), load_volume(tmp_path / "enhanced")
    assert enhanced.grid.same_as(classic.grid)
    np.testing.assert_array_equal(enhanced.array, classic.array)


def nested(**groups):
    item = Dataset()
    for name, tags in groups.items():
        inner = Dataset()
        for tag, value in tags.items():
            setattr(inner, tag, value)
        setattr(item, name, [inner])
    return item
