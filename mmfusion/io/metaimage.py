"""MHA, MHD and NRRD through SimpleITK, which turns their many space conventions into LPS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from mmfusion.errors import OrientationError, ReadError
from mmfusion.io.frame_choice import choose_frames
from mmfusion.io.header import Opened, static_shape
from mmfusion.io.text_headers import check_text_header
from mmfusion.io.voxels import empty_voxels, fill

if TYPE_CHECKING:
    from pathlib import Path

META = (".mha", ".mhd", ".nrrd", ".nhdr")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The world of DICOM and ITK to ours, and back (it is its own inverse)."""


def open_metaimage(path: Path, *, kind: str = "", frame: str | int | None = None) -> Opened:
    """Read the header of an ``.mha``, ``.mhd`` or ``.nrrd`` file.

    Raises:
        ReadError: the file is damaged, has vector voxels, or has several frames and none was chosen.
        OrientationError: a NRRD file that names no space.
        GeometryError: a 2D image or a singular affine.
    """
    check_text_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ReadError(f"{path} cannot be read: {last_line(error)}") from None
    shape = tuple(int(n) for n in reader.GetSize())
    spatial, frames = static_shape(shape, path)
    choice = choose_frames(frame, frames, f"shape {shape}", path)
    if reader.GetNumberOfComponents() != 1:
        raise ReadError(
            f"{path} has {reader.GetNumberOfComponents()} values a voxel (a vector or color image); one is expected"
        )
    if path.suffix.lower() in (".nrrd", ".nhdr") and not reader.HasMetaDataKey("NRRD_space"):
        raise OrientationError(
            f"{path} names no space; left and right are unknown. Export it with its space (left-posterior-superior)"
        )
    n = len(shape)
    affine = np.eye(4)
    directions = np.asarray(reader.GetDirection()).reshape(n, n)[:3, :3]
    affine[:3, :3] = directions * np.asarray(reader.GetSpacing())[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]

    def read() -> np.ndarray:
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise ReadError(f"{path} cannot be read: {last_line(error)}. Copy or export it again") from None
        array = sitk.GetArrayViewFromImage(image).reshape(frames, *spatial[::-1])
        out = empty_voxels(spatial, opened.affine, path)
        mean = array[choice.indices[0]]
        if not choice.single:
            parts = zip(choice.indices, choice.weights, strict=True)
            mean = sum(array[n].astype(float) * weight for n, weight in parts) / sum(choice.weights)
        fill(out, mean.T)
        return out

    notes = [choice.note] if choice.note else []
    opened = Opened(path, spatial, LPS_TO_RAS @ affine, read, kind=kind, frames=frames, choice=choice, notes=notes)
    return opened


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR:").strip(" .")
