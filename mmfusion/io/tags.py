"""Reading DICOM headers: the one place that decides which tags are read and what a file that is not DICOM is."""

from __future__ import annotations

import sys
import warnings
import zlib
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, wraps
from gzip import BadGzipFile
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from isal.igzip_lib import IsalError

from mmfusion.errors import MmfusionError, ReadError
from mmfusion.io.sniff import begins_as_dicom, is_apple_double, is_named_dicom
from mmfusion.io.zipped import opened, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

IDENTITY = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription",
    "SeriesNumber", "ImageType", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames",
)  # fmt: skip
GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence", "SliceVector",
    "NumberOfSlices",
)  # fmt: skip
PIXELS = (
    "PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
_BLOCKS = range(0x10, 0x20)  # where the private blocks of a group are looked for; makers take the first free one


def _private_tags(group: int, *elements: int) -> tuple[int, ...]:
    """The tags of private elements in whichever block, and of the names that reserve the blocks."""
    return tuple(group << 16 | low for b in _BLOCKS for low in (b, *(b << 8 | element for element in elements)))


VALUES: tuple[str | int, ...] = (
    "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "SUVType", "CorrectedImage", "DecayCorrection",
    "PatientWeight", "PatientSize", "PatientSex", "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ActualFrameDuration",
    "TimezoneOffsetFromUTC",
    *_private_tags(0x0009, 0x0D),  # GE: date and time of the scan
    *_private_tags(0x7053, 0x00, 0x09),  # Philips: SUV, and Bq/mL, per stored value
)  # fmt: skip
FRAMES = (
    "TemporalPositionIdentifier", "FrameReferenceTime", "TriggerTime", "EchoTime", "DiffusionBValue", "InversionTime",
    "FlipAngle", "AcquisitionNumber", "ContentDate", "ContentTime", "InstanceNumber", "ComplexImageComponent",
)  # fmt: skip
_HEAD_BYTES = 1 << 15  # the usual header and more; parsing it from memory takes half the time
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010), little and big endian
_Result = TypeVar("_Result")
_DICOMDIR = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_RATIO, _SMALL_BYTES = 200, 64 * 2**20  # inflated to stored, where it is more than small; images reach 2 to 10
NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"  # classic NM image
_POSITION = "ImagePositionPatient"
_SLICES = {f"1.2.840.10008.5.1.4.1.1.{end}" for end in (
    "2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130",
)}  # CT, MR, PET  # fmt: skip


@contextmanager
def lenient_dicom() -> Iterator[None]:
    """Within it pydicom takes values that break the standard's form without a warning (also a decorator).

    Real headers are full of them (over-long text, UIDs with leading zeros); what matters is checked here by meaning.
    """
    _import_gdcm()
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield
    finally:
        config.settings.reading_validation_mode = before


@cache
def _import_gdcm() -> None:
    """Import GDCM before pydicom does: it tries ``import dl``, and would take a folder of that name for a module."""
    there = sys.modules.pop("dl", None)
    sys.modules["dl"] = None  # type: ignore[assignment]  # the import system's word for "cannot be imported"
    try:
        import gdcm  # noqa: F401 (so that it is there when pydicom asks)
    finally:
        del sys.modules["dl"]
        if there is not None:
            sys.modules["dl"] = there


