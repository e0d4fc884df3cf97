"""What a linear transform leaves: the smooth displacement between two volumes, of one modality or of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.registration.align import cores
from mmfusion.registration.cosines import Cosines, conjugate_gradients, gather, spread
from mmfusion.registration.self_similarity import derivative, self_similarity
from mmfusion.registration.similarity import mutual_information
from mmfusion.volume import (
    PET_UNITS,
    Displacement,
    Grid,
    Transform,
    Volume,
    check_device,
    coverage,
    foreground,
    resample,
)

_LEVELS = ((4, 4), (2, 4), (1, 3))  # times the spacing, and how often the displacement is improved there
_STIFFER = (1.0, 10.0, 100.0)  # times the stiffness, one after the other, until mutual information agrees
_BODY_MM = 4.0  # resolution at which the body is found
_MARGIN_MM = 6.0  # around the body: the skin is information, the far air is not
_BOX_MM = 12.0  # around what is compared: the displacement is free there
_FADE_MM = 24.0  # around that box: the displacement goes to zero there
_VOXELS = 1.5  # the resolution of a scan in its voxels (FWHM)
_PET_FWHM = 7.0  # mm, that of PET however small its voxels are
_UNFOLD = 12  # attempts
_ENTRIES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # of a symmetric 3 x 3 matrix


class Deformed(NamedTuple):
    """A displacement of the fixed world: its point x lies at ``linear(x + u(x))`` in the moving world.

    Attributes:
        transform: fixed_to_moving, with the linear transform and u. The grid of u follows the axes of the fixed
            volume and covers the box around the fixed body or mask (at most the field of view) and 24 mm more, in
            which u fades to zero.
        similarity_before, similarity_after: normalized mutual information (0..1, see
            :func:`mmfusion.registration.mutual_information`) in the body, under the linear transform alone and with u.
            The search looks at something else, so this is a second opinion; it never falls.
        folded: share of the grid's voxels where space folds (Jacobian determinant not positive), 0..1.
        mean_mm, largest_mm: length of u in the body.
    """

    transform: Transform
    similarity_before: float
    similarity_after: float
    folded: float
    mean_mm: float
    largest_mm: float


def deform(
    fixed: Volume,
    moving: Volume,
    linear: Transform,
    *,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    spacing: float = 2.0,
    wavelength: float = 20.0,
    stiffness: float = 100.0,
    device: str = "cpu",
    threads: int = 1,
) -> Deformed:
    """Find the smooth displacement that aligns two volumes after a linear transform. No voxels are kept.

    The images are compared by their self-similarity (see :func:`self_similarity`), which survives other contrasts,
    inhomogeneous coils and noise. A volume is first blurred to the resolution of the other: sharp and blurred edges
    have different surroundings. The displacement is a sum of cosines (Ashburner and Friston, Human Brain Mapping
    1999) with the energy of its second derivatives as the price of bending. On each of three resolutions it is
    improved a few times by a Gauss-Newton step, solved by conjugate gradients. If space folds in the end, the fast
    cosines are damped until it does not. If mutual information is then lower than under the linear transform alone,
    the search is repeated with ten and a hundred times the stiffness; if that does not help, nothing is displaced.
    The same volumes give the same result on a CPU.

    What cannot be compared (outside the body or a mask, or what the moving volume did not see) pulls at nothing; the
    displacement continues there as smoothly as it can. About 400 bytes a voxel of ``spacing`` are needed.

    Args:
        fixed: the reference.
        moving: what is to be aligned with it, of any modality.
        linear: fixed_to_moving, as near as a linear transform comes.
        fixed_mask: ``[i, j, k]`` bool on the fixed voxels: only these are compared. The body if None.
        moving_mask: the same on the moving voxels; all if None.
        spacing: mm of the finest comparison and of the result; thicker slices stay as they are.
        wavelength: mm of the fastest cosine: what is smaller is not followed.
        stiffness: price of bending; ten times more or less is felt.
        device: ``cpu``, or a torch device such as ``cuda``.
        threads: of torch on the CPU.

    Raises:
        GeometryError: a single slice; a mask of another shape; nothing that both scans saw; or ``linear`` has a
            displacement field already.
        VoxelError: a volume is not finite or constant (also where both scans look), or without a foreground.
        OptionError: lengths or stiffness not positive, or a device that is not there.
    """
    if not (min(spacing, wavelength, stiffness) > 0 and np.isfinite([spacing, wavelength, stiffness]).all()):
        raise OptionError(
            "spacing, wavelength and stiffness of a deformable registration are positive numbers, "
            f"found {spacing:g}, {wavelength:g} and {stiffness:g}"
        )
    if linear.displacement is not None:
        raise GeometryError("a deformable registration starts from a linear transform; this one has a displacement")
    for volume, mask in ((fixed, fixed_mask), (moving, moving_mask)):
        if min(volume.array.shape) < 2:
            raise GeometryError(f"{volume.name}: a single slice ({volume.array.shape}) cannot be registered in 3D")
        if mask is not None and np.shape(mask) != volume.array.shape:
            raise GeometryError(
                f"{volume.name}: the mask has shape {np.shape(mask)}, the volume {volume.array.shape}; "
                "draw the mask on the volume's own voxels"
            )
        volume.checked()
    check_device(device)
    with cores(threads), torch.inference_mode():
        pair = _Pair(fixed, moving, linear, (fixed_mask, moving_mask), spacing, device)
        still = Cosines.zero(pair.field, wavelength, device)
        levels = [_Level(pair, factor * spacing, max(factor, 2) * spacing, still) for factor, _ in _LEVELS]
        for stiffer in _STIFFER:
            field = still
            for level, (_, rounds) in zip(levels, _LEVELS, strict=True):
                for _ in range(rounds):
                    field = level.improved(field, stiffer * stiffness)
            found = _result(pair, field, linear)
            if found.similarity_after >= found.similarity_before:
                return found
        return _result(pair, still, linear)


class _Pair:
    """Two volumes on one lattice along the fixed axes, the moving one through the linear transform.

    Attributes:
        field: the part of the fixed volume's grid around what is compared.
        grid: the lattice, of the same box.
        fixed, moving: ``[i, j, k]`` values, 0..1, equally sharp.
        near: ``[i, j, k]`` 1 in the fixed mask or body, else 0.
        seen: ``[i, j, k]`` 1 where the moving volume has a value, else 0.
    """

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        linear: Transform,
        masks: tuple[np.ndarray | None, np.ndarray | None],
        spacing: float,
        device: str,
    ) -> None:
        near = _near_body(fixed) if masks[0] is None else fixed.replace(array=np.asarray(masks[0], bool))
        self.field = _box(near, fixed.grid)
        self.grid = lattice(self.field, spacing)
        seen = coverage(moving.grid, self.grid, linear)
        if masks[1] is not None:
            there = moving.replace(array=np.asarray(masks[1], bool))
            seen &= resample(there, self.grid, linear, order=0, fill=0).array.astype(bool)
        compared = resample(near, self.grid, order=0, fill=0).array.astype(bool)
        if not (compared & seen).any():
            raise GeometryError(
                f"{fixed.name} and {moving.name}: after the linear transform they share no voxel of the body or mask; "
                "align them first, or check the masks"
            )
        arrays = [resample(fixed, self.grid).array, resample(moving, self.grid, linear).array]
        blurs = [_fwhm(fixed, self.grid, Transform()), _fwhm(moving, self.grid, linear)]
        for n, volume in enumerate((fixed, moving)):
            missing = np.sqrt(np.maximum(blurs[1 - n] ** 2 - blurs[n] ** 2, 0)) / 2.355  # sigma, mm
            arrays[n] = _unit_range(_blurred(arrays[n], missing / self.grid.spacing), compared & seen, volume)
        self.fixed, self.moving, self.near, self.seen = (
            torch.as_tensor(np.ascontiguousarray(a, np.float32), device=device) for a in (*arrays, compared, seen)
        )


class _Level:
    """The pair at one resolution, and one step towards a better displacement.

    Args:
        pair: the two volumes.
        spacing: mm of the comparison.
        solved: mm of the lattice on which the linear system is set up.
        field: any displacement with the cosines in use.
    """

    def __init__(self, pair: _Pair, spacing: float, solved: float, field: Cosines) -> None:
        grid = lattice(pair.field, spacing)
        self.shape, self.solved = grid.shape, lattice(pair.field, solved).shape
        self.voxel = float(np.prod(grid.spacing))
        seen = shrunk(pair.seen, self.shape)
        moving = shrunk(pair.moving * pair.seen, self.shape) / seen.clamp(min=1e-3)
        near = shrunk(pair.near, self.shape) > 0.5
        if not near.any():  # a mask of a few voxels
            near = shrunk(pair.near, self.shape) > 0
        self.body = near.flatten().nonzero()[:, 0]
        features = self_similarity(shrunk(pair.fixed, self.shape))
        slopes = (derivative(features, axis, mm) for axis, mm in enumerate(grid.spacing))
        self.slopes = torch.stack([_inside(slope, self.body) for slope in slopes])
        self.fixed = _inside(features, self.body)
        self.squares = torch.stack([(self.slopes[a] * self.slopes[b]).sum(0) for a, b in _ENTRIES])
        self.moving = torch.cat([self_similarity(moving), (seen > 0.99)[None].float()])
        self.reader = _Reader(grid, self.body)
        self.tables, self.solving = field.tables(self.shape), field.tables(self.solved)
        self.size, self.price = field.bending()

    def improved(self, field: Cosines, stiffness: float) -> Cosines:
        """One Gauss-Newton step. The slopes are the fixed image's: they need no new reading at each step."""
        *read, seen = self.reader(self.moving, _inside(spread(self.tables, field.weights), self.body))
        rest = self.fixed - torch.stack(read)
        counted = seen.sum()
        if counted == 0:
            return field
        # in units of what is left: images that explain each other badly pull less
        weight = seen / ((rest.square() * seen).sum() / (counted * len(rest))).clamp(min=1e-6)
        system = torch.zeros(9, self.moving[0].numel(), device=field.device)
        system[:6, self.body] = self.squares * weight
        for n, slope in enumerate(self.slopes):
            system[6 + n, self.body] = (slope * rest).sum(0) * weight
        system = shrunk(system.unflatten(1, self.shape), self.solved)
        bend, voxels = stiffness * self.voxel * self.price, float(np.prod(self.solved))
        xx, yy, zz, xy, xz, yz = system[:6]

        def curvature(weights: Tensor) -> Tensor:
            x, y, z = spread(self.solving, weights)
            pull = torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z])
            return gather(self.solving, pull) / voxels + bend * weights

        wanted = gather(self.solving, system[6:]) / voxels - bend * field.weights
        ease = 1 / (system[:3].mean() * self.size + bend).clamp(min=1e-12)
        return field._replace(weights=field.weights + conjugate_gradients(curvature, wanted, ease))


