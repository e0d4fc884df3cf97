"""The steps of preparing a case, one MONAI dictionary transform each.

Volumes travel as ``MetaTensor [1, i, j, k]`` with ``affine`` (RAS mm) and, in ``meta``, ``modality``, ``units``,
``frame_of_reference``, ``notes`` and, once registered, ``fixed_to_moving``. A modality whose key is absent, None or
empty is missing; no step minds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.io import load_volume
from mmfusion.options import unknown
from mmfusion.prepare import choose_reference
from mmfusion.registration import register
from mmfusion.volume import (
    Grid,
    Transform,
    Volume,
    clip_suv,
    foreground,
    mask_center,
    normalize_mr,
    resample,
    window_ct,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

_CENTERS = ("foreground", "volume")
_PLAIN = ("source", "frame_of_reference", "notes", "stored_orientation", "stored_spacing")


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
    """A MONAI image ``[1, i, j, k]`` (of :class:`LoadVolumed`, or of MONAI's own loader) as a volume."""
    meta = dict(tensor.meta)
    return Volume(
        tensor.detach().cpu().numpy()[0],
        np.asarray(tensor.affine, dtype=np.float64),
        modality=str(meta.get("modality", "")),
        units=str(meta.get("units", "a.u.")),
        meta={name: meta[name] for name in _PLAIN if name in meta},
    )


class _Step(MapTransform):
    """A step over the modalities that are there."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def there(self, data: Mapping[Hashable, Any]) -> list[str]:
        """The keys whose modality the case has, in order."""
        return [str(key) for key in self.keys if data.get(key) is not None and not _is_empty(data[key])]


class LoadVolumed(_Step):
    """Paths to volumes in physical units (HU, SUVbw, a.u.), nearest RAS+.

    Args:
        keys: modality names; each also says what the file is expected to hold (``ct``, ``pet``, ``mr``).
        options: further arguments of :func:`mmfusion.io.load_volume`.
    """

    def __init__(self, keys: Sequence[str], **options: Any) -> None:
        super().__init__(keys)
        self.options = options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.there(data):
            out[key] = to_meta_tensor(load_volume(data[key], modality=key, **self.options))
        return out


class RegisterToReferenced(_Step):
    """Find where each modality lies relative to the reference; nothing is resampled.

    Writes ``fixed_to_moving`` (``[4, 4]``, RAS mm, reference to modality) and ``verdict`` into each volume's meta.

    Args:
        keys: modality names.
        reference: the first of these that the case has is the reference.
        kind: ``rigid`` or ``none``.
        init: start, see :func:`mmfusion.registration.register`.

    Raises:
        GeometryError: two scans cannot be brought together.
    """

    def __init__(
        self,
        keys: Sequence[str],
        reference: Sequence[str] = ("ct", "mr", "pet"),
        kind: str = "rigid",
        init: str = "auto",
    ) -> None:
        super().__init__(keys)
        self.reference, self.kind, self.init = tuple(reference), kind, init

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        there = self.there(data)
        if not there:
            raise GeometryError(f"none of the modalities {', '.join(map(str, self.keys))} is there")
        reference = choose_reference(there, self.reference)
        fixed = from_meta_tensor(data[reference])
        for key in there:
            matrix, verdict = np.eye(4), "ok"
            if key != reference:
                found = register(fixed, from_meta_tensor(data[key]), self.kind, init=self.init)
                if found.verdict == "failed":
                    raise GeometryError(
                        f"{key} could not be registered to {reference}: {'; '.join(found.reasons)}. Check both scans"
                    )
                matrix, verdict = found.fixed_to_moving.matrix, found.verdict
            out[key] = data[key].clone()
            out[key].meta |= {"fixed_to_moving": matrix, "verdict": verdict, "reference": reference}
        return out


class ResampleToGridd(_Step):
    """Read every modality on one grid in the reference's world, through its transform, with one interpolation.

    Args:
        keys: modality names.
        spacing: voxel size, mm.
        size: voxels along (x, y, z).
        center: ``foreground`` or ``volume`` of the reference, or a point (RAS, mm).

    Raises:
        OptionError: an unknown ``center``.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        size: Sequence[int] = (96, 96, 96),
        center: str | Sequence[float] = "foreground",
    ) -> None:
        super().__init__(keys)
        if isinstance(center, str) and center not in _CENTERS:
            raise OptionError(unknown("center", center, _CENTERS))
        self.spacing, self.size, self.center = tuple(spacing), tuple(size), center

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        there = self.there(data)
        if not there:
            return out
        reference = str(data[there[0]].meta.get("reference", there[0]))
        grid = Grid.around(self._center(data[reference]), self.spacing, self.size)
        for key in there:
            tensor = data[key]
            transform = Transform(np.asarray(tensor.meta.get("fixed_to_moving", np.eye(4))))
            moved = resample(from_meta_tensor(tensor), grid, transform, fill=tensor.meta.get("fill"))
            kept = {name: tensor.meta[name] for name in ("verdict", "reference") if name in tensor.meta}
            out[key] = to_meta_tensor(moved, **kept)
        return out

    def _center(self, tensor: MetaTensor) -> np.ndarray:
        if not isinstance(self.center, str):
            return np.asarray(self.center, float)
        volume = from_meta_tensor(tensor)
        if self.center == "volume":
            return volume.grid.center
        if "foreground_center" in tensor.meta:
            return np.asarray(tensor.meta["foreground_center"])
        return mask_center(foreground(volume), volume.grid)


