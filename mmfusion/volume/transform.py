"""Spatial transforms between the worlds of two volumes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mmfusion.errors import GeometryError
from mmfusion.volume.displacement import Displacement


@dataclass(frozen=True, eq=False)
class Transform:
    """Where a point of the fixed world lies in the moving world.

    The direction is always ``fixed_to_moving``: to fill a voxel of the fixed grid, map its center with
    :meth:`apply` and read the moving volume there (so resampling needs no inverse). A point x goes to
    ``matrix @ (x + u(x))``: first the displacement, in the fixed world, then the matrix.

    Attributes:
        matrix: ``[4, 4]`` fixed_to_moving in RAS+ mm.
        displacement: u, mm, or None for a linear transform.

    Raises:
        GeometryError: the matrix is not finite, not 4 x 4, or singular.
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))
    displacement: Displacement | None = None

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
        points = np.asarray(points, float)
        if self.displacement is not None:
            points = points + self.displacement.at(points)
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def compose(self, then: Transform) -> Transform:
        """First this transform, ``then`` the other: a point of A goes to B (self), from B to C (then).

        Exact if at most one of them has a displacement field. The result of two fields is sampled on a grid that
        covers both, see :meth:`Displacement.followed_by`.
        """
        matrix = then.matrix @ self.matrix
        if then.displacement is None:
            return Transform(matrix, self.displacement)
        later = then.displacement.before(self.matrix)
        return Transform(matrix, later if self.displacement is None else self.displacement.followed_by(later))

    def inverse(self) -> Transform:
        """The transform back: moving to fixed. A displacement field is inverted on its grid, see there.

        Raises:
            GeometryError: the displacement field folds and has no inverse.
        """
        back = Transform(np.linalg.inv(self.matrix))
        return back if self.displacement is None else back.compose(Transform(displacement=self.displacement.inverse()))

    @property
    def is_linear(self) -> bool:
        """True if there is no displacement field."""
        return self.displacement is None

    @property
    def is_identity(self) -> bool:
        """True if no point moves."""
        still = self.displacement is None or not self.displacement.array.any()
        return still and bool(np.array_equal(self.matrix, np.eye(4)))

    def jacobian(self) -> np.ndarray:
        """``[i, j, k]`` local change of volume by the displacement on its grid, see :meth:`Displacement.jacobian`.

        Raises:
            GeometryError: the transform is linear.
        """
        if self.displacement is None:
            raise GeometryError("a linear transform has no displacement field to take the Jacobian of")
        return self.displacement.jacobian()

    @property
    def folding(self) -> float:
        """Share of the field's voxels whose Jacobian determinant is not positive, 0 to 1; 0 if linear."""
        return 0.0 if self.displacement is None else float((self.displacement.jacobian() <= 0).mean())

    @property
    def rotation_deg(self) -> float:
        """The angle of the rotation part, degrees (of the closest rotation, if the matrix scales or shears).

        Of the matrix alone; a displacement field does not count.
        """
        u, _, vt = np.linalg.svd(self.matrix[:3, :3])
        turn = u @ np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))]) @ vt
        # the sine of half the angle stays exact for small angles, where arccos of the trace does not
        return float(np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(turn - np.eye(3)) / np.sqrt(8), 0.0, 1.0))))

    def displacement_mm(self, points: np.ndarray) -> np.ndarray:
        """``[...]`` how far each of ``points`` ``[..., 3]`` (RAS mm) moves, mm."""
        return np.linalg.norm(self.apply(points) - np.asarray(points), axis=-1)
