"""Reading DICOM headers: the one place that decides which tags are read and what a file that is not DICOM is."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, wraps
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from mmfusion.errors import MmfusionError, ReadError

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
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
PIXELS = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_BLOCKS = range(0x10, 0x20)  # where the private blocks of a group are looked for; makers take the first free one


def _private_tags(group: int, *elements: int) -> tuple[int, ...]:
    """The tags of private elements in whichever block, and of the names that reserve the blocks."""
    return tuple(group << 16 | low for b in _BLOCKS for low in (b, *(b << 8 | element for element in elements)))


VALUES: tuple[str | int, ...] = (
    "RescaleSlope", "RescaleIntercept", "Units", "SUVType", "CorrectedImage", "DecayCorrection",
    "PatientWeight", "PatientSize", "PatientSex", "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ActualFrameDuration",
    "TimezoneOffsetFromUTC",
    *_private_tags(0x0009, 0x0D),  # GE: date and time of the scan
    *_private_tags(0x7053, 0x00, 0x09),  # Philips: SUV, and Bq/mL, per stored value
)  # fmt: skip
FRAMES = (
    "TemporalPositionIdentifier", "FrameReferenceTime", "TriggerTime", "EchoTime", "DiffusionBValue", "InversionTime",
    "FlipAngle", "AcquisitionNumber",
)  # fmt: skip
_HEAD_BYTES = 1 << 15  # the usual header and more; parsing it from memory takes half the time
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010), little and big endian
_Result = TypeVar("_Result")
_SUFFIXES = {".dcm", ".ima", ".dicom"}


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
        import gdcm  # noqa: F401
    finally:
        del sys.modules["dl"]
        if there is not None:
            sys.modules["dl"] = there


def names_damage(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Decorator of what reads DICOM: elements with values that are none become an error with the name of the file.

    pydicom decodes an element when it is asked for, and raises nearly anything then. The value is not told: where the
    lengths of elements are damaged it may be any other one, such as a name.
    """

    @wraps(function)
    def named(*args: Any, **kwargs: Any) -> _Result:
        try:
            return function(*args, **kwargs)
        except MmfusionError:
            raise
        except Exception as error:
            where = next(argument for argument in args if isinstance(argument, str | Path))
            raise ReadError(
                f"{where}: a DICOM element has a value that cannot be understood ({type(error).__name__}); the file is "
                "damaged, copy or export it again"
            ) from None

    return named


def read_tags(path: DicomFile, tags: Collection[str | int] | None = None, *, pixels: bool = False) -> Dataset | None:
    """The header of a DICOM file, only ``tags`` if given; None if the file is not DICOM or is damaged.

    Its attribute ``pixels_at`` is where in the file the element of the pixels begins, if that is known. A file without
    the 128-byte preamble counts as DICOM if it is named so and has a SOP class.

    Raises:
        ReadError: the zip file that it lies in is damaged.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            magic = head[128:132] == b"DICM"
            if not magic and path.suffix.lower() not in _SUFFIXES:
                return None
            wanted = None if tags is None else _numbers(tuple(tags))
            found = None
            if not pixels:
                with suppress(Exception):  # as where the header is longer
                    found = _parsed(BytesIO(head), wanted, force=not magic)
            if found is None or (found.pixels_at is None and len(head) == _HEAD_BYTES):
                stream.seek(0)
                found = _parsed(stream, wanted, force=not magic, pixels=pixels)
    except ReadError:
        raise
    except Exception:  # pydicom raises nearly anything on damaged files; callers count or name them
        return None
    return found if "SOPClassUID" in found else None


@lru_cache
def _numbers(tags: tuple[str | int, ...]) -> list[int]:
    from pydicom.tag import Tag

    return [Tag(tag) for tag in tags]


def _parsed(stream: BinaryIO, tags: list[int] | None, *, force: bool, pixels: bool = False) -> Dataset:
    """A data set, and as ``pixels_at`` where the element of its pixels begins if it ends before them, else None."""
    import pydicom

    wanted: list[Any] | None = tags
    found = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=force, specific_tags=wanted)
    position = stream.tell()
    found.pixels_at = position if stream.read(4) in _PIXEL_DATA else None
    return found


def is_image(header: Dataset) -> bool:
    """True for slices and multi-frame volumes of patient anatomy (not masks, doses, plans, reports, screenshots)."""
    return (
        bool(header.get("Rows"))
        and header.get("Modality") not in ("SEG", "RTDOSE", "RTIMAGE", "PR", "KO", "SR", "REG", "OT", "SC")
        and ("ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header)
    )


def is_localizer(header: Dataset) -> bool:
    """True for the scout images from which the scan was planned."""
    return "LOCALIZER" in [str(part).upper() for part in listed(header.get("ImageType"))]


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
