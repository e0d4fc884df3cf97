"""Writing a volume as a DICOM series, for simulated studies and for tests of reading."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from mmfusion.errors import GeometryError, OptionError, UnitsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.volume import Volume

_CLASSES = {"CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage, "MR": MRImageStorage}
_PET_UNITS = {"Bq/mL": "BQML", "SUVbw": "GML"}
_HIGHEST = 32767


def save_dicom_series(
    volume: Volume,
    folder: Path | str,
    *,
    modality: str,
    patient_id: str,
    axes: str = "LPS",
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_of_reference: str | None = None,
    tags: Mapping[str, Any] | None = None,
) -> Path:
    """Write a volume as a DICOM series, one file a slice, in Explicit VR Little Endian.

    Values are stored as signed 16-bit integers: CT as HU + 1024, rounded to 1 HU; PET with one rescale slope a slice
    (error at most 1/65534 of the slice's largest value); MR with one slope for the series (likewise, of the volume's
    largest value).

    Args:
        volume: CT in HU, PET in Bq/mL or SUVbw, MR in any unit.
        folder: made if absent; must not hold a series already.
        modality: DICOM's word: ``CT``, ``PT`` or ``MR``.
        patient_id: the subject's identifier; also written as PatientName, which DICOM wants.
        axes: where columns, rows and slices count up to, in the order of the files, one letter of each pair L/R, P/A,
            I/S: ``LPS`` is the usual axial series, ``LPI`` the same with the slices downward, ``PIL`` a sagittal one.
        study_uid, series_uid, frame_of_reference: UIDs; new ones if None (the frame of reference: the volume's own).
        tags: more elements by keyword, which override those written by default (for PET in Bq/mL: everything that the
            SUV needs).

    Returns:
        The folder.

    Raises:
        OptionError: an unknown modality or axes, or a folder that holds DICOM files.
        UnitsError: units that the modality cannot be written in.
        GeometryError: a sheared volume: DICOM slices are rectangles, stacked at right angles.
        VoxelError: voxels that are not finite or all equal.
    """
    folder = Path(folder)
    if modality not in _CLASSES:
        raise OptionError(f"DICOM modality '{modality}' cannot be written. Known: {', '.join(_CLASSES)}")
    if sorted("LPI"["LRPAIS".index(c) // 2] if c in "LRPAIS" else c for c in axes) != ["I", "L", "P"]:
        raise OptionError(f"axes '{axes}' must name one of L/R, one of P/A and one of I/S, as in LPS")
    if folder.is_dir() and any(folder.glob("*.dcm")):
        raise OptionError(f"{folder} already holds DICOM files; give an empty folder")
    units = {"CT": ("HU",), "PT": tuple(_PET_UNITS)}.get(modality)
    if units and volume.units not in units:
        raise UnitsError(f"{volume.name}: {modality} is written in {' or '.join(units)}, found {volume.units}")

    pixels, affine = _stacked(volume.checked(), axes)
    header = _header(volume, modality, patient_id, pixels.shape, affine)
    header.StudyInstanceUID = study_uid or generate_uid()
    header.SeriesInstanceUID = series_uid or generate_uid()
    header.FrameOfReferenceUID = frame_of_reference or volume.frame_of_reference or generate_uid()
    for keyword, value in (tags or {}).items():
        setattr(header, keyword, value)

    # read back, the shared elements stay encoded: writing a slice then encodes only its own, twice as fast
    file = BytesIO()
    _set_slice(header, 1, pixels[0], affine, 1.0)
    header.save_as(file, enforce_file_format=True)
    header = dcmread(BytesIO(file.getvalue()))
    folder.mkdir(parents=True, exist_ok=True)
    largest = float(np.abs(pixels).max())
    for number, plane in enumerate(pixels, 1):
        _set_slice(header, number, plane, affine, largest)
        file = BytesIO()
        header.save_as(file, enforce_file_format=True)
        (folder / f"{number:04d}.dcm").write_bytes(file.getvalue())
    return folder


def _stacked(volume: Volume, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``[slice, row, column]`` with ``axes`` directions, and the affine of (column, row, slice) to LPS mm."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    array = nib.orientations.apply_orientation(volume.array, turn)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.array.shape)
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 1e-4:
        raise GeometryError(
            f"{volume.name}: the axes are not at right angles, which DICOM slices cannot hold; "
            "resample the volume to a grid without shear first"
        )
    return array.T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _numbers(values: Any) -> list[str]:
    """Decimal strings of at most 16 characters, as precise as that allows."""
    return [format_number_as_ds(float(value)) for value in values]


def _header(volume: Volume, modality: str, patient_id: str, shape: tuple[int, ...], affine: np.ndarray) -> Dataset:
    """What all slices share."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = _CLASSES[modality]
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY"]
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20000101"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "120000"
    data.Modality = modality
    data.Manufacturer = "mmfusion"
    data.ManufacturerModelName = "mmfusion"
    data.PatientID, data.PatientName = patient_id, patient_id
    data.PatientBirthDate, data.PatientSex = "", ""
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.SeriesNumber, data.AcquisitionNumber = 1, 1
    data.PatientPosition, data.PositionReferenceIndicator = "HFS", ""
    data.ImageOrientationPatient = _numbers((affine[:3, :2] / spacing[:2]).T.ravel())
    # DICOM's PixelSpacing is (between rows, between columns)
    data.PixelSpacing = _numbers([spacing[1], spacing[0]])
    data.SliceThickness = _numbers(spacing[2:])[0]
    data.SpacingBetweenSlices = data.SliceThickness
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = shape[1:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    if modality == "CT":
        data.KVP, data.RescaleType = "120", "HU"
    elif modality == "PT":
        data.Units = _PET_UNITS[volume.units]
        data.NumberOfSlices = shape[0]
        data.SeriesType = ["STATIC", "IMAGE"]
        data.CorrectedImage = ["DECY", "ATTN", "SCAT", "RAN", "NORM"]
        data.DecayCorrection = "START"
        data.CollimatorType, data.ActualFrameDuration, data.FrameReferenceTime = "NONE", "600000", "0"
    else:
        data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "GR", "NONE", ""
        data.MRAcquisitionType, data.EchoTime, data.RepetitionTime, data.EchoTrainLength = "3D", "3", "8", "1"
    return data


def _set_slice(data: Dataset, number: int, plane: np.ndarray, affine: np.ndarray, largest: float) -> None:
    """Turn the shared header into that of slice ``number`` (from 1), with its pixels ``[row, column]``."""
    data.SOPInstanceUID = generate_uid(entropy_srcs=[data.SeriesInstanceUID, str(number)])
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.InstanceNumber = number
    data.ImagePositionPatient = _numbers(affine[:3, 3] + (number - 1) * affine[:3, 2])
    if data.Modality == "CT":
        slope, intercept = "1", -1024
    else:
        peak = float(np.abs(plane).max()) if data.Modality == "PT" else largest
        # the slope as written is the one that counts; raised a little so that the largest value still fits
        slope, intercept = format_number_as_ds((peak or 1.0) / _HIGHEST * (1 + 1e-9)), 0
    if data.Modality == "PT":
        data.ImageIndex = number
    data.RescaleSlope, data.RescaleIntercept = slope, str(intercept)
    stored = np.rint((plane.astype(np.float64) - intercept) / float(slope))
    data.PixelData = np.clip(stored, -_HIGHEST - 1, _HIGHEST).astype("<i2").tobytes()
