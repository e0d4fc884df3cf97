"""Features against the values that the IBSI published for its digital phantom, and against known answers."""

import numpy as np
import pytest

from mmfusion.volume import BINS, Bins, bounding_box, discretize, features, first_order, glcm, peak, shape

# z, y, x; voxels outside the region have a minus. What is outside matters for the peak only, and only the first two.
PHANTOM = """
1 4 4 1 1 / 1 4 6 1 1 / 4 1 6 4 1 / 4 4 6 4 1
1 4 4 1 1 / 1 1 6 1 1 / -9 1 3 1 1 / 4 4 6 1 1
1 4 4 -1 -1 / 1 1 1 1 1 / 1 1 -1 1 1 / 1 1 6 1 1
1 4 4 -1 -1 / 1 1 1 1 1 / 1 1 1 1 1 / 1 1 6 1 1
"""
FIRST_ORDER = {
    "mean": 2.15, "variance": 3.05, "skewness": 1.08, "kurtosis": -0.355, "median": 1, "minimum": 1, "p10": 1,
    "p90": 4, "maximum": 6, "interquartile_range": 3, "range": 5, "mean_absolute_deviation": 1.55,
    "robust_mean_absolute_deviation": 1.11, "energy": 567, "root_mean_square": 2.77, "entropy": 1.27,
    "uniformity": 0.512,
}  # fmt: skip
SHAPE = {
    "volume_ml": 0.556, "voxel_volume_ml": 0.592, "surface_mm2": 388, "sphericity": 0.843, "diameter_mm": 13.1,
    "major_axis_mm": 11.4, "minor_axis_mm": 9.31, "least_axis_mm": 8.54, "elongation": 0.816, "flatness": 0.749,
}  # fmt: skip
GLCM = {
    "joint_maximum": 0.509, "joint_average": 2.15, "joint_variance": 3.13, "joint_entropy": 2.57,
    "difference_average": 1.38, "difference_variance": 3.21, "difference_entropy": 1.64, "sum_average": 4.30,
    "sum_variance": 7.41, "sum_entropy": 2.11, "angular_second_moment": 0.291, "contrast": 5.12,
    "dissimilarity": 1.38, "inverse_difference": 0.688, "inverse_difference_normalized": 0.856,
    "inverse_difference_moment": 0.631, "inverse_difference_moment_normalized": 0.902, "inverse_variance": 0.0574,
    "correlation": 0.183, "autocorrelation": 5.19, "cluster_tendency": 7.41, "cluster_shade": 17.4,
    "cluster_prominence": 147, "information_correlation_1": -0.0288, "information_correlation_2": 0.269,
}  # fmt: skip


@pytest.fixture(scope="module")
def phantom():
    """Gray levels ``[5, 4, 4]``, the region, and voxels of 2 mm."""
    slices = [[row.split() for row in line.split("/")] for line in PHANTOM.strip().split("\n")]
    signed = np.array(slices, int).transpose(2, 1, 0)
    return np.abs(signed), signed > 0, np.diag([2.0, 2, 2, 1])


def test_the_digital_phantom_has_its_published_values(phantom):
    """IBSI reference manual (arXiv:1612.07003): phantom in chapter 5, values in chapter 3; texture in 3D, merged."""
    levels, mask, affine = phantom
    assert mask.sum() == 74
    assert first_order(levels[mask], levels[mask]) == pytest.approx(FIRST_ORDER, rel=0.01)
    assert shape(mask, affine) == pytest.approx(SHAPE, rel=0.01)
    assert glcm(np.where(mask, levels, 0)) == pytest.approx(GLCM, rel=0.01)
    assert peak(levels, mask, affine) == pytest.approx(3.10, rel=0.01)  # global intensity peak
    assert peak(levels, mask & (levels == 6), affine) == pytest.approx(2.60, rel=0.01)  # local, of the highest voxels


def test_the_way_of_the_axes_changes_nothing(phantom):
    levels, mask, affine = phantom
    turned, flipped = levels.transpose(2, 0, 1)[::-1], affine @ np.diag([-1, 1, 1, 1])
    inside = mask.transpose(2, 0, 1)[::-1]
    assert shape(inside, flipped) == pytest.approx(shape(mask, affine))
    assert glcm(np.where(inside, turned, 0)) == pytest.approx(glcm(np.where(mask, levels, 0)))
    assert peak(turned, inside, flipped) == pytest.approx(peak(levels, mask, affine))


