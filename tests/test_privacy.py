"""What identifies a patient stays where it is: nothing of it is printed, nor written into a cohort folder."""

from __future__ import annotations

import io
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_scans

from mmfusion.cli import main
from mmfusion.cohort import read_manifest
from mmfusion.io.dicom_write import save_dicom_series

IDENTIFYING = {  # DICOM PS3.15, table E.1-1, some of it
    "PatientName": "Quillfeather^Ada",
    "PatientBirthDate": "19470213",
    "PatientAddress": "7 Brandywine Lane",
    "OtherPatientIDs": "OTHER-8812",
    "AccessionNumber": "ACC-99341",
    "InstitutionName": "Saint Wobblesworth",
    "ReferringPhysicianName": "Marchbanks^Otto",
    "OperatorsName": "Fitzwilliam^Jo",
    "PatientComments": "fell off the Tallahatchie bridge",
    "ImageComments": "wife is Hortensia",
    "StudyDescription": "Pumpernickel protocol",
    "SeriesDescription": "Quillfeather special",
    "ProtocolName": "as for Cholmondeley",
    "StudyID": "STUDY-5150",
    "StationName": "Knightsbridge-3",
    "DeviceSerialNumber": "SERIAL-60613",
    "StudyDate": "20190817",
    "SeriesDate": "20190817",
    "AcquisitionDate": "20190817",
    "AcquisitionDateTime": "20190817101500",
}
PLANTED = ("quillfeather", "19470213", "brandywine", "other-8812", "acc-99341", "wobblesworth", "marchbanks",
           "fitzwilliam", "tallahatchie", "hortensia", "pumpernickel", "cholmondeley", "study-5150", "knightsbridge",
           "serial-60613", "20190817", "2019-08-17", "pid-")  # fmt: skip
IN_PATHS = ("zimmermann",)
FINE, SHIFTED, NO_SUV, TWO_SERIES = "PID-1", "PID-2", "PID-3", "PID-4"


@dataclass(frozen=True)
class Done:
    """What each command printed, and the folder that prepare wrote."""

    printed: dict[str, str]
    manifest: Path
    cohort: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Four subjects, all the way: one is fine, one doubtful, two fail with errors that name folder and series."""
    folder = tmp_path_factory.mktemp("privacy")
    manifest, cohort, printed = folder / "manifest.csv", folder / "cohort", dict[str, str]()
    write_study(folder / "dicom")
    (folder / "labels.csv").write_text(f"subject,label\n{FINE},0\n{SHIFTED},1\n{NO_SUV},0\n{TWO_SERIES},1\nPID-9,1\n")
    labels, key = ["--labels", str(folder / "labels.csv")], ["--pseudonymize", str(folder / "study.key")]
    grid = ["--spacing", "9", "9", "9", "--size", "16", "17", "18", "--register", "none", "--workers", "1"]
    run(printed, "index", str(folder / "dicom"), "--out", str(manifest), *labels, *key)
    write(folder / "dicom" / "Zimmermann 4" / "CT" / "more", "ct", TWO_SERIES)
    for number, file in enumerate((folder / "dicom" / "Zimmermann 4" / "CT" / "more").iterdir()):
        file.rename(file.parents[1] / f"more{number}.dcm")
    run(printed, "check", str(manifest), "--deep")
    run(printed, "prepare", str(manifest), "--out", str(cohort), *grid)
    return Done(printed, manifest, cohort)


def run(printed: dict[str, str], command: str, *given: str) -> None:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        main([command, *given])
    printed[command] = out.getvalue()


def write_study(root: Path) -> None:
    for number, subject in enumerate((FINE, SHIFTED, NO_SUV, TWO_SERIES), 1):
        for modality in ("ct", "pet", "mr"):
            folder = root / f"Zimmermann {number}" / modality.upper()
            write(folder, modality, subject, shift=70.0 if (subject, modality) == (SHIFTED, "mr") else 0.0)
    write(root / "Zimmermann 1" / "scout", "ct", FINE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def write(folder: Path, modality: str, subject: str, shift: float = 0.0, **tags: object) -> None:
    """A series full of what must not get out; the values differ by subject."""
    volume = small_scans.scan(modality)
    affine = volume.affine.copy()
    affine[0, 3] += shift
    volume = volume.replace(array=volume.array * np.float32(1 - int(subject[-1]) / 50), affine=affine)
    if (subject, modality) == (NO_SUV, "pet"):
        volume = volume.replace(units="Bq/mL")
    kind = {"ct": "CT", "pet": "PT", "mr": "MR"}[modality]
    save_dicom_series(volume, folder, modality=kind, patient_id=subject, study_uid=f"1.2.{subject[-1]}",
                      tags=IDENTIFYING | tags)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Name below the folder to what is in the file, in lower case; packed files come member by member, too."""
    out = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        out[name] = name.encode() + b"\n" + path.read_bytes().lower()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                out |= {f"{name}/{member}": packed.read(member).lower() for member in packed.namelist()}
    return out


