"""Writing the embedded study to disk as scanners would: DICOM for CT and PET, NIfTI for MR, and the truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from mmfusion.cohort.simulate.anatomy import MODALITIES
from mmfusion.cohort.simulate.scan import native_grids, simulate_volumes
from mmfusion.cohort.simulate.subjects import SimulatedSubject, from_plain, to_plain
from mmfusion.errors import CohortError
from mmfusion.files import claim, interpreting, read_fields, write_csv, write_json, writing
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Volume

NOTE = "Simulated data on a template anatomy (mmfusion.cohort.simulate): no patient, no meaning for any disease."
_HALF_LIFE_S = 6586.2  # fluorine-18


def write_raw_study(
    subjects: Sequence[SimulatedSubject],
    root: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Scan subjects and write the raw study.

    ::

        root/SIM-0001/CT/0001.dcm ...   axial, head first; half of them with the table in view
        root/SIM-0001/PET/0001.dcm ...  axial, slices downward, Bq/mL with a slope a slice and the tags of the SUV
        root/SIM-0001/mr.nii.gz         oblique, stored sagittally (PIR)
        root/labels.csv                 subject,label
        root/truth.json                 labels, severities, poses: :func:`read_truth`

    The modalities of a subject do not share a frame of reference. UIDs, dates and doses follow from the subject, so
    the same subjects give the same files.

    Args:
        subjects: whom to scan.
        root: made if absent.
        progress: called with (subjects written, subjects in all) after each.

    Returns:
        ``root``.

    Raises:
        CohortError: ``root`` holds a simulated study already.
        OutputError: it is another folder that is not empty, or cannot be written.
    """
    root = Path(root)
    if (root / "truth.json").exists():
        raise CohortError(f"{root} already holds a simulated study; remove it or give another folder")
    claim(root, "raw study")
    for number, subject in enumerate(subjects, 1):
        for modality, volume in simulate_volumes(subject, native_grids(subject)).items():
            with writing(root):
                _write_scan(subject, modality, volume, root / subject.subject)
        if progress:
            progress(number, len(subjects))
    write_csv([{"subject": s.subject, "label": s.label} for s in subjects], root / "labels.csv", ["subject", "label"])
    write_json({"note": NOTE, "subjects": [to_plain(s) for s in subjects]}, root / "truth.json")
    return root


def read_truth(root: Path | str) -> list[SimulatedSubject]:
    """The subjects of a study that :func:`write_raw_study` wrote.

    Raises:
        CohortError: there is no ``truth.json`` in ``root``.
        ReadError: it is damaged.
    """
    path = Path(root) / "truth.json"
    if not path.is_file():
        raise CohortError(f"{path} not found: {root} is not a simulated study, so its true poses are unknown")
    truth = read_fields(path, "the truth of a simulated study")
    with interpreting(path, "simulate the study again"):
        return [from_plain(facts) for facts in truth["subjects"]]


def _write_scan(subject: SimulatedSubject, modality: str, volume: Volume, folder: Path) -> None:
    if modality == "mr":
        folder.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.rint(volume.array).astype(np.int16), volume.affine)
        image.set_qform(volume.affine, 1)
        image.set_sform(volume.affine, 1)
        image.header["descrip"] = b"simulated by mmfusion"
        stored = nib.orientations.axcodes2ornt(("P", "I", "R"))
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(volume.affine), stored)
        nib.save(image.as_reoriented(turn), folder / "mr.nii.gz")
        return
    facts = _study_facts(subject)
    tags = {
        "Manufacturer": "mmfusion (simulated)",
        "StudyDescription": "SIMULATED DATA",
        "SeriesDescription": f"simulated {modality.upper()}",
        "SeriesNumber": MODALITIES.index(modality) + 1,
        "PatientWeight": facts["weight_kg"],
        **_moment("Study", facts["study"]),
    }
    if modality == "ct":
        tags |= _moment("Series", facts["study"]) | _moment("Acquisition", facts["study"])
    else:
        start, injection = facts["pet"], facts["injection"]
        tags |= _moment("Series", start) | _moment("Acquisition", start) | {"DecayCorrection": "START"}
        tags["RadiopharmaceuticalInformationSequence"] = [_tracer(injection, facts["dose_bq"])]
        # SUVbw = activity [Bq/mL] * weight [g] / dose left at the start of the series [Bq]
        left = facts["dose_bq"] * 2 ** (-(start - injection).total_seconds() / _HALF_LIFE_S)
        volume = volume.replace(array=volume.array * (left / (facts["weight_kg"] * 1000)), units="Bq/mL")
    save_dicom_series(
        volume,
        folder / modality.upper(),
        modality={"ct": "CT", "pet": "PT"}[modality],
        patient_id=subject.subject,
        axes={"ct": "LPS", "pet": "LPI"}[modality],
        study_uid=_uid(subject, "study"),
        series_uid=_uid(subject, modality, "series"),
        frame_of_reference=_uid(subject, modality, "frame"),
        tags=tags,
    )


def _study_facts(subject: SimulatedSubject) -> dict[str, Any]:
    """Weight, dose and times of a subject. Every fourth injection or so is before midnight, its scan after."""
    rng = np.random.default_rng([subject.noise_seed, len(MODALITIES)])
    hour = 23.1 if rng.random() < 0.25 else rng.uniform(8, 16)
    injection = datetime(2000, 1, 1) + timedelta(days=int(rng.integers(365)), seconds=round(hour * 3600))
    pet = injection + timedelta(seconds=int(rng.integers(55 * 60, 75 * 60)))
    return {
        "weight_kg": round(float(rng.uniform(50, 110)), 1),
        "dose_bq": float(rng.integers(180, 400)) * 1e6,
        "injection": injection,
        "study": pet - timedelta(minutes=5),
        "pet": pet,
    }


def _tracer(injection: datetime, dose_bq: float) -> Dataset:
    item = Dataset()
    item.Radiopharmaceutical = "FDG (simulated)"
    item.RadiopharmaceuticalStartTime = injection.strftime("%H%M%S.%f")
    item.RadiopharmaceuticalStartDateTime = injection.strftime("%Y%m%d%H%M%S.%f")
    item.RadionuclideTotalDose = dose_bq
    item.RadionuclideHalfLife = _HALF_LIFE_S
    item.RadionuclidePositronFraction = 0.97
    return item


def _moment(prefix: str, when: datetime) -> dict[str, str]:
    return {f"{prefix}Date": when.strftime("%Y%m%d"), f"{prefix}Time": when.strftime("%H%M%S.%f")}


def _uid(subject: SimulatedSubject, *words: str) -> str:
    return generate_uid(entropy_srcs=["mmfusion simulated", subject.subject, str(subject.noise_seed), *words])
