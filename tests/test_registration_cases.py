"""Hard cases of registration, each with a known answer, and what is refused. The docstrings say what handles each."""

from __future__ import annotations

import numpy as np
import pytest
from registration_heads import (
    MIDDLE,
    NOISE,
    STEPS,
    crop,
    error_mm,
    exact_pose,
    head,
    near_brain,
    painted,
    places,
    random_pose,
    scan,
    stretched,
)
from scipy import ndimage

from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.registration import register, register_many
from mmfusion.registration.register import _batch
from mmfusion.volume import Displacement, Grid, Transform, Volume, resample

STILL = Transform()
TILTED = Transform.rigid((7, -3, 8), (9, -8, 6), MIDDLE)
PAIRS = [("ct", "mr"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("mr", "pet"), ("pet", "ct")))]


def two_poses(*words: object) -> tuple[Transform, Transform]:
    rng = np.random.default_rng([ord(letter) for letter in "".join(map(str, words))])
    return random_pose(rng), random_pose(rng)


# masks


def in_a_cushion(volume: Volume, pose: Transform, value: float) -> Volume:
    """The head in a thick cushion of uneven stuff, which lies still in the scanner's world."""
    grid = Grid.around(MIDDLE, (4, 4, 4), (64, 70, 64))
    uneven = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2.5)
    stuff = Volume((value * (1 + 0.5 * uneven / uneven.std())).astype(np.float32), grid.affine)
    egg = np.linalg.norm((places(volume) - MIDDLE) / (112, 128, 112), axis=-1) < 1
    return painted(volume, egg & ~near_brain(volume, pose, 16), resample(stuff, volume.grid).array)


@pytest.mark.parametrize("masks", [(), ("fixed",), ("moving",), ("fixed", "moving")], ids="-".join)
def test_a_head_that_moves_in_a_cushion_that_stays(masks):
    """The larger thing wins unless a mask, of either scan or of both, says what to compare."""
    fixed = in_a_cushion(scan("ct", STILL, 1), STILL, -500)
    moving = in_a_cushion(scan("mr", TILTED, 2), TILTED, 500)
    heads = {"fixed": near_brain(fixed, STILL, 16), "moving": near_brain(moving, TILTED, 16)}
    found = register(fixed, moving, **{f"{name}_mask": heads[name] for name in masks})
    error = error_mm(found.fixed_to_moving, STILL, TILTED)
    assert found.verdict == "ok" and (error < 1 if masks else error > 10)


def with_phantom() -> tuple[Volume, np.ndarray]:
    """A tilted head on CT beside a phantom that is larger, and where the phantom is."""
    moving = scan("ct", TILTED, 2, size=(650, 300, 230))
    phantom = np.linalg.norm((places(moving) - MIDDLE)[..., :2] - (200, 10), axis=-1) < 85
    return painted(moving, phantom, 300.0), phantom


def test_a_phantom_larger_than_the_head_is_not_followed_in_silence():
    """Points come from the largest part, the phantom, which is in one scan only: nothing in common, so failed."""
    found = register(scan("mr", STILL, 1), with_phantom()[0])
    assert found.verdict == "failed" or error_mm(found.fixed_to_moving, STILL, TILTED) < 1


@pytest.mark.parametrize("margin", [0, 12])
def test_a_phantom_larger_than_the_head_is_masked_out(margin):
    """The body is looked for inside the mask, so that what the mask leaves out cannot be taken for the body."""
    moving, phantom = with_phantom()
    wide = ndimage.distance_transform_edt(~phantom, sampling=moving.spacing) <= margin
    found = register(scan("mr", STILL, 1), moving, moving_mask=~wide)
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, STILL, TILTED) < 1


