"""What a header says, before any voxel is read: the form that all file formats come into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import GeometryError, ReadError
from mmfusion.io.dates import ScanDate
from mmfusion.io.frame_choice import ONLY_FRAME, FrameChoice
from mmfusion.volume import Grid, spacing_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DICOM_KINDS = {"CT": "ct", "PT": "pet", "MR": "mr"}


def kind_of(modality: str) -> str:
    """What a modality's name says about its voxels: ``ct``, ``pet``, ``mr``, or empty if it says nothing.

    Columns of a manifest carry any name: ``ct``, ``ct_2`` and ``CT`` are CT; ``t1`` and ``flair`` say nothing.
    DICOM's ``PT`` is PET.
    """
    name = modality.lower()
    if name.startswith("pt"):
        return "pet"
    return next((kind for kind in ("ct", "pet", "mr") if name.startswith(kind)), "")


def settled_kind(modality: str, dicom_modality: str, source: object) -> str:
    """The kind of a DICOM series that the study calls ``modality``.

    Raises:
        ReadError: the study's word and the DICOM tag contradict each other.
    """
    wanted, found = kind_of(modality), _DICOM_KINDS.get(dicom_modality, "")
    if wanted and dicom_modality and wanted != found:
        raise ReadError(
            f"{source} is given as {modality}, but its DICOM modality is {dicom_modality}. "
            "Put the path in the column of its modality, or name the column without the word " + wanted
        )
    return wanted or found


@dataclass(frozen=True, eq=False)
class Header:
    """What :func:`read_header` knows of a scan.

    Attributes:
        shape: ``(i, j, k)`` voxels, turned to nearest RAS as :func:`load_volume` gives them.
        affine: ``[4, 4]`` voxel index to RAS+ world, mm, of the turned voxels.
        orientation: directions of the axes as stored, as in ``LPS``.
        spacing: distance between voxel centers along (i, j, k) of the turned voxels, mm.
        modality: kind of the voxels: ``ct``, ``pet``, ``mr``, or empty if unknown.
        units: what :func:`load_volume` will give, see :class:`mmfusion.volume.Volume`.
        frame_of_reference: DICOM's FrameOfReferenceUID, or empty.
        frames: frames in the file; one of them (or their mean) becomes the volume.
        notes: what is unusual and was accepted or repaired.
        doubts: what may be wrong with the values or lost of the scan; ``check`` warns, and a prepared case is doubtful.
        scanned: when it was made; of DICOM only.
        person: the same for scans of one PatientID, without telling it; of DICOM only.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: str
    spacing: tuple[float, float, float]
    modality: str
    units: str
    frame_of_reference: str
    frames: int
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    scanned: ScanDate = field(default_factory=ScanDate)
    person: str = ""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.shape, self.affine)


@dataclass(eq=False)
class Opened:
    """A file whose header has been read and found usable; the voxels have not been read.

    Attributes:
        source: what messages call it.
        shape, affine: of the axes as stored, RAS+ mm.
        read: gives the voxels ``[i, j, k]`` of the axes as stored; may append to ``notes``.
        kind: ``ct``, ``pet``, ``mr`` or empty.
        choice: which of the frames are used.
        series_uid: DICOM's SeriesInstanceUID, or empty.
        has_units: True if the values already have their physical unit, as those of DICOM.
        pet_units: what PET comes in: ``SUVbw`` (``SUVlbm``, ``SUVbsa``), ``SUVR``, or its own ``Bq/mL`` or ``stored``.
        notes, doubts, scanned, person: as of :class:`Header`.

    Raises:
        GeometryError: the affine is singular.
    """

    source: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    read: Callable[[], np.ndarray]
    kind: str = ""
    frame_of_reference: str = ""
    series_uid: str = ""
    frames: int = 1
    choice: FrameChoice = ONLY_FRAME
    has_units: bool = False
    pet_units: str = "SUVbw"
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    scanned: ScanDate = field(default_factory=ScanDate)
    person: str = ""

    def __post_init__(self) -> None:
        try:
            self.grid = Grid(self.shape, self.affine)
        except GeometryError as error:
            raise GeometryError(f"{self.source}: {error}") from None
        shear = shear_deg(self.affine)
        if shear > 0.1:
            self.notes.append(f"voxel axes are sheared by {shear:.1f} degrees; resampling takes it into account")

    @property
    def units(self) -> str:
        """The units of the volume."""
        return {"ct": "HU", "pet": self.pet_units}.get(self.kind, "a.u.")


def shear_deg(affine: np.ndarray) -> float:
    """The largest departure of two voxel axes from a right angle, degrees."""
    axes = affine[:3, :3] / np.asarray(spacing_of(affine))
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(np.clip(cosine, 0, 1))))


def static_shape(shape: tuple[int, ...], source: object) -> tuple[tuple[int, int, int], int]:
    """The three spatial sizes and the number of frames of a stored shape; trailing ones do not count.

    Raises:
        GeometryError: fewer than three axes.
        ReadError: an axis is empty, or more than one axis follows the three spatial ones.
    """
    if len(shape) < 3:
        raise GeometryError(f"{source} has shape {shape}: a 2D image; a volume needs three axes")
    more = [n for n in shape[3:] if n != 1]
    if min(shape) < 1 or len(more) > 1:
        raise ReadError(f"{source} has shape {shape}; three axes, or three and frames, are expected")
    i, j, k = shape[:3]
    return (i, j, k), more[0] if more else 1