class _Reader:
    """Reads images of a lattice at displaced voxels.

    Args:
        grid: the lattice.
        voxels: ``[N]`` flat indices of the voxels.
    """

    def __init__(self, grid: Grid, voxels: Tensor) -> None:
        self.size, self.step = (
            torch.tensor(a, dtype=torch.float32, device=voxels.device)[:, None] for a in (grid.shape, grid.spacing)
        )
        self.index = torch.stack(torch.unravel_index(voxels, grid.shape)).float()

    def __call__(self, images: Tensor, displacement: Tensor) -> Tensor:
        """``[C, N]`` values of ``[C, i, j, k]``; the last channel says what is seen, and is 0 outside the lattice.

        Args:
            images: ``[C, i, j, k]``.
            displacement: ``[3, N]`` of the voxels, mm along the axes.
        """
        index = self.index + displacement / self.step
        points = ((2 * index + 1) / self.size - 1).flip(0).T[None, None, None]
        values = functional.grid_sample(images[None], points, padding_mode="border", align_corners=False)[0, :, 0, 0]
        values[-1] *= ((index > -0.5) & (index < self.size - 0.5)).all(0)
        return values


def shrunk(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[..., i, j, k]`` averaged over the voxels of a coarser lattice with the same field of view."""
    *channels, i, j, k = values.shape
    return functional.adaptive_avg_pool3d(values.reshape(1, -1, i, j, k), (shape[0], shape[1], shape[2])).reshape(
        *channels, *shape
    )


def lattice(grid: Grid, spacing: float) -> Grid:
    """Voxels of about ``spacing`` mm that fill the field of view of ``grid``; thicker slices stay as they are."""
    size = np.asarray(grid.shape)
    shape = np.clip(np.rint(size * grid.spacing / spacing), np.minimum(size, 2), size)
    return grid.regrouped(shape, size / shape)


def _result(pair: _Pair, field: Cosines, linear: Transform) -> Deformed:
    """Unfold, measure, and give the displacement its world."""
    transform = Transform(linear.matrix, _in_world(pair.grid, field))
    folded = transform.folding
    size, price = field.bending()
    slow = price / size / price.max().clamp(min=1e-12)
    for _ in range(_UNFOLD):
        if folded == 0:
            break
        field = field._replace(weights=field.weights / (1 + slow.sqrt()) * 0.95)
        transform = Transform(linear.matrix, _in_world(pair.grid, field))
        folded = transform.folding
    body = (pair.near > 0.5).flatten().nonzero()[:, 0]
    moved = _inside(field.on(pair.grid.shape), body)
    images = torch.stack([pair.moving, pair.seen])
    reader, fixed = _Reader(pair.grid, body), _inside(pair.fixed[None], body)[0]

    def similarity(displacement: Tensor) -> float:
        values, seen = reader(images, displacement)
        counted = seen > 0.99
        if not counted.any():
            return 0.0
        return mutual_information(fixed[counted].cpu().numpy(), values[counted].cpu().numpy())

    length = moved.norm(dim=0)
    return Deformed(
        transform,
        similarity(torch.zeros_like(moved)),
        similarity(moved),
        folded,
        float(length.mean()),
        float(length.max()),
    )


def _in_world(grid: Grid, field: Cosines) -> Displacement:
    """The displacement in RAS mm on the lattice and around it, where it fades."""
    axes = torch.as_tensor(grid.affine[:3, :3] / grid.spacing, dtype=torch.float32)
    inside = np.einsum("wa,aijk->ijkw", axes.numpy(), field.on(grid.shape).cpu().numpy())
    margins = np.ceil(_FADE_MM / np.asarray(grid.spacing)).astype(int)
    array = np.pad(inside, [(m, m) for m in margins] + [(0, 0)], mode="edge")
    for axis, margin in enumerate(margins):
        out = np.arange(1, margin + 1) / (margin + 1)  # 0 at the lattice, 1 where u is zero
        fade = np.concatenate([out[::-1], np.zeros(grid.shape[axis]), out])
        array *= (
            (0.5 + 0.5 * np.cos(np.pi * fade)).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(4)])
        )
    return Displacement(array, grid.regrouped(array.shape[:3], first=-margins))


def _box(near: Volume, grid: Grid) -> Grid:
    """The part of ``grid`` around a mask on a lattice of the same field of view; all of it if the mask is empty."""
    index = np.argwhere(near.array)
    if not len(index):
        return grid
    size, scale = np.asarray(grid.shape), np.asarray(grid.shape) / near.array.shape
    margin = _BOX_MM / np.asarray(grid.spacing)
    first = np.clip(np.floor(index.min(0) * scale - margin), 0, size - 2).astype(int)
    last = np.clip(np.ceil((index.max(0) + 1) * scale + margin), first + 2, size).astype(int)
    return grid.regrouped(last - first, first=first)


def _near_body(volume: Volume) -> Volume:
    """The body and what lies at most 6 mm from it, as a mask."""
    from scipy import ndimage

    rough = resample(volume, lattice(volume.grid, _BODY_MM))
    distance = ndimage.distance_transform_edt(~foreground(rough), sampling=rough.spacing)
    return rough.replace(array=distance <= _MARGIN_MM)


def _fwhm(volume: Volume, grid: Grid, linear: Transform) -> np.ndarray:
    """``[3]`` resolution along the axes of ``grid``, mm: 1.5 voxels, or what the scanner gives if that is more."""
    turn = np.linalg.inv(volume.affine[:3, :3] / volume.spacing) @ linear.matrix[:3, :3]
    along = np.abs(turn @ (grid.affine[:3, :3] / grid.spacing))  # [volume axis, lattice axis]
    steps = np.sqrt(((along * np.asarray(volume.spacing)[:, None]) ** 2).sum(0))
    least = _PET_FWHM if volume.units in PET_UNITS else 0.0
    return np.maximum(_VOXELS * np.maximum(steps, grid.spacing), least)


def _blurred(array: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=3) if (sigma > 0.25).any() else array


def _unit_range(array: np.ndarray, compared: np.ndarray, volume: Volume) -> np.ndarray:
    """Values clipped to all but the extremes of what is compared, and scaled to 0..1."""
    low, high = np.percentile(array[compared], [0.5, 99.5])
    if not high > low:
        low, high = float(array[compared].min()), float(array[compared].max())
    if not high > low:
        raise VoxelError(
            f"{volume.name}: every voxel that both scans see has the value {low:g}; align the volumes first, "
            "or check the masks"
        )
    return (np.clip(array, low, high) - low) / (high - low)


def _inside(values: Tensor, voxels: Tensor) -> Tensor:
    """``[C, N]``: ``[C, i, j, k]`` at flat indices ``[N]``."""
    return values.flatten(1)[:, voxels]
