"""Reading DICOM headers: the one place that decides which tags are read and what a file that is not DICOM is."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from mmfusion.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

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
_BLOCKS = range(0x10, 0x20)  # where the private blocks of a group are looked for; makers take the first free one


def _private_tags(group: int, *elements: int) -> tuple[int, ...]:
    """The tags of private elements in whichever block, and of the names that reserve the blocks."""
    return tuple(group << 16 | low for b in _BLOCKS for low in (b, *(b << 8 | element for element in elements)))


VALUES: tuple[str | int, ...] = (
    "RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "Units", "SUVType", "CorrectedImage", "DecayCorrection",
    "PatientWeight", "PatientSize", "PatientSex", "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ActualFrameDuration",
    *_private_tags(0x0009, 0x0D),  # GE: date and time of the scan
    *_private_tags(0x7053, 0x00, 0x09),  # Philips: SUV, and Bq/mL, per stored value
)  # fmt: skip
FRAMES = (
    "TemporalPositionIdentifier", "FrameReferenceTime", "TriggerTime", "EchoTime", "DiffusionBValue", "InversionTime",
    "FlipAngle", "AcquisitionNumber",
)  # fmt: skip
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


def read_tags(path: DicomFile, tags: Collection[str | int] | None = None, *, pixels: bool = False) -> Dataset | None:
    """The header of a DICOM file, only ``tags`` if given; None if the file is not DICOM or is damaged.

    A file without the 128-byte preamble counts as DICOM if it is named so and has a SOP class.

    Raises:
        ReadError: the zip file that it lies in is damaged.
    """
    import pydicom

    try:
        with path.open("rb") as stream:
            magic = stream.read(132)[128:] == b"DICM"
            if not magic and path.suffix.lower() not in _SUFFIXES:
                return None
            stream.seek(0)
            wanted: list[Any] | None = None if tags is None else list(tags)
            found = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=not magic, specific_tags=wanted)
    except ReadError:
        raise
    except Exception:  # pydicom raises nearly anything on damaged files; callers count or name them
        return None
    return found if "SOPClassUID" in found else None


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
