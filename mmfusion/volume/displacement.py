"""Displacement fields: how far each point of a region moves, beyond what a matrix can say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfusion.errors import GeometryError
from mmfusion.volume.grid import Grid

EDGE = 0.5 + 1e-6
"""How far a voxel reaches beyond its center, in voxels: half a step, and what rounding may add."""

_INVERSE_STEPS = 200
_INVERSE_TOLERANCE = 1e-3  # of a voxel of the field
_POINTS_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Displacement:
    """A displacement ``u(x)`` in the world: linear between the voxels of its grid, zero outside.

    The border is ITK's: a voxel reaches half a step beyond its center, with the value of the edge, and what lies
    farther out does not move. (ITK leaves out the upper border itself, we keep both, so that a flip changes nothing.)

    Attributes:
        array: ``[i, j, k, 3]`` float32, mm along R, A, S.
        grid: where the voxels lie, in the world of the points that move.

    Raises:
        GeometryError: the shapes do not fit, or a displacement is not finite.
    """

    array: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        array = np.asarray(self.array, dtype=np.float32)
        if array.shape != (*self.grid.shape, 3):
            raise GeometryError(
                f"a displacement field on a grid of {self.grid.shape} needs an array of shape "
                f"{(*self.grid.shape, 3)}, found {array.shape}"
            )
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise GeometryError(f"{bad} of {array.size} displacements are not finite (NaN or infinite)")
        object.__setattr__(self, "array", array)

    def at(self, points: np.ndarray, *, beyond: bool = False) -> np.ndarray:
        """Displacements ``[..., 3]`` (mm) at ``points`` ``[..., 3]`` (RAS mm).

        Args:
            points: where to read.
            beyond: continue the edge outside the grid instead of zero.
        """
        from scipy import ndimage

        points = np.asarray(points, float)
        index = self.grid.to_index(points).reshape(-1, 3)
        out = np.empty((len(index), 3))
        for start in range(0, len(index), _POINTS_AT_ONCE):
            part = index[start : start + _POINTS_AT_ONCE]
            for axis in range(3):
                values = out[start : start + _POINTS_AT_ONCE, axis]
                ndimage.map_coordinates(self.array[..., axis], part.T, values, order=1, mode="nearest")
        if not beyond:
            out[~self.inside(index)] = 0
        return out.reshape(points.shape)

    def inside(self, index: np.ndarray) -> np.ndarray:
        """``[...]`` bool: which voxel indices ``[..., 3]`` lie on the grid, half a voxel around it included."""
        return np.all((index >= -EDGE) & (index <= np.asarray(self.grid.shape) - 1 + EDGE), axis=-1)

    def before(self, matrix: np.ndarray) -> Displacement:
        """The field ``v`` with ``P x + u(P x) = P (x + v(x))`` for the ``[4, 4]`` matrix P; nothing is resampled."""
        back = np.linalg.inv(matrix)
        return Displacement(
            self.array @ back[:3, :3].T.astype(np.float32), Grid(self.grid.shape, back @ self.grid.affine)
        )

    def followed_by(self, then: Displacement) -> Displacement:
        """The field of ``x + u(x)`` moved on by ``then``, sampled on a grid that covers both.

        That grid continues the lattice of this field, as fine as the finer of the two. Between its voxels the
        result is linear where the exact one is not, and a jump at a border becomes a ramp one voxel wide.
        """
        if self.grid.same_as(then.grid):
            grid = self.grid
        else:
            fine = np.ceil(np.asarray(self.grid.spacing) / min(then.grid.spacing) - 1e-3).clip(1).astype(int)
            corners = np.concatenate([self.grid.corners(), then.grid.corners()])
            index = self.grid.to_index(corners) * fine
            first, last = np.floor(index.min(0) + EDGE), np.ceil(index.max(0) - EDGE)
            affine = self.grid.affine @ np.diag([*1 / fine, 1.0])
            affine[:3, 3] += affine[:3, :3] @ first
            i, j, k = (int(n) for n in last - first + 1)
            grid = Grid((i, j, k), affine)
        points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
        moved = self.at(points)
        return Displacement(moved + then.at(points + moved), grid)

    def inverse(self) -> Displacement:
        """The field ``v`` of the way back, ``v(z) = -u(z + v(z))``, by fixed-point iteration (Chen et al. 2008).

        Its grid is this field's, grown by what the border moves. Where the field steps to zero at its border, points
        that nothing moves onto take the displacement that its edge, continued, would give them.

        Raises:
            GeometryError: the field folds, or no inverse was found.
        """
        folds = int((self.jacobian() <= 0).sum())
        if folds:
            raise GeometryError(
                f"the displacement field cannot be inverted: it folds at {folds} of {np.prod(self.grid.shape)} voxels "
                "(the Jacobian determinant is not positive)"
            )
        grid = self._grown()
        z = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)).reshape(-1, 3)
        tolerance = _INVERSE_TOLERANCE * min(grid.spacing)
        v, todo = -self.at(z, beyond=True), np.arange(len(z))
        rate, last = np.ones(len(z)), np.zeros((len(z), 3))
        for _ in range(_INVERSE_STEPS):
            rest = v[todo] + self.at(z[todo] + v[todo], beyond=True)
            size = np.linalg.norm(rest, axis=1)
            keep = size > tolerance
            todo, rest, size = todo[keep], rest[keep], size[keep]
            if not len(todo):
                break
            # shorter steps where the rest changes its side: the field expands there
            swings = (rest * last[todo]).sum(1) < 0
            rate[todo] = np.where(swings, np.maximum(0.7 * rate[todo], 0.1), rate[todo])
            last[todo] = rest
            v[todo] -= rate[todo, None] * rest
        if len(todo):
            raise GeometryError(
                f"the displacement field cannot be inverted: {len(todo)} of {len(z)} points find no way back "
                f"(up to {size.max():.2g} mm are left); it is too steep there"
            )
        outside = ~self.inside(self.grid.to_index(z)) & ~self.inside(self.grid.to_index(z + v))
        v[outside] = 0
        return Displacement(v.reshape(*grid.shape, 3), grid)

    def _grown(self) -> Grid:
        """The grid, larger by what its border moves outwards."""
        index = np.stack(np.meshgrid(*map(np.arange, self.grid.shape), indexing="ij"), -1)
        border = ((index == 0) | (index == np.asarray(self.grid.shape) - 1)).any(-1)
        moved = self.array[border] @ np.linalg.inv(self.grid.affine)[:3, :3].T + index[border]
        low = np.ceil(np.maximum(-moved.min(0), 0) - 1e-3).astype(int)
        high = np.ceil(np.maximum(moved.max(0) - np.asarray(self.grid.shape) + 1, 0) - 1e-3).astype(int)
        return self.grid.regrouped(low + self.grid.shape + high, first=-low)

    def jacobian(self) -> np.ndarray:
        """``[i, j, k]`` determinant of the gradient of ``x + u(x)``: local change of volume, not positive in a fold."""
        # in voxels, where the determinant is the same: x + u(x) there, one slope along one axis at a time
        moved = self.array @ np.linalg.inv(self.grid.affine[:3, :3]).T
        (a, b, c), (d, e, f), (g, h, i) = (
            [
                (np.gradient(moved[..., n], axis=axis) if size > 1 else 0.0) + (n == axis)
                for axis, size in enumerate(self.grid.shape)
            ]
            for n in range(3)
        )
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        return np.broadcast_to(determinant, self.grid.shape)
