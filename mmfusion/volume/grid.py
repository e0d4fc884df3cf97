"""Grids: where voxels lie in the world, without the voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxel centers in the world.

    Attributes:
        shape: number of voxels along (i, j, k).
        affine: ``[4, 4]`` voxel index to RAS+ world, mm.

    Raises:
        GeometryError: the shape is not three positive numbers, or the affine is singular or not finite.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"a grid needs three positive sizes, found {tuple(self.shape)}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(f"a grid needs a finite 4 x 4 affine, found {affine.tolist()}")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError(
                "the affine is singular: two axes of the volume point the same way or a spacing is zero "
                f"({affine[:3, :3].round(4).tolist()}); the header is broken, export the volume again"
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @classmethod
    def around(
        cls,
        center: Sequence[float] | np.ndarray,
        spacing: Sequence[float] | np.ndarray,
        size: Sequence[int] | np.ndarray,
    ) -> Grid:
        """The axis-aligned RAS+ grid of ``size`` voxels of ``spacing`` mm whose middle lies at ``center`` (RAS, mm)."""
        steps, counts = np.asarray(spacing, float), np.asarray(size, float)
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = np.asarray(center, float) - steps * (counts - 1) / 2
        i, j, k = (int(n) for n in size)
        return cls((i, j, k), affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centers along (i, j, k), mm."""
        return spacing_of(self.affine)

    @property
    def center(self) -> np.ndarray:
        """``[3]`` the middle of the field of view, RAS mm."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def orientation(self) -> str:
        """The nearest anatomical directions of (i, j, k), as in ``RAS`` or ``LPS``."""
        axes, signs = _closest_axes(self.affine)
        letters = (("L", "R"), ("P", "A"), ("I", "S"))
        return "".join(letters[axis][sign > 0] for axis, sign in zip(axes, signs, strict=True))

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices ``[..., 3]`` to RAS mm ``[..., 3]``."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """RAS mm ``[..., 3]`` to (fractional) voxel indices ``[..., 3]``."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world) @ inverse[:3, :3].T + inverse[:3, 3]

    def regrouped(
        self, shape: Sequence[int] | np.ndarray, step: float | Sequence[float] | np.ndarray = 1, first: Any = 0
    ) -> Grid:
        """``shape`` voxels along the same axes, each as long as ``step`` of this grid's voxels.

        They begin at the lower edge of voxel ``first``, so ``regrouped(shape, size / shape)`` keeps the field of view.
        """
        step = np.broadcast_to(np.asarray(step, float), 3)
        affine = self.affine @ np.diag([*step, 1.0])
        affine[:3, 3] = self.to_world(np.asarray(first) + (step - 1) / 2)
        i, j, k = (int(n) for n in shape)
        return Grid((i, j, k), affine)

    def corners(self) -> np.ndarray:
        """``[8, 3]`` the outer corners of the field of view (voxel edges, not centers), RAS mm."""
        ends = [(-0.5, n - 0.5) for n in self.shape]
        return self.to_world(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(8, 3))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """True if both grids have the same shape and no corner differs by more than ``tolerance_mm``."""
        return self.shape == other.shape and bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance between voxel centers along (i, j, k), mm, of a ``[4, 4]`` affine."""
    i, j, k = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return float(i), float(j), float(k)


def mask_center(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """``[3]`` center of mass of a mask ``[i, j, k]`` on a grid, RAS mm."""
    count = np.count_nonzero(mask)
    sums = [mask.sum(tuple({0, 1, 2} - {axis})) @ np.arange(n) for axis, n in enumerate(mask.shape)]
    return grid.to_world(np.asarray(sums) / count)


def _closest_axes(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each voxel axis the world axis it follows most (each once), and the sign."""
    cosines = np.asarray(affine)[:3, :3] / np.asarray(spacing_of(affine))
    axes, signs, left = [0, 0, 0], [1, 1, 1], np.abs(cosines).copy()
    for _ in range(3):
        world, voxel = np.unravel_index(np.argmax(left), (3, 3))
        axes[voxel], signs[voxel] = int(world), 1 if cosines[world, voxel] >= 0 else -1
        left[world, :], left[:, voxel] = -1, -1
    return tuple(axes), tuple(signs)


def nearest_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip axes so that (i, j, k) run closest to (right, anterior, superior).

    No voxel is interpolated and no voxel moves in the world; an oblique volume stays oblique.

    Args:
        array: ``[i, j, k]`` voxels in any axis order.
        affine: ``[4, 4]`` voxel index to RAS mm.

    Returns:
        The reordered view of ``array`` and its affine.
    """
    axes, signs = _closest_axes(affine)
    order = [axes.index(world) for world in range(3)]
    out, new = np.transpose(array, order), np.asarray(affine, float)[:, [*order, 3]].copy()
    for axis, voxel in enumerate(order):
        if signs[voxel] < 0:
            out = np.flip(out, axis)
            new[:3, 3] += new[:3, axis] * (out.shape[axis] - 1)
            new[:3, axis] *= -1
    return out, new


def empty_ras(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """``[i, j, k]`` float32, not filled, whose turn by :func:`nearest_ras` is C-contiguous.

    A reader that fills it, in the axes as stored, has turned the voxels without another pass over them.
    """
    axes, signs = _closest_axes(affine)
    out = np.empty([shape[axes.index(world)] for world in range(3)], np.float32)
    return out[tuple(slice(None, None, signs[axes.index(world)]) for world in range(3))].transpose(axes)
