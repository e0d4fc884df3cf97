"""The raw study on disk: what the readers find is what was simulated, and the truth lies beside it."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest

from mmfusion.cohort import build_index
from mmfusion.cohort.simulate import (
    draw_subjects,
    native_grids,
    read_truth,
    simulate_volumes,
    study,
    write_raw_study,
)
from mmfusion.errors import CohortError
from mmfusion.io import load_volume
from mmfusion.volume import resample

FILES = {"ct": "CT", "pet": "PET", "mr": "mr.nii.gz"}


@pytest.fixture(scope="module")
def subjects():
    first, second = draw_subjects(2, 4)
    return [replace(first, missing=()), replace(second, missing=("ct",))]


@pytest.fixture(scope="module")
def root(subjects, tmp_path_factory):
    steps = []
    folder = write_raw_study(subjects, tmp_path_factory.mktemp("raw"), progress=lambda n, of: steps.append((n, of)))
    assert steps == [(1, 2), (2, 2)]
    return folder


@pytest.mark.parametrize(("name", "error"), [("ct", 0.51), ("pet", 1e-3), ("mr", 0.51)])
def test_read_back_as_simulated(root, subjects, name, error):
    """CT and MR to half a stored integer, PET to 1e-3 SUV (decay, weight, dose and a slope a slice undone)."""
    truth = simulate_volumes(subjects[0], native_grids(subjects[0]))[name]
    found = load_volume(root / subjects[0].subject / FILES[name], modality=name)
    assert found.units == truth.units
    found = resample(found, truth.grid, order=0)
    np.testing.assert_allclose(found.array, truth.array, atol=error)


def test_suv_survives_midnight():
    for one in draw_subjects(200, 8):
        facts = study._study_facts(one)
        if facts["injection"].date() != facts["pet"].date():
            return
    raise AssertionError("no scan across midnight among 200 subjects")


def test_pet_across_midnight_reads_as_simulated(subjects, tmp_path):
    late = next(s for s in draw_subjects(60, 8) if study._study_facts(s)["injection"].hour == 23)
    late = replace(late, missing=("ct", "mr"))
    write_raw_study([late], tmp_path)
    header = pydicom.dcmread(tmp_path / late.subject / "PET" / "0001.dcm")
    assert (
        header.SeriesTime < "02"
        and header.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime > "23"
    )
    truth = simulate_volumes(late, native_grids(late))["pet"]
    found = resample(load_volume(tmp_path / late.subject / "PET", modality="pet"), truth.grid, order=0)
    np.testing.assert_allclose(found.array, truth.array, atol=1e-3)


def test_orientations_and_frames_differ(root, subjects):
    folder = root / subjects[0].subject
    ct, pet = (
        [pydicom.dcmread(folder / name / f"{n:04d}.dcm", stop_before_pixels=True) for n in (1, 2)]
        for name in FILES_DICOM
    )
    assert ct[1].ImagePositionPatient[2] > ct[0].ImagePositionPatient[2]
    assert pet[1].ImagePositionPatient[2] < pet[0].ImagePositionPatient[2]
    assert ct[0].FrameOfReferenceUID != pet[0].FrameOfReferenceUID
    assert ct[0].StudyInstanceUID == pet[0].StudyInstanceUID
    assert "SIMULATED" in ct[0].StudyDescription and ct[0].PatientID == subjects[0].subject
    assert nib.aff2axcodes(nib.load(folder / "mr.nii.gz").affine) == ("P", "I", "R")


FILES_DICOM = ("CT", "PET")


def test_index_finds_every_scan_of_every_subject(root, subjects):
    index = build_index(root, labels=root / "labels.csv", label="label")
    found = {case.subject: case for case in index.cases}
    assert {name: sorted(case.images) for name, case in found.items()} == {
        s.subject: sorted(s.modalities) for s in subjects
    }
    assert [found[s.subject].label for s in subjects] == [str(s.label) for s in subjects]


def test_truth_gives_the_same_subjects_again(root, subjects):
    again = read_truth(root)
    assert [(s.subject, s.label, s.missing) for s in again] == [(s.subject, s.label, s.missing) for s in subjects]
    grid = {"pet": native_grids(subjects[1])["pet"]}
    first, second = (simulate_volumes(group[1], grid)["pet"].array for group in (subjects, again))
    np.testing.assert_array_equal(first, second)
    assert "Simulated data" in (root / "truth.json").read_text()


def test_a_study_is_not_overwritten_nor_guessed(root, subjects, tmp_path):
    with pytest.raises(CohortError, match="already holds a simulated study"):
        write_raw_study(subjects, root)
    with pytest.raises(CohortError, match=r"truth.json not found: .* is not a simulated study"):
        read_truth(tmp_path)
