"""Who is in the study: manifest, DICOM index, checks and leak-safe splits."""

from mmfusion.cohort.check import check_manifest, format_problems
from mmfusion.cohort.found import Index, Unused
from mmfusion.cohort.index import build_index, write_index
from mmfusion.cohort.inputs import misplaced
from mmfusion.cohort.labels import doubtful_labels, join_labels
from mmfusion.cohort.manifest import (
    Case,
    order_modalities,
    read_manifest,
    read_study,
    write_manifest,
)
from mmfusion.cohort.splits import fold_parts, folds, keep_for_head, leakage, refuse_leakage, split_cases
from mmfusion.cohort.table import Problem

__all__ = [
    "Case",
    "read_manifest",
    "read_study",
    "write_manifest",
    "order_modalities",
    "join_labels",
    "doubtful_labels",
    "Index",
    "Unused",
    "build_index",
    "write_index",
    "misplaced",
    "Problem",
    "check_manifest",
    "format_problems",
    "keep_for_head",
    "split_cases",
    "folds",
    "fold_parts",
    "leakage",
    "refuse_leakage",
]
