"""One case to one tensor: every voxel from one interpolation, in known units, whatever is missing."""

import re
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import circle, pet_tags, voxels, write_rtstruct, write_series
from registration_heads import error_mm, random_pose
from registration_heads import scan as scan_head
from sklearn.metrics import roc_auc_score
from small_scans import GRIDS, MIDDLE, scan, values

from mmfusion.cohort import Case
from mmfusion.cohort.simulate import draw_subjects, native_grids, simulate_volumes, target_registration_error
from mmfusion.errors import GeometryError, OptionError, ReadError, VoxelError
from mmfusion.io import load_volume, save_volume
from mmfusion.options import OPTIONS, resolve
from mmfusion.prepare import case as room
from mmfusion.prepare import check_reference, choose_reference, load_case, prepare_case, prepare_volumes
from mmfusion.prepare.pictures import case_pictures
from mmfusion.prepare.placing import Region, mask_and_owner
from mmfusion.registration import Alternative, brain_mask, register, template
from mmfusion.volume import SUV_MAX, Displacement, Grid, Transform, Volume, foreground, mask_center, resample

FLIP = np.diag([-1.0, -1, 1, 1])
SMALL = {"spacing": (8.0, 7.0, 9.0), "size": (17, 21, 13), "register": "none"}
OBLIQUE = Grid(GRIDS["mr"].shape, Transform.rigid((11, -7, 16), (9, -6, 5), MIDDLE).matrix @ GRIDS["mr"].affine)


def sample(modality, grid):
    """The head on any grid, from its formula."""
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return scan(modality).replace(array=values(modality, points).astype(np.float32), affine=grid.affine)


def ball(center, frame="", radius=20.0):
    """A mask that can be read on any grid."""

    def read(grid):
        points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
        inside = (np.linalg.norm(points - center, axis=-1) < radius).astype(np.uint8)
        return Volume(inside, grid.affine, "mask", "label", {"frame_of_reference": frame})

    return read


def by_simpleitk(volume, grid, fill=0.0):
    """Linear interpolation in physical space (LPS), with spacing, origin and direction in the headers."""

    def stamped(image, affine):
        lps, step = FLIP @ affine, np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(step.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / step).ravel().tolist())
        return image

    moving = stamped(sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T)), volume.affine)
    fixed = stamped(sitk.GetImageFromArray(np.zeros(grid.shape[::-1], np.float32)), grid.affine)
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, fill)).T


