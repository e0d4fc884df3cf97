"""The scans on the grid as a BIDS derivative: found by name, read by other libraries, accepted by the validator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_scans import GRIDS, MIDDLE, scan, write_study

from mmfusion.errors import OptionError
from mmfusion.io import save_volume
from mmfusion.prepare import damaged_files, open_cohort, prepare_cohort
from mmfusion.volume import SUV_MAX, Volume

OPTIONS = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "register": "rigid", "save_nifti": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two visits and a mask of the first subject, and a subject without CT."""
    folder = tmp_path_factory.mktemp("study")
    points = GRIDS["ct"].to_world(np.moveaxis(np.indices(GRIDS["ct"].shape), 0, -1))
    ball = (np.linalg.norm(points - MIDDLE, axis=-1) < 25).astype(np.uint8)
    save_volume(Volume(ball, GRIDS["ct"].affine, "mask", "label"), folder / "mask.nii.gz")
    manifest = write_study(folder, session=["1", "b-2", ""], mask=["mask.nii.gz", "", ""])
    text = (
        manifest.read_text()
        .replace("002,1,002_ct", "001,1,002_ct")
        .replace("subject,label,ct,pet,mr", "subject,label,ct,pet,t1")
    )
    manifest.write_text(text)
    return manifest, prepare_cohort(manifest, folder / "cohort", workers=1, **OPTIONS)


def files(cohort):
    folder = cohort.folder / "nifti"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_and_places(made):
    assert files(made[1]) == [
        ".bidsignore", "README", "dataset_description.json",
        *(
            f"sub-001/ses-{visit}/{path}" for visit in ("1", "b2") for path in sorted([
                *(f"anat/sub-001_ses-{visit}_space-ct_desc-{name}FOV_mask.{end}" for name in ("ct", "pet", "t1")
                  for end in ("json", "nii.gz")),
                *(f"anat/sub-001_ses-{visit}_space-ct_desc-t1_T1w.{end}" for end in ("json", "nii.gz")),
                *(f"anat/sub-001_ses-1_space-ct_desc-roi_mask.{end}" for end in ("json", "nii.gz") if visit == "1"),
                *(f"ct/sub-001_ses-{visit}_space-ct_desc-ct_ct.{end}" for end in ("json", "nii.gz")),
                *(f"pet/sub-001_ses-{visit}_space-ct_desc-pet_pet.{end}" for end in ("json", "nii.gz")),
                *(f"xfm/sub-001_ses-{visit}_from-{name}_to-ct_mode-image_xfm.tfm" for name in ("pet", "t1")),
            ])
        ),
        *(f"sub-003/anat/sub-003_space-pet_desc-petFOV_mask.{end}" for end in ("json", "nii.gz")),
        *(f"sub-003/anat/sub-003_space-pet_desc-t1FOV_mask.{end}" for end in ("json", "nii.gz")),
        *(f"sub-003/anat/sub-003_space-pet_desc-t1_T1w.{end}" for end in ("json", "nii.gz")),
        *(f"sub-003/pet/sub-003_space-pet_desc-pet_pet.{end}" for end in ("json", "nii.gz")),
        "sub-003/xfm/sub-003_from-t1_to-pet_mode-image_xfm.tfm",
    ]  # fmt: skip


def test_voxels_lie_where_the_tensor_has_them_in_physical_units(made):
    cohort = made[1]
    image = nib.load(cohort.folder / "nifti/sub-001/ses-1/pet/sub-001_ses-1_space-ct_desc-pet_pet.nii.gz")
    facts = json.loads((cohort.cases[0].file.parent / "case.json").read_text())
    np.testing.assert_allclose(image.affine, facts["affine"], atol=1e-5)
    tensor = np.load(cohort.cases[0].file)[list(cohort.modalities).index("pet")]
    np.testing.assert_allclose(np.clip(image.get_fdata() / SUV_MAX, 0, 1), tensor, atol=1e-6)
    looked = nib.load(cohort.folder / "nifti/sub-001/ses-1/anat/sub-001_ses-1_space-ct_desc-petFOV_mask.nii.gz")
    assert np.asarray(looked.dataobj).all() and looked.shape == tensor.shape
    mask = sitk.ReadImage(str(cohort.folder / "nifti/sub-001/ses-1/anat/sub-001_ses-1_space-ct_desc-roi_mask.nii.gz"))
    volume_ml = sitk.GetArrayFromImage(mask).sum() * np.prod(mask.GetSpacing()) / 1000
    assert (
        volume_ml == pytest.approx(4 / 3 * np.pi * 2.5**3, rel=0.2)
        and mask.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    )


