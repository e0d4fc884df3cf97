"""ITK transform files and displacement images to and from our transforms."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mmfusion.errors import GeometryError, OutputError, ReadError
from mmfusion.files import atomic_path, refuse_special
from mmfusion.io.metaimage import LPS_TO_RAS, META, last_line
from mmfusion.io.nifti_fields import load_nifti_field
from mmfusion.io.text_headers import check_text_header
from mmfusion.volume import Displacement, Grid, Transform

_LAST_LINE = r"\nFixedParameters:[^\n]*\n$"
_ENDINGS = (".tfm", ".txt", ".h5", ".hdf5")
_NIFTI = (".nii", ".nii.gz")
_LONGEST_S = 60.0
_FLIP = LPS_TO_RAS[:3, :3]
_PER_CONTROL_POINT = 8  # samples between two control points of a B-spline: off by about 1 % of what it bends there
_FINEST_MM = 1.0


def check_transform_name(path: str | Path) -> Path:
    """The path of a transform to write.

    Raises:
        ReadError: another file ending than those that ITK knows.
    """
    if Path(path).suffix.lower() not in _ENDINGS:
        raise ReadError(f"{path}: transforms are written as {', '.join(_ENDINGS)}")
    return Path(path)


def save_transform(transform: Transform, path: str | Path) -> None:
    """Write an ITK transform file (``.tfm``, ``.txt`` or ``.h5``), atomically, in LPS.

    The direction stays: ITK transforms, too, map points of the fixed world to the moving world. A linear transform
    is written as an affine, one with a displacement field as a composite of field and affine (the last part of an
    ITK composite is applied first). An ITK image has no sheared grid; a field on one is written between two
    affines, on a grid without shear, which says the same and resamples nothing. Use ``.h5`` for fields: as text
    they are several times larger and slow.

    Raises:
        ReadError: another file ending.
    """
    path = check_transform_name(path)
    if transform.displacement is None:
        found: sitk.Transform = _to_affine(transform.matrix)
    else:
        found = sitk.CompositeTransform(_to_parts(transform.matrix, transform.displacement))
    with atomic_path(path) as temporary:
        sitk.WriteTransform(found, str(temporary))
        whole = path.suffix.lower() not in (".tfm", ".txt") or re.search(_LAST_LINE, temporary.read_text())
        if not whole:  # ITK does not say that the disk is full
            raise OutputError(f"{path} cannot be written (it is cut off): free space, or choose another place")


def load_transform(path: str | Path) -> Transform:
    """Read an ITK transform file, or an image of displacements, as fixed_to_moving, RAS mm.

    Linear ITK transforms (translation, Euler, versor, similarity, affine), displacement fields and B-splines are
    taken, alone or several in a row, in any order; elastix and ANTs can write them. A B-spline becomes a
    displacement field on its domain, with 8 samples between control points but no finer than 1 mm. Several fields
    in a row are sampled into one, see :meth:`mmfusion.volume.Transform.compose`. An image (``1Warp.nii.gz`` of
    ANTs, also ``.mha`` and ``.nrrd``) holds a vector a voxel: LPS mm, as ITK reads it. What a NIfTI image of NiftyReg
    or SPM holds, its intent says, see :func:`mmfusion.io.nifti_fields.load_nifti_field`.

    Raises:
        ReadError: the file is missing, damaged, not 3D, of another kind, or the transform is singular.
    """
    path = Path(path)
    if not path.is_file():
        refuse_special(path)
        problem = "is a folder, and a file is expected" if path.is_dir() else "does not exist"
        raise ReadError(f"transform {path} {problem}")
    try:
        if path.name.lower().endswith(_NIFTI):
            return Transform(displacement=load_nifti_field(path))
        return _load_by_itk(path)
    except GeometryError as error:
        raise ReadError(f"transform {path}: {error}") from None


def _load_by_itk(path: Path) -> Transform:
    is_image = path.name.lower().endswith(META)
    if is_image:
        check_text_header(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        _check_hdf5(path)
    found: sitk.Image | sitk.Transform
    try:
        found = sitk.ReadImage(str(path)) if is_image else sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ReadError(f"transform {path} cannot be read: {last_line(error)}") from None
    if found.GetDimension() != 3:
        raise ReadError(f"transform {path} is {found.GetDimension()}D; 3D is expected")
    if isinstance(found, sitk.Image):
        if found.GetNumberOfComponentsPerPixel() != 3:
            raise ReadError(
                f"transform {path} is an image of {found.GetNumberOfComponentsPerPixel()} values a voxel; a "
                "displacement field has 3 (mm)"
            )
        return Transform(displacement=_from_image(found))
    result = Transform()
    for part in _in_order(found):
        result = result.compose(_from_part(part, path))
    return result


def _check_hdf5(path: Path) -> None:
    """Let another process read the file first: the HDF5 library crashes on some damaged files.

    Raises:
        ReadError: it crashed, or did not come to an end.
    """
    command = [sys.executable, "-c", "import sys, SimpleITK; SimpleITK.ReadTransform(sys.argv[1])", str(path)]
    try:
        code = subprocess.run(command, capture_output=True, timeout=_LONGEST_S).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code not in (0, 1):  # 1 is an error that is found below, too
        raise ReadError(f"transform {path} cannot be read: its HDF5 structure is damaged. Copy or export it again")


def _in_order(found: sitk.Transform) -> list[sitk.Transform]:
    """The parts of a transform, the first that is applied first."""
    found = found.Downcast()
    # a type that SimpleITK does not know (MatrixOffsetTransformBase) comes as a composite that holds itself
    if found.IsLinear() or not isinstance(found, sitk.CompositeTransform):
        return [found]
    parts = [found.GetNthTransform(n) for n in reversed(range(found.GetNumberOfTransforms()))]
    return [inner for part in parts for inner in _in_order(part)]


def _from_part(part: sitk.Transform, path: Path) -> Transform:
    if part.IsLinear():
        return Transform(LPS_TO_RAS @ _matrix(part) @ LPS_TO_RAS)
    if isinstance(part, sitk.DisplacementFieldTransform):
        return Transform(displacement=_from_image(part.GetDisplacementField()))
    if isinstance(part, sitk.BSplineTransform):
        return Transform(displacement=_from_image(_sampled(part)))
    raise ReadError(
        f"transform {path} holds a {part.GetName()}; linear transforms, displacement fields and B-splines can be used"
    )


def _matrix(part: sitk.Transform) -> np.ndarray:
    """``[4, 4]`` in LPS, by its effect on four points: the same for every kind."""
    origin = np.asarray(part.TransformPoint((0.0, 0.0, 0.0)))
    scale = 1e3  # mm, far points keep more digits of a rotation
    columns = [(np.asarray(part.TransformPoint((scale * axis).tolist())) - origin) / scale for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(columns, axis=1), origin
    return matrix


def _sampled(spline: sitk.BSplineTransform) -> sitk.Image:
    """A B-spline's displacements in its domain: the voxels fill it, since nothing moves outside."""
    extent = np.asarray(spline.GetTransformDomainPhysicalDimensions())
    mesh = np.asarray(spline.GetTransformDomainMeshSize())
    size = np.ceil(extent / np.maximum(extent / mesh / _PER_CONTROL_POINT, _FINEST_MM) - 1e-6).astype(int).clip(1)
    step = extent / size
    direction = np.asarray(spline.GetTransformDomainDirection()).reshape(3, 3)
    origin = np.asarray(spline.GetTransformDomainOrigin()) + direction @ (step / 2)
    return sitk.TransformToDisplacementField(
        spline, sitk.sitkVectorFloat64, size.tolist(), origin.tolist(), step.tolist(), direction.ravel().tolist()
    )


