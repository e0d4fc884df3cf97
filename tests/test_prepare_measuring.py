"""What is measured where a case has a mask: on the voxels of each scan, through the registration."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from small_scans import GRIDS, MIDDLE, scan, write_study

from mmfusion.cli import main
from mmfusion.cohort import Case
from mmfusion.files import CohortFolder
from mmfusion.io import save_volume
from mmfusion.prepare import case as room
from mmfusion.prepare import features_of, load_case, open_cohort, prepare_case, prepare_cohort, prepare_volumes
from mmfusion.prepare.measuring import region_facts
from mmfusion.volume import Displacement, Grid, Transform, Volume, foreground

SMALL = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "register": "none"}
LPS = np.diag([-1.0, -1, 1, 1])
POSE = Transform.rigid((7, -4, 11), (6, -5, 8), MIDDLE)  # from the world of the mask to that of the other scan


def ball(grid, center=MIDDLE, radius=30.0):
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    inside = np.linalg.norm(points - center, axis=-1) < radius
    return Volume(inside.astype(np.uint8), grid.affine, "mask", "label")


def as_itk(array, affine):
    image, lps = sitk.GetImageFromArray(np.ascontiguousarray(array.T)), LPS @ affine
    step = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(step.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / step).ravel().tolist())
    return image


def statistics_by_itk(volume, mask, to_mask):
    """Of a scan, in a mask that lies where ``to_mask`` takes the points of the scan."""
    matrix = LPS @ to_mask.matrix @ LPS
    moved = sitk.AffineTransform(3)
    moved.SetMatrix(matrix[:3, :3].ravel().tolist())
    moved.SetTranslation(matrix[:3, 3].tolist())
    image = as_itk(volume.array, volume.affine)
    labels = sitk.Resample(as_itk(mask.array, mask.affine), image, moved, sitk.sitkNearestNeighbor, 0)
    statistics = sitk.LabelStatisticsImageFilter()
    statistics.Execute(image, labels)
    ml = statistics.GetCount(1) * np.prod(volume.spacing) / 1000
    return {"max": statistics.GetMaximum(1), "mean": statistics.GetMean(1), "volume": ml}


def measure(volumes, transforms, mask, owner, features=()):
    return region_facts(volumes, transforms, mask, owner, features, lambda name: foreground(volumes[name]))


def test_each_scan_is_measured_on_its_own_voxels_as_simpleitk_does():
    scans = {"ct": scan("ct"), "pet": scan("pet", POSE), "mr": scan("mr")}
    mask = ball(GRIDS["ct"])
    facts = measure(scans, {"pet": POSE}, mask, "ct")
    for name, unit, back in (("ct", "hu", Transform()), ("pet", "suv", POSE.inverse()), ("mr", "au", Transform())):
        expected = statistics_by_itk(scans[name], mask, back)
        assert facts[f"{name}_max_{unit}"] == pytest.approx(expected["max"], rel=1e-5)
        assert facts[f"{name}_mean_{unit}"] == pytest.approx(expected["mean"], rel=1e-5)
        assert facts[f"{name}_volume_ml"] == pytest.approx(expected["volume"], rel=1e-5)
        assert facts[f"{name}_mean_{unit}"] < facts[f"{name}_peak_{unit}"] <= facts[f"{name}_max_{unit}"]
    assert facts["pet_tlg_ml"] == pytest.approx(facts["pet_mean_suv"] * facts["pet_volume_ml"], rel=1e-5)
    assert facts["mask_volume_ml"] == facts["ct_volume_ml"] == pytest.approx(4 / 3 * np.pi * 27, rel=0.1)
    assert {name for name in facts if "tlg" in name} == {"pet_tlg_ml"}
    unmoved = measure(scans, {}, mask, "ct")
    assert abs(unmoved["pet_mean_suv"] / facts["pet_mean_suv"] - 1) > 0.02  # so that another pose would show


def test_a_mask_of_the_moving_scan_comes_back_through_its_transform():
    scans = {"ct": scan("ct"), "pet": scan("pet", POSE)}
    mask = ball(GRIDS["pet"], POSE.apply(MIDDLE))
    facts = measure(scans, {"pet": POSE}, mask, "pet")
    assert facts["mask_volume_ml"] == facts["pet_volume_ml"]
    assert facts["ct_mean_hu"] == pytest.approx(statistics_by_itk(scans["ct"], mask, POSE)["mean"], rel=1e-5)


def test_a_field_is_gone_back_through():
    """A field that shifts everything in the middle by a constant measures as that shift does."""
    field = Grid.around(MIDDLE, (10, 11, 12), (21, 19, 17))
    shift = np.array([9.0, -7.0, 6.0])
    away = np.linalg.norm(field.to_world(np.moveaxis(np.indices(field.shape), 0, -1)) - MIDDLE, axis=-1)
    near = np.exp(-((away / 80) ** 6))
    bent = Transform(displacement=Displacement((near[..., None] * shift).astype(np.float32), field))
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    mask = ball(GRIDS["ct"], radius=25)
    by_field = measure(scans, {"pet": bent}, mask, "ct")
    by_shift = measure(scans, {"pet": Transform.rigid((0, 0, 0), tuple(shift))}, mask, "ct")
    assert by_field["pet_mean_suv"] == pytest.approx(by_shift["pet_mean_suv"], rel=0.01)
    assert abs(by_field["pet_mean_suv"] / measure(scans, {}, mask, "ct")["pet_mean_suv"] - 1) > 0.02


def test_a_field_that_folds_leaves_a_note_and_the_other_scans():
    field = Grid.around(MIDDLE, (10, 11, 12), (21, 19, 17))
    wild = np.random.default_rng(0).normal(0, 40, (*field.shape, 3)).astype(np.float32)
    facts = measure(
        {"ct": scan("ct"), "pet": scan("pet")}, {"pet": Transform(displacement=Displacement(wild, field))},
        ball(GRIDS["ct"]), "ct",
    )  # fmt: skip
    assert facts["region_notes"].startswith("pet is not measured: ") and "fold" in facts["region_notes"]
    assert "ct_mean_hu" in facts and not any(name.startswith("pet_") for name in facts)


def test_a_scan_that_saw_nothing_of_the_mask_has_a_volume_of_zero_alone():
    far = Volume(
        scan("pet").array, Grid.around(MIDDLE + 900, GRIDS["pet"].spacing, GRIDS["pet"].shape).affine, "pet", "SUVbw"
    )
    facts = measure({"ct": scan("ct"), "pet": far}, {}, ball(GRIDS["ct"]), "ct", ["first", "glcm"])
    assert {name: value for name, value in facts.items() if name.startswith("pet_")} == {"pet_volume_ml": 0}


def test_features_are_in_the_unit_of_the_scan_or_by_its_body():
    mask = ball(GRIDS["ct"])
    scans = {"ct": scan("ct"), "mr": scan("mr")}
    facts = measure(scans, {}, mask, "ct", ["first", "shape", "glcm"])
    brighter = {**scans, "mr": scans["mr"].replace(array=3 * scans["mr"].array)}
    again = measure(brighter, {}, mask, "ct", ["first", "shape", "glcm"])
    assert again["mr_mean_au"] == pytest.approx(3 * facts["mr_mean_au"], rel=1e-5)
    texture = [name for name in facts if name.startswith(("mr_first_", "mr_glcm_"))]
    assert len(texture) == 17 + 25
    assert [again[name] for name in texture] == pytest.approx([facts[name] for name in texture], rel=1e-3)
    assert abs(facts["mr_first_mean"]) < 2  # standard deviations of the body
    assert facts["ct_first_mean"] == facts["ct_mean_hu"] and facts["ct_first_maximum"] == facts["ct_max_hu"]
    assert features_of(facts) == ["first", "shape", "glcm"] and features_of(["age", "pet_max_suv"]) == []
    assert facts["mask_shape_diameter_mm"] == pytest.approx(60, rel=0.15)
    assert not any(name.startswith(("ct_shape", "mr_shape")) for name in facts)


def test_a_case_gets_the_columns_and_the_same_tensor():
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    plain = prepare_volumes(scans, **SMALL)
    result = prepare_volumes(scans, mask=ball, features=["glcm"], **SMALL)
    np.testing.assert_array_equal(result.image, plain.image)
    assert {"mask_volume_ml", "pet_peak_suv", "pet_tlg_ml", "ct_peak_hu", "ct_glcm_contrast"} <= set(result.facts)
    assert not any("_suv" in name or "_ml" in name for name in plain.facts)


@pytest.fixture
def study(tmp_path):
    """A manifest of a case with a mask, and one without."""
    save_volume(ball(GRIDS["ct"]), tmp_path / "mask.nii.gz")
    return write_study(tmp_path, 2, mask=["mask.nii.gz", ""])


def prepare(manifest, out, **options):
    return prepare_cohort(manifest, out, workers=1, **SMALL, **options)


def test_features_that_are_asked_for_later_register_nothing(study, tmp_path, monkeypatch):
    first = prepare(study, tmp_path / "out")
    assert float(first.rows[0]["pet_max_suv"]) > 3 and "pet_glcm_contrast" not in first.rows[0]
    tensors = {case.file: case.file.stat().st_mtime_ns for case in first.cases}
    expected = prepare(study, tmp_path / "new", features=["first", "glcm"])
    monkeypatch.setattr(room, "registered", None)
    again = prepare(study, first.folder, features=["glcm", "first"])
    assert {case.file: case.file.stat().st_mtime_ns for case in again.cases} == tensors
    assert again.hash == first.hash  # trainings go on
    for name in ("pet_glcm_contrast", "ct_first_mean", "pet_max_suv", "mask_volume_ml"):
        assert [row[name] for row in again.rows] == [row[name] for row in expected.rows]
    assert again.rows[0]["pet_glcm_contrast"] and not again.rows[1]["pet_glcm_contrast"]
    measured = []
    monkeypatch.setattr("mmfusion.prepare.cohort.measure_case", lambda *args, **_: measured.append(args))
    assert prepare(study, first.folder, features=["glcm"]).rows == again.rows  # all are there
    assert prepare(study, first.folder).rows == again.rows and not measured


def test_a_cohort_of_an_earlier_version_is_opened_and_kept(study, tmp_path):
    first = prepare(study, tmp_path / "out")
    files = CohortFolder(first.folder)
    options = json.loads(files.options.read_text())
    assert options.pop("features") is None
    files.options.write_text(json.dumps(options))
    for row in first.rows:  # no measurements; of features no record says a word where there are none
        record = json.loads(files.record(row["case"]).read_text())
        kept = {name: value for name, value in record.items() if not name.endswith(("_ml", "_suv", "_hu", "_au"))}
        assert "features" not in kept
        files.record(row["case"]).write_text(json.dumps(kept))
    assert open_cohort(first.folder).hash == first.hash
    kept = prepare(study, first.folder)
    assert kept.hash == first.hash and "pet_max_suv" not in kept.rows[0]
    assert prepare(study, first.folder, features=["shape"]).rows[0]["pet_max_suv"] == first.rows[0]["pet_max_suv"]


def test_a_mask_that_cannot_be_read_is_doubtful_and_not_measured_again(study, tmp_path):
    (tmp_path / "mask.nii.gz").write_bytes(b"no mask")
    cohort = prepare(study, tmp_path / "out", features=["glcm"])
    assert cohort.rows[0]["causes"] == "mask" and "pet_max_suv" not in cohort.rows[0]
    more = prepare(study, tmp_path / "out", features=["glcm", "first"])
    assert str(tmp_path) not in more.rows[0]["region_notes"] != ""


def test_features_on_the_command_line(study, tmp_path, capsys, monkeypatch):
    small = [*("--spacing", "12", "11", "13"), *("--size", "9", "11", "7"), "--register", "none", "--workers", "1"]
    command = ["prepare", str(study), "--out", str(tmp_path / "out"), *small, "--features"]
    assert main([*command, "first,shape"]) == 0
    assert {"pet_first_skewness", "mask_shape_sphericity"} <= set(open_cohort(tmp_path / "out").rows[0])
    assert main([*command, "glmc"]) != 0
    assert "unknown features 'glmc'; did you mean 'glcm'?" in capsys.readouterr().err
    monkeypatch.setattr("mmfusion.prepare.radiomics.find_spec", lambda name: None)
    assert main([*command, "mirp"]) != 0
    assert "features mirp needs the package mirp: pip install 'mmfusion[radiomics]'" in capsys.readouterr().err


MIRP = """
import numpy
def extract_features(image, mask, image_modality, base_discretisation_bin_width, **_):
    voxel_ml = numpy.prod(numpy.fromfile(image, "<f4", 3, offset=80)) / 1000  # of the NIfTI header
    inside = numpy.fromfile(mask, numpy.uint8, offset=352) > 0
    values = numpy.fromfile(image, "<f4", offset=352)[inside]
    if len(values) < 40:
        raise ZeroDivisionError("too small")
    row = {"image_modality": image_modality, "image_voxel_size_x": 1.0, "stat_mean": values.mean()}
    row |= {"volume_ml": len(values) * voxel_ml, "width": base_discretisation_bin_width}
    return [type("Table", (), {"iloc": [row]})]
