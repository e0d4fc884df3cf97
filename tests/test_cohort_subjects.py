"""Whose series is whose: constant UIDs, spellings, missing and empty identifiers, folders."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from io_dicom import voxels, write_series

from mmfusion.cohort import build_index, check_manifest, read_manifest
from mmfusion.cohort.pseudonyms import Pseudonyms
from mmfusion.errors import OptionError, ReadError
from mmfusion.io import load_volume

STUDY = 0


def scan(folder: Path, patient: str = "", kind: str = "CT", study: str = "", frame: str = "", **more) -> None:
    """A small series in a study and frame of reference of its own."""
    global STUDY
    STUDY += 1
    uids = {"StudyInstanceUID": study or f"1.5.{STUDY}", "FrameOfReferenceUID": frame or f"1.6.{STUDY}"}
    write_series(folder, voxels((5, 4, 3), seed=STUDY), Modality=kind, PatientID=patient, **(uids | more))


def people(root: Path, **options) -> dict[str, list[str]]:
    """Subject to the columns of its sessions."""
    out: dict[str, list[str]] = {}
    for case in build_index(root, **options).cases:
        out.setdefault(case.subject, []).append(" ".join(case.images))
    return out


CONSTANT = {"StudyInstanceUID": "1.2", "series_uid": "1.3", "FrameOfReferenceUID": "1.4"}


def test_people_with_the_same_uids_in_folders_of_their_own(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        scan(tmp_path / "s" / patient / "ct", patient, **CONSTANT)
    index = build_index(tmp_path / "s")
    assert index.notes == ["1 SeriesInstanceUIDs are of several PatientIDs each; the PatientID is the subject"]
    index.write(tmp_path / "m.csv")
    one, other = (load_volume(case.images["ct"]).array for case in read_manifest(tmp_path / "m.csv"))
    assert one.shape == other.shape == (5, 4, 3) and (one != other).any()


@pytest.mark.parametrize("what", ["PatientIDs", "studies"])
def test_people_and_studies_with_the_same_uids_in_one_folder_are_left_out(tmp_path: Path, what: str) -> None:
    tags = CONSTANT if what == "PatientIDs" else CONSTANT | {"StudyInstanceUID": "1.2.1"}
    scan(tmp_path / "all", "P1", **CONSTANT)
    scan(
        tmp_path / "new", "P2" if what == "PatientIDs" else "P1", **tags, origin=(-10.0, 20.0, 37.5)
    )  # above the first
    for file in (tmp_path / "new").iterdir():
        file.rename(tmp_path / "all" / f"b{file.name}")
    scan(tmp_path / "p3", "P3")
    index = build_index(tmp_path)
    assert [case.subject for case in index.cases] == ["P3"]
    reasons = [one.reason for one in index.others]
    assert len(reasons) == 2
    assert all("images of another PatientID or study under the same SeriesInstanceUID" in reason for reason in reasons)
    with pytest.raises(ReadError, match=f"2 {what} under one SeriesInstanceUID"):
        load_volume(tmp_path / "all")


def test_a_series_in_two_folders_is_left_out_where_another_person_lies_beside(tmp_path: Path) -> None:
    for n, (folder, patient) in enumerate((("x/1", "P1"), ("x/2", "P1"), ("x/3", "P2"))):
        scan(tmp_path / folder, patient, origin=(-10.0, 20.0, 30 + 7.5 * n), **CONSTANT)
    index = build_index(tmp_path)
    assert [case.subject for case in index.cases] == ["P2"] and [one.subject for one in index.others] == ["P1"]
    assert load_volume(index.cases[0].images["ct"]).array.shape == (5, 4, 3)


@pytest.mark.parametrize("patient", ["", "Anonymous"])
@pytest.mark.parametrize("uid", [None, "1.2.3"])
def test_people_without_identifiers_and_with_the_same_uids_are_told_by_folders(
    tmp_path: Path, patient: str, uid: str | None
) -> None:
    def same(dataset, n: int) -> None:
        dataset.SOPInstanceUID = uid or dataset.SOPInstanceUID

    for folder, height in (("a/x", 30.0), ("b/y", 30.0), ("c/z", 37.5)):  # the last lies above the others
        scan(tmp_path / folder, patient, **CONSTANT, edit=same, origin=(-10.0, 20.0, height))
    assert people(tmp_path) == {"x": ["ct"], "y": ["ct"], "z": ["ct"]}


@pytest.mark.parametrize("other", ["p 01", "P^1", "p\u200b1", "\uff301", "sub-P1"])
def test_spellings_in_one_study_are_one_person(tmp_path: Path, other: str) -> None:
    utf8 = {"SpecificCharacterSet": "ISO_IR 192"}
    scan(tmp_path / "a", "P1", study="1.2", **utf8)
    scan(tmp_path / "b", other, "MR", study="1.2", **utf8)
    scan(tmp_path / "c", "P1", "PT", study="1.9", **utf8)
    assert len(people(tmp_path)) == 1 and "P1" in people(tmp_path)
    (note,) = (note for note in build_index(tmp_path).notes if "spellings" in note)
    assert note.startswith("subject P1: one study has its PatientID in 2 spellings (") and repr(other) in note
    (tmp_path / "key").write_text("k" * 40)
    (tmp_path / "scans").mkdir()
    for name in "abc":
        (tmp_path / name).rename(tmp_path / "scans" / name)
    index = build_index(tmp_path / "scans", pseudonymize=tmp_path / "key")
    assert {case.subject for case in index.cases} == {Pseudonyms(b"k" * 40)("P1")}
    assert not any("P1" in note or other in note for note in index.notes)


def test_spellings_in_different_studies_stay_apart_with_a_warning(tmp_path: Path) -> None:
    scan(tmp_path / "a", "P-1")
    scan(tmp_path / "b", "p01")
    index = build_index(tmp_path)
    assert [case.subject for case in index.cases] == ["P-1", "p01"]
    assert "subjects P-1 and p01 may be one person: their PatientIDs differ only in case" in index.notes[0]
    for n, patient in enumerate(("P-2", "p02")):  # nor does a study that is everybody's make them one
        scan(tmp_path / "c" / str(n), patient, **(CONSTANT | {"series_uid": f"1.3.{n}", "StudyInstanceUID": ""}))
    assert {"P-2", "p02"} < set(people(tmp_path))
    index.write(tmp_path / "m.csv")
    assert [one.line for one in check_manifest(tmp_path / "m.csv") if "may be P-1 (line 2)" in one.problem] == [3]


def test_forms_of_unicode_are_one_person_in_headers_folders_and_tables(tmp_path: Path) -> None:
    name = "J\u00fcrgen"
    other = unicodedata.normalize("NFD", name)
    scan(tmp_path / "s" / other / "ct", other, SpecificCharacterSet="ISO_IR 192")
    scan(tmp_path / "s" / other / "mr", name, "MR", SpecificCharacterSet="ISO_IR 192")
    (tmp_path / "s" / other / "pet.nii.gz").touch()
    (tmp_path / "labels.csv").write_text(f"subject,label\n{other},1\n")
    (case,) = build_index(tmp_path / "s", labels=tmp_path / "labels.csv").cases
    assert (case.subject, list(case.images), case.label) == (name, ["ct", "mr", "pet"], "1")


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ({"ct": "a", "pet": "a"}, {"root": 1}),  # root is the folder of one patient, as for predict
        ({"ct": "a", "pet": "a", "mr": "b"}, {"root": 1}),
        ({"CT/p1": "a", "PET/p1": "a", "CT/p2": "b", "PET/p2": "b"}, {"p1": 1, "p2": 1}),
        ({"Function/p1": "a", "Body/p1": "a", "Body/p2": "b"}, {"p1": 1, "p2": 1}),
        ({"A/p1/ct": "a", "A/p1/pet": "a", "A/p2/ct": "b", "B/p3/ct": "c"}, {"p1": 1, "p2": 1, "p3": 1}),
        ({"A/p1/ct": "a", "A/p2/ct": "b", "B/p1/ct": "c"}, {"A_p1": 1, "A_p2": 1, "B_p1": 1}),
        ({"p1/visit1/ct": "a", "p1/visit1/mr": "a", "p1/visit2/ct": "b", "p2/2020-01-03/ct": "c"}, {"p1": 2, "p2": 1}),
        ({"p1/dicom/scans": "a", "p2/dicom/scans": "b"}, {"p1": 1, "p2": 1}),
        ({"visit1/ct": "a", "visit2/ct": "b"}, {"root": 2}),
        ({"PA01/ST01/SE1": "a", "PA01/ST02/SE1": "b", "PA02/ST01/SE1": "c"}, {"PA01": 2, "PA02": 1}),
        ({"V01": "a", "V02": "b"}, {"V01": 1, "V02": 1}),
        ({"p1": "a", "p2": "b"}, {"p1": 1, "p2": 1}),
    ],
)
@pytest.mark.parametrize("patient", ["", "ANONYMOUS"])
def test_without_an_identifier_a_study_is_of_one_person_and_folders_name_it(
    tmp_path: Path, layout: dict[str, str], found: dict[str, int], patient: str
) -> None:
    days = {"a": "20200101", "b": "20210101", "c": "20220101"}
    for folder, study in layout.items():
        kind = "PT" if "pet" in folder.lower() else "MR" if "mr" in folder or "Fun" in folder else "CT"
        day = days[study] if len(set(layout.values())) > 1 and "mr" not in layout else "20200101"
        scan(tmp_path / "root" / folder, patient, kind, study=f"1.2.{ord(study)}", StudyDate=day)
    if patient and len(set(layout.values())) == 1:
        found = {"ANONYMOUS": 1}  # one study: it names enough
    index = build_index(tmp_path / "root")
    sessions = [case.subject for case in index.cases]
    assert {name: sessions.count(name) for name in sessions} == found
    if patient not in found:
        assert f"{len(layout)} series of" in index.notes[0] and "--subject-from" in index.notes[0]


def test_a_series_without_identifier_is_of_the_person_of_its_study(tmp_path: Path) -> None:
    scan(tmp_path / "x" / "ct", "P1", study="1.2")
    scan(tmp_path / "y" / "mr", "", "MR", study="1.2")
    assert people(tmp_path) == {"P1": ["ct mr"]}
    assert build_index(tmp_path).notes == ["1 series without PatientID are of subject P1, as others of their study"]


def test_one_study_uid_for_people_without_identifiers_is_pointed_out(tmp_path: Path) -> None:
    for path in ("p1/CT", "p1/PT", "p2/CT", "p2/PT"):
        scan(tmp_path / "s" / path, kind=path[3:], study="1.2")
    words = "one study of s has the same modality in several folders; if these are several people"
    assert any(note.startswith(words) for note in build_index(tmp_path / "s").notes)
    assert people(tmp_path / "s", subject_from="folder") == {"p1": ["ct pet"], "p2": ["ct pet"]}


def test_a_frame_of_reference_ties_studies_but_not_if_it_is_everybodys(tmp_path: Path) -> None:
    scan(tmp_path / "1" / "Body" / "p1", frame="1.7")
    scan(tmp_path / "1" / "Function" / "q1", kind="PT", frame="1.7")
    assert people(tmp_path / "1") == {"1": ["ct pet"]}
    for n in (1, 2):
        scan(tmp_path / "2" / f"p{n}", frame="1.8")
    assert people(tmp_path / "2") == {"p1": ["ct"], "p2": ["ct"]}


def test_what_names_the_subject_can_be_chosen(tmp_path: Path) -> None:
    for n, path in enumerate(["A/sub-1_x/ct", "A/sub-2_y/ct", "B/sub-3_z/mr"]):
        scan(tmp_path / path, "ANON", path[-2:].upper(), StudyDate=f"202{n}0101")
    assert people(tmp_path, subject_from="PatientID") == {"ANON": ["ct", "ct", "mr"]}
    assert people(tmp_path, subject_from="folder") == {"A": ["ct", "ct"], "B": ["mr"]}
    assert people(tmp_path, subject_from="*/sub-{subject}_*") == {"1": ["ct"], "2": ["ct"], "3": ["mr"]}
    index = build_index(tmp_path, subject_from="A/{subject}")
    assert [case.subject for case in index.cases] == ["sub-1_x", "sub-2_y"]
    assert index.notes == ["1 series are left out: their folders do not fit --subject-from A/{subject}"]
    with pytest.raises(OptionError, match=r"no folder with scans fits --subject-from \*/\*/\*/\{subject\}; it is"):
        build_index(tmp_path, subject_from="*/*/*/{subject}")
    with pytest.raises(OptionError, match=r"pattern with \{subject\} once, as '\*/\{subject\}'; found 'Folders'"):
        build_index(tmp_path, subject_from="Folders")


def test_folders_that_divide_a_study_are_pointed_out(tmp_path: Path) -> None:
    for path in ("CT/p1", "MR/p1"):
        scan(tmp_path / path, "P1", path[:2], study="1.2")
    (note,) = build_index(tmp_path, subject_from="folder").notes
    assert note == "--subject-from folder gives the series of 1 studies to several subjects each; look again"


def test_a_series_whose_uid_is_none_is_told_by_folder_and_read_from_there(tmp_path: Path) -> None:
    def hashed(dataset, n: int) -> None:
        dataset.SeriesInstanceUID = "123456789"  # as a hash is

    for n in range(2):
        scan(tmp_path / str(n), "P1", study="1.2", frame="1.4", edit=hashed, origin=(-10.0, 20.0, 30 + 7.5 * n))
    index = build_index(tmp_path)
    assert load_volume(index.cases[0].images["ct"]).array.shape == (5, 4, 3)
    assert len(index.others) == 1
