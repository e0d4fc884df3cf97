"""How well two images explain each other: mutual information, as a measure and as a cost with its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mmfusion.errors import GeometryError, VoxelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.registration.levels import Level

BINS = 32
_CHUNK = 40_000  # points at a time on a CPU: what its caches hold
_CHUNK_GPU = 8_000_000
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
    """What :class:`Similarity` finds at each of R positions.

    Attributes:
        value: ``[R]`` normalized mutual information, 0..1.
        inside: ``[R]`` share of the sample points that fall into the target (and its mask), 0..1.
        gradient: ``[R, 3, 4]`` change of ``value`` with each entry of the upper part of the transform's matrix.
    """

    value: np.ndarray
    inside: np.ndarray
    gradient: np.ndarray


class Similarity:
    """Normalized mutual information between sample points of P images and P others, at R positions in one batch.

    The estimate is that of Mattes et al. (IEEE TMI 2003): a histogram with hard bins for the points' own values
    and a cubic B-spline Parzen window for the values read from the target, which gives an analytic gradient.
    It is normalized as :func:`mutual_information` is. Values read at points are part of the measure and are
    never stored as voxels, which is why they do not come from :func:`mmfusion.volume.resample`.

    All numbers live on the device of the targets; the positions come and go as numpy arrays in double precision.

    Args:
        points: ``[P, 3, N]`` sample points in the world of the first images, RAS mm.
        values: ``[P, N]`` their values there, 0..1.
        targets: P images that are read.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray, targets: Sequence[Level]) -> None:
        device = targets[0].data.device
        self.points = points
        # single precision keeps the digits if coordinates are small: the points' own center is the origin
        self.center = points.mean(2)
        local = np.ones((len(points), 4, points.shape[2]), np.float32)
        local[:, :3] = points - self.center[:, :, None]
        self._local = torch.from_numpy(local).to(device)
        bins = np.rint(np.clip(values, 0, 1) * (BINS - 1)).astype(np.int64) * BINS
        self._bins = torch.from_numpy(bins).to(device)
        self._to_index = np.stack([target.to_index for target in targets])
        self._shapes = np.array([target.data.shape for target in targets])
        different = list({id(target): target for target in targets}.values())
        flats = [target.data.reshape(-1) for target in different]
        self._flat = flats[0] if len(flats) == 1 else torch.cat(flats)
        begins = dict(zip(map(id, different), np.cumsum([0, *map(len, flats)]), strict=False))
        self._offsets = np.array([begins[id(target)] for target in targets], np.int64)
        self._mask = None
        if any(target.mask is not None for target in different):
            masks = [torch.ones_like(t.data) if t.mask is None else t.mask.float() for t in different]
            self._mask = torch.cat([mask.reshape(-1) for mask in masks])

    def __call__(self, matrices: np.ndarray, pairs: np.ndarray | None = None, *, gradient: bool = True) -> Similar:
        """The similarity if ``matrices`` ``[R, 4, 4]`` take the points of image ``pairs`` ``[R]`` to its target.

        Args:
            matrices: points' world to target's world, RAS mm.
            pairs: which of the P images each row is about; all the first if None.
            gradient: compute it too.
        """
        rows = len(matrices)
        pairs = np.zeros(rows, int) if pairs is None else pairs
        count = self._local.shape[2]
        step = max(1, _CHUNK // count) if self._local.device.type == "cpu" else max(1, _CHUNK_GPU // count)
        parts = [self._some(matrices[at : at + step], pairs[at : at + step], gradient) for at in range(0, rows, step)]
        return Similar(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _some(
        self, matrices: np.ndarray, pairs: np.ndarray, gradient: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, device = len(matrices), self._local.device
        to_index, center, sizes = self._to_index[pairs], self.center[pairs], self._shapes[pairs]
        from_local = matrices.copy()
        from_local[:, :3, 3] += np.einsum("rij,rj->ri", matrices[:, :3, :3], center)
        local, bins = self._local, self._bins
        if len(local) > 1:
            which = torch.from_numpy(pairs).to(device)
            local, bins = local[which], bins[which]
        index = _tensor((to_index @ from_local)[:, :3], device) @ local
        shape = _tensor(sizes, device)[:, :, None]
        strides = torch.from_numpy(np.stack([sizes[:, 1] * sizes[:, 2], sizes[:, 2], np.ones_like(pairs)], 1))
        strides, offsets = strides.to(device), torch.from_numpy(self._offsets[pairs]).to(device)
        counted = ((index >= -0.5) & (index <= shape - 0.5)).all(1).float()
        if self._mask is not None:
            nearest = torch.minimum((index + 0.5).floor().clamp_(min=0), shape - 1).long()
            at = (nearest * strides[:, :, None]).sum(1) + offsets[:, None]
            counted = counted * self._mask[at]
        read, slopes = _trilinear(self._flat, index, shape, strides, offsets, gradient)
        position = read.clamp(0, 1) * (BINS - 1 - 2 * _PAD) + _PAD
        first = position.floor()
        windows, window_slopes = _cubic_window(position - first, gradient)
        cells = (first.long() + bins + (torch.arange(rows, device=device)[:, None] * (BINS * BINS) - 1)).reshape(-1)
        histogram = torch.zeros(rows * BINS * BINS, device=device)
        for k in range(4):  # a view that begins k cells later, instead of other cells: one large array less
            histogram[k:].scatter_add_(0, cells, (windows[k] * counted).reshape(-1))
        total = counted.sum(1).double()
        share = total.cpu().numpy() / local.shape[2]
        total = total.clamp(min=1)
        joint = histogram.reshape(rows, BINS, BINS).double() / total[:, None, None]
        own, other = joint.sum(2), joint.sum(1)
        both = -(joint * _log(joint)).sum((1, 2))
        each = -(own * _log(own)).sum(1) - (other * _log(other)).sum(1)
        known = (total >= BINS) & (each > 1e-9)  # too few points, or all in one bin: nothing is known
        each = torch.where(known, each, torch.ones_like(each))
        value = torch.where(known, 2 - 2 * both / each, torch.zeros_like(each)).cpu().numpy()
        if not gradient:
            return value, share, np.zeros((rows, 3, 4))
        # the derivative of the value with each cell of the histogram; constants drop out, the cells sum to one
        table = 2 * _log(joint) / each[:, None, None] - (2 * both / each**2)[:, None, None] * _log(other)[:, None]
        table = (table * (known / total)[:, None, None]).float().reshape(-1)
        by_value = torch.zeros_like(read)
        for k in range(4):
            by_value.addcmul_(table[k:].index_select(0, cells).reshape(read.shape), window_slopes[k])
        by_value *= counted * (BINS - 1 - 2 * _PAD)
        by_index = (slopes * by_value[:, None]) @ local.transpose(1, 2)
        slope = to_index[:, :3, :3].transpose(0, 2, 1) @ by_index.double().cpu().numpy()
        slope[:, :, :3] += slope[:, :, 3:] * center[:, None]  # so far it belonged to points about their own center
        return value, share, slope


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)


def _trilinear(
    flat: torch.Tensor,
    index: torch.Tensor,
    shape: torch.Tensor,
    strides: torch.Tensor,
    offsets: torch.Tensor,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values ``[R, N]`` and slopes per voxel ``[R, 3, N]`` at voxel indices ``[R, 3, N]``; the edge is continued."""
    index = torch.minimum(index.clamp(min=0), shape - 1)
    low = torch.minimum(index.floor(), shape - 2)
    x, y, z = (index - low).unbind(1)
    base = (low.long() * strides[:, :, None]).sum(1) + offsets[:, None]
    corners = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    if bool((strides == strides[0]).all()):  # images of one shape: the corner lies equally far in all
        i, j, _ = strides[0].tolist()
        corner = [
            flat[a * i + b * j + c :].index_select(0, base.reshape(-1)).reshape(base.shape) for a, b, c in corners
        ]
    else:
        i, j = strides[:, 0, None], strides[:, 1, None]
        corner = [
            flat.index_select(0, (base + (a * i + b * j + c)).reshape(-1)).reshape(base.shape) for a, b, c in corners
        ]
    along_z = [corner[n + 1] - corner[n] for n in (0, 2, 4, 6)]
    edge = [corner[2 * n] + z * along_z[n] for n in range(4)]
    along_y = edge[1] - edge[0], edge[3] - edge[2]
    near, far = edge[0] + y * along_y[0], edge[2] + y * along_y[1]
    values = near + x * (far - near)
    if not gradient:
        return values, values
    dy = along_y[0] + x * (along_y[1] - along_y[0])
    dz_near, dz_far = (along_z[n] + y * (along_z[n + 1] - along_z[n]) for n in (0, 2))
    return values, torch.stack([far - near, dy, dz_near + x * (dz_far - dz_near)], 1)


def _cubic_window(t: torch.Tensor, slopes: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The cubic B-spline and its slope at the four bins around a position ``t`` (0..1) above the second of them."""
    s = 1 - t
    t2, s2 = t * t, s * s
    windows = [s2 * s / 6, 2 / 3 - t2 + t2 * t / 2, 2 / 3 - s2 + s2 * s / 2, t2 * t / 6]
    if not slopes:
        return windows, []
    return windows, [-s2 / 2, 1.5 * t2 - 2 * t, 2 * s - 1.5 * s2, t2 / 2]


def _log(p: torch.Tensor) -> torch.Tensor:
    return p.clamp(min=1e-12).log()


def _entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(np.maximum(p, 1e-12))).sum())
