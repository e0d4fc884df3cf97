"""NIfTI-1 and NIfTI-2: an affine that can be trusted, and the voxels in one cast."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from isal import igzip, igzip_lib

from mmfusion.errors import GeometryError, OptionError, OrientationError, ReadError
from mmfusion.io.frame_choice import FrameChoice, FrameTimes, choose_frames
from mmfusion.io.header import Opened, static_shape
from mmfusion.io.voxels import empty_voxels, fill, refuse_bomb, slabs
from mmfusion.volume import Grid

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader

    from nibabel.freesurfer.mghformat import MGHHeader
    from nibabel.nifti1 import Nifti1Header


_CHUNK_BYTES = 1 << 19  # inflated at once: what stays in the cache is compared with the checksum fastest
_DAMAGED = (OSError, EOFError, zlib.error, cast("type[Exception]", igzip_lib.IsalError))
_QUATERNION_TOLERANCE = 1e-3
_DISAGREE_MM = 1.0
_DISAGREE_SIZE = 0.01  # of the size of a voxel
_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # xyzt_units: meter, millimeter, micrometer
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def open_nifti(
    path: Path,
    *,
    kind: str = "",
    frame: str | int | None = None,
    assume_orientation: str | None = None,
    times: Callable[[], FrameTimes] = list,
) -> Opened:
    """Read a NIfTI header (``.nii``, ``.nii.gz``, or a ``.hdr``/``.img`` pair); ``times`` gives those of its frames.

    Raises:
        ReadError: not NIfTI, truncated, voxels that are not plain numbers, or several frames.
        OrientationError: the quaternion is broken, or there is no orientation and none is assumed.
        GeometryError: a 2D image or a singular affine.
    """
    header = nifti_header(path)
    shape = tuple(int(n) for n in header.get_data_shape())
    spatial, frames = static_shape(shape, path)
    choice = choose_frames(frame, frames, f"shape {shape}", path, times)
    if header.get_data_dtype().kind not in "iuf":
        raise ReadError(f"{path} holds {header.get_value_label('datatype')} voxels; plain numbers are expected")
    notes: list[str] = []
    doubts: list[str] = []
    affine = affine_of(header, spatial, path, assume_orientation, notes, doubts)
    notes += [choice.note] if choice.note else []
    doubts += choice.doubts

    image = pair_of(path)[1]
    read = partial(read_voxels, image, header, spatial, affine, frames, choice)
    return Opened(path, spatial, affine, read, kind=kind, frames=frames, choice=choice, notes=notes, doubts=doubts)


def read_voxels(
    path: Path,
    header: Nifti1Header | MGHHeader,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    frames: int,
    choice: FrameChoice,
) -> np.ndarray:
    """``[i, j, k]`` float32 of the chosen frame, or the weighted mean of those chosen.

    Args:
        path: the file of the voxels, which lie with i fastest.
        header: what says of which type they are, where they begin, and how they are scaled.
        shape, frames: how many there are.
        affine: ``[4, 4]`` index to RAS, mm.

    Raises:
        ReadError: they are not all there, or damaged.
    """
    dtype, start = header.get_data_dtype(), int(header.get_data_offset())
    slope, intercept = header.get_slope_inter()
    slope, intercept = (1.0, 0.0) if slope is None else (slope, intercept)
    size = math.prod(shape) * dtype.itemsize
    try:
        _check_length(path, start + size * frames)
        refuse_bomb(path, math.prod(shape), size)
        out = empty_voxels(shape, affine, path)
        with _opened(path) as stream:
            stream.seek(start + size * choice.indices[0])
            if choice.single:
                for part in slabs(shape, dtype.itemsize):
                    fill(out[:, :, part], _next(stream, out[:, :, part].shape, dtype), slope, intercept)
            else:
                total = np.zeros(shape, order="F")
                for index, weight in zip(choice.indices, choice.weights, strict=True):
                    stream.seek(start + size * index)
                    total += weight * _next(stream, shape, dtype).astype(float)
                fill(out, total / sum(choice.weights), slope, intercept)
            stream.read(1)  # behind the last voxel a packed file is compared with its checksum
    except _DAMAGED as error:
        raise ReadError(f"{path} cannot be read: {_reason(error)}. Copy or export it again") from None
    return out


def _opened(path: Path) -> BufferedReader:
    return cast("BufferedReader", igzip.open(path, "rb")) if _is_packed(path) else path.open("rb")


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".mgz")


def _next(stream: BufferedReader, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The next voxels ``[i, j, k]`` of an uncompressed stream, i fastest."""
    stored = np.empty(shape, dtype, order="F")
    room = stored.T.reshape(-1).view(np.uint8).data
    while room:
        count = stream.readinto(room[:_CHUNK_BYTES])
        if not count:
            raise EOFError
        room = room[count:]
    return stored


