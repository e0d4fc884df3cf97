"""Stacks of DICOM slices that are not quite regular: what is read, what is left out, what is refused."""

import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import pet_tags, voxels, write_series

from mmfusion.errors import ReadError
from mmfusion.io import load_volume, read_header

HEAD = np.r_[np.arange(9) * 2.5, 20 + 5.0 * np.arange(1, 6)]  # 2.5 mm, then 5 mm


def at(heights, axis=2):
    """An edit that puts slice n at ``heights[n]`` mm along an axis."""
    return lambda dataset, n: dataset.ImagePositionPatient.__setitem__(axis, round(float(heights[n]), 4))


def thick(heights):
    """Of each slice, the distance to its farther neighbor, mm."""
    gaps = np.diff(heights)
    return np.maximum(np.r_[gaps, 0], np.r_[0, gaps])


def between(stored, heights, wanted):
    """Linear interpolation along the last axis, pixel by pixel."""
    return np.apply_along_axis(lambda line: np.interp(wanted, heights, line), 2, stored)


@pytest.mark.parametrize("upward", [True, False])
def test_two_spacings_are_read_in_the_finer_one(tmp_path, upward):
    stored, heights = voxels((7, 5, len(HEAD))), HEAD if upward else -HEAD

    def edit(dataset, n):
        at(heights)(dataset, n)
        dataset.SliceThickness = float(thick(HEAD)[n])

    write_series(tmp_path, stored, slopes=np.linspace(1, 2, len(HEAD)), edit=edit)
    volume = load_volume(tmp_path)
    wanted = np.arange(0, 45.1, 2.5)
    expected = between(stored * np.linspace(1, 2, len(HEAD)), HEAD, wanted)[::-1, ::-1]
    np.testing.assert_allclose(volume.array, expected if upward else expected[:, :, ::-1], rtol=1e-5, atol=1e-3)
    low = volume.grid.to_world(np.array([0, 0, 0]))[2]
    assert (low, volume.spacing[2]) == pytest.approx((0 if upward else -45, 2.5))
    where = (
        "2.50 mm, then 5.00 mm apart (changing at 20.0" if upward else "5.00 mm, then 2.50 mm apart (changing at -20.0"
    )
    assert volume.meta["notes"] == [f"slices are {where} mm along the slice axis); resampled to 2.50 mm"]
    assert volume.meta["doubts"] == []
    assert read_header(tmp_path).shape == volume.array.shape == (7, 5, 19)


def test_slices_of_the_finer_spacing_stay_as_they_are(tmp_path):
    """Its lattice goes on into the wider one; nothing is made up beyond the outer slices."""
    heights = np.r_[-13, -8, -3, 2, 4 + 2.0 * np.arange(7)]  # 5 mm, then 2 mm
    stored = voxels((7, 5, len(heights)))
    write_series(tmp_path, stored, edit=at(heights))
    volume = load_volume(tmp_path)
    wanted = np.arange(-12, 16.1, 2)
    assert volume.grid.to_world(np.array([0, 0, 0]))[2] == pytest.approx(-12)
    np.testing.assert_array_equal(volume.array[:, :, 7:], stored[::-1, ::-1, 3:])
    np.testing.assert_allclose(volume.array, between(stored, heights, wanted)[::-1, ::-1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("gap", [4, 1])
def test_where_two_spacings_meet_one_gap_may_be_smaller_than_the_wider(tmp_path, gap):
    heights = np.r_[np.arange(6) * 2.0, 10 + gap + 6.0 * np.arange(5)]  # 4: middles of slices 2 mm, then 6 mm thick
    stored = voxels((7, 5, 11))
    write_series(tmp_path / "straight", stored, edit=at(heights))
    expected = between(stored, heights, np.arange(0, heights[-1] + 0.1, 2))[::-1, ::-1]
    np.testing.assert_allclose(load_volume(tmp_path / "straight").array, expected, rtol=1e-5, atol=1e-3)
    write_series(tmp_path / "bent", voxels((7, 5, 11)), edit=at(heights), step=(0, 1, 0))
    with pytest.raises(ReadError, match="equal steps are needed"):
        read_header(tmp_path / "bent")


def test_a_tilted_stack_of_two_spacings_is_sheared(tmp_path):
    def edit(dataset, n):
        at(HEAD)(dataset, n)
        at(20 + 0.2 * HEAD, axis=1)(dataset, n)

    write_series(tmp_path, voxels((7, 5, len(HEAD))), edit=edit)
    header = read_header(tmp_path)
    np.testing.assert_allclose(header.affine[:3, 2], [0, -0.5, 2.5], atol=1e-6)
    assert any("sheared by" in note for note in header.notes)


def test_pet_is_interpolated_in_its_units(tmp_path):
    stored, slopes = voxels((7, 5, len(HEAD))) + 600, np.linspace(0.5, 3, len(HEAD))
    write_series(tmp_path, stored, slopes=slopes, edit=at(HEAD), **pet_tags())
    expected = between(stored * slopes * 4e-4, HEAD, np.arange(0, 45.1, 2.5))[::-1, ::-1]
    np.testing.assert_allclose(load_volume(tmp_path).array, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "lost",
    [[4], [4, 5, 6, 7, 8], [3, 9, 10, 15], [3, 5]],
    ids=["one", "five in a row", "scattered", "two gaps"],
)
def test_missing_slices_are_no_second_spacing(tmp_path, lost):
    kept = [n for n in range(20) if n not in lost]
    write_series(tmp_path, voxels((7, 5, len(kept))), edit=at(2.5 * np.array(kept)))
    with pytest.raises(ReadError, match=f"{len(lost)} of 20 slices are missing, the first after"):
        read_header(tmp_path)


def test_wider_spacing_without_thicker_slices_is_doubted(tmp_path):
    write_series(tmp_path, voxels((7, 5, len(HEAD))), edit=at(HEAD))
    (doubt,) = read_header(tmp_path).doubts
    assert "5.00 mm apart from 20.0 to 45.0 mm" in doubt and "perhaps some are missing" in doubt


@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (0.75, 1), (3.27, 1), (4.3, 0)])
@pytest.mark.parametrize("axis", [0, 2])
def test_rounded_positions_lie_on_the_line_that_fits_them(tmp_path, step, digits, axis):
    axes = (1, 0, 0, 0, 1, 0) if axis == 2 else (0, 1, 0, 0, 0, 1)
    heights = np.round(-30 + step * np.arange(40), digits)
    stored = voxels((7, 5, 40))
    write_series(tmp_path, stored, axes=axes, step=(0, 0, 0), edit=at(heights, axis))
    volume = load_volume(tmp_path)
    assert volume.spacing[axis] == pytest.approx(step, rel=0.005)
    ends = volume.grid.to_world(np.array([[0, 0, 0], np.array(volume.array.shape) - 1]))[:, axis]
    assert sorted(np.abs(ends)) == pytest.approx(sorted(np.abs([-30, -30 + 39 * step])), abs=10.0**-digits / 2)
    assert any("positions of slices are rounded" in note for note in volume.meta["notes"])
    if axis == 2:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
        oracle = sitk.GetArrayFromImage(reader.Execute()).T
        np.testing.assert_array_equal(volume.array, oracle[::-1, ::-1])


