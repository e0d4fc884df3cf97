"""Pseudonyms: the same key the same name, none without it, and no identifier in anything that the index says."""

from __future__ import annotations

import hmac
from pathlib import Path

import numpy as np
import pytest
from bids_tree import write_root, write_scan
from pydicom.uid import generate_uid

from mmfusion.cli import main
from mmfusion.cohort import Index, build_index, read_manifest
from mmfusion.cohort.pseudonyms import Pseudonyms, read_pseudonyms
from mmfusion.errors import ManifestError, OptionError, ReadError
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Volume

KEY = "0123456789abcdef" * 4


def pseudonym(identifier: str) -> str:
    """By the definition, another way: RFC 2104 through the one-shot function."""
    return "S" + hmac.digest(KEY.encode(), identifier.encode(), "sha256").hex()[:12]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "study.key").write_text(f"{KEY}\n")
    return tmp_path / "study.key"


def dicom(folder: Path, patient: str, modality: str = "CT", study: str = "", slices: int = 4, **tags: str) -> None:
    values = np.random.default_rng(0).normal(100, 20, (5, 6, slices)).astype(np.float32)
    volume = Volume(values, np.diag([2.0, 2.0, 3.0, 1.0]), units="HU" if modality == "CT" else "a.u.")
    ids = {"patient_id": patient, "study_uid": study or generate_uid(), "series_uid": generate_uid()}
    save_dicom_series(volume, folder, modality=modality, **ids, tags=tags)


def said(index: Index) -> str:
    """Everything that the command prints of an index."""
    return "\n".join([*map(str, index.others), *index.notes])


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "new.key"
    first = read_pseudonyms(file, tmp_path / "scans")("017")
    assert len(file.read_text()) == 65 and file.stat().st_mode & 0o777 == 0o600
    assert read_pseudonyms(file, tmp_path / "scans")("017") == first
    assert read_pseudonyms(tmp_path / "other.key", tmp_path / "scans")("017") != first


def test_keys_that_protect_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.key").write_text("secret\n")
    with pytest.raises(ReadError, match="short.key holds 6 characters, at least 32 are needed. Name a file that does"):
        read_pseudonyms(tmp_path / "short.key", tmp_path / "scans")
    with pytest.raises(OptionError, match="lies inside .*: who gets the scans gets the key. Keep it elsewhere"):
        read_pseudonyms(tmp_path / "scans" / "a" / "study.key", tmp_path / "scans")
    with pytest.raises(ReadError, match="cannot be read or made: No such file or directory"):
        read_pseudonyms(tmp_path / "gone" / "study.key", tmp_path / "scans")


def test_two_subjects_with_one_pseudonym_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.cohort.pseudonyms._DIGITS", 1)
    named = Pseudonyms(KEY.encode())
    with pytest.raises(ManifestError, match="two subjects have the pseudonym S., by bad luck; index the study with"):
        [named(str(n)) for n in range(17)]


def test_no_identifier_in_what_the_index_of_a_dicom_tree_says(tmp_path: Path, key: Path) -> None:
    root = tmp_path / "scans"
    text = {"SeriesDescription": "Doe T2 tra", "ProtocolName": "Doe"}
    dicom(root / "Doe 1", "ID-17", SeriesDescription="Doe")
    dicom(root / "Doe 2", "ID-17", "MR", **text)
    dicom(root / "Doe 2b", "ID-17", "MR", **(text | {"SeriesDescription": "Doe special"}))
    dicom(root / "Doe 3", "ID-17", "MR", slices=2, **text)
    dicom(root / "Doe 4", "ID-17", "CT", **text)
    dicom(root / "Doe-5", "", "CT", **text)
    (root / "Doe 6").mkdir()
    (root / "Doe 6" / "doe.nii").touch()
    (tmp_path / "labels.csv").write_text("subject,label\nID-17,1\nID-99,0\n")
    index = build_index(root, labels=tmp_path / "labels.csv", pseudonymize=key)
    names = [pseudonym("ID-17"), pseudonym("Doe-5")]
    assert {case.subject for case in index.cases} == set(names)
    assert {case.label for case in index.cases if case.subject == names[0]} == {"1"}
    text = said(index)
    assert names[0] in text and names[1] in text and pseudonym("ID-99") in text and pseudonym("Doe 6") in text
    assert "doe" not in text.lower() and "id-" not in text.lower()
    assert f"subject {names[0]}: MR 't2': 2 images are no volume" in text
    assert f"subject {pseudonym('Doe 6')}: its name is not a modality" in text
    assert f"PatientID {names[0]} is in 5 folders and counts as one subject" in text
    assert f"1 series of {names[1]} have no PatientID" in text


