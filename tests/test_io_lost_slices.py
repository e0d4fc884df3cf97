"""Files among the slices of a series that are damaged, packed, without preamble or elsewhere: read, or named."""

import gzip
import os

import numpy as np
import pydicom
import pytest
from io_dicom import save, voxels, write_series
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mmfusion.errors import ReadError
from mmfusion.io import load_volume, read_header
from mmfusion.io.sniff import begins_as_dicom, ending_of, stands_for_slice

STORED = voxels((7, 5, 6))


@pytest.fixture
def plain(tmp_path):
    """A series whose files have no ending, and what is read of it."""
    write_series(tmp_path / "mr", STORED, Modality="MR")
    for path in (tmp_path / "mr").iterdir():
        path.rename(path.with_name("IM" + path.name[:3]))
    return tmp_path / "mr", load_volume(tmp_path / "mr").array


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_slices_without_preamble_are_read(plain, syntax, meta):
    folder, array = plain
    for path in sorted(folder.iterdir())[3:]:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        save(dataset, path)
        start = 132 if meta else path.read_bytes().index(b"\x08\x00\x08\x00")
        path.write_bytes(path.read_bytes()[start:])
    np.testing.assert_array_equal(load_volume(folder).array, array)
    assert read_header(folder).doubts == ()


def test_no_text_begins_as_a_data_set(plain):
    folder, _ = plain
    assert begins_as_dicom(next(folder.iterdir()).read_bytes()[132:])
    for text in (
        b"subject,label\n1,2\n",
        b"\x08\x00 and text",
        b"\x08\x00\x08\x00CS\x04\x00ABCDtext behind",
        b"",
        bytes(99),
    ):
        assert not begins_as_dicom(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("IM005", b""),
        ("IM005", bytes(3000)),
        ("IM005", None),
        ("IM005", b"<html>404 Not Found</html>"),
        ("1.2.840.7", b"\x01\x00\x02" * 99),
        ("IM005.dcm.gz", b"\x1f\x8b"),
    ],
)
def test_what_stands_in_place_of_a_slice_is_refused(plain, name, content):
    folder, _ = plain
    path = folder / "IM005"
    raw = path.read_bytes()
    path.unlink()
    folder.joinpath(name).write_bytes(raw[700:] if content is None else content)
    number = sorted(entry.name for entry in folder.iterdir()).index(name) + 1
    with pytest.raises(
        ReadError, match=rf"1 DICOM files are damaged, the first is number {number} in order of name; copy"
    ):
        read_header(folder)


def test_a_link_that_leads_nowhere_is_a_lost_slice(plain):
    folder, _ = plain
    (folder / "IM005").unlink()
    (folder / "IM005").symlink_to("/not/fetched")
    with pytest.raises(ReadError, match=r"1 DICOM files are damaged, the first is number 6 in order"):
        read_header(folder)


def test_what_is_something_else_is_no_slice(plain):
    folder, array = plain
    others = {
        "README": b"text", "notes.txt": b"", "IM001.json": b"{}", "Thumbs.db": bytes(99), ".DS_Store": bytes(99),
        "._IM001": b"\0\5\x16\7" + bytes(99), "12345": b"\x89PNG" + bytes(9), "LICENSE2": "µ".encode("utf-16"),
    }  # fmt: skip
    for name, content in others.items():
        (folder / name).write_bytes(content)
    header = read_header(folder)
    assert header.notes == header.doubts == ()
    np.testing.assert_array_equal(load_volume(folder).array, array)


def test_what_may_be_a_slice_is_a_doubt(plain):
    folder, _ = plain
    (folder / "IM005.part").write_bytes(bytes(99))
    (folder / "latest").symlink_to("/gone")
    (doubt,) = read_header(folder).doubts
    assert doubt.startswith("2 files beside the slices are neither DICOM nor anything that is known, and may be slices")
    assert load_volume(folder).meta["doubts"] == [doubt]


def test_an_image_of_the_series_without_position_is_a_doubt(plain):
    folder, _ = plain
    dataset = pydicom.dcmread(folder / "IM000")
    del dataset.ImagePositionPatient
    dataset.save_as(folder / "IM000")
    assert read_header(folder).doubts == (
        "1 images of the series have no position and are left out. Export the series again.",
    )


