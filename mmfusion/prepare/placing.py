"""Where the scans of a case and its grid lie: registration, what matters and where the grid is put, the brain on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import GeometryError, OptionError
from mmfusion.options import OPTIONS, nearest, unknown
from mmfusion.volume import Grid, Transform, Volume, mask_center

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmfusion.registration import Registration

_POINTS = 200_000  # of a region, at most

BRAIN_OF = "mni152"
"""The template whose brain masks where no template is asked for."""


def check_reference(reference: Sequence[str], modalities: Sequence[str]) -> None:
    """Refuse a reference that another modality would silently stand in for.

    Some of a list may be missing (a study without MR); the default may name none of them.

    Raises:
        OptionError: one is a misspelt modality, or none is a modality.
    """
    strange = [name for name in reference if name not in modalities]
    if list(reference) == OPTIONS["reference"].default or not strange:
        return
    others = [name for name in modalities if name not in reference]
    misspelt = [name for name in strange if nearest(name, others)]
    if misspelt or len(strange) == len(reference):
        raise OptionError(unknown("reference", [*misspelt, *strange][0], modalities))


def choose_reference(available: Sequence[str], preferred: Sequence[str]) -> str:
    """The first of ``preferred`` that is available; else the first available modality."""
    return next((name for name in preferred if name in available), available[0])


def registered(
    volumes: Mapping[str, Volume], reference: str, head: str | None, options: Mapping[str, Any], device: str
) -> dict[str, Registration]:
    """The template to the reference, if there is one, under its name, and the reference to every other modality.

    Raises:
        GeometryError: one of them failed.
        OptionError: a modality has the name of the template.
    """
    from mmfusion.registration import register, register_to_template  # late: torch takes seconds

    if head in volumes:
        raise OptionError(f"a modality is called {head}, as the template is; give its column another name")
    found = {}
    if head:
        found[head] = register_to_template(volumes[reference], head, device=device)
        if found[head].verdict == "failed":
            raise GeometryError(
                f"{reference} could not be registered to the template {head}: {'; '.join(found[head].reasons)}. "
                "Check that it shows a head, take another --reference, or leave out --to and --brain-mask"
            )
    for name, volume in volumes.items():
        if name == reference:
            continue
        found[name] = register(volumes[reference], volume, options["register"], init=options["init"], device=device)
        if found[name].verdict == "failed":
            raise GeometryError(
                f"{name} could not be registered to {reference}: {'; '.join(found[name].reasons)}. "
                f"Check both scans, leave the {name} cell empty, or use --register none if they are aligned"
            )
    return found


def brain_on(grid: Grid, to_head: Transform, head: str) -> np.ndarray:
    """``[i, j, k]`` bool: the brain of the template on the grid; ``to_head`` takes the grid's world to the template's.

    Raises:
        GeometryError: the grid holds nothing of it.
    """
    from mmfusion.registration import brain_mask

    brain = brain_mask(grid, to_head, head)
    if not brain.any():
        raise GeometryError(
            "no voxel of the prepared grid lies in the brain: choose another --center, or leave out --brain-mask"
        )
    return brain


@dataclass(frozen=True, eq=False)
class Region:
    """Voxels that matter (the body, or a mask), where they lie in the world of the prepared grid.

    Attributes:
        points: ``[N, 3]`` voxel centers, all or evenly thinned, mm.
        corners: ``[8, 3]`` of the box of voxels that holds all of them, mm.
        center: ``[3]`` center of mass of all of them, mm.
    """

    points: np.ndarray
    corners: np.ndarray
    center: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, grid: Grid, world_to_mask: Transform | None) -> Region:
        """The voxels of ``mask [i, j, k]`` on a grid; the way back to the world leaves out a displacement field."""
        back = Transform() if world_to_mask is None else Transform(world_to_mask.matrix).inverse()
        step = 1
        while mask[::step, ::step, ::step].sum() > _POINTS:
            step += 1
        index = step * np.argwhere(mask[::step, ::step, ::step])
        there = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = grid.regrouped([ends[-1] - ends[0] + 1 for ends in there], first=[ends[0] for ends in there])
        corners = back.apply(box.corners())
        return cls(back.apply(grid.to_world(index)), corners, back.apply(mask_center(mask, grid)))

    def outside(self, grid: Grid) -> float:
        """The share that falls outside a grid, 0 to 1."""
        index = grid.to_index(self.points)
        return float(1 - ((index >= -0.5) & (index < np.asarray(grid.shape) - 0.5)).all(-1).mean())

    def box(self, grid: Grid, margin_mm: float) -> np.ndarray:
        """``[i, j, k]`` bool: the voxels of a grid within the region's box and ``margin_mm`` around it."""
        index = grid.to_index(self.corners)
        margin = margin_mm / np.asarray(grid.spacing)
        low, high = index.min(0) - margin, index.max(0) + margin
        axes = [(np.arange(n) >= a) & (np.arange(n) <= b) for n, a, b in zip(grid.shape, low, high, strict=True)]
        return axes[0][:, None, None] & axes[1][:, None] & axes[2]


