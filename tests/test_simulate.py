"""The generating model and the drawing of subjects: the ceilings are right and no modality knows another's secret."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from mmfusion.cohort.simulate import (
    SimulatedSubject,
    anatomy,
    brain_landmarks,
    ceilings,
    draw_subjects,
    drawing,
    mr_scaling,
    native_grids,
    observed_ceilings,
    prepared_grid,
    scan,
    simulate_volumes,
    target_registration_error,
    true_fixed_to_moving,
)
from mmfusion.cohort.simulate.subjects import CORRELATION, SHIFT
from mmfusion.errors import OptionError
from mmfusion.volume import (
    Grid,
    Transform,
    Volume,
    foreground,
    mask_center,
    normalize,
    normalize_mr,
    resample,
)


@pytest.fixture(scope="module")
def subject() -> SimulatedSubject:
    return draw_subjects(4, 3)[2]


@pytest.fixture(scope="module")
def raw(subject) -> dict[str, Volume]:
    return simulate_volumes(subject, native_grids(subject))


def test_same_seed_same_subjects():
    first, again, other = draw_subjects(6, 1), draw_subjects(6, 1), draw_subjects(6, 2)
    assert [s.subject for s in first] == [f"SIM-000{n}" for n in range(1, 7)]
    facts = [
        [(s.label, s.mr_severity, s.noise_seed, s.poses["pet"].matrix.tolist()) for s in g] for g in (first, again)
    ]
    assert facts[0] == facts[1]
    assert first[0].mr_severity != other[0].mr_severity


def test_shares_of_labels_and_missing_scans():
    subjects = draw_subjects(400, 5, missing=0.3, positive=0.25, prefix="X")
    assert sum(s.label for s in subjects) == 100
    assert np.mean([len(s.missing) for s in subjects]) / 3 == pytest.approx(0.3, abs=0.03)
    assert all(s.modalities for s in draw_subjects(50, 5, missing=1.0))


@pytest.mark.parametrize("wrong", [{"count": 0}, {"missing": 1.2}, {"positive": -0.1}])
def test_impossible_draws_are_refused(wrong):
    with pytest.raises(OptionError, match="count >= 1 and shares from 0 to 1"):
        draw_subjects(**{"count": 5, "seed": 0, **wrong})


def test_severities_follow_the_model():
    subjects = draw_subjects(2000, 7)
    for label in (0, 1):
        group = np.array([(s.mr_severity, s.pet_severity) for s in subjects if s.label == label])
        np.testing.assert_allclose(group.mean(0), label * SHIFT, atol=0.02)
        np.testing.assert_allclose(np.cov(group.T), [[1, CORRELATION], [CORRELATION, 1]], atol=0.04)


def test_ceilings_are_those_of_a_discriminant_analysis():
    assert ceilings() == pytest.approx({"ct": 0.5, "pet": 0.830, "mr": 0.815, "all": 0.941}, abs=5e-4)
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20000)
    x = rng.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]], 40000) + label[:, None] * SHIFT
    for name, columns in (("mr", [0]), ("pet", [1]), ("all", [0, 1])):
        score = LinearDiscriminantAnalysis().fit(x[:, columns], label).decision_function(x[:, columns])
        assert roc_auc_score(label, score) == pytest.approx(ceilings()[name], abs=0.006)


def test_observed_ceilings_lie_close_and_match_scikit_learn():
    for seed in range(5):
        subjects = draw_subjects(200, seed)
        found = observed_ceilings(subjects)
        assert found == pytest.approx(ceilings(), abs=0.02)  # 200 independent subjects would scatter by 0.03
        label = [s.label for s in subjects]
        assert found["mr"] == pytest.approx(roc_auc_score(label, [s.mr_severity for s in subjects]))


def test_missing_scans_lower_the_ceilings():
    some = observed_ceilings(draw_subjects(400, 1, missing=0.4))
    assert some["all"] < 0.9 and some["ct"] == 0.5
    with pytest.raises(OptionError, match="both labels"):
        observed_ceilings(draw_subjects(5, 1, positive=0))


def test_poses_are_rigid_small_and_differ(subject):
    for pose in subject.poses.values():
        assert np.linalg.det(pose.matrix[:3, :3]) == pytest.approx(1)
        assert pose.displacement_mm(np.array(anatomy.CENTER)) <= 15
    angles = [pose.rotation_deg for s in draw_subjects(50, 1) for pose in s.poses.values()]
    assert max(angles) <= 10.2 and np.mean(angles) > 3
    assert not np.allclose(subject.poses["ct"].matrix, subject.poses["mr"].matrix)


def test_registration_error_of_a_known_miss(subject):
    true = true_fixed_to_moving(subject, "ct", "pet")
    assert target_registration_error(subject, "ct", "pet", true) < 1e-9
    off = true.compose(Transform.rigid(translation_mm=(3, 0, 4)))
    assert target_registration_error(subject, "ct", "pet", off) == pytest.approx(5)
    assert target_registration_error(subject, "ct", "pet", Transform()) > 2


def test_landmarks_lie_all_over_the_brain():
    points = brain_landmarks()
    assert len(points) > 150
    assert (np.ptp(points, axis=0) >= [120, 140, 120]).all()


def test_head_is_plausible():
    model = anatomy.head()
    liters = {name: part.sum() * 8e-6 for name, part in model.tissue.items()}
    assert 1.5 < liters["gm"] + liters["wm"] < 2.1 and 0.15 < liters["csf"] < 0.8
    assert 0.4 < liters["skull"] < 1.0 and 0.3 < liters["scalp"] < 0.8
    total = np.sum(list(model.tissue.values()), axis=0)
    assert total.max() < 1.01 and min(part.min() for part in model.tissue.values()) >= 0
    middle = (model.surface.min(0) + model.surface.max(0)) / 2
    np.testing.assert_allclose(middle, anatomy.CENTER, atol=4)


def test_waves_are_the_sum_that_they_claim_to_be():
    waves = drawing.Waves.draw(np.random.default_rng(1), 2.0, (70, 200), 3)
    grid = Grid((5, 7, 4), Transform.rigid((20, 5, 8), (3, 2, 1)).matrix @ np.diag([9.0, 8, 11, 1]))
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    expected = np.cos(points @ waves.wave.T + waves.phase) @ waves.amplitude
    np.testing.assert_allclose(waves.on(grid.affine, grid.shape), np.moveaxis(expected, -1, 0), atol=1e-4)


def test_template_is_read_as_scipy_reads_it():
    rng = np.random.default_rng(2)
    models = rng.random((2, 11, 13, 17), np.float32)
    index = rng.uniform(0, 10, (3, 4, 5, 6)).astype(np.float32)
    found = drawing.read_template(models, index)
    for one, model in zip(found, models, strict=True):
        np.testing.assert_allclose(one, ndimage.map_coordinates(model, index, order=1), atol=1e-5)


def test_scans_have_their_units_and_ranges(raw):
    assert [(v.units, v.modality) for v in raw.values()] == [("HU", "ct"), ("SUVbw", "pet"), ("a.u.", "mr")]
    assert raw["ct"].array.min() >= -1024 and 700 < raw["ct"].array.max() < 1100
    assert raw["pet"].array.min() == 0 and 4 < raw["pet"].array.max() < 12
    assert raw["mr"].array.min() >= 0 and all(v.array.dtype == np.float32 for v in raw.values())


def test_missing_scans_are_not_simulated(subject):
    partial = replace(subject, missing=("ct",))
    assert list(simulate_volumes(partial, native_grids(partial))) == ["pet", "mr"]
    assert list(simulate_volumes(partial, prepared_grid(partial))) == ["pet", "mr"]
    with pytest.raises(OptionError, match="no ct to use as reference; it has pet, mr"):
        prepared_grid(partial, reference="ct")


@pytest.mark.parametrize("route", ["native", "prepared"])
def test_each_severity_changes_its_own_modality_alone(subject, route):
    grids = native_grids(subject) if route == "native" else prepared_grid(subject, (8, 8, 8), (20, 24, 20))
    before = simulate_volumes(subject, grids)
    for changed, other in (("mr", "pet"), ("pet", "mr")):
        after = simulate_volumes(replace(subject, label=1 - subject.label, **{f"{changed}_severity": 4.0}), grids)
        assert not np.array_equal(before[changed].array, after[changed].array)
        np.testing.assert_array_equal(before[other].array, after[other].array)
        np.testing.assert_array_equal(before["ct"].array, after["ct"].array)


def test_disease_darkens_its_regions_and_leaves_the_rest(subject):
    for name, ellipsoids in (("mr", anatomy.ATROPHY), ("pet", anatomy.HYPOMETABOLISM)):
        contrast = anatomy.contrast(name, 1.0)
        loss = contrast.healthy - contrast.at(1.0)
        inside = anatomy.region(ellipsoids) > 0
        assert loss.min() > -1e-3 and loss[inside].mean() > 20 * max(loss[~inside].mean(), 1e-6)


def test_prepared_grid_lies_where_preparing_would_put_it():
    for one in draw_subjects(3, 9):
        ct = simulate_volumes(one, {"ct": native_grids(one)["ct"]})["ct"]
        found = prepared_grid(one, (4, 4, 4), (40, 48, 40)).center
        assert np.linalg.norm(found - mask_center(foreground(ct), ct.grid)) < 2.5


@pytest.mark.parametrize(("name", "least"), [("ct", 0.99), ("pet", 0.93), ("mr", 0.99)])
def test_prepared_scans_look_like_resampled_raw_ones(subject, raw, name, least):
    grid = prepared_grid(subject)
    long_way = normalize(resample(raw[name], grid, true_fixed_to_moving(subject, "ct", name)))
    short_way = normalize(simulate_volumes(subject, grid)[name])
    inside = resample(raw["ct"], grid).array > -100
    a, b = long_way[inside], short_way[inside]
    assert np.corrcoef(a, b)[0, 1] > least
    assert b.mean() == pytest.approx(a.mean(), rel=0.02) and b.std() == pytest.approx(a.std(), rel=0.03)
    # the same sharpness and noise: differences of neighbors
    edges = [np.abs(np.diff(image, axis=2))[inside[:, :, 1:]].mean() for image in (long_way, short_way)]
    assert edges[1] == pytest.approx(edges[0], rel=0.05)


def test_mr_scaling_is_that_of_the_native_scan(subject, raw):
    native = normalize_mr(raw["mr"].array, foreground(raw["mr"]))
    prepared = simulate_volumes(subject, prepared_grid(subject))["mr"]
    assert mr_scaling(prepared) == pytest.approx(native, rel=0.02)


def test_table_is_in_some_scans_below_the_head_and_comes_off():
    tables = 0
    for one in draw_subjects(6, 2):
        ct = simulate_volumes(one, {"ct": native_grids(one)["ct"]})["ct"]
        body = foreground(ct)
        rest = ndimage.binary_opening((ct.array > -300) & ~ndimage.binary_dilation(body, iterations=2))
        if rest.sum() > 1000:
            tables += 1
            y = [ct.grid.to_world(np.argwhere(mask))[:, 1] for mask in (rest, body)]
            assert y[0].max() < y[1].min()
    assert 0 < tables < 6


def test_noise_is_what_the_scanner_says(subject):
    """Two scans of one subject differ by sqrt(2) times the scanner's noise in the middle of the head."""
    grid = Grid.around(subject.poses["ct"].apply(np.array(anatomy.CENTER)).tolist(), (2, 2, 3), (40, 40, 20))
    twice = [simulate_volumes(replace(subject, noise_seed=seed), {"ct": grid})["ct"].array for seed in (1, 2)]
    assert np.std(twice[0] - twice[1]) / np.sqrt(2) == pytest.approx(scan.SCANNERS["ct"].noise, rel=0.03)