def test_names_and_bytes_say_what_stands_for_a_slice():
    slices = {"I#.MRDC"}
    assert [stands_for_slice(name, bytes(9), slices) for name in ("I7.MRDC", "I7.bak", "x.MRDC", "7")] == [
        "yes", "", "perhaps", "yes",
    ]  # fmt: skip
    assert [ending_of(name) for name in ("a.NII.gz", "1.2.840.5", "x", ".dcm", "a.tar")] == [".gz", "", "", "", ".tar"]


def test_gzipped_slices_are_read(plain, tmp_path):
    folder, array = plain
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    np.testing.assert_array_equal(load_volume(folder).array, array)
    np.testing.assert_array_equal(load_volume(folder / "IM002.dcm.gz").array, array)
    cut = folder / "IM002.dcm.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(ReadError, match=r"IM002|1 DICOM files are damaged, the first is number 3"):
        load_volume(folder)


def test_plain_slices_that_are_named_as_if_gzipped_are_read(plain):
    folder, array = plain
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"{path.name}.dcm.gz"))
    np.testing.assert_array_equal(load_volume(folder).array, array)


def test_a_gzip_bomb_is_refused(tmp_path):
    write_series(tmp_path, STORED, edit=lambda d, n: setattr(d, "ImageComments", "x"))
    path = tmp_path / "000_0.dcm"
    raw = path.read_bytes()
    bomb = raw.replace(
        b"\x20\x00\x00\x40LT\x02\x00x ",
        b"\x20\x00\x00\x40UT\0\0" + (70 * 2**20).to_bytes(4, "little") + b"x" * (70 * 2**20),
    )
    assert len(bomb) > 70 * 2**20
    (tmp_path / "000_0.dcm.gz").write_bytes(gzip.compress(bomb, 1))
    path.unlink()
    with pytest.raises(ReadError, match=r"000_0\.dcm\.gz would inflate to more than 64 MiB"):
        read_header(tmp_path)


def test_a_series_in_two_folders_is_read_whole_by_its_uid(plain, tmp_path):
    folder, array = plain
    uid = pydicom.dcmread(folder / "IM000").SeriesInstanceUID
    other = tmp_path / ".more"
    other.mkdir()
    for name in ("IM003", "IM004"):
        (folder / name).rename(other / name)
    (other / "copy").hardlink_to(other / "IM004")
    write_series(tmp_path / "third", voxels(seed=3), Modality="MR")
    (tmp_path / "third" / "999.dcm").write_bytes(b"")
    header = read_header(f"{tmp_path}#{uid}")
    assert header.notes == ("1 files are copies of others; left out",)
    assert header.doubts[0].startswith("1 damaged DICOM files lie in other folders, and may be slices")
    np.testing.assert_array_equal(load_volume(f"{tmp_path}#{uid}").array, array)
    with pytest.raises(ReadError, match="holds no DICOM image"):
        read_header(tmp_path)


def test_series_without_uid_are_told_apart_by_what_they_have(tmp_path):
    for n in (1, 2):
        write_series(
            tmp_path / "new",
            voxels(seed=n),
            Modality="MR",
            SeriesNumber=n,
            edit=lambda d, _: d.pop("SeriesInstanceUID"),
        )
        for path in (tmp_path / "new").iterdir():
            path.rename(tmp_path / f"{n}_{path.name}")
    with pytest.raises(ReadError, match="holds 2 image series"):
        read_header(tmp_path)
    for name in (tmp_path / "2_000_0.dcm", f"{tmp_path}#MR-2-1.2.840.1-1.2.3"):
        np.testing.assert_array_equal(load_volume(name).array, voxels(seed=2)[::-1, ::-1])


def test_a_folder_that_may_not_be_read_is_named(plain, monkeypatch):
    folder, _ = plain

    def refused(_):
        raise PermissionError

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ReadError, match=r"folder .*mr cannot be read; check its permissions"):
        read_header(folder)
