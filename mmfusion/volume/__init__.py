"""What a volume is and what can be done to it: pure functions on arrays in world coordinates (RAS+, mm)."""

from mmfusion.volume.device import check_device
from mmfusion.volume.displacement import Displacement
from mmfusion.volume.features import (
    BINS,
    PEAK_ML,
    Bins,
    bounding_box,
    discretize,
    first_order,
    glcm,
    peak,
    shape,
)
from mmfusion.volume.grid import Grid, empty_ras, mask_center, nearest_ras, spacing_of
from mmfusion.volume.intensity import (
    HOT_SUV,
    SUV_MAX,
    clip_level,
    clip_suv,
    clipped_share,
    correct_bias,
    foreground,
    normalize,
    normalize_mr,
    window_ct,
)
from mmfusion.volume.sampling import coverage, overlap, resample
from mmfusion.volume.standardize import landmarks, standard_scale, standardize
from mmfusion.volume.transform import Transform
from mmfusion.volume.volume import FILL, NORMALIZED, PET_UNITS, SUV_UNITS, Volume

__all__ = [
    "Volume",
    "PET_UNITS",
    "SUV_UNITS",
    "NORMALIZED",
    "FILL",
    "SUV_MAX",
    "HOT_SUV",
    "Grid",
    "Transform",
    "Displacement",
    "resample",
    "coverage",
    "overlap",
    "foreground",
    "normalize",
    "window_ct",
    "clip_level",
    "clip_suv",
    "clipped_share",
    "normalize_mr",
    "correct_bias",
    "landmarks",
    "standard_scale",
    "standardize",
    "BINS",
    "Bins",
    "PEAK_ML",
    "discretize",
    "first_order",
    "shape",
    "glcm",
    "peak",
    "bounding_box",
    "nearest_ras",
    "empty_ras",
    "spacing_of",
    "mask_center",
    "check_device",
]
