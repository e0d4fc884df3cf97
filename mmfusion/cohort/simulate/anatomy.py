"""The head that is simulated: MNI152 brain tissue with skull and scalp grown around it, and its diseases.

The brain is real anatomy: the MNI152 2009a T1, gray and white matter maps (Fonov et al., NeuroImage 2011) that
ship inside nilearn. They are skull-stripped, so subarachnoid fluid, skull and scalp are shells of constant
thickness around the brain's hull. Face, neck, vessels, eyes and air cavities are not modeled.

The head frame is MNI space: RAS, mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mmfusion.volume import Grid, Volume, resample

if TYPE_CHECKING:
    from collections.abc import Sequence

MODALITIES = ("ct", "pet", "mr")
UNITS = {"ct": "HU", "pet": "SUVbw", "mr": "a.u."}
AIR = {"ct": -1000.0, "pet": 0.0, "mr": 0.0}
STEP_MM = 2.0
CENTER = (0.0, -17.0, 5.0)
"""Middle of the template head's bounding box, head frame, RAS mm."""

# Outer surfaces of the shells: distance from the brain's hull, mm.
_FLUID_MM, _SKULL_MM, _SCALP_MM = 2.0, 8.0, 13.0
# Skull: dense tables around marrow-filled diploe, as a mean over its thickness. Scalp: muscle, skin and fat.
_HU = {"gm": 38.0, "wm": 30.0, "csf": 8.0, "skull": 850.0, "scalp": 20.0}
_SUV = {"gm": 7.0, "wm": 2.2, "csf": 0.4, "skull": 0.8, "scalp": 1.0}
_T1 = {"csf": 0.22, "skull": 0.16, "scalp": 0.75}
# Regions as ellipsoids: center and radii, mm. Both hemispheres; the sizes follow no atlas.
_MEDIAL_TEMPORAL = [((side * 30.0, -20.0, -16.0), (18.0, 30.0, 17.0)) for side in (-1, 1)]
_PARIETAL = [((side * 32.0, -58.0, 46.0), (20.0, 20.0, 18.0)) for side in (-1, 1)]
_POSTERIOR_CINGULATE = [((0.0, -52.0, 28.0), (14.0, 20.0, 18.0))]
_TEMPORO_PARIETAL = [((side * 50.0, -52.0, 24.0), (17.0, 22.0, 20.0)) for side in (-1, 1)]
ATROPHY, HYPOMETABOLISM = _MEDIAL_TEMPORAL + _PARIETAL, _POSTERIOR_CINGULATE + _TEMPORO_PARIETAL


@dataclass(frozen=True, eq=False)
class Head:
    """Tissue of the template head on one grid, shares 0 to 1 of each voxel.

    Attributes:
        grid: 2 mm, head frame.
        tissue: ``[i, j, k]`` float32 by name: ``gm``, ``wm``, ``csf``, ``skull``, ``scalp``; the rest is air.
        t1: ``[i, j, k]`` float32, T1 weighted signal of the whole head, 0 to about 1.
        surface: ``[N, 3]`` points of the skin, mm.
    """

    grid: Grid
    tissue: dict[str, np.ndarray]
    t1: np.ndarray
    surface: np.ndarray


