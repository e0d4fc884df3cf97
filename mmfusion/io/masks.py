"""Masks from label files, DICOM SEG and RTSTRUCT, on the grid that asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError, VoxelError
from mmfusion.files import refuse_special
from mmfusion.io.contours import inside_contours
from mmfusion.io.dicom import pixels_of
from mmfusion.io.freesurfer import MGH
from mmfusion.io.load import NIFTI, as_volume, open_scan
from mmfusion.io.metaimage import LPS_TO_RAS, META
from mmfusion.io.slices import slices_of
from mmfusion.io.tags import lenient_dicom, listed, names_damage, number, read_tags
from mmfusion.volume import Volume, resample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from mmfusion.volume import Grid

_SEG_TAGS = (
    "SOPClassUID", "Modality", "Rows", "Columns", "SegmentSequence", "SegmentationType", "MaximumFractionalValue",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "FrameOfReferenceUID",
    "StructureSetROISequence", "ROIContourSequence", "ReferencedFrameOfReferenceSequence",
)  # fmt: skip


@lenient_dicom()
def load_mask(
    path: str | Path, grid: Grid, *, roi: str | Sequence[str] | None = None, assume_orientation: str | None = None
) -> Volume:
    """A mask on a grid: NIfTI, MHA, MHD, NRRD (nearest neighbor), DICOM SEG or RTSTRUCT.

    Args:
        path: the file, or a folder that holds exactly one.
        grid: where the result lies (RAS, mm), in the world of the scan that the mask was drawn on.
        roi: names of the structures (RTSTRUCT) or segments (SEG) to join; all if None.
        assume_orientation: as for :func:`load_volume`.

    Returns:
        uint8, units ``label``: the labels of a label file, or 1 inside the joined structures. ``meta``: source,
        frame_of_reference, rois (names), notes (also if no voxel of the grid is inside).

    Raises:
        ReadError: no mask or several in the folder, an unknown ROI name, no closed contours, irregular frames.
        VoxelError: labels that are not whole numbers from 0 to 255.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(f"mask {path} does not exist")
    refuse_special(path)
    if path.is_dir():
        path = _only_mask(path)
    wanted = None if roi is None else [roi] if isinstance(roi, str) else list(roi)
    if path.name.lower().endswith((*NIFTI, *MGH, *META)):
        if wanted:
            raise ReadError(f"{path} has no named structures; roi is for RTSTRUCT and DICOM SEG")
        mask = _label_file(path, grid, assume_orientation)
    else:
        header = read_tags(path, _SEG_TAGS)
        modality = header.get("Modality") if header is not None else None
        if header is None or modality not in ("RTSTRUCT", "SEG"):
            found = f"DICOM {modality}" if header is not None else "something else"
            raise ReadError(f"{path}: a mask is NIfTI, MHA, NRRD, DICOM SEG or RTSTRUCT; found {found}")
        mask = (_rtstruct if modality == "RTSTRUCT" else _seg)(path, header, grid, wanted)
    if not mask.array.any():
        mask.meta["notes"].append("no voxel of the grid lies inside the mask")
    return mask


def _only_mask(folder: Path) -> Path:
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    masks = [entry for entry in files if entry.name.lower().endswith((*NIFTI, *MGH, *META))]
    masks = [entry for entry in masks if not entry.name.lower().endswith((".img", ".img.gz"))]
    for entry in files:
        header = None if entry in masks else read_tags(entry, ("SOPClassUID", "Modality"))
        if header is not None and header.get("Modality") in ("RTSTRUCT", "SEG"):
            masks.append(entry)
    if len(masks) != 1:
        raise ReadError(f"folder {folder} holds {len(masks)} masks; exactly one is expected, or give the file")
    return masks[0]


def _label_file(path: Path, grid: Grid, assume_orientation: str | None) -> Volume:
    opened = open_scan(path, assume_orientation=assume_orientation)
    array = opened.read()
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255 and np.array_equal(array, np.rint(array))):
        raise VoxelError(
            f"mask {path}: values from {low:g} to {high:g}, not all whole numbers from 0 to 255; "
            "threshold probabilities first"
        )
    stored = as_volume(opened, array, "mask", "label")
    return resample(stored.replace(array=stored.array.astype(np.uint8)), grid, order=0, fill=0)


def _mask(path: Path, array: np.ndarray, grid: Grid, frame_of_reference: str, names: list[str]) -> Volume:
    notes = [f"joined: {', '.join(names)}"] if len(names) > 1 else []
    meta = {"source": str(path), "frame_of_reference": frame_of_reference, "rois": names, "notes": notes}
    return Volume(array.astype(np.uint8), grid.affine, "mask", "label", meta)


def _chosen(path: Path, names: dict[int, str], wanted: list[str] | None) -> dict[int, str]:
    """Numbers and names of the structures to join.

    Raises:
        ReadError: a wanted name does not exist.
    """
    unknown = [name for name in wanted or [] if name not in names.values()]
    if unknown:
        raise ReadError(
            f"{path} has no structure named {', '.join(unknown)}; it has {', '.join(sorted(names.values()))}"
        )
    return {n: name for n, name in names.items() if wanted is None or name in wanted}


