"""The simulated study as a cohort folder: its cases lie where preparing would have put them, and it says what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmfusion.cli import main
from mmfusion.cohort.simulate import (
    MODALITIES,
    draw_covariates,
    draw_subjects,
    drawing,
    native_grids,
    simulate_volumes,
    template_pose,
)
from mmfusion.errors import OptionError
from mmfusion.files import read_rows
from mmfusion.options import resolve
from mmfusion.prepare import prepare_volumes
from mmfusion.prepare.simulated import GRID, simulate_onto_grid, simulate_study, study_subjects
from mmfusion.registration import template
from mmfusion.volume import Transform, resample

OPTIONS = resolve({**GRID, "modalities": list(MODALITIES)}, "case")
IN_TEMPLATE = {**OPTIONS, "to": "mni152"}
SIZES = {"train_subjects": 10, "test_subjects": 4, "seed": 1}


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(
    ("options", "least"),
    [
        pytest.param(OPTIONS, 0.9, id="own"),
        # the registration to the template misses by about 3 mm, which tells most in the skull of CT
        pytest.param(IN_TEMPLATE, 0.85, id="mni152", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_simulating_onto_the_grid_agrees_with_the_raw_route(modality, options, least):
    others = tuple(name for name in MODALITIES if name != modality)
    subject = replace(draw_subjects(3, 4)[1], missing=others)  # alone, so that only the template is registered
    short = simulate_onto_grid(subject, options)
    raw = prepare_volumes(simulate_volumes(subject, native_grids(subject)), pictures=False, **options)
    assert short.present.tolist() == raw.present.tolist() == [name == modality for name in MODALITIES]
    assert short.reference == raw.reference == modality and short.world == raw.world
    channel = MODALITIES.index(modality)
    assert np.abs(short.grid.center - raw.grid.center).max() < 4  # one voxel
    assert correlation(short.image[channel], raw.image[channel]) > least
    assert short.image[channel].mean() == pytest.approx(raw.image[channel].mean(), rel=0.1)


def test_the_grid_cohort_keeps_its_split_and_says_simulated(tmp_path):
    shown = []
    cohort = simulate_study(tmp_path, **SIZES, progress=lambda *words: shown.append(words))
    fresh = draw_subjects(4, 6, prefix="TEST", missing=0.05)
    assert shown[-1] == (14, 14, fresh[-1].subject)
    splits = [one.case.split for one in cohort.cases]
    assert [splits.count(part) for part in ("train", "validation", "test")] == [8, 2, 4]
    assert [one.case.label for one in cohort.cases[-4:]] == [str(one.label) for one in fresh]
    assert json.loads((tmp_path / "options.json").read_text())["simulated"] is True
    before = cohort.cases[0].file.stat().st_mtime_ns
    again = simulate_study(tmp_path, **SIZES)
    assert again.hash == cohort.hash and again.cases[0].file.stat().st_mtime_ns == before
    with pytest.raises(OptionError, match=r"suv_max is 10\.0, but the cohort .* was prepared with 25\.0"):
        simulate_study(tmp_path, **SIZES, suv_max=10.0)
    for option, words in (("to", "mni152"), ("with_covariates", True), ("measure", True)):
        with pytest.raises(OptionError, match=option.replace("_", ".")):
            simulate_study(tmp_path, **SIZES, **{option: words})


def test_a_voxel_in_template_space_is_the_same_place_in_every_head():
    brain, grid = template("mni152").brain, template("mni152").volume.grid
    expected = grid.to_world(np.argwhere(brain))

    def mean_miss(subject, pose):
        places = drawing.head().grid.to_world(np.moveaxis(drawing.Points(subject, grid, pose).index, 0, -1)[brain])
        return float(np.linalg.norm(places - expected, axis=1).mean())

    subjects = draw_subjects(6, 8)
    assert np.mean([mean_miss(one, template_pose(one)) for one in subjects]) < 2.6  # mm
    assert np.mean([mean_miss(one, Transform()) for one in subjects]) > 2.8
    first, second = (simulate_onto_grid(one, IN_TEMPLATE) for one in subjects[:2])
    assert first.world == second.world == "mni152"
    np.testing.assert_array_equal(first.grid.affine, second.grid.affine)
    t1 = resample(template("mni152").volume, first.grid).array
    inside = t1 > 0.1 * t1.max()
    assert correlation(t1[inside], first.image[MODALITIES.index("mr")][inside]) > 0.85


def test_a_cohort_in_template_space_with_covariates_and_measurements(tmp_path, capsys):
    simulate_study(tmp_path, **SIZES, to="mni152", with_covariates=True, measure=True)
    assert json.loads((tmp_path / "options.json").read_text())["to"] == "mni152"
    records = [json.loads(path.read_text()) for path in (tmp_path / "cases").glob("*/case.json")]
    assert {record["world"] for record in records} == {"mni152"}
    assert len({str(record["affine"]) for record in records}) == 1

    subjects = [subject for part in study_subjects(10, 4, 1) for subject in part]
    written = read_rows(tmp_path / "covariates.csv", "", ("case", "age", "sex", "memory_score", "noise"))
    rows = read_rows(tmp_path / "cases.csv", "", ("case", "site"))
    for subject, values, row in zip(subjects, written, rows, strict=True):
        assert values | {"site": row["site"]} == {"case": subject.subject, **draw_covariates(subject)}
        assert bool(row["brain_volume_ml"]) == ("mr" in subject.modalities)
        assert bool(row["pet_brain_mean_suv"]) == ("pet" in subject.modalities)
    assert main(["simulate", "--out", str(tmp_path), "--to", "mni152", "--with-covariates", "--measure"]) == 0
    assert "SIMULATED DATA | 14 cases" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 0
