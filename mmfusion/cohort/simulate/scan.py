"""How the simulated subjects are scanned: their shape, the scanners' grids, blur and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from mmfusion.cohort.simulate.anatomy import AIR, CENTER, MODALITIES, UNITS, contrast, head
from mmfusion.cohort.simulate.drawing import Points, Waves, index_map, read_template, shape_of
from mmfusion.cohort.simulate.subjects import SimulatedSubject
from mmfusion.errors import OptionError
from mmfusion.volume import Grid, Transform, Volume, foreground, mask_center, normalize_mr

_PER_FWHM = 1 / np.sqrt(8 * np.log(2))  # standard deviation of a Gaussian of width 1 at half its height


@dataclass(frozen=True)
class Scanner:
    """One scanner's protocol.

    Attributes:
        spacing: between voxels along right, anterior, superior, mm.
        shape: voxels along the same axes.
        tilt_deg: of the field of view about the left-right axis, degrees (an oblique series).
        blur_mm: standard deviation of the point spread, mm.
        noise: standard deviation: HU for CT, share of an activity of 5 SUV for PET (it grows with the square root of
            the activity), share of full signal for MR.
        noise_blur_mm: standard deviation of the noise's correlation, mm (0: white).
    """

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    tilt_deg: float
    blur_mm: float
    noise: float
    noise_blur_mm: float


SCANNERS = {
    "ct": Scanner((2.0, 2.0, 3.0), (108, 126, 66), 0.0, 1.2 * _PER_FWHM, 15.0, 0.0),
    "pet": Scanner((4.0, 4.0, 3.3), (60, 64, 58), 0.0, 6.0 * _PER_FWHM, 0.09, 5.0 * _PER_FWHM),
    "mr": Scanner((2.0, 1.9, 2.1), (92, 120, 92), 6.0, 1.5 * _PER_FWHM, 0.03, 0.0),
}

# Share of the region's gray matter that is lost or silent: mean of the healthy, and more for each standard deviation.
# Exaggerated, so that a small network comes near the ceilings with a few hundred subjects.
_ATROPHY, _HYPOMETABOLISM = (0.36, 0.16), (0.32, 0.14)


def native_grid(modality: str) -> Grid:
    """The scanner's grid in its own world: around where the head lies on average, tilted for MR."""
    scanner = SCANNERS[modality]
    straight = Grid.around(CENTER, scanner.spacing, scanner.shape)
    return Grid(
        scanner.shape,
        Transform.rigid((scanner.tilt_deg, 0, 0), center=CENTER).matrix @ straight.affine,
    )


def native_grids(subject: SimulatedSubject) -> dict[str, Grid]:
    """The scanners' grids of the modalities that the subject has."""
    return {name: native_grid(name) for name in subject.modalities}


def simulate_volumes(
    subject: SimulatedSubject, grids: Mapping[str, Grid] | Grid, pose: Transform | None = None
) -> dict[str, Volume]:
    """Scan a subject: one volume for each modality that it has, CT in HU, PET in SUVbw, MR in arbitrary units.

    Two uses. With a grid for each modality (:func:`native_grids`) each is scanned in its own pose, as a scanner
    would. With one grid (:func:`prepared_grid`) all are scanned in one pose, with the blur and the noise that
    resampling the scanners' voxels to this grid leaves: what preparing the raw scans with a perfect registration
    would give, in a small part of the time.

    Args:
        subject: whom to scan; ``subject.missing`` is left out.
        grids: a grid for each modality in the world of its scanner, or one grid for all.
        pose: head frame to the world of the one grid; that of the subject's reference (its first modality) if None,
            :func:`template_pose` for a grid in template space.
    """
    if isinstance(grids, Grid):
        return _scan(subject, subject.modalities, grids, pose or subject.reference_pose, prepared=True)
    scans: dict[str, Volume] = {}
    for name in subject.modalities:
        if name in grids:
            scans |= _scan(subject, (name,), grids[name], subject.poses[name], prepared=False)
    return scans