def place_grid(
    options: Mapping[str, Any], volumes: Mapping[str, Volume], reference: str, body: Region | None, mask: Region | None
) -> Grid:
    """The prepared grid in its world: that of the reference, or of the template that is gone ``to``.

    In template space, ``foreground`` is the template's brain and ``volume`` its field of view.

    Raises:
        GeometryError: there is no mask to center on.
    """
    rule = options["center"]
    if rule == "mask":
        if mask is None:
            raise GeometryError(
                "the grid is to be centered on a mask, but the case has none: fill the column mask, or use "
                "--center foreground"
            )
        center = mask.center
    elif "," in rule:
        center = np.array([float(number) for number in rule.split(",")])
    elif options["to"]:
        from mmfusion.registration import template

        head = template(options["to"])
        center = head.center if rule == "foreground" else head.volume.grid.center
    else:
        center = body.center if rule == "foreground" and body else volumes[reference].grid.center
    return Grid.around(center, options["spacing"], options["size"])


def check_crop(options: Mapping[str, Any]) -> None:
    """Refuse a margin around nothing.

    Raises:
        OptionError: ``crop_margin`` with another ``center`` than a mask or the body.
    """
    if options["crop_margin"] is not None and options["center"] not in ("mask", "foreground"):
        raise OptionError(
            f"--crop-margin needs a box around something: --center foreground or mask, not {options['center']}"
        )


def kept_voxels(
    options: Mapping[str, Any], grid: Grid, body: Region | None, lesion: Region | None, brain: np.ndarray | None
) -> np.ndarray | None:
    """``[i, j, k]`` bool: where the grid is not to be emptied; None for everywhere."""
    kept = brain
    if options["crop_margin"] is not None:
        region = lesion if options["center"] == "mask" else body
        if region is None:
            raise GeometryError("no body stands out in the reference to crop to; leave out --crop-margin")
        box = region.box(grid, options["crop_margin"])
        kept = box if brain is None else box & brain
    return kept


def mask_and_owner(
    read_mask: Callable[[Grid], Volume], volumes: Mapping[str, Volume], reference: str
) -> tuple[Volume, str]:
    """The mask on the grid of the scan that it was drawn on, and which scan that is.

    The frame of reference says it, or where no scan has that of the mask, the series that the mask refers to.

    Raises:
        GeometryError: the mask is empty there, or drawn on a scan that the case does not have.
    """
    mask, owner = read_mask(volumes[reference].grid), reference
    frame = mask.frame_of_reference
    referred = set(mask.meta.get("referenced_series", ())) - {""}
    same = [name for name, volume in volumes.items() if volume.frame_of_reference == frame != ""]
    drawn_on = [name for name, volume in volumes.items() if volume.meta.get("series_uid") in referred]
    if not same and drawn_on:
        owner = reference if reference in drawn_on else drawn_on[0]
        mask = read_mask(volumes[owner].grid)
    elif frame and reference not in same:  # drawn in the world of another modality
        unknown = [name for name, volume in volumes.items() if not volume.frame_of_reference]
        if same:  # on whose grid the mask is whole
            drawn = {name: read_mask(volumes[name].grid) for name in same}
            owner = max(same, key=lambda name: (drawn[name].array > 0).sum() * float(np.prod(drawn[name].spacing)))
            mask = drawn[owner]
        elif reference in unknown:
            pass  # as it was read
        elif len(unknown) == 1:
            owner = unknown[0]
            mask = read_mask(volumes[owner].grid)
        else:
            raise GeometryError(
                "the mask was drawn in the frame of reference of a scan that the case does not have"
                + (f", or in that of one of {', '.join(unknown)}, which do not say theirs" if unknown else "")
                + ": fill the column of that scan, give another mask, or use --center foreground"
            )
    if not mask.array.any():
        raise GeometryError(
            f"the mask is empty on the grid of {owner}: it lies outside the scan, or belongs to another"
        )
    return mask, owner
