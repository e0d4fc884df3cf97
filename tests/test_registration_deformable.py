"""Displacements that are known: bent simulated heads at 4 mm, of one contrast and of two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from registration_heads import head, scan
from scipy import ndimage

from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.registration import register
from mmfusion.registration.cosines import conjugate_gradients, gather, spread
from mmfusion.registration.deformable import deform, lattice
from mmfusion.registration.self_similarity import self_similarity
from mmfusion.volume import Displacement, Grid, Transform, Volume, resample

STILL = Transform()


def bent(modality: str, seed: int = 3, mean_mm: float = 4.0) -> tuple[Volume, Transform]:
    """A head whose points x lie at x + u(x), u smooth, and the inverse's start: fixed_to_moving by iteration."""
    volume = head(modality, 4)
    noise = np.random.default_rng(seed).normal(size=(3, *volume.array.shape))
    u = np.stack([ndimage.gaussian_filter(one, 6) for one in noise], -1)
    u *= mean_mm / np.linalg.norm(u, axis=-1).mean()
    way = Transform(displacement=Displacement(u.astype(np.float32), volume.grid))
    return resample(volume, volume.grid, way), way.inverse()


def left_over(found: Transform, truth: Transform, volume: Volume) -> float:
    """Mean distance over the head, mm."""
    marks = volume.grid.to_world(np.argwhere(head("ct", 4).array > -500)[::37])
    return float(np.linalg.norm(found.apply(marks) - truth.apply(marks), axis=1).mean())


@pytest.mark.parametrize("contrast", [1, -1])
def test_a_smooth_displacement_is_found(contrast):
    fixed, (moving, truth) = head("mr", 4), bent("mr")
    found = deform(fixed, moving.replace(array=contrast * moving.array + 700), STILL, spacing=4)
    assert left_over(found.transform, truth, fixed) < 0.6 * left_over(STILL, truth, fixed)
    assert found.folded == 0 and 0 < found.mean_mm < found.largest_mm
    assert found.similarity_after > found.similarity_before


def test_a_head_that_is_not_bent_stays():
    fixed = scan("mr", STILL, 1)
    found = deform(fixed, scan("mr", STILL, 2), STILL, spacing=4)
    assert found.mean_mm < 0.6 and found.folded == 0


def scrambled() -> tuple[Volume, Volume]:
    """A head, and the same with its gray levels exchanged: each tells the other wholly, if nothing is displaced."""
    fixed = head("ct", 4)
    levels = np.clip((fixed.array + 1000) / 50, 0, 31).astype(int)
    order = np.random.default_rng(2).permutation(32).astype(np.float32)
    return fixed.replace(array=levels.astype(np.float32)), fixed.replace(array=order[levels])


def test_a_displacement_never_lowers_mutual_information():
    fixed, moving = scrambled()
    found = deform(fixed, moving, STILL, spacing=4)
    assert found.largest_mm == 0 and found.folded == 0
    assert found.similarity_after == found.similarity_before > 0.9


@pytest.mark.slow
def test_register_says_that_nothing_was_bent():
    fixed, moving = scrambled()
    found = register(fixed, moving, "deformable", init="identity")
    assert "nothing was bent: no displacement that was found raises the similarity" in found.reasons
    assert np.abs(found.fixed_to_moving.apply(fixed.grid.corners()) - fixed.grid.corners()).max() < 1e-6


def test_the_same_volumes_give_the_same_displacement():
    fixed, (moving, _) = head("mr", 4), bent("mr")
    one, other = (deform(fixed, moving, STILL, spacing=8).transform for _ in range(2))
    np.testing.assert_array_equal(one.displacement.array, other.displacement.array)


def test_an_oblique_and_flipped_fixed_volume_gives_the_same_motion():
    fixed, (moving, truth) = head("mr", 4), bent("mr")
    affine = fixed.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = fixed.affine[:3, 3] + fixed.affine[:3, 0] * (fixed.array.shape[0] - 1)
    turned = fixed.replace(array=fixed.array[::-1].copy(), affine=affine)
    found = deform(turned, moving, STILL, spacing=4).transform
    straight = deform(fixed, moving, STILL, spacing=4).transform
    assert left_over(found, truth, fixed) == pytest.approx(left_over(straight, truth, fixed), rel=1e-3)
    assert left_over(found, straight, fixed) < 0.05


