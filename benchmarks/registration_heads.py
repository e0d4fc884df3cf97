"""Simulated heads with a known answer, for `registration.py`: MNI152 in shells of fluid, skull and scalp.

The fixed volume looks like T1 MR, the moving one like PET (6 mm wide point spread), CT or T1. Both come from one
template, so absolute errors flatter every tool alike; ratios do not. A moving volume is read from the template with
one interpolation, through the true motion, on its own grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from registration_data import Plan, Trial, rigid_about
from scipy import ndimage

from mmfusion.volume import Grid, Transform, Volume, resample

UNITS = {"ct": "HU", "pet": "SUVbw", "mr": "a.u."}
MIDDLE = np.array([0.5, -17.5, 7.5])  # of the head, RAS mm
FIELD = (206, 246, 216)  # mm, of heads that move up to 30 mm: 10.9 million voxels of 1 mm, with air around
FIELD_CAPTURE = (300, 320, 300)  # mm, where the head moves by 60 mm and is still seen
PER_FWHM = 1 / np.sqrt(8 * np.log(2))
SLAB_MM = 100.0


@dataclass(frozen=True)
class Shells:
    """Outer surfaces of fluid, skull and scalp: distance from the brain, mm. They vary from head to head."""

    fluid: float
    skull: float
    scalp: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Shells:
        fluid, skull, scalp = np.cumsum(rng.uniform((2, 4, 4), (4, 8, 8)))
        return cls(fluid, skull, scalp)


@lru_cache(maxsize=1)
def template() -> dict[str, np.ndarray | Grid]:
    """Maps ``[i, j, k]`` float32 at 1 mm: t1, gm, wm (0 to 1), brain (bool) and depth outside the brain, mm."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    grid = Grid.around(MIDDLE, (1, 1, 1), FIELD)  # on the template's own lattice: this only pads and crops
    maps = {}
    for name, load in (
        ("t1", load_mni152_template),
        ("gm", load_mni152_gm_template),
        ("wm", load_mni152_wm_template),
    ):
        image = load(resolution=1)
        maps[name] = resample(Volume(np.asarray(image.dataobj, np.float32), image.affine), grid).array
    brain = ndimage.binary_closing(maps["gm"] + maps["wm"] > 0.3, iterations=4)
    brain = ndimage.binary_fill_holes(brain)
    depth = ndimage.distance_transform_edt(~brain).astype(np.float32)
    return {**maps, "t1": maps["t1"] / maps["t1"].max(), "brain": brain, "depth": depth, "grid": grid}


def head(contrast: str, shells: Shells) -> Volume:
    """The head in template space at 1 mm, without noise; ``contrast`` is ``mr``, ``ct`` or ``pet``."""
    t = template()
    within = [np.clip(edge - t["depth"] + 0.5, 0, 1) for edge in (shells.fluid, shells.skull, shells.scalp)]
    skull, scalp = within[1] - within[0], within[2] - within[1]
    if contrast == "ct":
        array = -1000 + 1010 * within[2] + 28 * t["gm"] + 20 * t["wm"] + 800 * skull + 15 * scalp
    elif contrast == "pet":
        array = 7 * t["gm"] + 2.3 * t["wm"] + 0.4 * within[0] + 0.8 * skull + scalp
        array = ndimage.gaussian_filter(array, 6 * PER_FWHM)
    else:
        array = 600 * t["t1"] * t["brain"] + 80 * within[0] * ~t["brain"] + 60 * skull + 600 * scalp
    return Volume(array.astype(np.float32), t["grid"].affine, contrast, UNITS[contrast])


def noisy(volume: Volume, rng: np.random.Generator) -> Volume:
    """With a scanner's noise: CT 15 HU, white; MR 3 %, Rician; PET 0.4 at 5 SUV, as the root of it, 5 mm wide."""
    noise, array = rng.standard_normal(volume.array.shape, np.float32), volume.array
    if volume.modality == "ct":
        return volume.replace(array=array + np.float32(15) * noise)
    if volume.modality == "mr":
        other = rng.standard_normal(array.shape, np.float32)
        return volume.replace(array=np.hypot(array + np.float32(20) * noise, np.float32(20) * other))
    noise = ndimage.gaussian_filter(noise, 5 * PER_FWHM / np.asarray(volume.spacing))
    noise *= np.float32(0.4 / noise.std()) * np.sqrt(np.maximum(array, 0.05) / 5)
    return volume.replace(array=np.maximum(array + noise, 0))


@lru_cache(maxsize=1)
def brain_points(count: int = 500) -> np.ndarray:
    """``[N, 3]`` points spread over the brain, template space, RAS mm."""
    t = template()
    inside = np.argwhere(t["gm"] + t["wm"] > 0.5)
    return t["grid"].to_world(np.random.default_rng(0).choice(inside, count, replace=False))


def head_trial(number: int, kind: str) -> Trial:
    """A motion of up to 20 degrees and 30 mm; ``affine`` adds scales of 0.92 to 1.08 and shears of up to 0.05."""
    rng = np.random.default_rng([number, ("rigid", "affine").index(kind)])
    shells, contrast = Shells.draw(rng), ("pet", "ct")[number % 2]
    truth = rigid_about(MIDDLE, rng.uniform(0, 20), rng.uniform(0, 30), rng)
    if kind == "affine":
        stretch = np.eye(4)
        stretch[:3, :3] = np.diag(rng.uniform(0.92, 1.08, 3)) + np.triu(rng.uniform(-0.05, 0.05, (3, 3)), 1)
        stretch[:3, 3] = MIDDLE - stretch[:3, :3] @ MIDDLE
        truth = Transform(stretch).compose(truth)
    fixed = noisy(head("mr", shells), rng)
    moving = noisy(resample(head(contrast, shells), fixed.grid, truth.inverse()), rng)
    return Trial(f"head{number:02d}", 0, fixed, moving, truth, brain_points())


