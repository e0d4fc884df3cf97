"""A BIDS tree made in the test, as the official validator accepts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mmfusion.volume import Volume

PET = {  # all fields that PET-BIDS requires; 70 kg, 350 MBq and one frame half an hour after the injection
    "Manufacturer": "Made", "ManufacturersModelName": "Up", "Units": "Bq/mL", "BodyPart": "head",
    "TracerName": "FDG", "TracerRadionuclide": "F18", "InjectedRadioactivity": 350,
    "InjectedRadioactivityUnits": "MBq", "InjectedMass": "n/a", "InjectedMassUnits": "n/a",
    "SpecificRadioactivity": "n/a", "SpecificRadioactivityUnits": "n/a", "ModeOfAdministration": "bolus",
    "TimeZero": "10:00:00", "ScanStart": 0, "InjectionStart": -1800, "FrameTimesStart": [0], "FrameDuration": [600],
    "AcquisitionMode": "list mode", "ImageDecayCorrected": True, "ImageDecayCorrectionTime": 0,
    "ReconMethodName": "OSEM", "ReconMethodParameterLabels": ["iterations"],
    "ReconMethodParameterUnits": ["none"], "ReconMethodParameterValues": [3], "ReconFilterType": "none",
    "ReconFilterSize": 0, "AttenuationCorrection": "by CT",
}  # fmt: skip


def write_root(root: Path, participants: str = "", ignored: str = "**/ct\n", **about: Any) -> Path:
    """The files at the top of a tree; ``about`` goes into participants.json. Returns ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "made",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["A. B."],
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "README.md").write_text("Made in a test, for the validator and for mmfusion. " * 5)
    (root / ".bidsignore").write_text(ignored)
    if participants:
        (root / "participants.tsv").write_text(participants.replace(" ", "\t"))
        (root / "participants.json").write_text(json.dumps(about))
    return root


def write_scan(root: Path, name: str, volume: Volume | None = None) -> Path:
    """``sub-1/ses-2/anat/..._T1w.nii.gz`` from its name below ``root``, without ending.

    Voxels are ``volume``, or noise; PET of noise has a sidecar, that of a volume is in SUVbw.
    """
    path = root / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer(name.encode().ljust(8)[-8:], np.uint8).tolist()
    array = np.random.default_rng(seed).integers(0, 99, (5, 7, 6)).astype(np.int16)
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    image = nib.Nifti1Image(array if volume is None else volume.array, affine if volume is None else volume.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(image.affine, 1)
    nib.save(image, path)
    if name.endswith("_pet") and volume is None:
        (root / f"{name}.json").write_text(json.dumps(PET))
    return path
