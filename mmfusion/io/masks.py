"""Masks from label files, DICOM SEG and RTSTRUCT, on the grid that asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError, VoxelError
from mmfusion.files import refuse_special
from mmfusion.io.load import IMAGES, as_volume, open_scan
from mmfusion.io.nifti import pair_of
from mmfusion.io.rtstruct import RTSTRUCT_TAGS, open_rtstruct
from mmfusion.io.segmentation import SEG_TAGS, open_seg
from mmfusion.io.series import split_series
from mmfusion.io.structures import OpenedMask, Structure, choose
from mmfusion.io.tags import lenient_dicom, read_tags
from mmfusion.volume import resample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.volume import Grid, Volume


@lenient_dicom()
def load_mask(
    path: str | Path, grid: Grid, *, roi: str | Sequence[str] | None = None, assume_orientation: str | None = None
) -> Volume:
    """A mask on a grid: NIfTI, MGH, MHA, MHD, NRRD (nearest neighbor), DICOM SEG or RTSTRUCT.

    Args:
        path: the file, or a folder that holds exactly one; ``#NAME`` behind it is the same as ``roi`` and comes first.
        grid: where the result lies (RAS, mm), in the world of the scan that the mask was drawn on.
        roi: names or patterns of the structures (RTSTRUCT), segments (SEG) or labels (label file) to join, see
            :func:`mmfusion.io.structures.choose`. If None, all labels of a label file, and the only structure or
            segment that can be a lesion.
        assume_orientation: as for :func:`load_volume`.

    Returns:
        uint8, units ``label``: the labels of a label file, or 1 inside the structures or labels that were named.
        ``meta``: source, frame_of_reference, referenced_series (UIDs), rois and others (names of the structures that
        are used, and of those that are not), notes (also if no voxel of the grid is inside), doubts.

    Raises:
        ReadError: no mask or several in the folder, an unknown name, no name where several structures can be meant,
            no closed contours, irregular frames.
        VoxelError: labels that are not whole numbers from 0 to 255.
    """
    return open_mask(path, roi=roi, assume_orientation=assume_orientation).on(grid)


@lenient_dicom()
def open_mask(
    path: str | Path, *, roi: str | Sequence[str] | None = None, assume_orientation: str | None = None
) -> OpenedMask:
    """What :func:`load_mask` would draw, from the headers."""
    path, named = split_series(path)
    roi = named or roi
    if not path.exists():
        raise ReadError(f"mask {path} does not exist")
    refuse_special(path)
    if path.is_dir():
        path = _only_mask(path)
    wanted = None if not roi else [roi] if isinstance(roi, str) else list(roi)
    if path.name.lower().endswith(IMAGES):
        return _open_labels(path, wanted, assume_orientation)
    header = read_tags(path, ("SOPClassUID", "Modality", *RTSTRUCT_TAGS, *SEG_TAGS))
    modality = header.get("Modality") if header is not None else None
    if header is None or modality not in ("RTSTRUCT", "SEG"):
        content = f"DICOM {modality}" if header is not None else "something else"
        raise ReadError(f"{path}: a mask is NIfTI, MGH, MHA, MHD, NRRD, DICOM SEG or RTSTRUCT; found {content}")
    return (open_rtstruct if modality == "RTSTRUCT" else open_seg)(path, header, wanted)


def _only_mask(folder: Path) -> Path:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    masks = [entry for entry in files if entry.name.lower().endswith(IMAGES)]
    masks = [entry for entry in masks if pair_of(entry)[0] == entry]  # the header of a pair counts
    for entry in files:
        header = None if entry in masks else read_tags(entry, ("SOPClassUID", "Modality"))
        if header is not None and header.get("Modality") in ("RTSTRUCT", "SEG"):
            masks.append(entry)
    if len(masks) != 1:
        raise ReadError(f"folder {folder} holds {len(masks)} masks; exactly one is expected, or give the file")
    return masks[0]


def _open_labels(path: Path, wanted: list[str] | None, assume_orientation: str | None) -> OpenedMask:
    opened = open_scan(path, assume_orientation=assume_orientation)

    def draw(grid: Grid) -> np.ndarray:
        array = opened.read()
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0 and high <= 255 and np.array_equal(array, np.rint(array))):
            raise VoxelError(
                f"mask {path}: values from {low:g} to {high:g}, not all whole numbers from 0 to 255; "
                "threshold probabilities first"
            )
        stored = as_volume(opened, array, "mask", "label")
        labels = stored.array.astype(np.uint8)
        labeled = [Structure(int(n), str(n)) for n in np.unique(labels) if n]
        if wanted is not None:
            labels = np.isin(labels, [one.number for one in choose(labeled, wanted, mask)]).astype(np.uint8)
        elif len(labeled) > 1:
            mask.notes.append(f"all labels are used: {', '.join(one.name for one in labeled)}")
        return resample(stored.replace(array=labels), grid, order=0, fill=0).array

    mask = OpenedMask(path, draw, notes=opened.notes, doubts=opened.doubts)
    return mask
