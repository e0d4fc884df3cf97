"""The planes of pixels in DICOM files, from headers only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.tags import number, numbers, tomography

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

SAME_POSITION_MM = 0.02
_ORIENTATION_TOLERANCE = 1e-3
_LENGTH_TOLERANCE = 1e-4  # of direction cosines, which have length 1
_MOST_SHEAR = 0.087  # cosine of 85 degrees, between a row and a column
_FEW = 0.1  # of all slices; what is more is no stray picture
_LEAST_STACK = 3  # slices of one kind
_POSITION = "PlanePositionSequence", "ImagePositionPatient"
_ORIENTATION = "PlaneOrientationSequence", "ImageOrientationPatient"


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane of pixels: a classic DICOM file, or a frame of a multi-frame one.

    Attributes:
        position: ``[3]`` center of the first pixel, LPS mm.
        axes: ``[2, 3]`` unit vectors along a row (rising column) and down a column (rising row), LPS.
        spacing: along a row and down a column, mm.
        size: columns, rows.
        thickness: distance to the next slice as far as the header says, mm; 0 if it does not.
        scale: length of the direction cosines as stored: of the one that is farther from 1.
        slope: of rescaling; None if it is absent, or 0, which would leave no image.
        intercept: of rescaling; None if it is absent.
    """

    path: DicomFile
    header: Dataset
    frame: int
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]
    thickness: float
    scale: float
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
        stated = "no number" if counted is None else f"{counted:g}"
        raise ReadError(
            f"{path}: {len(frames)} frames are described, but NumberOfFrames is {stated}; the file is damaged, copy or "
            "export it again"
        )
    detector = tomography(header) if counted and not frames else None
    if not frames and not detector and (counted or 0) > 1:
        raise ReadError(
            f"{path} is a classic multi-frame object of {counted:g} frames, whose places the DICOM does not say "
            "(PerFrameFunctionalGroupsSequence (5200,9230) is missing). Export it as an enhanced multi-frame object, "
            "or as one file a slice"
        )
    offsets = _tomographic_offsets(path, header) if detector else [0.0] * len(frames or [None])
    for n, offset in enumerate(offsets):
        tag = partial(frame_tag, path, header, n)
        position = numbers(detector.get(_POSITION[1]) if detector else tag(*_POSITION))
        cosines = numbers(detector.get(_ORIENTATION[1]) if detector else tag(*_ORIENTATION))
        spacing = numbers(tag("PixelMeasuresSequence", "PixelSpacing"))
        if (len(position), len(cosines), len(spacing)) != (3, 6, 2) or not header.get("Columns"):
            raise ReadError(
                f"{path}: DICOM lacks ImagePositionPatient (0020,0032), ImageOrientationPatient (0020,0037), "
                "PixelSpacing (0028,0030) or Columns (0028,0011), or has something else than numbers there; where the "
                "pixels lie cannot be known"
            )
        axes, scale = _directions(path, cosines)
        step = tag("PixelMeasuresSequence", "SpacingBetweenSlices") or tag("PixelMeasuresSequence", "SliceThickness")
        yield Slice(
            path=path,
            header=header,
            frame=n,
            position=np.asarray(position, float) + (offset * normal_of(axes) if offset else 0.0),
            axes=axes,
            spacing=(float(spacing[1]), float(spacing[0])),
            size=(int(header.Columns), int(header.Rows)),
            thickness=abs(number(step) or 0.0),
            scale=scale,
            slope=number(tag("PixelValueTransformationSequence", "RescaleSlope")) or None,
            intercept=number(tag("PixelValueTransformationSequence", "RescaleIntercept")),
        )


def _tomographic_offsets(path: DicomFile, header: Dataset) -> list[float]:
    """How far each frame of a reconstructed NM object lies from the first slice along the normal, mm.

    The sign of SpacingBetweenSlices says to which side the slices are stacked (DICOM PS3.3, C.8.4.15).

    Raises:
        ReadError: the step, or the slice of a frame, is not known.
    """
    count = int(number(header.get("NumberOfFrames")) or 1)
    step = number(header.get("SpacingBetweenSlices"))
    slices = numbers(header.get("SliceVector"))
    if not slices and number(header.get("NumberOfSlices")) == count:
        slices = [n + 1.0 for n in range(count)]
    if not step or len(slices) != count:
        raise ReadError(
            f"{path}: DICOM lacks SpacingBetweenSlices (0018,0088), whose sign says to which side the slices are "
            "stacked, or SliceVector (0054,0080) does not name the slice of each frame; export it again"
        )
    return [(n - 1) * step for n in slices]


