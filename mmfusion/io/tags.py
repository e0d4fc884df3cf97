"""Reading DICOM headers: the one place that decides which tags are read and what a file that is not DICOM is."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from mmfusion.errors import MmfusionError, ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pydicom import Dataset

IDENTITY = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription",
    "SeriesNumber", "ImageType", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames",
)  # fmt: skip
GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
PIXELS = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
VALUES = (
    "RescaleSlope", "RescaleIntercept", "Units", "SUVType", "CorrectedImage", "DecayCorrection",
    "PatientWeight", "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime", "AcquisitionDate",
    "AcquisitionTime", "AcquisitionDateTime", "ActualFrameDuration",
    0x00090010,  # GE's block of private tags, and in it
    0x0009100D,  # date and time of the scan
    0x70530010,  # Philips' block, and in it
    0x70531000,  # SUV per stored value
    0x70531009,  # Bq/mL per stored value
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
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield
    finally:
        config.settings.reading_validation_mode = before


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


def read_tags(path: Path, tags: Collection[str | int] | None = None, *, pixels: bool = False) -> Dataset | None:
    """The header of a DICOM file, only ``tags`` if given; None if the file is not DICOM or is damaged.

    Its attribute ``pixels_at`` is where in the file the element of the pixels begins, if that is known. A file without
    the 128-byte preamble counts as DICOM if it is named so and has a SOP class.
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


def private(header: Dataset, tag: int) -> Any:
    """The value of a private tag; None if absent. Implicit VR files give it as bytes."""
    value = header[tag].value if tag in header else None
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else value


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
