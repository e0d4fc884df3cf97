"""FreeSurfer's volumes, MGH and its packed form MGZ."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import OrientationError, ReadError
from mmfusion.io.frame_choice import choose_frames
from mmfusion.io.header import Opened, static_shape
from mmfusion.io.nifti import first_bytes, read_voxels

if TYPE_CHECKING:
    from pathlib import Path

MGH = (".mgh", ".mgz")
_HEADER_BYTES = 284


def open_mgh(path: Path, *, kind: str = "", frame: str | int | None = None) -> Opened:
    """Read the header of an ``.mgh`` or ``.mgz`` file.

    Raises:
        ReadError: not MGH, truncated, voxels of an unknown type, or several frames and none was chosen.
        OrientationError: the file says that it does not know how it lies, or lies nowhere.
        GeometryError: a 2D image or a singular affine.
    """
    from nibabel.freesurfer.mghformat import MGHHeader

    block = first_bytes(path, _HEADER_BYTES, "an MGH file")
    if len(block) < _HEADER_BYTES or int.from_bytes(block[:4], "big") != 1:
        raise ReadError(f"{path} is not an MGH file of FreeSurfer: its header does not say so")
    header = MGHHeader(block, check=False)
    try:
        header.get_data_dtype()
    except KeyError as error:
        raise ReadError(f"{path} holds voxels of type {error}; plain numbers are expected") from None
    spatial, frames = static_shape(tuple(int(n) for n in header["dims"]), path)
    choice = choose_frames(frame, frames, f"{frames} frames", path)
    affine = np.asarray(header.get_affine(), float)
    if not any(block[28:30]) or not np.isfinite(affine).all():
        raise OrientationError(
            f"{path} says that its directions are not known; left and right are unknown. Export the scan again"
        )
    notes = [choice.note] if choice.note else []
    read = partial(read_voxels, path, header, spatial, affine, frames, choice)
    return Opened(path, spatial, affine, read, kind=kind, frames=frames, choice=choice, notes=notes)
