"""Arrays in, numbers out: metrics with subject-level intervals, thresholds, calibration, paired comparison."""

from mmfusion.evaluation.comparison import compare, delong
from mmfusion.evaluation.curves import (
    CalibrationBins,
    RocBand,
    calibration_bins,
    confusion,
    precision_recall_curve,
    roc_band,
)
from mmfusion.evaluation.estimate import Difference, Estimate
from mmfusion.evaluation.metrics import classification_metrics
from mmfusion.evaluation.probability import choose_threshold, fit_temperature, prior_correction

__all__ = [
    "Estimate",
    "classification_metrics",
    "choose_threshold",
    "fit_temperature",
    "prior_correction",
    "Difference",
    "compare",
    "delong",
    "RocBand",
    "roc_band",
    "precision_recall_curve",
    "CalibrationBins",
    "calibration_bins",
    "confusion",
]
