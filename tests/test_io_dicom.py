"""DICOM series made awkward on purpose, against SimpleITK's own series reader where it reads them right."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from io_dicom import new_file, save, voxels, write_enhanced, write_series
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

import mmfusion
from mmfusion.errors import ReadError, UnitsError, VoxelError
from mmfusion.io import load_volume, read_header
from mmfusion.io.tags import names_damage

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


@pytest.mark.parametrize("slope", [None, 0.0])
def test_slices_without_a_rescale_slope_beside_others_are_a_doubt_or_refused(tmp_path, slope):
    def lost(dataset, n):
        dataset.RescaleSlope = slope if n == 2 else 2.0

    stored = voxels()
    affine = write_series(tmp_path / "mr", stored, Modality="MR", edit=lost)
    volume = load_volume(tmp_path / "mr")
    same(volume, stored * np.where(np.arange(6) == 2, 1.0, 2.0), affine)
    assert volume.meta["doubts"][0].startswith("1 of 6 slices have no RescaleSlope")
    write_series(tmp_path / "ct", stored, edit=lost)
    with pytest.raises(UnitsError, match="HU cannot be known, DICOM lacks RescaleSlope"):
        read_header(tmp_path / "ct")


def test_one_file_of_the_folder_stands_for_its_series(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored)
    write_series(tmp_path / "other", voxels(seed=1))
    (tmp_path / "other" / "000_0.dcm").rename(tmp_path / "zzz.dcm")
    same(load_volume(tmp_path / "000_0.dcm"), stored, affine)


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

    def number(dataset, n):
        dataset.SOPInstanceUID = f"1.2.{n}"

    write_series(tmp_path / "two", stored, series_uid="1.2", edit=number)
    write_series(tmp_path / "second", stored + 1, series_uid="1.2", edit=number)
    for path in (tmp_path / "second").iterdir():
        path.rename(tmp_path / "two" / f"other_{path.name}")
    with pytest.raises(ReadError, match="6 files have the SOPInstanceUID and the place of others, but other pixels"):
        read_header(tmp_path / "two")

    def repeat(dataset, n):
        dataset.ImagePositionPatient[2], dataset.InstanceNumber = n // 2, 1

    write_series(tmp_path / "b", stored, series_uid="1.2", edit=repeat)
    with pytest.raises(ReadError, match=r"6 slices at 3 positions.*several frames \(time, echo, b-value\), no tag"):
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
    (tmp_path / "._000_0.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))  # as macOS writes
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


def compress(path, syntax):
    """Rewrite a file with its pixels compressed, by GDCM."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    ("syntax", "uid"),
    [
        (gdcm.TransferSyntax.JPEGLosslessProcess14, "1.2.840.10008.1.2.4.57"),
        (gdcm.TransferSyntax.JPEGLosslessProcess14_1, "1.2.840.10008.1.2.4.70"),
        (gdcm.TransferSyntax.JPEGLSLossless, "1.2.840.10008.1.2.4.80"),
        (gdcm.TransferSyntax.JPEG2000Lossless, "1.2.840.10008.1.2.4.90"),
        (gdcm.TransferSyntax.RLELossless, "1.2.840.10008.1.2.5"),
    ],
    ids=["JPEG lossless", "JPEG lossless SV1", "JPEG-LS", "JPEG 2000", "RLE"],
)
def test_lossless_compression_gives_the_same_voxels(tmp_path, syntax, uid, signed):
    stored = voxels((19, 17, 3), seed=2)
    stored = stored if signed else stored + 500
    stored[0, :2, 0] = (-32768, 32767) if signed else (0, 65535 - 32768)
    write_series(tmp_path / "plain", stored, edit=lambda d, n: setattr(d, "PixelRepresentation", int(signed)))
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    for path in (tmp_path / "packed").iterdir():
        compress(path, syntax)
        assert dcmread(path).file_meta.TransferSyntaxUID == uid
    plain, packed = load_volume(tmp_path / "plain"), load_volume(tmp_path / "packed")
    np.testing.assert_array_equal(packed.array, plain.array)
    assert packed.grid.same_as(plain.grid) and packed.array.min() == stored.min()


@pytest.mark.parametrize("syntax", [gdcm.TransferSyntax.JPEG2000Lossless, gdcm.TransferSyntax.RLELossless])
def test_a_compressed_multiframe_object_gives_the_same_voxels(tmp_path, syntax):
    write_enhanced(tmp_path, voxels((19, 17, 3)), range(3), [{}] * 3)  # GDCM writes positions in their order
    plain = load_volume(tmp_path)
    compress(tmp_path / "one.dcm", syntax)
    np.testing.assert_array_equal(load_volume(tmp_path).array, plain.array)


def squeeze(syntax):
    """An edit that says ``syntax`` and fills the pixels with four bytes that no decoder takes."""

    def edit(dataset, n):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset["PixelData"].VR, dataset.PixelData = "OB", encapsulate([b"abcd"])
        dataset["PixelData"].is_undefined_length = True

    return edit


