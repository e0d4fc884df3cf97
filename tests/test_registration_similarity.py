"""Mutual information against scikit-learn, its gradient against finite differences, levels against their volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.linalg import expm
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from mmfusion.errors import GeometryError, VoxelError
from mmfusion.registration import mutual_information
from mmfusion.registration.ascent import climb, exponential, generators
from mmfusion.registration.levels import Level, pyramid
from mmfusion.registration.similarity import Similarity
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


def level_of(array: np.ndarray, affine: np.ndarray, mask: np.ndarray | None = None) -> Level:
    inside = None if mask is None else torch.from_numpy(mask)
    return Level(torch.from_numpy(array), np.ones(array.shape, bool), Grid(array.shape, affine), inside)


def read(level: Level, points: np.ndarray) -> np.ndarray:
    index = level.to_index[:3, :3] @ points + level.to_index[:3, 3:]
    return ndimage.map_coordinates(level.data.numpy(), index, order=1, mode="nearest")


OBLIQUE = Transform.rigid((20, -10, 30), (5, 6, -70)).matrix @ np.diag([2.0, 2.5, 3.0, 1.0])


def test_value_is_near_the_plain_joint_histograms(smooth, rng):
    """The Parzen window smooths one axis of the histogram, so the value is a little lower, and ranks alike."""
    level = level_of(smooth, np.eye(4))
    points = rng.uniform(2, 14, (3, 40_000))
    other = read(level, points) ** 2
    plain = mutual_information(read(level, points), other, bins=32)
    found = Similarity(points[None], other[None], [level])(np.eye(4)[None])
    assert 0.6 * plain < found.value[0] < plain


def test_gradient_is_the_finite_difference(smooth, rng):
    level = level_of(smooth, OBLIQUE)
    points = level.grid.to_world(rng.uniform(3, 13, (4000, 3))).T
    similarity = Similarity(points[None], np.sqrt(read(level, points))[None], [level])
    matrix = Transform.rigid((2, 1, -1), (1, 2, -1), points.mean(1)).matrix[None]
    found = similarity(matrix)
    assert found.inside[0] == 1
    assert 0 < found.value[0] < similarity(np.eye(4)[None]).value[0] < 1
    for row in range(3):
        for column in range(4):
            step = np.zeros((1, 4, 4))
            step[0, row, column] = 1e-2 if column == 3 else 1e-4
            difference = (similarity(matrix + step).value - similarity(matrix - step).value)[0]
            assert found.gradient[0, row, column] == pytest.approx(
                difference / (2 * step.max()), rel=0.05, abs=3e-4 if column == 3 else 0.02
            )


def test_many_pairs_in_one_batch_are_each_alone(smooth, rng):
    """Two images of different shapes, a mask on one of them, five positions."""
    mask = np.ones(smooth.shape, bool)
    mask[:8] = False
    levels = [level_of(smooth, OBLIQUE, mask), level_of(np.ascontiguousarray(smooth[2:, :-3, 1:]), OBLIQUE)]
    points = np.stack([levels[0].grid.to_world(rng.uniform(1, 15, (500, 3))).T for _ in levels])
    values = np.stack([read(levels[0], one) for one in points])
    which = np.array([0, 1, 1, 0, 1])
    matrices = np.stack([Transform.rigid((n, 2 * n, 0), (n, 0, 1)).matrix for n in range(5)])
    together = Similarity(points, values, levels)(matrices, which)
    for n, pair in enumerate(which):
        some = slice(pair, pair + 1)
        alone = Similarity(points[some], values[some], levels[some])(matrices[n : n + 1])
        for name in ("value", "inside", "gradient"):
            np.testing.assert_allclose(getattr(together, name)[n], getattr(alone, name)[0], rtol=1e-4, atol=1e-5)
    assert together.inside[0] < 0.8 < together.inside[1]  # the mask hides a third of the first


def test_similarity_of_nothing_in_view_is_zero(smooth, rng):
    level = level_of(smooth, np.eye(4))
    found = Similarity(rng.uniform(500, 600, (1, 3, 99)), rng.random((1, 99)), [level])(np.eye(4)[None])
    assert (found.value[0], found.inside[0], np.abs(found.gradient).max()) == (0, 0, 0)
    flat = level_of(np.full_like(smooth, 0.5), np.eye(4))
    alike = Similarity(rng.uniform(1, 9, (1, 3, 99)), rng.random((1, 99)), [flat])(np.eye(4)[None])
    assert alike.inside[0] == 1 and alike.value[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("kind", "size"), [("translation", 3), ("rigid", 6), ("similarity", 7), ("affine", 12)])
def test_each_kind_climbs_to_its_own_best(kind, size, rng):
    """The highest point of minus the squared distance between point sets, against a least-squares answer."""
    basis = generators(kind)
    assert np.linalg.matrix_rank(basis.reshape(size, 16)) == size
    points = rng.normal(0, 40, (3, 60)) + 100
    local = np.concatenate([points, np.ones((1, 60))])
    small = np.einsum("k,kij->ij", rng.normal(0, 8, size), basis)
    center = points.mean(1)
    truth = expm(small)
    truth[:3, 3] += center - truth[:3, :3] @ center

    def objective(matrices: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = (matrices - truth)[:, :3] @ local
        return 1 - (away**2).mean((1, 2)), -2 * away @ local.T / away[0].size

    found, value = climb(objective, np.eye(4)[None], center[None], basis, iterations=100, tolerance=1e-12)
    np.testing.assert_allclose(value, 1, atol=1e-4)
    np.testing.assert_allclose(found[0, :3] @ local, truth[:3] @ local, atol=0.05)


def test_exponential_is_scipys(rng):
    small = rng.normal(0, 0.7, (5, 4, 4))
    small[:, 3] = 0
    np.testing.assert_allclose(exponential(small), expm(small), rtol=1e-9, atol=1e-12)


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
    assert [level.grid.spacing[2] for level in levels] == [6, 6, 6]
    assert [level.grid.spacing[:2] for level in levels] == [(8, 10), (4, 5), (2, 2.5)]
    for level in levels:
        # whole blocks of voxels: less than a block is lost at the far end
        lost = ball.grid.corners() - level.grid.corners()
        assert (np.abs(lost).max(0) < level.grid.spacing).all()


def test_pyramid_finds_the_body(ball):
    found = pyramid(ball, (8, 4, 2.5))
    np.testing.assert_allclose(found.mass, (12, -24, 33), atol=1.5)
    np.testing.assert_allclose(np.ptp(found.box, axis=0), 90, atol=8)
    assert found.volume_mm3 == pytest.approx(71 * 2 * 59 * 2.5 * 27 * 6)


def test_comparable_values_keep_their_order(ball):
    fine = pyramid(ball, (2.5,)).levels[0]
    assert fine.data.shape == ball.array.shape
    air, fat, bone = (np.unique(fine.data.numpy()[ball.array == value]) for value in (-1000, -80, 700))
    assert 0 <= air[0] == air[-1] < fat[0] == fat[-1] < bone[0] == bone[-1] <= 1


def test_points_lie_in_and_near_the_body_off_the_lattice(ball):
    level = pyramid(ball, (4,)).levels[0]
    points, values = level.points(5000, seed=1)
    assert points.shape == (3, 5000)
    np.testing.assert_allclose(values, read(level, points), atol=1e-6)
    radius = np.linalg.norm(points.T - (12, -24, 33), axis=1)
    assert radius.max() < 45 + 10 + 8
    assert 0.5 < (radius < 45).mean() < 0.9
    off = level.grid.to_index(points.T) % 1
    assert abs(off.mean() - 0.5) < 0.02 and off.std() > 0.25
    np.testing.assert_array_equal(points, level.points(5000, seed=1)[0])


def test_points_near_bone(ball):
    level = pyramid(ball.replace(array=np.where(ball.array > 0, ball.array, -90)), (4,)).levels[0]
    middle = (12, -24, 33)
    shares = [
        (np.linalg.norm(level.points(5000, 1, near_bone=near)[0].T - middle, axis=1) < 45).mean() for near in (0, 1)
    ]
    assert shares[0] < 0.4 < 0.7 < shares[1]
    assert pyramid(ball.replace(units="a.u."), (4,)).levels[0].bone is None


def test_masks_limit_where_points_are_drawn(ball):
    mask = np.zeros(ball.array.shape, bool)
    mask[:36] = True
    found = pyramid(ball, (8, 4), mask)
    points = found.levels[-1].points(2000, 0)[0]
    assert ball.grid.to_index(points.T)[:, 0].max() < 37 < ball.grid.to_index(found.box)[:, 0].max() + 8
    with pytest.raises(VoxelError, match="the mask of ct is empty"):
        pyramid(ball, (8, 4), np.zeros_like(mask))
    with pytest.raises(GeometryError, match=r"the mask of ct has shape \(3, 4, 5\); \(71, 59, 27\) is expected"):
        pyramid(ball, (8, 4), np.zeros((3, 4, 5), bool))
