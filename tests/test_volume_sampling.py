import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from mmfusion.errors import GeometryError
from mmfusion.volume import Grid, Transform, Volume, coverage, overlap, resample

FLIPPED = np.array([[-2, 0, 0, 30], [0, 0, 1.5, -10], [0, 3, 0, 5], [0, 0, 0, 1.0]])


def smooth_volume(shape=(21, 17, 25), affine=FLIPPED, units="a.u."):
    noise = np.random.default_rng(1).normal(size=shape)
    return Volume(ndimage.gaussian_filter(noise, 2).astype(np.float32) * 100, affine, "mr", units)


def ramp(points):  # linear in the world, so linear interpolation must reproduce it exactly
    return points @ np.array([0.5, -2.0, 3.0]) + 7


def world(grid):
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def test_a_linear_ramp_is_read_exactly_through_flips_and_a_transform():
    source = Grid((21, 17, 25), FLIPPED)
    volume = Volume(ramp(world(source)).astype(np.float32), FLIPPED)
    transform = Transform.rigid((8, -5, 12), (3, 1, -2), source.center)
    grid = Grid.around(source.center, (1.1, 0.9, 1.3), (11, 13, 9))
    out = resample(volume, grid, transform)
    assert coverage(source, grid, transform).all()
    assert np.allclose(out.array, ramp(transform.apply(world(grid))), atol=1e-3)


def to_itk(volume):
    flip = np.diag([-1, -1, 1.0])
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing)
    image.SetOrigin((flip @ volume.affine[:3, 3]).tolist())
    image.SetDirection((flip @ volume.affine[:3, :3] / volume.spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("order", [0, 1, 3])
def test_equals_simpleitk_in_physical_space(order):
    volume = smooth_volume()
    transform = Transform.rigid((3, -7, 11), (2, -3, 1), volume.grid.center)
    grid = Grid.around(volume.grid.center, (1.4, 1.2, 1.3), (15, 23, 19))
    flip = np.diag([-1, -1, 1, 1.0])
    matrix = flip @ transform.matrix @ flip
    itk = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    kind = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}[order]
    target = to_itk(Volume(np.zeros(grid.shape, np.float32), grid.affine))
    oracle = sitk.GetArrayFromImage(sitk.Resample(to_itk(volume), target, itk, kind, 0.0)).T
    assert np.abs(resample(volume, grid, transform, order=order).array - oracle).max() < 1e-3


def test_outside_is_filled_with_air_for_ct_and_zero_for_others():
    grid = Grid.around((500, 0, 0), (2, 2, 2), (5, 6, 7))
    assert (resample(smooth_volume(units="HU"), grid).array == -1024).all()
    assert (resample(smooth_volume(), grid).array == 0).all()
    assert not coverage(smooth_volume().grid, grid).any()


def test_labels_keep_their_type_and_values():
    mask = Volume((smooth_volume().array > 0).astype(np.uint8), FLIPPED, units="label")
    out = resample(mask, Grid.around(mask.grid.center, (1, 1, 1), (9, 8, 7)), order=0)
    assert out.array.dtype == np.uint8
    assert set(np.unique(out.array)) <= {0, 1}
    assert resample(mask.replace(array=mask.array > 0), mask.grid, order=0).array.dtype == bool


def test_down_sampling_does_not_alias():
    shape = (40, 24, 24)
    stripes = np.broadcast_to((np.arange(40) % 2)[:, None, None], shape).astype(np.float32)
    volume = Volume(stripes, np.eye(4))
    coarse = Grid.around(volume.grid.center, (4, 1, 1), (9, 12, 12))
    assert np.ptp(resample(volume, coarse).array[2:-2]) < 0.05
    spike = Grid(coarse.shape, coarse.affine + np.eye(4)[:, [0]] * [0, 0, 0, 0.5])
    assert np.ptp(resample(volume, spike, anti_alias=False).array) >= 0  # aliases, but is allowed
    assert resample(volume, spike, anti_alias=False).array.std() < resample(volume, volume.grid).array.std()


def test_overlap_is_the_share_of_the_smaller_field_of_view():
    large, inside = Grid.around((0, 0, 0), (2, 2, 2), (50, 50, 50)), Grid.around((5, 0, 0), (2, 2, 2), (10, 11, 12))
    half = Grid.around((50, 0, 0), (2, 2, 2), (10, 10, 10))
    assert overlap(large, inside) == overlap(inside, large) == 1
    assert overlap(large, half) == pytest.approx(0.5, abs=0.06)
    assert overlap(large, half, Transform.rigid(translation_mm=(300, 0, 0))) == 0


def test_bad_orders_are_refused():
    with pytest.raises(GeometryError, match=r"0 \(nearest\), 1 \(linear\) or 3"):
        resample(smooth_volume(), smooth_volume().grid, order=2)
    with pytest.raises(GeometryError, match="order 3 needs at least 4 voxels"):
        resample(smooth_volume((3, 9, 9)), smooth_volume().grid, order=3)