@pytest.fixture(scope="module")
def head():
    """Simulated CT and PET in poses of their own, and where the PET's mask lies."""
    subject = draw_subjects(1, 11)[0]
    coarse = {
        name: Grid.around(grid.center, (6, 6.5, 7), np.multiply(grid.shape, grid.spacing) // (6, 6.5, 7))
        for name, grid in native_grids(subject).items()
        if name != "mr"
    }
    scans = simulate_volumes(subject, coarse)
    return subject, {n: v.replace(meta={"frame_of_reference": f"1.2.{n}"}) for n, v in scans.items()}


@pytest.fixture(scope="module")
def registered(head):
    subject, scans = head
    target = (12.0, -40.0, 20.0)  # head frame
    mask = ball(subject.poses["pet"].apply(target), "1.2.pet")
    return target, prepare_volumes(scans, mask=mask, center="mask", spacing=(7, 8, 6), size=(13, 11, 17))


def test_a_pose_in_the_header_is_resampled_once():
    mr = sample("mr", OBLIQUE)
    result = prepare_volumes({"ct": scan("ct"), "mr": mr}, **SMALL)
    scale = np.percentile(mr.array[foreground(mr)], 99)
    np.testing.assert_allclose(result.image[1], resample(mr, result.grid).array / scale, atol=1e-6)
    np.testing.assert_allclose(result.image[1], by_simpleitk(mr, result.grid) / scale, atol=1e-5)
    truth = sample("mr", result.grid).array / scale
    assert np.abs(result.image[1] - truth)[result.valid[1]].max() < 0.12  # what linear interpolation loses
    assert np.abs(scan("mr").array - mr.array).max() / scale > 0.4  # what ignoring the header would lose


def test_a_registered_scan_is_resampled_once(head, registered):
    scans, (_, result) = head[1], registered
    found = result.registrations["pet"].fixed_to_moving
    assert found.displacement_mm(result.grid.center) > 5
    carried = scans["pet"].replace(affine=found.inverse().matrix @ scans["pet"].affine)
    expected = np.clip(by_simpleitk(carried, result.grid), 0, SUV_MAX) / SUV_MAX
    np.testing.assert_allclose(result.image[1], expected, atol=1e-5)
    assert np.ptp(result.image[1]) > 0.2


def test_every_modality_is_interpolated_once_from_its_own_voxels(monkeypatch):
    read = []

    def counting(volume, grid, transform=None, **how):
        read.append(volume)
        return resample(volume, grid, transform, **how)

    monkeypatch.setattr(room, "resample", counting)
    scans = {name: scan(name) for name in GRIDS}
    prepare_volumes(scans, pictures=False, **SMALL)
    assert [id(one) for one in read] == [id(scans[name]) for name in ("ct", "pet", "mr")]


def test_on_its_own_grid_a_scan_stays_as_it_is():
    ct, pet = scan("ct"), sample("pet", GRIDS["ct"])
    result = prepare_volumes(
        {"ct": ct, "pet": pet}, grid=ct.grid, register="none", ct_window=(-900.0, 200.0), suv_max=5.0
    )
    np.testing.assert_allclose(result.image[0], np.clip((ct.array + 900) / 1100, 0, 1), atol=1e-6)
    np.testing.assert_allclose(result.image[1], np.clip(pet.array / 5, 0, 1), atol=1e-6)
    assert result.image.shape == (2, 27, 25, 21) and result.image.dtype == np.float32
    assert result.image[0].min() == 0 and result.image[0].max() == 1 and (pet.array > 5).any() and result.valid.all()


def test_the_share_of_the_mask_that_is_clipped_is_counted_before_clipping():
    """On its own grid: 7 of the mask's voxels lie above suv_max, of the hot ones (4 and more) these and 5 others."""
    pet, mask = scan("pet"), ball(MIDDLE + (9, -5, 4))(GRIDS["pet"]).array > 0
    array = np.where(mask, 3.0, np.minimum(pet.array, 3.5)).astype(np.float32)
    array[tuple(np.argwhere(mask)[::4][:7].T)] = 26.0
    array[tuple(np.argwhere(~mask)[::50][:5].T)] = [30, 25, 24, 5, 4]
    pet, grid = pet.replace(array=array), GRIDS["pet"]
    drawn = {"mask": ball(MIDDLE + (9, -5, 4)), "grid": grid, "pictures": False}
    assert prepare_volumes({"pet": pet}, **drawn).facts["pet_clipped"] == pytest.approx(7 / mask.sum(), abs=5e-5)
    assert prepare_volumes({"pet": pet}, suv_max=26.0, **drawn).facts["pet_clipped"] == 0
    hot = prepare_volumes({"pet": pet}, grid=grid, pictures=False)
    assert hot.facts["pet_clipped"] == pytest.approx(8 / 12, abs=5e-5) and hot.image.max() == 1


def test_the_clipped_share_is_of_the_part_of_the_mask_that_the_pet_saw_whatever_its_grid():
    center = MIDDLE + (9, -5, 4)
    hot = ball(center)
    pet = sample("pet", OBLIQUE)
    pet = pet.replace(array=np.where(hot(OBLIQUE).array > 0, np.float32(40), np.minimum(pet.array, 3.5)))
    half = Volume(pet.array[: round(OBLIQUE.to_index(center[None])[0, 0])], pet.affine, "pet", "SUVbw")
    asked = {"mask": hot, "center": "mask", "register": "none", "spacing": (4, 4, 4), "size": (14, 15, 16)}
    for volume in (pet, half):
        facts = prepare_volumes({"ct": scan("ct"), "pet": volume}, pictures=False, **asked).facts
        assert 0.6 < facts["pet_clipped"] < 1 and "ct_clipped" not in facts
    stored = {"pet": pet.replace(units="stored")}
    assert "pet_clipped" not in prepare_volumes(stored, suv="none", pictures=False, **asked).facts
    assert prepare_volumes(stored, suv="none", pet_max=25.0, pictures=False, **asked).facts["pet_clipped"] > 0.6


def test_what_is_emptied_of_a_mask_does_not_count_as_clipped_or_not():
    center, grid = MIDDLE + (9, -5, 4), GRIDS["ct"]
    ct = Volume(np.where(ball(center)(grid).array > 0, 40, -1000).astype(np.float32), grid.affine, "ct", "HU")
    pet = scan("pet")
    pet = pet.replace(array=np.where(ball(center, radius=60.0)(pet.grid).array > 0, np.float32(30), pet.array))
    asked = {"mask": ball(center, radius=40.0), "crop_margin": 0.0, "pictures": False, **SMALL}
    assert prepare_volumes({"ct": ct, "pet": pet}, **asked).facts["pet_clipped"] == 1


@pytest.mark.slow
def test_what_the_upper_end_of_suv_costs_where_the_maximum_of_a_tumor_tells_its_class():
    """200 tumors whose maxima are spread as those of sarcomas (median 10.5, a tenth above 25)."""
    rng, center = np.random.default_rng(3), MIDDLE + (9, -5, 4)
    peaks = 10.5 * np.exp(rng.normal(0, 0.7, 200))
    label = rng.uniform(size=200) < 1 / (1 + np.exp(-1.8 * np.log(peaks / 10.5)))
    grid, mask = GRIDS["pet"], ball(center)
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    fall = np.clip(1 - (np.linalg.norm(points - center, axis=-1) / 24) ** 2, 0, 1)
    body = np.minimum(scan("pet").array, 3.5)
    asked = {"mask": mask, "center": "mask", "spacing": (5, 5, 5), "size": (11, 11, 11), "pictures": False}
    auc = {}
    for high in (10.0, SUV_MAX, 1000.0):
        scores = []
        for peak in peaks:
            pet = Volume(np.maximum(body, peak * fall).astype(np.float32), grid.affine, "pet", "SUVbw")
            result = prepare_volumes({"pet": pet}, suv_max=high, **asked)
            scores.append(result.image.max())
            assert (result.facts["pet_clipped"] > 0) == (scores[-1] == 1)
        auc[high] = roc_auc_score(label, scores)
    assert auc[10.0] < auc[1000.0] - 0.03
    assert abs(auc[SUV_MAX] - auc[1000.0]) < 0.01


def test_the_default_of_earlier_versions_is_no_option_of_pet_that_is_no_suv(counts):
    """Files of earlier cohorts and models name it, whatever their PET is in."""
    for before in (10.0, OPTIONS["suv_max"].default):
        assert load_case(counts, suv="none", suv_max=before)["pet"].units == "stored"


@pytest.mark.parametrize("size", [(5, 7, 4), (41, 35, 37)])
def test_mr_statistics_are_those_of_the_native_scan_whatever_the_grid(size):
    mr = scan("mr")
    body = mr.array[foreground(mr)]
    by_percentile = prepare_volumes({"mr": mr}, size=size, spacing=(8, 8, 8))
    by_zscore = prepare_volumes({"mr": mr}, size=size, spacing=(8, 8, 8), mr_normalize="zscore")
    raw = resample(mr, by_percentile.grid).array
    np.testing.assert_allclose(by_percentile.image[0], raw / np.percentile(body, 99), atol=1e-6)
    np.testing.assert_allclose(by_zscore.image[0], (raw - body.mean()) / body.std(), atol=1e-5)


def test_channels_come_in_the_order_asked_for_and_a_missing_one_is_zero():
    scans = {"pet": scan("pet"), "ct": scan("ct")}
    result = prepare_volumes(scans, modalities=["mr", "ct", "pet"], **SMALL)
    usual = prepare_volumes(scans, **SMALL)
    assert (result.modalities, result.present.tolist()) == (("mr", "ct", "pet"), [False, True, True])
    assert not result.image[0].any() and not result.valid[0].any()
    np.testing.assert_array_equal(result.image[1:], usual.image[::-1])
    assert result.image.shape == (3, 17, 21, 13) and usual.modalities == ("pet", "ct")


def test_only_the_wanted_modalities_take_part():
    result = prepare_volumes({name: scan(name) for name in GRIDS}, modalities=["pet"], **SMALL)
    assert (result.reference, result.image.shape[0], dict(result.registrations)) == ("pet", 1, {})
    scans = {"ct": scan("ct", frame_of_reference="1.2.1"), "pet": scan("pet", frame_of_reference="1.2.2")}
    with pytest.raises(GeometryError, match="of a scan that the case does not have"):
        prepare_volumes(scans, modalities=["pet"], center="mask", mask=ball(MIDDLE, "1.2.1"), **SMALL)


def test_valid_says_where_the_scan_looked():
    mr = sample("mr", OBLIQUE)
    result = prepare_volumes({"ct": scan("ct"), "mr": mr}, size=(35, 37, 31), spacing=(8, 7, 9), register="none")
    centers = nib.affines.apply_affine(result.grid.affine, np.moveaxis(np.indices(result.grid.shape), 0, -1))
    index = nib.affines.apply_affine(np.linalg.inv(mr.affine), centers)
    inside = ((index >= -0.5) & (index <= np.array(mr.array.shape) - 0.5)).all(-1)
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_array_equal(result.valid[1], inside)
    assert result.facts["mr_coverage"] == pytest.approx(inside.mean(), abs=1e-4) and not result.image[1][~inside].any()


@pytest.mark.parametrize(
    ("there", "reference"),
    [("pet mr", "mr"), ("ct mr", "ct"), ("ct pet", "ct"), ("ct", "ct"), ("pet", "pet"), ("mr", "mr")],
)
def test_any_modality_may_be_missing_the_reference_too(there, reference):
    scans = {name: scan(name) for name in there.split()}
    result = prepare_volumes(scans, modalities=["ct", "pet", "mr"], **SMALL)
    assert result.reference == reference and set(result.registrations) == set(scans) - {reference}
    np.testing.assert_array_equal(result.present, [name in scans for name in ("ct", "pet", "mr")])
    np.testing.assert_array_equal(result.image.any((1, 2, 3)), result.present)
    body = foreground(scans[reference])
    np.testing.assert_allclose(result.grid.center, mask_center(body, GRIDS[reference]), atol=1e-6)


def test_the_reference_is_the_first_preferred_one_that_is_there():
    assert choose_reference(["pet", "mr"], ["ct", "mr"]) == "mr"
    assert choose_reference(["t2", "pet"], ["ct", "mr"]) == "t2"
    scans = {name: scan(name) for name in GRIDS}
    assert prepare_volumes(scans, reference=["pet"], **SMALL).reference == "pet"


@pytest.mark.parametrize(
    ("reference", "modalities", "words"),
    [
        (["ct", "mr", "pet"], ["t1", "t2"], None),  # the default
        ("mr", ["ct", "mr"], None),
        (["mr", "ct"], ["ct", "pet"], None),  # a study without MR
        (["t1", "t1gd"], ["t1gd", "ct"], None),
        (["t1w"], ["t1", "ct"], "unknown reference 't1w'; did you mean 't1'? Known: t1, ct"),
        (["ct", "PET_"], ["ct", "pet"], "unknown reference 'PET_'; did you mean 'pet'?"),
        (["mr"], ["ct", "pet"], "unknown reference 'mr'. Known: ct, pet"),
    ],
)
def test_a_reference_that_others_would_stand_in_for_is_refused(reference, modalities, words):
    reference = resolve({"reference": reference}, "case")["reference"]
    if words is None:
        check_reference(reference, modalities)
        return
    with pytest.raises(OptionError, match=re.escape(words)):
        check_reference(reference, modalities)
    with pytest.raises(OptionError, match=re.escape(words)):
        prepare_volumes({modalities[0]: scan("mr")}, reference=reference, modalities=modalities, **SMALL)


def test_centers():
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    whole = prepare_volumes(scans, center="volume", **SMALL).grid
    np.testing.assert_allclose(whole.center, MIDDLE + (3, -2, 1), atol=1e-9)
    assert whole.shape == SMALL["size"] and whole.spacing == SMALL["spacing"] and whole.orientation == "RAS"
    body = prepare_volumes(scans, **SMALL).grid
    assert np.linalg.norm(body.center - MIDDLE) < 4
    drawn = prepare_volumes(scans, center="mask", mask=ball(MIDDLE + (20, 5, -9)), **SMALL).grid
    np.testing.assert_allclose(drawn.center, MIDDLE + (20, 5, -9), atol=1.5)


def test_a_point_is_a_center_too():
    result = prepare_volumes({"ct": scan("ct")}, center="12,-9.5,30", **SMALL)
    np.testing.assert_allclose(result.grid.center, (12, -9.5, 30))


def test_what_the_grid_misses_is_counted():
    """A ball of 20 mm and a grid that ends 10 mm beside its center: the cap holds 5/32 of the ball."""
    beside = MIDDLE + (17 * 8 / 2 - 10, 0, 0)
    result = prepare_volumes({"ct": scan("ct")}, center="volume", mask=ball(MIDDLE), **SMALL)
    assert (result.facts["mask_outside"], result.status) == (0, "done")
    point = ",".join(map(str, beside))
    cut = prepare_volumes({"ct": scan("ct")}, center=point, mask=ball(MIDDLE, radius=20), **SMALL)
    assert cut.facts["mask_outside"] == pytest.approx(5 / 32, abs=0.08) and cut.status == "doubtful"
    assert cut.reasons == (
        f"mask: {cut.facts['mask_outside']:.0%} of it falls outside the grid; use --center mask, or a larger grid",
    )
    body = foreground(scan("ct"))
    index = cut.grid.to_index(GRIDS["ct"].to_world(np.argwhere(body)))
    outside = 1 - ((index > -0.5) & (index < np.array(cut.grid.shape) - 0.5)).all(1).mean()
    assert cut.facts["foreground_outside"] == pytest.approx(outside, abs=1e-3) and 0.2 < outside < 0.8


def test_a_mask_that_is_only_measured_fails_no_case():
    result = prepare_volumes({"ct": scan("ct")}, mask=ball(MIDDLE + 999), **SMALL)
    assert result.reasons == (
        "mask: the mask is empty on the grid of ct: it lies outside the scan, or belongs to another",
    )
    assert "mask_outside" not in result.facts


def test_a_box_holds_all_voxels_however_many():
    """More than are kept as points; without a margin no voxel of it is lost."""
    grid = Grid.around((5, -3, 2), (1.0, 1.2, 5.0), (95, 90, 60))
    mask = np.zeros(grid.shape, bool)
    mask[1:94, 2:87, 1:58] = True
    region = Region.of(mask, grid, None)
    assert len(region.points) < mask.sum()
    np.testing.assert_array_equal(region.box(grid, 0.0), mask)


def test_the_scan_that_a_mask_was_drawn_on():
    def scans(**frames):
        return {name: scan(name).replace(meta={"frame_of_reference": frame}) for name, frame in frames.items()}

    drawn = ball(MIDDLE, "1.2.mr")
    assert mask_and_owner(drawn, scans(ct="1.2.ct", mr=""), "ct")[1] == "mr"  # CT is known to be another
    assert mask_and_owner(drawn, scans(ct="", mr=""), "ct")[1] == "ct"
    with pytest.raises(GeometryError, match=r"or in that of one of pet, mr, which do not say theirs: fill the column"):
        mask_and_owner(drawn, scans(ct="1.2.ct", pet="", mr=""), "ct")
    both = scans(ct="1.2.ct", pet="1.2.mr", mr="1.2.mr")
    small = both["pet"].replace(array=both["pet"].array[8:10, 12:14, 10:12], affine=both["pet"].affine @ np.array(
        [[1, 0, 0, 8], [0, 1, 0, 12], [0, 0, 1, 10], [0, 0, 0, 1.0]]))  # fmt: skip
    assert mask_and_owner(drawn, {**both, "pet": small}, "ct")[1] == "mr"  # where it is whole


def test_a_mask_of_unknown_frame_belongs_to_the_series_that_it_refers_to():
    frames, series = {"ct": "1.2.ct", "mr": "1.2.mr"}, {"ct": "1.9.1", "mr": "1.9.2"}
    scans = {n: scan(n).replace(meta={"frame_of_reference": frames[n], "series_uid": series[n]}) for n in frames}

    def owner(frame, *refers):
        def read(grid):
            mask = ball(MIDDLE, frame)(grid)
            return mask.replace(meta={**mask.meta, "referenced_series": refers})

        return mask_and_owner(read, scans, "ct")[1]

    assert (owner("9.9", "1.9.2"), owner("", "1.9.2"), owner("9.9", "1.9.2", "1.9.1")) == ("mr", "mr", "ct")
    assert (owner("1.2.mr", "1.9.1"), owner("1.2.ct", "1.9.2"), owner("")) == ("mr", "ct", "ct")
    with pytest.raises(GeometryError, match="the frame of reference of a scan that the case does not have"):
        owner("9.9", "1.9.3")


@pytest.mark.parametrize(
    ("cell", "roi", "option", "center", "others"),
    [
        ("", "", None, 24, "External"),
        ("#node", "", ["GTV"], -16, "External, GTV"),
        ("", "node", ["GTV"], -16, "External, GTV"),
        ("", "", ["N*"], -16, "External, GTV"),
        ("", "", ["external"], 0, "GTV"),
    ],
)
def test_a_structure_is_named_by_cell_column_or_option(tmp_path, cell, roi, option, center, others):
    x, y, z = MIDDLE

    def drawn(offset, radius):
        return [circle(radius, z + height, (x + offset, y)) for height in (-8, -4, 0, 4, 8)]

    structures = {"External": drawn(0, 60), "GTV": drawn(24, 9)}
    if "node" in cell + roi or option == ["N*"]:
        structures["node"] = drawn(-16, 7)
    write_rtstruct(tmp_path / "rs.dcm", structures)
    save_volume(scan("ct"), tmp_path / "ct.nii")
    case = Case("001", images={"ct": tmp_path / "ct.nii"}, mask=tmp_path / f"rs.dcm{cell}", roi=roi)
    result = prepare_case(case, center="mask", roi=option, **SMALL)
    np.testing.assert_allclose(result.grid.center - MIDDLE, (center, 0, 0), atol=4)
    assert result.facts["mask_others"] == others
    assert result.facts["mask_roi"] in ("GTV", "node", "External") and "beside it" in result.facts["mask_notes"]


def test_several_possible_lesions_stop_a_grid_that_is_centered_on_one_and_are_a_doubt_otherwise(tmp_path):
    write_rtstruct(tmp_path / "rs.dcm", {"GTV-1": [circle(9, 0, (24, 0))], "GTV-2": [circle(9, 0, (-24, 0))]})
    save_volume(scan("ct"), tmp_path / "ct.nii")
    case = Case("001", images={"ct": tmp_path / "ct.nii"}, mask=tmp_path / "rs.dcm")
    with pytest.raises(ReadError, match="holds 2 structures that can be the lesion: GTV-1, GTV-2"):
        prepare_case(case, center="mask", **SMALL)
    result = prepare_case(case, **SMALL)
    assert result.status == "doubtful" and "mask_roi" not in result.facts
    (reason,) = result.reasons
    assert reason.startswith("mask: ") and "Name the one that is meant" in reason


def test_nan_outside_the_brain_is_background_by_option(tmp_path):
    ct, mr = scan("ct"), scan("mr")
    far = np.linalg.norm(mr.grid.to_world(np.moveaxis(np.indices(mr.array.shape), 0, -1)) - MIDDLE, axis=-1) > 70
    save_volume(ct, tmp_path / "ct.nii")
    for name, outside in (("nan", np.nan), ("zero", 0)):
        save_volume(mr.replace(array=np.where(far, np.float32(outside), mr.array)), tmp_path / f"{name}.nii")
    cases = [Case("001", images={"ct": tmp_path / "ct.nii", "mr": tmp_path / f"{n}.nii"}) for n in ("nan", "zero")]
    with pytest.raises(VoxelError, match="are not finite .*; with --nan background they count as air or zero"):
        prepare_case(cases[0], **SMALL)
    with_nan, with_zero = (prepare_case(case, nan="background", **SMALL) for case in cases)
    np.testing.assert_array_equal(with_nan.image, with_zero.image)
    assert with_nan.facts["mr_notes"] == f"{far.sum()} of {far.size} voxels are NaN and count as background (0)"


@pytest.mark.parametrize("center", ["mask", "foreground"])
def test_a_margin_around_the_box_empties_the_rest(center):
    scans = {"ct": scan("ct"), "mr": scan("mr")}
    whole, cropped = (
        prepare_volumes(scans, mask=ball(MIDDLE, radius=25), center=center, crop_margin=margin, **SMALL)
        for margin in (None, 8.0)
    )
    read = ball(MIDDLE, radius=25)(GRIDS["ct"]).array > 0 if center == "mask" else foreground(scan("ct"))
    points = GRIDS["ct"].to_world(np.argwhere(read))
    half = np.array(GRIDS["ct"].spacing) / 2
    low, high = points.min(0) - half - 8, points.max(0) + half + 8
    world = whole.grid.to_world(np.moveaxis(np.indices(whole.grid.shape), 0, -1))
    inside = ((world > low - 1e-6) & (world < high + 1e-6)).all(-1)
    assert 0.02 < inside.mean() < 0.97
    np.testing.assert_array_equal(cropped.image[:, inside], whole.image[:, inside])
    assert not cropped.image[:, ~inside].any() and whole.image[:, ~inside].any()
    with pytest.raises(OptionError, match=r"--crop-margin needs a box around something: .* not volume"):
        prepare_volumes(scans, center="volume", crop_margin=8.0, **SMALL)


def test_scans_on_the_grid_keep_their_units():
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    result = prepare_volumes(scans, mask=ball(MIDDLE), keep_volumes=True, **SMALL)
    assert {name: volume.units for name, volume in result.on_grid.items()} == {
        "ct": "HU", "pet": "SUVbw", "mask": "label",
    }  # fmt: skip
    for name in scans:
        np.testing.assert_array_equal(result.on_grid[name].array, resample(scans[name], result.grid).array)
    volume_ml = result.on_grid["mask"].array.sum() * 8 * 7 * 9 / 1000
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 8, rel=0.15)
    assert not prepare_volumes(scans, **SMALL).on_grid


