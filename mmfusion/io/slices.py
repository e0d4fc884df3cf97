"""DICOM planes and the regular lattice that they form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.tags import number, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

_POSITION_TOLERANCE_MM = 0.02
_POSITION_TOLERANCE = 0.01  # of the slice spacing
_ORIENTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of pixels: a classic DICOM file, or a frame of a multi-frame one.

    Attributes:
        position: ``[3]`` center of the first pixel, LPS mm.
        axes: ``[2, 3]`` unit vectors along a row (rising column) and down a column (rising row), LPS.
        spacing: along a row and down a column, mm.
        size: columns, rows.
        thickness: distance to the next slice as far as the header says, mm; 0 if it does not.
    """

    path: DicomFile
    header: Dataset
    frame: int
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    thickness: float
    slope: float | None
    intercept: float | None


def slices_of(path: DicomFile, header: Dataset) -> Iterator[Slice]:
    """The planes in a file: one of a classic object, one for each frame of a multi-frame one.

    Raises:
        ReadError: position, orientation or pixel spacing is missing; the frames are not as many as counted, or are
            not described one by one.
    """
    frames = header.get("PerFrameFunctionalGroupsSequence")
    counted = number(header.get("NumberOfFrames"))
    if frames and "NumberOfFrames" in header and counted != len(frames):
        told = "no number" if counted is None else f"{counted:g}"
        raise ReadError(
            f"{path}: {len(frames)} frames are described, but NumberOfFrames is {told}; the file is damaged, copy or "
            "export it again"
        )
    if not frames and (counted or 0) > 1:
        raise ReadError(
            f"{path} is a classic multi-frame object of {counted:g} frames, whose places the DICOM does not say "
            "(PerFrameFunctionalGroupsSequence (5200,9230) is missing). Export it as an enhanced multi-frame object, "
            "or as one file a slice"
        )
    for n in range(len(frames or [None])):
        tag = partial(frame_tag, path, header, n)
        position = numbers(tag("PlanePositionSequence", "ImagePositionPatient"))
        axes = numbers(tag("PlaneOrientationSequence", "ImageOrientationPatient"))
        spacing = numbers(tag("PixelMeasuresSequence", "PixelSpacing"))
        if (len(position), len(axes), len(spacing)) != (3, 6, 2) or not header.get("Columns"):
            raise ReadError(
                f"{path}: DICOM lacks ImagePositionPatient (0020,0032), ImageOrientationPatient (0020,0037), "
                "PixelSpacing (0028,0030) or Columns (0028,0011), or has something else than numbers there; where the "
                "pixels lie cannot be known"
            )
        step = tag("PixelMeasuresSequence", "SpacingBetweenSlices") or tag("PixelMeasuresSequence", "SliceThickness")
        yield Slice(
            path=path,
            header=header,
            frame=n,
            position=np.asarray(position, float),
            axes=np.asarray(axes, float).reshape(2, 3),
            spacing=(float(spacing[1]), float(spacing[0])),
            size=(int(header.Columns), int(header.Rows)),
            thickness=abs(number(step) or 0.0),
            slope=number(tag("PixelValueTransformationSequence", "RescaleSlope")),
            intercept=number(tag("PixelValueTransformationSequence", "RescaleIntercept")),
        )


def frame_tag(path: DicomFile, header: Dataset, frame: int, macro: str, name: str) -> Any:
    """A tag of one plane: of a frame's functional group ``macro``, or of the file if it has no frames or no macro.

    Raises:
        ReadError: the value is damaged.
    """
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames or not macro:
        return header.get(name)
    try:
        shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
        group = frames[frame].get(macro) or shared.get(macro) or [{}]
        return group[0].get(name)
    except Exception:  # pydicom converts values when they are asked for, and raises nearly anything on damaged ones
        raise ReadError(f"{path}: {name} of frame {frame} is damaged. Copy or export the series again") from None


