"""How well two images explain each other: mutual information, as a measure and as a cost with its gradient."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmfusion.errors import GeometryError, VoxelError

if TYPE_CHECKING:
    from mmfusion.registration.levels import Level

BINS = 32
_PAD = 2  # empty bins at both ends, so that the cubic B-spline window never leaves the histogram


def mutual_information(
    a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None, *, bins: int = BINS, normalized: bool = True
) -> float:
    """Mutual information of two images on the same grid, from a plain joint histogram.

    Args:
        a, b: ``[i, j, k]`` voxels (any common shape).
        mask: bool, same shape: the voxels to count; all if None.
        bins: bins an axis of the histogram, over the range of the counted voxels.
        normalized: True: ``2 I(a, b) / (H(a) + H(b))``, 0 (independent) to 1 (each tells the other), which is
            ``2 - 2 / NMI`` of Studholme et al. (Pattern Recognition 1999) and changes little with the overlap;
            False: ``I(a, b)`` in nats.

    Raises:
        GeometryError: the shapes differ.
        VoxelError: no voxel is counted.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or (mask is not None and np.shape(mask) != a.shape):
        raise GeometryError(f"mutual information needs one grid, found arrays of shape {a.shape} and {b.shape}")
    a, b = (a.ravel(), b.ravel()) if mask is None else (a[mask], b[mask])
    if a.size == 0:
        raise VoxelError("mutual information of no voxels: the mask is empty")
    joint = np.histogram2d(a, b, bins)[0] / a.size
    entropies = _entropy(joint.sum(1)), _entropy(joint.sum(0)), _entropy(joint)
    shared = max(0.0, entropies[0] + entropies[1] - entropies[2])
    if not normalized:
        return shared
    total = entropies[0] + entropies[1]
    return 2 * shared / total if total > 0 else 0.0


class Similar(NamedTuple):
    """What :class:`Similarity` finds at one position.

    Attributes:
        value: normalized mutual information, 0..1.
        inside: share of the sample points that fall into the target, 0..1.
        gradient: ``[3, 4]`` change of ``value`` with each entry of the upper part of the transform's matrix.
    """

    value: float
    inside: float
    gradient: np.ndarray


class Similarity:
    """Normalized mutual information between sample points of one image and another image under a transform.

    The estimate is that of Mattes et al. (IEEE TMI 2003): a histogram with hard bins for the points' own values
    and a cubic B-spline Parzen window for the values read from the target, which gives an analytic gradient.
    It is normalized as :func:`mutual_information` is. Values read at points are part of the measure and are
    never stored as voxels, which is why they do not come from :func:`mmfusion.volume.resample`.

    Args:
        points: ``[3, N]`` sample points in the world of the first image, RAS mm.
        values: ``[N]`` its values there, 0..1.
        target: the image that is read.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray, target: Level) -> None:
        self.points = np.concatenate([points, np.ones((1, points.shape[1]))])
        self.bins = np.rint(values * (BINS - 1)).astype(np.int64) * BINS
        self.target = target

    def part(self, keep: np.ndarray) -> Similarity:
        """The same similarity from some of the points only (``[N]`` bool)."""
        some = copy(self)
        some.points, some.bins = self.points[:, keep], self.bins[keep]
        return some

    def __call__(self, matrix: np.ndarray, *, gradient: bool = True) -> Similar:
        """The similarity if ``matrix`` ``[4, 4]`` takes the points to the target's world (RAS mm)."""
        to_index = self.target.to_index
        index = (to_index @ matrix)[:3] @ self.points
        inside = self.target.inside(index)
        share = float(inside.mean())
        zero = np.zeros((3, 4))
        if np.count_nonzero(inside) < BINS:
            return Similar(0.0, share, zero)
        values, slopes = trilinear(self.target.array, index[:, inside], slopes=gradient)
        position = np.clip(values, 0, 1) * (BINS - 1 - 2 * _PAD) + _PAD
        first = position.astype(np.int64) - 1
        windows, window_slopes = _cubic_window(position - first)
        cells = self.bins[inside] + first
        joint = sum(np.bincount(cells + k, windows[k], BINS * BINS) for k in range(4)) / cells.size
        joint = np.asarray(joint).reshape(BINS, BINS)
        own, read = joint.sum(1), joint.sum(0)
        both, total = _entropy(joint), _entropy(own) + _entropy(read)
        value = 2 - 2 * both / total
        if not gradient:
            return Similar(value, share, zero)
        # the derivative of the value with each cell of the histogram; constants drop out, the cells sum to one
        table = 2 * _log(joint) / total - 2 * both * _log(read)[None, :] / total**2
        flat = table.ravel()
        per_point = sum(flat[cells + k] * window_slopes[k] for k in range(4))
        per_point = np.asarray(per_point) * ((BINS - 1 - 2 * _PAD) / cells.size)
        weighted = slopes * per_point
        by_index = weighted @ self.points[:, inside].T
        return Similar(value, share, to_index[:3, :3].T @ by_index)


def trilinear(array: np.ndarray, index: np.ndarray, *, slopes: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Read an image between its voxels, with the slope.

    Args:
        array: ``[i, j, k]``, at least two voxels an axis.
        index: ``[3, N]`` voxel indices; what lies outside gets the value of the edge.
        slopes: compute the slopes too.

    Returns:
        ``[N]`` values and ``[3, N]`` change per voxel along each axis (empty without ``slopes``).
    """
    last = np.asarray(array.shape)[:, None] - 1
    index = np.clip(index, 0, last)
    low = np.minimum(index.astype(np.int64), last - 1)
    x, y, z = (index - low).astype(np.float32)
    flat = array.reshape(-1)
    si, sj = array.shape[1] * array.shape[2], array.shape[2]
    base = low[0] * si + low[1] * sj + low[2]
    corner = [flat[base + a * si + b * sj + c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    along_z = [corner[n + 1] - corner[n] for n in (0, 2, 4, 6)]
    edge = [corner[2 * n] + z * along_z[n] for n in range(4)]
    along_y = edge[1] - edge[0], edge[3] - edge[2]
    near, far = edge[0] + y * along_y[0], edge[2] + y * along_y[1]
    values = near + x * (far - near)
    if not slopes:
        return values, np.empty((3, 0), np.float32)
    dy = along_y[0] + x * (along_y[1] - along_y[0])
    dz_near, dz_far = (along_z[n] + y * (along_z[n + 1] - along_z[n]) for n in (0, 2))
    return values, np.stack([far - near, dy, dz_near + x * (dz_far - dz_near)])


def _cubic_window(offset: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The cubic B-spline and its slope at the four bins around a position ``offset`` (1..2) above the first."""
    t = offset - 1
    s = 1 - t
    windows = [s**3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (4 - 6 * s**2 + 3 * s**3) / 6, t**3 / 6]
    slopes = [-(s**2) / 2, -2 * t + 1.5 * t**2, 2 * s - 1.5 * s**2, t**2 / 2]
    return windows, slopes


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, 1e-12))


def _entropy(p: np.ndarray) -> float:
    return float(-(p * _log(p)).sum())