def test_a_mask_too_small_to_hold_on_to_is_not_called_ok():
    """27 voxels of 4 mm inside the brain fit nearly anywhere."""
    poses = [random_pose(np.random.default_rng(seed)) for seed in range(2)]
    fixed, moving = scan("mr", poses[0], 1), scan("pet", poses[1], 2)
    tiny = np.zeros(fixed.array.shape, bool)
    tiny[28:31, 30:33, 28:31] = True
    found = register(fixed, moving, fixed_mask=tiny)
    assert found.verdict != "ok" or error_mm(found.fixed_to_moving, *poses) < 5


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask"])
def test_masks_that_cannot_be_used(which):
    fixed, moving = scan("ct", STILL, 1), scan("mr", STILL, 2)
    name, shape = ("ct", fixed.array.shape) if which == "fixed_mask" else ("mr", moving.array.shape)
    with pytest.raises(VoxelError, match=f"the mask of {name} is empty"):
        register(fixed, moving, **{which: np.zeros(shape, bool)})
    corner = np.zeros(shape, bool)
    corner[:3, :3, :3] = True
    with pytest.raises(VoxelError, match=f"the mask of {name} holds nothing of the body"):
        register(fixed, moving, **{which: corner})
    with pytest.raises(GeometryError, match=rf"the mask of {name} has shape \(5, 6, 7\); \({shape[0]}, .* is expected"):
        register(fixed, moving, **{which: np.ones((5, 6, 7), bool)})


# fields of view


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
def test_lower_and_upper_part_of_a_head(fixed, moving):
    """Similarity times overlap: alone, similarity rises again where crops hardly overlap."""
    poses = two_poses("low", fixed, moving)
    lower = crop(scan(fixed, poses[0], 1), (0, 0, 0), (1, 1, 0.67))
    upper = crop(scan(moving, poses[1], 2), (0, 0, 0.33), (1, 1, 1))
    found = register(lower, upper)
    assert error_mm(found.fixed_to_moving, *poses) < 3
    assert found.verdict == "ok" or found.reasons[0].startswith("the fields of view share only")
    assert 0.35 < found.overlap < 0.65


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
@pytest.mark.parametrize(
    ("low", "high"),
    [((0, 0, 0.4), (1, 1, 0.6)), ((0.2, 0.2, 0.2), (0.785, 0.785, 0.785))],
    ids=["slab", "box"],
)
def test_a_field_of_view_that_is_a_fifth_of_the_other(fixed, moving, low, high):
    """Points come from the smaller field of view, which the larger can cover wholly."""
    poses = two_poses("fifth", fixed, moving)
    whole, part = scan(fixed, poses[0], 1), crop(scan(moving, poses[1], 2), low, high)
    sizes = [v.array.size * np.prod(v.spacing) for v in (part, whole)]
    assert 0.16 < sizes[0] / sizes[1] < 0.24
    for found, answer in ((register(whole, part), poses), (register(part, whole), poses[::-1])):
        assert found.verdict == "ok" and error_mm(found.fixed_to_moving, *answer) < 2


def thick_scan(modality: str, pose: Transform, mm: float, slices: int) -> Volume:
    volume = resample(head(modality, 4), Grid.around(MIDDLE, (3, 3.5, mm), (77, 74, slices)), pose)
    noise = np.random.default_rng(slices).normal(0, NOISE[modality], volume.array.shape)
    return volume.replace(array=(volume.array + noise).astype(np.float32))


