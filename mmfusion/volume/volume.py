"""The volume: voxels that know where they lie in the world and what they measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as _replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import GeometryError, VoxelError
from mmfusion.volume.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping

FILL: dict[str, float] = {"HU": -1024.0}
"""What lies outside a scan, by unit: air for CT; 0 for everything else (no activity, no signal)."""


SUV_UNITS = ("SUVbw", "SUVlbm", "SUVbsa")
"""Units of PET, by body weight and lean body mass (g/mL) and by body surface area (cm2/mL)."""
PET_UNITS = (*SUV_UNITS, "SUVR", "Bq/mL", "stored")
"""All units of PET: SUV, the ratio to a reference region, and what the file has (``stored``: counts, for example)."""


NORMALIZED = "normalized"
"""Units of values that were scaled for a network, once (about 0 to 1)."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels on a grid in the world.

    Attributes:
        array: ``[i, j, k]`` voxels; (i, j, k) run closest to left-right, posterior-anterior, inferior-superior
            when the volume comes from :mod:`mmfusion.io`.
        affine: ``[4, 4]`` voxel index to RAS+ world, mm.
        modality: the study's word for it, usually ``ct``, ``pet``, ``mr`` or ``mask``.
        units: ``HU``, one of :data:`PET_UNITS`, ``a.u.`` (arbitrary, MR), ``label`` or :data:`NORMALIZED`; empty if
            unknown.
        meta: plain facts about the source: ``source`` (path), ``frame_of_reference`` and ``series_uid`` (UIDs),
            ``notes`` (what was repaired), ``doubts`` (what may be wrong with it). Never a patient's name, birth date or
            address.

    Raises:
        GeometryError: the array is not 3D, or the affine is singular.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = ""
    units: str = "a.u."
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.ndim(self.array) != 3:
            raise GeometryError(f"{self.name}: a volume has three axes, found an array of shape {np.shape(self.array)}")
        object.__setattr__(self, "affine", self.grid.affine)

    @cached_property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        i, j, k = self.array.shape
        return Grid((i, j, k), self.affine)

    @property
    def name(self) -> str:
        """What messages call this volume: modality and source, as far as known."""
        return " ".join(str(part) for part in (self.modality, self.meta.get("source")) if part) or "volume"

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centers along (i, j, k), mm."""
        return self.grid.spacing

    @property
    def fill(self) -> float:
        """The value of empty space in this volume's units (-1024 HU for CT, else 0)."""
        return FILL.get(self.units, 0.0)

    @property
    def frame_of_reference(self) -> str:
        """DICOM's FrameOfReferenceUID: volumes that share one were aligned by the scanner. Empty if unknown."""
        return str(self.meta.get("frame_of_reference", ""))

    def replace(self, **changes: Any) -> Volume:
        """A copy with some attributes changed."""
        return _replace(self, **changes)

    def checked(self) -> Volume:
        """This volume, if its voxels can be used.

        Raises:
            VoxelError: a voxel is not finite, or all voxels are equal.
        """
        low, high = self.array.min(), self.array.max()  # NaN and infinity show in them
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int(self.array.size - np.count_nonzero(np.isfinite(self.array)))
            raise VoxelError(
                f"{self.name}: {bad} of {self.array.size} voxels are not finite (NaN or infinite); "
                "export the scan again or drop this modality"
                + ("" if np.isinf(self.array).any() else "; with --nan background they count as air or zero")
            )
        if low == high:
            raise VoxelError(
                f"{self.name}: every voxel is {float(self.array.flat[0]):g}; an empty or constant scan cannot "
                "be used, export it again or leave the cell empty"
            )
        return self
