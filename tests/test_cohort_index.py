"""From folders to rows: small DICOM trees written here, each with a known answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RTStructureSetStorage, generate_uid

from mmfusion.cohort import build_index, read_manifest
from mmfusion.errors import ManifestError, ReadError
from mmfusion.io import load_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.prepare.sources import case_key, case_stamp, source_digests
from mmfusion.volume import Volume

FRAME = "1.2.3.4"


def series(folder: Path, modality: str, patient: str = "A", *, slices: int = 4, study: str = "1.1", **tags) -> str:
    """A small series; its SeriesInstanceUID."""
    values = np.random.default_rng(0).normal(100, 20, (5, 6, slices))
    units = {"CT": "HU", "PT": "SUVbw"}.get(modality, "a.u.")
    uid = generate_uid()
    volume = Volume(values.astype(np.float32), np.diag([2.0, 2.0, 3.0, 1.0]), units=units)
    options = {"study_uid": study, "series_uid": uid, "frame_of_reference": FRAME}
    save_dicom_series(volume, folder, modality=modality, patient_id=patient, **options, tags=tags)
    return uid


def contour(path: Path, patient: str = "A", refers: str = "", frame: str = FRAME, number: int = 9) -> Path:
    """An RTSTRUCT without contours, drawn on series ``refers`` in frame of reference ``frame``."""
    mask = pydicom.Dataset()
    mask.file_meta = pydicom.dataset.FileMetaDataset()
    mask.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    mask.file_meta.MediaStorageSOPClassUID = mask.SOPClassUID = RTStructureSetStorage
    mask.file_meta.MediaStorageSOPInstanceUID = mask.SOPInstanceUID = generate_uid()
    mask.Modality, mask.PatientID, mask.StudyInstanceUID = "RTSTRUCT", patient, "1.9"
    mask.SeriesInstanceUID, mask.SeriesNumber, mask.SeriesDescription = generate_uid(), number, path.stem
    link = pydicom.Dataset()
    link.FrameOfReferenceUID = frame
    if refers:
        within, study = pydicom.Dataset(), pydicom.Dataset()
        within.SeriesInstanceUID = refers
        study.RTReferencedSeriesSequence = [within]
        link.RTReferencedStudySequence = [study]
    mask.ReferencedFrameOfReferenceSequence = [link]
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save_as(path, enforce_file_format=True)
    return path


def table(root: Path, **options) -> dict[str, dict[str, str]]:
    """Case id to column to path below the root."""
    return {
        case.id: {name: str(path.relative_to(root)) for name, path in case.images.items()}
        for case in build_index(root, **options).cases
    }


def reasons(root: Path) -> dict[str, str]:
    return {str(one.path.relative_to(root)): one.reason for one in build_index(root).others}


def test_one_series_a_modality_gives_plain_columns(tmp_path: Path) -> None:
    for patient in ("B", "A"):
        for modality in ("MR", "CT", "PT"):
            series(tmp_path / patient / modality, modality, patient)
    index = build_index(tmp_path)
    assert index.modalities == ["ct", "pet", "mr"] and not index.others and not index.notes
    assert table(tmp_path) == {p: {"ct": f"{p}/CT", "pet": f"{p}/PT", "mr": f"{p}/MR"} for p in "AB"}


def test_written_index_is_a_manifest(tmp_path: Path) -> None:
    series(tmp_path / "A" / "x", "CT")
    (tmp_path / "labels.csv").write_text("subject,label\nA,1\nZ,0\n")
    index = build_index(tmp_path, labels=tmp_path / "labels.csv")
    index.write(tmp_path / "manifest.csv")
    assert (tmp_path / "manifest.csv").read_text() == "subject,label,ct\nA,1,A/x\n"
    assert read_manifest(tmp_path / "manifest.csv")[0].images == index.cases[0].images
    assert index.notes == ["not images: 1 .csv", "1 of labels.csv are not in the study: Z"]
    with pytest.raises(ManifestError, match=r"labels.csv has columns subject, label; no column dx"):
        build_index(tmp_path, labels=tmp_path / "labels.csv", label="dx")


def test_labels_that_are_hardly_meant_are_noted(tmp_path: Path) -> None:
    for subject in "ABC":
        series(tmp_path / subject / "x", "CT", subject)
    (tmp_path / "labels.csv").write_text(",subject,label\n0,A,NA\n1,B,AD\n2,C,ad\n")
    assert build_index(tmp_path, labels=tmp_path / "labels.csv").notes == [
        "not images: 1 .csv",
        "labels.csv: the first column has no name and numbers the rows; left out",
        "label 'NA' (1 row) looks like an unknown value, and counts as a class",
        "labels 'AD' (1 row) and 'ad' (1 row) differ only in spelling",
    ]


def test_mr_of_several_kinds_is_named_by_kind_in_every_row(tmp_path: Path) -> None:
    for name in (
        "T2 TSE tra",
        "t1_mprage",
        "T1 post Gd",
        "T2 dark fluid",
        "ep2d_diff_ADC",
        "calc_b1400",
        "DCE",
    ):
        series(tmp_path / "A" / name, "MR", SeriesDescription=name)
    series(tmp_path / "B" / "m", "MR", "B", SeriesDescription="", ProtocolName="PD fs")
    series(tmp_path / "C" / "m", "MR", "C", SeriesDescription="")
    rows = table(tmp_path)
    assert {name: path.split("/")[1] for name, path in rows["A"].items()} == {
        "mr_t2": "T2 TSE tra", "mr_t1": "t1_mprage", "mr_t1gd": "T1 post Gd", "mr_flair": "T2 dark fluid",
        "mr_adc": "ep2d_diff_ADC", "mr_dwi": "calc_b1400", "mr_dce": "DCE",
    }  # fmt: skip
    assert list(rows["B"]) == ["mr_pd"] and list(rows["C"]) == ["mr_unnamed"]


def test_mr_of_one_kind_stays_mr(tmp_path: Path) -> None:
    series(tmp_path / "A" / "a", "MR", SeriesDescription="T1 a", SeriesNumber=3)
    series(tmp_path / "A" / "b", "MR", SeriesDescription="T1 b", SeriesNumber=2)
    series(tmp_path / "B" / "c", "MR", "B", SeriesDescription="T2")
    assert table(tmp_path) == {"A": {"mr": "A/b"}, "B": {"mr": "B/c"}}
    assert reasons(tmp_path) == {"A/a": "mr is 'T1 b', which comes first"}


def test_the_best_of_several_series(tmp_path: Path) -> None:
    series(tmp_path / "a", "CT", slices=9, ImageType=["DERIVED", "SECONDARY", "MPR"], SeriesNumber=1)
    series(tmp_path / "b", "CT", slices=5, SeriesNumber=2, SeriesDescription="soft")
    series(tmp_path / "c", "CT", slices=4, SeriesNumber=1)
    assert table(tmp_path) == {"A": {"ct": "b"}}
    assert reasons(tmp_path) == {
        "a": "ct is 'soft', which is original, not derived",
        "c": "ct is 'soft', which has more images",
    }


def test_what_is_no_volume_is_listed(tmp_path: Path) -> None:
    series(tmp_path / "ct", "CT")
    series(tmp_path / "scout", "CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], slices=9)
    series(tmp_path / "umap", "MR", SeriesDescription="Head_MRAC_PET_UMAP")
    series(tmp_path / "few", "MR", slices=2)
    series(tmp_path / "us", "MR", Modality="US")
    series(tmp_path / "shot", "CT", Modality="OT")
    assert table(tmp_path) == {"A": {"ct": "ct"}}
    assert reasons(tmp_path) == {
        "scout": "a scout",
        "umap": "an attenuation map",
        "few": "2 images are no volume",
        "us": "modality US is not used",
        "shot": "not a volume",
    }


def test_series_that_share_a_folder_are_named_by_uid_and_load(tmp_path: Path) -> None:
    for modality in ("CT", "MR"):
        series(tmp_path / modality, modality)
        (tmp_path / "all").mkdir(exist_ok=True)
        for file in (tmp_path / modality).iterdir():
            file.rename(tmp_path / "all" / f"{modality}{file.name}")
    build_index(tmp_path).write(tmp_path / "manifest.csv")
    (case,) = read_manifest(tmp_path / "manifest.csv")
    for name, path in case.images.items():
        assert path.name.startswith("all#")
        assert load_volume(path, modality=name).array.shape == (5, 6, 4)


def test_a_series_in_two_folders_is_one_cell_that_loads(tmp_path: Path) -> None:
    uid = series(tmp_path / "A#1.5" / "DIR000", "CT")
    whole = load_volume(tmp_path / "A#1.5" / "DIR000").array
    (tmp_path / "A#1.5" / "DIR001").mkdir()
    for name in ("0001.dcm", "0003.dcm"):
        (tmp_path / "A#1.5" / "DIR000" / name).rename(tmp_path / "A#1.5" / "DIR001" / name)
    series(tmp_path / "A#1.5" / "MR#2", "MR")
    index = build_index(tmp_path)
    assert "subject A: the files of ct lie in 2 folders, and are read as one series" in index.notes
    index.write(tmp_path / "manifest.csv")
    (case,) = read_manifest(tmp_path / "manifest.csv")
    assert case.images == {"ct": tmp_path / f"A#1.5#{uid}", "mr": tmp_path / "A#1.5" / "MR#2"}
    np.testing.assert_array_equal(load_volume(case.images["ct"], modality="ct").array, whole)
    assert load_volume(case.images["mr"], modality="mr").array.shape == (5, 6, 4)
    before = case_stamp(case, {}), case_key(case, {}, source_digests(case))
    file = tmp_path / "A#1.5" / "DIR001" / "0003.dcm"
    file.write_bytes(file.read_bytes() + b"\0\0")
    assert case_stamp(case, {}) != before[0] and case_key(case, {}, source_digests(case)) != before[1]


def test_a_copy_of_a_series_is_not_used(tmp_path: Path) -> None:
    series(tmp_path / "ct", "CT")
    shutil.copytree(tmp_path / "ct", tmp_path / "saved")
    assert table(tmp_path) == {"A": {"ct": "ct"}}
    assert build_index(tmp_path).notes == ["subject A: 4 files of ct are copies of others, and not used"]


def test_nothing_in_the_tree_is_left_out_without_a_word(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    series(store / "ct", "CT", "B")
    series(root / ".anon" / ".ct", "CT")
    (root / "B").symlink_to(store)
    (root / ".anon" / "gone.dcm").symlink_to("/not/fetched")
    (root / "again").symlink_to(root)
    for name in (".git/x", "B/deep/er/pet.nii.gz", "a.nii", "Meier.hans", "t.txt", ".anon/._ct.nii.gz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7")
    (root / "run").mkdir()
    (root / "run" / ".mmfusion.json").write_text('{"kind": "run"}')
    assert table(root) == {"A": {"ct": ".anon/.ct"}, "B": {"ct": "B/ct"}}
    assert build_index(root).notes == [
        "1 links lead nowhere, the first is .anon/gone.dcm; put back what they stand for, or fetch it first (datalad "
        "get)",
        "1 links to folders lead to what is read already, or around the tree, the first is again",
        "1 folders were written by mmfusion and are not looked into, the first is run",
        "2 volume files lie neither at <subject>/<modality>.nii.gz nor alone in <subject>/<modality>/, the first is "
        "a.nii",
        "folders of the system are not looked into: 1 .git",
        "not images: 1 .hans, 1 .txt, 1 ._",
    ]
    hidden = build_index(root, pseudonymize=tmp_path / "key").notes
    assert hidden[-1] == "not images: 1 others, 1 .txt, 1 ._" and not any("anon" in note for note in hidden)


def test_without_a_case_it_is_told_what_was_left_out(tmp_path: Path) -> None:
    series(tmp_path / "few", "MR", slices=2, SeriesDescription="mine")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ReadError) as refused:
        build_index(tmp_path)
    assert str(refused.value).endswith(
        ". Found: 1 left out (subject A: MR 'mine': 2 images are no volume). not images: 1 .txt."
    )
    with pytest.raises(ReadError) as refused:
        build_index(tmp_path, pseudonymize=tmp_path.parent / f"{tmp_path.name}.key")
    assert "mine" not in str(refused.value) and "2 images are no volume" in str(refused.value)


@pytest.mark.parametrize(
    ("second", "days", "sessions"),
    [
        (("MR", "20000130"), 30, ["A"]),  # 29 days later, another modality: the same visit
        (("MR", "20000201"), 30, ["A_1", "A_2"]),
        (("MR", "20000201"), 31, ["A"]),
        (("CT", "20000102"), 30, ["A_1", "A_2"]),
        (("MR", ""), 30, ["A"]),
    ],
)
def test_sessions(tmp_path: Path, second: tuple[str, str], days: int, sessions: list[str]) -> None:
    series(tmp_path / "A" / "b", "CT", study="1.2", StudyDate="20000101")
    series(tmp_path / "A" / "a", second[0], study="1.1", StudyDate=second[1])
    rows = table(tmp_path, session_days=days)
    assert list(rows) == sessions
    if len(sessions) == 2:
        assert rows["A_1"] == {"ct": "A/b"}
    else:
        (note,) = build_index(tmp_path, session_days=days).notes
        assert "subject A: studies" in note and "count as one session" in note


@pytest.mark.parametrize("study", ["1.2", "1.1"])  # of its own, or one UID for all
def test_ct_and_pet_of_different_days_are_different_sessions(tmp_path: Path, study: str) -> None:
    series(tmp_path / "A" / "ct", "CT", StudyDate="20000103", AcquisitionDate="20000103")
    series(tmp_path / "A" / "pet", "PT", study=study, StudyDate="20000101", AcquisitionDate="20000101")
    series(tmp_path / "A" / "mr", "MR", study=study, StudyDate="20000105", AcquisitionDate="20000105")
    assert table(tmp_path) == {"A_1": {"pet": "A/pet"}, "A_2": {"ct": "A/ct", "mr": "A/mr"}}
    apart, joined = build_index(tmp_path).notes
    assert apart.startswith("subject A: ct and pet are 2 days apart, so they are different sessions; only the manifest")
    assert "2 days apart with different modalities count as one session" in joined


def test_one_study_uid_over_two_dates_is_two_sessions(tmp_path: Path) -> None:
    for day in ("20000501", "20000102"):
        for kind in ("CT", "PT"):
            series(tmp_path / f"{kind}{day}", kind, AcquisitionDate=day, SeriesDate=day)
    assert table(tmp_path) == {
        "A_1": {"ct": "CT20000102", "pet": "PT20000102"},
        "A_2": {"ct": "CT20000501", "pet": "PT20000501"},
    }


def test_mask_refers_to_a_series_or_shares_its_frame(tmp_path: Path) -> None:
    uid = series(tmp_path / "ct", "CT")
    contour(tmp_path / "m" / "frame.dcm", number=1)
    (first,) = build_index(tmp_path).cases
    assert first.mask == tmp_path / "m" / "frame.dcm"
    contour(tmp_path / "m" / "tumor.dcm", refers=uid, number=8)
    contour(tmp_path / "n" / "elsewhere.dcm", frame="9.9")
    index = build_index(tmp_path)
    assert index.cases[0].mask == tmp_path / "m" / "tumor.dcm"
    found = {one.description: one.reason for one in index.others}
    assert found == {"frame": "mask is 'tumor'", "elsewhere": "refers to no series of a row"}


def test_a_mask_of_the_reference_comes_before_one_of_another_scan(tmp_path: Path) -> None:
    uids = {modality: series(tmp_path / modality, modality) for modality in ("MR", "CT", "PT")}
    for number, modality in enumerate(("PT", "MR", "CT")):
        contour(tmp_path / "m" / f"{modality}.dcm", refers=uids[modality], number=number)
    assert build_index(tmp_path).cases[0].mask == tmp_path / "m" / "CT.dcm"
    (tmp_path / "m" / "CT.dcm").unlink()
    assert build_index(tmp_path).cases[0].mask == tmp_path / "m" / "MR.dcm"


@pytest.mark.parametrize("one_series", [False, True])
def test_masks_that_fit_equally_well_are_left_to_a_person(tmp_path: Path, one_series: bool) -> None:
    uid = series(tmp_path / "s" / "Zimmermann" / "ct", "CT")
    paths = [contour(tmp_path / "s" / "Zimmermann" / "m" / name, refers=uid) for name in ("a.dcm", "b.dcm")]
    if one_series:
        first, second = map(pydicom.dcmread, paths)
        second.SeriesInstanceUID = first.SeriesInstanceUID
        second.save_as(paths[1])
    index = build_index(tmp_path / "s")
    assert index.cases[0].mask is None
    assert index.notes == [
        "subject A: 2 masks fit equally well and none is used; write the path of the right one into column mask: "
        "Zimmermann/m/a.dcm, Zimmermann/m/b.dcm"
    ]
    assert {one.path: one.reason for one in index.others} == dict.fromkeys(paths, "2 masks fit equally well")
    hidden = build_index(tmp_path / "s", pseudonymize=tmp_path / "key")
    assert "index once without --pseudonymize to see them" in hidden.notes[0]
    assert "Zimmermann" not in " ".join([*hidden.notes, *map(str, hidden.others)])
    paths[1].write_bytes(paths[0].read_bytes())  # a copy is no other mask
    assert build_index(tmp_path / "s").cases[0].mask == paths[0]


def test_subject_without_patient_id_is_its_folder(tmp_path: Path) -> None:
    series(tmp_path / "P7" / "x" / "ct", "CT", "")
    series(tmp_path / "P7" / "pt", "PT", "")
    index = build_index(tmp_path)
    assert table(tmp_path) == {"P7": {"ct": "P7/x/ct", "pet": "P7/pt"}}
    assert index.notes == [
        "2 series of P7 have no PatientID: those of one study are one subject, named by its folder (P7/pt is of P7). "
        "--subject-from chooses otherwise: PatientID, folder, or a pattern of folders such as '*/{subject}'"
    ]


def test_one_patient_id_for_all_is_pointed_out(tmp_path: Path) -> None:
    for n in range(7):
        series(tmp_path / f"p{n}", "CT", "S1", study=f"1.{n}")
    (note,) = build_index(tmp_path).notes
    assert note.startswith("PatientID S1 is in 7 folders (p0, p1, p2, p3, p4 and 2 more) and counts as one subject")


def test_nifti_beside_dicom_joins_its_subject(tmp_path: Path) -> None:
    series(tmp_path / "S1" / "CT", "CT", "S1")
    series(tmp_path / "S2" / "CT", "CT", "id-2")
    for file in [
        "S1/mr.nii.gz",
        "S3/pd.hdr",
        "S3/pd.img",
        "S1/._mr.nii.gz",
        "S1/mask.nii",
        "S2/PET/any.mha",
        "S3/T1/brain.nii",
        "S3/flair_b.nrrd",
    ]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert table(tmp_path) == {
        "S1": {"ct": "S1/CT", "mr": "S1/mr.nii.gz"},
        "id-2": {"ct": "S2/CT", "pet": "S2/PET/any.mha"},
        "S3": {"t1": "S3/T1/brain.nii", "flair_b": "S3/flair_b.nrrd", "pd": "S3/pd.hdr"},
    }
    index = build_index(tmp_path)
    assert {case.id: case.mask for case in index.cases}["S1"] == tmp_path / "S1" / "mask.nii"
    assert index.modalities == ["ct", "pet", "mr", "t1", "flair_b", "pd"]


def test_nifti_that_fits_nowhere_is_listed(tmp_path: Path) -> None:
    series(tmp_path / "A" / "1", "CT", study="1.1", StudyDate="20000101")
    series(tmp_path / "A" / "2", "CT", study="1.2", StudyDate="20010101")
    series(tmp_path / "B" / "dicom", "CT", "B")
    for file in ["A/mr.nii", "B/ct.nii", "B/scan.nii", "B/mr/a.nii", "B/mr/b.nii", "B/t2.txt"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert reasons(tmp_path) == {
        "A/mr.nii": "the subject has 2 sessions; which one is unknown",
        "B/ct.nii": "ct is already there",
        "B/scan.nii": "its name is not a modality",
        "B/mr": "2 volumes where one is expected",
    }


def test_nothing_to_index(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nowhere does not exist"):
        build_index(tmp_path / "nowhere")
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "mask.nii").touch()
    contour(tmp_path / "A" / "m.dcm")
    with pytest.raises(ReadError, match=r"holds no usable scan: no DICOM series of CT, PT or MR"):
        build_index(tmp_path)


def test_progress_is_reported(tmp_path: Path) -> None:
    series(tmp_path / "A", "CT", slices=7)
    calls: list[tuple[int, int]] = []
    build_index(tmp_path, progress=lambda seen, skipped: calls.append((seen, skipped)))
    assert calls[-1] == (7, 0)


@pytest.mark.realdata
@pytest.mark.slow
def test_soft_tissue_sarcoma(testdata: Path) -> None:
    root = testdata / "sts_dicom"
    index = build_index(root, labels=root / "participants.csv", label="lung_metastasis")
    assert index.modalities == ["ct", "pet", "mr"] and len(index.cases) == 20
    *apart, left = index.notes
    assert not index.others and all("days apart with different modalities" in note for note in apart)
    assert left == "not images: 1 .md, 1 .csv"
    assert all(list(case.images) and case.mask and case.session == "" for case in index.cases)
    assert all(case.images["mr"] == root / case.subject / "MR_T1" for case in index.cases)
    assert sum(case.label == "1" for case in index.cases) == 8


@pytest.mark.realdata
def test_prostate_sequences(testdata: Path) -> None:
    root = testdata / "prostatex0000_dicom"
    assert table(root) == {"ProstateX-0000": {"mr_t2": "T2", "mr_adc": "ADC", "mr_dwi": "DWI_calcb"}}
