"""Figures and one-file HTML pages, from arrays and from the files of a cohort or run folder."""

from mmfusion.report.figures import figure_joint_histogram, figure_map, figure_overlay, figure_slices
from mmfusion.report.pictures import checkerboard, equalize
from mmfusion.report.qc import write_qc
from mmfusion.report.run import write_report

__all__ = [
    "write_qc",
    "write_report",
    "figure_overlay",
    "figure_slices",
    "figure_map",
    "figure_joint_histogram",
    "checkerboard",
    "equalize",
]
