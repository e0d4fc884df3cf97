"""Any supported scan as a volume in RAS+ mm with its physical unit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.dicom import open_dicom
from mmfusion.io.header import Header, Opened, kind_of
from mmfusion.io.metaimage import META, open_metaimage
from mmfusion.io.nifti import open_nifti
from mmfusion.io.suv import to_suv
from mmfusion.volume import Volume, nearest_ras, spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping

NIFTI = (".nii", ".nii.gz", ".hdr", ".img")


def open_scan(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series_uid: str | None = None,
    pet: Mapping[str, Any] | None = None,
) -> Opened:
    """Read headers and check them; see :func:`load_volume` for arguments and errors."""
    path = Path(path)
    if not path.exists():
        raise ReadError(f"{path} does not exist")
    name = path.name.lower()
    if path.is_dir():
        return open_dicom(path, modality=modality, series_uid=series_uid, pet=pet)
    if name.endswith(NIFTI):
        if path.suffix == ".img":
            path = path.with_suffix(".hdr")
        return open_nifti(path, kind=kind_of(modality), frame=frame, assume_orientation=assume_orientation)
    if name.endswith(META):
        return open_metaimage(path, kind=kind_of(modality), frame=frame)
    return open_dicom(path, modality=modality, series_uid=series_uid, pet=pet)


def read_header(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series_uid: str | None = None,
    pet: Mapping[str, Any] | None = None,
) -> Header:
    """What :func:`load_volume` would give, without reading voxels.

    Takes the same arguments and raises the same errors, as far as headers show them.
    """
    opened = open_scan(
        path,
        modality=modality,
        frame=frame,
        assume_orientation=assume_orientation,
        series_uid=series_uid,
        pet=pet,
    )
    # an array of no memory, because axes are turned in one place only
    turned, affine = nearest_ras(np.broadcast_to(np.uint8(0), opened.shape), opened.affine)
    i, j, k = turned.shape
    return Header(
        shape=(i, j, k),
        affine=affine,
        orientation=opened.grid.orientation,
        spacing=spacing_of(affine),
        modality=opened.kind,
        units=opened.units,
        frame_of_reference=opened.frame_of_reference,
        frames=opened.frames,
        notes=tuple(opened.notes),
    )


def load_volume(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series_uid: str | None = None,
    pet: Mapping[str, Any] | None = None,
) -> Volume:
    """Read a scan: NIfTI, MHA, MHD, NRRD, a folder with one DICOM series, or any file of such a folder.

    Axes are permuted and flipped to nearest RAS (nothing is interpolated). CT comes in HU, PET in SUVbw (g/mL),
    others in arbitrary units. Files without DICOM tags are believed to hold HU and SUVbw already, but PET values
    above 1000 are taken as Bq/mL.

    Args:
        path: file or folder.
        modality: the study's word (``ct``, ``pet_2``, ``t1``); see :func:`kind_of`. DICOM says it by itself.
        frame: ``first``, ``last``, ``mean`` or a number from 0, for files with several frames.
        assume_orientation: directions of the stored axes, as ``LAS``, for NIfTI files that have none.
        series_uid: which series, if the folder holds several (its end is enough).
        pet: what the manifest says of the PET scan (``weight_kg``, ``dose_mbq``, ``injection_time``,
            ``acquisition_time``, ``half_life_s``); overrides tags.

    Returns:
        ``[i, j, k]`` float32, C-contiguous. ``meta``: source, frame_of_reference, notes, stored_orientation,
        stored_spacing (mm, along the axes as stored).

    Raises:
        ReadError: the file is missing, broken, holds several frames or series, or contradicts ``modality``.
        OrientationError: left and right cannot be known.
        UnitsError: HU or SUV cannot be known.
        GeometryError: a 2D image or a singular affine.
        VoxelError: voxels that are not finite, or all equal.
    """
    opened = open_scan(
        path,
        modality=modality,
        frame=frame,
        assume_orientation=assume_orientation,
        series_uid=series_uid,
        pet=pet,
    )
    array = opened.read()
    if opened.kind == "pet" and not opened.from_dicom:
        array = to_suv(array, pet, path, opened.notes)
    return as_volume(opened, array, modality or opened.kind, opened.units).checked()


def as_volume(opened: Opened, array: np.ndarray, modality: str, units: str) -> Volume:
    """The stored voxels turned to nearest RAS."""
    turned, affine = nearest_ras(array, opened.affine)
    meta = {
        "source": str(opened.source),
        "frame_of_reference": opened.frame_of_reference,
        "notes": list(opened.notes),
        "stored_orientation": opened.grid.orientation,
        "stored_spacing": [round(step, 6) for step in opened.grid.spacing],
    }
    return Volume(np.ascontiguousarray(turned, np.float32), affine, modality, units, meta)