def test_free_text_of_a_header_names_no_column(tmp_path: Path, key: Path) -> None:
    for description in ("Doe t1_mprage", "Doe special"):
        dicom(tmp_path / "s" / description, "A", "MR", "1.2.3", SeriesDescription=description)
    assert build_index(tmp_path / "s").modalities == ["mr_doe_special", "mr_t1"]
    assert build_index(tmp_path / "s", pseudonymize=key).modalities == ["mr_t1", "mr_unnamed"]


def test_free_text_of_a_file_name_names_no_column(tmp_path: Path, key: Path) -> None:
    folder = tmp_path / "s" / "P1"
    folder.mkdir(parents=True)
    for name in ("pet_doe_john", "ct", "mr_t1gd"):
        (folder / f"{name}.nii.gz").touch()
    index = build_index(tmp_path / "s", pseudonymize=key)
    assert index.modalities == ["ct", "mr_t1gd"] and "doe" not in said(index)
    assert [one.reason for one in index.others] == ["its name is not a modality"]
    assert build_index(tmp_path / "s").modalities == ["ct", "pet_doe_john", "mr_t1gd"]


def test_no_identifier_in_what_the_index_of_a_bids_tree_says(tmp_path: Path, key: Path) -> None:
    root = write_root(tmp_path / "s", "participant_id label\nsub-ID17 a\nsub-ID99 b\n")
    for name in ("ID17/anat/sub-ID17_T1w", "ID17/anat/sub-ID17_run-2_T1w", "ID18/ct/sub-ID18_ct", "ID18/ct/sub-ID9_ct"):
        write_scan(root, f"sub-{name}")
    write_scan(root, "derivatives/made/sub-ID20/ct/sub-ID20_mask")
    (root / "sub-ID17" / "func").mkdir()
    index = build_index(root, pseudonymize=key)
    assert {case.subject: case.label for case in index.cases} == {pseudonym("ID17"): "a", pseudonym("ID18"): None}
    text = said(index)
    assert "ID" not in text and all(pseudonym(f"ID{n}") in text for n in (17, 18, 20, 99))
    (root / "sub-ID17" / "sub-ID17_sessions.tsv").write_text("session_id\nses-1\nses-1\n")
    words = rf"session_id is that of line 2 again \(sessions.tsv of subject {pseudonym('ID17')} line 3\)"
    with pytest.raises(ManifestError, match=words):
        build_index(root, pseudonymize=key)


def test_on_the_command_line(tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dicom(tmp_path / "s" / "Doe", "ID-17", slices=5)
    dicom(tmp_path / "s" / "Doe2", "ID-17", slices=2)
    given = ["index", str(tmp_path / "s"), "--out", str(tmp_path / "m.csv")]
    assert main([*given, "--pseudonymize", str(key)]) == 0
    text = capsys.readouterr().out
    assert "Doe" not in text and "ID-17" not in text and "2 images are no volume" in text
    (case,) = read_manifest(tmp_path / "m.csv")
    assert case.subject == pseudonym("ID-17")
    assert case.images["ct"] == tmp_path / "s" / "Doe"  # the path stays, or nothing could be read
    assert main([*given, "--overwrite"]) == 0
    assert "subject ID-17: CT" in capsys.readouterr().out