def test_a_mask_drawn_on_another_scan_is_found_through_the_registration(head, registered):
    subject, (target, result) = head[0], registered
    assert result.reference == "ct" and result.registrations["pet"].verdict == "ok"
    assert target_registration_error(subject, "ct", "pet", result.registrations["pet"].fixed_to_moving) < 2
    place = subject.poses["ct"].apply(target)
    assert np.linalg.norm(result.grid.center - place) < 3
    assert np.linalg.norm(subject.poses["pet"].apply(target) - place) > 5


def test_masks_that_cannot_be_centered_on():
    scans = {"ct": scan("ct", frame_of_reference="1.2.1"), "pet": scan("pet", frame_of_reference="1.2.2")}

    def center_on(mask, volumes=scans):
        return prepare_volumes(volumes, center="mask", mask=mask, **SMALL)

    with pytest.raises(GeometryError, match=r"centered on a mask, but the case has none: fill the column mask"):
        center_on(None)
    with pytest.raises(GeometryError, match=r"the mask is empty on the grid of ct: it lies outside the scan"):
        center_on(ball(MIDDLE + 900))
    with pytest.raises(GeometryError, match=r"empty on the grid of pet"):
        center_on(ball(MIDDLE + 900, "1.2.2"))
    with pytest.raises(GeometryError, match=r"frame of reference of a scan that the case does not have"):
        center_on(ball(MIDDLE, "1.2.3"))
    plain = {"ct": scan("ct")}  # as NIfTI: no frame of reference, so the mask is taken at its word
    np.testing.assert_allclose(center_on(ball(MIDDLE, "1.2.3"), plain).grid.center, MIDDLE, atol=2)


