"""Registration of simulated heads in known poses, and what it does where it cannot or should not move anything."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk
from registration_heads import error_mm, random_pose, scan

from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.io import load_volume
from mmfusion.registration import INITS, KINDS, Registration, register
from mmfusion.registration.verdict import Check, judge
from mmfusion.volume import Transform, Volume, nearest_ras

STILL = Transform()
TILTED = Transform.rigid((6, -7, 4), (8, -9, 6), (0, -18, 10))


@pytest.fixture(scope="module")
def aligned() -> dict[str, Volume]:
    """Three modalities in one pose, in one frame of reference."""
    return {name: scan(name, STILL, seed, frame_of_reference="1.2") for seed, name in enumerate(("ct", "pet", "mr"))}


def distance(one: Transform, other: Transform, volume: Volume) -> float:
    return float(np.linalg.norm(one.apply(volume.grid.corners()) - other.apply(volume.grid.corners()), axis=1).max())


@pytest.mark.parametrize(("fixed", "moving"), [("mr", "pet"), ("pet", "ct"), ("ct", "mr")])
def test_heads_in_other_poses(fixed, moving):
    rng = np.random.default_rng([ord(fixed[0]), ord(moving[0])])
    poses = random_pose(rng), random_pose(rng)
    found = register(scan(fixed, poses[0], 1), scan(moving, poses[1], 2))
    assert error_mm(found.fixed_to_moving, *poses) < 1
    assert found.verdict == "ok" and found.score > 0.5
    assert found.similarity_after > found.similarity_before > 0


@pytest.mark.slow
@pytest.mark.parametrize(("fixed", "moving"), list(permutations(("ct", "pet", "mr"), 2)))
def test_heads_at_full_size(fixed, moving):
    """Mean error over brain landmarks within 2 mm, or not called ok."""
    rng = np.random.default_rng([ord(fixed[0]), ord(moving[0])])
    for seed in range(4):
        poses = random_pose(rng), random_pose(rng)
        found = register(scan(fixed, poses[0], seed, mm=2), scan(moving, poses[1], seed + 50, mm=2))
        assert found.verdict == "ok"
        assert error_mm(found.fixed_to_moving, *poses) < 0.6


def test_aligned_heads_of_one_frame_do_not_move(aligned):
    for fixed, moving in permutations(aligned, 2):
        found = register(aligned[fixed], aligned[moving])
        assert found.fixed_to_moving.is_identity and found.verdict == "ok"
        assert (found.motion_mm, found.rotation_deg, found.translation_mm, found.initial) == (
            0,
            0,
            0,
            "identity",
        )
        assert found.similarity_before == found.similarity_after
        assert "the header position was kept" in found.reasons[-1]


def test_aligned_heads_of_unknown_frames_do_not_move(aligned):
    found = register(aligned["ct"].replace(meta={}), aligned["pet"])
    assert found.fixed_to_moving.is_identity and found.verdict == "ok"
    assert "too little or too uncertain" in found.reasons[-1]


def test_a_head_that_moved_within_its_frame_is_followed(aligned):
    moved = scan("pet", Transform.rigid((5, 0, 4), (4, 5, 0)), 3, frame_of_reference="1.2")
    found = register(aligned["ct"], moved)
    assert found.verdict == "ok" and found.motion_mm > 5
    assert error_mm(found.fixed_to_moving, STILL, Transform.rigid((5, 0, 4), (4, 5, 0))) < 1


def test_a_long_motion_within_a_frame_is_not_believed(aligned):
    pose = Transform.rigid((0, 0, 12), (20, 0, 0))
    found = register(aligned["ct"], scan("mr", pose, 3, frame_of_reference="1.2"))
    assert found.verdict == "doubtful" and found.fixed_to_moving.is_identity
    assert "too much to ignore, but is itself in doubt" in found.reasons[0]
    assert error_mm(found.alternative.fixed_to_moving, STILL, pose) < 1
    assert found.alternative.words == "the best position of the search, up to 50 mm away, turned by 12°"


def test_the_way_back_is_the_inverse(aligned):
    moving = scan("pet", TILTED, 4)
    there, back = register(aligned["mr"], moving), register(moving, aligned["mr"])
    assert distance(there.fixed_to_moving.compose(back.fixed_to_moving), STILL, aligned["mr"]) < 0.3


def test_the_same_volumes_give_the_same_result_and_stay_as_they_are(aligned):
    fixed, moving = aligned["ct"], scan("pet", TILTED, 4)
    copies = fixed.array.copy(), moving.array.copy()
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    one, other = register(fixed, moving), register(fixed, moving, threads=2)
    assert json.dumps(one.as_dict()) == json.dumps(other.as_dict())
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
    np.testing.assert_array_equal(fixed.array, copies[0])
    np.testing.assert_array_equal(moving.array, copies[1])


def test_the_order_of_the_axes_does_not_matter(aligned):
    moving = scan("mr", TILTED, 4)
    affine = moving.affine[:, [2, 0, 1, 3]] @ np.diag([1, -1, 1, 1.0])
    affine[:3, 3] = moving.affine[:3, 3] + moving.affine[:3, 0] * (moving.array.shape[0] - 1)
    turned = moving.replace(array=np.flip(moving.array.transpose(2, 0, 1), 1), affine=affine)
    np.testing.assert_array_equal(nearest_ras(turned.array, turned.affine)[0], moving.array)
    results = [register(aligned["ct"], volume).fixed_to_moving for volume in (moving, turned)]
    assert distance(*results, aligned["ct"]) < 1


def test_header_positions_far_apart_are_refused_in_one_frame_and_overcome_in_two(aligned):
    away = Transform.rigid((5, 0, 0), (0, 0, 412))
    far = aligned["pet"].replace(affine=away.matrix @ aligned["pet"].affine)
    message = r"pet and ct share 0 % of their field of view \(centers \d+ mm apart\).*use --init centers"
    with pytest.raises(GeometryError, match=message):
        register(aligned["ct"], far)
    with pytest.raises(GeometryError, match=message):
        register(aligned["ct"], far.replace(meta={}), init="identity")
    for found in (
        register(aligned["ct"], far, init="centers"),
        register(aligned["ct"], far.replace(meta={})),
    ):
        assert found.verdict == "ok" and found.initial in ("centers", "mass")
        assert error_mm(found.fixed_to_moving, STILL, away.inverse()) < 1
        assert found.similarity_before == 0 < found.similarity_after


def test_kind_none_measures_and_moves_nothing(aligned):
    moved = scan("mr", TILTED, 3)
    still, tilted = (register(aligned["ct"], volume, "none") for volume in (aligned["mr"], moved))
    assert still.fixed_to_moving.is_identity and tilted.fixed_to_moving.is_identity
    assert still.similarity_after == still.similarity_before > 1.5 * tilted.similarity_after
    assert still.verdict == "ok" and still.overlap > 0.95
    away = Transform.rigid(translation_mm=(0, 0, 412))
    far = register(aligned["ct"], moved.replace(affine=away.matrix @ moved.affine), "none")
    assert (far.verdict, far.score, far.overlap, far.similarity_after) == ("failed", 0, 0, 0)
    assert far.reasons[0] == "the fields of view share only 0% of the smaller one"


def test_low_overlap_is_doubtful(aligned):
    """The lower part of the head in one scan, the upper part in the other, where they belong."""
    lower = aligned["ct"].replace(array=aligned["ct"].array[:, :, :25])  # 6 mm slices
    upper = aligned["mr"].replace(array=aligned["mr"].array[:, :, 28:])  # 4 mm slices
    start = upper.affine @ np.array([0, 0, 28, 1])
    upper = upper.replace(affine=np.column_stack([upper.affine[:, :3], start]))
    found = register(lower, upper)
    assert found.fixed_to_moving.is_identity
    assert found.verdict == "doubtful" and 0.2 < found.overlap < 0.4
    assert "the fields of view share only" in found.reasons[0]
    assert found.alternative is None  # the search found the same place


def test_the_headers_are_the_alternative_to_a_doubtful_motion(aligned):
    pose = Transform.rigid((0, 0, 3), (14, -10, 5))
    lower = aligned["ct"].replace(array=aligned["ct"].array[:, :, :25])
    upper = scan("mr", pose, 3)
    start = upper.affine @ np.array([0, 0, 20, 1])
    upper = upper.replace(array=upper.array[:, :, 20:], affine=np.column_stack([upper.affine[:, :3], start]))
    found = register(lower, upper)
    assert found.verdict == "doubtful" and error_mm(found.fixed_to_moving, STILL, pose) < 3
    assert found.alternative.fixed_to_moving.is_identity
    assert found.alternative.words.startswith("the position of the headers, up to 2")
    kept = register(lower, upper, init=pose)  # the wrong way round, and trusted
    assert kept.verdict == "doubtful" and error_mm(kept.alternative.fixed_to_moving, STILL, pose) < 3
    assert register(lower, upper, init=found.fixed_to_moving).alternative is None


def test_noise_is_not_called_ok(aligned):
    array = np.random.default_rng(0).gamma(2, 1, (37, 41, 43)).astype(np.float32)
    noise = Volume(array, aligned["pet"].affine, "pet", "SUVbw")
    found = register(aligned["ct"], noise)
    assert found.verdict == "failed" and found.fixed_to_moving.is_identity and found.score == 0
    assert "the volumes have nothing in common where they overlap" in found.reasons[0]


def test_a_body_bent_otherwise_is_doubtful():
    """Two halves of a head in poses that differ by 20 degrees cannot both be aligned by one motion."""
    poses = (
        Transform.rigid((0, 20, 0), (12, 0, 0), (0, -18, 10)),
        Transform.rigid((0, -20, 0), (-12, 0, 0), (0, -18, 10)),
    )
    left, right = (scan("mr", pose, 7) for pose in poses)
    half = left.array.shape[1] // 2
    bent = left.replace(array=np.concatenate([left.array[:, :half], right.array[:, half:]], axis=1))
    found = register(scan("ct", STILL, 8), bent, init="centers")
    assert found.verdict == "doubtful"
    assert any("halves of the body" in reason for reason in found.reasons)
    assert any("another position is nearly as good" in reason for reason in found.reasons)
    assert found.alternative.words.startswith("the second best position of the search, ")
    assert distance(found.alternative.fixed_to_moving, found.fixed_to_moving, left) > 6


def test_unknown_words(aligned):
    with pytest.raises(OptionError, match=r"unknown kind of registration 'rigit'; did you mean 'rigid'"):
        register(aligned["ct"], aligned["mr"], "rigit")
    with pytest.raises(OptionError, match="unknown start of the registration 'centre'; did you mean 'centers'"):
        register(aligned["ct"], aligned["mr"], init="centre")
    assert KINDS[-1] == "none" and INITS == ("auto", "identity", "centers")


def test_volumes_that_cannot_be_registered(aligned):
    slice_ = aligned["mr"].replace(array=aligned["mr"].array[:, :, 20:21])
    with pytest.raises(GeometryError, match="mr: a single slice"):
        register(aligned["ct"], slice_)
    with pytest.raises(VoxelError, match="pet: every voxel is 0"):
        register(aligned["ct"], aligned["pet"].replace(array=np.zeros((20, 21, 22), np.float32)))


def test_as_dict_is_plain_and_complete(aligned):
    found = register(aligned["ct"], aligned["mr"], "none")
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain.keys() == set(Registration.__dataclass_fields__)
    np.testing.assert_array_equal(plain["fixed_to_moving"], np.eye(4))


def test_the_weakest_check_decides():
    good, edge, bad = Check(0, 3, "good"), Check(3, 3, "edge"), Check(9, 3, "bad")
    assert judge([good]) == ("ok", 1, ()) == judge([])
    assert judge([good, edge]) == ("doubtful", 0.5, ("edge",))
    assert judge([bad, edge, good]) == ("doubtful", pytest.approx(0.1), ("bad", "edge"))


def do_no_harm(study) -> list[str]:
    """The verdicts on PET and MR of one study of aligned scans; nothing that moves more than 2 mm may be ok."""
    ct = load_volume(study / "CT", modality="ct")
    verdicts = []
    for folder, modality in (("PET", "pet"), ("MR_T1", "mr")):
        moving = load_volume(study / folder, modality=modality)
        assert moving.frame_of_reference == ct.frame_of_reference != ""
        found = register(ct, moving)
        assert found.motion_mm <= 2 or found.verdict == "doubtful", (study.name, modality, found)
        verdicts.append(found.verdict)
    return verdicts


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["STS_042", "STS_051"])
def test_aligned_limbs_do_not_move(testdata, name):
    assert do_no_harm(testdata / "sts_dicom" / name) == ["ok", "ok"]


@pytest.mark.realdata
@pytest.mark.slow
def test_no_aligned_limb_moves(testdata):
    verdicts = [word for study in sorted((testdata / "sts_dicom").glob("STS_*")) for word in do_no_harm(study)]
    assert len(verdicts) == 40 and verdicts.count("failed") == 0
    assert verdicts.count("ok") >= 30


@pytest.mark.realdata
@pytest.mark.slow
def test_a_phantom_in_two_frames_comes_together(testdata):
    """No truth is known: more is explained than before, and where both ways differ by more than the verdict allows,
    it says so (5 to 7 mm, by processor, of the 52 to 57 that the phantom moves: one spot per way, both doubtful)."""
    folder = testdata / "mri_dir_meat_phantom_1p5mm"
    ct, mr = (
        load_volume(folder / "CT.nii.gz", modality="ct"),
        load_volume(folder / "MR_T2.nii.gz", modality="mr"),
    )
    there, back = register(ct, mr), register(mr, ct)
    assert there.similarity_after > 2 * there.similarity_before and there.verdict != "failed"
    away = distance(there.fixed_to_moving.compose(back.fixed_to_moving), STILL, ct)
    assert away < 10 and (away < 3 or there.verdict == back.verdict == "doubtful")
