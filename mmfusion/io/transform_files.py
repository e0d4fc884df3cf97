"""ITK transform files to and from our transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mmfusion.errors import GeometryError, ReadError
from mmfusion.io.files import atomic_path
from mmfusion.io.metaimage import LPS_TO_RAS, last_line
from mmfusion.volume import Transform

_ENDINGS = (".tfm", ".txt", ".h5", ".hdf5")


def save_transform(transform: Transform, path: str | Path) -> None:
    """Write an ITK transform file (``.tfm``, ``.txt`` or ``.h5``), atomically: an affine in LPS.

    The direction stays: ITK transforms, too, map points of the fixed world to the moving world.

    Raises:
        ReadError: another file ending.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise ReadError(f"{path}: transforms are written as {', '.join(_ENDINGS)}")
    matrix = LPS_TO_RAS @ transform.matrix @ LPS_TO_RAS
    affine = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    with atomic_path(path) as temporary:
        sitk.WriteTransform(affine, str(temporary))


def load_transform(path: str | Path) -> Transform:
    """Read an ITK transform file as fixed_to_moving, RAS mm.

    Any linear ITK transform will do (translation, Euler, versor, similarity, affine), also several in a row.

    Raises:
        ReadError: the file is missing, damaged, not 3D, or not linear (a displacement field, a B-spline), or the
            transform is singular.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(f"transform {path} does not exist")
    try:
        found = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ReadError(f"transform {path} cannot be read: {last_line(error)}") from None
    if found.GetDimension() != 3:
        raise ReadError(f"transform {path} is {found.GetDimension()}D; 3D is expected")
    if not found.IsLinear():
        raise ReadError(f"transform {path} holds a {found.GetName()}; only linear transforms can be used")
    # by its effect on four points: the same for every kind, and for several in a row
    origin = np.asarray(found.TransformPoint((0.0, 0.0, 0.0)))
    scale = 1e3  # mm, far points keep more digits of a rotation
    columns = [(np.asarray(found.TransformPoint((scale * axis).tolist())) - origin) / scale for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(columns, axis=1), origin
    try:
        return Transform(LPS_TO_RAS @ matrix @ LPS_TO_RAS)
    except GeometryError as error:
        raise ReadError(f"transform {path}: {error}") from None