def test_scans_that_cannot_be_prepared():
    ct, pet = scan("ct"), scan("pet")
    air = Grid.around(MIDDLE + (85, 85, 75), (2, 2, 2), (5, 4, 6))
    with pytest.raises(VoxelError, match=r"ct is constant on the prepared grid \(100% of the grid lies in its field"):
        prepare_volumes({"ct": ct}, grid=air)
    with pytest.raises(GeometryError, match="none of the modalities mr, t2 is there"):
        prepare_volumes({"ct": ct}, modalities=["mr", "t2"])
    far = pet.replace(affine=Transform.rigid(translation_mm=(900, 0, 0)).matrix @ pet.affine)
    with pytest.raises(GeometryError, match=r"pet could not be registered to ct: .* leave the pet cell empty, or use"):
        prepare_volumes({"ct": ct, "pet": far}, **SMALL)
    with pytest.raises(OptionError, match="ct_window takes rising values, found 240.0 -160.0"):
        prepare_volumes({"ct": ct}, ct_window=(240.0, -160.0), **SMALL)


def test_options_that_do_not_exist():
    with pytest.raises(OptionError, match="unknown option 'spaceing'; did you mean 'spacing'"):
        prepare_volumes({"ct": scan("ct")}, spaceing=(2, 2, 2))
    with pytest.raises(OptionError, match="unknown center 'masks'; did you mean 'mask'"):
        prepare_volumes({"ct": scan("ct")}, center="masks")
    with pytest.raises(OptionError, match="option spacing takes 3 values"):
        prepare_case(Case("001"), spacing=(2, 2))


