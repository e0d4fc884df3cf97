"""The one sampler: the only place in mmfusion where voxels are interpolated."""

from __future__ import annotations

import numpy as np

from mmfusion.errors import GeometryError
from mmfusion.volume.grid import Grid
from mmfusion.volume.transform import Transform
from mmfusion.volume.volume import Volume

_INTERPOLATORS = {0: "sitkNearestNeighbor", 1: "sitkLinear", 3: "sitkBSpline"}
_ANTI_ALIAS_FROM = 1.5  # target step in source voxels above which linear interpolation skips voxels


def _index_map(source: Grid, grid: Grid, transform: Transform | None) -> np.ndarray:
    """``[4, 4]`` voxel index of ``grid`` to (fractional) voxel index of ``source``."""
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
) -> Volume:
    """Read a volume on another grid, through a transform, with one interpolation.

    Works in voxel indices (target index to source index is one affine map), so flipped, oblique and sheared
    volumes need no special case and no coordinate system but RAS enters. A voxel of the source reaches half a
    step beyond its center; what lies farther out is filled.

    Args:
        volume: the (moving) volume to read.
        grid: where the result lies, in the fixed world.
        transform: fixed_to_moving; the identity if None.
        order: 0 nearest (labels), 1 linear, 3 cubic B-spline.
        fill: value outside the volume; the volume's own (air or zero) if None.
        anti_alias: smooth first along axes where the grid takes steps of more than 1.5 source voxels
            (never for order 0).

    Returns:
        A float32 volume on ``grid`` (the source's type for order 0).

    Raises:
        GeometryError: ``order`` is not 0, 1 or 3, or a B-spline is asked of fewer than 4 slices.
    """
    import SimpleITK as sitk  # late: reading headers and checking manifests need no sampler
    from scipy import ndimage

    if order not in _INTERPOLATORS:
        raise GeometryError(f"interpolation order is 0 (nearest), 1 (linear) or 3 (B-spline), found {order}")
    if order == 3 and min(volume.array.shape) < 4:
        raise GeometryError(f"{volume.name}: order 3 needs at least 4 voxels an axis, found {volume.array.shape}")
    fill = volume.fill if fill is None else fill
    index_map = _index_map(volume.grid, grid, transform)
    array = volume.array
    if order:
        array = np.asarray(array, np.float32)
        step = np.linalg.norm(index_map[:3, :3], axis=1)
        if anti_alias and (step > _ANTI_ALIAS_FROM).any():
            # a Gaussian that turns a point of one source voxel into a point of one target voxel
            sigma = np.where(step > _ANTI_ALIAS_FROM, 0.5 * np.sqrt(np.maximum(step**2 - 1, 0)), 0)
            array = ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=3)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    # SimpleITK reads numpy as [z, y, x]: our (i, j, k) is its (x, y, z) after one transposition of both
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    affine = sitk.AffineTransform(index_map[:3, :3].ravel().tolist(), index_map[:3, 3].tolist())
    out = sitk.Resample(
        image,
        list(grid.shape),
        affine,
        getattr(sitk, _INTERPOLATORS[order]),
        [0.0] * 3,
        [1.0] * 3,
        np.eye(3).ravel().tolist(),
        fill,
    )
    result = sitk.GetArrayFromImage(out).T.astype(volume.array.dtype if order == 0 else np.float32, copy=False)
    return volume.replace(array=result, affine=grid.affine)


def coverage(source: Grid, grid: Grid, transform: Transform | None = None) -> np.ndarray:
    """Where the scan looked: ``[i, j, k]`` bool, True for voxels of ``grid`` whose center lies in ``source``."""
    matrix = _index_map(source, grid, transform)
    axes = np.ogrid[tuple(slice(0, n) for n in grid.shape)]
    inside = np.ones(grid.shape, bool)
    for row, size in zip(matrix[:3], source.shape, strict=True):
        position = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + row[3]
        inside &= (position >= -0.5) & (position <= size - 0.5)
    return inside


def overlap(fixed: Grid, moving: Grid, transform: Transform | None = None) -> float:
    """Share of the smaller field of view that both scans saw, 0 to 1 (1 if one lies wholly inside the other)."""

    def thinned(grid: Grid) -> Grid:  # about 40 points an axis suffice and keep a full-body scan cheap
        shape = np.minimum(grid.shape, 40)
        step = np.asarray(grid.shape) / shape
        affine = grid.affine @ np.diag([*step, 1.0])
        affine[:3, 3] = grid.to_world((step - 1) / 2)
        i, j, k = (int(n) for n in shape)
        return Grid((i, j, k), affine)

    back = None if transform is None else transform.inverse()
    return float(max(coverage(moving, thinned(fixed), transform).mean(), coverage(fixed, thinned(moving), back).mean()))
