"""The manifest: text stays text, every problem has a line, what is written is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmfusion.cohort import Case, join_labels, order_modalities, read_manifest, write_manifest
from mmfusion.cohort.manifest import parse_manifest
from mmfusion.errors import ManifestError, ReadError


def study(folder: Path, text: str, files: str = "", name: str = "manifest.csv") -> Path:
    """A manifest with this text, and empty files of these names beside it."""
    for file in files.split():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def problems(path: Path, **options) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    return str(caught.value)


def test_text_stays_text(tmp_path: Path) -> None:
    text = "subject,ct,label,age\n001,a.nii,0,\nNA,a.nii,1.0,1e3\nnull,a.nii,,007\n"
    cases = read_manifest(study(tmp_path, text, "a.nii"))
    assert [case.subject for case in cases] == ["001", "NA", "null"]
    assert [case.label for case in cases] == ["0", "1.0", None]
    assert [case.covariates["age"] for case in cases] == ["", "1e3", "007"]
    assert [case.line for case in cases] == [2, 3, 4]


def test_every_reserved_column_is_read(tmp_path: Path) -> None:
    text = "subject,session,label,ct,mask,site,split,fold\nA,2,benign,c.nii,m.nii,oslo,Train,3.0\n"
    (case,) = read_manifest(study(tmp_path, text, "c.nii m.nii"))
    assert case == Case("A", "2", "benign", {"ct": tmp_path / "c.nii"}, tmp_path / "m.nii", "oslo", "train", "3", {}, 2)


def test_empty_cell_and_bids_missing_value_are_missing_modalities(tmp_path: Path) -> None:
    text = "subject,ct,pet,mr,label\nA, ,p.nii,n/a,n/a\n"
    (case,) = read_manifest(study(tmp_path, text, "p.nii"))
    assert case.images == {"pet": tmp_path / "p.nii"} and case.label is None


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_byte_order_mark_blank_lines_and_quotes(tmp_path: Path, separator: str, end: str) -> None:
    rows = [["subject", "pet", "note"], [], ["A", "p.nii", f'"a{separator} b{end}c"'], ["B", "p.nii", "d"]]
    text = "\ufeff" + end.join(separator.join(row) for row in rows)
    cases = read_manifest(study(tmp_path, text, "p.nii"))
    assert [case.covariates["note"] for case in cases] == [f"a{separator} b\nc", "d"]
    assert [case.line for case in cases] == [3, 5]


@pytest.mark.parametrize(
    ("text", "encoding", "line", "notes"),
    [
        ("subject,label,ct,,\nA,NA,d/c.nii,,\nB,1,,,\n", "utf-8-sig", 2, []),
        ("subject,,label,ct\nA,,NA,d/c.nii\nB,,1\n", "utf-8", 2, []),
        (",subject,label,ct\n7,A,NA,d/c.nii\n0,B,1,\n", "utf-8", 2, ["the first column has"]),
        ('"","subject","label","ct"\n"1","A","NA","d/c.nii"\n"2","B","1",""\n', "utf-8", 2, ["the first column has"]),
        ("sep=;\r\nsubject;label;ct\r\n\r\nA;NA;d/c.nii\r\nB;1\r\n", "utf-8-sig", 4, []),
        ('"sep=|"\nsubject|label|ct\nA|NA|"d/c.nii"\nB|1\n', "utf-8", 3, []),
        ("subject\tlabel\tct\nA\tNA\td/c.nii\nB\t1\n", "utf-16", 2, []),
        ("subject\tlabel\tct\r\nA\tNA\td/c.nii\r\nB\t1\r\n", "utf-16-be", 2, []),
        ("subject,label,ct\nA,NA,d\\c.nii\nB,1,\n", "utf-8", 2, ["backslashes in the path are read as /"]),
    ],
    ids=["ends", "middle", "pandas", "R", "sep", "quoted sep", "utf-16", "big-endian", "backslashes"],
)  # fmt: skip
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, text: str, encoding: str, line: int, notes: list[str]
) -> None:
    study(tmp_path, "", "d/c.nii")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "manifest.csv").write_bytes((mark + text).encode(encoding))
    cases, modalities, found = parse_manifest(tmp_path / "manifest.csv", None)
    found = [one for one in found if one.level == "note"]  # without a scan, B is a problem of its own
    assert [(case.subject, case.label, case.line) for case in cases] == [("A", "NA", line), ("B", "1", line + 1)]
    assert cases[0].images == {"ct": tmp_path / "d" / "c.nii"} and modalities == ["ct"]
    assert not any(case.covariates for case in cases)
    assert len(found) == len(notes) and all(
        one.problem.startswith(note) for one, note in zip(found, notes, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",subject,ct\n001,A,c.nii\n", "a column has no name"),  # no program numbers rows so
        (",subject,ct\n3,A,c.nii\n3,B,c.nii\n", "a column has no name"),
        ("subject,,ct\nA,0,c.nii\n", "a column has no name"),
        ("subject,ct\nA,x\\c.nii\n", r"ct file x\c.nii does not exist"),
    ],
)
def test_what_may_be_meant_in_a_table_is_not_left_out(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(study(tmp_path, text, "c.nii"))


def test_a_name_with_a_backslash_that_exists_is_meant(tmp_path: Path) -> None:
    (tmp_path / "d\\c.nii").touch()
    path = study(tmp_path, "subject,ct\nA,d\\c.nii\n", "d/c.nii")
    assert read_manifest(path)[0].images == {"ct": tmp_path / "d\\c.nii"} and not parse_manifest(path).problems


def test_utf_16_without_its_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("subject,ct\nA,c.nii\n".encode("utf-16-le"))
    with pytest.raises(ReadError, match=r"m.csv is no table, it holds zero bytes; .* Save it as CSV in UTF-8"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("column", "cell", "is_modality"),
    [
        ("ct", "x", True),
        ("CT", "", True),
        ("t1gd", "x", True),
        ("pet_amyloid", "x", True),
        ("pet_suv_peak", "7.5", False),
        ("flair_mask", "f.nii", False),
        ("lesion_seg", "f.nii", False),
        ("amyloid", "other/f.mha", True),
        ("amyloid", "folder", True),
        ("amyloid", "positive", False),
        ("amyloid", "", False),
        ("dose_mbq", "300", False),
        ("year", "2000", False),  # a folder of that name does not make it a path
    ],
)
def test_which_columns_are_modalities(tmp_path: Path, column: str, cell: str, is_modality: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "2000").mkdir()
    path = study(tmp_path, f"subject,mr,{column}\nA,m.nii,{cell}\n")
    (case,) = read_manifest(path, files_must_exist=False)
    assert (column in case.images) == (is_modality and bool(cell))
    assert (column in case.covariates) == (not is_modality)


def test_modalities_asked_for_come_in_that_order_and_others_are_no_covariates(tmp_path: Path) -> None:
    path = study(tmp_path, "subject,ct,tau,mr,age\nA,c.nii,x,m.nii,5\n")
    (case,) = read_manifest(path, ["mr", "tau"], files_must_exist=False)
    assert list(case.images) == ["mr", "tau"] and case.covariates == {"age": "5"}


def test_missing_file_names_subject_cell_and_line(tmp_path: Path) -> None:
    path = study(tmp_path, "subject,ct,mr\nA,c.nii,\n017,scans/017_ct.nii.gz,folder\n", "c.nii folder")
    assert problems(path) == (
        "subject 017: ct file scans/017_ct.nii.gz does not exist (manifest.csv line 3). Fix the path, leave the "
        "cell empty to go on without CT for this subject, or drop the row."
    )
    assert len(read_manifest(path, files_must_exist=False)) == 2


def test_missing_column_with_the_nearest(tmp_path: Path) -> None:
    path = study(tmp_path, "subject,CT,pet,label\nA,c.nii,p.nii,0\n", "c.nii p.nii")
    assert problems(path, modalities=["ct", "pet"]) == (
        "manifest.csv has columns subject, CT, pet, label; no column ct. Did you mean 'CT'?"
    )
    assert problems(path, modalities=["pet", "xyz"]).endswith("no column xyz. Add a column xyz.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id,ct\nA,c.nii\n", "no column subject. Did you mean 'participant_id'? Rename it"),
        ("Patient ID,ct\nA,c.nii\n", "no column subject. Did you mean 'Patient ID'? Rename it"),
        ("Subject,ct\nA,c.nii\n", "no column subject. Did you mean 'Subject'? Rename it"),
        ("subject,ct\n", "manifest.csv has no case, only a header"),
        ("subject,age\nA,1\n", "manifest.csv has columns subject, age; none of them is a modality"),
        ("subject,ct,ct\nA,c.nii,c.nii\n", "column ct appears 2 times (manifest.csv line 1). Rename or delete"),
        (",subject,ct\nx,A,c.nii\n", "a column has no name (manifest.csv line 1). Name it or delete it."),
        ("subject,ct\nA,c.nii,d\n", "the row has 3 cells, the header has 2 (manifest.csv line 2). Put cells"),
        ("subject,ct\n,c.nii\n", "the row has no subject (manifest.csv line 2)"),
        ("subject,ct,pet\nA,,\n", "subject A: the row has no modality (none of ct, pet) (manifest.csv line 2)"),
        ("subject,ct\nA,c.nii\nA,c.nii\n", "subject A: the same session is already on line 2 (manifest.csv line 3)"),
        ("subject,session,ct\nA,1,c.nii\nA,1,c.nii\n", "session 1 is already on line 2"),
        ("subject,ct\na/b,c.nii\na_b,c.nii\n", "share the folder name a_b with line 2 (manifest.csv line 3)"),
        ("subject,ct,split\nA,c.nii,val\n", "split is 'val' (manifest.csv line 2). Did you mean validation?"),
        ("subject,ct,fold\nA,c.nii,one\n", "fold is 'one' (manifest.csv line 2). Folds are numbered 0"),
        ("subject,ct,mask\nA,c.nii,m.nii\n", "mask file m.nii does not exist (manifest.csv line 2). Fix the path"),
    ],
)  # fmt: skip
def test_one_problem_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    found = problems(study(tmp_path, text, "c.nii"))
    assert message in found and "\n" not in found


def test_all_problems_are_listed_by_line(tmp_path: Path) -> None:
    text = "subject,ct,split\nA,gone.nii,\nB,,tset\nA,c.nii,\nC,c.nii,,\nD,c.nii,,x\n"
    lines = problems(study(tmp_path, text, "c.nii")).splitlines()
    assert lines[0] == "manifest.csv has 5 problems:"
    assert [line.split("line ")[-1].split(")")[0] for line in lines[1:]] == ["2", "3", "3", "4", "6"]


def test_what_is_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nope.csv does not exist or is not a file"):
        read_manifest(tmp_path / "nope.csv")
    (tmp_path / "excel.csv").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ReadError, match=r"excel.csv is not text in UTF-8 .*\(in Excel 'CSV UTF-8'\)"):
        read_manifest(tmp_path / "excel.csv")
    with pytest.raises(ReadError, match=r"empty.csv is empty; a header line"):
        read_manifest(study(tmp_path, " \n\n", name="empty.csv"))
    with pytest.raises(ReadError, match=r"huge.csv is no table \(field larger.*, line 2\)"):
        read_manifest(study(tmp_path, "subject,ct\nA," + "x" * 200_000, name="huge.csv"))


@pytest.mark.parametrize(
    ("subject", "session", "folder"),
    [("001", "", "001"), ("A", "2", "A_2"), ("..", "", "_."), ("../x", "", "_._x"), (".x", "", "_x")]
    + [("a b/ü", "1:2", "a_b___1_2"), ("/", "", "_"), ("a\\b", "", "a_b")],
)
def test_id_is_a_safe_folder_name(tmp_path: Path, subject: str, session: str, folder: str) -> None:
    assert Case(subject, session).id == folder
    assert (tmp_path / folder).resolve().parent == tmp_path.resolve()


def test_a_series_of_a_folder_exists_if_the_folder_does(tmp_path: Path) -> None:
    path = study(tmp_path, "subject,ct,amyloid\nA,d#1.2,d#1.3\n", "d/1.dcm")
    (case,) = read_manifest(path)
    assert case.images == {"ct": tmp_path / "d#1.2", "amyloid": tmp_path / "d#1.3"}


def test_zip_files_of_dicom_are_volumes(tmp_path: Path) -> None:
    path = study(tmp_path, "subject,ct,amyloid\nA,a.zip#1.2.3,b.ZIP\n", "a.zip b.ZIP")
    assert read_manifest(path)[0].images == {"ct": tmp_path / "a.zip#1.2.3", "amyloid": tmp_path / "b.ZIP"}


def test_a_structure_of_a_mask_is_named_in_one_place(tmp_path: Path) -> None:
    text = 'subject,ct,mask,roi\nA,c.nii,m.dcm#GTV-1,\nB,c.nii,m.dcm,"GTV*,n?"\nC,c.nii,,\n'
    cases = read_manifest(study(tmp_path, text, "c.nii m.dcm"))
    assert [(case.mask, case.roi) for case in cases] == [
        (tmp_path / "m.dcm#GTV-1", ""), (tmp_path / "m.dcm", "GTV*,n?"), (None, ""),
    ]  # fmt: skip
    write_manifest(cases, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == text
    both = study(tmp_path, "subject,ct,mask,roi\nA,c.nii,m.dcm#GTV-1,GTV-2\n", "c.nii m.dcm")
    assert "the mask names a structure behind #, and column roi names one" in problems(both)
    gone = study(tmp_path, "subject,ct,mask\nA,c.nii,gone.dcm#GTV-1\n", "c.nii")
    assert "mask path gone.dcm#GTV-1 does not exist" in problems(gone)


def test_written_is_read_back(tmp_path: Path) -> None:
    files = ["a.nii", "d", "x/m,1.nii"]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    cases = [
        Case("001", "1", "0", {"mr": tmp_path / "a.nii"}, tmp_path / "x/m,1.nii", "s", "train", "0", {"age": "7"}),
        Case("001", "2", None, {"ct": tmp_path / "d#1.2.3", "pet": tmp_path / "a.nii"}, covariates={"age": ""}),
    ]  # fmt: skip
    path = tmp_path / "sub" / "manifest.csv"
    write_manifest(cases, path)
    lines = path.read_text().splitlines()
    assert lines[0] == "subject,session,label,site,split,fold,ct,pet,mr,mask,age"
    assert lines[2] == "001,2,,,,,../d#1.2.3,../a.nii,,,"
    read = read_manifest(path)
    assert [case.line for case in read] == [2, 3]
    for case, back in zip(cases, read, strict=True):
        same = {name: file.resolve() for name, file in back.images.items()}
        assert replace(back, images=same, mask=back.mask and back.mask.resolve(), line=0) == case
    assert [file.name for file in path.parent.iterdir()] == ["manifest.csv"]


def test_paths_elsewhere_stay_absolute_and_modalities_are_chosen(tmp_path: Path) -> None:
    case = Case("A", images={"ct": Path("/elsewhere/c.nii"), "pet": tmp_path / "p.nii"})
    write_manifest([case], tmp_path / "m.csv", ["pet", "ct"])
    assert (tmp_path / "m.csv").read_text() == "subject,pet,ct\nA,p.nii,/elsewhere/c.nii\n"


def test_order_of_modalities() -> None:
    assert order_modalities(["tau", "mr_t2", "mr", "CT", "pet", "amyloid", "mr"]) == (
        ["CT", "pet", "mr", "mr_t2", "amyloid", "tau"]
    )


def labels(tmp_path: Path, text: str, *cases: Case, column: str = "dx", **options):
    return join_labels(cases, study(tmp_path, text, name="labels.csv"), column, **options)


def test_labels_join_by_subject_not_by_order(tmp_path: Path) -> None:
    joined, notes = labels(tmp_path, "subject,age,dx\nB,5,1\nA,6,0\n", Case("A"), Case("B", "1"), Case("B", "2"))
    assert [case.label for case in joined] == ["0", "1", "1"] and notes == []


def test_labels_by_session_where_both_have_it(tmp_path: Path) -> None:
    text = "who,session,dx\nA,1,mci\nA,2,ad\n"
    joined, notes = labels(tmp_path, text, Case("A", "2"), Case("A", "1"), Case("A", "3"), subject_column="who")
    assert [case.label for case in joined] == ["ad", "mci", None]
    assert notes == ["labels.csv has no dx for 1: A 3"]


def test_who_does_not_match_is_named_with_the_nearest(tmp_path: Path) -> None:
    text = "subject,dx\nsub-01,1\nSTS_2,1\nX,0\nC,0\nD,\n"
    joined, notes = labels(tmp_path, text, *[Case(s) for s in ("1", "STS_002", "C", "D", "zzz")])
    assert [case.label for case in joined] == [None, None, "0", None, None]
    assert notes == [
        "labels.csv has no dx for 4: 1 (near: sub-01), STS_002 (near: STS_2), D, zzz",
        "3 of labels.csv are not in the study: sub-01 (near: 1), STS_2 (near: STS_002), X",
    ]


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    text = "subject,dx\nA,0\n" + "".join(f"{n:03},1\n" for n in range(500, 531))
    assert labels(tmp_path, text, Case("A"))[1][0].endswith("508, 509 and 21 more")


def test_contradicting_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"subject A: dx is '0' on line 2 and '1' \(labels.csv line 4\)"):
        labels(tmp_path, "subject,dx\nA,0\nA,0\nA,1\n", Case("A"))
    with pytest.raises(ManifestError, match=r"subject A: label is '1' but labels.csv says '0'"):
        labels(tmp_path, "subject,dx\nA,0\n", Case("A", label="1", line=7))


def test_a_label_table_with_shifted_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"the row has 4 cells, the header has 3 \(labels.csv line 2\). Put cells"):
        labels(tmp_path, "subject,name,dx\nA,Doe, John,1\n", Case("A"))
    with pytest.raises(ManifestError, match=r"column dx appears 2 times \(labels.csv line 1\). Rename or delete"):
        labels(tmp_path, "subject,dx,dx\nA,0,1\n", Case("A"))
    assert labels(tmp_path, "dx,subject\n1,A\n0\n", Case("A"))[0][0].label == "1"


def test_a_label_table_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no column dx. Did you mean 'DX'\?"):
        labels(tmp_path, "subject,DX\nA,0\n", Case("A"))
    with pytest.raises(ManifestError, match=r"no column who. Add a column who"):
        labels(tmp_path, "subject,dx\nA,0\n", Case("A"), subject_column="who")
    message = r"no subject of the study is in column subject of labels.csv: the study has A1 \(near: sub-A1\)"
    with pytest.raises(ManifestError, match=message):
        labels(tmp_path, "subject,dx\nsub-A1,0\n", Case("A1"))
