"""Comparable voxel values: windows for CT, ranges for PET, normalization for MR, and the body's foreground."""

from __future__ import annotations

import numpy as np

from mmfusion.errors import OptionError, VoxelError
from mmfusion.options import OPTIONS
from mmfusion.volume.volume import NORMALIZED, PET_UNITS, SUV_UNITS, Volume

SUV_MAX: float = OPTIONS["suv_max"].default
"""The SUV that becomes 1, where no other is given."""
HOT_SUV = 4.0
"""SUV (body weight or lean body mass) of the hot volume, at least: the fixed threshold that lymphomas are measured by
(Boellaard, J Nucl Med 65:1343, 2024). Brain, heart, kidneys and bladder are hot, too."""


def window_ct(array: np.ndarray, low: float = -160.0, high: float = 240.0) -> np.ndarray:
    """Clip HU to a window and scale it to 0..1.

    Args:
        array: HU, any shape.
        low, high: the ends of the window, HU; the default is the usual soft-tissue window (level 40, width 400).
    """
    return _scaled(array, low, high)


def clip_suv(array: np.ndarray, high: float = SUV_MAX) -> np.ndarray:
    """Clip SUV to 0..high and scale it to 0..1.

    Args:
        array: SUV of any kind, any shape.
        high: the SUV that becomes 1.
    """
    return _scaled(array, 0.0, high)


def clip_level(units: str, suv_max: float = SUV_MAX, pet_max: float | None = None) -> float | None:
    """The value above which PET of these units is clipped; None where it is not, and for scans that are no PET."""
    if units in SUV_UNITS:
        return suv_max
    return pet_max if units in PET_UNITS else None


def clipped_share(volume: Volume, level: float | None, within: np.ndarray | None = None) -> float | None:
    """The share, 0 to 1, of the voxels of a region whose values lie above the level at which they will be clipped.

    Args:
        volume: PET in its own units.
        level: of :func:`clip_level`.
        within: ``[i, j, k]`` bool, the region; None for the hot volume, the voxels of at least :data:`HOT_SUV`.

    Returns:
        None where nothing is clipped by a level, the region has no voxels, or the units know no hot volume.
    """
    if level is None or (within is None and volume.units not in ("SUVbw", "SUVlbm")):
        return None
    values = volume.array[volume.array >= HOT_SUV if within is None else within]
    return float((values > level).mean()) if values.size else None


def normalize_mr(array: np.ndarray, mask: np.ndarray, method: str = "percentile") -> tuple[float, float]:
    """Offset and scale that make MR values comparable: ``(array - offset) / scale``.

    MR has no unit, so the statistics come from the foreground of the native scan, never from a padded or
    cropped grid (whose share of background would decide the result). Returned as two numbers because an affine
    map of values commutes with linear interpolation: it may be applied after the one resampling.

    Args:
        array: ``[i, j, k]`` the native scan.
        mask: ``[i, j, k]`` bool, its foreground.
        method: ``percentile``: 0 stays 0, the foreground's 99th percentile becomes 1;
            ``zscore``: the foreground gets mean 0 and standard deviation 1.

    Raises:
        VoxelError: the foreground is empty or constant.
        OptionError: an unknown method.
    """
    values = array[mask]
    if values.size == 0:
        raise VoxelError("the foreground of the scan is empty; export the scan again or drop this modality")
    if method == "percentile":
        offset, scale = 0.0, float(np.percentile(values, 99))
    elif method == "zscore":
        offset, scale = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    else:
        raise OptionError(f"unknown affine MR normalization '{method}'. Known: percentile, zscore")
    if not scale > 0:
        raise VoxelError("the foreground of the scan is constant; export the scan again or drop this modality")
    return offset, scale