@pytest.mark.parametrize("mm", [6, 8])
@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
def test_a_slab_of_thick_slices(fixed, moving, mm):
    """The pyramid averages each axis on its own: one that is coarse already keeps its slices."""
    poses = two_poses(fixed, moving)
    found = register(scan(fixed, poses[0], 1), thick_scan(moving, poses[1], mm, 90 // mm))
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, *poses) < 2


@pytest.mark.parametrize("slices", [2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_very_few_slices(slices):
    """They run, without warnings; trusted headers and ``translation`` keep what so few slices cannot say."""
    fixed, moving = scan("ct", STILL, 1), thick_scan("mr", STILL, 6, slices)
    for kind, init in (("rigid", "identity"), ("translation", "auto"), ("rigid", "centers")):
        found = register(fixed, moving, kind, init=init)
        assert error_mm(found.fixed_to_moving, STILL, STILL) < 3
        assert init == "centers" or found.fixed_to_moving.is_identity


@pytest.mark.parametrize("fixed", ["mr", "ct"])
def test_a_pet_with_a_bladder_50_times_as_hot_as_the_rest(fixed):
    """Half of the curve of values goes by rank, so a few bright voxels do not squeeze all else into one bin."""
    poses = two_poses("hot", fixed)
    pet = scan("pet", poses[1], 2)
    bladder = np.linalg.norm(poses[1].apply(places(pet)) - (25, -50, -30), axis=-1) < 14
    found = register(scan(fixed, poses[0], 1), painted(pet, bladder, 50 * 8.0))
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, *poses) < 2


@pytest.mark.parametrize("moving", ["mr", "pet"])
def test_a_ct_with_a_table(moving):
    """The body is the largest part that hangs together; the table lies apart and gives no points."""
    poses = two_poses("table", moving)
    ct = scan("ct", poses[0], 1, size=(270, 330, 230))
    x, y, _ = np.moveaxis(places(ct) - MIDDLE, -1, 0)
    back = y[ct.array > -500].min()
    table = painted(ct, (abs(x) < 125) & (y < back - 10) & (y > back - 26), 150.0)
    other = scan(moving, poses[1], 2)
    for found, answer in ((register(table, other), poses), (register(other, table), poses[::-1])):
        assert found.verdict == "ok" and error_mm(found.fixed_to_moving, *answer) < 1.5


# capture range


def captured(seed: int, moving: str, slab: bool) -> None:
    rng = np.random.default_rng([seed, ord(moving[0]), slab])
    pose = exact_pose(rng, 45, 60)
    volume = scan(moving, pose, 2, size=(310, 330, 310))
    if slab:
        heights = places(volume)[0, 0, :, 2] - pose.inverse().apply(MIDDLE)[2] + rng.uniform(-30, 30)
        inside, count = np.flatnonzero(abs(heights) <= 50), len(heights)
        volume = crop(volume, (0, 0, inside[0] / count), (1, 1, (inside[-1] + 1) / count))
    found = register(scan("mr", STILL, 1), volume)
    assert error_mm(found.fixed_to_moving, STILL, pose) < 2
    assert found.rotation_deg == pytest.approx(45, abs=1.5)
    # a slab may look nearly as good elsewhere: whether that is worth a doubt differs by processor, not the position
    doubts = ("a rotation of 4", "another position is nearly as good")
    assert found.verdict == "ok" or found.reasons[0].startswith(doubts)
    assert len(found.reasons) < 2


@pytest.mark.parametrize("slab", [False, True], ids=["head", "slab"])
@pytest.mark.parametrize("moving", ["pet", "ct"])
def test_45_degrees_and_60_mm_at_once(moving, slab):
    """Starts that ignore the headers and turn by up to 30 degrees; so large a turn is doubted all the same."""
    captured(0, moving, slab)


@pytest.mark.slow
@pytest.mark.parametrize("slab", [False, True], ids=["head", "slab"])
@pytest.mark.parametrize("moving", ["pet", "ct", "mr"])
@pytest.mark.parametrize("seed", range(1, 7))
def test_45_degrees_and_60_mm_at_once_with_other_seeds(seed, moving, slab):
    captured(seed, moving, slab)


# many pairs


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Volume, Volume]]:
    """Pairs of several shapes, one in one frame of reference; the second cannot be registered."""
    p = [random_pose(np.random.default_rng(seed)) for seed in range(6)]
    constant = scan("pet", p[1], 2)
    constant = constant.replace(array=np.ones_like(constant.array))
    in_one_frame = [scan(name, p[2], seed, frame_of_reference="1.2") for seed, name in enumerate(("ct", "mr"))]
    return [
        (scan("mr", p[0], 1), scan("pet", p[1], 2)),
        (scan("ct", p[0], 1), constant),
        (in_one_frame[0], in_one_frame[1]),
        (scan("mr", p[3], 5), crop(scan("ct", p[4], 6), (0, 0, 0.2), (1, 1, 0.8))),
        (scan("ct", p[3], 5), scan("pet", p[5], 6)),
    ]


@pytest.fixture(scope="module")
def one_by_one(pairs):
    return [None if n == 1 else register(*pair) for n, pair in enumerate(pairs)]


@pytest.mark.parametrize("workers", [1, 2])
def test_register_many_is_register_one_by_one(pairs, one_by_one, workers):
    """A bad pair gives its error in its place and stops nothing."""
    many = register_many(pairs, workers=workers)
    assert isinstance(many[1], VoxelError) and str(many[1]).startswith("pet: every voxel is 1; an empty or constant")
    for n in (0, 2, 3, 4):
        assert many[n].as_dict() == one_by_one[n].as_dict()


