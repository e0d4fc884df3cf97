"""Plain pixels of DICOM files, read from where they lie; pydicom decodes everything else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"  # both little endian
_UNDEFINED = 0xFFFFFFFF


def plain_plane(path: DicomFile, header: Dataset, frame: int = 0) -> np.ndarray | None:
    """Stored values ``[rows, columns]`` of one frame, if they are gray, uncompressed and little endian, and all there.

    Bits outside those stored are ignored (DICOM PS3.5, section 8.1.1): they may hold anything.

    Args:
        path: the file.
        header: what :func:`mmfusion.io.tags.read_tags` found in it, with the tags of ``PIXELS``.
        frame: number from 0.

    Returns:
        Integers, signed or not as the header says; None if the pixels are of another kind or do not fit the header.
    """
    layout = _layout(header)
    if layout is None or path.suffix.lower() == ".gz":  # pydicom reads all frames of a packed file at once
        return None
    dtype, unused, shift = layout
    rows, columns = int(header.Rows), int(header.Columns)
    size = rows * columns * dtype.itemsize
    plane = np.empty((rows, columns), dtype)
    with path.open("rb") as stream:
        held = _length(stream, header)
        if held < size * (frame + 1):
            return None
        stream.seek(frame * size, 1)
        if stream.readinto(plane.data) < size:
            return None
    if unused:
        np.left_shift(plane, unused, out=plane)
    return np.right_shift(plane, shift, out=plane) if shift else plane


def _layout(header: Dataset) -> tuple[np.dtype, int, int] | None:
    """Type of the stored values, bits to drop above them and bits to shift down; None if not plain."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    bits, signed = header.get("BitsAllocated"), header.get("PixelRepresentation")
    if (
        header.pixels_at is None
        or syntax not in (_IMPLICIT, _EXPLICIT)
        or header.get("SamplesPerPixel", 1) != 1
        or bits not in (8, 16, 32)
        or signed not in (0, 1)
    ):
        return None
    stored = header.get("BitsStored") or bits
    high = header.get("HighBit", stored - 1)
    if not 0 < stored <= high + 1 <= bits:
        return None
    return np.dtype(f"<{'ui'[signed]}{bits // 8}"), bits - 1 - high, bits - stored


def _length(stream: BinaryIO, header: Dataset) -> int:
    """Go to the value of the pixels' element; its length in bytes, 0 if it has none (PS3.5, section 7.1.2).

    Also 0 if the element is not encoded as the transfer syntax says: pydicom finds out then what is meant. A VR cannot
    be taken for an implicit length, which is even.
    """
    stream.seek(header.pixels_at)
    element = stream.read(8)
    explicit = element[4:6] in (b"OB", b"OW", b"UN")
    if explicit != (header.file_meta.TransferSyntaxUID == _EXPLICIT):
        return 0
    if explicit:
        element += stream.read(4)
    length = struct.unpack("<I", element[-4:])[0] if len(element) >= 8 else 0
    return 0 if length == _UNDEFINED else int(length)