def _directions(path: DicomFile, cosines: list[float]) -> tuple[np.ndarray, float]:
    """``[2, 3]`` unit vectors along a row and down a column, and their :attr:`Slice.scale`.

    Raises:
        ReadError: one has no length, or they are far from perpendicular.
    """
    row, column = cosines[:3], cosines[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    shear = sum(a * b for a, b in zip(row, column, strict=True)) / max(math.prod(lengths), 1e-9)
    if min(lengths) < 1e-3 or abs(shear) > _MOST_SHEAR:
        raise ReadError(
            f"{path}: ImageOrientationPatient (0020,0037) is {cosines}, but two perpendicular directions of length 1 "
            "are expected; where the pixels lie cannot be known. Export the series again"
        )
    unit = [[value / lengths[0] for value in row], [value / lengths[1] for value in column]]
    return np.array(unit), max(lengths, key=lambda length: abs(length - 1))


def normal_of(axes: np.ndarray) -> np.ndarray:
    """The unit vector ``[3]`` perpendicular to a plane of ``axes [2, 3]``, LPS."""
    normal = np.cross(*axes)
    return normal / np.linalg.norm(normal)


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


def parallel(slices: list[Slice], source: object) -> tuple[list[Slice], list[Slice]]:
    """The slices of one orientation, size and pixel spacing, and the few others.

    Others are few if they are at most a tenth of all, and no three of them are alike, which would be a stack of its
    own: a reference picture, say, that the scanner has put into the series.

    Raises:
        ReadError: there are more others, so it is not clear which stack is meant.
    """
    groups: list[list[Slice]] = []
    for piece in slices:
        same = next((group for group in groups if not _difference(group[0], piece)), None)
        if same is not None:
            same.append(piece)
        elif are_few(len(groups), len(slices)) or not groups:
            groups.append([piece])
        else:
            raise _several_stacks(groups[0][0], piece, source)
    main, *others = sorted(groups, key=len, reverse=True)
    odd = [piece for group in others for piece in group]
    if odd and (not are_few(len(odd), len(slices)) or len(others[0]) >= _LEAST_STACK):
        raise _several_stacks(main[0], odd[0], source)
    return main, odd


def _several_stacks(one: Slice, other: Slice, source: object) -> ReadError:
    return ReadError(
        f"{source}: the slices have different {_difference(one, other)}; one parallel stack is needed. Keep each stack "
        "in a folder of its own"
    )


def are_few(odd: int, every: int) -> bool:
    """True if so many pictures of a series may be left out of it."""
    return odd <= _FEW * every


def _difference(one: Slice, other: Slice) -> str:
    """In what two slices differ so that they cannot belong to one lattice; empty if in nothing."""
    if np.abs(one.axes - other.axes).max() > _ORIENTATION_TOLERANCE:
        return "orientations"
    if one.size != other.size or any(abs(a - b) > 1e-4 * b for a, b in zip(one.spacing, other.spacing, strict=True)):
        return "sizes or pixel spacings"
    return ""


def unusual_cosines(slices: list[Slice]) -> list[str]:
    """A note if direction cosines were not of length 1."""
    scale = max((piece.scale for piece in slices), key=lambda scale: abs(scale - 1))
    if abs(scale - 1) <= _LENGTH_TOLERANCE:
        return []
    return [f"direction cosines have length {scale:.4g} instead of 1; only their direction is used"]


def places(slices: list[Slice]) -> list[int]:
    """For each of parallel slices, the number from 0 of its position along their normal."""
    along = np.asarray([piece.position for piece in slices]) @ normal_of(slices[0].axes)
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) >= SAME_POSITION_MM)
    return numbers.tolist()
