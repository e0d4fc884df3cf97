"""Histogram standardization of MR across a cohort (Nyul and Udupa, Magn Reson Med 42:1072, 1999).

MR has no unit: the same tissue has another value in every scan. Each scan is described by landmarks, percentiles of its
foreground; the standard scale is the mean of the landmarks of training scans; a scan is brought to it by the piecewise
linear map that takes its landmarks to those of the scale. The deciles as landmarks, between the first and the 99th
percentile, are those of Shah et al. (Med Image Anal 15:267, 2011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import VoxelError

if TYPE_CHECKING:
    from collections.abc import Sequence

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
_LEAST_RISE = 1e-6  # of the whole range, from landmark to landmark, so that the map can be inverted


def landmarks(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``[11]`` percentiles of the foreground ``mask [i, j, k]`` of the native scan, strictly rising.

    Raises:
        VoxelError: the foreground is empty or constant.
    """
    values = array[mask]
    if values.size == 0:
        raise VoxelError("the foreground of the MR scan is empty; export the scan again or drop this modality")
    found = np.percentile(values, PERCENTILES).astype(np.float64)
    extent = found[-1] - found[0]
    if not extent > 0:
        raise VoxelError("the foreground of the MR scan is constant; export the scan again or drop this modality")
    steps = np.maximum(np.diff(found), _LEAST_RISE * extent)  # many equal voxels make equal percentiles
    return found[0] + np.concatenate([[0], np.cumsum(steps)])


def standard_scale(found: Sequence[np.ndarray]) -> np.ndarray:
    """``[11]`` the standard scale: the mean of the landmarks of training scans, each brought to 0..1 by its ends."""
    scaled = [(one - one[0]) / (one[-1] - one[0]) for one in found]
    return np.mean(scaled, axis=0)


def standardize(array: np.ndarray, own: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values of a scan on the standard scale, float32.

    Beyond the outer landmarks the slope is that of the whole scale: an outer piece may be nearly upright, where many
    voxels have one value, and would throw the background far away.

    Args:
        array: any shape, in the scanner's units.
        own: the scan's :func:`landmarks`.
        scale: the :func:`standard_scale`.
    """
    slope = (scale[-1] - scale[0]) / (own[-1] - own[0])
    beyond = np.minimum(array - own[0], 0) + np.maximum(array - own[-1], 0)
    return (np.interp(array, own, scale) + slope * beyond).astype(np.float32)