def test_the_transform_beside_it_does_what_the_sidecar_says(made):
    """Resampled by SimpleITK through that file, the scan is the one that was written."""
    folder = made[1].folder / "nifti" / "sub-001" / "ses-1"
    written = sitk.ReadImage(str(next(folder.glob("pet/*.nii.gz"))))
    facts = json.loads(next(folder.glob("pet/*.json")).read_text())
    assert facts["Units"] == "SUVbw" and facts["SpatialReference"] == "ct" and len(facts["SourceSHA256"]) == 64
    assert facts["Options"]["spacing"] == OPTIONS["spacing"] and "Sources" not in facts
    (name,) = facts["Transforms"]
    scan_file = sitk.ReadImage(str(made[0].parent / "001_pet.nii.gz"))
    moved = sitk.Resample(scan_file, written, sitk.ReadTransform(str(folder / name)), sitk.sitkLinear, 0.0)
    a, b = sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(written)
    assert np.median(np.abs(a - b)) < 0.06 and np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.995  # ours smooths first
    assert (folder / name).read_bytes() == (made[1].cases[0].file.parent / "pet.tfm").read_bytes()


def test_the_official_validator_has_no_error(made):
    command = Path(sys.executable).with_name("bids-validator-deno")
    if not command.exists():
        pytest.skip("bids-validator-deno is not installed")
    run = subprocess.run([command, "--json", made[1].folder / "nifti"], capture_output=True, text=True)
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert "TOO_FEW_AUTHORS" in {issue["code"] for issue in issues}  # so it did look


@pytest.mark.slow
def test_lost_files_are_made_again_and_failed_cases_leave_none(made, tmp_path):
    for path in made[0].parent.glob("*.*"):
        shutil.copy2(path, tmp_path)
    manifest, out = tmp_path / "manifest.csv", tmp_path / "cohort"
    first = prepare_cohort(manifest, out, workers=1, **OPTIONS)
    lost = "nifti/sub-003/anat/sub-003_space-pet_desc-t1_T1w.nii.gz"
    before = (out / lost).read_bytes()
    (out / lost).unlink()
    assert damaged_files(out) == [lost]
    steps = []
    prepare_cohort(manifest, out, workers=1, progress=lambda *step: steps.append(step[2]), **OPTIONS)
    assert (
        len(steps) == 1
        and steps[0].startswith("003 ")
        and (out / lost).read_bytes() == before
        and damaged_files(out) == []
    )
    (tmp_path / "003_mr.nii.gz").write_bytes(b"")
    again = prepare_cohort(manifest, out, workers=1, **OPTIONS)
    assert again.count("failed") == 1 and not (out / "nifti" / "sub-003").exists()
    assert first.hash != again.hash and len(open_cohort(out).cases) == 2


def test_original_paths_are_named_only_if_asked(made, tmp_path):
    prepare_cohort(made[0], tmp_path, workers=1, keep_paths=True, **OPTIONS)
    facts = json.loads(next(tmp_path.glob("nifti/sub-003/pet/*.json")).read_text())
    assert facts["Sources"] == [str(made[0].parent / "003_pet.nii.gz")]


def test_subjects_that_would_share_a_name_are_refused(tmp_path):
    save_volume(scan("pet"), tmp_path / "pet.nii.gz")
    (tmp_path / "m.csv").write_text("subject,pet\nA-1,pet.nii.gz\nA1,pet.nii.gz\n")
    with pytest.raises(OptionError, match="with --save-nifti, A-1 and A1 would share the BIDS name sub-A1, which has"):
        prepare_cohort(tmp_path / "m.csv", tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "subject,session,pet\nA,,pet.nii.gz\nA,2,pet.nii.gz\n",
            "sub-A has a row without a session and one with",
        ),
        ("subject,pet_a,pet_A\nA,pet.nii.gz,\nB,,pet.nii.gz\n", None),
        ("subject,pet_a,peta_\nA,pet.nii.gz,pet.nii.gz\n", "columns pet_a and peta_ would share the BIDS name peta"),
    ],
)
def test_visits_and_modalities_that_would_share_a_place_are_refused(tmp_path, rows, message):
    save_volume(scan("pet"), tmp_path / "pet.nii.gz")
    (tmp_path / "m.csv").write_text(rows)
    if message is None:
        assert prepare_cohort(tmp_path / "m.csv", tmp_path / "out", workers=1, **OPTIONS).count("failed") == 0
        return
    with pytest.raises(OptionError, match=message):
        prepare_cohort(tmp_path / "m.csv", tmp_path / "out", **OPTIONS)