def test_a_slice_missing_among_rounded_positions_is_counted(tmp_path):
    heights = np.round(0.75 * np.delete(np.arange(40), 17), 1)
    write_series(tmp_path, voxels((7, 5, 39)), edit=at(heights))
    with pytest.raises(ReadError, match=r"1 of 40 slices are missing, the first after 12\.0 mm .*spacing 0\.75 mm"):
        read_header(tmp_path)


@pytest.mark.parametrize("digits", [1, 3])
def test_uneven_positions_are_no_rounded_ones(tmp_path, digits):
    heights = np.round(3.0 * np.arange(16) + np.random.default_rng(0).uniform(-0.2, 0.2, 16), digits)
    write_series(tmp_path, voxels((7, 5, 16)), edit=at(heights))
    with pytest.raises(ReadError, match="apart; equal steps are needed"):
        read_header(tmp_path)


def add_odd(folder, count, name, size=(7, 5), **tags):
    """Add slices to the series 1.2.9 of a folder, named so that they come last."""
    write_series(folder / "odd", voxels((*size, count)), series_uid="1.2.9", **tags)
    for n, path in enumerate(sorted((folder / "odd").iterdir())):
        path.rename(folder / f"{name}{n}.dcm")


@pytest.mark.parametrize("image_type", [["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY", "MPR"]])
def test_one_picture_across_the_slices_is_left_out_and_named(tmp_path, image_type):
    write_series(tmp_path, voxels((7, 5, 16)), series_uid="1.2.9")
    alone = load_volume(tmp_path)
    add_odd(tmp_path, 1, "zzz", axes=(0, 1, 0, 0, 0, -1), ImageType=image_type)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, alone.array)
    assert volume.grid.same_as(alone.grid) and volume.meta["doubts"] == []
    assert volume.meta["notes"] == ["1 images across the slices left out (number 17 in order of name)"]


def test_a_slice_of_another_size_is_left_out_with_a_doubt(tmp_path):
    write_series(tmp_path, voxels((7, 5, 16)), series_uid="1.2.9")
    add_odd(tmp_path, 1, "000", size=(11, 9), origin=(-10, 20, 70))
    header = read_header(tmp_path)
    assert header.shape == (7, 5, 16) and "(number 1 in order of name): the stack may end too early" in header.doubts[0]


@pytest.mark.parametrize(("slices", "odd"), [(1, 1), (8, 1), (40, 3)], ids=["one of two", "too many", "a stack"])
def test_two_stacks_in_one_series_are_refused(tmp_path, slices, odd):
    write_series(tmp_path, voxels((7, 5, slices)), series_uid="1.2.9")
    add_odd(tmp_path, odd, "zzz", axes=(0, 1, 0, 0, 0, -1), step=(3, 0, 0))
    with pytest.raises(ReadError, match="different orientations; one parallel stack is needed. Keep each"):
        read_header(tmp_path)


@pytest.mark.parametrize("cosines", [(2, 0, 0, 0, 2, 0), (0.98, 0.17, 0, -0.17, 0.98, 0), (0.9, 0.5, 0, -0.5, 0.9, 0)])
def test_cosines_are_directions_whatever_their_length(tmp_path, cosines):
    unit = np.array(cosines) / np.hypot(*cosines[:2])
    stored = voxels()
    write_series(tmp_path / "right", stored, axes=[round(float(value), 9) for value in unit])
    write_series(tmp_path / "long", stored, axes=cosines)
    right, long = load_volume(tmp_path / "right"), load_volume(tmp_path / "long")
    np.testing.assert_array_equal(long.array, right.array)
    np.testing.assert_allclose(long.affine, right.affine, atol=1e-6)
    assert right.meta["notes"] == [] and "direction cosines have length" in long.meta["notes"][0]


@pytest.mark.parametrize("cosines", [(0, 0, 0, 0, 1, 0), (1, 0, 0, 0.5, 0.87, 0)], ids=["no length", "60 degrees"])
def test_cosines_that_are_no_directions_are_refused(tmp_path, cosines):
    write_series(tmp_path, voxels(), axes=cosines)
    with pytest.raises(ReadError, match=r"ImageOrientationPatient \(0020,0037\) is .*two perpendicular directions"):
        read_header(tmp_path)