def check_parallel(slices: list[Slice], source: object) -> None:
    """Refuse planes that cannot belong to one lattice.

    Raises:
        ReadError: slices with different orientation, spacing or size.
    """
    first = slices[0]
    for other in slices[1:]:
        if np.abs(other.axes - first.axes).max() > _ORIENTATION_TOLERANCE:
            raise ReadError(f"{source}: the slices have different orientations; one parallel stack is needed")
        if other.size != first.size or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise ReadError(f"{source}: the slices have different sizes or pixel spacings; one stack is needed")


def places(slices: list[Slice]) -> list[int]:
    """For each of parallel slices, the number from 0 of its position along their normal."""
    along = np.asarray([piece.position for piece in slices]) @ np.cross(*slices[0].axes)
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) >= _POSITION_TOLERANCE_MM)
    return numbers.tolist()


def stack(slices: list[Slice], source: object) -> tuple[np.ndarray, list[int]]:
    """The lattice that parallel slices (:func:`check_parallel`) form.

    Args:
        slices: in any order.
        source: what messages call them.

    Returns:
        ``[4, 4]`` (column, row, slice) index to LPS mm, and the order of the slices along their normal. A gantry
        tilt (slices shifted sideways by a constant step) gives a sheared affine.

    Raises:
        ReadError: missing or repeated slices, unequal steps, or a single slice of unknown thickness.
    """
    first = slices[0]
    normal = np.cross(first.axes[0], first.axes[1])
    positions = np.asarray([piece.position for piece in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    if len(slices) > 1:
        _check_complete(positions @ normal, source)
        start, step = _even_steps(positions, normal, source)
    elif first.thickness:
        start, step = positions[0], normal * first.thickness
    else:
        raise ReadError(f"{source}: a single slice whose thickness the DICOM does not say (0018,0050)")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.axes[0] * first.spacing[0], first.axes[1] * first.spacing[1]
    affine[:3, 2], affine[:3, 3] = step, start
    return affine, [int(n) for n in order]


def _tolerance(spacing: float) -> float:
    return max(_POSITION_TOLERANCE_MM, _POSITION_TOLERANCE * spacing)


def _check_complete(along: np.ndarray, source: object) -> None:
    """Refuse repeated and missing slices, by their sorted positions ``[N]`` along the normal, mm."""
    gaps = np.diff(along)
    repeated = int((gaps < _POSITION_TOLERANCE_MM).sum())
    if repeated:
        places = len(gaps) + 1 - repeated
        raise ReadError(
            f"{source}: {len(gaps) + 1} slices at {places} positions; each position may occur once. "
            "If the series holds several frames (time, echo, b-value), no tag tells them apart; keep one of them"
        )
    usual = float(np.median(gaps))
    steps = np.rint(gaps / usual)
    if (np.abs(gaps - steps * usual) <= 2 * _tolerance(usual)).all() and (steps > 1).any():
        where = along[int(np.argmax(steps > 1))]
        raise ReadError(
            f"{source}: {int((steps - 1).sum())} of {int(steps.sum()) + 1} slices are missing, the first after "
            f"{where:.1f} mm along the slice axis (spacing {usual:.2f} mm). Copy or export the series again"
        )


def _even_steps(positions: np.ndarray, normal: np.ndarray, source: object) -> tuple[np.ndarray, np.ndarray]:
    """First position and step, mm, of the straight line of even steps that fits sorted positions ``[N, 3]`` best."""
    count = np.arange(len(positions)) - (len(positions) - 1) / 2
    step = count @ positions / (count @ count)
    start = positions.mean(0) + count[0] * step
    away = positions - start - np.arange(len(positions))[:, None] * step
    tolerance = _tolerance(float(np.linalg.norm(step)))
    if np.abs(away @ normal).max() > tolerance:
        gaps = np.diff(positions @ normal)
        raise ReadError(
            f"{source}: slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; equal steps are needed. "
            "Resample the series to even slices first"
        )
    sideways = float(np.linalg.norm(away, axis=1).max())
    if sideways > tolerance:
        raise ReadError(
            f"{source}: slices are shifted sideways by up to {sideways:.2f} mm from a straight stack; "
            "resample the series first"
        )
    return start, step
