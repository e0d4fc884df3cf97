import numpy as np
import pytest

from mmfusion.errors import OptionError, VoxelError
from mmfusion.options import OPTIONS
from mmfusion.transforms import ClipSUVd
from mmfusion.volume import (
    NORMALIZED,
    Volume,
    clip_level,
    clip_suv,
    clipped_share,
    correct_bias,
    foreground,
    normalize,
    normalize_mr,
    window_ct,
)


def ball(radius, shape=(31, 27, 35)):
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum((a - n // 2) ** 2 for a, n in zip(axes, shape, strict=True)) <= radius**2


def test_windows_and_ranges():
    assert np.allclose(window_ct(np.array([-1000, -160, 40, 240, 3000])), [0, 0, 0.5, 1, 1])
    assert np.allclose(clip_suv(np.array([-1, 0, 5, 50]), high=20), [0, 0, 0.25, 1])
    with pytest.raises(OptionError, match="low < high, found 240 and -160"):
        window_ct(np.zeros(3), 240, -160)


def test_the_upper_end_of_suv_is_that_of_the_options():
    high = OPTIONS["suv_max"].default
    assert ClipSUVd(["pet"]).high == high and np.allclose(clip_suv(np.array([0, high, 2 * high])), [0, 1, 1])
    volume = Volume(np.array([[[0, high / 2, 2 * high]]]), np.eye(4), units="SUVbw")
    assert np.allclose(normalize(volume), [[[0, 0.5, 1]]])


def test_pet_is_clipped_by_its_units():
    levels = {units: clip_level(units, 25.0, 3.0) for units in ("SUVbw", "SUVlbm", "SUVbsa", "SUVR", "Bq/mL", "stored")}
    assert levels == {
        **dict.fromkeys(("SUVbw", "SUVlbm", "SUVbsa"), 25.0),
        **dict.fromkeys(("SUVR", "Bq/mL", "stored"), 3.0),
    }
    assert clip_level("stored") is clip_level("HU", pet_max=3.0) is clip_level("a.u.", pet_max=3.0) is None


def test_the_clipped_share_counts_voxels_above_the_level():
    """Of 60 voxels 6 are hot (4 and more) and two of these above 10; the region has 8 voxels, one above 10."""
    array = np.full((3, 4, 5), 3.99, np.float32)
    array[0, 0] = [4, 4.5, 10, 10.01, 30]
    array[1, 1, 1] = 5
    region = np.zeros(array.shape, bool)
    region[:2, :2, 1:3] = True
    region[0, 0, 2:4] = False, True
    volume = Volume(array, np.eye(4), "pet", "SUVbw")
    assert clipped_share(volume, 10.0) == pytest.approx(2 / 6)
    assert clipped_share(volume, 10.0, region) == pytest.approx(1 / 8)
    assert clipped_share(volume, 30.0, region) == 0 and clipped_share(volume, None, region) is None
    assert clipped_share(volume, 10.0, region & False) is None
    assert clipped_share(volume.replace(array=array / 100), 10.0) is None  # nothing is hot
    stored = volume.replace(units="stored")
    assert clipped_share(stored, 10.0) is None and clipped_share(stored, 10.0, region) == pytest.approx(1 / 8)


def test_mr_percentile_uses_the_foreground_only():
    rng, mask = np.random.default_rng(0), ball(9)
    array = np.where(mask, rng.uniform(50, 150, mask.shape), rng.uniform(0, 3, mask.shape))
    offset, scale = normalize_mr(array, mask)
    assert offset == 0 and scale == pytest.approx(np.percentile(array[mask], 99))
    offset, scale = normalize_mr(array, mask, "zscore")
    scaled = (array[mask] - offset) / scale
    assert scaled.mean() == pytest.approx(0, abs=1e-6) and scaled.std() == pytest.approx(1)


def test_mr_without_contrast_is_refused():
    mask = ball(5)
    with pytest.raises(VoxelError, match="constant"):
        normalize_mr(np.full(mask.shape, 7.0), mask, "zscore")
    with pytest.raises(VoxelError, match="empty"):
        normalize_mr(np.ones(mask.shape), np.zeros_like(mask))
    with pytest.raises(OptionError, match="unknown affine MR normalization 'minmax'"):
        normalize_mr(np.ones(mask.shape), mask, "minmax")


@pytest.mark.parametrize(("units", "inside", "outside"), [("HU", 40, -1000), ("SUVbw", 3, 0.01), ("a.u.", 400, 5)])
def test_foreground_is_the_largest_part_with_its_holes(units, inside, outside):
    body = ball(10)
    array = np.where(body & ~ball(3), inside, outside) + np.random.default_rng(0).normal(0, 0.001, body.shape)
    array[:2, :2, :2] = inside  # something small beside the patient
    mask = foreground(Volume(array.astype(np.float32), np.eye(4), units=units))
    assert (mask ^ body).sum() < 0.03 * body.sum()
    assert mask[15, 13, 17] and not mask[0, 0, 0]


def test_no_foreground_is_named():
    with pytest.raises(VoxelError, match="ct: no foreground found"):
        foreground(Volume(np.full((5, 6, 7), -1000.0), np.eye(4), "ct", "HU"))


@pytest.mark.parametrize(("units", "words"), [(NORMALIZED, "was normalized before"), ("", "does not say its units")])
def test_values_are_normalized_once_and_by_known_units(units, words):
    volume = Volume(np.zeros((2, 3, 4), np.float32), np.eye(4), "pet", units)
    with pytest.raises(VoxelError, match=f"pet {words}; give the scan in its own units"):
        normalize(volume)


def test_normalize_goes_by_units():
    array = np.array([0.0, 40, 80], np.float32).reshape(1, 1, 3)
    volume = Volume(array, np.eye(4), units="HU")
    assert np.allclose(normalize(volume, ct_window=(0, 80)), [[[0, 0.5, 1]]])
    for units in ("SUVbw", "SUVlbm", "SUVbsa"):
        assert np.allclose(normalize(volume.replace(units=units), suv_max=40), [[[0, 1, 1]]])
    assert np.allclose(normalize(volume.replace(units="a.u."), mr_scaling=(40, 40)), [[[-1, 0, 1]]])


def test_a_bias_field_is_found_and_taken_off():
    mask = ball(13, (33, 29, 35))
    i, j, k = np.indices(mask.shape)
    rng = np.random.default_rng(0)
    truth = np.where(mask, 100 + 40 * ((i // 4 + j // 5 + k // 3) % 2) + rng.normal(0, 2, mask.shape), 0)
    field = np.exp(0.5 * np.sin(i / 14) * np.cos(k / 17) - 0.3 * j / 29)
    volume = Volume((truth * field).astype(np.float32), np.diag([4.0, 5.0, 4.0, 1]), "mr")
    fixed = correct_bias(volume, mask)

    def uneven(array):
        return np.std(np.log(array[mask] / truth[mask]))

    assert uneven(volume.array) > 0.1 and uneven(fixed.array) < 0.4 * uneven(volume.array)
    np.testing.assert_array_equal(fixed.array, correct_bias(volume, mask).array)
    assert fixed.array.dtype == np.float32 and not fixed.array[~mask].any()
    with pytest.raises(VoxelError, match="mr: no foreground to find the bias field in; prepare without --bias-c"):
        correct_bias(volume, np.zeros(mask.shape, bool))