def test_a_scan_that_shows_little_of_the_grid_makes_the_case_doubtful():
    slab = sample("mr", Grid.around(MIDDLE + (4, 0, 0), (8, 8, 4), (17, 21, 11)))
    result = prepare_volumes({"ct": scan("ct"), "mr": slab}, spacing=(9, 9, 9), size=(61, 57, 53), register="none")
    assert result.status == "doubtful" and "mr: its field of view covers only" in "; ".join(result.reasons)
    assert result.facts["mr_coverage"] < 0.05 and prepare_volumes({"mr": slab}, **SMALL).status == "done"


def test_every_doubt_has_its_cause():
    """What a scan says of itself comes first, then its position, the mask, and what it saw of the grid."""
    ct = scan("ct", doubts=["12 slices are missing."])
    pet = scan("pet", Transform.rigid((0, 0, 0), (40, 0, 0)), frame_of_reference="1.2")
    ct = ct.replace(meta=ct.meta | {"frame_of_reference": "1.2"})
    grid = Grid.around(MIDDLE + (0, 0, 110), (12, 12, 12), (11, 13, 17))
    result = prepare_volumes({"ct": ct, "pet": pet}, mask=ball(MIDDLE), grid=grid, register="none", pictures=False)
    assert [doubt.cause for doubt in result.doubts] == ["reading", "registration", "mask"]
    assert result.reasons[0] == "ct: 12 slices are missing." and result.status == "doubtful"
    assert len(result.mask_digest) == 64