@pytest.mark.slow
def test_a_probe_finds_each_severity_in_its_own_modality_only():
    """Independent severities: MR voxels tell the atrophy (R2 > 0.8) and PET voxels nothing of it, and vice versa."""
    rng = np.random.default_rng(4)
    subjects = [
        replace(s, mr_severity=float(a), pet_severity=float(b))
        for s, (a, b) in zip(draw_subjects(120, 6), rng.standard_normal((120, 2)), strict=True)
    ]
    regions = [[e] for e in (*anatomy.ATROPHY, *anatomy.HYPOMETABOLISM)]
    tissue, grid = anatomy.head().tissue["gm"], anatomy.head().grid
    points = [grid.to_world(np.argwhere(tissue * anatomy.region(r) > 0.5)) for r in regions]
    points.append(grid.to_world(np.argwhere(tissue > 0.5)))
    means: dict[str, list] = {"mr": [], "pet": []}
    for s in subjects:
        target = prepared_grid(s)
        for name, volume in simulate_volumes(s, target).items():
            if name in means:
                index = [target.to_index(s.poses["ct"].apply(p)).T for p in points]
                means[name].append([ndimage.map_coordinates(volume.array, i, order=1).mean() for i in index])

    def explained(name: str, severity: str) -> float:
        y = np.array([getattr(s, severity) for s in subjects])
        guess = cross_val_predict(LinearRegression(), np.log(means[name]), y, cv=5)
        return 1 - float(((y - guess) ** 2).mean() / y.var())

    assert explained("mr", "mr_severity") > 0.8 and explained("pet", "pet_severity") > 0.8
    assert explained("mr", "pet_severity") < 0.1 and explained("pet", "mr_severity") < 0.1
