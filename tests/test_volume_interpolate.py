"""Every way the sampler takes gives the same values, at the borders too; scipy is the oracle."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from mmfusion.volume import Displacement, Grid, Transform, Volume, coverage, overlap, resample
from mmfusion.volume import interpolate as ways
from mmfusion.volume.sampling import _reading

SHAPE = (11, 13, 17)
SOURCE = Grid.around((0, 0, 0), (2, 1.5, 1.2), SHAPE)
PERMUTED = np.array([[0, -2, 0, 10], [0, 0, 1.5, -12], [1.2, 0, 0, -7], [0, 0, 0, 1.0]])
OBLIQUE = Transform.rigid((8, -5, 12), (1.3, 0.4, -0.7)).matrix
GRIDS = {
    "the same": SOURCE,
    "extent kept": Grid.around((0, 0, 0), np.array([22, 19.5, 20.4]) / (19, 17, 23), (19, 17, 23)),
    "shifted": Grid(SHAPE, SOURCE.affine + np.array([[0, 0, 0, 4], [0, 0, 0, -3], [0, 0, 0, 2.4], [0, 0, 0, 0]])),
    "on the very edge": Grid(
        SHAPE, SOURCE.affine + np.array([[0, 0, 0, -1], [0, 0, 0, 0.75], [0, 0, 0, 0.6], [0] * 4])
    ),
    "any offset": Grid.around((0.3, 1.1, -0.4), (1, 1.1, 0.9), (29, 21, 31)),
    "flipped, permuted": Grid((19, 23, 17), PERMUTED @ np.diag([0.9, 0.7, 0.8, 1])),
    "oblique": Grid((23, 21, 29), OBLIQUE @ Grid.around((0, 0, 0), (1.1, 1, 0.9), (23, 21, 29)).affine),
    "one slice": Grid.around((0, 0, 0.1), (1.1, 0.9, 3), (17, 19, 1)),
    "far away": Grid.around((400, 0, 0), (1, 1, 1), (5, 6, 7)),
}
BEND = Transform(
    Transform.rigid((3, -2, 5), (0.5, 1, -0.3)).matrix,
    Displacement(
        ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(7, 6, 5, 3)), (1, 1, 1, 0)) * 6,
        Grid((7, 6, 5), OBLIQUE @ Grid.around((2, 0, 0), (3, 3.5, 4), (7, 6, 5)).affine),
    ),
)


def volume(kind=np.float32, order="C"):
    array = np.random.default_rng(0).uniform(0, 100, SHAPE).astype(kind)
    return Volume(np.asarray(array, order=order), SOURCE.affine)


def expected(volume, grid, transform, order, fill):
    index = volume.grid.to_index(
        (transform or Transform()).apply(
            grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
        )
    )
    inside = ((index > -0.5 - 1e-9) & (index < np.asarray(SHAPE) - 0.5 + 1e-9)).all(-1)
    assert np.array_equal(coverage(volume.grid, grid, transform), inside)
    if order == 0:
        i, j, k = np.moveaxis(np.clip(np.floor(index + 0.5 + 1e-9), 0, np.asarray(SHAPE) - 1).astype(int), -1, 0)
        values = volume.array[i, j, k]
    else:
        values = ndimage.map_coordinates(volume.array.astype(float), np.moveaxis(index, -1, 0), order=1, mode="nearest")
    return np.where(inside, values, fill)


@pytest.mark.parametrize("stored", ["C", "F"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_read_as_scipy_reads_it(name, order, stored):
    source = volume(order=stored)
    for transform in (None, BEND):
        out = resample(source, GRIDS[name], transform, order=order, fill=-7, anti_alias=False)
        np.testing.assert_allclose(out.array, expected(source, GRIDS[name], transform, order, -7), atol=1e-3)
        assert out.array.dtype == np.float32


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", GRIDS)
def test_the_ways_agree(name, order):
    grid = GRIDS[name]
    reading = _reading(volume(), grid, None, order, -7.0)
    found = {"torch": ways.read_torch(reading), "itk": ways.read_itk(reading)}
    axes = ways.axes_of(reading.index_map, grid.shape)
    assert (axes is None) == (name == "oblique")
    if axes is not None:
        found["axis by axis"] = ways.read_separable(reading, axes, np.zeros(3))
    if order == 0 and name == "on the very edge":  # halves between two labels and the upper border: ITK is not asked
        del found["itk"]
    for one in found.values():
        np.testing.assert_allclose(
            one, resample(volume(), grid, order=order, fill=-7, anti_alias=False).array, atol=1e-3
        )


@pytest.mark.parametrize("order", [0, 1])
def test_a_field_is_read_by_torch_as_by_simpleitk(order):
    reading = _reading(volume(), GRIDS["any offset"], BEND, order, -7.0)
    np.testing.assert_allclose(ways.read_torch(reading), ways.read_itk(reading), atol=1e-3)
    still = replace(reading, field=None)
    assert np.abs(ways.read_torch(still) - ways.read_torch(reading)).max() > 10


def test_a_spline_through_a_field_is_near_the_linear_reading_of_smooth_voxels():
    smooth = volume().replace(array=ndimage.gaussian_filter(volume().array, 2.5))
    grid = GRIDS["any offset"]
    curved, linear = (resample(smooth, grid, BEND, order=order, fill=0, anti_alias=False).array for order in (3, 1))
    assert np.abs(curved - linear).max() < 0.02 * np.ptp(smooth.array) + np.abs(smooth.array).max() * 0.01
    assert np.array_equal(curved == 0, linear == 0)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.uint16, np.int64, np.float64])
@pytest.mark.parametrize("transform", [None, BEND, Transform(OBLIQUE)], ids=["axes", "field", "oblique"])
def test_labels_of_every_type_stay_what_they_are(kind, transform):
    labels = volume(kind).replace(array=(volume().array > 50).astype(kind))
    out = resample(labels, GRIDS["any offset"], transform, order=0, fill=0).array
    assert out.dtype == kind
    assert set(np.unique(out).tolist()) == {0, 1}


@pytest.mark.parametrize("stored", ["C", "F"])
@pytest.mark.parametrize("tilt", [None, Transform(OBLIQUE), BEND], ids=["axes", "oblique", "field"])
def test_the_gaussian_before_down_sampling_is_the_same_everywhere(tilt, stored):
    grid = Grid.around((0.4, 0, 0.2), (4.5, 1.6, 3.1), (6, 15, 9))
    source = volume(order=stored)
    step = np.linalg.norm(np.linalg.inv(source.affine)[:3] @ (tilt or Transform()).matrix @ grid.affine[:, :3], axis=1)
    sigma = np.where(step > 1.5, 0.5 * np.sqrt(np.maximum(step**2 - 1, 0)), 0)
    assert (sigma > 0).sum() == 2
    smooth = source.replace(array=ndimage.gaussian_filter(source.array, sigma, mode="nearest", truncate=3))
    out = resample(source, grid, tilt, fill=-7)
    np.testing.assert_allclose(out.array, expected(smooth, grid, tilt, 1, -7), atol=1e-3)
    small = Grid.around((8, 6, 5), (4.5, 1.6, 3.1), (2, 3, 2))  # only a corner of the source is read
    np.testing.assert_allclose(resample(source, small, tilt).array, expected(smooth, small, tilt, 1, 0), atol=1e-3)


def test_the_result_shares_no_memory_with_the_source():
    source = volume()
    out = resample(source, SOURCE)
    assert np.array_equal(out.array, source.array)
    assert not np.shares_memory(out.array, source.array)
    np.testing.assert_array_equal(resample(source, SOURCE, device="cpu").array, source.array)


def test_another_device_takes_the_way_of_torch(monkeypatch):
    asked = []

    def read(reading, device):
        asked.append(device)
        return ways.read_torch(reading)

    monkeypatch.setattr("mmfusion.volume.sampling.read_torch", read)
    for order in (0, 1, 3):
        out = resample(volume(), GRIDS["any offset"], order=order, fill=-7, device="cuda")
        assert out.array.shape == GRIDS["any offset"].shape
    assert asked == ["cuda", "cuda"]


def test_overlap_through_a_field():
    assert overlap(SOURCE, SOURCE, Transform(displacement=BEND.displacement)) > 0.8
    assert overlap(SOURCE, GRIDS["far away"], BEND) == 0
