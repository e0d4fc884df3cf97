"""DICOM SEG: segments that were stored slice by slice, without the empty slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.dicom import pixels_of
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.series_facts import referenced_series
from mmfusion.io.slices import frame_tag, slices_of
from mmfusion.io.structures import OpenedMask, Structure, choose
from mmfusion.io.tags import listed, names_damage, number
from mmfusion.volume import Volume, resample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom import Dataset

    from mmfusion.io.slices import Slice
    from mmfusion.volume import Grid

SEG_TAGS = (
    "Rows", "Columns", "NumberOfFrames", "SegmentSequence", "SegmentationType", "MaximumFractionalValue",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
)  # fmt: skip
_NORMAL_ANATOMY = ("123037004", "T-D000A")  # SegmentedPropertyCategory: anatomical structure, in SNOMED CT and RT
_WIDEST_STEP = 2.02  # times the thickness


@names_damage
def open_seg(path: Path, header: Dataset, wanted: Sequence[str] | None) -> OpenedMask:
    """The segments of a SEG that are meant, to be drawn.

    Raises:
        ReadError: see :func:`mmfusion.io.structures.choose`; frames that do not lie on one lattice.
    """
    every = list(slices_of(path, header))
    kind = str(header.get("SegmentationType", "BINARY")).upper()
    segments = [] if kind == "LABELMAP" else [_segment_of(header, piece.frame) for piece in every]
    structures = [
        Structure(
            int(item.SegmentNumber),
            str(item.get("SegmentLabel") or item.SegmentNumber).strip(),
            _kind(item),
            kind == "LABELMAP" or int(item.SegmentNumber) in segments,
        )
        for item in header.get("SegmentSequence") or []
        if kind != "LABELMAP" or int(item.SegmentNumber)  # where 0 is the background
    ]
    mask = OpenedMask(path, referenced_series=tuple(referenced_series(header)))
    mask.frame_of_reference = str(header.get("FrameOfReferenceUID") or "")
    chosen = [one.number for one in choose(structures, wanted, mask)]
    frames = [piece for n, piece in enumerate(every) if kind == "LABELMAP" or segments[n] in chosen]
    if not frames:
        raise ReadError(f"{path} holds no frame of {', '.join(mask.rois) or 'any segment'}")
    first = frames[0]
    if any(np.abs(piece.axes - first.axes).max() > 1e-3 or piece.spacing != first.spacing for piece in frames):
        raise ReadError(f"{path}: frames with different orientations or spacings cannot be joined; convert to NIfTI")
    normal = np.cross(first.axes[0], first.axes[1])
    along = np.array([piece.position @ normal for piece in frames])
    low = int(np.argmin(along))
    parallel = [piece.position @ normal for piece in every if np.abs(piece.axes - first.axes).max() <= 1e-3]
    index, step = _plane_numbers(along - along[low], _step(path, header, first, np.array(parallel), mask), path)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.axes[0] * first.spacing[0], first.axes[1] * first.spacing[1]
    affine[:3, 2], affine[:3, 3] = normal * step, frames[low].position

    def draw(grid: Grid) -> np.ndarray:
        pixels = _pixels(path, header, kind, chosen)
        stored = np.zeros((*first.size, int(index.max()) + 1), np.uint8)
        for piece, n in zip(frames, index, strict=True):
            stored[:, :, n] |= (pixels[piece.frame] > 0).T.astype(np.uint8)
        return resample(Volume(stored, LPS_TO_RAS @ affine, "mask", "label"), grid, order=0, fill=0).array

    mask.draw = draw
    return mask


@names_damage
def _pixels(path: Path, header: Dataset, kind: str, chosen: Sequence[int]) -> np.ndarray:
    """``[frames, rows, columns]``, above 0 inside."""
    pixels = pixels_of(path)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if kind == "FRACTIONAL":
        return pixels >= (number(header.get("MaximumFractionalValue")) or 255) / 2
    return np.isin(pixels, chosen) if kind == "LABELMAP" else pixels


def _kind(segment: Dataset) -> str:
    category = (segment.get("SegmentedPropertyCategoryCodeSequence") or [{}])[0].get("CodeValue")
    return "ORGAN" if category in _NORMAL_ANATOMY else ""


def _segment_of(header: Dataset, frame: int) -> int:
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    own = header.PerFrameFunctionalGroupsSequence[frame]
    group = listed(own.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence"))
    return int(group[0].ReferencedSegmentNumber) if group else 1


def _step(path: Path, header: Dataset, first: Slice, along: np.ndarray, mask: OpenedMask) -> float:
    """The distance of neighboring slices, mm; 0 if the planes are to say it.

    Empty slices are not stored, so a gap between planes may be a step or several. SpacingBetweenSlices says the step.
    Without it, the closest planes of all segments are neighbors if they are at most twice the thickness apart, or as
    far apart as most planes are. Else slices are as far apart as they are thick, and those between are empty.

    Args:
        path, header: the file.
        first: one of its frames.
        along: positions of all planes along their normal, mm.
        mask: takes a note where this is not certain.
    """
    said = number(frame_tag(path, header, first.frame, "PixelMeasuresSequence", "SpacingBetweenSlices"))
    gaps = np.diff(np.unique(along.round(3)))
    if said or not len(gaps):
        return first.thickness
    closest = float(gaps.min())
    usual = len(gaps) > 1 and float(np.median(gaps)) < 1.02 * closest
    if first.thickness and closest > _WIDEST_STEP * first.thickness and not usual:
        return first.thickness
    if first.thickness and abs(closest / first.thickness - 1) > 0.02:
        mask.notes.append(f"slices {first.thickness:g} mm thick lie {closest:g} mm apart and count as neighbors")
    return closest


def _plane_numbers(heights: np.ndarray, step: float, path: Path) -> tuple[np.ndarray, float]:
    """Which slice of an even stack each frame belongs to, and the step, mm.

    Raises:
        ReadError: the frames do not lie on even steps.
    """
    distinct = np.unique(heights.round(3))
    if len(distinct) == 1:
        return np.zeros(len(heights), int), step or 1.0
    step = step or float(np.diff(distinct).min())
    step = float(distinct[-1]) / max(1, round(float(distinct[-1]) / step))
    index = np.rint(heights / step).astype(int)
    if np.abs(heights - index * step).max() > 0.1 * step:
        raise ReadError(f"{path}: frames do not lie on even steps of {step:.2f} mm; convert the mask to NIfTI")
    return index, step
