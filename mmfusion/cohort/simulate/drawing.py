"""Drawing an individual head: the template, individually shaped, at the voxels of any grid in any pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfusion.cohort.simulate.anatomy import CENTER, STEP_MM, head
from mmfusion.cohort.simulate.subjects import SimulatedSubject
from mmfusion.volume import Grid, Transform


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random field: a sum of plane waves, exact at any point, without a lattice to interpolate.

    ``field(x) = sum_k amplitude[k] cos(wave[k] . x + phase[k])``; a wave is a product over the axes of a grid,
    however oblique, so a whole grid costs one small matrix product.
    """

    wave: np.ndarray  # [K, 3], radians per mm
    phase: np.ndarray  # [K], radians
    amplitude: np.ndarray  # [K, C]

    @classmethod
    def draw(cls, rng: np.random.Generator, rms: float, lengths: tuple[float, float], channels: int) -> Waves:
        """12 waves of ``lengths`` (mm) in random directions; ``rms`` is the field's size in each channel."""
        direction = rng.standard_normal((12, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wave = direction * (2 * np.pi / rng.uniform(*lengths, 12))[:, None]
        amplitude = rng.standard_normal((12, channels)) * rms * np.sqrt(2 / 12)
        return cls(wave, rng.uniform(0, 2 * np.pi, 12), amplitude)

    def on(self, to_world: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """``[C, i, j, k]`` float32 the field at ``to_world`` ``[4, 4]`` of the voxel indices of ``shape``."""
        step, start = self.wave @ to_world[:3, :3], self.wave @ to_world[:3, 3] + self.phase
        x, y, z = (np.exp(1j * step[:, a, None] * np.arange(shape[a])) for a in range(3))
        plane = (x[:, :, None] * y[:, None, :] * np.exp(1j * start)[:, None, None]).reshape(len(start), -1)
        # the real part of a product of complex numbers is a product of real matrices twice as wide
        left = np.concatenate([plane.real, -plane.imag]).astype(np.float32)
        out = []
        for amplitude in self.amplitude.T:
            right = np.concatenate([z.real * amplitude[:, None], z.imag * amplitude[:, None]])
            out.append(left.T @ right.astype(np.float32))
        return np.stack(out).reshape(-1, *shape)


@dataclass(frozen=True, eq=False)
class Shape:
    """How an individual head differs from the template: size along each axis, and a smooth displacement."""

    size: np.ndarray  # [3], 1 is the template's
    waves: Waves  # mm

    def grown(self, points: np.ndarray) -> np.ndarray:
        """Template points ``[..., 3]`` (head frame, mm) after the change of size alone."""
        return np.asarray(CENTER) + self.size * (np.asarray(points) - CENTER)

    @property
    def to_template(self) -> Transform:
        """The head frame to the template after the change of size alone: undoes :meth:`grown`."""
        matrix = np.diag([*(1 / self.size), 1.0])
        matrix[:3, 3] = np.array(CENTER) * (1 - 1 / self.size)
        return Transform(matrix)


def shape_of(subject: SimulatedSubject) -> Shape:
    """The individual shape: size within 5 % along each axis, smooth displacements of about 1.5 mm."""
    rng = np.random.default_rng(subject.deformation_seed)
    size = 1 + 0.025 * np.clip(rng.standard_normal() + 0.5 * rng.standard_normal(3), -2, 2)
    return Shape(size, Waves.draw(rng, 1.5, (70, 200), 3))


class Points:
    """Where the voxels of a grid lie: in the head frame, and (after the individual shape) in the template."""

    def __init__(self, subject: SimulatedSubject, grid: Grid, pose: Transform) -> None:
        self.grid, self.pose = grid, pose
        self.to_head = pose.inverse().matrix @ grid.affine
        shape = shape_of(subject)
        to_index = np.linalg.inv(head().grid.affine) @ shape.to_template.matrix @ self.to_head
        self.index = index_map(to_index, grid.shape)
        self.index += shape.waves.on(self.to_head, grid.shape) / np.float32(STEP_MM)


def index_map(matrix: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """``[3, i, j, k]`` float32: ``matrix`` ``[4, 4]`` applied to the voxel indices of ``shape``."""
    i, j, k = np.ogrid[tuple(slice(0, n) for n in shape)]
    rows = [(r[0] * i + r[3]).astype(np.float32) + (r[1] * j + r[2] * k).astype(np.float32) for r in matrix[:3]]
    return np.stack(rows)


def read_template(models: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``[C, i, j, k]``: template images ``[C, ...]`` at fractional indices ``[3, i, j, k]``, air beyond the edge.

    This draws the subject from its template; scans, which are volumes, are only ever resampled by
    :func:`mmfusion.volume.resample`.
    """
    import torch
    from torch.nn.functional import grid_sample

    last = np.array(models.shape[1:], np.float32)[:, None, None, None] - 1
    # torch wants -1 to 1 between the first and the last voxel, the fastest axis first
    place = np.moveaxis((index * (2 / last) - 1)[::-1], 0, -1)
    source, points = (
        torch.from_numpy(models)[None],
        torch.from_numpy(np.ascontiguousarray(place, np.float32))[None],
    )
    return grid_sample(source, points, padding_mode="border", align_corners=True)[0].numpy()
