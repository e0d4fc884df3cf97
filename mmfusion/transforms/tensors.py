"""Volumes and transforms as MONAI carries them, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from mmfusion.volume import Displacement, Grid, Transform, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = ("source", "frame_of_reference", "notes", "doubts", "stored_orientation", "stored_spacing")


def to_meta_tensor(volume: Volume, **meta: Any) -> MetaTensor:
    """A volume as MONAI has it: ``[1, i, j, k]`` with its affine, units and modality in ``meta``."""
    facts = {name: volume.meta[name] for name in _PLAIN if name in volume.meta}
    array = np.ascontiguousarray(volume.array, np.float32)
    return MetaTensor(
        torch.from_numpy(array)[None],
        affine=torch.from_numpy(volume.affine.copy()),
        meta={"modality": volume.modality, "units": volume.units, **facts, **meta},
    )


def from_meta_tensor(tensor: MetaTensor) -> Volume:
    """A MONAI image ``[1, i, j, k]`` as a volume, its units empty if it does not say them (of MONAI's own loader)."""
    meta = dict(tensor.meta)
    return Volume(
        tensor.detach().cpu().numpy()[0],
        np.asarray(tensor.affine, dtype=np.float64),
        modality=str(meta.get("modality", "")),
        units=str(meta.get("units", "")),
        meta={name: meta[name] for name in _PLAIN if name in meta},
    )


def transform_to_meta(transform: Transform) -> dict[str, np.ndarray]:
    """A transform as ``meta`` carries it: ``fixed_to_moving [4, 4]``; with a field also ``displacement [i, j, k, 3]``
    (mm) and ``displacement_affine [4, 4]``."""
    if transform.displacement is None:
        return {"fixed_to_moving": transform.matrix}
    field = transform.displacement
    return {
        "fixed_to_moving": transform.matrix,
        "displacement": field.array,
        "displacement_affine": field.grid.affine,
    }


def transform_from_meta(meta: Mapping[str, Any]) -> Transform:
    """The transform in ``meta``, or the identity."""
    field = None
    if meta.get("displacement") is not None:
        array = np.asarray(meta["displacement"])
        field = Displacement(array, Grid(array.shape[:3], np.asarray(meta["displacement_affine"], np.float64)))
    return Transform(np.asarray(meta.get("fixed_to_moving", np.eye(4))), field)
