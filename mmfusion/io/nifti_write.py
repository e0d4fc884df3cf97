"""Volumes to NIfTI-1 files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError, VoxelError
from mmfusion.files import atomic_path

if TYPE_CHECKING:
    from mmfusion.volume import Volume


def check_volume_name(path: str | Path) -> Path:
    """The path of a volume to write.

    Raises:
        ReadError: another file ending than ``.nii`` or ``.nii.gz``.
    """
    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise ReadError(f"{path}: volumes are written as .nii or .nii.gz")
    return Path(path)


def save_volume(volume: Volume, path: str | Path) -> None:
    """Write ``.nii`` or ``.nii.gz``, atomically: qform and sform set (scanner), units mm, gzip level 1.

    Voxels are written as float32, or as uint8 or int16 for units ``label`` and for bool. A sheared affine has no
    qform; only the sform is set then. The bytes depend on nothing but the volume.

    Raises:
        ReadError: another file ending.
        VoxelError: labels outside int16.
    """
    import nibabel

    with atomic_path(check_volume_name(path)) as temporary:
        image = nibabel.Nifti1Image(volume.array.astype(_stored_type(volume), copy=False), volume.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.affine, code=1)
        try:
            image.set_qform(volume.affine, code=1, strip_shears=False)
        except nibabel.spatialimages.HeaderDataError:
            image.set_qform(None, code=0)
        with temporary.open("wb") as stream:
            if str(path).lower().endswith(".gz"):
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(stream)


def _stored_type(volume: Volume) -> type[np.generic]:
    if volume.array.dtype == bool:
        return np.uint8
    if volume.units != "label":
        return np.float32
    low, high = volume.array.min(), volume.array.max()
    if low < -32768 or high > 32767:
        raise VoxelError(f"{volume.name}: labels from {low} to {high} do not fit 16 bits")
    return np.uint8 if low >= 0 and high <= 255 else np.int16
