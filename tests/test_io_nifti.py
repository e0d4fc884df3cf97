"""NIfTI headers as found in the wild, against nibabel where nibabel reads them."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from mmfusion.cohort.files import files_of
from mmfusion.errors import GeometryError, OptionError, OrientationError, ReadError, UnitsError, VoxelError
from mmfusion.io import kind_of, load_volume, read_header, save_volume, sidecar_of
from mmfusion.volume import Transform, Volume

OBLIQUE = Transform.rigid((20, -10, 35), (4, -7, 12)).matrix @ np.diag([-1.5, 2.0, 3.5, 1.0])


def noise(shape=(11, 13, 17), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(path, array, affine=OBLIQUE, edit=None):
    """Save with nibabel, then change bytes of the header that nibabel would not write."""
    nib.save(nib.Nifti1Image(array, affine), path)
    if edit:
        raw = bytearray(path.read_bytes())
        header = np.frombuffer(raw, nib.nifti1.header_dtype, 1)
        edit(header)
        path.write_bytes(raw)
    return path


def qform_only(header):
    header["sform_code"], header["qform_code"] = 0, 1


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_oblique_volume_keeps_every_voxel_where_nibabel_puts_it(tmp_path, name):
    array = noise()
    nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / name)
    volume = load_volume(tmp_path / name)
    image = nib.as_closest_canonical(nib.load(tmp_path / name))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(volume.array, image.get_fdata(dtype=np.float32))
    assert volume.array.flags.c_contiguous and volume.array.dtype == np.float32


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLP", "AIR"])
def test_stored_orientation_is_reported_as_nibabel_names_it(tmp_path, code):
    ras, wanted = (nib.orientations.axcodes2ornt(tuple(name)) for name in ("RAS", code))
    affine = nib.orientations.inv_ornt_aff(nib.orientations.ornt_transform(ras, wanted), (11, 13, 17))
    path = write(tmp_path / "a.nii", noise(), affine)
    volume, header = load_volume(path), read_header(path)
    assert volume.meta["stored_orientation"] == header.orientation == code == "".join(aff2axcodes(affine))
    assert volume.grid.orientation == "RAS"
    assert header.grid.same_as(volume.grid) and header.units == "a.u." and header.frames == 1


def test_scaled_integers_and_nifti2_are_read(tmp_path):
    image = nib.Nifti2Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(load_volume(tmp_path / "a.nii.gz").array, expected)


def test_pair_of_hdr_and_img(tmp_path):
    nib.save(nib.Nifti1Pair(noise(), OBLIQUE), tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        assert load_volume(tmp_path / name).array.shape == (11, 13, 17)


def test_quaternion_slightly_over_unit_length_is_repaired_with_a_note(tmp_path):
    def edit(header):
        qform_only(header)
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = 1 + 1e-4, 0, 0

    path = write(tmp_path / "a.nii", noise(), np.diag([1.0, -1, -1, 1]), edit)
    volume = load_volume(path)
    assert volume.meta["stored_orientation"] == "RPI"
    assert "over unit length; normalized" in volume.meta["notes"][0]
    np.testing.assert_allclose(volume.spacing, 1)


@pytest.mark.parametrize("b", [1.01, np.nan])
def test_broken_quaternion_is_refused_with_file_and_value(tmp_path, b):
    def edit(header):
        qform_only(header)
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = b, 0, 0

    with pytest.raises(OrientationError, match=r"a\.nii: the quaternion .* squared length (1\.0201|nan).*Export"):
        read_header(write(tmp_path / "a.nii", noise(), np.eye(4), edit))


def test_broken_quaternion_beside_a_good_sform_is_only_noted(tmp_path):
    def edit(header):
        header["qform_code"], header["quatern_b"] = 1, 1.5

    volume = load_volume(write(tmp_path / "a.nii", noise(), OBLIQUE, edit))
    assert "quaternion is broken" in volume.meta["notes"][0]


def test_qform_alone_gives_nibabels_affine_also_with_negative_qfac(tmp_path):
    path = write(tmp_path / "a.nii", noise(), OBLIQUE, qform_only)
    np.testing.assert_allclose(load_volume(path).affine, nib.as_closest_canonical(nib.load(path)).affine, atol=1e-4)


def no_orientation(header):
    header["sform_code"] = header["qform_code"] = 0


def test_no_orientation_is_refused_unless_one_is_assumed(tmp_path):
    path = write(tmp_path / "a.nii", noise(), np.diag([2.0, 3, 4, 1]), no_orientation)
    with pytest.raises(OrientationError, match=r"a\.nii has no orientation.*left and right.*--assume-orientation LAS"):
        read_header(path)
    volume = load_volume(path, assume_orientation="SAL")
    stored = nib.load(path).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(volume.array, stored.transpose(2, 1, 0)[::-1])
    assert volume.spacing == (4, 3, 2) and "SAL was assumed" in volume.meta["notes"][0]
    np.testing.assert_allclose(volume.grid.center, 0, atol=1e-5)


@pytest.mark.parametrize("code", ["LA", "LLS", "XAS"])
def test_assumed_orientation_must_name_three_directions(tmp_path, code):
    path = write(tmp_path / "a.nii", noise(), np.eye(4), no_orientation)
    with pytest.raises(OptionError, match=f"one letter each.*found '{code}'"):
        read_header(path, assume_orientation=code)


@pytest.mark.parametrize(("size", "named"), [(1.515, False), (1.8, True), (0.0, False)])
def test_an_sform_whose_voxels_are_not_as_large_as_pixdim_says_is_named(tmp_path, size, named):
    def edit(header):
        header["qform_code"], header["pixdim"][0, 1] = 0, size

    path = write(tmp_path / "a.nii", noise(), edit=edit)
    doubts = (
        "voxels are 1.5 x 2 x 3.5 by the sform, which is used, but 1.8 x 2 x 3.5 by pixdim. Compare the size with the "
        "original scan, and correct the one that is wrong",
    )
    assert read_header(path).doubts == (doubts if named else ()) and not read_header(path).notes
    np.testing.assert_allclose(np.sort(load_volume(path).spacing), [1.5, 2, 3.5], atol=1e-5)


def test_a_pixdim_that_nobody_set_is_a_note(tmp_path):
    def edit(header):
        header["qform_code"], header["pixdim"][0, 1:4] = 0, 1

    header = read_header(write(tmp_path / "a.nii", noise(), edit=edit))
    assert header.doubts == ()
    assert header.notes == ("pixdim was not set (1 x 1 x 1); the voxel size of the sform is used",)


def test_disagreeing_sform_and_qform_use_the_sform_with_a_note(tmp_path):
    def edit(header):
        header["qform_code"], header["qoffset_x"] = 1, header["qoffset_x"] + 25

    volume = load_volume(write(tmp_path / "a.nii", noise(), OBLIQUE, edit))
    assert volume.meta["notes"] == ["sform and qform disagree by up to 25.0 mm; the sform is used"]
    np.testing.assert_allclose(volume.affine, load_volume(write(tmp_path / "b.nii", noise())).affine, atol=1e-5)


def test_singular_sform_falls_back_to_the_qform(tmp_path):
    def edit(header):
        header["qform_code"], header["srow_x"] = 1, 0

    volume = load_volume(write(tmp_path / "a.nii", noise(), OBLIQUE, edit))
    assert "sform is singular" in volume.meta["notes"][0]
    np.testing.assert_allclose(sorted(volume.spacing), [1.5, 2, 3.5], atol=1e-5)


def test_singular_sform_alone_is_refused_by_name(tmp_path):
    def edit(header):
        header["qform_code"], header["srow_x"] = 0, 0

    with pytest.raises(GeometryError, match=r"a\.nii: the affine is singular"):
        read_header(write(tmp_path / "a.nii", noise(), OBLIQUE, edit))


def test_sheared_sform_is_accepted_with_a_note(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.radians(15))
    volume = load_volume(write(tmp_path / "a.nii", noise(), affine))
    assert "sheared by 15.0 degrees" in volume.meta["notes"][-1]
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


@pytest.mark.parametrize(("unit", "factor", "word"), [(1, 1e3, "meters"), (3, 1e-3, "micrometers")])
def test_other_length_units_become_mm(tmp_path, unit, factor, word):
    def edit(header):
        header["xyzt_units"] = unit

    path = write(tmp_path / "a.nii", noise(), np.diag([2 / factor, 3 / factor, 4 / factor, 1]), edit)
    volume = load_volume(path)
    np.testing.assert_allclose(volume.spacing, (2, 3, 4), rtol=1e-5)
    assert f"lengths are in {word}" in volume.meta["notes"][0]


def test_several_frames_need_a_choice(tmp_path):
    array = noise((8, 9, 10, 3))
    path = write(tmp_path / "a.nii", array, np.eye(4))
    with pytest.raises(ReadError, match=r"shape \(8, 9, 10, 3\): 3 frames; .*--frame last or --frame mean"):
        read_header(path)
    for frame, expected in {"first": array[..., 0], "last": array[..., 2], "1": array[..., 1]}.items():
        np.testing.assert_array_equal(load_volume(path, frame=frame).array, expected)
    np.testing.assert_allclose(load_volume(path, frame="mean").array, array.mean(-1), atol=1e-6)
    assert read_header(path, frame="last").frames == 3
    assert load_volume(path, frame=1).meta["notes"] == ["3 frames: frame 1 is used"]


def test_frames_that_do_not_exist_are_refused(tmp_path):
    path = write(tmp_path / "a.nii", noise((8, 9, 10, 3)), np.eye(4))
    with pytest.raises(ReadError, match="3 frames, numbered from 0; frame 3 does not exist"):
        read_header(path, frame=3)
    with pytest.raises(OptionError, match="found 'middle'"):
        read_header(path, frame="middle")


def test_trailing_ones_and_one_slice_are_fine_but_2d_and_vectors_are_not(tmp_path):
    assert load_volume(write(tmp_path / "a.nii", noise((8, 9, 10, 1)), np.eye(4))).array.shape == (8, 9, 10)
    assert load_volume(write(tmp_path / "b.nii", noise((8, 9, 1)), np.eye(4))).array.shape == (8, 9, 1)
    with pytest.raises(GeometryError, match=r"c\.nii has shape \(8, 9\): a 2D image"):
        read_header(write(tmp_path / "c.nii", noise((8, 9)), np.eye(4)))
    with pytest.raises(ReadError, match=r"shape \(8, 9, 10, 2, 3\)"):
        read_header(write(tmp_path / "d.nii", noise((8, 9, 10, 2, 3)), np.eye(4)))
    array = noise((8, 9, 10, 1, 3))
    np.testing.assert_array_equal(
        load_volume(write(tmp_path / "e.nii", array, np.eye(4)), frame="last").array, array[..., 0, 2]
    )


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_file_is_named(tmp_path, name):
    nib.save(nib.Nifti1Image(noise(), OBLIQUE), tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    read_header(tmp_path / name)
    with pytest.raises(ReadError, match=rf"{name} cannot be read: .*Copy or export it again"):
        load_volume(tmp_path / name)


@pytest.mark.parametrize("raw", [b"", b"x" * 100, b"x" * 5000, gzip.compress(b"x" * 5000, mtime=0)[:-20], bytes(352)])
def test_what_is_no_nifti_file_is_named(tmp_path, raw):
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ReadError, match=rf"{name} is not a NIfTI file"):
            read_header(tmp_path / name)


def test_missing_file_and_color_voxels(tmp_path):
    with pytest.raises(ReadError, match=r"nope\.nii\.gz does not exist"):
        read_header(tmp_path / "nope.nii.gz")
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ReadError, match=r"a\.nii holds RGB voxels"):
        read_header(write(tmp_path / "a.nii", rgb, np.eye(4)))


def test_nan_and_constant_volumes_are_refused_by_name(tmp_path):
    array = noise()
    array[0, 0, :2] = np.nan
    with pytest.raises(VoxelError, match=r"a\.nii: 2 of 2431 voxels are not finite"):
        load_volume(write(tmp_path / "a.nii", array))
    with pytest.raises(VoxelError, match=r"b\.nii: every voxel is 7"):
        load_volume(write(tmp_path / "b.nii", np.full((4, 5, 6), 7.0, np.float32)))


@pytest.mark.parametrize(("modality", "fill"), [("t1", 0), ("ct", -1024), ("pet", 0)])
def test_nan_is_background_by_option(tmp_path, modality, fill):
    array = np.abs(noise()) + 1
    array[:, :3, 5] = np.nan
    volume = load_volume(write(tmp_path / "a.nii", array, np.eye(4)), modality=modality, nan="background")
    np.testing.assert_array_equal(volume.array, np.where(np.isnan(array), fill, array))
    assert volume.meta["notes"] == [f"33 of 2431 voxels are NaN and count as background ({fill})"]
    array[1, 2, 3] = np.inf
    with pytest.raises(VoxelError, match=r"1 of 2431 voxels are not finite \(NaN or infinite\); .* this modality$"):
        load_volume(write(tmp_path / "a.nii", array, np.eye(4)), nan="background")
    with pytest.raises(OptionError, match="unknown nan 'zero'"):
        read_header(tmp_path / "a.nii", nan="zero")


def test_nan_does_not_hide_becquerel(tmp_path):
    array = np.abs(noise()) * 5000
    array[0] = np.nan
    with pytest.raises(UnitsError, match="looks like Bq/mL"):
        load_volume(write(tmp_path / "p.nii", array), modality="pet", nan="background")


def test_units_follow_the_name_of_the_modality(tmp_path):
    path = write(tmp_path / "a.nii", noise())
    for modality, units in {"ct": "HU", "CT_2": "HU", "pet": "SUVbw", "mr_t1": "a.u.", "flair": "a.u."}.items():
        volume = load_volume(path, modality=modality)
        assert (volume.units, volume.modality) == (units, modality)
        assert read_header(path, modality=modality).units == units
    assert [kind_of(name) for name in ("PT", "pet_ac", "MR", "t1", "")] == ["pet", "pet", "mr", "", ""]


def test_pet_that_looks_like_becquerel_needs_the_injection(tmp_path):
    path = write(tmp_path / "p.nii", np.abs(noise()) * 5000 + 1)
    with pytest.raises(UnitsError, match=r"p\.nii: maximum [\d,]+ looks like Bq/mL.*weight_kg, dose_mbq, injection_t"):
        load_volume(path, modality="pet")
    details = {"weight_kg": "70", "dose_mbq": "350", "injection_time": "23:30", "acquisition_time": "00:30:00"}
    volume = load_volume(path, modality="pet", pet=details | {"half_life_s": 3600})
    np.testing.assert_allclose(volume.array, load_volume(path).array * 4e-4, rtol=1e-5)
    assert "half-life 3600 s" in volume.meta["notes"][-1]
    assert "6586.2 s (fluorine-18)" in load_volume(path, modality="pet", pet=details).meta["notes"][-1]


def test_broken_injection_details_are_named_with_the_file(tmp_path):
    path = write(tmp_path / "p.nii", np.abs(noise()) * 5000 + 1)
    good = {"weight_kg": 70, "dose_mbq": 350, "injection_time": "09:00", "acquisition_time": "10:00"}
    with pytest.raises(UnitsError, match=r"p\.nii: 'nine' is not a time"):
        load_volume(path, modality="pet", pet=good | {"injection_time": "nine"})
    with pytest.raises(UnitsError, match=r"p\.nii: weight_kg must be a positive number, found '-3'"):
        load_volume(path, modality="pet", pet=good | {"weight_kg": -3})
    with pytest.raises(UnitsError, match=r"p\.nii: the injection lies after the scan or more than 6 half-lives"):
        load_volume(path, modality="pet", pet=good | {"acquisition_time": "08:50"})


def test_pet_within_the_range_of_suv_is_left_alone(tmp_path):
    path = write(tmp_path / "p.nii", np.abs(noise()))
    details = {"weight_kg": 70, "dose_mbq": 350, "injection_time": "09:00", "acquisition_time": "10:00"}
    np.testing.assert_array_equal(
        load_volume(path, modality="pet", pet=details).array, load_volume(path, modality="pet").array
    )


@pytest.mark.parametrize("name", ["a.nii", "sub/a.nii.gz"])
def test_saved_volume_comes_back_and_nibabel_agrees(tmp_path, name):
    affine = np.diag([1.5, 2, 3.5, 1]) @ np.eye(4)
    volume = Volume(noise(), Transform.rigid((3, 2, 1), (5, 6, 7)).matrix @ affine, "mr")
    save_volume(volume, tmp_path / name)
    image = nib.load(tmp_path / name)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm" and image.get_data_dtype() == np.float32
    back = load_volume(tmp_path / name)
    assert back.grid.same_as(volume.grid) and back.meta["notes"] == []
    np.testing.assert_array_equal(back.array, volume.array)


def test_saving_is_reproducible_and_labels_stay_whole(tmp_path):
    labels = Volume(np.arange(24).reshape(2, 3, 4), np.eye(4), "mask", "label")
    for name in ("a.nii.gz", "b.nii.gz"):
        save_volume(labels, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint8
    save_volume(labels.replace(array=labels.array - 5), tmp_path / "c.nii")
    assert nib.load(tmp_path / "c.nii").get_data_dtype() == np.int16
    save_volume(Volume(labels.array > 3, np.eye(4)), tmp_path / "d.nii")
    assert nib.load(tmp_path / "d.nii").get_fdata().sum() == 20


def test_what_cannot_be_saved_is_said(tmp_path):
    volume = Volume(np.arange(24).reshape(2, 3, 4) * 9000, np.eye(4), "mask", "label")
    with pytest.raises(ReadError, match=r"written as \.nii or \.nii\.gz"):
        save_volume(volume, tmp_path / "a.mha")
    with pytest.raises(VoxelError, match="do not fit 16 bits"):
        save_volume(volume, tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())


def test_a_sheared_volume_survives_saving(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    save_volume(Volume(noise(), affine), tmp_path / "a.nii")
    np.testing.assert_allclose(load_volume(tmp_path / "a.nii").affine, affine, atol=1e-6)


@pytest.mark.parametrize(("header", "voxels"), [("", ""), (".gz", ".gz"), ("", ".gz"), (".gz", "")])
@pytest.mark.parametrize("given", [".hdr", ".img"])
def test_pairs_are_read_packed_or_not(tmp_path, header, voxels, given):
    array, packing = noise(), {".hdr": header, ".img": voxels}
    nib.save(nib.Nifti1Pair(array, OBLIQUE), tmp_path / "a.img")
    for ending, packed in packing.items():
        if packed:
            (tmp_path / f"a{ending}.gz").write_bytes(gzip.compress((tmp_path / f"a{ending}").read_bytes()))
            (tmp_path / f"a{ending}").unlink()
    path = tmp_path / f"a{given}{packing[given]}"
    volume = load_volume(path)
    nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / "whole.nii")
    np.testing.assert_array_equal(volume.array, load_volume(tmp_path / "whole.nii").array)
    assert set(files_of(path)) == {tmp_path / f"a{ending}{packed}" for ending, packed in packing.items()}
    assert sidecar_of(path) == tmp_path / "a.json"


def test_analyze_and_files_that_are_packed_by_name_only_are_named(tmp_path):
    nib.save(nib.AnalyzeImage(noise(), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(OrientationError, match=r"a\.hdr is Analyze 7.5, which does not say left and right"):
        load_volume(tmp_path / "a.img")
    write(tmp_path / "b.nii", noise()).rename(tmp_path / "b.nii.gz")
    with pytest.raises(ReadError, match=r"it is not compressed, as its name says\. Call it b\.nii if"):
        load_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8, np.int32])
def test_volumes_of_freesurfer_are_read_as_nibabel_reads_them(tmp_path, name, dtype):
    array = (50 * noise() + 100).clip(0, 255).astype(dtype)
    for one in {name, "a.mgz"}:
        nib.save(nib.MGHImage(array, OBLIQUE), tmp_path / one)
    volume = load_volume(tmp_path / name)
    image = nib.as_closest_canonical(nib.load(tmp_path / "a.mgz"))  # nibabel leaves a.mgh open
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.array, image.get_fdata(dtype=np.float32))
    assert read_header(tmp_path / name).grid.same_as(volume.grid)


def test_volumes_of_freesurfer_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.mgz"

    def written(array=None, **fields):
        image = nib.MGHImage(noise() if array is None else array, OBLIQUE)
        nib.save(image, tmp_path / "a.mgh")
        raw = bytearray((tmp_path / "a.mgh").read_bytes())
        for place, value in fields.values():
            raw[place : place + len(value)] = value
        path.write_bytes(gzip.compress(raw))
        return path

    with pytest.raises(OrientationError, match="its directions are not known"):
        load_volume(written(flag=(28, b"\0\0")))
    with pytest.raises(ReadError, match="holds voxels of type 9"):
        load_volume(written(type=(20, b"\0\0\0\x09")))
    with pytest.raises(ReadError, match="is not an MGH file of FreeSurfer"):
        load_volume(written(version=(0, b"\0\0\0\2")))
    with pytest.raises(ReadError, match="the header promises"):
        load_volume(written(size=(4, b"\0\1\0\0")))
    with pytest.raises(ReadError, match="2 frames"):
        load_volume(written(np.stack([noise(), noise(seed=1)], -1)))
    two = load_volume(path, frame="last")
    np.testing.assert_array_equal(two.array, load_volume(written(noise(seed=1))).array)
