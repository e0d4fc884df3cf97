"""What surrounds each voxel, described alike in every modality, and how that changes from voxel to voxel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def self_similarity(image: Tensor) -> Tensor:
    """What surrounds each voxel, whatever the contrast: ``[12, i, j, k]``, 0..1.

    The self-similarity context of Heinrich et al. (MICCAI 2013): of the six neighbors of a voxel, each pair that is
    not opposite is compared by the mean square difference of its patches of 3 x 3 x 3 voxels; the differences of a
    voxel are divided by their mean there, and turned into similarities by a negative exponential. (A floor under that
    mean, at the level of the noise, cost more than it gave: the little contrast within a CT of the brain is below it.)

    Args:
        image: ``[i, j, k]`` values of about 0..1.
    """
    padded = functional.pad(image[None, None], (1,) * 6, mode="replicate")[0, 0]

    def neighbor(axis: int, step: int) -> Tensor:
        shift = [step if n == axis else 0 for n in range(3)]
        return padded[tuple(slice(1 + by, 1 + by + size) for by, size in zip(shift, image.shape, strict=True))]

    sides = [(axis, step) for axis in range(3) for step in (-1, 1)]
    pairs = [(one, other) for one in sides for other in sides if one[0] < other[0]]
    out = torch.empty(len(pairs), *image.shape, device=image.device)
    for n, (one, other) in enumerate(pairs):
        out[n] = _patch_mean((neighbor(*one) - neighbor(*other)).square())
    out -= out.amin(0)
    typical = out.mean(0)
    return torch.exp_(out.div_(-(typical + 1e-8)))


def _patch_mean(values: Tensor) -> Tensor:
    """``[i, j, k]`` mean over 3 x 3 x 3 voxels, axis by axis."""
    for axis, size in enumerate(values.shape):
        ends = values.narrow(axis, 0, 1), values.narrow(axis, size - 1, 1)
        padded = torch.cat([ends[0], values, ends[1]], axis)
        values = (padded.narrow(axis, 0, size) + padded.narrow(axis, 1, size) + padded.narrow(axis, 2, size)) / 3
    return values


def derivative(values: Tensor, axis: int, step: float) -> Tensor:
    """``[C, i, j, k]`` change per mm along a voxel axis: central differences, one-sided at the ends."""
    dim, size = axis + 1, values.shape[axis + 1]
    out = torch.zeros_like(values)
    if size > 1:
        ends = out.narrow(dim, 0, 1), out.narrow(dim, size - 1, 1)
        torch.sub(values.narrow(dim, 1, 1), values.narrow(dim, 0, 1), out=ends[0])
        torch.sub(values.narrow(dim, size - 1, 1), values.narrow(dim, size - 2, 1), out=ends[1])
        if size > 2:
            middle = out.narrow(dim, 1, size - 2)
            torch.sub(values.narrow(dim, 2, size - 2), values.narrow(dim, 0, size - 2), out=middle).mul_(0.5)
    return out.div_(step)
