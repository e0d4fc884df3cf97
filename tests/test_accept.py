"""A person settles a doubtful case: what that changes, what it leaves, and when the case is doubtful again."""

import json
import re
import shutil

import numpy as np
import pytest
from report_reader import Page
from small_scans import write_study

from mmfusion.cli import main
from mmfusion.errors import CohortError, OptionError, OutputError, ReadError
from mmfusion.files import CohortFolder, read_rows, write_csv
from mmfusion.io import load_volume, save_volume
from mmfusion.prepare import accept_case, damaged_files, open_cohort, prepare_cohort
from mmfusion.volume import Transform

OPTIONS = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "workers": 1}
NOTE = "=the <b>liver</b> fits"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two cases in doubt: CT and PET, which lies 50 mm off, in 001; PET and MR in 002. Not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    manifest = write_study(folder, subjects=2)
    rows = read_rows(manifest)
    write_csv([rows[0] | {"mr": ""}, rows[1]], manifest)
    change(folder / "001_pet.nii.gz", motion=Transform.rigid((0, 0, 0), (0, 30, 40)))
    cohort = prepare_cohort(manifest, folder / "cohort", **OPTIONS)
    assert cohort.count("doubtful") == 2 and {row["causes"] for row in cohort.rows} == {"registration"}
    return folder


@pytest.fixture
def study(made, tmp_path):
    """A copy to change, with 001 accepted."""
    for path in made.glob("*.*"):
        shutil.copy2(path, tmp_path)
    shutil.copytree(made / "cohort", tmp_path / "cohort")
    again(tmp_path)
    accept_case(tmp_path / "cohort", "001", note=NOTE)
    return tmp_path


def change(path, motion=None, factor=1.0):
    volume = load_volume(path, modality="pet")
    affine = (motion or Transform()).matrix @ volume.affine
    save_volume(volume.replace(array=volume.array * np.float32(factor), affine=affine), path)


def again(folder, **options):
    """The rows after the same preparing, by case."""
    cohort = prepare_cohort(folder / "manifest.csv", folder / "cohort", **OPTIONS | options)
    return {row["case"]: row for row in cohort.rows}


def test_an_accepted_case_is_no_longer_doubtful(made, study):
    before, after = open_cohort(made / "cohort"), open_cohort(study / "cohort")
    assert (after.count("accepted"), after.count("doubtful"), len(after.cases)) == (1, 1, 2)
    row = after.rows[0]
    assert (row["status"], row["accepted_note"], row["reasons"]) == ("accepted", NOTE, before.rows[0]["reasons"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["accepted"])
    assert after.rows[1]["accepted"] == "" and after.rows[1]["reasons"] == before.rows[1]["reasons"]
    assert after.hash == before.hash  # a run that was trained on it can still be evaluated
    assert ",'=the " in CohortFolder(study / "cohort").table.read_text()  # no spreadsheet takes it for a formula
    assert again(study)["001"] == row


def test_the_decision_is_recorded_with_what_was_looked_at(study):
    [(case, fields)] = json.loads((study / "cohort" / "accepted.json").read_text()).items()
    record = json.loads((study / "cohort" / "cases" / "001" / "case.json").read_text())
    assert case == "001" and fields["reasons"] == record["reasons"].split(" | ")
    assert fields["looked_at"] == record["looked_at"]
    assert set(fields["looked_at"]) == {"scan of ct", "scan of pet", "transform of pet", "mask"}


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ({"factor": 1.5}, {}, r"with another scan of pet(, another transform of pet)?; look at it again"),
        ({}, {"register": "translation"}, "with another transform of pet; look at it again"),
        ({}, {"spacing": [50.0] * 3, "size": [15] * 3}, "for other reasons; look at it again"),
    ],
)
def test_it_is_doubtful_again_when_what_was_looked_at_changes(study, what, options, said):
    if what:
        change(study / "001_pet.nii.gz", **what)
    row = again(study, **options)["001"]
    assert row["status"] == "doubtful" and not row.get("accepted")
    assert re.match(r"it was accepted on 20\d\d-\d\d-\d\d " + said, row["reasons"].split(" | ")[0])
    accept_case(study / "cohort", "001")
    row = again(study, **options)["001"]
    assert row["status"] == "accepted" and "it was accepted" not in row["reasons"] and row["accepted_note"] == ""


def test_what_was_accepted_once_holds_where_the_case_is_as_it_was_then(study):
    assert again(study, register="translation")["001"]["status"] == "doubtful"
    assert again(study)["001"]["status"] == "accepted"


def test_another_mask_is_looked_at_again(made, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("cohort"))
    body = load_volume(folder / "001_ct.nii.gz", modality="ct")
    lesion = body.replace(array=(np.indices(body.array.shape)[0] < 14).astype(np.float32), units="label")
    save_volume(lesion, folder / "mask.nii.gz")
    row = read_rows(folder / "manifest.csv")[0] | {"mask": "mask.nii.gz"}
    write_csv([row], folder / "manifest.csv")
    [found] = again(folder, register="none").values()
    assert found["causes"] == "registration mask" and "% of it falls outside the grid" in found["reasons"]
    accept_case(folder / "cohort", "001")
    save_volume(lesion.replace(array=lesion.array[::-1].copy()), folder / "mask.nii.gz")
    words = again(folder, register="none")["001"]["reasons"]
    assert "with another mask file, another mask; look at it again" in words


