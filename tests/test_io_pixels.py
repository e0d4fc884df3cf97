"""Pixels read from where they lie in a DICOM file, against pydicom's own decoding."""

import numpy as np
import pydicom
import pytest
from io_dicom import new_file, save, voxels, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from mmfusion.errors import ReadError
from mmfusion.io import load_volume
from mmfusion.io.dicom import pixels_of
from mmfusion.io.pixels import plain_plane
from mmfusion.io.tags import PIXELS, lenient_dicom, read_tags

TAGS = ("SOPClassUID", "Rows", "Columns", *PIXELS)


def written(path, raw, syntax=ExplicitVRLittleEndian, allocated=16, stored=16, signed=1, **tags):
    """A file of 5 rows and 7 columns whose pixels are the bytes ``raw``."""
    dataset = new_file(Rows=5, Columns=7, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation, dataset.PixelData = signed, raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if allocated == 8 and syntax != ImplicitVRLittleEndian else "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(dataset, name, value)
    return save(dataset, path)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("allocated", [8, 16, 32])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("unused", [0, 3])
def test_plain_pixels_are_those_of_pydicom(tmp_path, syntax, allocated, signed, unused):
    raw = np.random.default_rng(0).bytes(5 * 7 * allocated // 8)  # bits that are not stored hold anything
    path = written(tmp_path / "a.dcm", raw, syntax, allocated, allocated - unused, signed)
    found, expected = plain_plane(path, read_tags(path, TAGS)), pydicom.dcmread(path).pixel_array
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_bits_below_those_stored_are_dropped(tmp_path):
    values = np.random.default_rng(0).integers(-2048, 2048, (5, 7)).astype(np.int16)
    path = written(tmp_path / "a.dcm", (values * 16 + 9).astype("<i2").tobytes(), stored=12, HighBit=15)
    np.testing.assert_array_equal(plain_plane(path, read_tags(path, TAGS)), values)


def test_frames_are_read_one_by_one(tmp_path):
    values = voxels((3, 5, 7))
    path = written(tmp_path / "a.dcm", values.astype("<i2").tobytes(), NumberOfFrames=3)
    header = read_tags(path, TAGS)
    for n in range(3):
        np.testing.assert_array_equal(plain_plane(path, header, n), values[n])
    assert plain_plane(path, header, 3) is None


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_other_encodings_are_left_to_pydicom(tmp_path, syntax):
    def encode(dataset, n):
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = syntax

    stored = voxels()
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored, edit=encode)
    path = next((tmp_path / "b").iterdir())
    assert plain_plane(path, read_tags(path, TAGS)) is None
    np.testing.assert_array_equal(load_volume(tmp_path / "b").array, load_volume(tmp_path / "a").array)


def test_slices_of_different_types_share_a_volume(tmp_path):
    def wider(dataset, n):
        if n == 2:
            dataset.PixelRepresentation = 0

    stored = np.abs(voxels())
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored, edit=wider)
    np.testing.assert_array_equal(load_volume(tmp_path / "b").array, load_volume(tmp_path / "a").array)


def test_a_header_longer_than_what_is_read_at_first_is_read_whole(tmp_path):
    def longer(dataset, n):
        dataset.ImageComments = "x" * 10240
        dataset.add_new(0x00291010, "OB", bytes(100_000))

    stored = voxels()
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored, edit=longer)
    np.testing.assert_array_equal(load_volume(tmp_path / "b").array, load_volume(tmp_path / "a").array)


def test_pixels_that_end_too_early_are_named(tmp_path):
    write_series(tmp_path, voxels())
    path = sorted(tmp_path.iterdir())[2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ReadError, match=rf"{path.name}: pixels cannot be read \("):
        load_volume(tmp_path)


@pytest.mark.parametrize("explicit", [True, False])
def test_an_encoding_other_than_the_meta_header_says_is_left_to_pydicom(tmp_path, explicit):
    """As pydicom finds out by the bytes of the first element."""
    raw = np.random.default_rng(0).bytes(70)
    path = written(tmp_path / "a.dcm", raw, ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)
    content, short, long = path.read_bytes(), b"UI\x12\x001.2.840.10008.1.2\0", b"UI\x14\x001.2.840.10008.1.2.1\0"
    old, new = (long, short) if explicit else (short, long)
    length = int.from_bytes(content[140:144], "little") + len(new) - len(old)
    path.write_bytes(content[:140] + length.to_bytes(4, "little") + content[144:].replace(old, new))
    with lenient_dicom():
        assert plain_plane(path, read_tags(path, TAGS)) is None
        np.testing.assert_array_equal(pixels_of(path), np.frombuffer(raw, "<i2").reshape(5, 7))