@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_a_peak_of_anisotropic_and_sheared_voxels_by_brute_force(at_once, monkeypatch):
    monkeypatch.setattr(features, "_VOXELS_AT_ONCE", at_once)
    rng = np.random.default_rng(4)
    array = rng.gamma(2.0, size=(13, 17, 11))
    mask = np.zeros(array.shape, bool)
    mask[1:6, 3:12, 7:] = rng.random((5, 9, 4)) > 0.3  # to the end of the scan, and near it
    affine = np.diag([1.1, 2.3, 3.7, 1.0])
    affine[0, 2] = 1.9  # a tilted gantry
    index = np.moveaxis(np.indices(array.shape), 0, -1)
    means = []
    for center in np.argwhere(mask):
        apart = np.linalg.norm((index - center) @ affine[:3, :3].T, axis=-1)
        means.append(array[apart <= (750 / np.pi) ** (1 / 3)].mean())  # 1000 mm3
    assert peak(array, mask, affine) == pytest.approx(max(means), rel=1e-9)
    hot = np.full((31, 27, 19), 2.0)
    hot[15, 13, 9] = 100.0  # one hot voxel of 1 x 2 x 3 mm is a 166th of the sphere
    sphere = (np.linalg.norm((np.argwhere(hot > 0) - (15, 13, 9)) * (1, 2, 3), axis=1) <= 6.2035).sum()
    assert peak(hot, hot > 0, np.diag([1, 2, 3, 1])) == pytest.approx(2 + 98 / sphere)
    assert sphere == pytest.approx(1000 / 6, rel=0.05)


def test_an_ellipsoid_has_its_volume_and_axes():
    step = np.array([0.8, 1.1, 1.5])
    index = np.moveaxis(np.indices((91, 61, 41)), 0, -1)
    half = np.array([32.0, 24.0, 16.0])
    mask = ((((index - (45, 30, 20)) * step) / half) ** 2).sum(-1) <= 1
    measured = shape(mask, np.diag([*step, 1]))
    assert measured["volume_ml"] == pytest.approx(4 / 3 * np.pi * half.prod() / 1000, rel=0.01)
    assert measured["diameter_mm"] == pytest.approx(64, rel=0.02)
    # the axes of a solid ellipsoid's spread are 4 / sqrt(5) of its half axes
    assert [measured[f"{name}_axis_mm"] for name in ("major", "minor", "least")] == pytest.approx(
        half * 4 / np.sqrt(5), rel=0.01
    )
    assert measured["elongation"] == pytest.approx(0.75, abs=0.005) and measured["flatness"] == pytest.approx(
        0.5, abs=0.005
    )


def test_neighbors_are_counted_as_one_by_one():
    levels = np.random.default_rng(0).integers(1, 7, (7, 9, 5))
    mask = np.random.default_rng(1).random(levels.shape) > 0.2
    mine = glcm(np.where(mask, levels, 0))
    pairs = np.zeros((6, 6))
    for at in np.argwhere(mask):
        for step in np.ndindex(3, 3, 3):
            other = at + step - 1
            inside = (other >= 0).all() and (other < levels.shape).all() and step != (1, 1, 1)
            if inside and mask[tuple(other)]:
                pairs[levels[tuple(at)] - 1, levels[tuple(other)] - 1] += 1
    p = pairs / pairs.sum()
    i, j = np.indices(p.shape) + 1
    assert mine["contrast"] == pytest.approx((p * (i - j) ** 2).sum())
    assert mine["joint_entropy"] == pytest.approx(-(p * np.log2(p)).sum())
    assert mine["cluster_shade"] == pytest.approx((p * (i + j - 2 * mine["joint_average"]) ** 3).sum())


def test_values_become_levels_of_fixed_width():
    assert discretize(np.array([-1024, -1000, -976, -975, 0, 40]), BINS["HU"]).tolist() == [1, 1, 1, 2, 41, 42]
    assert discretize(np.array([0, 0.49, 0.5, 2.5]), BINS["SUV"]).tolist() == [1, 1, 2, 6]
    assert discretize(np.array([1e9]), Bins(1, 0)).tolist() == [1000]


def test_what_has_no_spread_or_neighbors():
    one = np.zeros((3, 5, 4), int)
    one[1, 2, 3] = 7
    point = shape(one > 0, np.diag([2.0, 3, 4, 1]))
    assert point["voxel_volume_ml"] == pytest.approx(0.024) and point["major_axis_mm"] == 0
    assert np.isnan([point["elongation"], point["flatness"]]).all()
    assert np.isnan(list(glcm(one).values())).all() and glcm(one).keys() == GLCM.keys()
    flat = first_order(np.full(4, 3.5), np.full(4, 8))
    assert (flat["variance"], flat["skewness"], flat["kurtosis"], flat["entropy"]) == (0, 0, 0, 0)
    pair = glcm(np.full((1, 2, 1), 5))
    assert (pair["contrast"], pair["correlation"], pair["information_correlation_1"]) == (0, 1, 0)


def test_the_box_of_a_mask():
    mask = np.zeros((6, 7, 8), bool)
    mask[1, 2:4, 7] = True
    assert bounding_box(mask) == (slice(1, 2), slice(2, 4), slice(7, 8))
    assert bounding_box(mask, np.array([2, 1, 3]))[:2] == (slice(0, 4), slice(1, 5))
    assert mask[bounding_box(mask, 3)].sum() == 2
