"""Finding series in a tree of files."""

import shutil

import pytest
from io_dicom import new_file, save, voxels, write_series
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage

from mmfusion.cohort import build_index
from mmfusion.errors import ReadError
from mmfusion.io import Unread, find_series


def structure_set(**tags):
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = "1.2.840.5"
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = "1.2.3", [study]
    found = new_file(RTStructureSetStorage, Modality="RTSTRUCT", SeriesInstanceUID="1.2.840.6", **tags)
    found.ReferencedFrameOfReferenceSequence = [frame]
    return found


def test_files_are_grouped_by_series_and_not_by_folder(tmp_path):
    write_series(tmp_path / "a", voxels(), series_uid="1.2.840.5", ProtocolName="chest")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "000_0.dcm").rename(tmp_path / "b" / "no_ending")
    write_series(tmp_path / "c", voxels((7, 5, 4)), series_uid="1.2.840.7", Modality="PT", SeriesNumber=2)
    save(structure_set(), tmp_path / "rs.dcm")
    mask, pet, ct = find_series(tmp_path)
    assert (ct.modality, ct.count, ct.shape, ct.spacing) == ("CT", 6, (7, 5, 6), pytest.approx((0.8, 1.1, 2.5)))
    assert (ct.folder, ct.series_uid, ct.series_number, ct.protocol) == (tmp_path, "1.2.840.5", 4, "chest")
    assert (ct.patient_id, ct.study_date, ct.frame_of_reference) == ("S01", "20200102", "1.2.3")
    assert ct.is_image and not ct.is_localizer and ct.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert (pet.modality, pet.folder, len(pet.files)) == ("PT", tmp_path / "c", 4)
    assert (mask.modality, mask.is_image, mask.shape, mask.count) == ("RTSTRUCT", False, None, 1)
    assert (mask.referenced_series, mask.frame_of_reference) == (("1.2.840.5",), "1.2.3")


def test_a_segmentation_names_its_series_directly(tmp_path):
    series = Dataset()
    series.SeriesInstanceUID = "1.2.840.5"
    tags = {"Modality": "SEG", "SeriesInstanceUID": "1.2.840.8", "ReferencedSeriesSequence": [series]}
    save(new_file(SegmentationStorage, Rows=4, Columns=5, NumberOfFrames=3, **tags), tmp_path / "seg.dcm")
    (found,) = find_series(tmp_path)
    assert (found.referenced_series, found.is_image, found.count) == (("1.2.840.5",), False, 1)


def test_other_files_are_skipped_and_counted(tmp_path):
    write_series(tmp_path / "a", voxels((7, 5, 2)))
    (tmp_path / "readme.txt").write_text("text")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "bad.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 50)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "._a").write_bytes(b"\0\5\x16\7")
    (tmp_path / "scan.nii").write_text("x")
    calls, unread = [], Unread()
    assert len(find_series(tmp_path, progress=lambda *counts: calls.append(counts), unread=unread)) == 1
    assert calls == [(8, 6)] and unread.damaged == [tmp_path / "bad.dcm", tmp_path / "empty.dcm"]
    assert unread.endings == {".txt": 1, "": 1, "._": 1} and unread.volumes == [tmp_path / "scan.nii"]


def test_progress_is_told_on_the_way(tmp_path):
    for n in range(201):
        (tmp_path / f"{n}.txt").write_text("x")
    calls = []
    assert find_series(tmp_path, progress=lambda *counts: calls.append(counts)) == []
    assert calls == [(200, 200), (201, 201)]


def test_visits_come_in_order_and_localizers_are_marked(tmp_path):
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path / "x", voxels((7, 5, 2)), StudyDate="20210101", StudyInstanceUID="1.2.840.1")
    write_series(tmp_path / "y", voxels((7, 5, 2)), StudyDate="20200101", StudyInstanceUID="1.2.840.2", ImageType=scout)
    first, second = find_series(tmp_path)
    assert (first.study_date, first.is_localizer) == ("20200101", True)
    assert (second.study_date, second.is_localizer) == ("20210101", False)


def test_a_file_without_preamble_counts_by_its_name(tmp_path):
    found = structure_set()
    found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    raw = save(found, tmp_path / "rs.dcm").read_bytes()
    (tmp_path / "rs.dcm").write_bytes(raw[raw.index(b"\x08\x00\x16\x00") :])
    assert [series.modality for series in find_series(tmp_path)] == ["RTSTRUCT"]


def test_values_that_break_the_standard_are_taken_without_a_warning(tmp_path):
    write_series(tmp_path, voxels((7, 5, 2)))
    for path in tmp_path.iterdir():  # a UID with a leading zero, as anonymizers write them
        path.write_bytes(path.read_bytes().replace(b"1.2.840.1\0", b"1.02.840.1"))
    assert find_series(tmp_path)[0].study_uid == "1.02.840.1"


def test_no_name_gets_out_and_a_missing_folder_is_named(tmp_path):
    write_series(tmp_path, voxels((7, 5, 2)))
    assert "Secret" not in repr(find_series(tmp_path)) and "1950" not in repr(find_series(tmp_path))
    with pytest.raises(ReadError, match="nope does not exist"):
        find_series(tmp_path / "nope")


def test_series_without_uid_are_those_of_a_folder(tmp_path):
    for place, number in (("a", 1), ("a", 2), ("b", 1)):
        write_series(
            tmp_path / "new", voxels((7, 5, 3)), SeriesNumber=number, edit=lambda d, _: d.pop("SeriesInstanceUID")
        )
        (tmp_path / place).mkdir(exist_ok=True)
        for path in (tmp_path / "new").iterdir():
            path.rename(tmp_path / place / f"{number}_{path.name}")
    found = find_series(tmp_path)
    assert {(one.folder.name, one.series_uid, one.count) for one in found} == {
        ("a", "CT-1-1.2.840.1-1.2.3", 3), ("a", "CT-2-1.2.840.1-1.2.3", 3), ("b", "CT-1-1.2.840.1-1.2.3", 3),
    }  # fmt: skip


def test_copies_count_once_and_lie_in_one_folder_if_it_holds_all(tmp_path):
    write_series(tmp_path / "b", voxels())
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    (tmp_path / "a").mkdir()
    shutil.copy(tmp_path / "b" / "000_0.dcm", tmp_path / "a" / "x.dcm")
    (found,) = find_series(tmp_path)
    assert (found.folder, found.count, len(found.copies)) == (tmp_path / "b", 6, 7)
    (tmp_path / "b" / "005_1.dcm").unlink()
    (tmp_path / "c" / "000_0.dcm").unlink()
    (found,) = find_series(tmp_path)
    assert (found.folder, found.count, len(found.copies)) == (tmp_path, 6, 5)


def test_damaged_files_are_left_out_and_counted(tmp_path):
    write_series(tmp_path, voxels(), series_uid="1.2.840.5")
    write_series(tmp_path / "all", voxels((7, 5, 3)), series_uid="1.2.840.7")
    bad = [tmp_path / "000_0.dcm", *sorted((tmp_path / "all").iterdir())]
    for path in bad:  # the number of rows has one byte
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00US\x01\x00"))
    unread = Unread()
    (found,) = find_series(tmp_path, unread=unread)
    assert (found.series_uid, found.count, unread.damaged) == ("1.2.840.5", 5, bad)
    notes = build_index(tmp_path).notes
    assert "4 DICOM files are damaged and left out, the first is 000_0.dcm; copy or export them again" in notes