def test_pairs_in_one_batch_are_register_one_by_one(pairs, one_by_one):
    """What a GPU uses: all pairs, whatever their shapes, in one batch of positions."""
    batch = _batch([(pair, (None, None)) for pair in pairs], "rigid", "auto", "cpu")
    assert isinstance(batch[1], VoxelError)
    for n in (0, 2, 3, 4):
        corners = pairs[n][0].grid.corners()
        apart = batch[n].fixed_to_moving.apply(corners) - one_by_one[n].fixed_to_moving.apply(corners)
        assert np.linalg.norm(apart, axis=1).max() < 0.05
        assert (batch[n].verdict, batch[n].reasons) == (one_by_one[n].verdict, one_by_one[n].reasons)


def test_register_many_refuses_a_device_that_is_not_there(pairs):
    with pytest.raises(OptionError, match="device gpu7 cannot be used"):
        register_many(pairs, device="gpu7")


def test_register_many_wants_masks_for_all_or_none(pairs):
    with pytest.raises(OptionError, match="1 pairs of masks are given for 5 pairs of volumes; give one for each"):
        register_many(pairs, masks=[(None, None)])


# a transform as start


@pytest.mark.parametrize("z", [0, 300])
def test_a_transform_as_start(z):
    """The moving header is laid by it, so it is trusted as a header is; what is returned is the whole transform."""
    pose = Transform.rigid(translation_mm=(0, 0, z)).compose(TILTED)
    near = Transform.rigid(translation_mm=(0, 0, z)).compose(Transform.rigid((6, -1, 7), (7, -6, 8), MIDDLE)).inverse()
    moving = scan("pet", TILTED, 2)
    moving = moving.replace(affine=Transform.rigid(translation_mm=(0, 0, -z)).matrix @ moving.affine)
    assert error_mm(near, STILL, pose) > 3
    found = register(scan("mr", STILL, 1), moving, init=near)
    assert found.verdict == "ok" and found.initial == "identity"
    assert error_mm(found.fixed_to_moving, STILL, pose) < 1
    assert 1 < found.rotation_deg < 4 and 2 < found.motion_mm < 12  # from the start on
    assert found.similarity_before > 0


def test_a_right_transform_is_kept_to_the_last_digit():
    """No motion gains enough over it."""
    start = TILTED.inverse()
    found = register(scan("mr", STILL, 1), scan("pet", TILTED, 2), init=start)
    np.testing.assert_array_equal(found.fixed_to_moving.matrix, start.matrix)
    assert found.verdict == "ok" and found.motion_mm == 0
    assert found.reasons[0].startswith("the given position was kept: a motion of")


def test_a_displacement_field_is_no_start():
    field = Displacement(np.zeros((3, 4, 5, 3), np.float32), Grid.around(MIDDLE, (40, 40, 40), (3, 4, 5)))
    with pytest.raises(OptionError, match="init takes a linear transform; this one has a displacement field"):
        register(scan("mr", STILL, 1), scan("pet", STILL, 2), init=Transform(displacement=field))


# kinds


@pytest.mark.parametrize("moving", ["mr", "pet", "ct"])
def test_translation_finds_a_shift_and_turns_nothing(moving):
    """A point of the fixed world is taken to the moving world, and not the other way."""
    shift = Transform.rigid(translation_mm=(13, -9, 17))  # from the moving world to the fixed one
    found = register(scan("mr", STILL, 1), scan(moving, shift, 2), "translation")
    assert found.verdict == "ok" and found.rotation_deg == 0
    np.testing.assert_array_equal(found.fixed_to_moving.matrix[:3, :3], np.eye(3))
    np.testing.assert_allclose(found.fixed_to_moving.apply(np.array([1, 2, 3])), (-12, 11, -14), atol=0.7)


