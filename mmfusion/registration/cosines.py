"""Displacements as sums of cosines, and the solution of a linear system on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmfusion.volume import Grid

_STEPS = 12  # of conjugate gradients


class Cosines(NamedTuple):
    """A displacement as a sum of products of cosines that are flat at the ends of the field of view.

    Attributes:
        weights: ``[3, a, b, c]`` mm along the axes of the grid.
        extent: mm of the field of view along the axes.
    """

    weights: Tensor
    extent: tuple[float, ...]

    @classmethod
    def zero(cls, grid: Grid, wavelength: float, device: str) -> Cosines:
        """No displacement; cosines down to ``wavelength``, at most one a voxel."""
        extent = np.asarray(grid.shape) * grid.spacing
        counts = np.minimum(np.ceil(2 * extent / wavelength) + 1, grid.shape).astype(int)
        return cls(torch.zeros(3, *counts.tolist(), device=device), tuple(extent.tolist()))

    def tables(self, shape: tuple[int, ...]) -> list[Tensor]:
        """For each axis ``[n, count]``: the cosines at n voxel centers."""
        phases = (np.outer(np.arange(n) + 0.5, np.arange(m)) / n for n, m in zip(shape, self.counts, strict=True))
        return [torch.as_tensor(np.cos(np.pi * phase), dtype=torch.float32, device=self.device) for phase in phases]

    def bending(self) -> tuple[Tensor, Tensor]:
        """``[a, b, c]`` mean square over the field of view, of each cosine and of its Laplacian (mm^-4)."""
        rates = [(np.pi * np.arange(m) / mm) ** 2 for m, mm in zip(self.counts, self.extent, strict=True)]
        halves = [np.where(np.arange(m), 0.5, 1.0) for m in self.counts]
        size = halves[0][:, None, None] * halves[1][:, None] * halves[2]
        price = size * (rates[0][:, None, None] + rates[1][:, None] + rates[2]) ** 2
        return (
            torch.as_tensor(size, dtype=torch.float32, device=self.device),
            torch.as_tensor(price, dtype=torch.float32, device=self.device),
        )

    def on(self, shape: tuple[int, ...]) -> Tensor:
        """``[3, i, j, k]`` displacement (mm along the axes) at the voxel centers of a lattice of this field of view."""
        return spread(self.tables(shape), self.weights)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(self.weights.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.weights.device


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], wanted: Tensor, ease: Tensor) -> Tensor:
    """Solve ``matrix(x) = wanted`` approximately, for a positive definite ``matrix``.

    Args:
        matrix: a function of a tensor like ``wanted``.
        wanted: the right side.
        ease: a positive tensor, roughly the inverse of the matrix's diagonal.
    """
    found, rest = torch.zeros_like(wanted), wanted
    eased = ease * rest
    way, size = eased, (rest * eased).sum()
    for _ in range(_STEPS):
        if size <= 1e-20:
            break
        ahead = matrix(way)
        length = size / (way * ahead).sum()
        found, rest = found + length * way, rest - length * ahead
        eased = ease * rest
        last, size = size, (rest * eased).sum()
        way = eased + (size / last) * way
    return found


def spread(tables: list[Tensor], weights: Tensor) -> Tensor:
    """``[C, i, j, k]``: the sum of cosines with ``weights`` ``[C, a, b, c]``."""
    return torch.einsum("ia,cajk->cijk", tables[0], tables[1] @ (weights @ tables[2].T))


def gather(tables: list[Tensor], values: Tensor) -> Tensor:
    """``[C, a, b, c]``: products of each cosine with ``values`` ``[C, i, j, k]``, summed; the adjoint of ``spread``."""
    return torch.einsum("ia,cijk->cajk", tables[0], tables[1].T @ (values @ tables[2]))
