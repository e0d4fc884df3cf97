"""DICOM in zip files, and zip files that mean harm."""

import stat
import struct
import tempfile
import zipfile

import numpy as np
import pytest
from io_dicom import new_file, save, voxels, write_enhanced, write_series

from mmfusion.errors import ReadError
from mmfusion.io import load_volume, read_header, zipped

STORED = voxels()


@pytest.fixture(autouse=True)
def nothing_is_unpacked(tmp_path, monkeypatch):
    """No test may leave anything in the temporary folder, or create anything beside the zip file."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir()) and not [*tmp_path.glob("evil*"), *tmp_path.parent.glob("evil*")]


def pack(path, *folders, name="study/{}", extra=()):
    """A zip file of the files of folders, and of ``extra`` (name or info, bytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in folders:
            for file in sorted(folder.iterdir()):
                archive.write(file, name.format(f"{folder.name}_{file.name}"))
        for one, content in extra:
            archive.writestr(one, content)
    return path


@pytest.fixture
def ct(tmp_path):
    write_series(tmp_path / "ct", STORED, series_uid="1.2.3.11111111", SeriesDescription="thin")
    return tmp_path / "ct"


def test_a_zip_file_is_read_like_its_folder(ct, tmp_path):
    path = pack(tmp_path / "Study.ZIP", ct, extra=[("study/", b""), ("study/notes.txt", b"nothing")])
    packed, plain = load_volume(path, modality="ct"), load_volume(ct)
    np.testing.assert_array_equal(packed.array, plain.array)
    assert packed.grid.same_as(plain.grid) and read_header(path).grid.same_as(plain.grid)
    assert packed.meta["source"] == str(path) and packed.meta["notes"] == []


def test_one_series_of_several_is_chosen_by_the_same_rules(ct, tmp_path):
    write_series(tmp_path / "mr", voxels(seed=1), series_uid="1.2.3.22222222", SeriesDescription="t1", Modality="MR")
    path = pack(tmp_path / "study.zip", ct, tmp_path / "mr")
    with pytest.raises(ReadError) as refused:
        read_header(path)
    assert f"zip file {path} holds 2 image series: ...11111111 CT number 4, 6 files; ...22222222 MR" in str(
        refused.value
    )
    for where, how in ((path, {"series": "thin"}), (f"{path}#3.11111111", {}), (path, {"modality": "ct"})):
        np.testing.assert_array_equal(load_volume(where, **how).array, STORED[::-1, ::-1])


@pytest.mark.parametrize("name", ["../evil_{}", "/tmp/evil_{}", "..\\evil_{}", "C:\\evil_{}", "Secret^Name/{}"])
def test_names_of_members_decide_nothing_and_are_not_told(ct, tmp_path, name):
    volume = load_volume(pack(tmp_path / "a.zip", ct, name=name))
    np.testing.assert_array_equal(volume.array, STORED[::-1, ::-1])
    bad = min(ct.iterdir())
    bad.write_bytes(bad.read_bytes()[:-40])
    with pytest.raises(ReadError) as refused:
        load_volume(pack(tmp_path / "b.zip", ct, name=name))
    assert str(refused.value).startswith(f"{tmp_path / 'b.zip'} (file 1 inside): pixels cannot be read (")


def test_links_and_nested_zip_files_are_left_out(ct, tmp_path):
    link = zipfile.ZipInfo("study/link.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    nested = pack(tmp_path / "nested.zip", ct).read_bytes()
    path = pack(tmp_path / "a.zip", ct, extra=[(link, b"/etc/passwd"), ("study/more.zip", nested)])
    volume = load_volume(path)
    assert volume.array.shape == STORED.shape
    assert volume.meta["notes"] == ["1 zip files inside the zip file left out"]
    only = pack(tmp_path / "b.zip", extra=[("more.zip", nested)])
    with pytest.raises(ReadError, match=r"zip file .*b\.zip holds no DICOM image with a position; give"):
        read_header(only)


def test_a_zip_file_without_an_image_is_named(tmp_path):
    save(new_file(Modality="SR", SeriesInstanceUID="1.2"), tmp_path / "sr" / "1.dcm")
    with pytest.raises(ReadError, match=r"a\.zip holds no DICOM image with a position \(found SR\)"):
        read_header(pack(tmp_path / "a.zip", tmp_path / "sr"))
    with pytest.raises(ReadError, match=r"b\.zip holds no DICOM image"):
        read_header(pack(tmp_path / "b.zip", extra=[("scan.nii", bytes(352))]))


def test_a_damaged_zip_file_is_named(ct, tmp_path):
    path = pack(tmp_path / "a.zip", ct)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReadError, match=r"a\.zip is not a zip file, or is damaged \(File is not a zip file\)\. Copy"):
        load_volume(path)
    path.write_bytes(whole[:900] + bytes(byte ^ 255 for byte in whole[900:910]) + whole[910:])
    with pytest.raises(ReadError, match=r"a\.zip \(file \d inside\) is damaged: it does not inflate to what the zip"):
        read_header(path)


def in_directory(content, offset, form, value):
    """The bytes of a zip file with a field of its first central directory entry changed."""
    at = content.index(b"PK\1\2") + offset
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def test_an_encrypted_zip_file_is_named(ct, tmp_path):
    path = pack(tmp_path / "a.zip", ct)
    path.write_bytes(in_directory(path.read_bytes(), 8, "<H", 1))
    with pytest.raises(ReadError, match=r"a\.zip is encrypted; unpack it with its password first"):
        read_header(path)


def test_a_compression_that_inflates_without_a_limit_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("1.dcm", b"a")
    with pytest.raises(ReadError, match=r"a\.zip is not compressed by deflate"):
        read_header(tmp_path / "a.zip")


def test_a_bomb_is_refused_before_it_inflates(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.zip", extra=[("1.dcm", bytes(3_000_000)), ("2.dcm", bytes(3_000_000))])
    monkeypatch.setattr(zipped, "_SMALL_BYTES", 5_000_000)
    with pytest.raises(ReadError, match=r"would inflate to 0\.0 GiB, \d{4} times its size, .*unpack it"):
        read_header(path)
    monkeypatch.setattr(zipped, "_MOST_RATIO", 2000)
    monkeypatch.setattr(zipped, "_MOST_BYTES", 5_000_000)
    with pytest.raises(ReadError, match="that is more than is read from a zip file"):
        read_header(path)
    monkeypatch.setattr(zipped, "_MOST_MEMBERS", 1)
    with pytest.raises(ReadError, match="holds 2 files; up to 1 are read"):
        read_header(path)


def test_a_member_that_lies_of_its_size_inflates_no_further(tmp_path):
    """It says 1 kB and would be 64 MB."""
    path = pack(tmp_path / "a.zip", extra=[("1.dcm", bytes(64_000_000))])
    path.write_bytes(in_directory(path.read_bytes(), 24, "<I", 1000))
    with pytest.raises(ReadError, match="does not inflate to what the zip file says of it"):
        read_header(path)


def test_a_file_of_many_frames_is_inflated_once(tmp_path):
    write_enhanced(tmp_path / "mr", STORED, range(6), [{}] * 6)
    archive = zipped.Archive(pack(tmp_path / "a.zip", tmp_path / "mr"))
    with archive:
        (member,) = archive.members
        assert archive.content(member) is archive.content(member)
        assert member.open().read() == (tmp_path / "mr" / "one.dcm").read_bytes()
