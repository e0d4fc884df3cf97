"""Template space: one head that all subjects are brought to, and its brain mask brought back to a subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from mmfusion.errors import OptionError
from mmfusion.options import unknown
from mmfusion.registration.register import Registration, register
from mmfusion.volume import Grid, Transform, Volume, resample

TEMPLATES: tuple[str, ...] = ("mni152",)
"""The templates that ship with what is installed."""

_MARGIN_MM = 4.0  # around the brain: fluid and skull there are dark in the template and in a T1 of a whole head alike


@dataclass(frozen=True, eq=False)
class Template:
    """A head that others are brought to.

    Attributes:
        volume: T1 weighted MR, without skull and scalp, in the template's world (RAS mm).
        brain: ``[i, j, k]`` bool, on its voxels.
    """

    volume: Volume
    brain: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """``[3]`` the middle of the brain's bounding box, mm."""
        index = np.argwhere(self.brain)
        return self.volume.grid.to_world((index.min(0) + index.max(0)) / 2)

    @cached_property
    def near(self) -> np.ndarray:
        """``[i, j, k]`` bool: the brain and 4 mm around it."""
        from scipy import ndimage

        return ndimage.distance_transform_edt(~self.brain, sampling=self.volume.spacing) <= _MARGIN_MM


@cache
def template(name: str = "mni152") -> Template:
    """A template by name.

    ``mni152``: ICBM 152 2009a symmetric, T1 (Fonov et al., NeuroImage 2011), as it ships inside nilearn, at 2 mm.

    Raises:
        OptionError: an unknown name.
    """
    if name not in TEMPLATES:
        raise OptionError(unknown("template", name, TEMPLATES))
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # late: the import takes seconds

    image, mask = load_mni152_template(resolution=2), load_mni152_brain_mask(resolution=2)
    array = np.asarray(image.dataobj, np.float32)
    return Template(Volume(array, np.asarray(image.affine), "mr", meta={"source": name}), mask.get_fdata() > 0.5)


def register_to_template(
    volume: Volume, name: str = "mni152", *, kind: str = "affine", device: str = "cpu", threads: int = 1
) -> Registration:
    """Find where a head lies relative to a template; ``fixed_to_moving`` takes the template's world to the volume's.

    The template has no skull and no scalp, a scan of a whole head has both. Only points of the template's brain and
    4 mm around it are compared, so that what surrounds the brain in the scan does not count; the brain's own outline,
    dark in the template and in the scan, does. The position in the header is ignored.

    Args:
        volume: a head, of any modality, with or without its skull.
        name: of the template.
        kind: see :func:`register`.
        device, threads: see :func:`register`.

    Raises:
        OptionError, GeometryError, VoxelError: see :func:`register`.
    """
    head = template(name)
    return register(head.volume, volume, kind, init="centers", fixed_mask=head.near, device=device, threads=threads)


def brain_mask(grid: Grid, to_template: Transform, name: str = "mni152") -> np.ndarray:
    """The template's brain on another grid: ``[i, j, k]`` bool.

    Args:
        grid: where the mask is wanted.
        to_template: takes the grid's world to the template's: the inverse of :func:`register_to_template`'s
            ``fixed_to_moving``, or the identity for a grid in template space.
        name: of the template.
    """
    head = template(name)
    brain = head.volume.replace(array=head.brain.astype(np.float32), units="label")
    return resample(brain, grid, to_template, fill=0.0).array > 0.5
