"""Where the scans of a case and its grid lie: registration, the middle of the grid, the brain on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import GeometryError, OptionError
from mmfusion.volume import Grid, Transform, Volume, foreground, mask_center

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mmfusion.registration import Registration

BRAIN_OF = "mni152"
"""The template whose brain masks where no template is asked for."""


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


def grid_center(
    options: Mapping[str, Any],
    volumes: Mapping[str, Volume],
    reference: str,
    transforms: Mapping[str, Transform],
    to_reference: Transform,
    read_mask: Callable[[Grid], Volume] | None,
) -> np.ndarray:
    """``[3]`` middle of the target grid, mm in the world of the reference, or of the template that is gone ``to``.

    In template space, ``foreground`` is the template's brain and ``volume`` its field of view.

    Raises:
        GeometryError: there is no mask to center on, or it is empty, or drawn on a scan that is not there.
    """
    if not options["to"]:
        return _in_reference(options["center"], volumes, reference, transforms, read_mask)
    if options["center"] == "mask":
        center = _in_reference("mask", volumes, reference, transforms, read_mask)
        return to_reference.inverse().apply(center)
    from mmfusion.registration import template

    head = template(options["to"])
    return head.center if options["center"] == "foreground" else head.volume.grid.center


def _in_reference(
    rule: str,
    volumes: Mapping[str, Volume],
    reference: str,
    transforms: Mapping[str, Transform],
    read_mask: Callable[[Grid], Volume] | None,
) -> np.ndarray:
    """``[3]`` middle of the target grid, mm in the reference's world."""
    fixed = volumes[reference]
    if rule == "volume":
        return fixed.grid.center
    if rule == "foreground":
        return mask_center(foreground(fixed), fixed.grid)
    if read_mask is None:
        raise GeometryError(
            "the grid is to be centered on a mask, but the case has none: fill the column mask, or use "
            "--center foreground"
        )
    mask, owner = read_mask(fixed.grid), reference
    frame = mask.frame_of_reference
    if frame and frame != fixed.frame_of_reference:  # drawn in the world of another modality
        frames = {volume.frame_of_reference: name for name, volume in volumes.items()}
        if frame not in frames and "" not in frames:
            raise GeometryError(
                "the mask was drawn in the frame of reference of a scan that the case does not have: "
                "fill the column of that scan, give another mask, or use --center foreground"
            )
        owner = frames.get(frame, reference)
        mask = read_mask(volumes[owner].grid)
    if not mask.array.any():
        raise GeometryError(
            f"the mask is empty on the grid of {owner}: it lies outside the scan, or belongs to another"
        )
    center = mask_center(mask.array > 0, mask.grid)
    return center if owner == reference else transforms[owner].inverse().apply(center)
