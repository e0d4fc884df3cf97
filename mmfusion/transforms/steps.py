"""The steps of preparing a case, one MONAI dictionary transform each.

Volumes travel as ``MetaTensor [1, i, j, k]`` with ``affine`` (RAS mm) and, in ``meta``, ``modality``, ``units``,
``frame_of_reference``, ``notes`` and, once registered, ``fixed_to_moving`` (with ``displacement``, if it bends). A
modality whose key is absent, None or empty is missing; no step minds.
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
from mmfusion.prepare import check_reference, choose_reference
from mmfusion.prepare.placing import BRAIN_OF, brain_on, registered
from mmfusion.registration import template
from mmfusion.transforms.tensors import from_meta_tensor, to_meta_tensor, transform_from_meta, transform_to_meta
from mmfusion.volume import (
    NORMALIZED,
    SUV_MAX,
    SUV_UNITS,
    Grid,
    Transform,
    clip_suv,
    foreground,
    mask_center,
    normalize_mr,
    resample,
    window_ct,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

_CENTERS = ("foreground", "volume")


class _Step(MapTransform):
    """A step over the modalities that are there."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def there(self, data: Mapping[Hashable, Any]) -> list[str]:
        """The keys whose modality the case has, in order."""
        return [str(key) for key in self.keys if data.get(key) is not None and not _is_empty(data[key])]


class LoadVolumed(_Step):
    """Paths to volumes in physical units (HU, SUV, a.u.), nearest RAS+.

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
    """Find where each modality lies relative to the reference, and the reference in a template; nothing is resampled.

    Writes into each volume's meta ``fixed_to_moving`` (``[4, 4]``, RAS mm, from the world of the grid to come to the
    modality; with ``displacement`` and ``displacement_affine`` if it bends), ``verdict``, ``reference``, ``world``
    (whose world that is: the reference's, or the template's) and, with a template, ``to_template`` (``[4, 4]``, from
    that world to the template's).

    Args:
        keys: modality names.
        reference: the first of these that the case has is the reference; one name, or several.
        kind: a kind of :data:`mmfusion.registration.KINDS`.
        init: start, see :func:`mmfusion.registration.register`.
        to: a template that the reference is brought to, and all others through it.
        brain_mask: find the template's brain, for :class:`ResampleToGridd`, without going to its space.
        device: where registration runs, ``cpu`` or a torch device.

    Raises:
        OptionError: a reference is misspelt, or none is among the keys.
        GeometryError: two scans cannot be brought together.
    """

    def __init__(
        self,
        keys: Sequence[str],
        reference: str | Sequence[str] = ("ct", "mr", "pet"),
        kind: str = "rigid",
        init: str = "auto",
        to: str | None = None,
        brain_mask: bool = False,
        device: str = "cpu",
    ) -> None:
        super().__init__(keys)
        self.reference = (reference,) if isinstance(reference, str) else tuple(reference)
        check_reference(self.reference, [str(key) for key in self.keys])
        self.to, self.device = to, device
        self.head = to or (BRAIN_OF if brain_mask else None)
        self.how = {"register": kind, "init": init}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        there = self.there(data)
        if not there:
            raise GeometryError(f"none of the modalities {', '.join(map(str, self.keys))} is there")
        reference = choose_reference(there, self.reference)
        volumes = {key: from_meta_tensor(data[key]) for key in there}
        found = registered(volumes, reference, self.head, self.how, self.device)
        to_reference = found[self.head].fixed_to_moving if self.head else Transform()
        start = to_reference if self.to else Transform()
        for key in there:
            verdict, transform = "ok", start
            if key != reference:
                verdict, transform = found[key].verdict, start.compose(found[key].fixed_to_moving)
            elif self.to:
                verdict = found[self.to].verdict
            out[key] = data[key].clone()
            out[key].meta |= transform_to_meta(transform)
            out[key].meta |= {"verdict": verdict, "reference": reference, "world": self.to or reference}
            if self.head:
                to_template = np.eye(4) if self.to else to_reference.inverse().matrix
                out[key].meta |= {"template": self.head, "to_template": to_template}
        return out


class ResampleToGridd(_Step):
    """Read every modality on one grid in the world of the reference (or of the template), with one interpolation each.

    Args:
        keys: modality names.
        spacing: voxel size, mm.
        size: voxels along (x, y, z).
        center: ``foreground`` or ``volume`` of the reference (of the template: its brain, or its field of view), or a
            point (RAS, mm).
        brain_mask: set what lies outside the template's brain to empty space.

    Raises:
        OptionError: an unknown ``center``, or ``brain_mask`` where no template was registered.
        GeometryError: no brain on the grid.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        size: Sequence[int] = (96, 96, 96),
        center: str | Sequence[float] = "foreground",
        brain_mask: bool = False,
    ) -> None:
        super().__init__(keys)
        if isinstance(center, str) and center not in _CENTERS:
            raise OptionError(unknown("center", center, _CENTERS))
        self.spacing, self.size, self.center, self.brain_mask = tuple(spacing), tuple(size), center, brain_mask

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        there = self.there(data)
        if not there:
            return out
        reference = str(data[there[0]].meta.get("reference", there[0]))
        grid = Grid.around(self._center(data[reference]), self.spacing, self.size)
        brain = self._brain(grid, data[reference].meta) if self.brain_mask else None
        for key in there:
            volume, meta = from_meta_tensor(data[key]), data[key].meta
            moved = resample(volume, grid, transform_from_meta(meta), fill=meta.get("fill"))
            if brain is not None:
                moved = moved.replace(array=np.where(brain, moved.array, np.float32(meta.get("fill", volume.fill))))
            kept = {name: meta[name] for name in ("verdict", "reference", "world") if name in meta}
            out[key] = to_meta_tensor(moved, resampled=True, **kept)
        return out

    def _center(self, tensor: MetaTensor) -> np.ndarray:
        if not isinstance(self.center, str):
            return np.asarray(self.center, float)
        meta = tensor.meta
        if meta.get("world", meta.get("reference")) != meta.get("reference"):
            head = template(str(meta["world"]))
            return head.volume.grid.center if self.center == "volume" else head.center
        volume = from_meta_tensor(tensor)
        if self.center == "volume":
            return volume.grid.center
        if "foreground_center" in meta:
            return np.asarray(meta["foreground_center"])
        return mask_center(foreground(volume), volume.grid)

    def _brain(self, grid: Grid, meta: Mapping[Any, Any]) -> np.ndarray:
        if "to_template" not in meta:
            raise OptionError("brain_mask needs a template: give RegisterToReferenced to= or brain_mask=True, too")
        return brain_on(grid, Transform(np.asarray(meta["to_template"])), str(meta["template"]))