def correct_bias(volume: Volume, mask: np.ndarray, *, resolution_mm: float = 8.0) -> Volume:
    """An MR scan without the slow change of brightness that receive coils leave (N4, Tustison, IEEE TMI 29:1310, 2010).

    The field is found on voxels of about ``resolution_mm``: at 8 mm it is as good as at 4 mm, in a seventh of the time.
    One thread, so that the result does not depend on the machine.

    Args:
        volume: ``[i, j, k]`` values of which only positive ones count.
        mask: ``[i, j, k]`` bool, the foreground.
        resolution_mm: of the voxels that are looked at.

    Raises:
        VoxelError: the foreground is empty, or too small for such voxels.
    """
    import SimpleITK as sitk  # late: half a second

    def image(array: np.ndarray) -> sitk.Image:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        made.SetSpacing(volume.spacing)
        return made

    whole = image(volume.array)
    steps = [
        min(max(1, round(resolution_mm / s)), max(n // 4, 1)) for s, n in zip(volume.spacing, mask.shape, strict=True)
    ]
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    small = sitk.Shrink(image(mask.astype(np.uint8)), steps)
    if not sitk.GetArrayViewFromImage(small).any():
        raise VoxelError(f"{volume.name}: no foreground to find the bias field in; prepare without --bias-correction")
    corrector.Execute(sitk.Shrink(whole, steps), small)
    field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole)).T)
    return volume.replace(array=np.ascontiguousarray(volume.array / field, np.float32))


def normalize(
    volume: Volume,
    *,
    ct_window: tuple[float, float] = (-160.0, 240.0),
    suv_max: float = SUV_MAX,
    mr_scaling: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Voxels as a network sees them, float32, by the volume's units: about 0..1, and 0 where there is nothing.

    Args:
        volume: HU volumes are windowed, SUV volumes clipped, others scaled by ``mr_scaling``.
        ct_window: HU that become 0 and 1.
        suv_max: SUV that becomes 1.
        mr_scaling: offset and scale of :func:`normalize_mr`.

    Raises:
        VoxelError: they were normalized before, or their units are unknown.
    """
    if volume.units in (NORMALIZED, ""):
        state = "was normalized before" if volume.units else "does not say its units"
        raise VoxelError(f"{volume.name} {state}; give the scan in its own units (HU, SUVbw, a.u.)")
    if volume.units == "HU":
        return window_ct(volume.array, *ct_window)
    if volume.units in SUV_UNITS:
        return clip_suv(volume.array, suv_max)
    offset, scale = mr_scaling
    return ((volume.array - np.float32(offset)) / np.float32(scale)).astype(np.float32)


def foreground(volume: Volume, *, within: np.ndarray | None = None) -> np.ndarray:
    """The patient: ``[i, j, k]`` bool, the largest connected part above air, holes filled.

    CT: above -300 HU, opened by one voxel so that the table comes off where it touches little. Others: values
    compressed by a square root are split in two by Otsu's threshold (1979), and what lies above a third of the way
    between the two means is kept, so that dark tissue stays inside.

    Raises:
        VoxelError: nothing stands out from the background.
    """
    # late: these two cost half a second, and most commands that touch volumes never look for a foreground
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    array = volume.array
    if volume.units == "HU":
        mask = ndimage.binary_opening(array > -300)
    else:
        values = np.sqrt(np.clip(array, 0, max(0.0, np.percentile(array, 99.5))))
        mask = np.zeros(array.shape, bool)
        if values.max() > 0:
            bright = values > threshold_otsu(values.ravel())
            low, high = values[~bright].mean(), values[bright].mean()
            mask = values > low + 0.35 * (high - low)
    if within is not None:
        mask = mask & within
    parts, count = ndimage.label(mask)
    if count == 0:
        raise VoxelError(f"{volume.name}: no foreground found; is the scan empty?")
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    filled = ndimage.binary_fill_holes(largest)
    return filled if within is None else filled & within


def _scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    if not high > low:
        raise OptionError(f"a value range needs low < high, found {low:g} and {high:g}")
    return ((np.clip(array, low, high) - np.float32(low)) / np.float32(high - low)).astype(np.float32)
