"""Stored voxels into float32: one rounding, whatever lies where in memory."""

from itertools import permutations

import numpy as np
import pytest

from mmfusion.errors import ReadError
from mmfusion.io.voxels import empty_voxels, fill, slabs

SHAPE = (151, 13, 37)  # the first is longer than a block


def room(axes):
    """Float32 ``SHAPE`` whose memory runs along ``axes``, the fastest last, the first axis backward."""
    sizes = [SHAPE[axis] for axis in axes]
    return np.full(sizes, np.nan, np.float32).transpose(np.argsort(axes))[::-1]


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<i4", ">f4", "<f8"])
def test_every_voxel_is_rounded_once(axes, dtype):
    rng = np.random.default_rng(0)
    stored = np.asfortranarray(rng.integers(0, 250, SHAPE).astype(dtype))
    slopes, intercepts = rng.uniform(0.1, 3, SHAPE[2]), rng.uniform(-9, 9, SHAPE[2])
    for slope, intercept in ((1.0, 0.0), (1.0, -1024.0), (0.37, 0.0), (slopes, intercepts)):
        out = room(axes)
        fill(out, stored, slope, intercept)
        expected = (stored.astype(float) * slope + intercept).astype(np.float32)
        np.testing.assert_array_equal(out, expected)


def test_values_beyond_float32_become_infinite_without_a_warning():
    out = room((0, 1, 2))
    fill(out, np.full(SHAPE, 1e300))
    assert np.isinf(out).all()


def test_slabs_cover_k_and_bound_the_memory():
    parts = list(slabs((1000, 1000, 99), voxel_bytes=4))
    assert [n for part in parts for n in range(99)[part]] == list(range(99))
    assert max(part.stop - part.start for part in parts) == 16
    assert len(list(slabs((10**6, 10**6, 3), voxel_bytes=8))) == 3


def test_what_does_not_fit_into_memory_is_named():
    with pytest.raises(ReadError, match=r"a\.nii: 1048576 x 1048576 x 4096 voxels do not fit into memory; if the scan"):
        empty_voxels((1 << 20, 1 << 20, 1 << 12), np.eye(4), "a.nii")
