"""Reading DICOM headers: the one place that decides which tags are read and what a file that is not DICOM is."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
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
VALUES = (
    "RescaleSlope", "RescaleIntercept", "SamplesPerPixel", "Units", "SUVType", "CorrectedImage", "DecayCorrection",
    "PatientWeight", "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime", "AcquisitionDate",
    "AcquisitionTime", "AcquisitionDateTime", "ActualFrameDuration",
    0x00090010,  # GE's block of private tags, and in it
    0x0009100D,  # date and time of the scan
    0x70530010,  # Philips' block, and in it
    0x70531000,  # SUV per stored value
    0x70531009,  # Bq/mL per stored value
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
    from pydicom import config

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield
    finally:
        config.settings.reading_validation_mode = before


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
