"""DICOM inside zip and gzip files, read in memory: nothing is unpacked to disk, under whatever name.

A zip file comes from outside, so it is not believed: how much it would inflate to is limited before anything is, each
member is read at most as far as its own entry says, and its checksum is compared. Names of members decide nothing
(paths upward, absolute names and links have no effect) and are in no message, for they may hold the patient's.
"""

from __future__ import annotations

import stat
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from isal import igzip

from mmfusion.errors import ReadError

if TYPE_CHECKING:
    from types import TracebackType

_MOST_MEMBERS = 100_000
_MOST_BYTES = 16 * 2**30  # of all members, and of one the limit of a DICOM value
_MOST_BYTES_OF_ONE = 4 * 2**30
_MOST_RATIO = 200  # inflated to stored; slices of a scan reach 2 to 10
_SMALL_BYTES = 256 * 2**20  # below it the ratio does no harm
_CHUNK = 2**20
_GZIP = b"\x1f\x8b"  # how a gzip file begins


class Archive:
    """A zip file that has passed the limits; its members can be read while it is open, in a ``with`` block.

    Raises:
        ReadError: no zip file, damaged, encrypted, or beyond the limits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: ZipFile | None = None
        self._last: tuple[int, bytes] | None = None
        with self:
            infos = [info for info in self.zip.infolist() if not info.is_dir()]
        self._refuse_hostile(infos)
        self.members = [
            Member(self, n, info) for n, info in enumerate(infos) if not stat.S_ISLNK(info.external_attr >> 16)
        ]

    def __enter__(self) -> Archive:
        try:
            self._zip = ZipFile(self.path)
        except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ReadError(f"{self.path} is not a zip file, or is damaged ({error}). Copy it again") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.zip.close()
        self._zip = self._last = None

    def content(self, member: Member) -> bytes:
        """What is in a member; the last one is kept, since a file of many frames is opened for each of them."""
        if self._last is None or self._last[0] != member.number:
            self._last = None  # one at a time
            self._last = member.number, member.inflated()
        return self._last[1]

    @property
    def zip(self) -> ZipFile:
        """The open zip file."""
        if self._zip is None:
            raise RuntimeError(f"{self.path} is closed")
        return self._zip

    def _refuse_hostile(self, infos: list[ZipInfo]) -> None:
        if len(infos) > _MOST_MEMBERS:
            raise ReadError(f"{self.path} holds {len(infos)} files; up to {_MOST_MEMBERS} are read. Unpack it first")
        total, stored = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
        largest = max((info.file_size for info in infos), default=0)
        ratio = total / max(1, min(stored, self.path.stat().st_size))
        if total > _MOST_BYTES or largest > _MOST_BYTES_OF_ONE or (total > _SMALL_BYTES and ratio > _MOST_RATIO):
            raise ReadError(
                f"{self.path} would inflate to {total / 2**30:.1f} GiB, {ratio:.0f} times its size, the largest file "
                f"to {largest / 2**30:.1f} GiB; that is more than is read from a zip file. If you trust it, unpack it"
            )
        if any(info.flag_bits & 0x41 for info in infos):
            raise ReadError(f"{self.path} is encrypted; unpack it with its password first")
        # the others inflate without a limit, or not at all
        if any(info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for info in infos):
            raise ReadError(f"{self.path} is not compressed by deflate, as zip files usually are. Unpack it first")


@dataclass(frozen=True, eq=False)
class Member:
    """A file in a zip file, as far as a path is needed to read DICOM."""

    archive: Archive
    number: int
    info: ZipInfo

    def __str__(self) -> str:
        return f"{self.archive.path} (file {self.number + 1} inside)"

    @property
    def name(self) -> str:
        """The last part of the name, for no message: it says no more than that this may be DICOM."""
        return self.info.filename.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        dot = self.name.rfind(".")
        return self.name[dot:] if dot >= 0 else ""

    @property
    def parent(self) -> Path:
        """The zip file: its folders tell no series apart."""
        return self.archive.path

    def open(self, mode: str = "rb") -> BytesIO:
        """The content, checked against its checksum.

        Raises:
            ReadError: as :meth:`inflated`.
        """
        return BytesIO(self.archive.content(self))

    def inflated(self) -> bytes:
        """The content, checked against its checksum.

        Raises:
            ReadError: it is damaged, or inflates to something else than the zip file says.
        """
        content = BytesIO()
        try:
            with self.archive.zip.open(self.info) as stream:
                while chunk := stream.read(_CHUNK):  # a member that lies of its size inflates no further than that
                    content.write(chunk)
        except (BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError):
            raise ReadError(
                f"{self} is damaged: it does not inflate to what the zip file says of it. Copy the zip file again"
            ) from None
        return content.getvalue()


DicomFile = Path | Member
"""Where a DICOM object is read from."""


def opened(file: DicomFile) -> BinaryIO:
    """The content of a DICOM file to read, inflated if its name ends in ``.gz`` and it is so: no further than read."""
    stored: BinaryIO = file.open("rb")
    if file.suffix.lower() != ".gz":
        return stored
    packed = stored.read(2) == _GZIP
    stored.seek(0)
    if not packed:
        return stored
    if not isinstance(file, Path):
        return cast("BinaryIO", igzip.open(stored, "rb"))
    stored.close()
    return cast("BinaryIO", igzip.open(file, "rb"))


def stored_bytes(file: DicomFile) -> int:
    """The length of a file as it is stored, bytes; of one in a zip file, as it lies there inflated."""
    return file.stat().st_size if isinstance(file, Path) else file.info.file_size