def names_damage(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Decorator of what reads DICOM: elements with values that are none become an error with the name of the file.

    pydicom decodes an element when it is asked for, and raises nearly anything then. The value is not told: where the
    lengths of elements are damaged it may be any other one, such as a name. Too little memory and what the file system
    refuses are named as such.
    """

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> _Result:
        try:
            return function(*args, **kwargs)
        except MmfusionError:
            raise
        except Exception as error:
            where = next(argument for argument in args if isinstance(argument, str | Path))
            if isinstance(error, MemoryError):
                raise ReadError(f"{where}: too little memory to read it; free some, or read fewer at a time") from None
            if isinstance(error, OSError):
                raise _unreadable(where, error) from None
            raise ReadError(
                f"{where}: a DICOM element has a value that cannot be understood ({type(error).__name__}); the file is "
                "damaged, copy or export it again"
            ) from None

    return named


def _unreadable(where: object, error: OSError) -> ReadError:
    reason = error.strerror or type(error).__name__
    return ReadError(f"{where} cannot be read ({reason}); check its permissions and the disk")


def read_tags(path: DicomFile, tags: Collection[str | int] | None = None, *, pixels: bool = False) -> Dataset | None:
    """The header of a DICOM file, only ``tags`` if given; None if the file is not DICOM or is damaged.

    Its attribute ``pixels_at`` is where in the file the element of the pixels begins, if that is known. A file without
    the 128-byte preamble counts as DICOM if it is named so, or begins as a data set does, and has a SOP class; what its
    transfer syntax is, its elements show. A file that ends in ``.gz`` is inflated.

    A slice of CT, MR or PET whose header ends before Rows is damaged, too. A link that leads nowhere is no DICOM.

    Raises:
        ReadError: the file cannot be read, the zip file that it lies in is damaged, or it would inflate to too much.
        MemoryError: as it says.
    """
    try:
        with opened(path) as stream:
            head = stream.read(_HEAD_BYTES)
            magic = head[128:132] == b"DICM"
            if not magic and not is_named_dicom(path.name) and not begins_as_dicom(head):
                return None
            wanted = None if tags is None else _numbers(tuple(tags))
            found = None
            if not pixels:
                with suppress(Exception):  # as where the header is longer
                    found = _parsed(BytesIO(head), wanted, force=not magic)
            if found is None or (found.pixels_at is None and len(head) == _HEAD_BYTES):
                _refuse_bomb(stream, path, 132 if magic else 0)
                stream.seek(0)
                found = _parsed(stream, wanted, force=not magic, pixels=pixels)
        cut_off = _is_cut_off(found) if tags is None or "Rows" in tags else False
        return found if "SOPClassUID" in found and not cut_off else None
    except (ReadError, MemoryError):
        raise
    except (FileNotFoundError, BadGzipFile):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception:  # pydicom raises nearly anything on damaged files; callers count or name them
        return None


def _is_cut_off(header: Dataset) -> bool:
    kinds = (None, "CT", "PT", "MR")
    return "Rows" not in header and header.get("SOPClassUID") in _SLICES and header.get("Modality") in kinds


@lenient_dicom()
def claims_dicom(path: DicomFile) -> bool:
    """True if a file that :func:`read_tags` finds damaged says that it is DICOM, by its content or name."""
    head = head_of(path)
    if is_apple_double(head):
        return False
    if head[128:132] != b"DICM":
        return is_named_dicom(path.name) or begins_as_dicom(head)
    with suppress(Exception):  # pydicom raises nearly anything on damaged files
        return _file_meta(BytesIO(head), 132).get("MediaStorageSOPClassUID") != _DICOMDIR  # which has no SOP class
    return True


def head_of(path: DicomFile) -> bytes:
    """The first bytes of a file, inflated; empty for a broken link, and for what cannot be inflated.

    Raises:
        ReadError: the file cannot be read.
    """
    try:
        with opened(path) as stream:
            return stream.read(_HEAD_BYTES)
    except (FileNotFoundError, BadGzipFile):
        return b""
    except OSError as error:
        raise _unreadable(path, error) from None
    except (EOFError, ValueError, cast("type[Exception]", IsalError)):
        return b""


def _file_meta(stream: BinaryIO, start: int) -> Dataset:
    """The file meta information; the stream then stands where the data set begins."""
    from pydicom.filereader import read_dataset

    stream.seek(start)
    return read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)


def _refuse_bomb(stream: BinaryIO, path: DicomFile, start: int) -> None:
    """Inflate a gzip file, and a deflated data set, piece by piece, before pydicom does as a whole.

    Raises:
        ReadError: it grows to too much.
    """
    if path.suffix.lower() == ".gz":
        stored, inflated = stored_bytes(path), 0
        while chunk := stream.read(_HEAD_BYTES):
            inflated += len(chunk)
            _refuse_growth(path, stored, inflated)
    if _file_meta(stream, start).get("TransferSyntaxUID") != _DEFLATED:
        return
    inflating, stored, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while chunk := stream.read(_HEAD_BYTES):
        stored += len(chunk)
        inflated += len(inflating.decompress(chunk))
        _refuse_growth(path, stored, inflated)


def _refuse_growth(path: DicomFile, stored: int, inflated: int) -> None:
    if inflated > max(_SMALL_BYTES, _MOST_RATIO * stored):
        raise ReadError(
            f"{path} would inflate to more than {inflated / 2**20:.0f} MiB, {inflated / stored:.0f} times its "
            "size; that is more than is read from a deflated file. If you trust it, export it uncompressed"
        )


@lru_cache
def _numbers(tags: tuple[str | int, ...]) -> list[int]:
    from pydicom.tag import Tag

    return [Tag(tag) for tag in tags]


def _parsed(stream: BinaryIO, tags: list[int] | None, *, force: bool, pixels: bool = False) -> Dataset:
    """A data set, and as ``pixels_at`` where the element of its pixels begins if it ends before them, else None."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    wanted: list[Any] | None = tags
    found = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=force, specific_tags=wanted)
    if "TransferSyntaxUID" not in found.file_meta:  # as pydicom finds it by the first elements
        implicit, little = found.original_encoding
        guess = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = guess
    position = stream.tell()
    found.pixels_at = position if stream.read(4) in _PIXEL_DATA else None
    return found


