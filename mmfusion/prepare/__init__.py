"""From the scans of a case to its tensor, and from a manifest to a cohort folder that is made once."""

from mmfusion.prepare.acceptance import accept_case
from mmfusion.prepare.case import (
    CaseResult,
    Doubt,
    load_case,
    measure_case,
    prepare_case,
    prepare_volumes,
)
from mmfusion.prepare.cohort import prepare_cohort
from mmfusion.prepare.covariates import (
    case_covariates,
    choose_covariates,
    covariate_columns,
    covariates_hash,
    features_for,
    read_tables,
)
from mmfusion.prepare.folder import (
    Cohort,
    PreparedCase,
    damaged_files,
    load_image,
    open_cohort,
    open_image,
    refuse_contradictions,
    versions,
    write_case,
    write_cohort,
)
from mmfusion.prepare.measuring import features_of
from mmfusion.prepare.pair import pair_words, register_files
from mmfusion.prepare.placing import check_reference, choose_reference
from mmfusion.prepare.scaling import check_pet
from mmfusion.prepare.words import cohort_counts, cohort_warnings, kept_words

__all__ = [
    "CaseResult",
    "case_covariates",
    "choose_covariates",
    "covariate_columns",
    "features_for",
    "covariates_hash",
    "read_tables",
    "Doubt",
    "accept_case",
    "check_reference",
    "choose_reference",
    "load_case",
    "check_pet",
    "prepare_case",
    "measure_case",
    "features_of",
    "prepare_volumes",
    "Cohort",
    "PreparedCase",
    "open_cohort",
    "prepare_cohort",
    "refuse_contradictions",
    "damaged_files",
    "load_image",
    "open_image",
    "write_case",
    "write_cohort",
    "versions",
    "cohort_counts",
    "cohort_warnings",
    "kept_words",
    "pair_words",
    "register_files",
]
