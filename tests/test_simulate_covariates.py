"""Covariates and measurements of the simulated subjects: each carries the part of the label that it should, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmfusion.cohort.simulate import (
    SimulatedSubject,
    anatomy,
    ceilings,
    draw_covariates,
    draw_subjects,
    measure_regions,
    observed_ceilings,
    prepared_grid,
    simulate_volumes,
    template_pose,
)
from mmfusion.cohort.simulate.subjects import CORRELATION, SHIFT
from mmfusion.errors import OptionError
from mmfusion.volume import Grid

INFORMATIVE = ["age", "memory_score"]


@pytest.fixture(scope="module")
def many():
    """4000 subjects without poses, their labels and their covariates as columns of text."""
    severity = np.random.default_rng(3).multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]], 4000)
    severity[1::2] += SHIFT
    subjects = [SimulatedSubject(str(n), n % 2, *severity[n], {}, 0, noise_seed=n) for n in range(4000)]
    values = [draw_covariates(subject) for subject in subjects]
    columns = {name: np.array([row[name] for row in values]) for name in values[0]}
    return subjects, np.array([subject.label for subject in subjects]), columns


def test_covariates_are_text_of_the_subject_alone(many):
    subjects, _, columns = many
    assert {name: columns[name][0] for name in columns} == draw_covariates(subjects[0])
    assert list(columns) == ["age", "sex", "memory_score", "noise", "site"]
    assert set(columns["sex"]) == {"F", "M", ""} and set(columns["site"]) == {"A", "B", "C"}
    for name in ("age", "sex", "memory_score", "noise"):
        assert np.mean(columns[name] == "") == pytest.approx(0.05, abs=0.012)
    age = columns["age"][columns["age"] != ""].astype(float)
    assert 65 < age.mean() < 75 and age.min() > 30 and age.max() < 110


@pytest.mark.parametrize(("name", "auc"), [("age", 0.65), ("memory_score", 0.30), ("noise", 0.5)])
def test_each_number_carries_its_part_of_the_label(many, name, auc):
    """Within three standard errors; what is known of the label says nothing of the severities."""
    subjects, label, columns = many
    known = columns[name] != ""
    value = columns[name][known].astype(float)
    assert roc_auc_score(label[known], value) == pytest.approx(auc, abs=0.028)
    for severity in ("mr_severity", "pet_severity"):
        seen = np.array([getattr(subject, severity) for subject in subjects])[known]
        for one in (0, 1):
            group = label[known] == one
            assert abs(np.corrcoef(value[group], seen[group])[0, 1]) < 0.07


@pytest.mark.parametrize("name", ["sex", "site"])
def test_sex_and_site_carry_nothing_of_the_label(many, name):
    _, label, columns = many
    for value in set(columns[name]) - {""}:
        assert label[columns[name] == value].mean() == pytest.approx(0.5, abs=0.045)


def test_ceilings_with_covariates_are_those_of_a_regression(many):
    subjects, label, columns = many
    alone = norm.cdf(np.hypot(norm.ppf(0.65), norm.ppf(0.70)))
    best = ceilings(INFORMATIVE)
    assert best["ct"] == pytest.approx(alone, abs=1e-3)
    assert best == pytest.approx({"ct": 0.742, "pet": 0.876, "mr": 0.866, "all": 0.955}, abs=1e-3)
    assert ceilings(["sex", "site", "noise"]) == ceilings()

    complete = np.all([columns[name] != "" for name in INFORMATIVE], 0)
    x = np.stack([columns[name][complete].astype(float) for name in INFORMATIVE], 1)
    severity = np.array([(s.mr_severity, s.pet_severity) for s in subjects])[complete]
    for key, features in (("ct", x), ("all", np.hstack([x, severity]))):
        score = LogisticRegression(max_iter=1000).fit(features, label[complete]).decision_function(features)
        observed = observed_ceilings([s for s, whole in zip(subjects, complete, strict=True) if whole], INFORMATIVE)
        assert roc_auc_score(label[complete], score) == pytest.approx(observed[key], abs=0.005)
        assert observed[key] == pytest.approx(best[key], abs=0.025)


def test_values_that_are_missing_lower_the_observed_ceilings(many):
    subjects, _, columns = many
    without_age = [subject for subject, age in zip(subjects, columns["age"], strict=True) if not age]
    assert observed_ceilings(without_age, ["age"]) == observed_ceilings(without_age)
    with pytest.raises(OptionError, match="unknown simulated covariate 'memory'; did you mean 'memory_score'"):
        ceilings(["memory"])


@pytest.fixture(scope="module")
def subject():
    return replace(draw_subjects(3, 4)[1], missing=())


def test_what_is_measured_knows_the_severity_of_its_own_modality_alone(subject):
    def measured(**changes):
        changed = replace(subject, **changes)
        return measure_regions(changed, simulate_volumes(changed, prepared_grid(changed)))

    before = measured(mr_severity=0.0, pet_severity=0.0)
    shrunken, cold = measured(mr_severity=3.0, pet_severity=0.0), measured(mr_severity=0.0, pet_severity=3.0)
    assert {name.rsplit("_", 1)[1] for name in before} == {"ml", "suv", "au"} and len(before) == 27
    # of the region's gray matter 0.16 more is lost for each standard deviation, beginning at 0.36; its edges are soft
    gray, atrophy = anatomy.head().tissue["gm"] * anatomy.region(anatomy.ATROPHY[:1]), anatomy.region(anatomy.ATROPHY)
    expected = (gray * (1 - 0.84 * atrophy)).sum() / (gray * (1 - 0.36 * atrophy)).sum()
    name = "medial_temporal_left_volume_ml"
    assert shrunken[name] / before[name] == pytest.approx(expected, abs=0.01) and expected < 0.6
    assert cold["pet_posterior_cingulate_mean_suv"] < 0.8 * before["pet_posterior_cingulate_mean_suv"]
    for name in before:
        other = shrunken if name.startswith("pet") else cold
        assert other[name] == before[name]
    assert shrunken["ventricles_volume_ml"] == before["ventricles_volume_ml"]


def test_volumes_are_those_of_the_own_head_wherever_the_grid_lies(subject):
    grid = Grid.around((0.0, -17.0, 5.0), (4.0, 4.0, 4.0), (43, 51, 45))
    in_template = measure_regions(
        subject, simulate_volumes(subject, grid, template_pose(subject)), template_pose(subject)
    )
    own = measure_regions(subject, simulate_volumes(subject, prepared_grid(subject)))
    for name, value in own.items():
        assert in_template[name] == pytest.approx(value, rel=0.03), name
    assert 1200 < own["brain_volume_ml"] < 2100 and 10 < own["ventricles_volume_ml"] < 40


def test_a_missing_scan_is_not_measured(subject):
    without = replace(subject, missing=("mr",))
    names = measure_regions(without, simulate_volumes(without, prepared_grid(without)))
    assert names and all(name.startswith("pet_") for name in names)
    only_ct = replace(subject, missing=("mr", "pet"))
    assert measure_regions(only_ct, simulate_volumes(only_ct, prepared_grid(only_ct))) == {}