def _check_length(path: Path, needed: int) -> None:
    """Refuse a header that promises more bytes than there are, before room is made for them.

    Raises:
        ReadError: the file is shorter.
    """
    held = path.stat().st_size
    if _is_packed(path):
        with path.open("rb") as packed:
            packed.seek(-4, os.SEEK_END)
            said = int.from_bytes(packed.read(4), "little")  # RFC 1952: the length, modulo 2**32
        held = said if needed <= said else _unpacked_length(path, needed)
    if held < needed:
        raise EOFError(f"the header promises {needed:,} bytes, there are {held:,}")


def _unpacked_length(path: Path, enough: int) -> int:
    """Count the bytes of a packed file, in little memory; stops at ``enough``."""
    buffer, total = bytearray(1 << 20), 0
    with _opened(path) as stream:
        while total < enough and (count := stream.readinto(buffer)):
            total += count
    return total


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else "the file ends too early"
    return text.rstrip(". ")


def pair_of(path: Path) -> tuple[Path, Path]:
    """Where the header and the voxels are: one file, or ``.hdr`` and ``.img``, each packed (``.gz``) or not."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith((".hdr", ".img")):
        return path, path

    def part(ending: str) -> Path:
        if name.endswith(ending):
            return path
        stem, packings = path.name[: len(name) - 4], ("", ".gz") if name == path.name.lower() else (".gz", "")
        places = [path.with_name(f"{stem}{ending}{packing}") for packing in packings]
        return next((place for place in places if place.exists()), places[0])

    return part(".hdr"), part(".img")


def first_bytes(path: Path, count: int, expected: str) -> bytes:
    """The first bytes of a file, inflated if it is packed by its name.

    Raises:
        ReadError: it cannot be read, or is packed by its name only.
    """
    try:
        with gzip.open(path) if _is_packed(path) else path.open("rb") as stream:
            return stream.read(count)
    except _DAMAGED as error:
        with suppress(OSError), path.open("rb") as stream:
            if _is_packed(path) and stream.read(2) != b"\x1f\x8b":
                plain = path.with_suffix("" if path.suffix.lower() == ".gz" else ".mgh").name
                raise ReadError(
                    f"{path} is not {expected}, or is damaged: it is not compressed, as its name says. Call it {plain} "
                    f"if it is {expected}"
                ) from None
        raise ReadError(f"{path} is not {expected}, or is damaged: {_reason(error)}") from None


def nifti_header(path: Path) -> Nifti1Header:
    """The header of a NIfTI file, without nibabel's own checks, which stop at headers that can be repaired."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    block = first_bytes(path, 540, "a NIfTI file")
    if block[344:347] in (b"n+1", b"ni1") and block[347:348] == b"\0":
        kind, size = Nifti1Header, 348
    elif block[4:7] in (b"n+2", b"ni2") and len(block) == 540:
        kind, size = Nifti2Header, 540
    else:
        if b"\x5c\x01\0\0" in (block[:4], block[3::-1]):  # the length of its header, 348
            raise OrientationError(
                f"{path} is Analyze 7.5, which does not say left and right. Export the scan as NIfTI or DICOM"
            )
        raise ReadError(f"{path} is not a NIfTI file: its header does not say so")
    header = kind(block[:size], check=False)
    try:
        header.get_data_dtype(), header.get_data_shape(), header.get_slope_inter()
        first = size + 4 if block[344:346] == b"n+" or block[4:6] == b"n+" else 0  # behind the header and its flags
        if header.get_data_offset() < first:
            raise ValueError(f"voxels begin at byte {header.get_data_offset()}, within the header")
    except (HeaderDataError, KeyError, OverflowError, ValueError) as error:
        raise ReadError(f"{path} has a damaged NIfTI header: {_reason(error)}") from None
    return header


