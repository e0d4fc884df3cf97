"""What the search sees of a volume: comparable intensities at a few resolutions, and points to compare them at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mmfusion.errors import GeometryError
from mmfusion.volume import Grid, Volume, foreground, resample

if TYPE_CHECKING:
    from collections.abc import Sequence

_BODY_MM = 4.0  # resolution at which the body is found: enough for where to look, and fast
_MARGIN_MM = 10.0  # around the body: its outline is information, the far air is not
_RANK_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class Level:
    """A volume at one resolution.

    Attributes:
        array: ``[i, j, k]`` float32, 0..1, the same monotone map of the voxel values on every level.
        near: ``[i, j, k]`` bool, the body and a margin of 10 mm around it.
        grid: where the voxels lie.
    """

    array: np.ndarray
    near: np.ndarray
    grid: Grid

    @cached_property
    def to_index(self) -> np.ndarray:
        """``[4, 4]`` RAS mm to voxel index."""
        return np.linalg.inv(self.grid.affine)

    def inside(self, index: np.ndarray) -> np.ndarray:
        """``[N]`` bool: which of the voxel indices ``[3, N]`` lie in the field of view."""
        upper = np.asarray(self.array.shape)[:, None] - 0.5
        return np.all((index >= -0.5) & (index <= upper), axis=0)

    def points(self, count: int, seed: int) -> np.ndarray:
        """``[3, N]`` at most ``count`` places in and near the body, RAS mm, spread evenly and off the lattice.

        Each voxel gives as many points as any other (or one more), each shifted at random within its voxel:
        where the lattices of two images coincide, unshifted points flatter mutual information.
        """
        random = np.random.default_rng(seed)
        voxels = np.flatnonzero(self.near)
        rounds = -(-count // len(voxels))
        chosen = np.concatenate([random.permutation(voxels) for _ in range(rounds)])[:count]
        index = np.stack(np.unravel_index(chosen, self.near.shape), 1)
        return self.grid.to_world(index + random.uniform(-0.5, 0.5, index.shape)).T


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A volume at several resolutions.

    Attributes:
        levels: finest last, one for each spacing asked for.
        field: the grid of the volume itself.
        mass: ``[3]`` the center of the body, RAS mm.
        box: ``[8, 3]`` the corners of the body's bounding box, RAS mm.
    """

    levels: tuple[Level, ...]
    field: Grid
    mass: np.ndarray
    box: np.ndarray

    @property
    def volume_mm3(self) -> float:
        """Size of the field of view, mm^3."""
        return float(abs(np.linalg.det(self.field.affine[:3, :3])) * np.prod(self.field.shape))


def pyramid(volume: Volume, spacings: Sequence[float]) -> Pyramid:
    """Bring a volume down to the given spacings.

    Args:
        volume: any volume with a foreground.
        spacings: mm, coarsest first. An axis that is coarser already keeps its slices.

    Raises:
        GeometryError: the volume has a single slice.
        VoxelError: not finite, constant, or without a foreground.
    """
    if min(volume.array.shape) < 2:
        raise GeometryError(f"{volume.name}: a single slice ({volume.array.shape}) cannot be registered in 3D")
    fine = _decimated(volume.checked(), min(spacings))
    rough = _decimated(fine, max(_BODY_MM, min(spacings)))
    body = foreground(rough)
    near = ndimage.distance_transform_edt(~body, sampling=rough.spacing) <= _MARGIN_MM
    level = fine.replace(array=_comparable(fine.array, rough.array[near], rough.array[body]), units="a.u.")
    levels = []
    for spacing in sorted(spacings):
        level = _decimated(level, spacing)
        around = resample(rough.replace(array=near), level.grid, order=0).array
        levels.append(Level(np.ascontiguousarray(level.array, np.float32), around, level.grid))
    index = np.argwhere(body)
    ends = np.stack([index.min(0) - 0.5, index.max(0) + 0.5])
    box = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(8, 3)
    return Pyramid(tuple(levels[::-1]), volume.grid, rough.grid.to_world(index.mean(0)), rough.grid.to_world(box))


def _decimated(volume: Volume, spacing: float) -> Volume:
    """The volume on its own axes in steps of at least ``spacing`` mm, the field of view kept."""
    native = np.asarray(volume.spacing)
    size = np.asarray(volume.array.shape)
    shape = np.where(native < spacing / 1.25, np.floor(size * native / spacing), size).astype(int)
    shape = np.maximum(shape, np.minimum(size, 2))
    if (shape == size).all():
        return volume
    step = size / shape
    affine = volume.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = volume.grid.to_world((step - 1) / 2)
    i, j, k = (int(n) for n in shape)
    return resample(volume, Grid((i, j, k), affine))


def _comparable(array: np.ndarray, near: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Values to 0..1 by a monotone map: half by the robust range of ``near``, half by the rank within ``body``.

    The rank spreads tissues that a few bright voxels (bone, metal, a hot tumor) would squeeze into one bin.
    """
    low, high = np.percentile(near, [0.5, 99.5])
    if not high > low:
        low, high = float(array.min()), float(array.max())
    knots = np.unique(np.percentile(np.clip(body, low, high), np.linspace(0, 100, 65)))
    knots = np.unique([low, *knots, high])
    ranks = np.searchsorted(np.sort(body, axis=None), knots, side="right") / body.size
    heights = (1 - _RANK_WEIGHT) * (knots - low) / (high - low) + _RANK_WEIGHT * ranks
    return np.interp(array, knots, heights).astype(np.float32)
