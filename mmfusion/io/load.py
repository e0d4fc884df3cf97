"""Any supported scan as a volume in RAS+ mm with its physical unit."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import OptionError, ReadError, VoxelError
from mmfusion.files import refuse_special
from mmfusion.io.dicom import open_dicom, open_files
from mmfusion.io.freesurfer import MGH, open_mgh
from mmfusion.io.header import Header, Opened, kind_of
from mmfusion.io.metaimage import META, open_metaimage
from mmfusion.io.nifti import open_nifti, pair_of
from mmfusion.io.series import split_series
from mmfusion.io.sidecar import apply_sidecar, frame_times
from mmfusion.io.suv_table import doubts_of, to_suv
from mmfusion.options import OPTIONS
from mmfusion.volume import FILL, SUV_UNITS, Volume, nearest_ras, resample, spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.io.series_facts import Series

NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img")
IMAGES = (*NIFTI, *MGH, *META)
"""Endings of files that hold one image."""
VOLUMES = (*IMAGES, ".zip")
"""Endings of files that hold a scan, beside those of DICOM, which needs none."""


def open_scan(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
    suvr: str | None = None,
    weight_unit: str = "kg",
    pet: Mapping[str, Any] | None = None,
) -> Opened:
    """Read headers and check them; see :func:`load_volume` for arguments and errors."""
    OPTIONS["suv"].check(suv)
    OPTIONS["weight_unit"].check(weight_unit)
    suv = "none" if suvr else suv  # the unit does not matter to a ratio
    path, named = split_series(path)
    series = series or named
    if not path.exists():
        raise ReadError(f"{path} does not exist")
    for part in (path, *pair_of(path)):
        refuse_special(part)
    name, kind = path.name.lower(), kind_of(modality)
    if path.is_file() and name.endswith(NIFTI):
        header = pair_of(path)[0]
        times = partial(frame_times, header)
        opened = open_nifti(header, kind=kind, frame=frame, assume_orientation=assume_orientation, times=times)
        if kind == "pet":
            apply_sidecar(opened, suv, weight_unit, pet)
    elif path.is_file() and name.endswith(MGH):
        opened = open_mgh(path, kind=kind, frame=frame)
    elif path.is_file() and name.endswith(META):
        opened = open_metaimage(path, kind=kind, frame=frame)
    else:
        how: dict[str, Any] = {"suv": suv, "weight_unit": weight_unit, "pet": pet}
        opened = open_dicom(path, modality=modality, frame=frame, series=series, **how)
    if opened.kind == "pet" and not opened.has_units:
        opened.pet_units = "stored" if suv == "none" else f"SUV{suv}"
        opened.doubts += [] if suv == "none" else doubts_of(pet or {}, suv)
    if opened.kind == "pet" and suvr:
        opened.pet_units = "SUVR"
        _label_map(suvr)
    return opened


def read_header(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
    suvr: str | None = None,
    weight_unit: str = "kg",
    pet: Mapping[str, Any] | None = None,
    nan: str = "refuse",
) -> Header:
    """What :func:`load_volume` would give, without reading voxels.

    Takes the same arguments and raises the same errors, as far as headers show them.
    """
    OPTIONS["nan"].check(nan)
    opened = open_scan(
        path,
        modality=modality,
        frame=frame,
        assume_orientation=assume_orientation,
        series=series,
        suv=suv,
        suvr=suvr,
        weight_unit=weight_unit,
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
        scanned=opened.scanned,
        person=opened.person,
    )


def load_volume(
    path: str | Path,
    *,
    modality: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    series: str | None = None,
    suv: str = "bw",
    suvr: str | None = None,
    weight_unit: str = "kg",
    pet: Mapping[str, Any] | None = None,
    nan: str = "refuse",
) -> Volume:
    """Read a scan: NIfTI, MGH, MHA, MHD, NRRD, a folder with a DICOM series, any file of it, or a zip file of DICOM.

    Axes are permuted and flipped to nearest RAS (nothing is interpolated). CT comes in HU, PET in SUV (by body weight,
    g/mL, unless ``suv`` says otherwise), others in arbitrary units. PET in NIfTI goes by its PET-BIDS sidecar
    (:mod:`mmfusion.io.sidecar`). Files without tags or sidecar are believed to hold HU and SUVbw already, but PET
    values above 1000 are taken as Bq/mL.

    Args:
        path: file or folder; ``#SeriesInstanceUID`` or a kind of image behind it (:func:`mmfusion.io.split_series`) is
            the same as ``series``.
        modality: the study's word (``ct``, ``pet_2``, ``t1``); see :func:`kind_of`. DICOM says it by itself.
        frame: of files and series with several frames: ``first``, ``last``, a number from 0, ``mean``, or the mean of
            some: ``20-24`` (both included), or ``40min-60min`` (or ``s``) after the start of the first frame. Means are
            weighted by the durations of the frames, where these are known.
        assume_orientation: directions of the stored axes, as ``LAS``, for NIfTI files that have none.
        series: which one, if the folder holds several: a SeriesInstanceUID or its end, a description (in any case)
            or a part of it; or the kind of image of a series with several
            (:data:`mmfusion.io.image_kinds.IMAGE_KINDS`), as ``water`` or ``1.2.840.5:water``. If only one of them is
            of the kind that ``modality`` names, it is taken without being named, with a note.
        suv: by what PET is normalized: ``bw`` body weight, ``lbm`` lean body mass, ``bsa`` body surface area
            (cm2/mL); see :mod:`mmfusion.io.suv`. ``none``: the values as they are stored, in ``Bq/mL`` or ``stored``.
        suvr: PET over its mean in a reference region, ``FILE#LABEL`` (or ``FILE#8+47``): voxels of a label map in the
            world of the scan that have this label. Instead of SUV.
        weight_unit: what DICOM's and the sidecar's PatientWeight is in: ``kg``, ``g`` or ``lb``.
        pet: what the manifest says of the PET scan, by the names of :data:`mmfusion.io.PET_DETAILS`; overrides tags.
        nan: ``refuse`` voxels that are not a number, or take them as ``background``: air for CT, else 0. Statistical
            maps and skull-stripped scans have them outside the brain.

    Returns:
        ``[i, j, k]`` float32, C-contiguous. ``meta``: source, frame_of_reference, series_uid, notes, doubts,
        stored_orientation, stored_spacing (mm, along the axes as stored).

    Raises:
        ReadError: the file is missing, broken, holds several frames or series, or contradicts ``modality``.
        OrientationError: left and right cannot be known.
        UnitsError: HU or SUV cannot be known, or what the header says of the PET cannot be.
        OptionError: an unknown ``suv``, ``weight_unit``, ``frame`` or ``nan``, or a ``suvr`` without a label.
        GeometryError: a 2D image or a singular affine.
        VoxelError: voxels that are not finite, or all equal.
    """
    OPTIONS["nan"].check(nan)
    opened = open_scan(
        path,
        modality=modality,
        frame=frame,
        assume_orientation=assume_orientation,
        series=series,
        suv=suv,
        suvr=suvr,
        weight_unit=weight_unit,
        pet=pet,
    )
    array = opened.read()
    if nan == "background":
        _fill_nan(array, opened)
    if opened.kind == "pet" and opened.pet_units in SUV_UNITS and not opened.has_units:
        array = to_suv(array, suv, pet, path, opened.notes)
    volume = as_volume(opened, array, modality or opened.kind, opened.units).checked()
    return _to_ratio(volume, suvr) if suvr and opened.kind == "pet" else volume


def _fill_nan(array: np.ndarray, opened: Opened) -> None:
    """Voxels that are NaN become what lies outside a scan; a note counts them."""
    bad = np.isnan(array)
    if count := int(bad.sum()):
        fill = FILL.get(opened.units, 0.0)
        array[bad] = fill
        opened.notes.append(f"{count} of {array.size} voxels are NaN and count as background ({fill:g})")


def as_volume(opened: Opened, array: np.ndarray, modality: str, units: str) -> Volume:
    """The stored voxels turned to nearest RAS."""
    turned, affine = nearest_ras(array, opened.affine)
    meta = {
        "source": str(opened.source),
        "frame_of_reference": opened.frame_of_reference,
        "series_uid": opened.series_uid,
        "notes": list(opened.notes),
        "doubts": list(opened.doubts),
        "stored_orientation": opened.grid.orientation,
        "stored_spacing": [round(step, 6) for step in opened.grid.spacing],
    }
    return Volume(np.ascontiguousarray(turned, np.float32), affine, modality, units, meta)


def _label_map(suvr: str) -> tuple[Opened, tuple[int, ...]]:
    """The header of the label map of ``FILE#LABEL``, and the labels that are the reference region.

    Raises:
        OptionError: no label is named.
        ReadError: the file is missing, broken or no single image.
    """
    if suvr == "manifest":
        raise OptionError("suvr is manifest, but the row has no reference_region; fill that column with FILE#LABEL")
    file, _, labels = suvr.rpartition("#")
    if not file or not re.fullmatch(r"\d+(\+\d+)*", labels):
        raise OptionError(
            f"{suvr} names no region: suvr is FILE#LABEL, the number of a region in a label map, or several as "
            "FILE#8+47"
        )
    numbers = tuple(map(int, labels.split("+")))
    if 0 in numbers:
        raise OptionError(f"suvr names label 0, which is the background of a label map; found '{suvr}'")
    return open_scan(file), numbers


def _to_ratio(volume: Volume, suvr: str) -> Volume:
    """PET over its mean in the reference region, units ``SUVR``."""
    opened, labels = _label_map(suvr)
    stored = opened.read()
    missing = [str(label) for label in labels if not np.any(stored == label)]
    if missing:
        raise VoxelError(f"{opened.source} has no voxel of label {', '.join(missing)}; name a label that is in it")
    region = as_volume(opened, np.isin(stored, labels), "mask", "label")
    inside = resample(region, volume.grid, order=0, fill=0).array > 0
    mean = float(volume.array[inside].mean(dtype=np.float64)) if inside.any() else 0.0
    if not mean > 0:
        what = f"the mean of the scan in it is {mean:.3g}" if inside.any() else "no voxel of the scan lies in it"
        raise VoxelError(
            f"{volume.name}: the reference region {'+'.join(map(str, labels))} of {opened.source} cannot be used, "
            f"{what}. The label map must lie in the world of the PET scan"
        )
    volume.meta["notes"].append(f"ratio to the reference region, {int(inside.sum())} voxels with a mean of {mean:.5g}")
    return volume.replace(array=volume.array / np.float32(mean), units="SUVR")
