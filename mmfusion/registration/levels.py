"""What the search sees of a volume: comparable intensities at a few resolutions, and points to compare them at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d

from mmfusion.errors import GeometryError, VoxelError
from mmfusion.volume import Grid, Volume, foreground

if TYPE_CHECKING:
    from collections.abc import Sequence

_BODY_MM = 4.0  # resolution at which the body is found: enough for where to look, and fast
_MARGIN_MM = 10.0  # around the body: its outline is information, the far air is not
_RANK_WEIGHT = 0.5
_BONE_HU = 250.0
_BONE_SHARE = 0.2  # of a rough voxel that is bone, from which on it counts as bone: cortical bone is thin
_BONE_MM3 = 500.0  # smaller pieces are vessels' chalk, dental metal and noise
_BONE_REACH_MM = 25.0
_NEAR_BONE = 0.7  # share of a CT's points that are drawn near bone
_TABLE = 4096  # steps of the map of intensities


@dataclass(frozen=True, eq=False)
class Level:
    """A volume at one resolution.

    Attributes:
        data: ``[i, j, k]`` float32, 0..1, the same monotone map of the voxel values on every level.
        near: ``[i, j, k]`` bool, where points are drawn: the body and a margin of 10 mm around it, within the mask.
        grid: where the voxels lie.
        mask: ``[i, j, k]`` bool, which voxels count when this level is read; all if None.
        bone: ``[i, j, k]`` bool, the part of ``near`` that lies within 25 mm of bone, if that can be seen (CT).
    """

    data: torch.Tensor
    near: np.ndarray
    grid: Grid
    mask: torch.Tensor | None = None
    bone: np.ndarray | None = None

    @cached_property
    def to_index(self) -> np.ndarray:
        """``[4, 4]`` RAS mm to voxel index."""
        return np.linalg.inv(self.grid.affine)

    def points(self, count: int, seed: int, *, near_bone: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Places in and near the body, spread evenly and off the lattice, and the values there.

        Each voxel gives as many points as any other (or one more), each shifted at random within its voxel:
        where the lattices of two images coincide, unshifted points flatter mutual information. They come in the
        order of the voxels, so that points read one after the other lie side by side in memory.

        Args:
            count: how many.
            seed: of what is random.
            near_bone: draw seven tenths of them near bone, if there is any. Between two sessions skin and fat bend and
                shift, bone does not; but outlines of skin and fat are what most of mutual information comes from.

        Returns:
            ``[3, N]`` RAS mm, and ``[N]`` 0..1.
        """
        random = np.random.default_rng(seed)
        favored = int(_NEAR_BONE * count) if near_bone and self.bone is not None else 0
        chosen = np.concatenate(
            [
                random.permutation(np.resize(random.permutation(np.flatnonzero(where)), wanted))
                for where, wanted in ((self.bone, favored), (self.near, count - favored))
                if where is not None and wanted
            ]
        )
        index = np.stack(np.unravel_index(np.sort(chosen), self.near.shape)).astype(float)
        index += random.uniform(-0.5, 0.5, index.shape)
        values = ndimage.map_coordinates(self.data.cpu().numpy(), index, order=1, mode="nearest")
        return self.grid.to_world(index.T).T, values


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

    @property
    def near_ml(self) -> float:
        """How much there is to draw points from: the body and its margin, within the mask, ml."""
        finest = self.levels[-1]
        return float(finest.near.sum() * abs(np.linalg.det(finest.grid.affine[:3, :3])) / 1000)


