"""DICOM files with a known answer, and as awkward as a test wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

PET_TAGS = {
    "Modality": "PT",
    "Units": "BQML",
    "CorrectedImage": ["DECY", "ATTN"],
    "DecayCorrection": "START",
    "SeriesDate": "20200102",
    "SeriesTime": "100000",
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "100000",
    "PatientWeight": 70,
}


def pet_tags(**tracer) -> dict:
    """A complete PET header: 70 kg, 350 MBq at 09:00, scan at 10:00, half-life one hour (SUV factor 4e-4)."""
    item = Dataset()
    values = {"RadionuclideTotalDose": 350e6, "RadionuclideHalfLife": 3600, "RadiopharmaceuticalStartTime": "090000"}
    for name, value in (values | tracer).items():
        if value is not None:
            setattr(item, name, value)
    return PET_TAGS | {"RadiopharmaceuticalInformationSequence": [item]}


def pet_header(*, without=(), tracer=None, **tags) -> Dataset:
    """One file of :func:`pet_tags`, with other tags and fields of the tracer."""
    found = new_file(**(pet_tags(**(tracer or {})) | tags))
    for name in without:
        delattr(found, name)
    return found


def new_file(sop_class: str = CTImageStorage, **tags) -> Dataset:
    """A data set that can be saved."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "S01", "Secret^Name", "19501231"
    for name, value in tags.items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    spacing=(0.8, 1.1),
    axes=(1, 0, 0, 0, 1, 0),
    origin=(-10.0, 20.0, 30.0),
    step=(0, 0, 2.5),
    slopes=1.0,
    intercept=0.0,
    series_uid=None,
    edit=None,
    **tags,
) -> np.ndarray:
    """Write ``stored [column, row, slice]`` int16, files named and numbered against their order in space.

    ``spacing`` is along a row and down a column; ``edit(dataset, n)`` may change a slice. Returns the ``[4, 4]``
    index to LPS affine that a reader must find.
    """
    count = stored.shape[2]
    slopes = np.broadcast_to(slopes, count)
    series_uid = series_uid or generate_uid()
    base = {
        "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "FrameOfReferenceUID": "1.2.3",
        "StudyInstanceUID": "1.2.840.1", "StudyDate": "20200102", "SeriesNumber": 4, "SeriesDescription": "made",
        "SliceThickness": 9.0,
    }  # fmt: skip
    for n in range(count):
        dataset = new_file(**(base | tags), SeriesInstanceUID=series_uid)
        dataset.ImageOrientationPatient = list(axes)
        dataset.ImagePositionPatient = [round(float(v), 6) for v in np.add(origin, np.multiply(step, n))]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.InstanceNumber = (n * 7) % count + 1
        dataset.Columns, dataset.Rows = stored.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[n]), float(intercept)
        dataset.PixelData = np.ascontiguousarray(stored[:, :, n].T.astype("<i2")).tobytes()
        if edit:
            edit(dataset, n)
        save(dataset, folder / f"{(n * 5) % count:03d}_{n}.dcm")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = np.multiply(axes[:3], spacing[0]), np.multiply(axes[3:], spacing[1])
    affine[:3, 2], affine[:3, 3] = step, origin
    return affine


def write_enhanced(folder: Path, stored: np.ndarray, positions, groups, name="one.dcm", **tags) -> None:
    """One multi-frame MR object of ``stored [column, row, frame]`` int16 at the lattice of :func:`write_series`.

    Frame n lies at slice ``positions[n]`` and has the functional groups ``groups[n]``, ``{macro: {tag: value}}``.
    """
    columns, rows, count = stored.shape
    base = {"Modality": "MR", "SeriesInstanceUID": "1.2.77", "Rows": rows, "Columns": columns}
    dataset = new_file(EnhancedMRImageStorage, **(base | tags))
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = count, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(stored.T.astype("<i2")).tobytes()
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [1.1, 0.8], "SliceThickness": 2.5},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence={"ImagePositionPatient": [-10, 20, 30 + 2.5 * position]},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 0},
            **own,
        )
        for position, own in zip(positions, groups, strict=True)
    ]
    save(dataset, folder / name)


def item(**groups) -> Dataset:
    """A data set of sequences with one item each, by name: its tags."""
    outer = Dataset()
    for name, tags in groups.items():
        inner = Dataset()
        for tag, value in tags.items():
            setattr(inner, tag, value)
        setattr(outer, name, [inner])
    return outer


def voxels(shape=(7, 5, 6), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 1500, shape).astype(np.int16)


def circle(radius, height, center=(10, -20), points=90):
    """A contour [N, 3] in an axial plane, RAS mm."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack(
        [center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle), np.full(points, height)], -1
    )


def write_rtstruct(path, structures, kind="CLOSED_PLANAR", types=None, edit=None):
    """``kind``: of all contours, or a function of a contour's number; ``types``: RTROIInterpretedType by name."""
    dataset = new_file(RTStructureSetStorage, Modality="RTSTRUCT", SeriesInstanceUID="1.2.840.6")
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    for number, (name, contours) in enumerate(structures.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, "1.2.3"
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for n, points in enumerate(contours):
            contour = Dataset()
            contour.NumberOfContourPoints = len(points)
            if given := kind(n) if callable(kind) else kind:
                contour.ContourGeometricType = given
            contour.ContourData = [f"{value:.4f}" for value in (points * [-1.0, -1, 1]).ravel()]
            drawn.ContourSequence.append(contour)
        observed = Dataset()
        observed.ReferencedROINumber, observed.RTROIInterpretedType = number, (types or {}).get(name, "")
        dataset.RTROIObservationsSequence.append(observed)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    if edit:
        edit(dataset)
    return save(dataset, path)
