"""The one sampler: the only place in mmfusion where voxels are interpolated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmfusion.errors import GeometryError
from mmfusion.volume.displacement import EDGE
from mmfusion.volume.grid import Grid
from mmfusion.volume.interpolate import Reading, axes_of, read_itk, read_separable, read_torch
from mmfusion.volume.transform import Transform
from mmfusion.volume.volume import Volume

_ANTI_ALIAS_FROM = 1.5  # target step in source voxels above which linear interpolation skips voxels


def _index_map(source: Grid, grid: Grid, transform: Transform | None) -> np.ndarray:
    """``[4, 4]`` voxel index of ``grid`` to (fractional) voxel index of ``source``, by the matrix alone."""
    fixed_to_moving = np.eye(4) if transform is None else transform.matrix
    return np.linalg.inv(source.affine) @ fixed_to_moving @ grid.affine


def resample(
    volume: Volume,
    grid: Grid,
    transform: Transform | None = None,
    *,
    order: int = 1,
    fill: float | None = None,
    anti_alias: bool = True,
    device: str | None = None,
) -> Volume:
    """Read a volume on another grid, through a transform, with one interpolation.

    Works in voxel indices (target index to source index is one affine map and, if the transform has one, a
    displacement), so flipped, oblique and sheared volumes need no special case and no coordinate system but RAS
    enters. A voxel of the source reaches half a step beyond its center; what lies farther out is filled.

    A grid with the axes of the source is read axis by axis, another one, or through a displacement field, by
    SimpleITK, and on another device by torch; all three give the same values.

    Args:
        volume: the (moving) volume to read.
        grid: where the result lies, in the fixed world.
        transform: fixed_to_moving; the identity if None.
        order: 0 nearest (labels), 1 linear, 3 cubic B-spline.
        fill: value outside the volume; the volume's own (air or zero) if None.
        anti_alias: smooth first along axes where the grid takes steps of more than 1.5 source voxels
            (never for order 0; a displacement field does not count).
        device: a torch device, as in ``cuda``, to interpolate there (order 3 stays on the CPU).

    Returns:
        A float32 volume on ``grid`` (the source's type for order 0). Its voxels lie in memory in the order of the
        source's.

    Raises:
        GeometryError: ``order`` is not 0, 1 or 3, or a B-spline is asked of fewer than 4 slices.
    """
    if order not in (0, 1, 3):
        raise GeometryError(f"interpolation order is 0 (nearest), 1 (linear) or 3 (B-spline), found {order}")
    if order == 3 and min(volume.array.shape) < 4:
        raise GeometryError(f"{volume.name}: order 3 needs at least 4 voxels an axis, found {volume.array.shape}")
    reading = _reading(volume, grid, transform, order, volume.fill if fill is None else fill)
    sigma = np.zeros(3)
    if order and anti_alias:
        # a Gaussian that turns a point of one source voxel into a point of one target voxel
        step = np.linalg.norm(reading.index_map[:3, :3], axis=1)
        sigma = np.where(step > _ANTI_ALIAS_FROM, 0.5 * np.sqrt(np.maximum(step**2 - 1, 0)), 0)
    flip = volume.array.flags.f_contiguous and not volume.array.flags.c_contiguous  # as NIfTI files are read
    if flip:
        reading, sigma = reading.reversed(), sigma[::-1]
    array = _read(reading, sigma, device)
    return volume.replace(array=array.T if flip else array, affine=grid.affine)


def _reading(volume: Volume, grid: Grid, transform: Transform | None, order: int, fill: float) -> Reading:
    array = volume.array if order == 0 else np.asarray(volume.array, np.float32)
    field, field_map = None, np.eye(4)
    if transform is not None and transform.displacement is not None:
        to_source = np.linalg.inv(volume.affine) @ transform.matrix
        field = transform.displacement.array @ to_source[:3, :3].T
        field_map = np.linalg.inv(transform.displacement.grid.affine) @ grid.affine
    return Reading(array, grid.shape, _index_map(volume.grid, grid, transform), field, field_map, order, fill)


def _read(reading: Reading, sigma: np.ndarray, device: str | None) -> np.ndarray:
    """Choose the fastest way; ``sigma`` in source voxels."""
    on_device = device is not None and device != "cpu" and reading.order != 3
    axes = axes_of(reading.index_map, reading.shape) if reading.field is None and reading.order != 3 else None
    if axes is not None and not on_device:
        return read_separable(reading, axes, sigma)
    needed = _needed(reading, sigma)
    if needed is None:
        return reading.filled()
    kind = reading.array.dtype
    array = np.ascontiguousarray(reading.array[needed])
    if sigma.any():
        from scipy import ndimage

        array = ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=3)
    index_map = reading.index_map.copy()
    index_map[:3, 3] -= [part.start for part in needed]
    if kind.kind == "b":
        array = array.astype(np.uint8)
    reading = replace(reading, array=array, index_map=index_map)
    out = read_torch(reading, str(device)) if on_device else read_itk(reading)
    return out.astype(kind, copy=False)


def _needed(reading: Reading, sigma: np.ndarray) -> tuple[slice, ...] | None:
    """The box of the source that matters, or None if the target lies wholly outside. A B-spline looks everywhere."""
    size = np.asarray(reading.array.shape)
    ends = np.stack(np.meshgrid(*((0, n - 1) for n in reading.shape), indexing="ij"), -1).reshape(8, 3)
    position = ends @ reading.index_map[:3, :3].T + reading.index_map[:3, 3]
    low, high = position.min(0), position.max(0)
    if reading.field is not None:  # no displacement outside the field, so 0 counts too
        steps = reading.field.reshape(-1, 3)
        low, high = low + np.minimum(steps.min(0), 0), high + np.maximum(steps.max(0), 0)
    if (high < -EDGE).any() or (low > size - 1 + EDGE).any():
        return None
    if reading.order == 3:
        return tuple(slice(0, int(n)) for n in size)
    margin = 2 + np.ceil(3 * sigma)
    first, last = np.maximum(np.floor(low) - margin, 0), np.minimum(np.ceil(high) + margin, size - 1)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))


def coverage(source: Grid, grid: Grid, transform: Transform | None = None) -> np.ndarray:
    """Where the scan looked: ``[i, j, k]`` bool, True for voxels of ``grid`` whose center lies in ``source``."""
    if transform is not None and transform.displacement is not None:
        everything = Volume(np.ones(source.shape, bool), source.affine)
        return resample(everything, grid, transform, order=0, fill=0).array
    matrix = _index_map(source, grid, transform)
    axes = np.ogrid[tuple(slice(0, n) for n in grid.shape)]
    inside = np.ones(grid.shape, bool)
    for row, size in zip(matrix[:3], source.shape, strict=True):
        position = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + row[3]
        inside &= (position >= -EDGE) & (position <= size - 1 + EDGE)
    return inside


def overlap(fixed: Grid, moving: Grid, transform: Transform | None = None) -> float:
    """Share of the smaller field of view that both scans saw, 0 to 1 (1 if one lies wholly inside the other).

    The way back from moving to fixed is taken without the displacement field, which need not have an inverse.
    """

    def thinned(grid: Grid) -> Grid:  # about 40 points an axis suffice and keep a full-body scan cheap
        shape = np.minimum(grid.shape, 40)
        return grid.regrouped(shape, np.asarray(grid.shape) / shape)

    back = None if transform is None else Transform(transform.matrix).inverse()
    return float(max(coverage(moving, thinned(fixed), transform).mean(), coverage(fixed, thinned(moving), back).mean()))