@lru_cache(maxsize=1)
def head() -> Head:
    """The template head, built once a process (about 3 s, most of it nilearn's import)."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    maps = {}
    grid = Grid((93, 111, 97), np.array([[2, 0, 0, -92], [0, 2, 0, -126], [0, 0, 2, -92], [0, 0, 0, 1.0]]))
    loaders = {"t1": load_mni152_template, "gm": load_mni152_gm_template, "wm": load_mni152_wm_template}
    for name, load in loaders.items():
        image = load(resolution=1)
        volume = Volume(np.asarray(image.dataobj, np.float32), image.affine)
        maps[name] = np.clip(resample(volume, grid).array, 0, 1)
        if name == "t1":
            mask = volume.replace(array=(volume.array > 0).astype(np.float32))
            inside = resample(mask, grid).array

    distance = _distance(_hull(inside > 0.5))
    within = [np.clip((edge - distance) / STEP_MM + 0.5, 0, 1) for edge in (_FLUID_MM, _SKULL_MM, _SCALP_MM)]
    solid = np.maximum(maps["gm"] + maps["wm"], 1)
    tissue = {"gm": maps["gm"] / solid, "wm": maps["wm"] / solid}
    brain = tissue["gm"] + tissue["wm"]
    inner, outer = np.maximum(within[0], brain), np.maximum(within[1], brain)
    tissue |= {"csf": inner - brain, "skull": outer - inner, "scalp": np.maximum(within[2] - outer, 0)}
    tissue = {name: part.astype(np.float32) for name, part in tissue.items()}
    t1 = np.where(inside > 0.5, maps["t1"], _T1["csf"] * within[0])
    t1 = t1 + _T1["skull"] * tissue["skull"] + _T1["scalp"] * tissue["scalp"]

    body = within[2] > 0.5
    skin = grid.to_world(np.argwhere(body & ~ndimage.binary_erosion(body)))
    return Head(grid, tissue, t1.astype(np.float32), skin[::20])


def _hull(mask: np.ndarray) -> np.ndarray:
    """The brain with its sulci closed (closing by a ball of 12 mm), holes filled."""
    grown = ndimage.distance_transform_edt(~mask, STEP_MM) <= 12
    return ndimage.binary_fill_holes(mask | (ndimage.distance_transform_edt(grown, STEP_MM) > 12))


def _distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance from the surface of ``mask``, mm, positive outside."""
    return ndimage.distance_transform_edt(~mask, STEP_MM) - ndimage.distance_transform_edt(mask, STEP_MM)


def region(ellipsoids: Sequence[tuple[Sequence[float], Sequence[float]]]) -> np.ndarray:
    """``[i, j, k]`` weight 0 to 1 on the grid of the head: 1 well inside the ellipsoids, soft edges."""
    grid, out = head().grid, np.zeros(head().grid.shape, np.float32)
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    for center, radii in ellipsoids:
        radius = np.linalg.norm((points - np.asarray(center)) / np.asarray(radii), axis=-1)
        out = np.maximum(out, np.clip((1.25 - radius) / 0.5, 0, 1)).astype(np.float32)
    return out


@dataclass(frozen=True, eq=False)
class Contrast:
    """What one modality sees: healthy head plus ``amount`` times the change that the disease brings.

    Attributes:
        healthy: ``[i, j, k]`` float32, in the modality's units, on the grid of the head.
        change: the change at amount 1 inside ``box`` (zero elsewhere, and everywhere for CT).
        box: where ``change`` lies in ``healthy``.
    """

    healthy: np.ndarray
    change: np.ndarray
    box: tuple[slice, ...]

    def at(self, amount: float) -> np.ndarray:
        """``[i, j, k]`` the head with this amount (0 none, 1 all gray matter of the region) of disease."""
        out = self.healthy.copy()
        out[self.box] += np.float32(amount) * self.change
        return out


@lru_cache(maxsize=16)
def contrast(modality: str, blur_mm: float) -> Contrast:
    """The head as ``ct`` (HU), ``pet`` (SUVbw) or ``mr`` (0 to about 1) sees it, blurred by a Gaussian.

    CT and PET are made from the healthy tissue: atrophy appears in MR alone and hypometabolism in PET alone. In
    a real patient a shrunken cortex also looks colder in PET (partial volume) and is visible in CT; here the two
    are kept apart so that what each modality can know about the label is known exactly.

    Args:
        modality: ``ct``, ``pet`` or ``mr``.
        blur_mm: standard deviation of the blur (point spread, later interpolation), mm.
    """
    model = head()
    if modality == "mr":
        healthy = model.t1
        change = region(ATROPHY) * model.tissue["gm"] * np.minimum(_T1["csf"] - model.t1, 0)
    else:
        values = _HU if modality == "ct" else _SUV
        tissue = sum(model.tissue[name] * (value - AIR[modality]) for name, value in values.items())
        healthy = np.asarray(tissue + AIR[modality], np.float32)
        change = np.zeros((1, 1, 1), np.float32)
        if modality == "pet":
            change = -region(HYPOMETABOLISM) * model.tissue["gm"] * _SUV["gm"]
    sigma = blur_mm / STEP_MM
    healthy, change = (ndimage.gaussian_filter(a, sigma, mode="nearest", truncate=3) for a in (healthy, change))
    box = ndimage.find_objects((np.abs(change) > 1e-4 * max(np.abs(change).max(), 1e-9)).astype(int))
    where = box[0] if box else (slice(0, 1),) * 3
    return Contrast(healthy, np.ascontiguousarray(change[where]), where)
