"""Histogram standardization of a cohort: fitted on training subjects, part of every case's key, kept for inference."""

import json
import shutil

import numpy as np
import pytest
from small_scans import scan, write_study

from mmfusion.errors import ManifestError, OptionError
from mmfusion.io import load_volume, save_volume
from mmfusion.prepare import prepare_cohort, prepare_volumes
from mmfusion.volume import correct_bias, foreground, landmarks, standard_scale, standardize

OPTIONS = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "register": "none", "mr_normalize": "histogram"}


def prepare(manifest, out, **options):
    """The cohort, and what was done for it."""
    steps = []
    cohort = prepare_cohort(manifest, out, workers=1, progress=lambda *step: steps.append(step), **OPTIONS | options)
    return cohort, steps


def alter(path):
    volume = load_volume(path)
    save_volume(volume.replace(array=volume.array**1.5), path)


@pytest.fixture
def study(tmp_path):
    manifest = write_study(tmp_path, subjects=4, split=["train", "train", "test", "train"])
    return manifest, tmp_path / "cohort"


def test_the_scale_is_that_of_the_training_subjects(study):
    cohort, steps = prepare(*study)
    assert [words for _, _, words in steps[:3]] == ["001 landmarks", "002 landmarks", "004 landmarks"]
    assert [step[:2] for step in steps] == [(n, 7) for n in range(1, 8)] and cohort.count("done") == 4
    found = []
    for name in ("001", "002", "004"):
        mr = load_volume(study[0].parent / f"{name}_mr.nii.gz", modality="mr")
        found.append(landmarks(mr.array, foreground(mr)))
    scale = standard_scale(found)
    np.testing.assert_allclose(json.loads(cohort.options["mr_standard"])["mr"], scale, atol=1e-8)
    mr = scan("mr")
    alone = prepare_volumes({"mr": mr}, **OPTIONS, mr_standard=cohort.options["mr_standard"], keep_volumes=True)
    expected = standardize(alone.on_grid["mr"].array, landmarks(mr.array, foreground(mr)), scale)
    np.testing.assert_allclose(alone.image[0], expected, atol=1e-5)


@pytest.mark.slow
def test_a_test_subject_changes_nothing_but_itself_and_a_training_subject_everything(study):
    cohort, _ = prepare(*study)
    assert prepare(*study)[1] == [(n, 7, f"{case} landmarks") for n, case in enumerate(("001", "002", "004"), 1)]
    alter(study[0].parent / "003_mr.nii.gz")
    again, steps = prepare(*study)
    assert again.options == cohort.options and [words for _, _, words in steps[3:]] == ["003 done"]
    alter(study[0].parent / "001_mr.nii.gz")
    other, steps = prepare(*study)
    assert other.options != cohort.options and len(steps) == 7


@pytest.mark.slow
def test_processes_and_interruptions_give_the_same_scale(study, tmp_path):
    cohort, _ = prepare(*study)
    parallel = prepare_cohort(study[0], tmp_path / "parallel", workers=2, **OPTIONS)
    assert parallel.hash == cohort.hash and parallel.options == cohort.options
    (study[1] / "landmarks" / "002.json").write_text("{")
    shutil.rmtree(study[1] / "cases" / "001")
    assert prepare(*study)[0].hash == cohort.hash


def test_a_new_case_is_brought_to_the_scale_of_a_prepared_cohort(study, tmp_path):
    cohort, _ = prepare(*study)
    (tmp_path / "new.csv").write_text("subject,mr\nN,001_mr.nii.gz\n")
    standard = cohort.options["mr_standard"]
    new, steps = prepare(tmp_path / "new.csv", tmp_path / "new", mr_standard=standard)
    assert len(steps) == 1 and new.options["mr_standard"] == standard


def test_a_fit_needs_training_subjects(study, tmp_path):
    (tmp_path / "plain.csv").write_text("subject,mr\nN,001_mr.nii.gz\n")
    with pytest.raises(
        ManifestError, match=r"fitted on training subjects only, and no row has 'train' in column split"
    ):
        prepare(tmp_path / "plain.csv", tmp_path / "out")
    (tmp_path / "pet.csv").write_text("subject,split,pet\nN,train,001_pet.nii.gz\n")
    with pytest.raises(OptionError, match="no training case has an MR that can be read"):
        prepare(tmp_path / "pet.csv", tmp_path / "out")
    with pytest.raises(
        OptionError, match="there is no standard scale for mr: mmfusion prepare fits it on the training"
    ):
        prepare_volumes({"mr": scan("mr")}, **OPTIONS)


@pytest.mark.slow
def test_the_bias_field_goes_before_anything_else(study):
    mr = scan("mr")
    how = {**OPTIONS, "mr_normalize": "percentile"}
    straight = correct_bias(mr, foreground(mr))
    mended, expected, as_it_was = (
        prepare_volumes({"mr": volume, "ct": scan("ct")}, bias_correction=corrected, **how).image
        for volume, corrected in ((mr, True), (straight, False), (mr, False))
    )
    np.testing.assert_array_equal(mended, expected)
    np.testing.assert_array_equal(mended[1], as_it_was[1])
    assert np.abs(mended[0] - as_it_was[0]).max() > 0.05
    cohort, _ = prepare(*study, bias_correction=True)
    assert cohort.count("failed") == 0 and cohort.options["bias_correction"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"mr": [1, 2]}', '{"mr": 3}'])
def test_a_scale_that_is_none_is_refused_at_the_start(study, text):
    with pytest.raises(OptionError, match="option mr_standard is JSON with 11 rising numbers for each modality"):
        prepare(*study, mr_standard=text)
    assert not study[1].exists()
