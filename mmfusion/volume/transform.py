"""Spatial transforms between the worlds of two volumes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mmfusion.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Transform:
    """Where a point of the fixed world lies in the moving world.

    The direction is always ``fixed_to_moving``: to fill a voxel of the fixed grid, map its center with
    :meth:`apply` and read the moving volume there (so resampling needs no inverse).

    Attributes:
        matrix: ``[4, 4]`` fixed_to_moving in RAS+ mm.

    Raises:
        GeometryError: the matrix is not finite, not 4 x 4, or singular.
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise GeometryError(f"a transform needs a finite 4 x 4 matrix, found {matrix.tolist()}")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise GeometryError("the transform is singular: it maps space onto a plane and cannot be inverted")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def rigid(
        cls,
        rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
        translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        center: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Transform:
        """Rotate about x, then y, then z (degrees, right-handed, RAS) about ``center``, then translate (mm)."""
        rotation = np.eye(3)
        for axis, degrees in enumerate(rotation_deg):
            c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            a, b = [(1, 2), (2, 0), (0, 1)][axis]
            turn = np.eye(3)
            turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
            rotation = turn @ rotation
        matrix, middle = np.eye(4), np.asarray(center, float)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = middle + np.asarray(translation_mm, float) - rotation @ middle
        return cls(matrix)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map points ``[..., 3]`` (RAS mm) from the fixed to the moving world."""
        return np.asarray(points, float) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def compose(self, then: Transform) -> Transform:
        """First this transform, ``then`` the other: a point of A goes to B (self), from B to C (then)."""
        return Transform(then.matrix @ self.matrix)

    def inverse(self) -> Transform:
        """The transform back: moving to fixed."""
        return Transform(np.linalg.inv(self.matrix))

    @property
    def is_identity(self) -> bool:
        """True if no point moves."""
        return bool(np.array_equal(self.matrix, np.eye(4)))

    @property
    def rotation_deg(self) -> float:
        """The angle of the rotation part, degrees (of the closest rotation, if the matrix scales or shears)."""
        u, _, vt = np.linalg.svd(self.matrix[:3, :3])
        turn = u @ np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))]) @ vt
        # the sine of half the angle stays exact for small angles, where arccos of the trace does not
        return float(np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(turn - np.eye(3)) / np.sqrt(8), 0.0, 1.0))))

    def displacement_mm(self, points: np.ndarray) -> np.ndarray:
        """``[...]`` how far each of ``points`` ``[..., 3]`` (RAS mm) moves, mm."""
        return np.linalg.norm(self.apply(points) - np.asarray(points), axis=-1)