def _from_image(image: sitk.Image) -> Displacement:
    """An image of LPS vectors, mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3) * np.diag(_FLIP)
    return Displacement(array, Grid(array.shape[:3], LPS_TO_RAS @ affine))


def _to_affine(matrix: np.ndarray) -> sitk.AffineTransform:
    matrix = LPS_TO_RAS @ matrix @ LPS_TO_RAS
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _to_parts(matrix: np.ndarray, displacement: Displacement) -> list[sitk.Transform]:
    """What an ITK composite is made of, the last applied first."""
    axes = displacement.grid.affine[:3, :3] / displacement.grid.spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() < 1e-6:
        return [_to_affine(matrix), _to_field(displacement)]
    # x -> M (x + u(x)) = M P^-1 (y + v(y)) with y = P x, where P takes the grid to one along the axes of the world
    straight = np.diag([*displacement.grid.spacing, 1.0])
    there = straight @ np.linalg.inv(displacement.grid.affine)
    back = np.linalg.inv(there)
    return [_to_affine(matrix @ back), _to_field(displacement.before(back)), _to_affine(there)]


def _to_field(displacement: Displacement) -> sitk.DisplacementFieldTransform:
    vectors = (displacement.array * np.diag(_FLIP)).transpose(2, 1, 0, 3)
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors, np.float64), isVector=True)
    spacing = displacement.grid.spacing
    affine = LPS_TO_RAS @ displacement.grid.affine
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return sitk.DisplacementFieldTransform(image)  # takes the image for its own