@lenient_dicom()
def pixel_bytes(path: DicomFile) -> bytes:
    """The stored pixels of a DICOM file as they lie in it; empty if it has none or cannot be read."""
    with suppress(ReadError):
        header = read_tags(path, pixels=True)
        return bytes(header.get("PixelData") or b"") if header is not None else b""
    return b""


def is_image(header: Dataset) -> bool:
    """True for slices and multi-frame volumes of patient anatomy (not masks, doses, plans, reports, screenshots)."""
    return (
        bool(header.get("Rows"))
        and header.get("Modality") not in ("SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "REG", "OT", "SC")
        and (_POSITION in header or "PerFrameFunctionalGroupsSequence" in header or tomography(header) is not None)
    )


def tomography(header: Dataset) -> Dataset | None:
    """The item that says where the slices of a reconstructed nuclear medicine object begin; None of all else."""
    if header.get("SOPClassUID") != NUCLEAR or not any("RECON" in kind for kind in image_type(header)):
        return None
    return next((item for item in header.get("DetectorInformationSequence") or [] if item.get(_POSITION)), None)


def image_type(header: Dataset) -> list[str]:
    """The words of ImageType (0008,0008), in capitals."""
    return _words(header, "ImageType")


def corrections(header: Dataset) -> list[str]:
    """The words of CorrectedImage (0028,0051), in capitals: ``ATTN``, ``DECY``, ...; empty if it is absent."""
    return _words(header, "CorrectedImage")


def _words(header: Dataset, tag: str) -> list[str]:
    return [str(part).upper() for part in listed(header.get(tag))]


def series_name(header: Dataset) -> str:
    """The key of a series in a folder: its SeriesInstanceUID, else modality, number, study and frame of reference."""
    if uid := str(header.get("SeriesInstanceUID") or "").strip():
        return uid
    tags = ("Modality", "SeriesNumber", "StudyInstanceUID", "FrameOfReferenceUID")
    return "-".join(filter(None, (str(header.get(tag) or "").strip() for tag in tags))) or "unnamed"


def is_localizer(header: Dataset) -> bool:
    """True for the scout images from which the scan was planned."""
    return "LOCALIZER" in image_type(header)


def private(header: Dataset, group: int, creator: str, element: int) -> Any:
    """The value of a private element of ``creator``; None if it is absent, or if the block is reserved by another.

    A tag such as (7053,1000) means something only through the name in the element (7053,0010) that reserves its block;
    the same maker may have block 11 in another file (DICOM PS3.5, 7.8.1). Implicit VR files give values as bytes.
    """

    def text(tag: int) -> Any:
        value = header[tag].value if tag in header else None
        return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else value

    owned = (block for block in _BLOCKS if str(text(group << 16 | block) or "").strip() == creator)
    return next((text(group << 16 | block << 8 | element) for block in owned), None)


def listed(value: Any) -> list[Any]:
    """A DICOM value as a list: empty for none, one element for a single one."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def number(value: Any) -> float | None:
    """A DICOM value as a number; None if it is absent, empty or not one."""
    try:
        return float(listed(value)[0])
    except (IndexError, TypeError, ValueError):
        return None


def numbers(value: Any) -> list[float]:
    """A DICOM value as finite numbers; empty if it is absent or one of them is none."""
    found = [number(one) for one in listed(value)]
    return [one for one in found if one is not None] if all(one is not None and isfinite(one) for one in found) else []
