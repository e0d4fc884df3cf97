"""ITK transform files: SimpleITK resamples through them as we do."""

import numpy as np
import pytest
import SimpleITK as sitk

from mmfusion.errors import ReadError
from mmfusion.io import load_transform, save_transform
from mmfusion.volume import Grid, Transform, Volume, resample

MOVE = Transform.rigid((8, -5, 12), (3.0, -6.0, 4.0), (10, 20, 5)).compose(Transform(np.diag([1.05, 0.97, 1.02, 1])))
FLIP = np.diag([-1.0, -1, 1])


def itk(volume):
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    image.SetSpacing(volume.spacing)
    image.SetOrigin((FLIP @ volume.affine[:3, 3]).tolist())
    image.SetDirection((FLIP @ volume.affine[:3, :3] / volume.spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("name", ["a.tfm", "a.txt", "new/a.h5"])
def test_saved_transform_comes_back(tmp_path, name):
    save_transform(MOVE, tmp_path / name)
    np.testing.assert_allclose(load_transform(tmp_path / name).matrix, MOVE.matrix, atol=1e-9)


def test_simpleitk_resamples_through_the_file_as_we_do(tmp_path):
    rng = np.random.default_rng(0)
    moving = Volume(
        rng.normal(size=(21, 25, 19)).astype(np.float32), Grid.around((5, 6, 7), (2, 2.5, 3), (21, 25, 19)).affine
    )
    grid = Grid.around((4, 8, 6), (1.7, 2.1, 2.3), (11, 13, 9))
    save_transform(MOVE, tmp_path / "a.tfm")
    ours = resample(moving, grid, MOVE, anti_alias=False).array
    reference = itk(Volume(np.zeros(grid.shape, np.float32), grid.affine))
    theirs = sitk.Resample(itk(moving), reference, sitk.ReadTransform(str(tmp_path / "a.tfm")), sitk.sitkLinear)
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs).T, atol=1e-4)
    assert ours.std() > 0.3


@pytest.mark.parametrize(
    "made",
    [
        sitk.TranslationTransform(3, (4, -5, 6)),
        sitk.Euler3DTransform((1, 2, 3), 0.1, -0.2, 0.3, (4, 5, 6)),
        sitk.VersorRigid3DTransform((0, 0, 1), 0.4, (1, 2, 3), (7, 8, 9)),
        sitk.Similarity3DTransform(1.1, (1, 0, 0), 0.3, (4, 5, 6)),
    ],
    ids=lambda made: made.GetName(),
)
def test_every_linear_transform_of_itk_moves_points_as_itk_does(tmp_path, made):
    composite = sitk.CompositeTransform([made, sitk.AffineTransform([1, 0.1, 0, 0, 1, 0.2, 0, 0, 1], [1, 2, 3])])
    for transform in (made, composite):
        sitk.WriteTransform(transform, str(tmp_path / "a.tfm"))
        point = np.array([12.0, -34.0, 56.0])
        expected = FLIP @ transform.TransformPoint((FLIP @ point).tolist())
        np.testing.assert_allclose(load_transform(tmp_path / "a.tfm").apply(point), expected, atol=1e-6)


def test_what_is_no_linear_3d_transform_is_named(tmp_path):
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 5, 6], sitk.sitkVectorFloat64, 3))
    sitk.WriteTransform(field, str(tmp_path / "field.h5"))
    with pytest.raises(ReadError, match=r"field\.h5 holds a DisplacementFieldTransform; only linear"):
        load_transform(tmp_path / "field.h5")
    sitk.WriteTransform(sitk.TranslationTransform(2), str(tmp_path / "flat.tfm"))
    with pytest.raises(ReadError, match="is 2D; 3D is expected"):
        load_transform(tmp_path / "flat.tfm")
    (tmp_path / "bad.tfm").write_text("no transform")
    with pytest.raises(ReadError, match=r"bad\.tfm cannot be read"):
        load_transform(tmp_path / "bad.tfm")
    (tmp_path / "plane.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 0 0 0 0\nFixedParameters: 0 0 0\n"
    )
    with pytest.raises(ReadError, match=r"plane\.tfm: the transform is singular"):
        load_transform(tmp_path / "plane.tfm")


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(ReadError, match=r"nope\.tfm does not exist"):
        load_transform(tmp_path / "nope.tfm")
    with pytest.raises(ReadError, match=r"written as \.tfm"):
        save_transform(MOVE, tmp_path / "a.json")