def affine_of(
    header: Nifti1Header,
    shape: tuple[int, int, int],
    path: Path,
    assumed: str | None,
    notes: list[str],
    doubts: list[str],
) -> np.ndarray:
    """``[4, 4]`` voxel index to RAS mm: the sform if there is one, else the qform, else what is assumed.

    Raises:
        OrientationError: the quaternion is broken, or there is no orientation and none is assumed.
        OptionError: ``assumed`` does not name three axes.
    """
    unit = int(header["xyzt_units"]) & 7
    scale = np.diag([*[_MM_PER_UNIT.get(unit, 1.0)] * 3, 1.0])
    if unit in (1, 3):
        notes.append(f"lengths are in {'meters' if unit == 1 else 'micrometers'}; converted to mm")
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], float))
    sform = header.get_sform() if header["sform_code"] > 0 else None
    if sform is not None and abs(np.linalg.det(sform[:3, :3])) < 1e-12 and header["qform_code"] > 0:
        sform = None
        notes.append("the sform is singular; the qform is used")
    qform = None
    if header["qform_code"] > 0:
        qform = _qform(header, pixdim, path, notes, needed=sform is None)
    if sform is not None and qform is not None:
        apart = _apart_mm(scale @ sform, scale @ qform, shape)
        if apart > _DISAGREE_MM:
            notes.append(f"sform and qform disagree by up to {apart:.1f} mm; the sform is used")
    if sform is not None:
        contradiction = _contradiction(sform, pixdim)
        if contradiction and header["qform_code"] == 0 and (pixdim == 1).all():  # as a new header has it
            notes.append("pixdim was not set (1 x 1 x 1); the voxel size of the sform is used")
        else:
            doubts += contradiction
        return scale @ sform
    if qform is not None:
        return scale @ qform
    if assumed is None:
        raise OrientationError(
            f"{path} has no orientation (qform and sform codes are 0); left and right are unknown. "
            "Give --assume-orientation LAS (or what its axes are) to accept it"
        )
    notes.append(f"no orientation in the file; {assumed.upper()} was assumed")
    return scale @ _assumed_affine(assumed, pixdim, shape)


def _contradiction(sform: np.ndarray, pixdim: np.ndarray) -> list[str]:
    """A sentence if the voxels of the sform are not as large as pixdim says."""
    size = np.linalg.norm(sform[:3, :3], axis=0)
    said = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, size)
    if np.abs(size / said - 1).max() <= _DISAGREE_SIZE:
        return []
    by_sform, by_pixdim = (" x ".join(f"{length:.4g}" for length in lengths) for lengths in (size, said))
    return [
        f"voxels are {by_sform} by the sform, which is used, but {by_pixdim} by pixdim. Compare the size with the "
        "original scan, and correct the one that is wrong"
    ]


def _qform(header: Nifti1Header, pixdim: np.ndarray, path: Path, notes: list[str], needed: bool) -> np.ndarray | None:
    """The affine of the quaternion (NIfTI-1 standard, method 2)."""
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    excess = b * b + c * c + d * d - 1
    if not excess <= _QUATERNION_TOLERANCE:  # also true of NaN
        if not needed:
            notes.append(f"the qform's quaternion is broken (squared length {excess + 1:.6g}); the sform is used")
            return None
        raise OrientationError(
            f"{path}: the quaternion of the qform has squared length {excess + 1:.6g}, but must not exceed 1; "
            "the orientation cannot be trusted. Export the file again, or set a right sform"
        )
    if excess > 1e-6 and needed:  # float32 rounding alone reaches a few 1e-7
        notes.append(f"the qform's quaternion was {excess:.1g} over unit length; normalized")
    length = np.sqrt(max(1.0, 1 + excess))
    b, c, d = b / length, c / length, d / length
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * pixdim * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _apart_mm(a: np.ndarray, b: np.ndarray, shape: tuple[int, int, int]) -> float:
    try:
        return float(np.linalg.norm(Grid(shape, a).corners() - Grid(shape, b).corners(), axis=-1).max())
    except GeometryError:
        return float("inf")


def _assumed_affine(code: str, spacing: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Axes as the letters say, the middle of the volume at the origin of the world."""
    if len(code) != 3 or {_DIRECTIONS.get(letter, (9,))[0] for letter in code.upper()} != {0, 1, 2}:
        raise OptionError(
            f"assume_orientation needs one letter each of L/R, A/P and S/I in the order of the axes, as in LAS; "
            f"found '{code}'"
        )
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(code.upper()):
        world, sign = _DIRECTIONS[letter]
        affine[world, axis] = sign * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine
