"""The embedded study: simulated PET, CT and MR of simulated subjects on real anatomy. SIMULATED DATA.

No voxel comes from a patient. One template brain (MNI152) is deformed, posed, diseased and scanned.

Realistic: the anatomy of brain tissue; grids, orientations and poses that differ between modalities; units, DICOM
tags and decay; point spread and noise of about the usual size; mild individual size and shape; missing scans.

Not realistic: skull and scalp are shells, without face and neck; shapes vary smoothly around one template; disease
is one exaggerated pattern a modality, atrophy in MR and hypometabolism in PET, neither of which shows in the other
modality or in CT. This is deliberate: the label depends on two known severities, MR and PET carry one each and CT
none, and so the best achievable AUC is known (:func:`ceilings`) and only fusion can exceed that of the best single
modality. Results on these data show that the software works. They say nothing about any disease.
"""

from mmfusion.cohort.simulate.anatomy import MODALITIES
from mmfusion.cohort.simulate.covariates import draw_covariates
from mmfusion.cohort.simulate.regions import measure_regions
from mmfusion.cohort.simulate.scan import mr_scaling, native_grids, prepared_grid, simulate_volumes, template_pose
from mmfusion.cohort.simulate.study import read_truth, write_raw_study
from mmfusion.cohort.simulate.subjects import (
    SimulatedSubject,
    brain_landmarks,
    ceilings,
    draw_subjects,
    observed_ceilings,
    target_registration_error,
    true_fixed_to_moving,
)

__all__ = [
    "SimulatedSubject",
    "MODALITIES",
    "draw_subjects",
    "draw_covariates",
    "ceilings",
    "observed_ceilings",
    "simulate_volumes",
    "native_grids",
    "prepared_grid",
    "template_pose",
    "mr_scaling",
    "measure_regions",
    "write_raw_study",
    "read_truth",
    "true_fixed_to_moving",
    "brain_landmarks",
    "target_registration_error",
]