class _Scaling(_Step):
    """A step that scales values of certain units, once: their units then are :data:`mmfusion.volume.NORMALIZED`.

    Images whose units are unknown (of MONAI's own loader) are taken as they are.
    """

    units: tuple[str, ...]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.there(data):
            self._check(key, data[key].meta)
            out[key] = self.scaled(data[key])
        return out

    def scaled(self, tensor: MetaTensor) -> MetaTensor:
        """A modality in other values."""
        raise NotImplementedError

    def _check(self, key: str, meta: Mapping[Any, Any]) -> None:
        step, actual = type(self).__name__, str(meta.get("units", ""))
        if actual == NORMALIZED:
            raise OptionError(f"{step}: {key} was normalized before; leave out one of the steps that do")
        if actual and actual not in self.units:
            raise OptionError(
                f"{step}: {key} is in {actual}, and {' or '.join(self.units)} is expected; take {key} from its keys"
            )


class WindowCTd(_Scaling):
    """HU to 0..1 by a window (:func:`mmfusion.volume.window_ct`); after resampling, because clipping is not linear.

    Raises:
        OptionError: a modality is not in HU, or was normalized before.
    """

    units = ("HU",)

    def __init__(self, keys: Sequence[str], low: float = -160.0, high: float = 240.0) -> None:
        super().__init__(keys)
        self.low, self.high = low, high

    def scaled(self, tensor: MetaTensor) -> MetaTensor:
        return _normalized(tensor, lambda array: window_ct(array, self.low, self.high))


class ClipSUVd(_Scaling):
    """SUV to 0..1 by its upper end (:func:`mmfusion.volume.clip_suv`); after resampling.

    Raises:
        OptionError: a modality is not in SUV, or was normalized before.
    """

    units = SUV_UNITS

    def __init__(self, keys: Sequence[str], high: float = SUV_MAX) -> None:
        super().__init__(keys)
        self.high = high

    def scaled(self, tensor: MetaTensor) -> MetaTensor:
        return _normalized(tensor, lambda array: clip_suv(array, self.high))


class NormalizeMRd(_Scaling):
    """Scale MR by its foreground (:func:`mmfusion.volume.normalize_mr`); before resampling, on the native scan.

    What lies outside the scan later gets the value that 0 has after scaling.

    Raises:
        OptionError: a modality is not in arbitrary units, was normalized before, or was resampled.
        VoxelError: its foreground is empty or constant.
    """

    units = ("a.u.",)

    def __init__(self, keys: Sequence[str], method: str = "percentile") -> None:
        super().__init__(keys)
        self.method = method

    def scaled(self, tensor: MetaTensor) -> MetaTensor:
        volume = from_meta_tensor(tensor)
        body = foreground(volume)
        offset, scale = normalize_mr(volume.array, body, self.method)
        out = _normalized(tensor, lambda array: (array - np.float32(offset)) / np.float32(scale))
        # normalized values no longer show where the body is
        out.meta |= {"fill": -offset / scale, "foreground_center": mask_center(body, volume.grid)}
        return out

    def _check(self, key: str, meta: Mapping[Any, Any]) -> None:
        super()._check(key, meta)
        if meta.get("resampled"):
            raise OptionError(
                f"NormalizeMRd: {key} was resampled before, and is scaled by the foreground of the native scan; put "
                "NormalizeMRd before ResampleToGridd"
            )


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


def _normalized(tensor: MetaTensor, function: Callable[[np.ndarray], np.ndarray]) -> MetaTensor:
    out = tensor.clone()
    out[...] = torch.from_numpy(np.ascontiguousarray(function(tensor.detach().cpu().numpy()), np.float32))
    out.meta["units"] = NORMALIZED
    return out
