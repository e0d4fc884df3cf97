"""Three ways to read voxels between voxels, with one rule at the border; :mod:`mmfusion.volume.sampling` chooses.

All work in voxel indices, on C-contiguous arrays. A voxel of the source reaches half a step beyond its center, with
the value of the edge; what lies farther out is filled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmfusion.volume.displacement import EDGE

_INTERPOLATORS = {0: "sitkNearestNeighbor", 1: "sitkLinear", 3: "sitkBSpline"}
_SAME = 1e-6  # voxels; closer positions are one
_POINTS_AT_ONCE = 1 << 20
_REVERSE = np.eye(4)[[2, 1, 0, 3]]


@dataclass(frozen=True, eq=False)
class Reading:
    """What to read where.

    Attributes:
        array: ``[i, j, k]`` the source.
        shape: of the target.
        index_map: ``[4, 4]`` index of the target to index of the source.
        field: ``[a, b, c, 3]`` displacement in steps of the source, added to what ``index_map`` gives, or None.
        field_map: ``[4, 4]`` index of the target to index of the field.
        order: 0, 1 or 3.
        fill: value outside.
    """

    array: np.ndarray
    shape: tuple[int, int, int]
    index_map: np.ndarray
    field: np.ndarray | None
    field_map: np.ndarray
    order: int
    fill: float

    def reversed(self) -> Reading:
        """The same with the axes of source and target in the other order."""
        return replace(
            self,
            array=self.array.T,
            shape=self.shape[::-1],
            index_map=_REVERSE @ self.index_map @ _REVERSE,
            field=None if self.field is None else self.field[..., ::-1],
            field_map=self.field_map @ _REVERSE,
        )

    def filled(self, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A target with nothing read yet, of its own or another shape."""
        low, high = _limits(self.array.dtype)
        return np.full(shape or self.shape, np.clip(self.fill, low, high), self.array.dtype)


def _limits(kind: np.dtype) -> tuple[float, float]:
    if kind.kind == "b":
        return 0, 1
    limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return float(limits.min), float(limits.max)


def axes_of(matrix: np.ndarray, shape: tuple[int, int, int]) -> list[int] | None:
    """The target axis along which each source axis runs, or None if the grids are oblique to each other.

    Args:
        matrix: ``[4, 4]`` index of the target to index of the source.
        shape: of the target.
    """
    travel = np.abs(matrix[:3, :3]) * np.maximum(np.asarray(shape) - 1, 1)  # voxels, from end to end
    axes = [int(np.argmax(row)) for row in np.abs(matrix[:3, :3])]
    travel[np.arange(3), axes] = 0
    return axes if sorted(axes) == [0, 1, 2] and travel.sum(1).max() < _SAME else None


def read_separable(reading: Reading, axes: list[int], sigma: np.ndarray) -> np.ndarray:
    """Order 0 or 1 on a grid with the axes of the source: one axis after the other, plane by plane.

    The planes stay in the processor's cache, which makes this several times faster than interpolating in 3D. A
    Gaussian before it costs little: along one axis, Gaussian and interpolation are one small matrix.

    Args:
        reading: what to read; without a displacement field.
        axes: from :func:`axes_of`.
        sigma: ``[3]`` of the Gaussian, in source voxels; 0 for none.
    """
    shape = tuple(reading.shape[axis] for axis in axes)  # in the order of the source until the end
    steps = []
    for n, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        position = reading.index_map[n, axis] * np.arange(size) + reading.index_map[n, 3]
        steps.append(_Axis(position, reading.array.shape[n], float(sigma[n]), reading.order))
    first, second, third = steps
    whole = all(step.slice == slice(0, size) for step, size in zip(steps, shape, strict=True))
    out = np.empty(shape, reading.array.dtype) if whole else reading.filled(shape)
    box = out[first.slice, second.slice, third.slice]
    for row in range(len(box)):
        box[row] = third.read(second.read(first.plane(reading.array, row), 0), 1)
    return np.transpose(out, np.argsort(axes))


class _Axis:
    """How the positions of one target axis are read from one source axis: two voxels each, or a band of many."""

    def __init__(self, position: np.ndarray, size: int, sigma: float, order: int) -> None:
        inside = np.flatnonzero((position >= -EDGE) & (position <= size - 1 + EDGE))
        self.slice = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
        position = np.clip(position[self.slice], 0, size - 1)
        near = np.round(position)
        position = np.where(np.abs(position - near) < _SAME, near, position)
        # ITK rounds halves up; the little more keeps noise from deciding
        self.low = np.floor(position + (0.5 + _SAME if order == 0 else 0)).astype(np.intp).clip(0, size - 1)
        self.high = np.minimum(self.low + 1, size - 1)
        self.weight = (position - self.low).astype(np.float32) if order else np.zeros(len(position), np.float32)
        self.between = bool(self.weight.any())
        run = len(self.low) > 0 and bool((np.diff(self.low) == 1).all())
        self.whole: Any = slice(int(self.low[0]), int(self.low[-1]) + 1) if run and not self.between else self.low
        self.band: np.ndarray | None = None
        if sigma > 0:
            from scipy import ndimage

            smooth = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="nearest", truncate=3)
            weight = (position - self.low)[:, None]
            self.band = (smooth[self.low] * (1 - weight) + smooth[self.high] * weight).astype(np.float32)

    def plane(self, source: np.ndarray, row: int) -> np.ndarray:
        """The source at one position of its first axis."""
        if self.band is not None:
            used = np.flatnonzero(self.band[row])
            near = slice(int(used[0]), int(used[-1]) + 1)
            return np.tensordot(self.band[row, near], source[near], 1)
        low, weight = source[self.low[row]], self.weight[row]
        if weight == 0:
            return low
        plane = source[self.high[row]] - low
        plane *= weight
        plane += low
        return plane

    def read(self, plane: np.ndarray, axis: int) -> np.ndarray:
        """A plane at all positions of one of its axes."""
        if self.band is not None:
            return self.band @ plane if axis == 0 else plane @ self.band.T
        if not self.between:
            return plane[self.whole] if axis == 0 else plane[:, self.whole]
        low, high = plane.take(self.low, axis), plane.take(self.high, axis)
        high -= low
        high *= self.weight[:, None] if axis == 0 else self.weight
        high += low
        return high


