from itertools import permutations

import nibabel as nib
import numpy as np
import pytest

from mmfusion.errors import GeometryError, VoxelError
from mmfusion.volume import Grid, Transform, Volume, empty_ras, nearest_ras

OBLIQUE = np.array([[-1.9, 0.1, 0.3, 40], [0.2, 0.4, 3.0, -12], [0.1, -1.2, 0.8, 7], [0, 0, 0, 1.0]])


def test_orientation_agrees_with_nibabel():
    for affine in (np.eye(4), np.diag([-1, -1, 2, 1.0]), OBLIQUE):
        assert Grid((11, 13, 17), affine).orientation == "".join(nib.aff2axcodes(affine))


def test_nearest_ras_equals_nibabel_and_moves_no_voxel():
    array = np.arange(3 * 5 * 7).reshape(3, 5, 7)
    out, affine = nearest_ras(array, OBLIQUE)
    oracle = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int16), OBLIQUE))
    assert np.array_equal(out, oracle.get_fdata())
    assert np.allclose(affine, oracle.affine, atol=1e-5)


def test_grid_around_is_centered():
    grid = Grid.around((10, -20, 30), (2, 3, 4), (11, 12, 13))
    assert np.allclose(grid.center, (10, -20, 30))
    assert grid.spacing == (2, 3, 4)
    assert np.allclose(np.ptp(grid.corners(), axis=0), (22, 36, 52))
    assert np.allclose(grid.to_index(grid.to_world(np.array([1.5, 2, 3]))), (1.5, 2, 3))


def test_same_as():
    grid = Grid((3, 4, 5), OBLIQUE)
    moved = Transform.rigid(translation_mm=(0.01, 0, 0)).matrix @ OBLIQUE
    assert grid.same_as(Grid((3, 4, 5), OBLIQUE))
    assert not grid.same_as(Grid((3, 4, 5), moved))
    assert not grid.same_as(Grid((3, 4, 6), OBLIQUE))


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((3, 4), np.eye(4), "three positive sizes"),
        ((3, 4, 0), np.eye(4), "three positive sizes"),
        ((3, 4, 5), np.eye(3), "finite 4 x 4 affine"),
        ((3, 4, 5), np.diag([1, 0, 1, 1.0]), "singular: two axes"),
    ],
)
def test_a_bad_grid_is_refused(shape, affine, message):
    with pytest.raises(GeometryError, match=message):
        Grid(shape, affine)


def test_a_volume_is_three_dimensional():
    with pytest.raises(GeometryError, match=r"pet scan\.nii: a volume has three axes, found .*\(3, 4\)"):
        Volume(np.zeros((3, 4)), np.eye(4), "pet", meta={"source": "scan.nii"})


def test_checked_names_the_case_and_the_count():
    array = np.ones((3, 4, 5), np.float32)
    with pytest.raises(VoxelError, match=r"mr: every voxel is 1"):
        Volume(array, np.eye(4), "mr").checked()
    array[0, 0, :2] = np.nan
    with pytest.raises(VoxelError, match=r"mr: 2 of 60 voxels are not finite"):
        Volume(array, np.eye(4), "mr").checked()


def test_rigid_transform_has_the_asked_parts():
    center = np.array([3.0, -4, 5])
    transform = Transform.rigid((0, 0, 30), (1, 2, 3), center)
    assert transform.rotation_deg == pytest.approx(30)
    assert np.allclose(transform.apply(center), center + (1, 2, 3))
    # right-handed about z: the point right of the center goes toward anterior
    assert transform.apply(center + (1, 0, 0))[1] > transform.apply(center)[1]


def test_compose_and_inverse():
    first, then = Transform.rigid((5, 10, 15), (1, 2, 3)), Transform.rigid((-20, 3, 0), (0, 7, 1), (9, 9, 9))
    points = np.random.default_rng(0).normal(size=(20, 3)) * 50
    assert np.allclose(first.compose(then).apply(points), then.apply(first.apply(points)))
    assert np.allclose(first.compose(first.inverse()).apply(points), points)
    assert np.allclose(first.displacement_mm(points), np.linalg.norm(first.apply(points) - points, axis=1))
    assert Transform().is_identity and not first.is_identity


def test_a_singular_transform_is_refused():
    with pytest.raises(GeometryError, match="singular"):
        Transform(np.diag([1, 1, 0, 1.0]))
    with pytest.raises(GeometryError, match="finite 4 x 4"):
        Transform(np.eye(3))


def test_regrouped_voxels_begin_where_they_are_told_and_keep_the_field_of_view():
    grid = Grid((12, 9, 10), Transform.rigid((10, -20, 30), (4, 5, 6)).matrix @ np.diag([2.0, -3.0, 1.5, 1.0]))
    coarse = grid.regrouped((4, 3, 5), (3, 3, 2))
    np.testing.assert_allclose(coarse.corners(), grid.corners(), atol=1e-9)
    assert coarse.spacing == pytest.approx((6, 9, 3))
    part = grid.regrouped((5, 4, 3), first=(2, -1, 4))
    np.testing.assert_allclose(part.to_world(np.zeros(3)), grid.to_world(np.array([2, -1, 4])), atol=1e-9)
    assert part.spacing == pytest.approx(grid.spacing) and part.shape == (5, 4, 3)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_an_array_laid_out_for_ras_is_contiguous_once_turned(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.5, 2, 3])[:, list(axes)] * signs
    stored = np.random.default_rng(0).normal(size=(11, 13, 17)).astype(np.float32)
    room = empty_ras(stored.shape, affine)
    room[...] = stored
    turned, _ = nearest_ras(room, affine)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, nearest_ras(stored, affine)[0])
