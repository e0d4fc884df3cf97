"""Mutual information against scikit-learn, its gradient against finite differences, levels against their volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from mmfusion.errors import GeometryError, VoxelError
from mmfusion.registration import mutual_information
from mmfusion.registration.levels import Level, pyramid
from mmfusion.registration.similarity import Similarity, trilinear
from mmfusion.volume import Grid, Transform, Volume


def labels(values: np.ndarray, bins: int) -> np.ndarray:
    edges = np.linspace(values.min(), values.max(), bins + 1)
    return np.clip(np.digitize(values, edges) - 1, 0, bins - 1)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def smooth(rng):
    """``[23, 19, 17]`` 0..1, smooth, without symmetry."""
    array = ndimage.gaussian_filter(rng.normal(size=(23, 19, 17)), 2)
    return ((array - array.min()) / np.ptp(array)).astype(np.float32)


def test_mutual_information_is_scikit_learns(rng):
    a = rng.normal(size=(11, 13, 17))
    b = a**2 + rng.normal(size=a.shape)
    one, other = labels(a.ravel(), 20), labels(b.ravel(), 20)
    assert mutual_information(a, b, bins=20, normalized=False) == pytest.approx(mutual_info_score(one, other))
    assert mutual_information(a, b, bins=20) == pytest.approx(normalized_mutual_info_score(one, other))


def test_mutual_information_counts_the_mask_only(rng):
    a, b = rng.normal(size=(2, 11, 13, 17))
    mask = rng.random(a.shape) > 0.5
    b[mask] = 3 - a[mask]
    assert mutual_information(a, b, mask) == pytest.approx(1)
    assert mutual_information(a, b, mask) == mutual_information(a[mask], b[mask])
    assert mutual_information(a, b, ~mask, bins=8) < 0.02


def test_mutual_information_of_a_constant_is_zero(rng):
    assert mutual_information(np.ones((3, 4, 5)), rng.normal(size=(3, 4, 5))) == 0
    assert mutual_information(np.ones((3, 4, 5)), np.ones((3, 4, 5))) == 0


def test_mutual_information_needs_one_grid_and_voxels():
    with pytest.raises(GeometryError, match=r"one grid, found arrays of shape \(2, 3, 4\) and \(2, 3, 5\)"):
        mutual_information(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))
    with pytest.raises(VoxelError, match="the mask is empty"):
        mutual_information(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), np.zeros((2, 3, 4), bool))


def test_trilinear_is_scipys_and_its_slopes_are_its_differences(smooth, rng):
    index = rng.uniform(-2, 24, (3, 500))
    values, slopes = trilinear(smooth, index)
    expected = ndimage.map_coordinates(smooth, index, order=1, mode="nearest")
    np.testing.assert_allclose(values, expected, atol=1e-5)
    inner = np.floor(rng.uniform(0, 15, (3, 500))) + 0.5
    _, slopes = trilinear(smooth, inner)
    for axis in range(3):
        step = np.eye(3)[axis][:, None] * 0.25
        difference = (trilinear(smooth, inner + step)[0] - trilinear(smooth, inner - step)[0]) / 0.5
        np.testing.assert_allclose(slopes[axis], difference, atol=1e-5)


def test_gradient_is_the_finite_difference(smooth, rng):
    affine = Transform.rigid((20, -10, 30), (5, 6, -70)).matrix @ np.diag([2.0, 2.5, 3.0, 1.0])
    level = Level(smooth, np.ones(smooth.shape, bool), Grid(smooth.shape, affine))
    points = level.grid.to_world(rng.uniform(3, 13, (4000, 3))).T
    values = np.sqrt(trilinear(smooth, level.to_index[:3, :3] @ points + level.to_index[:3, 3:])[0])
    similarity = Similarity(points, values, level)
    matrix = Transform.rigid((2, 1, -1), (1, 2, -1), points.mean(1)).matrix
    found = similarity(matrix)
    assert found.inside == 1
    assert 0 < found.value < similarity(np.eye(4)).value < 1
    for row in range(3):
        for column in range(4):
            step = np.zeros((4, 4))
            step[row, column] = 1e-3 if column == 3 else 1e-5
            difference = similarity(matrix + step).value - similarity(matrix - step).value
            assert found.gradient[row, column] == pytest.approx(
                difference / (2 * step.max()), rel=0.03, abs=3e-4 if column == 3 else 0.02
            )


def test_similarity_of_nothing_in_view_is_zero(smooth, rng):
    level = Level(smooth, np.ones(smooth.shape, bool), Grid(smooth.shape, np.eye(4)))
    found = Similarity(rng.uniform(500, 600, (3, 99)), rng.random(99), level)(np.eye(4))
    assert (found.value, found.inside) == (0, 0)
    flat = Level(np.full_like(smooth, 0.5), level.near, level.grid)
    alike = Similarity(rng.uniform(1, 9, (3, 99)), rng.random(99), flat)(np.eye(4))
    assert alike.inside == 1 and alike.value == pytest.approx(0, abs=1e-6)


@pytest.fixture
def ball():
    """A CT of a fat ball of 45 mm with a core of bone, off center, in 2 x 2.5 x 6 mm voxels."""
    grid = Grid.around((10, -20, 30), (2, 2.5, 6), (71, 59, 27))
    at = np.moveaxis(np.indices(grid.shape), 0, -1)
    radius = np.linalg.norm(grid.to_world(at) - (12, -24, 33), axis=-1)
    array = np.where(radius < 15, 700.0, np.where(radius < 45, -80.0, -1000.0))
    return Volume(array.astype(np.float32), grid.affine, "ct", "HU")


def test_levels_keep_the_field_of_view_and_thick_slices(ball):
    levels = pyramid(ball, (8, 4, 2.5)).levels
    assert [level.grid.spacing[2] for level in levels] == pytest.approx([8.1, 6, 6])
    assert all(min(level.grid.spacing[:2]) >= low for level, low in zip(levels, (8, 4, 1.99), strict=True))
    for level in levels:
        np.testing.assert_allclose(level.grid.corners(), ball.grid.corners(), atol=1e-6)


def test_pyramid_finds_the_body(ball):
    found = pyramid(ball, (8, 4, 2.5))
    np.testing.assert_allclose(found.mass, (12, -24, 33), atol=1.5)
    np.testing.assert_allclose(np.ptp(found.box, axis=0), 90, atol=8)
    assert found.volume_mm3 == pytest.approx(71 * 2 * 59 * 2.5 * 27 * 6)


def test_comparable_values_keep_their_order(ball):
    fine = pyramid(ball, (2.5,)).levels[0]
    assert fine.array.shape == ball.array.shape
    air, fat, bone = (np.unique(fine.array[ball.array == value]) for value in (-1000, -80, 700))
    assert 0 <= air[0] == air[-1] < fat[0] == fat[-1] < bone[0] == bone[-1] <= 1


def test_points_lie_in_and_near_the_body_off_the_lattice(ball):
    level = pyramid(ball, (4,)).levels[0]
    points = level.points(5000, seed=1)
    assert points.shape == (3, 5000)
    radius = np.linalg.norm(points.T - (12, -24, 33), axis=1)
    assert radius.max() < 45 + 10 + 8
    assert 0.5 < (radius < 45).mean() < 0.9
    off = level.grid.to_index(points.T) % 1
    assert abs(off.mean() - 0.5) < 0.02 and off.std() > 0.25
    np.testing.assert_array_equal(points, level.points(5000, seed=1))
