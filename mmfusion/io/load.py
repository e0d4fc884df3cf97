"""Any supported scan as a volume in RAS+ mm with its physical unit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.files import refuse_special
from mmfusion.io.dicom import open_dicom, open_files
from mmfusion.io.header import Header, Opened, chosen_frame, kind_of
from mmfusion.io.metaimage import META, open_metaimage
from mmfusion.io.nifti import open_nifti
from mmfusion.io.series import split_series
from mmfusion.io.sidecar import apply_sidecar
from mmfusion.io.suv import checked_suv
from mmfusion.io.suv_table import to_suv
from mmfusion.volume import Volume, nearest_ras, spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.io.index import Series

NIFTI = (".nii", ".nii.gz", ".hdr", ".img")


def open_scan(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
    pet: Mapping[str, Any] | None = None,
) -> Opened:
    """Read headers and check them; see :func:`load_volume` for arguments and errors."""
    checked_suv(suv)
    path, named = split_series(path)
    series = series or named
    if not path.exists():
        raise ReadError(f"{path} does not exist")
    for part in (path, *(path.with_suffix(ending) for ending in (".hdr", ".img") if path.suffix in (".hdr", ".img"))):
        refuse_special(part)
    name, kind = path.name.lower(), kind_of(modality)
    if path.is_file() and name.endswith(NIFTI):
        if path.suffix == ".img":
            path = path.with_suffix(".hdr")
        opened = open_nifti(path, kind=kind, frame=frame, assume_orientation=assume_orientation)
        if kind == "pet":
            apply_sidecar(opened, chosen_frame(frame, opened.frames, "", path), suv, pet)
    elif path.is_file() and name.endswith(META):
        opened = open_metaimage(path, kind=kind, frame=frame)
    else:
        opened = open_dicom(path, modality=modality, frame=frame, series=series, suv=suv, pet=pet)
    opened.suv = suv
    return opened


def read_header(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
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
        series=series,
        suv=suv,
        pet=pet,
    )
    return _as_header(opened)


def read_series_header(
    series: Series, *, image_kind: str = "", modality: str = "", frame: str | int | None = None
) -> Header:
    """What :func:`read_header` would give for a series that :func:`find_series` found, from its files alone.

    Args:
        series: the series.
        image_kind: one of its ``kinds``, where there are several.
        modality, frame: as of :func:`load_volume`.

    Raises:
        MmfusionError: as :func:`read_header`.
    """
    named = image_kind or None
    return _as_header(
        open_files(series.files, series.folder, str(series.folder), series=named, modality=modality, frame=frame)
    )


def _as_header(opened: Opened) -> Header:
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
        doubts=tuple(opened.doubts),
    )


def load_volume(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
    pet: Mapping[str, Any] | None = None,
) -> Volume:
    """Read a scan: NIfTI, MHA, MHD, NRRD, a folder with a DICOM series, any file of it, or a zip file of DICOM.

    Axes are permuted and flipped to nearest RAS (nothing is interpolated). CT comes in HU, PET in SUV (by body weight,
    g/mL, unless ``suv`` says otherwise), others in arbitrary units. PET in NIfTI goes by its PET-BIDS sidecar
    (:mod:`mmfusion.io.sidecar`). Files without tags or sidecar are believed to hold HU and SUVbw already, but PET
    values above 1000 are taken as Bq/mL.

    Args:
        path: file or folder; ``#SeriesInstanceUID`` or a kind of image behind it (:func:`mmfusion.io.split_series`) is
            the same as ``series``.
        modality: the study's word (``ct``, ``pet_2``, ``t1``); see :func:`kind_of`. DICOM says it by itself.
        frame: ``first``, ``last``, ``mean`` or a number from 0, for files and series with several frames.
        assume_orientation: directions of the stored axes, as ``LAS``, for NIfTI files that have none.
        series: which one, if the folder holds several: a SeriesInstanceUID or its end, a description (in any case)
            or a part of it; or the kind of image of a series with several
            (:data:`mmfusion.io.image_kinds.IMAGE_KINDS`), as ``water`` or ``1.2.840.5:water``. If only one of them is
            of the kind that ``modality`` names, it is taken without being named, with a note.
        suv: by what PET is normalized: ``bw`` body weight, ``lbm`` lean body mass, ``bsa`` body surface area
            (cm2/mL); see :mod:`mmfusion.io.suv`.
        pet: what the manifest says of the PET scan, by the names of :data:`mmfusion.io.PET_DETAILS`; overrides tags.

    Returns:
        ``[i, j, k]`` float32, C-contiguous. ``meta``: source, frame_of_reference, notes, doubts, stored_orientation,
        stored_spacing (mm, along the axes as stored).

    Raises:
        ReadError: the file is missing, broken, holds several frames or series, or contradicts ``modality``.
        OrientationError: left and right cannot be known.
        UnitsError: HU or SUV cannot be known.
        OptionError: an unknown ``suv`` or ``frame``.
        GeometryError: a 2D image or a singular affine.
        VoxelError: voxels that are not finite, or all equal.
    """
    opened = open_scan(
        path,
        modality=modality,
        frame=frame,
        assume_orientation=assume_orientation,
        series=series,
        suv=suv,
        pet=pet,
    )
    array = opened.read()
    if opened.kind == "pet" and not opened.has_units:
        array = to_suv(array, suv, pet, path, opened.notes)
    return as_volume(opened, array, modality or opened.kind, opened.units).checked()


def as_volume(opened: Opened, array: np.ndarray, modality: str, units: str) -> Volume:
    """The stored voxels turned to nearest RAS."""
    turned, affine = nearest_ras(array, opened.affine)
    meta = {
        "source": str(opened.source),
        "frame_of_reference": opened.frame_of_reference,
        "notes": list(opened.notes),
        "doubts": list(opened.doubts),
        "stored_orientation": opened.grid.orientation,
        "stored_spacing": [round(step, 6) for step in opened.grid.spacing],
    }
    return Volume(np.ascontiguousarray(turned, np.float32), affine, modality, units, meta)
