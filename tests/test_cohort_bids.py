"""BIDS trees: which file becomes which column, what the tables add, and that the official validator agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bids_tree import write_root, write_scan
from small_scans import scan

from mmfusion.cli import main
from mmfusion.cohort import build_index, read_manifest
from mmfusion.errors import ManifestError, OptionError, ReadError
from mmfusion.prepare import open_cohort

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"


def scans(root: Path, text: str) -> None:
    """A volume for each word, as ``1/2/anat/run-1_T1w``: subject, session (or nothing), datatype, rest of the name."""
    for word in text.split():
        *where, datatype, rest = word.split("/")
        owner = [f"{key}-{value}" for key, value in zip(("sub", "ses"), where, strict=False)]
        write_scan(root, "/".join([*owner, datatype, "_".join([*owner, rest])]))


def table(root: Path, **options: object) -> dict[str, dict[str, str]]:
    """Case id to column to the last part of the file's name without the ending, mask included."""
    out = {}
    for case in build_index(root, **options).cases:
        paths = case.images | ({"mask": case.mask} if case.mask else {})
        names = {name: path.name.removesuffix(".nii.gz") for name, path in paths.items()}
        out[case.id] = {name: "_".join(p for p in stem.split("_") if p[:4] not in ("sub-", "ses-"))
                        for name, stem in names.items()}  # fmt: skip
    return out


def reasons(root: Path) -> dict[str, str]:
    return {f"{one.modality} {one.description}".strip(): one.reason for one in build_index(root).others}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "study")


