"""Numbers of a region of interest: first order, shape, 3D co-occurrence, and the peak of a 1 ml sphere.

Definitions of the Image Biomarker Standardisation Initiative (IBSI: Zwanenburg, Radiology 295:328, 2020; reference
manual arXiv:1612.07003). Arrays in, numbers out; all voxels count as they are, nothing is resampled.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

PEAK_ML = 1.0
"""Volume of the sphere of :func:`peak`."""
_MOST_LEVELS = 1000
_VOXELS_AT_ONCE = 1 << 22
_DIRECTIONS = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # 13, of each pair of neighbors one


class Bins(NamedTuple):
    """How values become gray levels: the first level begins at ``low``, each is ``width`` wide."""

    width: float
    low: float


BINS: Mapping[str, Bins] = {"HU": Bins(25, -1000), "SUV": Bins(0.5, 0), "SUVR": Bins(0.1, 0), "z": Bins(0.1, -5)}
"""By unit. 25 HU from -1000 is the IBSI's own configuration C; 0.5 SUV are the usual bins of FDG (Leijenaar, Sci Rep
5:11075, 2015); SUVR and z (mean 0 and standard deviation 1 in the body) get about as many levels in a lesion."""


def bounding_box(mask: np.ndarray, margin: int | np.ndarray = 0) -> tuple[slice, slice, slice]:
    """The smallest box that holds a mask ``[i, j, k]``, ``margin`` voxels wider on each side, within the array.

    The mask must have a voxel.
    """
    inside = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    wider = np.broadcast_to(margin, 3)
    i, j, k = (slice(max(0, int(n[0] - m)), int(n[-1] + m) + 1) for n, m in zip(inside, wider, strict=True))
    return i, j, k


def discretize(values: np.ndarray, bins: Bins) -> np.ndarray:
    """Gray levels of values, any shape, int: 1 and up, in bins of fixed width; what lies beyond is in the last."""
    return np.clip(np.floor((values - bins.low) / bins.width), 0, _MOST_LEVELS - 1).astype(np.int64) + 1


def peak(array: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """The greatest mean of a sphere of 1 ml (radius 6.2 mm) whose center is a voxel of the mask.

    A voxel counts, wholly, if its center lies in the sphere: in or outside the mask, but not outside the scan.

    Args:
        array: ``[i, j, k]`` values.
        mask: ``[i, j, k]`` bool, not empty.
        affine: ``[4, 4]`` voxel index to mm.
    """
    from scipy.signal import oaconvolve  # late: a third of a second

    steps = np.asarray(affine)[:3, :3]
    radius = (3 * PEAK_ML * 1000 / (4 * np.pi)) ** (1 / 3)
    reach = np.floor(radius * np.linalg.norm(np.linalg.inv(steps), axis=1)).astype(int)
    offsets = np.moveaxis(np.indices(2 * reach + 1), 0, -1) - reach
    sphere = (np.linalg.norm(offsets @ steps.T, axis=-1) <= radius).astype(float)
    where, wide = bounding_box(mask), bounding_box(mask, reach)
    leaves = any(w.start < n or w.stop + n > size for w, n, size in zip(where, reach, mask.shape, strict=True))
    around = [(n, n) for n in reach]
    thickness = max(1, _VOXELS_AT_ONCE // mask[where][..., 0].size)
    greatest = -np.inf
    for first in range(where[2].start, where[2].stop, thickness):  # a slab, so that large masks do not take much memory
        slab = np.zeros(mask.shape[2], bool)
        slab[first : first + thickness] = True
        box = (*wide[:2], slice(max(0, first - reach[2]), first + thickness + reach[2]))
        inside = mask[box] & slab[box[2]]
        if not inside.any():
            continue
        part = np.asarray(array[box], np.float64)
        sums = oaconvolve(np.pad(part, around), sphere, mode="valid")[inside]
        counts: np.ndarray | float = sphere.sum()
        if leaves:
            counts = np.rint(oaconvolve(np.pad(np.ones(part.shape), around), sphere, mode="valid"))[inside]
        greatest = max(greatest, float((sums / counts).max()))
    return greatest


def first_order(values: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    """Statistics of the values of a region.

    Args:
        values: ``[N]`` at least one.
        levels: ``[N]`` their gray levels, see :func:`discretize`; entropy (bits) and uniformity are of these.

    Returns:
        In the units of the values, their square (variance, energy), or none. Kurtosis is 0 for a normal distribution;
        skewness and kurtosis of a constant are 0.
    """
    values = np.asarray(values, np.float64)
    low, p10, p25, median, p75, p90, high = (float(p) for p in np.percentile(values, (0, 10, 25, 50, 75, 90, 100)))
    mean, energy = values.mean(), (values**2).sum()
    deviations = values - mean
    variance = (deviations**2).mean()
    spread = np.sqrt(variance) if high > low else np.inf
    middle = values[(values >= p10) & (values <= p90)]
    shares = np.bincount(levels) / levels.size
    return {
        "mean": float(mean),
        "variance": float(variance),
        "skewness": float(((deviations / spread) ** 3).mean()),
        "kurtosis": float(((deviations / spread) ** 4).mean() - 3) if high > low else 0.0,
        "median": median,
        "minimum": low,
        "p10": p10,
        "p90": p90,
        "maximum": high,
        "interquartile_range": p75 - p25,
        "range": high - low,
        "mean_absolute_deviation": float(np.abs(deviations).mean()),
        "robust_mean_absolute_deviation": float(np.abs(middle - middle.mean()).mean()),
        "energy": float(energy),
        "root_mean_square": float(np.sqrt(energy / values.size)),
        "entropy": _entropy(shares),
        "uniformity": float((shares**2).sum()),
    }


def shape(mask: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """The shape of a region, whatever is in it.

    The surface is that of marching cubes, halfway between voxels inside and outside. The axes are those of the
    ellipsoid with the same spread of voxel centers.

    Args:
        mask: ``[i, j, k]`` bool, not empty.
        affine: ``[4, 4]`` voxel index to mm.

    Returns:
        Volumes in ml, lengths in mm, and ratios from 0 to 1; elongation and flatness of a point are not a number.
    """
    from scipy.spatial import ConvexHull  # late: these cost half a second
    from scipy.spatial.distance import pdist
    from skimage.measure import marching_cubes

    steps = np.asarray(affine)[:3, :3]
    part = np.pad(mask[bounding_box(mask)], 1)
    vertices, faces, _, _ = marching_cubes(part.astype(np.float32), 0.5)
    corners = (vertices.astype(float) @ steps.T)[faces]  # [F, 3, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = abs((corners[:, 0] * normals).sum()) / 6
    surface = np.linalg.norm(normals, axis=1).sum() / 2
    points = vertices @ steps.T
    centers = np.argwhere(part) @ steps.T
    spread = np.linalg.eigvalsh(np.cov(centers.T)) if len(centers) > 1 else np.zeros(3)
    least, minor, major = 4 * np.sqrt(np.maximum(spread, 0))
    return {
        "volume_ml": float(volume / 1000),
        "voxel_volume_ml": float(len(centers) * abs(np.linalg.det(steps)) / 1000),
        "surface_mm2": float(surface),
        "sphericity": float((36 * np.pi * volume**2) ** (1 / 3) / surface),
        "diameter_mm": float(pdist(points[ConvexHull(points).vertices]).max()),
        "major_axis_mm": float(major),
        "minor_axis_mm": float(minor),
        "least_axis_mm": float(least),
        "elongation": float(minor / major) if major else float("nan"),
        "flatness": float(least / major) if major else float("nan"),
    }


def glcm(levels: np.ndarray) -> dict[str, float]:
    """Texture by gray-level co-occurrence (Haralick, IEEE SMC 3:610, 1973): how often two levels are neighbors in 3D.

    One symmetric matrix of all 13 directions together, at a distance of one voxel.

    Args:
        levels: ``[i, j, k]`` int, gray levels inside the region and 0 outside.

    Returns:
        All not a number, if no two voxels of the region are neighbors. What is normalized, is so by the highest level.
    """
    names = np.unique(levels)
    names = names[names > 0].astype(float)
    counts = _co_occurrence(np.where(levels > 0, np.searchsorted(names, levels) + 1, 0), len(names))
    if not counts.any():
        return dict.fromkeys(_glcm_features(np.ones((1, 1)), np.ones(1)), float("nan"))
    return _glcm_features(counts / counts.sum(), names)


def _co_occurrence(levels: np.ndarray, size: int) -> np.ndarray:
    """``[size, size]`` symmetric counts of neighboring levels 1..size; 0 has no neighbors."""
    counts = np.zeros(size * size, np.int64)
    for direction in _DIRECTIONS:
        voxels = levels[tuple(slice(max(0, -step), min(0, -step) or None) for step in direction)]
        neighbors = levels[tuple(slice(max(0, step), min(0, step) or None) for step in direction)]
        both = (voxels > 0) & (neighbors > 0)
        counts += np.bincount((voxels[both] - 1) * size + neighbors[both] - 1, minlength=size * size)
    matrix = counts.reshape(size, size)
    return matrix + matrix.T


def _glcm_features(p: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    """Of shares ``p [N, N]`` (symmetric, sum 1) of the pairs of ``levels [N]``."""
    row, column = np.meshgrid(levels, levels, indexing="ij")
    marginal = p.sum(1)
    mean = float(marginal @ levels)
    variance = float(marginal @ (levels - mean) ** 2)
    difference, total = np.abs(row - column), row + column
    difference_shares = np.bincount(difference.astype(int).ravel(), p.ravel())
    sum_shares = np.bincount(total.astype(int).ravel(), p.ravel())
    mean_difference = float((p * difference).sum())
    contrast = float((p * difference**2).sum())
    highest = float(levels[-1])
    deviation = total - 2 * mean
    tendency = float((p * deviation**2).sum())
    covariance = float((p * row * column).sum()) - mean**2
    independent = np.outer(marginal, marginal)
    own, joint = _entropy(marginal), _entropy(p)  # of independent levels the entropy of pairs is twice their own
    with np.errstate(divide="ignore"):
        inverse_squares = np.where(difference > 0, 1 / difference**2, 0)
    return {
        "joint_maximum": float(p.max()),
        "joint_average": mean,
        "joint_variance": variance,
        "joint_entropy": joint,
        "difference_average": mean_difference,
        "difference_variance": contrast - mean_difference**2,
        "difference_entropy": _entropy(difference_shares),
        "sum_average": 2 * mean,
        "sum_variance": tendency,
        "sum_entropy": _entropy(sum_shares),
        "angular_second_moment": float((p**2).sum()),
        "contrast": contrast,
        "dissimilarity": mean_difference,
        "inverse_difference": float((p / (1 + difference)).sum()),
        "inverse_difference_normalized": float((p / (1 + difference / highest)).sum()),
        "inverse_difference_moment": float((p / (1 + difference**2)).sum()),
        "inverse_difference_moment_normalized": float((p / (1 + (difference / highest) ** 2)).sum()),
        "inverse_variance": float((p * inverse_squares).sum()),
        "correlation": covariance / variance if variance > 0 else 1.0,
        "autocorrelation": float((p * row * column).sum()),
        "cluster_tendency": tendency,
        "cluster_shade": float((p * deviation**3).sum()),
        "cluster_prominence": float((p * deviation**4).sum()),
        "information_correlation_1": (joint - 2 * own) / own if own > 0 else 0.0,
        "information_correlation_2": float(np.sqrt(max(0.0, 1 - np.exp(-2 * (_entropy(independent) - joint))))),
    }


def _entropy(shares: np.ndarray) -> float:
    """Of shares that sum to 1, bits."""
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0