def prepared_grid(
    subject: SimulatedSubject,
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    size: tuple[int, int, int] = (40, 48, 40),
    reference: str | None = None,
) -> Grid:
    """The grid that preparing the raw scans would choose: around the middle of the reference scan's foreground.

    The middle is that of the template's foreground, carried along by the subject's size and pose.

    Args:
        subject: whose head the grid surrounds.
        spacing: mm.
        size: voxels.
        reference: in whose world; the subject's first modality if None.

    Raises:
        OptionError: the subject lacks the reference.
    """
    reference = reference or subject.modalities[0]
    if reference not in subject.modalities:
        raise OptionError(
            f"{subject.subject}: no {reference} to use as reference; it has {', '.join(subject.modalities)}"
        )
    center = subject.poses[reference].apply(shape_of(subject).grown(_foreground_center(reference)))
    return Grid.around(center.tolist(), spacing, size)


def template_pose(subject: SimulatedSubject) -> Transform:
    """The affine transform from the head frame to the template's world: what takes away the subject's size.

    A registration to the template should find it. The smooth part of the individual shape stays, so that one point of
    the template is the same place in each subject to about 2.5 mm.
    """
    return shape_of(subject).to_template


def mr_scaling(volume: Volume) -> tuple[float, float]:
    """Offset and scale that :func:`mmfusion.volume.normalize_mr` (percentile) would find in the native MR scan.

    For MR simulated straight onto a prepared grid, which has no native scan: the percentile of the prepared voxels,
    times what blur and field of view of the grid take from it, measured once on a typical subject.
    """
    return 0.0, _signal_percentile(volume) * _percentile_ratio(volume.spacing, volume.grid.shape)


def _signal_percentile(volume: Volume) -> float:
    return normalize_mr(volume.array, volume.array > 0.1 * volume.array.max())[1]


@lru_cache(maxsize=8)
def _percentile_ratio(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> float:
    grid = Grid.around(_foreground_center("mr").tolist(), spacing, shape)
    native, prepared = _typical_scan("mr"), simulate_volumes(_TYPICAL, grid)["mr"]
    return normalize_mr(native.array, foreground(native))[1] / _signal_percentile(prepared)


@lru_cache(maxsize=len(MODALITIES))
def _foreground_center(modality: str) -> np.ndarray:
    """``[3]`` center of mass of the foreground of a head of the template's size, head frame, mm."""
    scan = _typical_scan(modality)
    found = mask_center(foreground(scan), scan.grid)
    return np.asarray(CENTER) + (found - CENTER) / shape_of(_TYPICAL).size


_TYPICAL = SimulatedSubject("typical", 0, 0.5, 0.5, {name: Transform() for name in MODALITIES}, 0, 0)


def _typical_scan(modality: str) -> Volume:
    return simulate_volumes(_TYPICAL, {modality: native_grid(modality)})[modality]


def _after_resampling(scanner: Scanner, grid: Grid) -> tuple[float, float]:
    """What :func:`mmfusion.volume.resample` from the scanner's voxels to ``grid`` does: blur (mm), noise left (0..1).

    Variances of the anti-aliasing and of linear interpolation (a sixth of the squared step on average), as a mean
    over the axes; noise falls as a Gaussian of growing width averages it.
    """
    native = np.asarray(scanner.spacing)
    step = np.asarray(grid.spacing) / native
    smoothing = np.where(step > 1.5, (step**2 - 1) / 4, 0.0)
    blur = float(np.mean((smoothing + 1 / 6) * native**2))
    noise = float(np.mean(native)) ** 2 / (4 * np.pi) if scanner.noise_blur_mm == 0 else scanner.noise_blur_mm**2
    return blur**0.5, (noise / (noise + blur)) ** 0.75


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: np.ndarray) -> np.ndarray:
    """Gaussian noise of standard deviation 1 with a correlation of ``sigma`` voxels along each axis."""
    out = rng.standard_normal(shape, dtype=np.float32)
    if sigma.max() > 0.3:
        out = ndimage.gaussian_filter(out, sigma, truncate=3)
        out /= out.std()
    return out


