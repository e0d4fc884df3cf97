"""Checking a study: every problem found at once, from headers, with line, subject and remedy."""

from __future__ import annotations

import gzip
from datetime import date, timedelta
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from io_dicom import circle, pet_tags, voxels, write_rtstruct, write_series

from mmfusion.cohort import Problem, build_index, check_manifest, doubtful_labels, format_problems
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Volume

RNG = np.random.default_rng(0)
UNITS = {"CT": "HU", "PT": "SUVbw", "MR": "a.u."}


def nifti(path: Path, shape=(5, 7, 6), affine=None, spacing: float = 4.0) -> Path:
    """Random voxels; a new file differs from every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(RNG.integers(0, 99, shape).astype(np.int16), affine)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def check(folder: Path, text: str, **options) -> list[tuple[str, int, str, str, str]]:
    """(level, line, subject, modality, problem) of a manifest; ``*.nii`` named in it are made unless there."""
    for word in text.replace("\n", ",").split(","):
        if word.endswith(".nii") and not word.startswith("gone") and not (folder / word).exists():
            nifti(folder / word)
    (folder / "m.csv").write_text(text)
    found = check_manifest(folder / "m.csv", **options)
    return [(one.level, one.line, one.subject, one.modality, one.problem) for one in found]


GOOD = "subject,label,ct,mr\nA,0,a.nii,b.nii\nB,0,c.nii,d.nii\nC,1,e.nii,f.nii\nD,1,g.nii,h.nii\n"


def test_a_good_study_has_no_problem(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert check(tmp_path, GOOD, progress=lambda *step: calls.append(step)) == []
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_all_problems_at_once_errors_first(tmp_path: Path) -> None:
    (tmp_path / "h.nii").write_bytes(b"nothing" * 99)
    nifti(tmp_path / "c.nii", (5, 7, 6, 3))
    text = GOOD.replace("a.nii", "gone.nii").replace("D,1", "A,")
    found = check(tmp_path, text)
    assert [(level, line, modality) for level, line, _, modality, _ in found] == [
        ("error", 0, ""),
        ("error", 2, "ct"),
        ("error", 3, "ct"),
        ("error", 5, ""),
        ("error", 5, "mr"),
        ("warning", 5, ""),
    ]
    words = ["class 1 has one subject, C", "ct file gone.nii does not exist", "3 frames; one static frame is"]
    words += ["the same session is already on line 2", "mr is not a NIfTI file", "no label"]
    assert all(word in one[4] for word, one in zip(words, found, strict=True))


def test_reading_options_reach_the_reader(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii", (5, 7, 6, 3))
    assert ("note", 2, "A", "ct") in [one[:4] for one in check(tmp_path, GOOD, frame="last")]
    assert not [one for one in check(tmp_path, GOOD, frame="last") if one[0] == "error"]


def test_no_orientation_keeps_its_remedy(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), None)
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    nifti(tmp_path / "b.nii")
    (tmp_path / "m.csv").write_text("subject,ct,mr\nA,a.nii,b.nii\n")
    (one,) = [one for one in check_manifest(tmp_path / "m.csv") if one.level == "error"]
    assert "no orientation" in one.problem and "--assume-orientation" in one.problem + one.remedy
    assert not [p for p in check_manifest(tmp_path / "m.csv", assume_orientation="LAS") if p.level == "error"]


def test_orientations_that_differ_are_a_note(tmp_path: Path) -> None:
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = 16, 24, 0
    nifti(tmp_path / "a.nii", affine=affine)
    assert check(tmp_path, GOOD) == [("note", 2, "A", "", "ct LPS, mr RAS: reoriented")]


def test_which_structure_of_a_mask_is_used(tmp_path: Path) -> None:
    drawn = {"External": [circle(30, 0)], "GTV-1": [circle(9, 0)]}
    write_rtstruct(tmp_path / "one.dcm", drawn, lambda n: "")
    write_rtstruct(tmp_path / "two.dcm", {**drawn, "GTV-2": [circle(5, 0)]})
    text = GOOD.replace("mr\n", "mr,mask,roi\n").replace("b.nii", "b.nii,one.dcm,").replace("d.nii", "d.nii,two.dcm,")
    said = [
        ("error", 3, "B", "mask", "mask holds 2 structures that can be the lesion: GTV-1, GTV-2"),
        ("note", 2, "A", "mask", "GTV-1 is used, the only one that can be a lesion; beside it External"),
        ("note", 2, "A", "mask", "1 contours of GTV-1 have no known ContourGeometricType and are taken as closed"),
    ]
    assert check(tmp_path, text) == said
    two = ("note", 3, "B", "mask", "joined: GTV-1, GTV-2; beside it External")
    assert check(tmp_path, text.replace("two.dcm,", "two.dcm,gtv*")) == [*said[1:], two]
    assert check(tmp_path, text, roi=["gtv-?"])[-1] == two


def test_spacing(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii", affine=np.diag([3, 3, 12.5, 1]))
    nifti(tmp_path / "d.nii", spacing=0.05)
    found = check(tmp_path, GOOD)
    assert ("warning", 2, "A", "ct", "spacing 3 x 3 x 12.5 mm is unusual") in found
    assert ("warning", 3, "B", "mr", "spacing 0.05 x 0.05 x 0.05 mm is unusual") in found


def far(offset: float) -> np.ndarray:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = 0, 0, offset
    return affine


def test_fields_of_view_apart(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii", affine=far(412))
    problem = "mr and ct share 0 % of their field of view (centers 412 mm apart)"
    assert check(tmp_path, GOOD) == [("warning", 2, "A", "", problem)]


@pytest.mark.parametrize(("same", "level"), [(True, "error"), (False, "warning")])
def test_fields_of_view_apart_in_one_frame_of_reference(tmp_path: Path, same: bool, level: str) -> None:
    for number, (modality, units) in enumerate((("CT", "HU"), ("MR", "a.u."))):
        volume = Volume(RNG.normal(90, 9, (5, 6, 4)).astype(np.float32), far(300 * number), units=units)
        options = {"patient_id": "A", "study_uid": "1.1", "frame_of_reference": f"1.2.{number * (not same)}"}
        save_dicom_series(volume, tmp_path / modality, modality=modality, **options)
    build_index(tmp_path).write(tmp_path / "m.csv")
    found = [one for one in check_manifest(tmp_path / "m.csv") if "share 0 %" in one.problem]
    assert [one.level for one in found] == [level]
    assert ("one frame of reference" in found[0].problem) == same


@pytest.mark.parametrize(
    ("kinds", "days", "warned"),
    [(("CT", "PT"), 1, True), (("CT", "PT"), 0, False), (("CT", "MR"), 30, False), (("CT", "MR"), 31, True)],
)
def test_scans_of_one_row_that_are_days_apart(tmp_path: Path, kinds: tuple, days: int, warned: bool) -> None:
    for kind, day in zip(kinds, (date(2020, 1, 9), date(2020, 1, 9) + timedelta(days)), strict=True):
        volume = Volume(RNG.uniform(1, 9, (5, 6, 4)).astype(np.float32), far(0), units=UNITS[kind])
        tags = {"AcquisitionDate": day.strftime("%Y%m%d")}
        save_dicom_series(volume, tmp_path / kind, modality=kind, patient_id="A", tags=tags)
    found = check(tmp_path, f"subject,ct,{kinds[1].lower()}\nA,CT,{kinds[1]}\n".replace("pt\n", "pet\n"))
    name = {"PT": "pet"}.get(kinds[1], "mr")
    assert (("warning", 2, "A", "", f"ct and {name} are {days} days apart") in found) == warned
    assert any("days apart" in one[4] for one in found) == warned


def test_spellings_of_one_person_on_two_sides(tmp_path: Path) -> None:
    rows = "a-1,0,train,a.nii\nA1,0,test,c.nii\nP01,1,train,e.nii\nP1,1,test,g.nii\n"
    found = check(tmp_path, "subject,label,split,ct\n" + rows)
    error = "1 subject is in both train and test: A1 alias a-1 (lines 2, 3; rename one if they are two people)"
    assert ("error", 0, "", "", error) in found
    assert {one[1] for one in found if "may be " in one[4]} == {3, 5}
    found = check(tmp_path, "subject,label,split,ct\n" + rows.replace("A1,0,test", "A1,0,train"))
    assert [one[:2] for one in found if "P01 alias P1" in one[4]] == [("warning", 0)]


def test_pet_details_come_from_the_manifest(tmp_path: Path) -> None:
    volume = Volume(RNG.uniform(0, 9e3, (5, 6, 4)).astype(np.float32), far(0), units="Bq/mL")
    save_dicom_series(volume, tmp_path / "p", modality="PT", patient_id="A")
    bare = check(tmp_path, "subject,pet\nA,p\n")
    assert [one[0] for one in bare if "SUV cannot be computed" in one[4]] == ["error"]
    text = "subject,pet,weight_kg,dose_mbq,injection_time,half_life_s\nA,p,70,300,11:00:00,6586.2\n"
    assert not [one for one in check(tmp_path, text) if one[0] == "error"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("0011", []),
        ("0000", [("error", "every label is '0'")]),
        ("0001", [("error", "class 1 has one subject, D")]),
        ("----", [("note", "no row has a label")]),
        ("00111-", [("warning", "no label")]),
    ],
)
def test_labels(tmp_path: Path, labels: str, expected: list[tuple[str, str]]) -> None:
    rows = [f"{'ABCDEF'[n]},{one.strip('-')},{n}a.nii,{n}b.nii" for n, one in enumerate(labels)]
    found = check(tmp_path, "\n".join(["subject,label,ct,mr", *rows]))
    assert [(one[0], one[4]) for one in found] == expected


@pytest.mark.parametrize("word", ["NA", "N/A", "nan", "None", "NULL", "#N/A", "#NV", "-", "?", ".", "<NA>"])
def test_labels_that_look_like_unknown_values(tmp_path: Path, word: str) -> None:
    rows = [f"{n},{one},{n}a.nii,{n}b.nii" for n, one in enumerate(["0", word, "1", word, "0", "1"])]
    problem = f"label {word!r} (2 rows) looks like an unknown value, and counts as a class"
    assert check(tmp_path, "\n".join(["subject,label,ct,mr", *rows])) == [("warning", 0, "", "", problem)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("AD ad CN CN ad", ["'AD' (1 row) and 'ad' (2 rows)"]),
        ("1 0 1.0 0 01", ["'01' (1 row) and '1' (1 row) and '1.0' (1 row)"]),
        ("Yes,no,YES,no", ["'YES' (1 row) and 'Yes' (1 row)"]),
        ("mild AD,mild  ad,CN,CN", ["'mild  ad' (1 row) and 'mild AD' (1 row)"]),
        ("\uff11 0 1 0", ["'1' (1 row) and '\uff11' (1 row)"]),  # the wide digit of Japanese keyboards
        ("Caf\u00e9 0 Cafe\u0301 0", ["'Cafe\u0301' (1 row) and 'Caf\u00e9' (1 row)"]),
        ("ER+ ER- ER+ ER-", []),
        ("1 10 1 10", []),
        ("IIa IIb Ia IIa", []),
    ],
)
def test_spellings_of_one_label(labels: str, words: list[str]) -> None:
    found = doubtful_labels(labels.split("," if "," in labels else " "))
    spelled = [one.problem for one in found if "unknown" not in one.problem]
    assert spelled == [f"labels {one} differ only in spelling" for one in words]


def test_labels_that_are_named_as_classes_are_meant() -> None:
    labels = ["AD", "ad", None, "NA", "CN"]
    assert len(doubtful_labels(labels)) == 2
    assert doubtful_labels(labels, ["NA", "CN", "AD", "ad"]) == doubtful_labels(labels, ["NA", "CN"]) == []
    assert [one.problem for one in doubtful_labels(labels, ["AD", "CN"])] == [
        "labels 'AD' (1 row) and 'ad' (1 row) differ only in spelling"
    ]


def test_leaks(tmp_path: Path) -> None:
    text = (
        "subject,session,split,fold,ct,mr\n1,a,train,0,a.nii,b.nii\n1,b,test,0,c.nii,d.nii\n"
        "2,a,train,0,e.nii,f.nii\n2,b,train,1,g.nii,h.nii\n"
    )
    found = [one[4] for one in check(tmp_path, text) if one[0] == "error"]
    assert found == [
        "1 subject is in both train and test: 1 (lines 2, 3)",
        "1 subject is in both fold 0 and fold 1: 2 (lines 4, 5)",
    ]


def test_same_content_under_two_subjects(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii")
    (tmp_path / "e.nii").write_bytes((tmp_path / "a.nii").read_bytes())
    text = GOOD.replace("d.nii", "a.nii").replace("g.nii", "h.nii")
    warnings = [one for one in check(tmp_path, text) if one[0] == "warning"]
    assert warnings == [
        ("warning", 3, "B", "mr", "same content as subject A ct (line 2)"),
        ("warning", 4, "C", "ct", "same content as subject A ct (line 2)"),
        ("warning", 5, "D", "mr", "same content as ct of this row"),
    ]


def test_same_dicom_voxels_under_two_names(tmp_path: Path) -> None:
    voxels = RNG.normal(0, 99, (5, 6, 4)).astype(np.float32)
    for name in ("A", "B"):
        volume = Volume(voxels, far(0), units="HU")
        save_dicom_series(volume, tmp_path / name, modality="CT", patient_id=name)
    empty = voxels.copy()
    empty[..., 2] = 0  # two scans with an empty middle slice are not the same
    for name in ("C", "D"):
        empty[..., 0] = RNG.normal(0, 99, (5, 6))
        save_dicom_series(Volume(empty, far(0), units="HU"), tmp_path / name, modality="CT", patient_id=name)
    found = check(tmp_path, "subject,ct\nA,A\nB,B\nC,C\nD,D\n")
    warnings = [one for one in found if one[0] == "warning"]
    assert warnings == [("warning", 3, "B", "ct", "same content as subject A ct (line 2)")]


def test_one_series_of_a_shared_folder_under_two_subjects(tmp_path: Path) -> None:
    volume = Volume(RNG.normal(0, 99, (5, 6, 4)).astype(np.float32), far(0), units="HU")
    save_dicom_series(volume, tmp_path / "s", modality="CT", patient_id="A", series_uid="1.2.3")
    found = check(tmp_path, "subject,ct\nA,s#1.2.3\nB,s#1.2.3\n")
    assert ("warning", 3, "B", "ct", "same content as subject A ct (line 2)") in found
    assert not [one for one in found if one[0] == "error"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    found = check(tmp_path, "subject,ct,mr\nA,x,b.nii\nB,x,d.nii\n")
    assert [one[1:4] for one in found if one[0] == "error"] == [(2, "A", "ct"), (3, "B", "ct")]


def test_rows_with_one_modality_and_spelling(tmp_path: Path) -> None:
    text = "subject,ct,mr\nA,a.nii,b.nii\nB,c.nii,\na,e.nii,f.nii\n"
    found = check(tmp_path, text)
    assert ("note", 3, "B", "ct", "only ct") in found
    problem = "may be A (line 2): the names differ only in case, spaces, punctuation, leading zeros or Unicode form"
    assert ("warning", 4, "a", "", problem) in found
    assert ("note", 0, "", "", "the only modality is ct") in check(tmp_path, text, modalities=["ct"])


def test_no_case_at_all(tmp_path: Path) -> None:
    assert [one[4] for one in check(tmp_path, "subject,ct\n")] == ["m.csv has no case, only a header"]


def test_table() -> None:
    problems = [Problem("note", line, f"S{line}", "", "ct LPS, pet RAS: reoriented") for line in (2, 3, 4, 7, 8)]
    problems += [Problem("error", 3, "S3", "ct", "ct file x does not exist", "Fix the path.")]
    problems += [Problem("warning", 0, "", "", "one class", "Add another.")]
    assert format_problems(problems).splitlines() == [
        "line      subject  modality  problem                            remedy",
        "3         S3       ct        error: ct file x does not exist    Fix the path.",
        "                             warning: one class                 Add another.",
        "2-4, 7-8  5 rows             note: ct LPS, pet RAS: reoriented",
        "",
        "1 error, 1 warning, 5 notes",
    ]
    scaled = [Problem("note", n, f"S{n}", "pet", f"scaled by {n}e-4 g/mL") for n in (5, 6, 7)]
    assert format_problems(scaled).splitlines()[1:] == [
        "5-7   3 rows   pet       note: scaled by 5e-4 g/mL (others likewise)",
        "",
        "0 errors, 0 warnings, 3 notes",
    ]
    assert format_problems([]) == "0 errors, 0 warnings, 0 notes"


@pytest.mark.realdata
@pytest.mark.slow
def test_soft_tissue_sarcoma_has_no_problem(testdata: Path, tmp_path: Path) -> None:
    root = testdata / "sts_dicom"
    build_index(root, labels=root / "participants.csv", label="lung_metastasis").write(tmp_path / "m.csv")
    found = check_manifest(tmp_path / "m.csv")
    assert {(one.level, one.modality) for one in found} == {("warning", "")}
    assert all("days apart" in one.problem for one in found) and len(found) == 6  # the MR of these was made on its own
    deep = check_manifest(tmp_path / "m.csv", deep=True)
    clipped = [one for one in deep if "of the mask lies above suv_max 25" in one.problem]
    assert [(one.level, one.modality) for one in clipped] == [("note", "pet")] * 3
    assert [one for one in deep if one not in clipped] == found


def test_what_cannot_be_of_a_pet_scan_is_told_without_its_voxels(tmp_path: Path) -> None:
    """A dose in kBq in the header; a long uptake by the clock; columns for a file without tags."""
    write_series(tmp_path / "dose", np.abs(voxels()), **pet_tags(RadionuclideTotalDose=3.5e5))
    tags = pet_tags(RadiopharmaceuticalStartTime="030000") | {"PatientID": "S02"}
    write_series(tmp_path / "uptake", np.abs(voxels(seed=1)), **tags)
    head = "subject,label,pet,weight_kg,dose_mbq,injection_time,acquisition_time\n"
    rows = "A,0,dose,,,,\nB,1,uptake,,,,\nC,0,c.nii,70000,350,09:00,10:00\nD,1,d.nii,70,350,09:00,10:00\n"
    found = [row for row in check(tmp_path, head + rows) if row[3] == "pet" and row[0] != "note"]
    assert [(level, subject) for level, _, subject, _, _ in found] == [
        ("error", "A"), ("warning", "B"), ("warning", "C"),
    ]  # fmt: skip
    for (*_, problem), words in zip(found, ("is 0.35 MBq", "7.0 h before the scan", "70000 kg cannot be"), strict=True):
        assert words in problem
    assert [row[0] for row in check(tmp_path, head + rows, suv="none") if row[3] == "pet" and row[0] != "note"] == []
    found = check(tmp_path, head + rows, suvr="gone_{subject}.nii#1")
    assert [row[0] for row in found if row[3] == "pet" and row[0] != "note"] == ["error"] * 4
    assert any("reference_region does not exist" in row[4] for row in found)


def test_a_folder_of_gzipped_or_no_dicom_has_copies_too(tmp_path: Path) -> None:
    for subject in "AB":
        folder = tmp_path / subject
        write_series(folder, voxels((7, 5, 6)), Modality="MR", PatientID=subject)
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        (tmp_path / f"text{subject}").mkdir()
        (tmp_path / f"text{subject}" / "a").write_text("x")
    (tmp_path / "m.csv").write_text("subject,mr,pet\nA,A#made,textA\nB,B#made,textB\n")
    found = [one.problem for one in check_manifest(tmp_path / "m.csv") if one.modality == "mr"]
    assert found == ["same content as subject A mr (line 2)"]


def test_scans_of_two_people_in_one_row_and_of_one_person_under_two_subjects(tmp_path: Path) -> None:
    for name, person in (("a", "P-1"), ("b", "p 1"), ("c", "P2"), ("d", "ANONYMOUS"), ("e", "anonymous")):
        write_series(tmp_path / name, voxels(seed=ord(name)), Modality="MR", PatientID=person)
    table = "subject,label,mr,t2\nA,0,a,b\nB,1,c,a\nC,1,d,\nD,0,e,\n"
    found = [(row[2], row[3], row[4]) for row in check(tmp_path, table) if "PatientID" in row[4]]
    assert found == [
        ("B", "", "mr and t2 have different PatientIDs"),
        ("B", "t2", "same PatientID as subject A (line 2)"),
    ]
