"""ITK transform files: SimpleITK resamples through them as we do."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mmfusion.errors import ReadError
from mmfusion.io import load_transform, save_transform
from mmfusion.volume import Displacement, Grid, Transform, Volume, resample

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


SHEAR = np.array([[1, 0.3, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
TILT = Transform.rigid((5, -9, 14)).matrix


def bend(affine, seed=0, shape=(11, 13, 17)):
    return Displacement(np.random.default_rng(seed).uniform(-2, 2, (*shape, 3)), Grid(shape, affine))


def some_points(count=200):
    return np.random.default_rng(5).uniform(-20, 60, (count, 3))


def by_itk(transform, points):
    return np.array([FLIP @ transform.TransformPoint((FLIP @ point).tolist()) for point in points])


@pytest.mark.parametrize("name", ["a.h5", "a.tfm"])
@pytest.mark.parametrize("affine", [np.diag([2, 2.5, 3, 1]), TILT @ np.diag([-2, 2.5, 3, 1]), TILT @ SHEAR], ids=str)
def test_a_field_is_written_for_itk_and_comes_back(tmp_path, name, affine):
    warp = Transform(MOVE.matrix, bend(affine))
    save_transform(warp, tmp_path / name)
    found = sitk.ReadTransform(str(tmp_path / name))
    points = np.concatenate([some_points(), Grid((11, 13, 17), affine).to_world(np.argwhere(np.ones((4, 5, 6))))])
    np.testing.assert_allclose(by_itk(found, points), warp.apply(points), atol=1e-4)
    np.testing.assert_allclose(load_transform(tmp_path / name).apply(points), warp.apply(points), atol=1e-4)


def test_simpleitk_resamples_through_a_field_as_we_do(tmp_path):
    rng = np.random.default_rng(0)
    moving = Volume(
        rng.normal(size=(21, 25, 19)).astype(np.float32), Grid.around((5, 6, 7), (2, 2.5, 3), (21, 25, 19)).affine
    )
    grid = Grid.around((4, 8, 6), (1.7, 2.1, 2.3), (11, 13, 9))
    warp = Transform(MOVE.matrix, bend(TILT @ Grid.around((5, 8, 6), (2, 2, 2), (11, 13, 17)).affine))
    save_transform(warp, tmp_path / "a.h5")
    reference = itk(Volume(np.zeros(grid.shape, np.float32), grid.affine))
    for order, kind in ((0, sitk.sitkNearestNeighbor), (1, sitk.sitkLinear), (3, sitk.sitkBSpline)):
        ours = resample(moving, grid, warp, anti_alias=False, order=order).array
        theirs = sitk.Resample(itk(moving), reference, sitk.ReadTransform(str(tmp_path / "a.h5")), kind)
        np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs).T, atol=1e-4)
        assert ours.std() > 0.3


def test_composites_of_any_order_become_one_transform(tmp_path):
    save_transform(Transform(displacement=bend(TILT @ np.diag([3, 3, 3, 1]))), tmp_path / "field.h5")
    field = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "field.h5"))).GetNthTransform(1)
    turn, shift = sitk.Euler3DTransform((1, 2, 3), 0.1, -0.2, 0.3, (4, 5, 6)), sitk.TranslationTransform(3, (4, -5, 6))
    inner = sitk.CompositeTransform([shift, field])
    for parts in ([turn, field], [field, turn], [shift, field, turn], [turn, inner]):
        composite = sitk.CompositeTransform(parts)
        composite.FlattenTransform()
        sitk.WriteTransform(composite, str(tmp_path / "a.h5"))
        found = load_transform(tmp_path / "a.h5")
        points = some_points()
        np.testing.assert_allclose(found.apply(points), by_itk(sitk.CompositeTransform(parts), points), atol=1e-4)
        assert not found.is_linear


def test_a_bspline_becomes_a_field_on_its_domain(tmp_path):
    spline = sitk.BSplineTransformInitializer(
        itk(Volume(np.zeros((21, 17, 19)), TILT @ np.diag([4, 5, 6, 1]))), [4, 3, 5]
    )
    spline.SetParameters(np.random.default_rng(0).uniform(-5, 5, len(spline.GetParameters())).tolist())
    sitk.WriteTransform(
        sitk.CompositeTransform([sitk.TranslationTransform(3, (1, 2, 3)), spline]), str(tmp_path / "a.h5")
    )
    found = load_transform(tmp_path / "a.h5")
    points = found.displacement.grid.to_world(
        np.random.default_rng(1).uniform(0, np.subtract(found.displacement.grid.shape, 1), (300, 3))
    )
    expected = by_itk(spline, points) + [-1, -2, 3]
    assert np.abs(found.apply(points) - expected).max() < 0.15
    assert np.abs(points + [-1, -2, 3] - expected).max() > 2
    outside = found.displacement.grid.corners() * 3
    np.testing.assert_allclose(found.apply(outside), by_itk(spline, outside) + [-1, -2, 3], atol=1e-9)


@pytest.mark.parametrize("name", ["1Warp.nii.gz", "a.mha"])
def test_an_image_of_displacements_is_a_transform(tmp_path, name):
    field = bend(np.diag([2.0, 2.5, 3, 1]))
    image = sitk.GetImageFromArray((field.array @ FLIP).transpose(2, 1, 0, 3).astype(np.float32), isVector=True)
    image.SetSpacing((2.0, 2.5, 3.0))
    image.SetDirection(FLIP.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / name))
    found = load_transform(tmp_path / name)
    assert np.array_equal(found.matrix, np.eye(4))
    np.testing.assert_allclose(found.apply(some_points()), some_points() + field.at(some_points()), atol=1e-5)
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkFloat32), str(tmp_path / name))
    with pytest.raises(ReadError, match=r"is an image of .*; a displacement field has 3"):
        load_transform(tmp_path / name)


AFFINE = TILT @ np.diag([2, 2.5, 3, 1.0])


def write_field(path, values, code=1007, name="", p1=0.0, descrip="", shape=(11, 13, 17)):
    image = nib.Nifti1Image(np.broadcast_to(values, (*shape, 3)).astype(np.float32)[:, :, :, None], AFFINE)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = code, name, p1
    image.header["descrip"] = descrip
    nib.save(image, path)
    return path


@pytest.mark.parametrize("program", ["ANTs", "NIfTI displacements", "NiftyReg places", "NiftyReg displacements", "SPM"])
def test_fields_of_other_programs_by_their_intent(tmp_path, program):
    """A field that moves by a known shift and stretch, in the numbers that each program stores."""
    world = AFFINE[:3, :3] @ np.moveaxis(np.indices((11, 13, 17)), 0, -1)[..., None]
    world = world[..., 0] + AFFINE[:3, 3]
    moved = world * [1.1, 1, 0.9] + [4, -3, 2]
    values, intent = {
        "ANTs": ((moved - world) * [-1, -1, 1], {"descrip": "workflow 3"}),
        "NIfTI displacements": (moved - world, {"code": 1006}),
        "NiftyReg places": (moved, {"name": "NREG_TRANS"}),
        "NiftyReg displacements": (moved - world, {"name": "NREG_TRANS", "p1": 1}),
        "SPM": (moved, {"name": "Mapping", "descrip": "Deformation"}),
    }[program]
    path = write_field(tmp_path / "y.nii.gz", values, **intent)
    points = world[2:9, 3:10, 4:12].reshape(-1, 3) + AFFINE[:3, :3] @ [0.3, 0.4, 0.2]
    np.testing.assert_allclose(load_transform(path).apply(points), points * [1.1, 1, 0.9] + [4, -3, 2], atol=1e-4)
    if program in ("ANTs", "NIfTI displacements"):  # which ITK reads, too
        theirs = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
        np.testing.assert_allclose(load_transform(path).apply(points), by_itk(theirs, points), atol=1e-4)


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        ({"code": 2006}, r"a warp of FSL \(intent 2006\).*wb_command"),
        ({"code": 2016}, "a warp of FSL"),
        ({"name": "NREG_TRANS", "p1": 2}, r"a spline or velocity grid of NiftyReg.*reg_transform -ref FIXED -def"),
        ({"name": "NREG_VEL_STEP"}, "of NiftyReg"),
        ({"name": "Velocity"}, "does not say that it holds displacements .*'Velocit'.*as 1Warp.nii.gz of ANTs"),
        ({"descrip": "Flow field"}, "'Flow'"),
    ],
)
def test_fields_that_hold_something_else_are_refused_with_a_remedy(tmp_path, intent, said):
    with pytest.raises(ReadError, match=said):
        load_transform(write_field(tmp_path / "a.nii", 0.5, **intent))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "packed.mha", "packed.nrrd", "a.h5"])
def test_a_field_that_was_cut_short_is_refused(tmp_path, name):
    values = np.random.default_rng(0).uniform(-5, 5, (11, 13, 17, 3)).astype(np.float32)
    if name.endswith((".nii", ".gz")):
        write_field(tmp_path / name, values)
    elif name.endswith("h5"):
        save_transform(Transform(displacement=Displacement(values, Grid((11, 13, 17), AFFINE))), tmp_path / name)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / name), name[0] == "p")
    whole = (tmp_path / name).read_bytes()
    assert not load_transform(tmp_path / name).is_linear
    for share in (0.4, 0.999) if name.endswith("h5") else (0.3, 0.5, 0.8, 0.97, 0.999):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ReadError, match="cannot be read"):
            load_transform(tmp_path / name)


def test_what_cannot_be_used_is_named(tmp_path):
    array = np.zeros((4, 5, 6, 3))
    array[1, 2, 3] = np.inf
    sitk.WriteTransform(
        sitk.DisplacementFieldTransform(sitk.GetImageFromArray(array, isVector=True)), str(tmp_path / "f.h5")
    )
    with pytest.raises(ReadError, match=r"f\.h5: 3 of 360 displacements are not finite"):
        load_transform(tmp_path / "f.h5")
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
    with pytest.raises(ReadError, match="is a folder, and a file is expected"):
        load_transform(tmp_path)
    with pytest.raises(ReadError, match=r"written as \.tfm"):
        save_transform(MOVE, tmp_path / "a.json")


def test_a_type_that_simpleitk_wraps_is_read(tmp_path):
    (tmp_path / "a.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 1 0.1 0 0 1 0.2 0 0 1 4 5 6\nFixedParameters: 0 0 0\n"
    )
    expected = np.diag([-1.0, -1, 1, 1]) @ [[1, 0.1, 0, 4], [0, 1, 0.2, 5], [0, 0, 1, 6], [0, 0, 0, 1]]
    np.testing.assert_allclose(
        load_transform(tmp_path / "a.txt").matrix, expected @ np.diag([-1.0, -1, 1, 1]), atol=1e-9
    )