def read_itk(reading: Reading) -> np.ndarray:
    """Any order on any grid, by SimpleITK. Its axes are ours in the other order, so nothing is transposed."""
    import SimpleITK as sitk  # late: reading headers and checking manifests need no sampler

    image = sitk.GetImageFromArray(reading.array)
    index_map = reading.index_map
    if reading.order:  # not for labels, where it would decide between halves
        index_map = _shrunk(index_map, reading.array.shape)
    if reading.field is None:
        transform = _affine(index_map)
    else:
        to_source = index_map @ np.linalg.inv(reading.field_map)
        steps = reading.field @ np.linalg.inv(to_source[:3, :3]).T  # in voxels of the field
        field = sitk.GetImageFromArray(np.ascontiguousarray(steps[..., ::-1], np.float64), isVector=True)
        # the last is applied first
        to_field = _affine(_shrunk(reading.field_map, reading.field.shape))
        transform = sitk.CompositeTransform([_affine(to_source), sitk.DisplacementFieldTransform(field), to_field])
    out = sitk.Resample(
        image,
        list(reading.shape[::-1]),
        transform,
        getattr(sitk, _INTERPOLATORS[reading.order]),
        [0.0] * 3,
        [1.0] * 3,
        np.eye(3).ravel().tolist(),
        reading.fill,
    )
    return sitk.GetArrayFromImage(out)


def _shrunk(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An index map drawn towards the middle by what EDGE allows beyond half a voxel and ITK does not."""
    size = np.asarray(shape[:3], float)
    scale = 1 - 2 * (EDGE - 0.5) / size
    shrunk = matrix.copy()
    shrunk[:3] *= scale[:, None]
    shrunk[:3, 3] += (size - 1) / 2 * (1 - scale)
    return shrunk


def _affine(matrix: np.ndarray) -> Any:
    import SimpleITK as sitk

    turned = _REVERSE @ matrix @ _REVERSE
    return sitk.AffineTransform(turned[:3, :3].ravel().tolist(), turned[:3, 3].tolist())


def read_torch(reading: Reading, device: str = "cpu") -> np.ndarray:
    """Order 0 or 1 on any grid, by torch, on any device, some slabs of the target at a time.

    Meant for a GPU: on a CPU it gives the same, but takes about half as long again as SimpleITK.
    """
    import torch

    ranges = [torch.arange(n, dtype=torch.float64, device=device) for n in reading.shape]  # float32 is too coarse
    field = None if reading.field is None else _channels(reading.field, device)
    array = _channels(reading.array[..., None], device) if reading.order else None
    flat = reading.array.reshape(-1)
    out = reading.filled()
    rows = max(1, _POINTS_AT_ONCE // (reading.shape[1] * reading.shape[2]))
    for start in range(0, reading.shape[0], rows):
        stop = min(start + rows, reading.shape[0])
        axes = [ranges[0][start:stop], *ranges[1:]]
        position = _positions(reading.index_map, axes)
        if field is not None:
            there = _positions(reading.field_map, axes)
            position += (_grid_sample(field, there) * _inside(there, field.shape[2:])).movedim(0, -1)
        inside = _inside(position, reading.array.shape)
        if array is not None:
            values = torch.where(inside, _grid_sample(array, position)[0], float(reading.fill)).cpu().numpy()
            out[start:stop] = values
        else:  # labels are looked up on the host: torch cannot index all of numpy's integers
            last = position.new_tensor(reading.array.shape) - 1
            i, j, k = torch.minimum(torch.floor(position + 0.5).clamp(min=0), last).long().unbind(-1)
            number = (i * reading.array.shape[1] + j) * reading.array.shape[2] + k
            seen = inside.cpu().numpy()
            out[start:stop][seen] = flat[number.cpu().numpy()[seen]]
    return out


def _channels(array: np.ndarray, device: str) -> Any:
    """``[i, j, k, C]`` to a tensor ``[1, C, i, j, k]``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0), np.float32))[None].to(device)


def _positions(matrix: np.ndarray, axes: list[Any]) -> Any:
    """``[i, j, k, 3]`` the target's indices, mapped."""
    i, j, k = (axis[:, None] * axis.new_tensor(matrix[:3, n]) for n, axis in enumerate(axes))
    return i[:, None, None] + (j[:, None] + k + j.new_tensor(matrix[:3, 3]))


def _inside(position: Any, shape: Any) -> Any:
    last = position.new_tensor(shape) - 1
    return ((position >= -EDGE) & (position <= last + EDGE)).all(-1)


def _grid_sample(channels: Any, position: Any) -> Any:
    """Linear, the edge continued: ``[C, i, j, k]`` at ``[i, j, k, 3]``."""
    from torch.nn.functional import grid_sample

    size = position.new_tensor(channels.shape[2:])
    scaled = ((2 * position + 1) / size - 1).flip(-1).float()  # its axes run the other way, its edges from -1 to 1
    return grid_sample(channels, scaled[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