def test_pictures_show_three_planes_before_and_after(registered):
    pictures = registered[1].pictures
    shapes = {name: picture.shape for name, picture in pictures.items() if name.startswith("reference")}
    steps = np.array([13 * 7, 11 * 8, 17 * 6]) * 128 / 102  # square pixels of a 128th of the longest side
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        assert shapes[f"reference_{plane}"] == tuple(np.delete(np.round(steps).astype(int), axis))
        before, after = (pictures[f"{moment}_pet_{plane}"] for moment in ("before", "after"))
        assert before.shape == after.shape and np.abs(before - after).max() > 0.1
    before, after = (pictures[f"histogram_{moment}_pet"] for moment in ("before", "after"))
    assert before.shape == (32, 32) and (after > 0).sum() < (before > 0).sum()  # sharper where aligned


def test_a_position_that_was_not_taken_is_drawn_as_if_it_had_been():
    """Of a modality and of the template, on a grid in the template's world."""
    scans, grid = {name: scan(name) for name in ("ct", "pet")}, Grid.around(MIDDLE, (9, 8, 7), (13, 15, 17))
    here, taken = Transform.rigid((3, 4, 5), (2, -3, 4)), Transform.rigid((0, 6, 0), (5, 0, 0))
    other, head = Transform.rigid((8, -5, 3), (10, 12, -7)), Transform.rigid((4, 0, 9), (-6, 3, 8))
    found = {"pet": Alternative(other, "another"), "mni152": Alternative(head, "another")}

    def drawn(pet, to_head, alternatives):
        registrations = {name: SimpleNamespace(alternative=alternatives.get(name)) for name in found}
        scalings = dict.fromkeys(scans, lambda volume: (volume.array - volume.array.min()) / 1000)
        transforms = {"ct": here, "pet": here.compose(pet)}
        return case_pictures(scans, "ct", transforms, grid, scalings, "mni152", to_head, registrations)

    pictures = drawn(taken, Transform(), found)
    wanted = drawn(other, here.compose(head.inverse()), {})
    for end in ("axial", "coronal", "sagittal"):
        np.testing.assert_array_equal(pictures[f"other_pet_{end}"], wanted[f"after_pet_{end}"])
        np.testing.assert_array_equal(pictures[f"other_mni152_{end}"], wanted[f"template_{end}"])
        assert not np.array_equal(pictures[f"other_pet_{end}"], pictures[f"after_pet_{end}"])
    np.testing.assert_array_equal(pictures["histogram_other_mni152"], wanted["histogram_template"])
    assert not any(name.startswith("other") for name in wanted)
    headers = {"pet": Alternative(Transform(), "the headers")}
    assert drawn(taken, Transform(), headers).keys() == wanted.keys()  # they are shown before registration


def test_facts_for_the_table(registered):
    facts = registered[1].facts
    assert (facts["ct_spacing"], facts["ct_units"], facts["pet_units"]) == ("6 6.5 7", "HU", "SUVbw")
    assert facts["pet_verdict"] == "ok" and facts["pet_coverage"] > 0.9 and "ct_verdict" not in facts


def test_files_of_a_case(tmp_path):
    """CT as one of two DICOM series of a folder, PET in Bq/mL that the manifest explains, a mask without directions."""
    stored = voxels((13, 11, 17))
    for uid, shift in (("1.2.3.4", 0), ("1.2.3.5", 7)):
        write_series(tmp_path / "dcm", stored + np.int16(shift), series_uid=uid, step=(0, 0, 2.5 + shift))
    pet = scan("pet")
    save_volume(pet.replace(array=pet.array * np.float32(5000)), tmp_path / "pet.nii.gz")
    # 70 kg, 350 MBq one half-life before: SUV = Bq/mL * 70000 / 175e6 = Bq/mL / 2500
    details = {"weight_kg": "70", "dose_mbq": "350", "half_life_s": "3600"}
    details |= {"injection_time": "09:00:00", "acquisition_time": "10:00:00"}
    images = {"ct": tmp_path / "dcm#1.2.3.5", "pet": tmp_path / "pet.nii.gz"}
    found = load_case(Case("001", images=images, covariates={**details, "age": "50"}))
    np.testing.assert_array_equal(np.sort(found["ct"].array, axis=None), np.sort(stored + 7, axis=None))
    np.testing.assert_allclose(found["pet"].array, pet.array * 2, rtol=1e-4)
    assert list(load_case(Case("001", images=images, covariates=details), modalities=["mr", "pet"])) == ["pet"]


def test_pet_from_dicom_needs_no_manifest(tmp_path):
    write_series(tmp_path / "pet", np.abs(voxels((11, 13, 9))), slopes=10.0, **pet_tags())
    pet = load_case(Case("001", images={"pet": tmp_path / "pet"}))["pet"]
    assert pet.units == "SUVbw" and pet.array.max() == pytest.approx(np.abs(voxels((11, 13, 9))).max() * 10 * 4e-4)
    images, told = {"pet": tmp_path / "pet"}, {"height_cm": "175", "sex": "F"}
    lean = load_case(Case("001", images=images, covariates=told), suv="lbm")
    assert lean["pet"].units == "SUVlbm"
    np.testing.assert_allclose(lean["pet"].array, pet.array * (45.1970 / 70), rtol=1e-4)


@pytest.fixture
def counts(tmp_path):
    """PET of the head in counts, without any sidecar, and a label map with the region 3 in it."""
    pet = scan("pet")
    save_volume(pet.replace(array=pet.array * np.float32(5000)), tmp_path / "p_pet.nii.gz")
    labels = 3 * ball(MIDDLE, radius=25.0)(GRIDS["mr"]).array
    save_volume(Volume(labels, GRIDS["mr"].affine, "mask", "label"), tmp_path / "p_regions.nii.gz")
    return Case("p", images={"pet": tmp_path / "p_pet.nii.gz"})


