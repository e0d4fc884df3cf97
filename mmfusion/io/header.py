"""What a header says, before any voxel is read: the form that all file formats come into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import GeometryError, OptionError, ReadError
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
        units: what :func:`load_volume` will give: ``HU``, ``SUVbw`` (``SUVlbm``, ``SUVbsa``) or ``a.u.``.
        frame_of_reference: DICOM's FrameOfReferenceUID, or empty.
        frames: frames in the file; one of them (or their mean) becomes the volume.
        notes: what is unusual and was accepted or repaired.
        doubts: what may be wrong with the values or lost of the scan; ``check`` warns, and a prepared case is doubtful.
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
        series_uid: DICOM's SeriesInstanceUID, or empty.
        has_units: True if the values already have their physical unit, as those of DICOM.
        suv: the kind of SUV that PET comes in: ``bw``, ``lbm`` or ``bsa``.
        notes, doubts: as of :class:`Header`.

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
    has_units: bool = False
    suv: str = "bw"
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

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
        return {"ct": "HU", "pet": f"SUV{self.suv}"}.get(self.kind, "a.u.")


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


def chosen_frame(frame: str | int | None, frames: int, what: str, source: object) -> int | None:
    """The index of the wanted frame; None for the mean of all.

    Args:
        frame: ``first``, ``last``, ``mean``, a number from 0, or None.
        frames: how many there are.
        what: what shows that there are several, as ``shape (3, 4, 5, 6)``.
        source: what messages call the scan.

    Raises:
        ReadError: there are several frames and none was chosen, or the chosen one does not exist.
        OptionError: ``frame`` is not first, last, mean or a number.
    """
    if frames == 1:
        return 0
    if frame is None:
        raise ReadError(
            f"{source} has {what}: {frames} frames; one static frame is needed. "
            "Choose with --frame last or --frame mean"
        )
    if frame in ("first", "last", "mean"):
        return {"first": 0, "last": frames - 1, "mean": None}[str(frame)]
    if not str(frame).isdecimal():
        raise OptionError(f"frame is first, last, mean or a number from 0, found '{frame}'")
    if int(frame) >= frames:
        raise ReadError(f"{source} has {frames} frames, numbered from 0; frame {frame} does not exist")
    return int(frame)