def test_a_decision_is_taken_back(made, study):
    cohort = accept_case(study / "cohort", "001", undo=True)
    assert cohort.rows[0] == open_cohort(made / "cohort").rows[0] | {"accepted": "", "accepted_note": ""}
    assert json.loads((study / "cohort" / "accepted.json").read_text()) == {}
    with pytest.raises(CohortError, match="case '001' of .* was not accepted; there is nothing to take back"):
        accept_case(study / "cohort", "001", undo=True)


def test_what_cannot_be_accepted(study):
    cohort = study / "cohort"
    with pytest.raises(CohortError, match=r"has no case '01'; did you mean '001'\? Doubtful are 002$"):
        accept_case(cohort, "01")
    with pytest.raises(OptionError, match="undo takes a decision back and has no note"):
        accept_case(cohort, "001", note="x", undo=True)
    with pytest.raises(OptionError, match="the note is not text in UTF-8"):
        accept_case(cohort, "001", note="\udc80")
    with pytest.raises(OutputError, match="is a folder of scans, and a cohort folder is expected"):
        accept_case(study, "001")
    with CohortFolder(cohort).lock(), pytest.raises(CohortError, match="another mmfusion prepare is writing into"):
        accept_case(cohort, "002")
    (study / "001_pet.nii.gz").write_bytes(b"torn")
    again(study, register="none", center="volume")
    with pytest.raises(CohortError, match="case 001 .* failed and has nothing to accept .*; correct it and run"):
        accept_case(cohort, "001")
    with pytest.raises(CohortError, match="case 002 .* is not doubtful; there is nothing to accept"):
        accept_case(cohort, "002")


@pytest.mark.parametrize("damage", ["{", "[]", '{"001": 3}', '{"001": {"date": 7}}'])
def test_a_damaged_record_is_named_before_anything_is_prepared(study, damage):
    (study / "cohort" / "accepted.json").write_text(damage)
    for work in (lambda: again(study), lambda: accept_case(study / "cohort", "002")):
        with pytest.raises(ReadError, match="accepted.json"):
            work()


def test_accepting_again_without_a_note_keeps_the_one_that_is_there(study):
    for note, kept in [(None, NOTE), ("", ""), (None, ""), ("twice", "twice")]:
        assert accept_case(study / "cohort", "001", note=note).rows[0]["accepted_note"] == kept


def test_progress_tells_of_an_accepted_case_that_it_is_accepted(study):
    told = []
    (study / "cohort" / "cases" / "001" / "image.npy").unlink()
    again(study, progress=lambda done, total, words: told.append(words))
    assert told == ["001 accepted"]


def test_the_command_says_what_it_did(study, capsys):
    assert main(["accept", str(study / "cohort"), "002", "--note", "one person, one day"]) == 0
    assert "case 002 is accepted | 0 done, 0 doubtful, 2 accepted, 0 failed" in capsys.readouterr().out
    assert main(["accept", str(study / "cohort"), "001", "--undo"]) == 0
    assert "case 001 is no longer accepted | 0 done, 1 doubtful, 1 accepted" in capsys.readouterr().out
    assert main(["accept", str(study / "cohort"), "003"]) == 1


def test_the_page_shows_what_was_used_and_what_was_not(study):
    raw = (study / "cohort" / "qc.html").read_text()
    page = Page(study / "cohort" / "qc.html")
    assert "2 cases of 2 subjects: 0 ok, 1 doubtful, 1 accepted, 0 failed." in page.text
    assert re.search(r"Accepted on 20\S+ \S+ UTC: =the <b>liver</b> fits", page.text)
    assert "<b>liver" not in raw and page.text.count("mmfusion accept cohort") == 1
    assert "type mmfusion accept cohort 002" in page.text
    first, second = page.text.split("Accepted on")[0], page.text.split("Accepted on")[1]
    assert "002 doubtful" in first and "used: the position of the headers" in first
    assert re.search(r"mr and pet, not used: the best position of the search, up to \d+ mm away, turned by \d+°", first)
    assert re.search(r"ct and pet, used: moved by up to [456]\d mm, turned by \d+°", second)
    assert re.search(r"ct and pet, not used: the position of the headers, up to [456]\d mm away", second)


def test_pictures_of_another_position_are_kept_where_it_is_not_that_of_the_headers(made):
    for case, wanted in {"001": set(), "002": {"other_pet"}}.items():
        with np.load(made / "cohort" / "cases" / case / "qc.npz") as arrays:
            planes = {name.removesuffix("_axial") for name in arrays if name.endswith("_axial")}
            assert {name for name in planes if name.startswith("other_")} == wanted
            for name in wanted:
                assert not np.array_equal(arrays[f"{name}_axial"], arrays["after_pet_axial"])
                assert arrays[f"histogram_{name}"].sum() > 0


def test_a_case_of_an_earlier_version_is_whole_but_cannot_be_accepted(study):
    file = study / "cohort" / "cases" / "002" / "case.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({name: record[name] for name in record.keys() - {"causes", "looked_at"}}))
    assert damaged_files(study / "cohort") == []
    with pytest.raises(CohortError, match="case 002 .* earlier version .*; run mmfusion prepare again, then accept it"):
        accept_case(study / "cohort", "002")
