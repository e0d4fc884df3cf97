"""Files broken on purpose: each is refused by name or read as it is; the long run is benchmarks/robustness.py."""

import gzip
import struct

import numpy as np
import pytest
from corrupt_files import MEMORY_LIMIT, READERS, attempt, corrupt, make_seeds, read

from mmfusion.errors import ReadError
from mmfusion.io import load_transform, load_volume, read_header
from mmfusion.prepare.processes import Processes

COUNT = 3 * len(READERS)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return make_seeds(tmp_path_factory.mktemp("seeds") / "sound")


@pytest.fixture(scope="module")
def pool():
    with Processes(1, limit_s=30) as processes:
        yield processes


def test_what_is_sound_is_read(seeds):
    for name, path in seeds.items():
        read(READERS[name], path)


def test_what_is_broken_is_refused_by_name_or_read_as_it_is(seeds, pool, tmp_path):
    for number in range(COUNT):
        name, what, path = corrupt(seeds, number, tmp_path / str(number))
        found = pool.submit(attempt, READERS[name], path).result()
        case = f"{number}, {name}, {what}: {found}"
        assert found["outcome"] in ("read", "refused"), case
        assert found["peak_mib"] < MEMORY_LIMIT / 2**20, case
        assert "Secret" not in found["message"] and "1950" not in found["message"], case


def edited(path, *changes):
    raw = path.read_bytes()
    for old, new in changes:
        assert old in raw
        raw = raw.replace(old, new)
    path.write_bytes(raw)
    return path


def test_sizes_beyond_the_file_are_refused_before_memory_is_taken(seeds, tmp_path):
    raw = bytearray(seeds["a.nii"].read_bytes())
    struct.pack_into("<hhh", raw, 42, 32767, 32767, 1024)
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(ReadError, match=rf"{name} cannot be read: the header promises 2,[\d,]+ bytes"):
            load_volume(tmp_path / name)
    for name, old in {"a.mha": b"DimSize = 11 13 17", "packed.nrrd": b"sizes: 11 13 17"}.items():
        path = tmp_path / name
        path.write_bytes(seeds[name].read_bytes())
        edited(path, (old, old[:-8] + b"65536 65536 256"))
        with pytest.raises(ReadError, match=rf"{name} cannot be read: its header promises 2,[\d,]+ bytes"):
            read_header(path)


def test_a_bomb_is_refused_before_memory_is_taken(seeds, tmp_path):
    raw = bytearray(seeds["a.nii"].read_bytes()[:352])
    struct.pack_into("<hhh", raw, 42, 1024, 1024, 512)
    struct.pack_into("<hh", raw, 70, 2, 8)  # uint8
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)) + gzip.compress(bytes(1 << 20)) * 512)
    with pytest.raises(ReadError, match=r"a\.nii\.gz unpacks from [\d,]+ to 536,870,912 bytes, which is no scan; if"):
        load_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("elsewhere", ["/etc/passwd", "../a.raw", "sub/../../a.raw", "C:\\a.raw"])
@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_voxels_in_another_folder_are_not_read(seeds, tmp_path, name, elsewhere):
    (tmp_path / "a.raw").write_bytes((seeds[name].parent / "a.raw").read_bytes())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_bytes(seeds[name].read_bytes().replace(b"a.raw", elsewhere.encode()))
    with pytest.raises(ReadError, match="but only a file in the folder of the header is read; move it"):
        read_header(tmp_path / "sub" / name)


def test_voxels_in_several_files_are_not_read(seeds, tmp_path):
    for word in (b"LIST", b"a%02d.raw 1 17 1"):
        (tmp_path / "a.mhd").write_bytes(seeds["a.mhd"].read_bytes().replace(b"a.raw", word))
        with pytest.raises(ReadError, match=r"a\.mhd has its voxels in several files, which is not read; save"):
            read_header(tmp_path / "a.mhd")


def test_a_damaged_packing_is_no_voxels(seeds, tmp_path):
    for name in ("packed.mha", "packed.nrrd", "a.nii.gz"):
        raw = bytearray(seeds[name].read_bytes())
        raw[-3] ^= 1  # in the checksum, or the length
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ReadError, match=rf"{name} cannot be read: .*Copy or export it again"):
            load_volume(tmp_path / name)


@pytest.mark.parametrize("offset", [0.0, 348.0, -1.0, np.nan, np.inf])
def test_voxels_cannot_begin_within_the_header(seeds, tmp_path, offset):
    raw = bytearray(seeds["a.nii"].read_bytes())
    struct.pack_into("<f", raw, 108, offset)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(ReadError, match=r"a\.nii has a damaged NIfTI header"):
        read_header(tmp_path / "a.nii")


def test_more_or_fewer_frames_than_counted_are_refused(seeds, tmp_path):
    path = tmp_path / "e.dcm"
    path.write_bytes(
        seeds["enhanced.dcm"].read_bytes().replace(b"\x28\x00\x08\x00IS\x02\x006 ", b"\x28\x00\x08\x00IS\x02\x005 ")
    )
    with pytest.raises(ReadError, match=r"e\.dcm: 6 frames are described, but NumberOfFrames is 5; the"):
        read_header(path)


def test_an_element_without_sense_is_named_by_its_file(seeds, tmp_path):
    path = tmp_path / "s" / "rs.dcm"
    path.parent.mkdir()
    raw = seeds["rtstruct.dcm"].read_bytes()
    path.write_bytes(raw.replace(b"\x06\x30\x22\x00IS", b"\x06\x30\x22\x00XX", 1))
    with pytest.raises(ReadError, match=r"rs\.dcm: a DICOM element has a value that cannot be understood \(\w+\); the"):
        read("mask", path)


def test_a_transform_that_crashes_its_library_is_refused(seeds, tmp_path):
    raw = seeds["field.h5"].read_bytes()
    (tmp_path / "a.h5").write_bytes(raw[:5121] + b" " * 168 + raw[5121:])
    with pytest.raises(ReadError, match=r"transform .*a\.h5"):
        load_transform(tmp_path / "a.h5")