@pytest.mark.parametrize(("moving", "tolerance"), [("mr", 0.005), ("ct", 0.015)])
def test_similarity_finds_a_scale(moving, tolerance):
    """One scale for all axes. That of a CT in 6 mm slices is a little blurred by what shares a voxel with bone."""
    found = register(scan("mr", STILL, 1), scan(moving, stretched((1.06, 1.06, 1.06)), 2), "similarity")
    scales = np.linalg.svd(found.fixed_to_moving.matrix[:3, :3], compute_uv=False)
    np.testing.assert_allclose(scales, 1 / 1.06, rtol=tolerance)
    np.testing.assert_allclose(scales, scales[0], rtol=1e-9)
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, STILL, stretched((1.06, 1.06, 1.06))) < 1


def test_affine_finds_scales_and_shears():
    bent = stretched((1.07, 0.94, 1.03), (0.05, -0.03, 0.04))
    pose = random_pose(np.random.default_rng(3)).compose(bent)
    found = register(scan("mr", STILL, 1), scan("mr", pose, 2), "affine")
    assert found.verdict == "ok" and error_mm(found.fixed_to_moving, STILL, pose) < 0.5
    np.testing.assert_allclose(found.fixed_to_moving.matrix[:3, :3], pose.inverse().matrix[:3, :3], atol=0.01)
    rigid = register(scan("mr", STILL, 1), scan("mr", pose, 2))
    assert error_mm(rigid.fixed_to_moving, STILL, pose) > 2


# bad input


def flat(volume: Volume) -> Volume:
    return volume.replace(array=np.full_like(volume.array, 7))


def with_nan(volume: Volume) -> Volume:
    array = volume.array.copy()
    array[1, 2, 3:5] = np.nan, np.inf
    return volume.replace(array=array)


def far_away(volume: Volume) -> Volume:
    return volume.replace(affine=Transform.rigid(translation_mm=(0, 0, 412)).matrix @ volume.affine)


def singular(volume: Volume) -> Volume:
    return volume.replace(affine=volume.affine @ np.diag([1, 1, 0, 1]))


BAD = {
    "not finite": (with_nan, VoxelError, r"mr: 2 of \d+ voxels are not finite"),
    "constant": (flat, VoxelError, "mr: every voxel is 7; an empty or constant scan"),
    "background": (lambda v: flat(v).replace(units="HU", array=v.array * 0.0 - 900 + 9 * (v.array > 0)), VoxelError,
                   r"mr: no foreground found; is the scan empty\?"),
    "one slice": (lambda v: v.replace(array=v.array[:, 20:21]), GeometryError,
                  r"mr: a single slice \(\(58, 1, 58\)\) cannot be registered in 3D"),
    "2D": (lambda v: v.replace(array=v.array[:, :, 20]), GeometryError, r"mr: a volume has three axes, .* \(58, 65\)"),
    "4D": (lambda v: v.replace(array=v.array[..., None]), GeometryError, "mr: a volume has three axes"),
    "far away": (far_away, GeometryError, r"share 0 % of their field of view \(centers 412 mm apart\)"),
    "singular": (singular, GeometryError, "the affine is singular: two axes of the volume point the same way"),
    "affine with nan": (lambda v: v.replace(affine=v.affine * np.nan), GeometryError, "needs a finite 4 x 4 affine"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    spoil, error, message = BAD[what]
    fixed, moving = scan("ct", STILL, 1), scan("mr", STILL, 2)
    with pytest.raises(error, match=message):
        register(fixed, spoil(moving), init="identity")
    with pytest.raises(error, match=message):
        register(spoil(moving), fixed, init="identity")


def test_a_sheared_affine_works():
    """The shear is in the matrix, which takes voxels to the world; nothing assumes right angles."""
    poses = two_poses("sheared")
    affine = np.diag([*(4 * np.asarray(STEPS["pet"])), 1.0])
    affine[0, 2], affine[1, 0] = 1.5, -1.2
    affine[:3, 3] = MIDDLE - affine[:3, :3] @ (17, 19, 18)
    sheared, straight = resample(head("pet", 4), Grid((35, 39, 37), affine), poses[1]), scan("mr", poses[0], 1)
    for found, answer in ((register(straight, sheared), poses), (register(sheared, straight), poses[::-1])):
        assert found.verdict == "ok" and error_mm(found.fixed_to_moving, *answer) < 1
