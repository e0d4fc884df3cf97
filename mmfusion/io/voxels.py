"""Stored voxels to float32 in memory: cast, scaled and turned in one pass, a slab at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.volume import empty_ras

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_BOMB_BYTES, _BOMB_RATIO = 1792 << 20, 200
_SLAB_BYTES = 64 << 20
_BLOCK_WIDTH = 128
_BLOCK_VOXELS = 1 << 16


def empty_voxels(shape: Sequence[int], affine: np.ndarray, source: object) -> np.ndarray:
    """Room for the voxels of a scan, ``[i, j, k]`` of the axes as stored; see :func:`mmfusion.volume.empty_ras`.

    Raises:
        ReadError: there is not so much memory.
    """
    try:
        return empty_ras(shape, affine)
    except (MemoryError, ValueError):  # ValueError: more than an address can name
        sizes = " x ".join(str(n) for n in shape)
        raise ReadError(
            f"{source}: {sizes} voxels do not fit into memory; if the scan is smaller, its header is broken"
        ) from None


def refuse_bomb(path: Path, voxels: int, unpacked: int) -> None:
    """Refuse a packed file that would fill the memory with next to nothing, as no scan of that size does.

    Raises:
        ReadError: more than 1.75 GiB of float32 voxels from a two hundredth of their stored bytes, or less.
    """
    held = path.stat().st_size
    if voxels * 4 > _BOMB_BYTES and unpacked > _BOMB_RATIO * held:
        raise ReadError(
            f"{path} unpacks from {held:,} to {unpacked:,} bytes, which is no scan; if it is a large mask, crop it, or "
            "store it without packing"
        )


def slabs(shape: Sequence[int], voxel_bytes: int) -> Iterator[slice]:
    """Slices along k of a scan ``[i, j, k]`` that are read and filled in one go: they bound the memory beside it."""
    i, j, k = shape
    step = max(1, _SLAB_BYTES // (i * j * voxel_bytes))
    for start in range(0, k, step):
        yield slice(start, min(start + step, k))


def fill(
    out: np.ndarray, stored: np.ndarray, slope: float | np.ndarray = 1.0, intercept: float | np.ndarray = 0.0
) -> None:
    """``out = stored * slope + intercept``, with one rounding.

    The two usually lie in memory along different axes: files have i fastest, a volume in RAS order k. Going block by
    block through a small buffer, whose rows are not a power of two apart, keeps both within the processor's cache,
    which is several times as fast as one assignment.

    Args:
        out: ``[i, j, k]`` float32.
        stored: ``[i, j, k]`` numbers as in the file.
        slope, intercept: a number, or one for each k.
    """
    stretched, shifted = bool(np.any(np.not_equal(slope, 1))), bool(np.any(np.not_equal(intercept, 0)))
    exact = stored.dtype.itemsize <= 2 and not stretched  # 16 bits and a shift need no more than float32
    plain = stored.dtype.newbyteorder("=")
    dtype = np.dtype(plain if not (stretched or shifted) else np.float32 if exact else np.float64)
    slopes, intercepts = (np.broadcast_to(np.asarray(value, dtype), out.shape) for value in (slope, intercept))
    axes = _by_speed(stored, out)
    out, stored, slopes, intercepts = (array.transpose(axes) for array in (out, stored, slopes, intercepts))
    width, depth, length = out.shape
    wide = min(width, _BLOCK_WIDTH)
    deep = max(1, _BLOCK_VOXELS // (wide * length))
    buffer = np.empty((length, deep, wide + 64 // dtype.itemsize), dtype).T  # a cache line between the rows
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is infinite, and refused as such
        for b in range(0, depth, deep):
            for a in range(0, width, wide):
                here = np.s_[a : a + wide, b : b + deep]
                block = buffer[: min(wide, width - a), : min(deep, depth - b)]
                block[...] = stored[here]
                if stretched:
                    block *= slopes[here]
                if shifted:
                    block += intercepts[here]
                out[here] = block


def _by_speed(stored: np.ndarray, out: np.ndarray) -> tuple[int, int, int]:
    """Axes: the one along which ``stored`` lies in memory, the one between, the one along which ``out`` does."""
    first, last = (int(np.argmin(np.abs(array.strides))) for array in (stored, out))
    last = last if last != first else 2 if first != 2 else 0
    return first, 3 - first - last, last
