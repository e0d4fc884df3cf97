"""The text headers of MetaImage and NRRD, checked against the files before ITK, which believes them, reads the voxels.

What they say is defined by https://itk.org/Wiki/ITK/MetaIO/Documentation and https://teem.sourceforge.net/nrrd.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmfusion.errors import ReadError
from mmfusion.io.voxels import refuse_bomb

_LONGEST_HEADER = _BLOCK = 1 << 20
_FARTHEST_MM = 1e9
_META_GEOMETRY = (
    "TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin", "ElementSpacing", "ElementSize",
)  # fmt: skip
_NRRD_GEOMETRY = ("space directions", "space origin", "spacings", "measurement frame")
_META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_NRRD_BYTES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
    "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
    "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4,
    "longlong": 8, "long long": 8, "long long int": 8, "signed long long": 8, "signed long long int": 8, "int64": 8,
    "int64_t": 8, "ulonglong": 8, "unsigned long long": 8, "unsigned long long int": 8, "uint64": 8, "uint64_t": 8,
    "float": 4, "double": 8,
}  # fmt: skip


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels lie, and how many bytes they are once unpacked; ``coding`` is raw, packed or text.

    ``packed_length`` is the number of bytes before unpacking, if the header says it.
    """

    file: Path
    start: int
    count: int
    length: int
    coding: str
    packed_length: int | None = None


def check_text_header(path: Path) -> None:
    """Refuse a header that is not one, or whose voxels are not there.

    Raises:
        ReadError: the header is damaged; the voxels lie in another folder or in several files; their file is missing,
            shorter than the header says, a damaged packing, or one of next to nothing.
    """
    with path.open("rb") as stream:
        raw = stream.read(_LONGEST_HEADER)
    try:
        voxels = _nrrd(path, raw) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta(path, raw)
    except (KeyError, ValueError) as error:
        what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else "a number that is none"
        raise ReadError(f"{path} cannot be read: its header has {what}. Copy or export it again") from None
    held = voxels.file.stat().st_size - voxels.start
    needed = voxels.length if voxels.coding != "text" else 2 * voxels.count - 1  # digits and what parts them
    if voxels.coding == "packed":
        held = _unpacked_length(voxels)
    if held < needed or held <= 0:
        raise ReadError(
            f"{path} cannot be read: its header promises {needed:,} bytes of voxels, {voxels.file} holds "
            f"{max(0, held):,}. Copy or export it again"
        )
    if voxels.coding == "packed":
        refuse_bomb(voxels.file, voxels.count, voxels.length)


def voxels_file_of(path: Path) -> Path:
    """The file that holds the voxels of a MetaImage or NRRD header: the one it names, or itself if it is damaged."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LONGEST_HEADER)
        return (_nrrd(path, raw) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta(path, raw)).file
    except (KeyError, ValueError, OSError, ReadError):
        return path


def _meta(path: Path, raw: bytes) -> _Voxels:
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = raw.find(b"\n", position)
        if end < 0:
            raise KeyError("ElementDataFile")
        key, _, value = raw[position:end].decode("latin1").partition("=")
        fields[key.strip()] = value.strip()
        position = end + 1
    for name in _META_GEOMETRY:
        _check_numbers(fields.get(name, ""))
    sizes = _sizes(path, fields["DimSize"].split(), fields["NDims"])
    size = _META_BYTES[fields["ElementType"].upper().removeprefix("MET_").removesuffix("_ARRAY")]
    length = math.prod(sizes) * size * int(fields.get("ElementNumberOfChannels", 1))
    coding = "packed" if _true(fields, "CompressedData") else "raw" if _true(fields, "BinaryData", "True") else "text"
    packed = int(fields["CompressedDataSize"]) if "CompressedDataSize" in fields else None
    file, start = path, position
    if fields["ElementDataFile"].upper() != "LOCAL":
        file, start = _beside(path, fields["ElementDataFile"]), max(0, int(fields.get("HeaderSize", 0)))
    return _Voxels(file, start, math.prod(sizes), length, coding, packed)


def _true(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[fields.get(name, default).lower()]


def _nrrd(path: Path, raw: bytes) -> _Voxels:
    if not raw.startswith(b"NRRD000"):
        raise KeyError("NRRD")
    ending = re.search(rb"\r?\n\r?\n", raw)
    head = raw[: ending.start()] if ending else raw
    lines = [line for line in head.decode("latin1").splitlines()[1:] if not line.startswith("#")]
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    for name in _NRRD_GEOMETRY:
        _check_numbers(fields.get(name, ""))
    sizes = _sizes(path, fields["sizes"].split(), fields["dimension"])
    length = math.prod(sizes) * _NRRD_BYTES[fields["type"].lower()]
    coding = {"raw": "raw", "gzip": "packed", "gz": "packed"}.get(fields["encoding"].lower(), "text")
    detached = fields.get("data file") or fields.get("datafile")
    if detached:
        return _Voxels(_beside(path, detached), 0, math.prod(sizes), length, coding)
    if not ending:
        raise KeyError("end of the header")
    return _Voxels(path, ending.end(), math.prod(sizes), length, coding)


def _check_numbers(text: str) -> None:
    """Refuse what is no length or direction: ITK does not come to an end with some of them."""
    words = re.findall(r"[^\s(),]+", text)
    if not all(abs(float(word)) < _FARTHEST_MM for word in words if word.lower() not in ("none", "nan")):
        raise ValueError


def _sizes(path: Path, words: list[str], axes: str) -> list[int]:
    sizes = [int(word) for word in words]
    if len(sizes) != int(axes) or min(sizes) < 1:
        raise ReadError(
            f"{path} cannot be read: its header has {axes} axes of sizes {' '.join(words)}. Copy or export it again"
        )
    return sizes


def _beside(path: Path, name: str) -> Path:
    """The file of the voxels, which lies in the folder of its header.

    Raises:
        ReadError: the name leads elsewhere, stands for several files, or no file has it.
    """
    found = PurePosixPath(name.replace("\\", "/"))
    if name.upper().startswith("LIST") or "%" in name:
        raise ReadError(f"{path} has its voxels in several files, which is not read; save it as one file")
    if found.is_absolute() or ".." in found.parts or ":" in name:
        raise ReadError(
            f"{path} has its voxels in {name}, but only a file in the folder of the header is read; move it"
        )
    file = path.parent / found
    if not file.is_file():
        raise ReadError(f"{path} cannot be read: its voxels, {file}, are missing. Copy or export it again")
    return file


def _unpacked_length(voxels: _Voxels) -> int:
    """Bytes that a packed file (zlib or gzip) unpacks to, counted in little memory; at most one more than wanted.

    ITK takes what a damaged packing gives for voxels.
    """
    unpack, total = zlib.decompressobj(47), 0
    left = voxels.file.stat().st_size if voxels.packed_length is None else max(0, voxels.packed_length)
    with voxels.file.open("rb") as stream:
        stream.seek(voxels.start)
        try:
            while total <= voxels.length and not unpack.eof and (block := stream.read(min(left, _BLOCK))):
                left -= len(block)
                while block and total <= voxels.length:
                    total += len(unpack.decompress(block, _BLOCK))
                    block = unpack.unconsumed_tail
            total += len(unpack.flush(_BLOCK))
        except zlib.error:
            return 0
    return total if unpack.eof or total > voxels.length else 0