def capture_trial(number: int, slab: bool) -> Trial:
    """45 degrees about a random axis and 60 mm at once, at 2 mm; the moving volume whole or a slab of 100 mm."""
    rng = np.random.default_rng([number, 2 + slab])
    shells, contrast = Shells.draw(rng), ("pet", "ct")[number % 2]
    truth = rigid_about(MIDDLE, 45.0, 60.0, rng)
    fixed = noisy(resample(head("mr", shells), Grid.around(MIDDLE, (2, 2, 2), np.array(FIELD) // 2)), rng)
    grid = Grid.around(MIDDLE, (2, 2, 2), np.array(FIELD_CAPTURE) // 2)
    if slab:  # at a random height of the moved head
        heights = truth.apply(brain_points())[:, 2]
        bottom, top = heights.min() - shells.scalp, heights.max() + shells.scalp
        middle = rng.uniform(bottom + SLAB_MM / 2, max(top, bottom + SLAB_MM) - SLAB_MM / 2)
        grid = Grid.around((*MIDDLE[:2], middle), (2, 2, 2), (*grid.shape[:2], round(SLAB_MM / 2)))
    moving = noisy(resample(head(contrast, shells), grid, truth.inverse()), rng)
    return Trial(f"{'slab' if slab else 'head'}{number:02d}", 0, fixed, moving, truth, brain_points())


class Bend:
    """A smooth displacement: a point y of the moving world comes from y + field(y) of the fixed one.

    Attributes:
        grid: 2 mm, of the field.
        field: ``[3, i, j, k]`` mm.
    """

    def __init__(self, grid: Grid, rng: np.random.Generator, mean_mm: float = 2.0, sigma_mm: float = 12.0) -> None:
        """White noise smoothed with ``sigma_mm``: its correlation falls to a half over 20 mm."""
        noise = rng.standard_normal((3, *grid.shape))
        sigma = sigma_mm / np.asarray(grid.spacing)
        field = np.stack([ndimage.gaussian_filter(one, sigma, mode="wrap") for one in noise])
        self.grid, self.field = grid, field * (mean_mm / np.linalg.norm(field, axis=0).mean())
        self._splines = [ndimage.spline_filter(one) for one in self.field]

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Fixed to moving: the y that solves y + field(y) = ``points``, by iteration (the field is a contraction)."""
        y = np.asarray(points, float)
        for _ in range(40):
            index = self.grid.to_index(y).T
            shift = [ndimage.map_coordinates(s, index, prefilter=False, mode="nearest") for s in self._splines]
            y = points - np.stack(shift, axis=-1)
        return y


def bent_trial(number: int) -> Trial:
    """At 2 mm, no motion but a smooth displacement of 2 mm on average; T1 to T1 of other shading, or T1 to PET."""
    rng = np.random.default_rng([number, 4])
    shells, contrast = Shells.draw(rng), ("mr", "pet")[number % 2]
    grid = Grid.around(MIDDLE, (2, 2, 2), np.array(FIELD) // 2)
    fixed = noisy(resample(head("mr", shells), grid), rng)
    bend, source = Bend(grid, rng), head(contrast, shells)
    # a point of one voxel of the template becomes a point of one voxel of the grid, as in volume.resample
    smooth = ndimage.gaussian_filter(source.array, np.sqrt(3) / 2)
    world = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0) + bend.field
    index = world - source.affine[:3, 3, None, None, None]  # the template has 1 mm
    array = ndimage.map_coordinates(smooth, index, order=1, mode="nearest").astype(np.float32)
    if contrast == "mr":  # 5 %: what a correction of the bias field leaves; with 10 % SyN finds next to nothing
        shading = ndimage.gaussian_filter(rng.standard_normal(grid.shape), 30, mode="wrap")
        array *= np.exp(0.05 * shading / shading.std()).astype(np.float32)
    moving = noisy(Volume(array, grid.affine, contrast, UNITS[contrast]), rng)
    return Trial(f"head{number:02d}", 0, fixed, moving, bend, brain_points())


def head_plans(kind: str, count: int) -> list[Plan]:
    """Heads moved rigidly (``rigid``) or by an affine (``affine``), PET and CT in turn."""
    make = partial(head_trial, kind=kind)
    return [Plan(f"head{n:02d}", 0, {"moving": ("pet", "ct")[n % 2]}, partial(make, n)) for n in range(count)]


def capture_plans(count: int) -> list[Plan]:
    """Whole heads and slabs in turn."""
    return [
        Plan(f"{word}{n:02d}", 0, {"moving": ("pet", "ct")[n % 2], "view": word}, partial(capture_trial, n, slab))
        for n in range((count + 1) // 2)
        for word, slab in (("head", False), ("slab", True))
    ][:count]


def bent_plans(count: int) -> list[Plan]:
    """Bent heads, T1 and PET in turn."""
    return [Plan(f"head{n:02d}", 0, {"moving": ("mr", "pet")[n % 2]}, partial(bent_trial, n)) for n in range(count)]