def test_register_composes_affine_and_displacement_into_one_transform():
    fixed, (moving, truth) = head("mr", 4), bent("mr")
    away = Transform.rigid((4, -3, 5), (6, 8, -5), (0, -18, 10))
    found = register(fixed, moving.replace(affine=away.matrix @ moving.affine), "deformable")
    assert not found.fixed_to_moving.is_linear and found.folding == 0 and found.verdict == "ok"
    assert left_over(found.fixed_to_moving, truth.compose(away), fixed) < 2.7
    assert found.as_dict()["folding"] == 0


def test_what_was_not_seen_pulls_at_nothing():
    """The moving scan ends in the middle of the head: no displacement tears there, none explodes outside."""
    fixed, (moving, _) = head("mr", 4), bent("mr")
    half = moving.replace(array=moving.array[:, :, : moving.array.shape[2] // 2])
    found = deform(fixed, half, STILL, spacing=4)
    assert found.folded == 0 and found.largest_mm < 20


def test_cosines_and_their_transpose():
    rng = np.random.default_rng(0)
    tables = [torch.from_numpy(rng.normal(size=(n, m))) for n, m in ((11, 3), (13, 4), (7, 2))]
    weights, values = torch.from_numpy(rng.normal(size=(3, 3, 4, 2))), torch.from_numpy(rng.normal(size=(3, 11, 13, 7)))
    expected = np.einsum("ia,jb,kc,xabc->xijk", *(table.numpy() for table in tables), weights.numpy())
    np.testing.assert_allclose(spread(tables, weights).numpy(), expected, atol=1e-12)
    assert float((spread(tables, weights) * values).sum()) == pytest.approx(
        float((gather(tables, values) * weights).sum())
    )


def test_conjugate_gradients_solve():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(8, 8))
    matrix, wanted = torch.from_numpy(root @ root.T + 8 * np.eye(8)), torch.from_numpy(rng.normal(size=8))
    found = conjugate_gradients(lambda x: matrix @ x, wanted, 1 / matrix.diagonal())
    np.testing.assert_allclose(found.numpy(), np.linalg.solve(matrix.numpy(), wanted.numpy()), rtol=1e-5)


def test_self_similarity_is_blind_to_contrast():
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(17, 13, 11)), 1)).float()
    one, other = self_similarity(image), self_similarity(3 - 5 * image)
    assert one.shape == (12, 17, 13, 11)
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-3)


def test_a_lattice_keeps_the_field_of_view_and_thick_slices():
    grid = Grid.around((3, -4, 5), (1, 1.5, 7), (31, 22, 5))
    coarse = lattice(grid, 4)
    assert coarse.shape == (8, 8, 5)
    np.testing.assert_allclose(coarse.corners(), grid.corners(), atol=1e-9)


def test_what_is_refused():
    fixed = head("mr", 4)
    with pytest.raises(GeometryError, match="mr: a single slice"):
        deform(fixed, fixed.replace(array=fixed.array[:, :, 20:21]), STILL)
    with pytest.raises(VoxelError, match="every voxel is 0"):
        deform(fixed, fixed.replace(array=np.zeros((9, 8, 7))), STILL)
    with pytest.raises(OptionError, match="are positive numbers, found 0, 20 and 100"):
        deform(fixed, fixed, STILL, spacing=0)
    with pytest.raises(GeometryError, match="share no voxel of the body or mask"):
        deform(fixed, fixed, Transform.rigid(translation_mm=(900, 0, 0)))
    with pytest.raises(GeometryError, match=r"the mask has shape \(2, 3, 4\)"):
        deform(fixed, fixed, STILL, fixed_mask=np.ones((2, 3, 4), bool))
