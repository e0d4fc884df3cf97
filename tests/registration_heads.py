"""Heads for registration tests: the MNI152 template in shells of skull and scalp, scanned in a known pose."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from mmfusion.volume import Grid, Transform, Volume, resample

UNITS = {"ct": "HU", "pet": "SUVbw", "mr": "a.u."}
STEPS = {
    "ct": (1.0, 1.0, 1.5),
    "pet": (1.75, 1.75, 1.75),
    "mr": (1.0, 1.0, 1.0),
}  # times the template's spacing
NOISE = {"ct": 12.0, "pet": 0.2, "mr": 25.0}
MIDDLE = np.array([0.0, -18.0, 10.0])


@cache
def template(mm: int) -> dict[str, np.ndarray]:
    """``[i, j, k]`` maps at a spacing of ``mm``, with 20 mm of air around: t1, gm, wm, brain, and depth outside it."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=mm) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    air = 20 // mm
    t1, gm, wm = (np.pad(image.get_fdata(), air) for image in images)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(gm + wm > 0.3, iterations=2))
    affine = images[0].affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, air)
    depth = ndimage.distance_transform_edt(~brain, sampling=mm)
    return {"t1": t1 / t1.max(), "gm": gm, "wm": wm, "brain": brain, "depth": depth, "affine": affine}


@cache
def head(modality: str, mm: int) -> Volume:
    """The head without noise, in the template's world."""
    t = template(mm)
    brain, depth = t["brain"], t["depth"]
    fluid, skull, scalp = (depth > 0) & (depth <= 3), (depth > 3) & (depth <= 9), (depth > 9) & (depth <= 16)
    if modality == "ct":
        array = -1000 + 1000 * (depth <= 16) + 38 * t["gm"] + 28 * t["wm"] + 10 * (depth <= 3) + 900 * skull
    elif modality == "pet":
        array = 8 * t["gm"] + 2.5 * t["wm"] + 0.8 * (depth <= 9) + scalp
        array = ndimage.gaussian_filter(array, 6 / 2.355 / mm)
    else:
        array = 600 * t["t1"] * brain + 80 * fluid + 60 * skull + 700 * scalp
    return Volume(array.astype(np.float32), t["affine"], modality, UNITS[modality])


def scan(modality: str, pose: Transform, seed: int, mm: int = 4, size=(230, 260, 230), **meta: str) -> Volume:
    """What a scanner records; ``pose`` takes its world to the template's; ``size`` is the field of view, mm."""
    step = np.asarray(STEPS[modality]) * mm
    shape = np.ceil(np.asarray(size) / step).astype(int)
    volume = resample(head(modality, mm), Grid.around(tuple(MIDDLE), tuple(step), tuple(shape)), pose)
    noise = np.random.default_rng(seed).normal(0, NOISE[modality], volume.array.shape)
    return volume.replace(array=(volume.array + noise).astype(np.float32), meta=meta)


def random_pose(rng: np.random.Generator, degrees: float = 10.0, mm: float = 15.0) -> Transform:
    """A rigid transform of at most this angle about the head and this translation."""
    axis, way = rng.normal(size=3), rng.normal(size=3)
    turn = axis / np.linalg.norm(axis) * rng.uniform(0, degrees)
    x, y, z = way / np.linalg.norm(way) * rng.uniform(0, mm)
    return Transform.rigid((turn[0], turn[1], turn[2]), (x, y, z), MIDDLE)


def error_mm(found: Transform, fixed_pose: Transform, moving_pose: Transform) -> float:
    """Mean distance of brain landmarks from where they belong, mm."""
    t = template(4)
    marks = np.argwhere(t["brain"])[::97] @ t["affine"][:3, :3].T + t["affine"][:3, 3]
    fixed, moving = fixed_pose.inverse().apply(marks), moving_pose.inverse().apply(marks)
    return float(np.linalg.norm(found.apply(fixed) - moving, axis=1).mean())
