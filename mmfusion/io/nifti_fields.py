"""NIfTI images of vectors: what their numbers mean, by the program that wrote them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import OrientationError, ReadError
from mmfusion.io.frame_choice import ONLY_FRAME
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.nifti import affine_of, nifti_header, read_voxels
from mmfusion.volume import Displacement, Grid

if TYPE_CHECKING:
    from pathlib import Path

    from nibabel.nifti1 import Nifti1Header

_DISPVECT = 1006  # displacements along the axes of NIfTI; ITK, too, takes them for RAS
_FSL = range(2000, 2100)
_NIFTYREG = {0: "places", 1: "RAS"}  # intent_p1 of NREG_TRANS; the others are splines and velocities
_NO_DISPLACEMENT = r"mapping|deformation|velocit|(?<![a-z])flow|spline|momentum|coordinate"
_REMEDY = "write it as an ITK displacement field (a vector image in LPS mm, as 1Warp.nii.gz of ANTs)"


def load_nifti_field(path: Path) -> Displacement:
    """The displacements in a NIfTI image of vectors, from fixed to moving, RAS mm.

    ITK and ANTs store displacements in LPS. NiftyReg (intent name ``NREG_TRANS``) and SPM (``y_*.nii``, intent name
    ``Mapping``) store places in the moving world, RAS; NiftyReg also displacements in RAS.

    Raises:
        GeometryError: a singular affine, or values that are not finite.
        ReadError: the file is damaged, has no three values a voxel, or holds what is no field of displacements or
            places (splines, velocities), or is not known to be one.
    """
    header = nifti_header(path)
    meaning = _meaning(path, header)
    try:
        vectors, affine = _read_vectors(path, header)
    except OrientationError:
        raise ReadError(
            f"transform {path} has no orientation (qform and sform codes are 0); where its vectors lie is unknown. "
            "Export it again"
        ) from None
    grid = Grid(vectors.shape[:3], affine)
    if meaning == "LPS":
        vectors = vectors * np.diag(LPS_TO_RAS)[:3].astype(np.float32)
    elif meaning == "places":
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
        vectors = vectors - grid.to_world(index)
    return Displacement(vectors, grid)


def _read_vectors(path: Path, header: Nifti1Header) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of an image of them, ``[i, j, k, 3]`` float32 as stored, and its ``[4, 4]`` affine, RAS mm.

    Raises:
        ReadError: damaged, cut short, or not of three values a voxel.
        OrientationError: where the voxels lie is unknown.
    """
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) != 5 or shape[3] != 1 or shape[4] != 3 or min(shape) < 1:
        raise ReadError(
            f"transform {path} is an image of shape {shape}; a displacement field has 3 values a voxel, in NIfTI shape "
            "(i, j, k, 1, 3)"
        )
    if header.get_data_dtype().kind not in "iuf":
        raise ReadError(f"{path} holds {header.get_value_label('datatype')} voxels; plain numbers are expected")
    i, j, k = shape[:3]
    affine = affine_of(header, (i, j, k), path, None, [], [])
    if not np.isfinite(affine).all():
        raise ReadError(f"{path} has a damaged NIfTI header: where its voxels lie is not finite")
    # the three values of a voxel lie a volume apart, as three volumes on top of each other
    array = read_voxels(path, header, (i, j, 3 * k), affine, 1, ONLY_FRAME)
    return np.moveaxis(array.reshape(i, j, 3, k), 2, 3), affine


def _meaning(path: Path, header: Nifti1Header) -> str:
    """``LPS`` or ``RAS`` displacements, or ``places`` (RAS), by intent and description.

    Raises:
        ReadError: something else, with the name of the program where that is known.
    """
    code, name, about = int(header["intent_code"]), _text(header, "intent_name"), _text(header, "descrip")
    if code in _FSL:
        raise ReadError(
            f"transform {path} is a warp of FSL (intent {code}), whose numbers depend on the voxels of both images. "
            "Convert it: wb_command -convert-warpfield -from-fnirt WARP SOURCE -to-itk OUT.nii.gz"
        )
    if name.startswith("NREG"):
        kind = int(header["intent_p1"]) if name == "NREG_TRANS" else -1
        if kind not in _NIFTYREG:
            raise ReadError(
                f"transform {path} is a spline or velocity grid of NiftyReg (intent {name}). Convert it to a "
                "deformation field: reg_transform -ref FIXED -def GRID OUT.nii.gz"
            )
        return _NIFTYREG[kind]
    if name == "Mapping":
        return "places"
    if found := re.search(_NO_DISPLACEMENT, f"{name} {about}", re.IGNORECASE):
        raise ReadError(
            f"transform {path} does not say that it holds displacements (its intent or description has "
            f"'{found[0]}'); {_REMEDY}"
        )
    return "RAS" if code == _DISPVECT else "LPS"


def _text(header: Nifti1Header, name: str) -> str:
    return bytes(header[name].item()).rstrip(b"\0 ").decode("latin-1")