def test_a_folder_named_dl_where_python_starts_does_no_harm(tmp_path):
    """GDCM's module would import it."""
    write_series(tmp_path / "scan", voxels())
    (tmp_path / "dl").mkdir()
    words = "from mmfusion.io import read_header; print(read_header('scan').shape)"
    path = os.pathsep.join(["", str(Path(mmfusion.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(7, 5, 6)"), done.stderr


@pytest.mark.parametrize("syntax", [HTJ2KLossless, MPEG2MPML])
def test_a_compression_that_is_not_decoded_is_named(tmp_path, syntax):
    write_series(tmp_path, voxels(), edit=squeeze(syntax))
    with pytest.raises(ReadError) as refused:
        load_volume(tmp_path)
    assert f".dcm: pixels are compressed as {syntax.name}, which is not decoded here. Export" in str(refused.value)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_damaged_compressed_pixels_are_named(tmp_path, syntax):
    write_series(tmp_path, voxels(), edit=squeeze(syntax))
    why = rf"\.dcm: pixels cannot be read \((gdcm|pydicom) cannot decode them; {re.escape(syntax.name)}\)\. Copy"
    with pytest.raises(ReadError, match=why):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (b"-10.0\\20.0", b"-1@.0\\20.0", r"_0\.dcm: DICOM lacks .*or has something else than numbers"),
        (b"\x28\0\x53\x10DS", b"\x28\0\x53\x10D\xac", r"_0\.dcm: RescaleSlope \(0028,1053\) is damaged\. Copy"),
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.2.1\0", r"_0\.dcm: pixels cannot be read \("),
    ],
)  # fmt: skip
def test_damaged_values_are_named_with_their_file(tmp_path, good, bad, message):
    write_series(tmp_path, voxels())
    path = tmp_path / "000_0.dcm"
    assert path.read_bytes().count(good) == 1
    path.write_bytes(path.read_bytes().replace(good, bad))
    with pytest.raises(ReadError, match=message):
        load_volume(tmp_path)


def test_a_damaged_value_of_a_frame_is_named(tmp_path):
    write_enhanced(tmp_path, voxels((7, 5, 3)), range(3), [{}] * 3)
    path = tmp_path / "one.dcm"
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x53\x10DS", b"\x28\0\x53\x10D\xac"))
    with pytest.raises(ReadError, match=r"one\.dcm: RescaleSlope of frame 0 is damaged\. Copy or export"):
        load_volume(tmp_path)


def test_a_damaged_value_that_is_not_needed_counts_as_absent(tmp_path):
    write_series(tmp_path, voxels(), PatientWeight=70, Modality="MR")
    path = tmp_path / "000_0.dcm"
    path.write_bytes(path.read_bytes().replace(b"\x10\0\x30\x10DS", b"\x10\0\x30\x10D\xac"))
    assert load_volume(tmp_path).array.shape == (7, 5, 6)


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
    with pytest.raises(ReadError, match=r"the series is in colors \(RGB\), not in gray values; export"):
        read_header(tmp_path)


def test_enhanced_multiframe_object(tmp_path):
    stored = voxels()
    write_series(tmp_path / "classic", stored)
    order = [3, 0, 5, 1, 4, 2]
    write_enhanced(tmp_path / "enhanced", stored[:, :, order], order, [{}] * 6)
    classic, enhanced = load_volume(tmp_path / "classic"), load_volume(tmp_path / "enhanced")
    assert enhanced.grid.same_as(classic.grid)
    np.testing.assert_array_equal(enhanced.array, classic.array)


def test_a_classic_multiframe_object_is_refused(tmp_path):
    write_series(tmp_path, voxels(), NumberOfFrames=3)
    with pytest.raises(
        ReadError, match=r"classic multi-frame object of 3 frames.*Export it as an enhanced multi-frame"
    ):
        read_header(tmp_path)


@pytest.mark.parametrize("length", [0, 60, 145, 500])
def test_damaged_files_are_no_slices_that_were_never_there(tmp_path, length):
    write_series(tmp_path, voxels())
    path = tmp_path / "000_0.dcm"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ReadError, match=r"1 DICOM files are damaged, the first is number 1 in order of name; copy or"):
        read_header(tmp_path)


def test_slices_with_one_uid_are_copies_only_at_one_place(tmp_path):
    stored = voxels()
    affine = write_series(tmp_path, stored, edit=lambda d, n: setattr(d, "SOPInstanceUID", "1.2.3"))
    same(load_volume(tmp_path), stored, affine)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = ""
        dataset.save_as(path)
    same(load_volume(tmp_path), stored, affine)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "a: too little memory to read it; free"),
        (OSError(5, "Input/output error"), r"a cannot be read \(In"),
    ],
)
def test_too_little_memory_and_a_broken_disk_are_no_damage(error, message):
    def read(path):
        raise error

    with pytest.raises(ReadError, match=message):
        names_damage(read)("a")


def test_a_deflated_bomb_is_refused(tmp_path):
    def inflate(dataset, n):
        dataset.ImageComments, dataset.file_meta.TransferSyntaxUID = "x", DeflatedExplicitVRLittleEndian
        dataset.add_new(0x00291010, "OB", bytes(70 * 2**20))

    write_series(tmp_path, voxels((7, 5, 1)), edit=inflate)
    with pytest.raises(ReadError, match=r"would inflate to more than \d+ MiB, \d+ times its size; that is more than"):
        read_header(tmp_path)