def test_the_official_validator_accepts_the_tree_and_the_manifest_has_it_all(tmp_path: Path) -> None:
    if not VALIDATOR.exists():
        pytest.skip("bids-validator-deno is not installed")
    people = "participant_id age sex weight dx\nsub-1 50 M 71.5 AD\nsub-02 60 F n/a HC\n"
    root = write_root(tmp_path / "study", people, weight={"Description": "of the body", "Units": "kg"})
    for who in ("1/base", "1/later", "02"):
        scans(root, f"{who}/anat/T1w {who}/anat/ce-gd_T1w {who}/anat/run-2_FLAIR {who}/anat/T2starw {who}/dwi/ADC")
        scans(root, f"{who}/ct/ct {who}/pet/trc-FDG_rec-acstat_pet")
    write_scan(root, "derivatives/drawn/sub-02/ct/sub-02_label-lesion_mask")
    visits = "session_id weight acq_time\nses-base n/a 2020-01-02T10:00:00\nses-later 69 n/a\n"
    (root / "sub-1" / "sub-1_sessions.tsv").write_text(visits.replace(" ", "\t"))
    (root / "sub-1" / "sub-1_sessions.json").write_text(json.dumps({"weight": {"Units": "kg"}}))
    done = subprocess.run([VALIDATOR, root, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []

    out = tmp_path / "manifest.csv"
    index = build_index(root, label="dx")
    index.write(out)
    assert not index.others and not index.notes
    columns = ["ct", "pet", "mr_adc", "mr_flair", "mr_t1", "mr_t1gd", "mr_t2star"]
    assert index.modalities == columns
    first, second, third = read_manifest(out)
    assert [case.id for case in (first, second, third)] == ["02", "1_base", "1_later"]
    assert [case.label for case in (first, second, third)] == ["HC", "AD", "AD"]
    assert [case.covariates["weight_kg"] for case in (first, second, third)] == ["", "71.5", "69"]
    assert second.covariates == {"age": "50", "sex": "M", "weight_kg": "71.5", "acq_time": "2020-01-02T10:00:00"}
    assert first.mask == root / "derivatives/drawn/sub-02/ct/sub-02_label-lesion_mask.nii.gz"
    assert table(root)["1_base"] == {
        "ct": "ct", "pet": "trc-FDG_rec-acstat_pet", "mr_adc": "ADC", "mr_flair": "run-2_FLAIR", "mr_t1": "T1w",
        "mr_t1gd": "ce-gd_T1w", "mr_t2star": "T2starw",
    }  # fmt: skip


def test_mr_of_one_kind_and_pet_of_one_tracer_have_plain_columns(root: Path) -> None:
    scans(root, "1/anat/T1w 2/anat/T2w 1/pet/trc-FDG_pet 2/pet/pet")
    assert table(root) == {"1": {"pet": "trc-FDG_pet", "mr": "T1w"}, "2": {"pet": "pet", "mr": "T2w"}}


def test_pet_of_several_tracers_is_named_by_tracer_in_every_row(root: Path) -> None:
    scans(root, "1/pet/trc-FDG_pet 1/pet/trc-PIB_pet 2/pet/pet")
    assert table(root) == {"1": {"pet_fdg": "trc-FDG_pet", "pet_pib": "trc-PIB_pet"}, "2": {"pet_unnamed": "pet"}}


def test_the_best_of_several_files(root: Path) -> None:
    scans(root, "1/pet/rec-nacstat_pet 1/pet/rec-acdyn_pet 1/pet/rec-acstat_run-2_pet 1/pet/rec-acstat_run-1_pet")
    scans(root, "1/anat/acq-a_rec-b_T1w 1/anat/run-10_T1w 1/anat/run-9_T1w")
    assert table(root) == {"1": {"pet": "rec-acstat_run-1_pet", "mr": "run-9_T1w"}}
    assert reasons(root) == {
        "pet rec-nacstat_pet": "pet is 'rec-acstat_run-1_pet', which is attenuation corrected",
        "pet rec-acdyn_pet": "pet is 'rec-acstat_run-1_pet', which is static",
        "pet rec-acstat_run-2_pet": "pet is 'rec-acstat_run-1_pet', which comes first",
        "anat run-10_T1w": "mr is 'run-9_T1w', which comes first",
        "anat acq-a_rec-b_T1w": "mr is 'run-9_T1w', which has fewer entities in its name",
    }


def test_what_cannot_be_used_is_listed(root: Path) -> None:
    scans(root, "1/a/anat/T1w 1/a/anat/part-phase_T2starw 1/a/anat/chunk-1_T2w 1/a/anat/MESE 1/a/func/task-rest_bold")
    for name in ("sub-2_ses-a_T1w", "sub-1_T1w", "my_scan"):
        write_scan(root, f"sub-1/ses-a/anat/{name}")
    write_scan(root, "sub-1/sub-1_T1w")
    (root / "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz").symlink_to("../.git/annex/gone")
    (root / "sub-1/ses-a/anat/sub-1_ses-a_T1w.json").write_text("{}")
    assert table(root) == {"1_a": {"mr": "T1w"}}
    elsewhere = "its name does not say the subject and session of its folder"
    assert [(one.path.name, one.reason) for one in build_index(root).others] == [
        ("sub-1_T1w.nii.gz", "it lies in no folder of a datatype"),
        ("func", "its datatype is not used"),
        ("my_scan.nii.gz", "its name is not one of BIDS"),
        ("sub-1_T1w.nii.gz", elsewhere),
        ("sub-1_ses-a_FLAIR.nii.gz", "its content is not here; fetch it first (datalad get)"),
        ("sub-1_ses-a_MESE.nii.gz", "suffix MESE is not used"),
        ("sub-1_ses-a_chunk-1_T2w.nii.gz", "chunk-1 is a part of a scan; join the chunks first"),
        ("sub-1_ses-a_part-phase_T2starw.nii.gz", "part-phase is no magnitude image"),
        ("sub-2_ses-a_T1w.nii.gz", elsewhere),
    ]


def test_masks(root: Path) -> None:
    for who in "1/a", "2/a", "2/b", "3", "4":
        scans(root, f"{who}/ct/ct")
    made = root / "derivatives" / "any"
    scans(made, "1/ct/label-GM_mask 1/ct/desc-x_mask")
    scans(made, "1/ct/label-lesion_mask 1/ct/desc-brain_mask 2/ct/mask 2/b/ct/space-MNI152_mask")
    scans(made, "3/anat/dseg 3/anat/desc-2_mask 4/ct/space-ct_dseg 4/func/mask 4/ct/desc-a_probseg 9/ct/mask")
    for gone in ("sub-4/ct/sub-4_label-lesion_mask", "sub-4/pet/sub-4_label-lesion_mask"):
        (made / gone).parent.mkdir(parents=True, exist_ok=True)
        (made / f"{gone}.nii.gz").symlink_to("../.git/annex/gone")
    assert {case: row["mask"] for case, row in table(root).items() if "mask" in row} == {
        "1_a": "label-lesion_mask",
        "4": "space-ct_dseg",
    }
    assert reasons(root) == {
        "mask desc-brain_mask": "desc-brain is the brain, not a lesion",
        "mask label-GM_mask": "label-GM is a tissue, not a lesion",
        "mask desc-x_mask": "mask is 'label-lesion_mask', which says with label- what it shows",
        "mask label-lesion_mask": "its content is not here; fetch it first (datalad get)",
        "mask mask": "there is no row of its subject and session",
        "mask space-MNI152_mask": "space-MNI152 is not that of the subject's scans",
        "mask dseg": "2 masks where one is expected; give one of them in column mask",
        "mask desc-2_mask": "2 masks where one is expected; give one of them in column mask",
    }
    assert [one.subject for one in build_index(root).others if one.description == "mask"] == ["2", "9"]


def test_tables_join_by_identifier_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    people = (
        "participant_id label site weight height group pet_dose mask\n"
        "sub-3 1 b 80 n/a x 1 2\nsub-1 0 a 70 180 y 3 4\nsub-7 0 a 60 170 z 5 6\n"
    )
    root = write_root(tmp_path / "s", people, height={"Units": "cm"}, weight={"Units": "lb"})
    scans(root, "1/ct/ct 2/ct/ct 3/ct/ct")
    index = build_index(root)
    assert [(case.subject, case.label, case.site) for case in index.cases] == [
        *[("1", "0", "a"), ("2", None, ""), ("3", "1", "b")]
    ]
    assert [list(case.covariates.values()) for case in index.cases] == [
        *[["70", "180", "y"], ["", "", ""], ["80", "", "x"]]
    ]
    assert list(index.cases[0].covariates) == ["weight", "height_cm", "group"]
    assert index.notes == [
        "column weight of participants.tsv is not taken as weight_kg: Units in participants.json must be kg, found lb",
        "column pet_dose of participants.tsv is left out: it means something else in a manifest; rename it",
        "column mask of participants.tsv is left out: it means something else in a manifest; rename it",
        "participants.tsv has no row for 1: 2",
        "1 of participants.tsv have no scan that is used: 7",
    ]


def test_labels_of_another_table(tmp_path: Path) -> None:
    root = write_root(tmp_path / "s", "participant_id dx\nsub-1 a\n")
    scans(root, "1/ct/ct")
    (tmp_path / "l.csv").write_text("subject,grade\n1,high\n")
    (case,) = build_index(root, labels=tmp_path / "l.csv", label="grade").cases
    assert case.label == "high" and case.covariates == {"dx": "a"}


def test_mistakes_in_tables_are_named(tmp_path: Path) -> None:
    root = write_root(tmp_path / "s", "participant_id dx\nsub-1 a\nsub-1 b\n")
    scans(root, "1/ct/ct")
    with pytest.raises(
        ManifestError, match=r"participant_id is that of line 2 again \(participants.tsv line 3\). Keep one row."
    ):
        build_index(root)
    write_root(root, "participant_id dx\nsub-1 a\n")
    with pytest.raises(ManifestError, match="participants.tsv has columns dx; no column dxx. Did you mean 'dx'?"):
        build_index(root, label="dxx")
    write_root(root, "participant dx\nsub-1 a\n")
    with pytest.raises(ManifestError, match="participants.tsv has columns participant, dx; no column participant_id"):
        build_index(root)
    write_root(root, "participant_id dx\nsub-1 a\n")
    (root / "participants.json").write_text("{")
    with pytest.raises(ReadError, match="participants.json is not JSON"):
        build_index(root)
    (root / "participants.json").write_text("[]")
    with pytest.raises(ReadError, match="participants.json holds no fields; an object of columns is expected"):
        build_index(root)
    write_root(root, "participant_id dx\nsub-1 a b\n")
    with pytest.raises(ManifestError, match=r"the row has 3 cells, the header has 2 \(participants.tsv line 2\)"):
        build_index(root)
    write_root(root, "participant_id weight weight_kg\nsub-1 70 71\n", weight={"Units": "kg"})
    with pytest.raises(ManifestError, match=r"has columns weight \(in kg\) and weight_kg, which mean the same"):
        build_index(root)


def test_trees_that_are_no_bids_or_hold_nothing(tmp_path: Path) -> None:
    root = write_root(tmp_path / "s")
    with pytest.raises(ReadError, match="is a BIDS tree without a usable scan: no volume in"):
        build_index(root)
    (root / "dataset_description.json").write_text("{")
    with pytest.raises(ReadError, match="dataset_description.json is not JSON"):
        build_index(root)
    (root / "dataset_description.json").write_text('{"Name": "another thing"}')
    (root / "S1").mkdir()
    (root / "S1" / "ct.nii.gz").touch()
    assert table(root) == {"S1": {"ct": "ct"}}
    with pytest.raises(OptionError, match="label dx is a column of a label table; give the table with --labels"):
        build_index(root, label="dx")


@pytest.mark.parametrize(
    ("text", "note"),
    [(None, "there is no dataset_description.json"), ("{}", "dataset_description.json has no BIDSVersion")],
)
def test_a_tree_without_description_is_read_by_its_names(root: Path, text: str | None, note: str) -> None:
    scans(root, "1/anat/T1w 1/pet/pet")
    expected = table(root)
    (root / "dataset_description.json").unlink()
    if text:
        (root / "dataset_description.json").write_text(text)
    assert table(root) == expected != {}
    assert f"{note}; folders and files are named as in BIDS, and read by its rules" in build_index(root).notes


def test_what_lies_beside_the_rules_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans(root, "1/anat/T1w")
    for name in ("sub-1/anat/._sub-1_T1w.nii.gz", "sub-1/anat/x.mgz", "P7/a", "sourcedata/b", "c.nii", ".git/d"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "sub-2" / "anat").mkdir(parents=True)
    listing = os.listdir, os.scandir

    def refusing(which: int) -> Any:
        def listed(path: Path) -> Any:
            if path == root / "sub-2" / "anat":
                raise PermissionError
            return listing[which](path)

        return listed

    monkeypatch.setattr(os, "listdir", refusing(0))
    monkeypatch.setattr(os, "scandir", refusing(1))
    index = build_index(root)
    assert not index.others and index.notes == [
        "1 files or folders cannot be read, the first is sub-2/anat; check their permissions",
        "folders of the system are not looked into: 1 .git",
        "not images: 1 ._, 1 .mgz",
        "not looked into: P7 (1 files), other places (1 files), sourcedata (1 files)",
    ]


def test_from_a_bids_tree_to_a_cohort_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = "participant_id dx weight\nsub-1 a 70\nsub-2 b 71\nsub-3 a 72\nsub-4 b 73\n"
    root = write_root(tmp_path / "study", people, weight={"Units": "kg"})
    for who in "1234":
        for modality, where in (("ct", "ct/{}_ct"), ("pet", "pet/{}_pet"), ("mr", "anat/{}_T1w")):
            one = scan(modality)
            write_scan(root, f"sub-{who}/{where.format(f'sub-{who}')}", one.replace(array=one.array * int(who) / 4))
    manifest, cohort = tmp_path / "manifest.csv", tmp_path / "cohort"
    assert main(["index", str(root), "--out", str(manifest), "--label", "dx"]) == 0
    assert "4 subjects, 4 cases (ct 4, pet 4, mr 4); 0 series not used" in capsys.readouterr().out
    assert main(["check", str(manifest)]) == 0
    assert capsys.readouterr().out.endswith("0 errors, 0 warnings, 0 notes\n")
    grid = ["--spacing", "9", "9", "9", "--size", "16", "17", "18", "--register", "none", "--workers", "1"]
    assert main(["prepare", str(manifest), "--out", str(cohort), *grid]) == 0
    prepared = open_cohort(cohort)
    assert prepared.modalities == ("ct", "pet", "mr") and prepared.count("done") == 4
    assert [case.case.label for case in prepared.cases] == ["a", "b", "a", "b"]
