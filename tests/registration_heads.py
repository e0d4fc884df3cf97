"""Heads for registration tests: the MNI152 template in shells of skull and scalp, scanned in a known pose."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

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


def exact_pose(rng: np.random.Generator, degrees: float, mm: float) -> Transform:
    """A rigid transform of just this angle about a random axis through the head, and a translation of this length."""
    axis, way = rng.normal(size=(2, 3))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(degrees)).as_matrix()
    matrix[:3, 3] = MIDDLE - matrix[:3, :3] @ MIDDLE + way / np.linalg.norm(way) * mm
    return Transform(matrix)


def stretched(scales: tuple[float, float, float], shears: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Transform:
    """Scales along x, y, z about the middle of the head, and shears of x by y, of x by z and of y by z."""
    matrix = np.diag([*scales, 1.0])
    matrix[[0, 0, 1], [1, 2, 2]] = shears
    matrix[:3, 3] = MIDDLE - matrix[:3, :3] @ MIDDLE
    return Transform(matrix)


def crop(volume: Volume, low: tuple[float, float, float], high: tuple[float, float, float]) -> Volume:
    """The part between two corners, given as shares of each axis; it stays where it is in the world."""
    size = np.asarray(volume.array.shape)
    start, stop = (np.rint(np.asarray(corner) * size).astype(int) for corner in (low, high))
    affine = volume.affine.copy()
    affine[:3, 3] = volume.grid.to_world(start)
    return volume.replace(array=volume.array[tuple(map(slice, start, stop))], affine=affine)


def places(volume: Volume) -> np.ndarray:
    """``[i, j, k, 3]`` where each voxel lies, RAS mm."""
    return volume.grid.to_world(np.moveaxis(np.indices(volume.array.shape), 0, -1))


def near_brain(volume: Volume, pose: Transform, mm: float) -> np.ndarray:
    """``[i, j, k]`` bool: the voxels within ``mm`` of the brain; 0 is the brain itself, 16 the whole head."""
    t = template(4)
    depth = Volume(np.maximum(t["depth"] - 2, -2 * t["brain"]).astype(np.float32), t["affine"])  # 0 half a voxel out
    return resample(depth, volume.grid, pose, fill=99.0).array <= mm


def painted(volume: Volume, where: np.ndarray, value: float | np.ndarray) -> Volume:
    """The volume with other values at the voxels ``where``."""
    return volume.replace(array=np.where(where, value, volume.array).astype(np.float32))