"""


def test_mirp_gets_the_scan_in_its_units_and_the_mask(tmp_path, monkeypatch):
    """A stand-in for mirp that reads what it gets; the real one is compared where it is installed."""
    (tmp_path / "mirp.py").write_text(MIRP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = measure({"mr": scan("mr")}, {}, ball(GRIDS["mr"]), "mr", ["mirp", "first"])
    assert facts["mr_mirp_stat_mean"] == pytest.approx(facts["mr_first_mean"], rel=1e-4)
    assert facts["mr_mirp_volume_ml"] == pytest.approx(facts["mr_volume_ml"], rel=1e-4)
    assert {name for name in facts if "mirp" in name} == {f"mr_mirp_{n}" for n in ("stat_mean", "volume_ml", "width")}
    facts = measure({"pet": scan("pet")}, {}, ball(GRIDS["pet"], radius=10), "pet", ["mirp"])
    assert facts["region_notes"] == "pet is not measured: mirp failed (ZeroDivisionError: too small)"
    assert "pet_mean_suv" in facts


@pytest.mark.slow
def test_texture_is_that_of_mirp():
    pytest.importorskip("mirp")
    scans = {"ct": scan("ct"), "pet": scan("pet")}
    scans["ct"] = scans["ct"].replace(array=np.rint(scans["ct"].array))  # as scanners write it, and mirp makes it
    facts = measure(scans, {}, ball(GRIDS["ct"]), "ct", ["mirp", "glcm", "first", "shape"])
    same = {
        "contrast": "contrast",
        "cluster_prominence": "clust_prom",
        "inverse_difference_normalized": "inv_diff_norm",
        "information_correlation_2": "info_corr2",
    }
    for name, width in (("ct", "25.0"), ("pet", "0.5")):
        for mine, other in same.items():
            theirs = facts[f"{name}_mirp_cm_{other}_d1_3d_v_mrg_fbs_w{width}"]
            assert facts[f"{name}_glcm_{mine}"] == pytest.approx(theirs, rel=1e-4)
        assert facts[f"{name}_first_kurtosis"] == pytest.approx(facts[f"{name}_mirp_stat_kurt"], rel=1e-3)
    assert facts["mask_shape_surface_mm2"] == pytest.approx(facts["ct_mirp_morph_area_mesh"], rel=1e-4)
    assert facts["pet_peak_suv"] == pytest.approx(facts["pet_mirp_loc_peak_glob"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.realdata
def test_a_real_lesion_is_measured_as_simpleitk_does(testdata):
    """A sarcoma: contours on CT, PET of other voxels in the same frame of reference."""
    folder = testdata / "sts_dicom" / "STS_002"
    case = Case("STS_002", images={"ct": folder / "CT", "pet": folder / "PET"}, mask=folder / "CT_mask")
    result = prepare_case(case, pictures=False, **(SMALL | {"center": "mask"}))
    volumes = load_case(case)
    mask = room._mask_reader(case, {"roi": None, "assume_orientation": None})(volumes["ct"].grid)
    expected = statistics_by_itk(volumes["pet"], mask, Transform())
    assert result.facts["pet_max_suv"] == pytest.approx(expected["max"], rel=1e-5)
    assert result.facts["pet_tlg_ml"] == pytest.approx(expected["mean"] * expected["volume"], rel=1e-5)
    assert result.facts["ct_mean_hu"] == pytest.approx(
        statistics_by_itk(volumes["ct"], mask, Transform())["mean"], rel=1e-5
    )
    assert expected["max"] > 5 and expected["volume"] == pytest.approx(result.facts["mask_volume_ml"], rel=0.05)