class WindowCTd(_Step):
    """HU to 0..1 by a window (:func:`mmfusion.volume.window_ct`); after resampling, because clipping is not linear."""

    def __init__(self, keys: Sequence[str], low: float = -160.0, high: float = 240.0) -> None:
        super().__init__(keys)
        self.low, self.high = low, high

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return dict(data) | {
            key: _with_values(data[key], lambda array: window_ct(array, self.low, self.high))
            for key in self.there(data)
        }


class ClipSUVd(_Step):
    """SUV to 0..1 by its upper end (:func:`mmfusion.volume.clip_suv`); after resampling."""

    def __init__(self, keys: Sequence[str], high: float = 10.0) -> None:
        super().__init__(keys)
        self.high = high

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return dict(data) | {
            key: _with_values(data[key], lambda array: clip_suv(array, self.high)) for key in self.there(data)
        }


class NormalizeMRd(_Step):
    """Scale MR by its foreground (:func:`mmfusion.volume.normalize_mr`); before resampling, on the native scan.

    What lies outside the scan later gets the value that 0 has after scaling.
    """

    def __init__(self, keys: Sequence[str], method: str = "percentile") -> None:
        super().__init__(keys)
        self.method = method

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.there(data):
            volume = from_meta_tensor(data[key])
            body = foreground(volume)
            offset, scale = normalize_mr(volume.array, body, self.method)
            out[key] = _with_values(data[key], lambda array, o=offset, s=scale: (array - np.float32(o)) / np.float32(s))
            # normalized values no longer show where the body is
            out[key].meta |= {"fill": -offset / scale, "foreground_center": mask_center(body, volume.grid)}
        return out


class StackModalitiesd(_Step):
    """The last step: one tensor ``image [M, D, H, W]`` and ``present [M]``; a missing modality is a zero channel.

    Args:
        keys: modality names, in the order of the channels.

    Raises:
        VoxelError: a present modality is constant (it would be taken for a missing one).
        GeometryError: none is there, or they lie on different grids.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        there = self.there(data)
        if not there:
            raise GeometryError(f"none of the modalities {', '.join(map(str, self.keys))} is there")
        first = data[there[0]]
        image = torch.zeros((len(self.keys), *first.shape[1:]), dtype=torch.float32)
        grid = from_meta_tensor(first).grid
        for key in there:
            if not from_meta_tensor(data[key]).grid.same_as(grid):
                raise GeometryError(f"{key} and {there[0]} lie on different grids; use ResampleToGridd before stacking")
            channel = torch.as_tensor(data[key])[0]
            if channel.min() == channel.max():
                raise VoxelError(f"{key} is constant ({float(channel.min()):g}) where the modalities are stacked")
            image[list(self.keys).index(key)] = channel
        out = {name: value for name, value in data.items() if name not in self.keys}
        present = torch.tensor([key in there for key in self.keys])
        return {**out, "image": MetaTensor(image, affine=first.affine), "present": present}


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _with_values(tensor: MetaTensor, function: Any) -> MetaTensor:
    out = tensor.clone()
    out[...] = torch.from_numpy(np.ascontiguousarray(function(tensor.detach().cpu().numpy()), np.float32))
    return out