def test_pet_in_its_own_units_is_scaled_by_its_foreground_or_by_pet_max(counts):
    pet = scan("pet").array * 5000
    body = foreground(load_case(counts, suv="none")["pet"])
    for options, high in (({}, np.percentile(pet[body], 99)), ({"pet_max": 40000.0}, 40000.0)):
        result = prepare_case(counts, suv="none", keep_volumes=True, **options, **SMALL)
        assert result.on_grid["pet"].units == result.facts["pet_units"] == "stored"
        scaled = result.on_grid["pet"].array / high
        expected = np.clip(scaled, 0, 1) if options else scaled  # hot voxels beyond the percentile keep their values
        np.testing.assert_allclose(result.image[0], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ReadError, match="looks like Bq/mL, not SUV"):
        prepare_case(counts, **SMALL)


def test_pet_as_a_ratio_to_the_region_of_the_row_or_of_a_pattern(counts):
    folder = counts.images["pet"].parent
    pet, grid = scan("pet").array, GRIDS["pet"]
    labels = resample(load_volume(folder / "p_regions.nii.gz"), grid, order=0, fill=0).array
    expected = pet / pet[labels == 3].mean()
    row = replace(counts, reference_region=folder / "p_regions.nii.gz#3")
    for case, suvr in ((counts, f"{folder}/{{subject}}_regions.nii.gz#3"), (row, "manifest"), (row, "other.nii#1")):
        volume = load_case(case, suvr=suvr)["pet"]
        np.testing.assert_allclose(volume.array, expected, rtol=1e-4, atol=1e-5)
        assert volume.units == "SUVR"
    result = prepare_case(row, suvr="manifest", pet_max=2.0, keep_volumes=True, **SMALL)
    np.testing.assert_allclose(result.image[0], np.clip(result.on_grid["pet"].array / 2, 0, 1), atol=1e-6)
    with pytest.raises(OptionError, match="suvr is manifest, but the row has no reference_region; fill that column"):
        load_case(counts, suvr="manifest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suv": "none", "suv_max": 5.0}, "--suv-max is for SUV; with --suv none or --suvr use --pet-max"),
        ({"suvr": "a.nii#1", "suv_max": 5.0}, "--suv-max is for SUV"),
        ({"pet_max": 5.0}, "--pet-max is for PET that is no SUV"),
        ({"suv": "none", "pet_max": 0.0}, "option pet_max must be 1e-09 or more, found 0"),
        ({"suvr": "a.nii#1", "suv": "lbm"}, "--suvr is a ratio of values, whatever their units; leave out --suv lbm"),
    ],
)
def test_options_of_pet_that_do_not_go_together(counts, options, message):
    for prepare in (prepare_case, load_case):
        with pytest.raises(OptionError, match=message):
            prepare(counts, **options)


def test_a_case_from_files_is_that_from_memory(tmp_path):
    scans = {name: scan(name) for name in GRIDS}
    for name, volume in scans.items():
        save_volume(volume, tmp_path / f"{name}.nii.gz")
    save_volume(ball(MIDDLE + (9, -5, 4))(GRIDS["mr"]), tmp_path / "mask.nii.gz")
    case = Case("001", images={n: tmp_path / f"{n}.nii.gz" for n in scans}, mask=tmp_path / "mask.nii.gz")
    result = prepare_case(case, modalities=["mr", "ct", "pet"], center="mask", **SMALL)
    expected = prepare_volumes(
        scans, modalities=["mr", "ct", "pet"], center="mask", mask=ball(MIDDLE + (9, -5, 4)), **SMALL
    )
    np.testing.assert_allclose(result.grid.center, expected.grid.center, atol=2)  # mask voxels of 8 mm
    np.testing.assert_allclose(
        prepare_case(case, modalities=["mr", "ct", "pet"], **SMALL).image,
        prepare_volumes(scans, modalities=["mr", "ct", "pet"], **SMALL).image,
        atol=1e-5,
    )
    assert not prepare_case(case, pictures=False, **SMALL).pictures and result.pictures


def test_directions_that_are_assumed_hold_for_the_mask_too(tmp_path):
    for name, array in (("mr", scan("mr").array), ("mask", ball(MIDDLE + (30, 0, 0))(GRIDS["mr"]).array)):
        nib.save(nib.Nifti1Image(array, None), tmp_path / f"{name}.nii")
    case = Case("001", images={"mr": tmp_path / "mr.nii"}, mask=tmp_path / "mask.nii")
    with pytest.raises(ReadError):
        prepare_case(case, center="mask", **SMALL)
    right, left = (prepare_case(case, center="mask", assume_orientation=o, **SMALL).grid.center for o in ("RAS", "LAS"))
    np.testing.assert_allclose(right[0], -left[0], atol=1e-6)
    assert abs(right[0]) > 2 and right[1] == left[1]


def test_a_case_without_the_wanted_modalities(tmp_path):
    save_volume(scan("ct"), tmp_path / "ct.nii.gz")
    with pytest.raises(OptionError, match="subject 007: none of the modalities pet, mr is in the manifest row"):
        prepare_case(Case("007", images={"ct": tmp_path / "ct.nii.gz"}), modalities=["pet", "mr"])


# template space


IN_SPACE = {"spacing": (6.0, 7.0, 8.0), "size": (29, 33, 23)}


@pytest.fixture(scope="module")
def whole_head():
    """MR and PET of one head in poses of their own, and these poses (to the template's world)."""
    rng = np.random.default_rng(4)
    poses = {name: random_pose(rng) for name in ("mr", "pet")}
    return {name: scan_head(name, pose, 5) for name, pose in poses.items()}, poses


@pytest.fixture(scope="module")
def in_space(whole_head):
    return prepare_volumes(whole_head[0], to="mni152", brain_mask=True, mr_normalize="zscore", **IN_SPACE)