def _gain(subject: SimulatedSubject, modality: str) -> float:
    """The factor of a whole scan: receiver gain of MR (arbitrary units), overall uptake of PET."""
    rng = np.random.default_rng([subject.noise_seed, MODALITIES.index(modality), 1])
    return float(rng.uniform(300, 900)) if modality == "mr" else float(np.exp(0.1 * rng.standard_normal()))


def _scan(
    subject: SimulatedSubject, names: tuple[str, ...], grid: Grid, pose: Transform, *, prepared: bool
) -> dict[str, Volume]:
    """Modalities on one grid in one pose; ``prepared``: with what resampling the scanners' voxels would change."""
    points = Points(subject, grid, pose)
    resampling = {name: _after_resampling(SCANNERS[name], grid) if prepared else (0.0, 1.0) for name in names}
    models = []
    for name in names:
        blur = round(float(np.hypot(SCANNERS[name].blur_mm, resampling[name][0])), 3)
        models.append(contrast(name, blur).at(disease_share(subject, name)))
    return {
        name: Volume(
            _acquire(subject, name, array, points, *resampling[name]),
            grid.affine,
            name,
            UNITS[name],
            {"source": subject.subject},
        )
        for name, array in zip(names, read_template(np.stack(models), points.index), strict=True)
    }


def disease_share(subject: SimulatedSubject, modality: str) -> float:
    """Share of the diseased region's gray matter that is lost (MR) or silent (PET); CT shows no disease."""
    if modality == "ct":
        return 0.0
    severity = subject.mr_severity if modality == "mr" else subject.pet_severity
    start, slope = _ATROPHY if modality == "mr" else _HYPOMETABOLISM
    return float(np.clip(start + slope * severity, 0, 1))


def _acquire(
    subject: SimulatedSubject, modality: str, array: np.ndarray, points: Points, blur: float, left: float
) -> np.ndarray:
    """Noise, gain, bias and table on the signal ``[i, j, k]``; see :func:`_after_resampling` for blur and left."""
    scanner, grid = SCANNERS[modality], points.grid
    rng = np.random.default_rng([subject.noise_seed, MODALITIES.index(modality)])
    has_table, bias = rng.random() < 0.5, Waves.draw(rng, 0.04, (200, 400), 1)
    correlation = np.hypot(scanner.noise_blur_mm, blur) / np.asarray(grid.spacing)
    noise = _noise(rng, grid.shape, correlation) * np.float32(scanner.noise * left)
    if modality == "ct":
        if has_table:
            array = np.maximum(array, _table(subject, points))
        return np.maximum(array + noise, -1024)
    gain = np.float32(_gain(subject, modality))
    if modality == "pet":
        # Poisson-like: the variance grows with the activity
        return np.maximum(array + noise * np.sqrt(array * 5 + 0.1), 0) * gain
    array = array * np.exp(bias.on(points.to_head, grid.shape)[0]) + noise
    # magnitude of a complex signal (Rician); averaged voxels keep its floor, not its scatter
    averaged = left < 1
    second = np.float32(np.sqrt(np.pi / 2)) if averaged else rng.standard_normal(grid.shape, dtype=np.float32)
    return np.hypot(array, np.float32(scanner.noise) * second) * gain


def _table(subject: SimulatedSubject, points: Points) -> np.ndarray:
    """``[i, j, k]`` HU of a table top of 12 mm, 240 mm wide, 12 mm below the lowest point of the head; else air."""
    pose = subject.poses["ct"]
    lowest = pose.apply(shape_of(subject).grown(head().surface))[:, 1].min() - 12
    x, y, _ = index_map(pose.matrix @ points.to_head, points.grid.shape)
    inside = (y < lowest) & (y > lowest - 12) & (np.abs(x - CENTER[0]) < 120)
    return np.where(inside, np.float32(80), np.float32(AIR["ct"]))