def pyramid(volume: Volume, spacings: Sequence[float], mask: np.ndarray | None = None, device: str = "cpu") -> Pyramid:
    """Bring a volume down to about the given spacings, by means over whole voxels.

    Args:
        volume: any volume with a foreground.
        spacings: mm, coarsest first. An axis that is coarser already keeps its slices.
        mask: ``[i, j, k]`` bool on the volume's own voxels: only these count.
        device: where the levels are kept.

    Raises:
        GeometryError: the volume has a single slice, or the mask another shape.
        VoxelError: not finite, constant, without a foreground, or the mask is empty.
    """
    shape = volume.array.shape
    if min(shape) < 2:
        raise GeometryError(f"{volume.name}: a single slice ({shape}) cannot be registered in 3D")
    if mask is not None and mask.shape != shape:
        raise GeometryError(f"the mask of {volume.name} has shape {mask.shape}; {shape} is expected, one voxel each")
    volume = volume.checked()
    data = torch.from_numpy(np.ascontiguousarray(volume.array, np.float32)).to(device)
    fine, grid = pooled(data, volume.grid, min(spacings))
    within = None
    if mask is not None:
        if not mask.any():
            raise VoxelError(f"the mask of {volume.name} is empty")
        within = pooled(torch.from_numpy(mask.astype(np.float32)).to(device), volume.grid, min(spacings))[0]
    body_mm = max(_BODY_MM, min(spacings))
    rough, rough_grid = pooled(fine, grid, body_mm)
    rough_volume = volume.replace(array=rough.cpu().numpy(), affine=rough_grid.affine)
    inside = None if within is None else pooled(within, grid, body_mm)[0].cpu().numpy() > 0.5
    try:
        body = foreground(rough_volume, within=inside)
    except VoxelError:
        if inside is None or not foreground(rough_volume).any():
            raise
        raise VoxelError(f"the mask of {volume.name} holds nothing of the body") from None
    near = ndimage.distance_transform_edt(~body, sampling=rough_grid.spacing) <= _MARGIN_MM
    if inside is not None:
        near &= inside
    bone = _near_bone(fine, grid, rough_grid, body) if volume.units == "HU" else None
    level = _comparable(fine, rough_volume.array[near], rough_volume.array[body])
    levels = []
    for spacing in sorted(spacings):
        if within is not None:
            within = pooled(within, grid, spacing)[0]
        level, grid = pooled(level, grid, spacing)
        around = _nearest(near, rough_grid, grid)
        mask_there = None if within is None else within > 0.5
        if mask_there is not None:
            around &= mask_there.cpu().numpy()
        if not around.any():
            raise VoxelError(f"{volume.name}: too little is left of the volume (or its mask) at {spacing:g} mm")
        by_bone = None if bone is None else _nearest(bone, rough_grid, grid) & around
        if by_bone is not None and not by_bone.any():
            by_bone = None
        levels.append(Level(level, around, grid, mask_there, by_bone))
    index = np.argwhere(body)
    ends = np.stack([index.min(0) - 0.5, index.max(0) + 0.5])
    box = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(8, 3)
    return Pyramid(tuple(levels[::-1]), volume.grid, rough_grid.to_world(index.mean(0)), rough_grid.to_world(box))


def pooled(data: torch.Tensor, grid: Grid, spacing: float) -> tuple[torch.Tensor, Grid]:
    """Means over blocks of whole voxels that come nearest to ``spacing`` mm; at least two blocks an axis.

    What is left over at the far end (less than a block) is dropped.
    """
    steps = [
        max(1, min(int(np.floor(spacing / native * 1.25)), size // 2))
        for native, size in zip(grid.spacing, data.shape, strict=True)
    ]
    if steps == [1, 1, 1]:
        return data, grid
    out = avg_pool3d(data[None, None], steps)[0, 0]
    return out.contiguous(), grid.regrouped(out.shape, steps)


def _near_bone(hu: torch.Tensor, grid: Grid, rough: Grid, body: np.ndarray) -> np.ndarray | None:
    """Where the body lies within 25 mm of bone, on the rough grid; None where no bone is seen."""
    steps = [a // b for a, b in zip(hu.shape, rough.shape, strict=True)]
    share = avg_pool3d((hu > _BONE_HU).float()[None, None], steps)[0, 0].cpu().numpy()
    pieces, _ = ndimage.label((share >= _BONE_SHARE) & body)
    least = _BONE_MM3 / np.prod(rough.spacing)
    bone = (np.bincount(pieces.ravel())[pieces] >= least) & (pieces > 0)
    if not bone.any():
        return None
    return body & (ndimage.distance_transform_edt(~bone, sampling=rough.spacing) <= _BONE_REACH_MM)


def _nearest(mask: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
    """A mask on another grid with the same axes, by the nearest voxel."""
    change = np.linalg.inv(grid.affine) @ target.affine
    index = [
        np.clip(np.rint(change[axis, axis] * np.arange(n) + change[axis, 3]), 0, size - 1).astype(int)
        for axis, (n, size) in enumerate(zip(target.shape, grid.shape, strict=True))
    ]
    return mask[np.ix_(*index)]


def _comparable(data: torch.Tensor, near: np.ndarray, body: np.ndarray) -> torch.Tensor:
    """Values to 0..1 by a monotone map: half by the robust range of ``near``, half by the rank within ``body``.

    The rank spreads tissues that a few bright voxels (bone, metal, a hot tumor) would squeeze into one bin.
    """
    low, high = np.percentile(near, [0.5, 99.5])
    if not high > low:
        low, high = float(data.min()), float(data.max())
    knots = np.unique(np.percentile(np.clip(body, low, high), np.linspace(0, 100, 65)))
    knots = np.unique([low, *knots, high])
    ranks = np.searchsorted(np.sort(body, axis=None), knots, side="right") / body.size
    heights = (1 - _RANK_WEIGHT) * (knots - low) / (high - low) + _RANK_WEIGHT * ranks
    # through a table of equal steps: as exact as the knots are, and much faster than a search for each voxel
    steps = np.linspace(low, high, _TABLE)
    table = torch.from_numpy(np.interp(steps, knots, heights).astype(np.float32)).to(data.device)
    at = ((data - low) * ((_TABLE - 1) / (high - low))).clamp_(0, _TABLE - 1)
    return table[at.round_().to(torch.int32)]
