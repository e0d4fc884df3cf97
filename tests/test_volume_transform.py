"""Transforms with a displacement field: ITK's rule, exact composition, the way back, folds."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mmfusion.errors import GeometryError
from mmfusion.volume import Displacement, Grid, Transform

MOVE = Transform.rigid((8, -5, 12), (3.0, -6.0, 4.0), (10, 20, 5)).compose(Transform(np.diag([1.05, 0.97, 1.02, 1])))
TILTED = Transform.rigid((5, -9, 14)).matrix @ Grid.around((3, -4, 6), (2, 2.5, 3), (11, 13, 17)).affine


def smooth_field(affine=TILTED, shape=(11, 13, 17), mm=2.0, seed=0, still_border=False):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(*shape, 3)), (2, 2, 2, 0))
    if still_border:
        for axis in range(3):
            edge = np.minimum(np.arange(shape[axis]), np.arange(shape[axis])[::-1])
            noise *= np.clip((edge - 1) / 2, 0, 1).reshape([-1 if n == axis else 1 for n in range(4)])
    return Displacement(mm * noise / np.abs(noise).max(), Grid(shape, affine))


def points_around(grid, count=500, seed=1):
    index = np.random.default_rng(seed).uniform(-2, np.asarray(grid.shape) + 1, size=(count, 3))
    return grid.to_world(index)


def test_a_field_is_read_by_the_rule_of_itk():
    field = smooth_field()
    image = sitk.GetImageFromArray(field.array.transpose(2, 1, 0, 3).astype(float), isVector=True)
    image.SetSpacing(field.grid.spacing)
    image.SetOrigin(field.grid.affine[:3, 3].tolist())
    image.SetDirection((field.grid.affine[:3, :3] / field.grid.spacing).ravel().tolist())
    itk = sitk.DisplacementFieldTransform(image)
    points = points_around(field.grid)
    expected = np.array([itk.TransformPoint(point.tolist()) for point in points])
    np.testing.assert_allclose(points + field.at(points), expected, atol=1e-5)
    np.testing.assert_allclose(Transform(MOVE.matrix, field).apply(points), MOVE.apply(expected), atol=1e-5)
    still = (field.at(points) == 0).all(-1)
    assert 0.1 < still.mean() < 0.9


def test_a_voxel_reaches_half_a_step_with_the_value_of_the_edge():
    field = Displacement(np.arange(1, 4)[:, None, None, None] * np.ones((3, 4, 5, 3)), Grid((3, 4, 5), np.eye(4)))
    line = np.array([[x, 1, 1] for x in (-0.51, -0.5, 0, 0.25, 2.3, 2.5, 2.51)])
    np.testing.assert_allclose(field.at(line)[:, 1], [0, 1, 1, 1.25, 3, 3, 0])
    np.testing.assert_allclose(field.at(line, beyond=True)[:, 1], [1, 1, 1, 1.25, 3, 3, 3])


def test_composition_with_a_linear_transform_resamples_nothing():
    warp = Transform(MOVE.matrix, smooth_field())
    linear = Transform.rigid((-4, 10, 3), (5, 0, -2)).compose(Transform(np.diag([0.9, 1.1, 1.2, 1])))
    points = points_around(warp.displacement.grid)
    after = warp.compose(linear)
    assert after.displacement is warp.displacement
    np.testing.assert_allclose(after.apply(points), linear.apply(warp.apply(points)), atol=1e-9)
    here = linear.inverse().apply(points)
    before = linear.compose(warp)
    assert before.displacement.array.shape == warp.displacement.array.shape
    np.testing.assert_allclose(before.apply(here), warp.apply(linear.apply(here)), atol=1e-5)


def test_two_fields_become_one():
    first, then = smooth_field(still_border=True), smooth_field(seed=3, mm=1.0, still_border=True)
    both = Transform(MOVE.matrix, first).compose(Transform(MOVE.matrix, then.before(MOVE.inverse().matrix)))
    assert both.displacement.grid.same_as(first.grid)
    nodes = first.grid.to_world(np.argwhere(np.ones(first.grid.shape)))
    expected = MOVE.apply(MOVE.apply(nodes + first.at(nodes) + then.at(nodes + first.at(nodes))))
    np.testing.assert_allclose(both.apply(nodes), expected, atol=1e-4)

    shifted = first.grid.affine.copy()
    shifted[:3, 3] += [9, 0, -7]
    far = Displacement(then.array, Grid(then.grid.shape, shifted @ np.diag([0.7, 0.7, 0.7, 1])))
    apart = first.followed_by(far)
    assert apart.grid.spacing == pytest.approx(np.asarray(first.grid.spacing) / [2, 2, 3])
    points = np.concatenate([points_around(first.grid), points_around(far.grid)])
    expected = first.at(points) + far.at(points + first.at(points))
    assert np.abs(apart.at(points) - expected).max() < 0.2
    assert np.abs(apart.at(points) - expected).mean() < 0.02


def test_the_way_back_comes_back():
    field = smooth_field(mm=1.5, still_border=True)
    warp = Transform(MOVE.matrix, field)
    assert warp.folding == 0
    back = warp.inverse()
    points = points_around(field.grid, 2000)
    error = np.linalg.norm(back.apply(warp.apply(points)) - points, axis=-1)
    assert error.max() < 0.3  # between its voxels the inverse is linear where the exact one is not
    assert error.mean() < 0.03
    moved = back.displacement.grid.to_world(np.argwhere(np.ones(back.displacement.grid.shape)))
    assert np.linalg.norm(warp.apply(back.apply(moved)) - moved, axis=-1).max() < 0.01
    assert np.allclose(MOVE.inverse().matrix @ MOVE.matrix, np.eye(4))


def test_the_inverse_reaches_where_the_border_moves_to():
    push = Displacement(np.full((11, 13, 17, 3), (5.0, 0, 0)), Grid((11, 13, 17), np.diag([2.0, 2, 2, 1])))
    back = Transform(displacement=push).inverse()
    assert back.displacement.grid.shape == (14, 13, 17)
    np.testing.assert_allclose(back.apply(np.array([24.0, 3, 3])), [19, 3, 3], atol=1e-4)


def test_strong_expansion_has_an_inverse_and_a_fold_none(monkeypatch):
    grid = Grid((21, 5, 6), np.eye(4))
    hill = np.exp(-(((np.arange(21) - 10) / 4.0) ** 2) / 2) * (np.arange(21) - 10)
    array = np.zeros((21, 5, 6, 3))
    array[..., 0] = 1.8 * hill[:, None, None]
    warp = Transform(displacement=Displacement(array, grid))
    points = np.stack([np.linspace(5, 15, 30), np.full(30, 2.0), np.full(30, 2.0)], -1)
    np.testing.assert_allclose(warp.apply(warp.inverse().apply(points)), points, atol=0.15)
    folded = Transform(displacement=Displacement(-1.8 * array, grid))
    assert folded.folding > 0.1
    with pytest.raises(GeometryError, match=r"cannot be inverted: it folds at \d+ of 630 voxels"):
        folded.inverse()
    monkeypatch.setattr("mmfusion.volume.displacement._INVERSE_STEPS", 2)
    with pytest.raises(GeometryError, match=r"\d+ of \d+ points find no way back \(up to .* mm are left\)"):
        warp.inverse()


def test_the_jacobian_of_a_linear_field_is_known_on_an_oblique_grid():
    grid = Grid((11, 13, 17), TILTED @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    gradient = np.array([[0.1, 0.05, 0], [-0.02, 0.2, 0.1], [0, 0.03, -0.3]])
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    warp = Transform(MOVE.matrix, Displacement(points @ gradient.T, grid))
    np.testing.assert_allclose(warp.jacobian(), np.linalg.det(np.eye(3) + gradient), atol=1e-4)
    thin = Displacement(np.zeros((1, 13, 17, 3)), Grid((1, 13, 17), np.eye(4)))
    assert (thin.jacobian() == 1).all()


def test_what_a_transform_says_of_itself():
    field = smooth_field()
    warp = Transform(MOVE.matrix, field)
    assert MOVE.is_linear and not warp.is_linear
    assert MOVE.folding == 0
    assert warp.rotation_deg == MOVE.rotation_deg
    assert not Transform(displacement=field).is_identity
    assert Transform(displacement=Displacement(np.zeros((2, 3, 4, 3)), Grid((2, 3, 4), np.eye(4)))).is_identity
    points = points_around(field.grid)
    expected = np.linalg.norm(field.at(points), axis=-1)
    np.testing.assert_allclose(Transform(displacement=field).displacement_mm(points), expected, atol=1e-9)


def test_broken_fields_are_named():
    grid = Grid((11, 13, 17), np.eye(4))
    with pytest.raises(GeometryError, match=r"needs an array of shape \(11, 13, 17, 3\), found \(11, 13, 17\)"):
        Displacement(np.zeros((11, 13, 17)), grid)
    array = np.zeros((11, 13, 17, 3))
    array[3, 4, 5, 1] = np.nan
    with pytest.raises(GeometryError, match=r"1 of 7293 displacements are not finite"):
        Displacement(array, grid)
    with pytest.raises(GeometryError, match="a linear transform has no displacement field"):
        MOVE.jacobian()