def test_every_scan_comes_to_the_template_with_one_interpolation(whole_head, in_space):
    scans, poses = whole_head
    assert (in_space.reference, in_space.world, list(in_space.registrations)) == ("mr", "mni152", ["mni152", "pet"])
    to_mr = in_space.registrations["mni152"].fixed_to_moving
    to_pet = to_mr.compose(in_space.registrations["pet"].fixed_to_moving)
    assert error_mm(to_mr, Transform(), poses["mr"]) < 2 and error_mm(to_pet, Transform(), poses["pet"]) < 2
    np.testing.assert_allclose(in_space.grid.center, template().center, atol=1e-9)
    brain = brain_mask(in_space.grid, Transform())
    expected = np.clip(resample(scans["pet"], in_space.grid, to_pet).array, 0, SUV_MAX) / SUV_MAX
    np.testing.assert_allclose(in_space.image[1][brain], expected[brain], atol=1e-6)
    assert not in_space.image[1][~brain].any()
    body = scans["mr"].array[foreground(scans["mr"])]  # outside, MR is what 0 has become
    np.testing.assert_allclose(in_space.image[0][~brain], -body.mean() / body.std(), rtol=1e-4)
    assert in_space.valid[0][~brain].any()  # says where the scan looked, not where the brain is


def test_facts_and_pictures_of_the_template(in_space):
    facts, pictures = in_space.facts, in_space.pictures
    brain = brain_mask(in_space.grid, Transform())
    assert facts["template"] == "mni152" and facts["mni152_verdict"] == "ok" and facts["mni152_score"] > 0.5
    assert (
        facts["brain_ml"] == pytest.approx(brain.sum() * 6 * 7 * 8 / 1000, abs=0.1) and 1500 < facts["brain_ml"] < 2200
    )
    for plane in ("sagittal", "coronal", "axial"):
        head, mr = pictures[f"template_{plane}"].astype(float), pictures[f"reference_{plane}"].astype(float)
        inside = head > 0.3
        assert inside.any() and head.shape == mr.shape and mr[inside].mean() > 0.1
    before, after = (pictures[f"{moment}_pet_axial"] for moment in ("before", "after"))
    assert np.abs(before - after).max() > 0.1
    assert pictures["histogram_template"].shape == (32, 32) and pictures["histogram_template"].any()


def test_centers_in_template_space(whole_head, in_space):
    scans, poses = {"mr": whole_head[0]["mr"]}, whole_head[1]
    whole = prepare_volumes(scans, to="mni152", center="volume", pictures=False, **IN_SPACE)
    np.testing.assert_allclose(whole.grid.center, template().volume.grid.center, atol=1e-9)
    spot = np.array([20.0, -30.0, 15.0])  # in the template
    drawn = ball(poses["mr"].inverse().apply(spot), radius=12.0)
    there = prepare_volumes(scans, to="mni152", center="mask", mask=drawn, pictures=False, **IN_SPACE)
    assert np.linalg.norm(there.grid.center - spot) < 3


def test_the_brain_alone_where_the_scan_is(whole_head, in_space):
    scans, poses = whole_head
    plain = prepare_volumes({"mr": scans["mr"]}, **IN_SPACE)
    brain = prepare_volumes({"mr": scans["mr"]}, brain_mask=True, **IN_SPACE)
    assert brain.world == "mr" and plain.grid.same_as(brain.grid) and "brain_ml" not in plain.facts
    truth = brain_mask(brain.grid, poses["mr"])
    kept = brain.image[0] != 0
    assert 2 * (kept & truth).sum() / (kept.sum() + truth.sum()) > 0.9
    np.testing.assert_array_equal(brain.image[0][kept], plain.image[0][kept])
    assert brain.facts["brain_ml"] == pytest.approx(in_space.facts["brain_ml"], rel=0.1)
    assert "template_axial" in brain.pictures and "template_axial" not in plain.pictures
    far = Grid.around(scans["mr"].grid.corners().max(0), (4, 4, 4), (5, 6, 7))
    with pytest.raises(GeometryError, match="no voxel of the prepared grid lies in the brain: choose another --center"):
        prepare_volumes({"mr": scans["mr"]}, brain_mask=True, grid=far)


def test_what_is_no_head_does_not_reach_the_template():
    noise = np.random.default_rng(0).gamma(2, 1, (37, 41, 43)).astype(np.float32)
    with pytest.raises(
        GeometryError, match=r"mr could not be registered to the template mni152: .* leave out --to and"
    ):
        prepare_volumes({"mr": Volume(noise, np.diag([5.0, 5, 5, 1]))}, to="mni152", **SMALL)
    with pytest.raises(OptionError, match="a modality is called mni152, as the template is; give its column another"):
        prepare_volumes({"mr": scan("mr"), "mni152": scan("mr")}, to="mni152", **SMALL)


def test_a_bend_goes_through_in_the_same_interpolation(monkeypatch):
    field = np.random.default_rng(1).normal(0, 3, (5, 6, 4, 3))
    bend = Transform(
        Transform.rigid((3, 2, 1), (5, 4, 3)).matrix, Displacement(field, Grid.around(MIDDLE, (30,) * 3, (5, 6, 4)))
    )

    def bent(fixed, moving, kind, **how):
        assert kind == "deformable"
        return replace(register(fixed, moving, "none"), fixed_to_moving=bend)

    monkeypatch.setattr("mmfusion.registration.register", bent)
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    result = prepare_volumes(scans, **SMALL | {"register": "deformable"})
    expected = np.clip(resample(scans["pet"], result.grid, bend).array, 0, SUV_MAX) / SUV_MAX
    np.testing.assert_allclose(result.image[1], expected, atol=1e-6)
    assert result.registrations["pet"].fixed_to_moving is bend


@pytest.mark.realdata
def test_one_sarcoma_patient(testdata):
    study = testdata / "sts_dicom" / "STS_002"
    images = {"ct": study / "CT", "pet": study / "PET", "mr": study / "MR_T1"}
    result = prepare_case(
        Case("STS_002", images=images, mask=study / "CT_mask"), center="mask", spacing=(4, 4, 4), size=(24, 22, 20)
    )
    assert result.image.shape == (3, 24, 22, 20) and result.present.all() and np.isfinite(result.image).all()
    assert result.image.min() == 0 and result.image[:2].max() <= 1 and result.reference == "ct"
    # the scanner aligned them, so little may move; the tumor in the middle is what shines in PET
    assert all(one.motion_mm < 20 for one in result.registrations.values())
    middle = tuple(slice(n // 4, -n // 4) for n in result.grid.shape)
    assert result.image[1][middle].max() == result.image[1].max() > 0.3
    assert result.valid[0].mean() > 0.9 and result.facts["pet_units"] == "SUVbw"