def found(words: tuple[str, ...], texts: dict[str, bytes]) -> list[tuple[str, str]]:
    return [(name, word) for name, text in texts.items() for word in words if word.encode() in text]


def test_the_study_has_what_a_study_has(done: Done) -> None:
    """Or the other tests would find nothing in nothing."""
    assert "4 subjects, 4 cases (ct 4, pet 4, mr 4); 1 series not used" in done.printed["index"]
    assert ": a scout" in done.printed["index"] and "are not in the study" in done.printed["index"]
    assert "SUV cannot be computed" in done.printed["check"] and "holds 2 image series" in done.printed["check"]
    assert "1 done, 1 doubtful, 2 failed" in done.printed["prepare"]
    names = set(contents(done.cohort))
    assert {"cases.csv", "options.json", "qc.html"} <= names
    assert all(any(name.endswith(end) for name in names) for end in ("image.npy", ".tfm", "qc.npz", "case.json"))
    assert any(name.endswith(".npy") and "qc.npz/" in name for name in names)


def test_the_manifest_has_pseudonyms_and_the_original_paths(done: Done) -> None:
    cases = read_manifest(done.manifest)
    assert all(case.subject.startswith("S") and len(case.subject) == 13 for case in cases)
    assert sorted(case.label or "" for case in cases) == ["0", "0", "1", "1"]
    text = done.manifest.read_bytes().lower()
    assert found(PLANTED, {"manifest": text}) == [] and b"zimmermann" in text


@pytest.mark.parametrize("command", ["index", "check", "prepare"])
def test_no_command_prints_what_headers_say_of_a_patient(done: Done, command: str) -> None:
    assert found(PLANTED, {command: done.printed[command].lower().encode()}) == []


@pytest.mark.parametrize("command", ["index", "check"])
def test_index_and_check_print_no_path_of_a_scan(done: Done, command: str) -> None:
    assert found(IN_PATHS, {command: done.printed[command].lower().encode()}) == []


def test_nothing_that_headers_say_of_a_patient_is_in_the_cohort_folder(done: Done) -> None:
    assert found(PLANTED, contents(done.cohort)) == []


def test_no_path_of_a_scan_is_in_the_cohort_folder_or_printed_by_prepare(done: Done) -> None:
    texts = contents(done.cohort) | {"printed": done.printed["prepare"].lower().encode()}
    assert found(IN_PATHS, texts) == []


def test_no_path_of_a_scan_is_in_the_trace_of_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of an exception of some library hold what it was given."""

    def broken(path: Path, **how: object) -> None:
        raise RuntimeError(f"no idea what {path} is")

    monkeypatch.setattr("mmfusion.prepare.case.load_volume", broken)
    manifest, printed = small_scans.write_study(tmp_path / "Zimmermann", subjects=1), dict[str, str]()
    run(printed, "prepare", str(manifest), "--out", str(tmp_path / "cohort"), "--workers", "1")
    texts = contents(tmp_path / "cohort")
    assert any(name.endswith(".error.txt") for name in texts)
    assert found(IN_PATHS, texts | {"printed": printed["prepare"].lower().encode()}) == []