@names_damage
def _rtstruct(path: Path, header: Dataset, grid: Grid, wanted: list[str] | None) -> Volume:
    structures = header.get("StructureSetROISequence") or []
    names = {int(item.ROINumber): str(item.get("ROIName") or item.ROINumber) for item in structures}
    chosen = _chosen(path, names, wanted)
    inside = np.zeros(grid.shape, bool)
    drawn = []
    for item in header.get("ROIContourSequence") or []:
        roi_number = int(item.get("ReferencedROINumber", -1))
        contours = [
            _points(contour) @ LPS_TO_RAS[:3, :3]
            for contour in item.get("ContourSequence") or []
            if contour.get("ContourGeometricType") in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
        ]
        if roi_number in chosen and contours:
            inside |= inside_contours(contours, grid)
            drawn.append(chosen[roi_number])
    if not drawn:
        raise ReadError(f"{path} holds no closed planar contours" + (f" of {', '.join(wanted)}" if wanted else ""))
    frames = [item.get("ReferencedFrameOfReferenceUID") for item in structures]
    return _mask(path, inside, grid, str(next((uid for uid in frames if uid), "")), drawn)


def _points(contour: Dataset) -> np.ndarray:
    """``[N, 3]`` LPS mm, from the text as stored: pydicom would make an object of each number, which takes long."""
    stored = contour.get_item("ContourData").value
    text = stored if isinstance(stored, bytes) else "\\".join(map(str, listed(stored))).encode()
    return np.array(text.rstrip(b" \0").split(b"\\"), dtype=np.float64).reshape(-1, 3)


@names_damage
def _seg(path: Path, header: Dataset, grid: Grid, wanted: list[str] | None) -> Volume:
    segments = header.get("SegmentSequence") or []
    names = {int(item.SegmentNumber): str(item.get("SegmentLabel") or item.SegmentNumber) for item in segments}
    chosen = _chosen(path, names, wanted)
    pixels = pixels_of(path)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    kind = str(header.get("SegmentationType", "BINARY")).upper()
    if kind == "FRACTIONAL":
        pixels = pixels >= (number(header.get("MaximumFractionalValue")) or 255) / 2
    elif kind == "LABELMAP":
        pixels = np.isin(pixels, [n for n in chosen if n])
    frames = list(slices_of(path, header))
    if kind != "LABELMAP":
        frames = [piece for piece in frames if _segment_of(header, piece.frame) in chosen]
    if not frames:
        raise ReadError(f"{path} holds no frame of {', '.join(chosen.values()) or 'any segment'}")
    first = frames[0]
    if any(np.abs(piece.axes - first.axes).max() > 1e-3 or piece.spacing != first.spacing for piece in frames):
        raise ReadError(f"{path}: frames with different orientations or spacings cannot be joined; convert to NIfTI")
    normal = np.cross(first.axes[0], first.axes[1])
    along = np.array([piece.position @ normal for piece in frames])
    low = int(np.argmin(along))
    index, step = _plane_numbers(along - along[low], first.thickness, path)
    stored = np.zeros((*first.size, int(index.max()) + 1), np.uint8)
    for piece, n in zip(frames, index, strict=True):
        stored[:, :, n] |= (pixels[piece.frame] > 0).T.astype(np.uint8)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.axes[0] * first.spacing[0], first.axes[1] * first.spacing[1]
    affine[:3, 2], affine[:3, 3] = normal * step, frames[low].position
    mask = Volume(stored, LPS_TO_RAS @ affine, "mask", "label", {"source": str(path)})
    array = resample(mask, grid, order=0, fill=0).array
    return _mask(path, array, grid, str(header.get("FrameOfReferenceUID") or ""), list(chosen.values()))


def _segment_of(header: Dataset, frame: int) -> int:
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    own = header.PerFrameFunctionalGroupsSequence[frame]
    group = listed(own.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence"))
    return int(group[0].ReferencedSegmentNumber) if group else 1


def _plane_numbers(heights: np.ndarray, thickness: float, path: Path) -> tuple[np.ndarray, float]:
    """Which slice of an even stack each frame belongs to (empty slices are not stored), and the step, mm.

    Raises:
        ReadError: the frames do not lie on even steps.
    """
    distinct = np.unique(heights.round(3))
    if len(distinct) == 1:
        return np.zeros(len(heights), int), thickness or 1.0
    step = float(np.diff(distinct).min())
    if thickness and abs(step / thickness - round(step / thickness)) < 0.02:
        step = thickness
    step = float(distinct[-1]) / round(float(distinct[-1]) / step)
    index = np.rint(heights / step).astype(int)
    if np.abs(heights - index * step).max() > 0.1 * step:
        raise ReadError(f"{path}: frames do not lie on even steps of {step:.2f} mm; convert the mask to NIfTI")
    return index, step
