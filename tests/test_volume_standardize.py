"""Histogram standardization: scans of one thing in other units come to the same values."""

import numpy as np
import pytest

from mmfusion.errors import VoxelError
from mmfusion.volume import landmarks, standard_scale, standardize
from mmfusion.volume.standardize import PERCENTILES


def tissue(seed=0):
    """Three kinds of tissue, and where they are: ``[i, j, k]``."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([1.0, 2.2, 3.1], (13, 17, 11), p=[0.2, 0.5, 0.3])
    return kinds + rng.normal(0, 0.2, kinds.shape), np.ones(kinds.shape, bool)


def test_landmarks_are_percentiles_of_the_foreground():
    array, mask = tissue()
    mask[:5] = False
    np.testing.assert_allclose(landmarks(array, mask), np.percentile(array[5:], PERCENTILES))


def test_landmarks_rise_where_many_voxels_are_equal():
    array = np.concatenate([np.full(900, 3.0), np.linspace(3, 9, 100)]).reshape(10, 10, 10)
    found = landmarks(array, np.ones(array.shape, bool))
    assert (np.diff(found) > 0).all() and found[-1] == pytest.approx(9, abs=0.7)


@pytest.mark.parametrize("distort", [lambda a: 40 * a - 7, lambda a: a**1.7, lambda a: np.exp(a)])
def test_another_brightness_and_contrast_is_undone(distort):
    array, mask = tissue()
    other = distort(array)
    scale = standard_scale([landmarks(array, mask), landmarks(tissue(1)[0], mask)])
    a, b = (standardize(x, landmarks(x, mask), scale) for x in (array, other))
    before = np.abs(other / np.percentile(other, 99) - array / np.percentile(array, 99)).mean()
    assert np.abs(a - b).mean() < 0.01 and (before > 0.03 or distort(0.0) == -7)
    assert scale[0] == 0 and scale[-1] == 1 and (np.diff(scale) > 0).all()


def test_inside_it_is_interpolation_and_outside_the_slope_is_that_of_the_whole():
    own, scale = np.array([0.0, 10, 40]), np.array([0.0, 0.5, 1])
    values = np.array([[-10.0, 0, 5, 10, 25, 40, 70]])
    out = standardize(values, own, scale)
    np.testing.assert_allclose(out[:, 1:-1], np.interp(values[:, 1:-1], own, scale))
    np.testing.assert_allclose(out[0, [0, -1]], [-0.25, 1.75])
    assert out.dtype == np.float32


def test_equal_low_voxels_do_not_throw_the_background_away():
    array = np.concatenate([np.full(400, 20.0), np.linspace(20, 90, 600)]).reshape(10, 10, 10)
    own = landmarks(array, np.ones(array.shape, bool))
    out = standardize(np.array([[0.0, 20, 90]]), own, standard_scale([own]))
    assert -0.5 < out[0, 0] < 0 and abs(out[0, 1]) < 0.01


def test_what_has_no_landmarks_is_refused():
    with pytest.raises(VoxelError, match="foreground of the MR scan is empty"):
        landmarks(np.ones((2, 2, 2)), np.zeros((2, 2, 2), bool))
    with pytest.raises(VoxelError, match="foreground of the MR scan is constant"):
        landmarks(np.ones((2, 2, 2)), np.ones((2, 2, 2), bool))
