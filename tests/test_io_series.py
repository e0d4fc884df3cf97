"""Which of several DICOM series in one place is meant."""

from pathlib import Path

import numpy as np
import pytest
from io_dicom import pet_tags, voxels, write_series

from mmfusion.errors import ReadError
from mmfusion.io import load_volume, read_header, split_series

CT, PET = voxels(), np.abs(voxels(seed=1))


def folder_of(folder, *series):
    """A folder with several series, each ``(stored, tags)``."""
    for n, (stored, tags) in enumerate(series):
        write_series(folder / "new", stored, **tags)
        for path in (folder / "new").iterdir():
            path.rename(folder / f"{n}_{path.name}")
    return folder


@pytest.fixture
def study(tmp_path):
    """A thin CT and a PET, with another CT."""
    thin = {"series_uid": "1.2.3.11111111", "SeriesDescription": "CT thin"}
    thick = {"series_uid": "1.2.3.22222222", "SeriesDescription": "CT Thin Lung"}
    pet = pet_tags() | {"series_uid": "1.2.3.33333333", "SeriesDescription": "PET WB AC"}
    return folder_of(tmp_path, (CT, thin), (voxels(seed=2), thick), (PET, pet))


LISTED = "...11111111 CT number 4, 6 files; ...22222222 CT number 4, 6 files; ...33333333 PT number 4, 6 files"


def test_several_series_are_listed(study):
    with pytest.raises(ReadError) as refused:
        read_header(study)
    assert str(refused.value) == (
        f"folder {study} holds 3 image series: {LISTED}. Name one by #SeriesInstanceUID behind the path, or keep each "
        "series in a folder of its own"
    )


@pytest.mark.parametrize("name", ["1.2.3.11111111", "11111111", "ct THIN", " CT thin "])
def test_one_is_named_by_uid_its_end_or_its_description(study, name):
    np.testing.assert_array_equal(load_volume(study, series=name).array, CT[::-1, ::-1])


@pytest.mark.parametrize("uid", ["1.2.3.11111111", "3.11111111"])
def test_one_is_named_behind_the_path(study, uid):
    np.testing.assert_array_equal(load_volume(f"{study}#{uid}").array, CT[::-1, ::-1])


def test_a_series_of_two_people_is_refused(tmp_path):
    lower = {"series_uid": "1.2.3.5", "PatientID": "Doe^Ann"}
    upper = {"series_uid": "1.2.3.5", "PatientID": "Roe", "origin": (-10.0, 20.0, 45.0)}
    folder = folder_of(tmp_path, (CT, lower), (CT, upper))  # one lies above the other
    with pytest.raises(
        ReadError, match=r"holds images of 2 PatientIDs under one SeriesInstanceUID; .* of their own$"
    ) as e:
        load_volume(folder)
    assert "Doe" not in str(e.value) and "Roe" not in str(e.value)


def test_a_series_of_two_studies_is_refused(tmp_path):
    pieces = [{"StudyInstanceUID": f"1.2.{n}", "origin": (-10.0, 20.0, 30.0 + 15 * n)} for n in range(2)]
    folder = folder_of(tmp_path, *((CT, {"series_uid": "1.2.3.5", **piece}) for piece in pieces))
    with pytest.raises(ReadError, match="holds images of 2 studies under one SeriesInstanceUID; .* of their own$"):
        load_volume(folder)


def test_spellings_of_one_patient_id_and_none_are_one_person(tmp_path):
    pieces = [{"PatientID": name, "origin": (-10.0, 20.0, 30.0 + 15 * n)} for n, name in enumerate(["p 07", "P7", ""])]
    folder = folder_of(tmp_path, *((CT, {"series_uid": "1.2.3.5", **piece}) for piece in pieces))
    header = read_header(folder)
    assert header.shape == (7, 5, 18) and header.notes == (
        "PatientID is spelled in 2 ways in the series; they count as one person",
        "6 of 18 images have no PatientID; they count as the person of the others",
    )


def test_a_part_of_the_description_must_be_unique(study):
    assert read_header(study, series="lung").notes == ()
    with pytest.raises(ReadError, match="holds 2 image series: ...11111111 CT number 4, 6 files; ...22222222 CT"):
        read_header(study, series="thi")
    assert read_header(study, series="t", modality="pet").modality == "pet"


def test_a_name_that_is_not_there_gets_the_list(study):
    with pytest.raises(ReadError) as refused:
        read_header(study, series="9")
    assert f"holds no DICOM image of series '9', but {LISTED}; name one of these" in str(refused.value)


def test_the_only_one_of_its_kind_is_taken_with_a_note(study):
    header = read_header(study, modality="pet_2")
    assert header.modality == "pet" and header.notes[0] == (
        "...33333333 PT number 4, 6 files is used, the only pet; beside it ...11111111 CT number 4, 6 files; "
        "...22222222 CT number 4, 6 files"
    )
    with pytest.raises(ReadError, match="holds 3 image series"):
        read_header(study, modality="ct")
    with pytest.raises(ReadError, match="holds 3 image series"):
        read_header(study, modality="t1")


def test_a_named_series_of_another_kind_is_refused(study):
    with pytest.raises(ReadError, match="is given as pet, but its DICOM modality is CT"):
        read_header(study, modality="pet", series="CT thin")


def test_a_scout_does_not_count_as_a_ct(tmp_path):
    scout = {"series_uid": "1.2.3.4", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    folder_of(tmp_path, (CT[:, :, :1], scout), (CT, {"series_uid": "1.2.3.5"}))
    header = read_header(tmp_path, modality="ct")
    assert header.shape == (7, 5, 6) and "beside it ...1.2.3.4 CT number 4, 1 files" in header.notes[0]


@pytest.mark.parametrize(
    ("cell", "path", "series"),
    [("a/b", "a/b", None), ("a/b#1.2.840.10", "a/b", "1.2.840.10")]
    + [("a#1/b", "a#1/b", None), ("a#12", "a#12", None), ("a#1.2#1.3", "a#1.2", "1.3"), ("a#1.2.", "a#1.2.", None)],
)  # fmt: skip
def test_split_series(cell: str, path: str, series: str | None) -> None:
    assert split_series(cell) == split_series(Path(cell)) == (Path(path), series)


def test_split_series_of_what_exists(tmp_path: Path) -> None:
    """What exists is meant as it is called; what stands before the last # may be named further."""
    for name in ("MR#1.5", "MR", "a#b"):
        (tmp_path / name).mkdir()
    assert split_series(tmp_path / "MR#1.5") == (tmp_path / "MR#1.5", None)
    assert split_series(tmp_path / "MR#water") == (tmp_path / "MR", "water")
    assert split_series(tmp_path / "a#b#1.2") == (tmp_path / "a#b", "1.2")
    assert split_series(tmp_path / "gone#water") == (tmp_path / "gone#water", None)
