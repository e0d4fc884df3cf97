"""Whole heads of known shape brought to the template, and the template's brain brought back to them."""

from __future__ import annotations

import numpy as np
import pytest
from registration_heads import error_mm, near_brain, random_pose, scan, stretched

from mmfusion.errors import OptionError, VoxelError
from mmfusion.io import load_volume
from mmfusion.registration import TEMPLATES, Registration, brain_mask, register_to_template, template
from mmfusion.volume import Transform

STILL = Transform()


def subject(modality: str, seed: int) -> Transform:
    """A head in a random pose, 0.9 to 1.1 times as large as the template along each axis."""
    rng = np.random.default_rng([seed, ord(modality[0])])
    x, y, z = rng.uniform(0.9, 1.1, 3)
    return random_pose(rng).compose(stretched((x, y, z)))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def check(modality: str, seed: int, mm: int, limit_mm: float) -> Registration:
    pose = subject(modality, seed)
    volume = scan(modality, pose, seed, mm, size=(250, 280, 250))
    found = register_to_template(volume)
    assert error_mm(found.fixed_to_moving, STILL, pose) < limit_mm
    assert dice(brain_mask(volume.grid, found.fixed_to_moving.inverse()), near_brain(volume, pose, 0)) > 0.9
    return found


@pytest.mark.parametrize(("modality", "limit_mm"), [("ct", 3), ("pet", 1.5), ("mr", 1)])
def test_a_head_and_its_brain(modality, limit_mm):
    """Only points in and near the template's brain are compared, so the skull that it lacks does not count.

    In voxels of 4 mm (PET: 7 mm), hence 1.5 mm for PET here; 1 mm at full size, below.
    """
    check(modality, 0, 4, limit_mm)


@pytest.mark.parametrize(
    "modality",
    [
        "ct",
        "pet",
        "mr",
    ],
)
def test_a_stretched_head_has_one_answer(modality):
    """Several rigid positions are nearly as good for a head of other proportions; as affine ones they are the same."""
    found = register_to_template(scan(modality, subject(modality, 0), 0, 4, size=(250, 280, 250)))
    assert found.verdict == "ok", found.reasons


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "limit_mm"), [("ct", 3), ("pet", 1), ("mr", 1)])
@pytest.mark.parametrize("seed", range(1, 5))
def test_heads_and_their_brains_at_full_size(modality, limit_mm, seed):
    """In voxels of 2 mm (PET: 3.5 mm)."""
    assert check(modality, seed, 2, limit_mm).verdict == "ok"


def test_the_template_is_the_brain_of_its_own_mask():
    head = template()
    np.testing.assert_array_equal(brain_mask(head.volume.grid, STILL), head.brain)
    index = np.argwhere(head.brain)
    low, high = (head.volume.grid.to_world(at) for at in (index.min(0), index.max(0)))
    np.testing.assert_allclose(head.center, (low + high) / 2)
    assert head.volume.array[head.brain].mean() > 5 * head.volume.array[~head.brain].mean()
    assert 1.4e6 < head.brain.sum() * np.prod(head.volume.spacing) < 2.2e6  # mm3


@pytest.mark.parametrize("kind", ["rigid", "similarity"])
def test_kinds_with_fewer_numbers(kind):
    """Headers are ignored: this one is half a meter off."""
    pose = random_pose(np.random.default_rng(2)).compose(stretched((1.05,) * 3 if kind == "similarity" else (1.0,) * 3))
    away = Transform.rigid((0, 0, 20), (300, -400, 100))
    volume = scan("mr", pose, 1)
    found = register_to_template(volume.replace(affine=away.matrix @ volume.affine), kind=kind)
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, STILL, away.inverse().compose(pose)) < 1


def test_what_is_refused():
    volume = scan("mr", STILL, 1)
    for ask in (lambda: register_to_template(volume, "mni151"), lambda: brain_mask(volume.grid, STILL, "mni151")):
        with pytest.raises(OptionError, match="unknown template 'mni151'; did you mean 'mni152'"):
            ask()
    with pytest.raises(OptionError, match="unknown kind of registration 'afine'; did you mean 'affine'"):
        register_to_template(volume, kind="afine")
    with pytest.raises(VoxelError, match="mr: every voxel is 0"):
        register_to_template(volume.replace(array=np.zeros((11, 13, 17))))
    assert TEMPLATES == ("mni152",)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("SPM_avg152T1", "mr"),
        pytest.param("SPM_avg152T2", "mr", marks=pytest.mark.slow),
        pytest.param("SPM_avg152PD", "mr", marks=pytest.mark.slow),
        pytest.param("SPM_single_subj_T1", "mr", marks=pytest.mark.slow),
        ("SPM_PET", "pet"),
        pytest.param("Rorden_scct", "ct", marks=pytest.mark.slow),
        ("Rorden_scct_stripped", "ct"),
    ],
)
def test_other_templates_in_mni_space_hardly_move(testdata, name, modality):
    """Heads that others brought to MNI space by other means, with and without a skull."""
    volume = load_volume(testdata / "mni_templates_2mm" / f"{name}.nii.gz", modality=modality)
    found = register_to_template(volume)
    head = template()
    brain = head.volume.grid.to_world(np.argwhere(head.brain)[::97])
    assert found.verdict == "ok"
    assert found.fixed_to_moving.displacement_mm(brain).mean() < 4
    assert dice(brain_mask(volume.grid, found.fixed_to_moving.inverse()), brain_mask(volume.grid, STILL)) > 0.9
