"""MONAI transforms: the single steps give what PrepareCased gives, and training changes only what it may."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImaged
from registration_heads import random_pose
from registration_heads import scan as scan_head
from small_scans import GRIDS, MIDDLE, scan, write_study

from mmfusion.cohort import Case, read_manifest
from mmfusion.cohort.simulate import draw_subjects, native_grids, simulate_volumes
from mmfusion.errors import GeometryError, OptionError, VoxelError
from mmfusion.io import save_volume
from mmfusion.prepare import prepare_case
from mmfusion.transforms import (
    ClipSUVd,
    LoadPreparedCased,
    LoadVolumed,
    NormalizeMRd,
    PrepareCased,
    RandModalityDropd,
    RegisterToReferenced,
    ResampleToGridd,
    StackModalitiesd,
    WindowCTd,
    from_meta_tensor,
    to_meta_tensor,
    training_augmentation,
    transform_from_meta,
    transform_to_meta,
)
from mmfusion.volume import Displacement, Grid, Transform, foreground, mask_center, resample

KEYS = ["ct", "pet", "mr"]
GRID = {"spacing": [8.0, 7.0, 9.0], "size": [11, 17, 25]}  # longer than the MR, so that its outside is seen


def composed(kind="none", mr_normalize="percentile", center="foreground", reference=("ct", "mr", "pet"), **brain):
    return Compose(
        [
            LoadVolumed(KEYS),
            RegisterToReferenced(KEYS, reference=reference, kind=kind, **brain),
            NormalizeMRd(["mr"], method=mr_normalize),
            ResampleToGridd(KEYS, **GRID, center=center, brain_mask=brain.get("brain_mask", False)),
            WindowCTd(["ct"], -200, 300),
            ClipSUVd(["pet"], 7.0),
            StackModalitiesd(KEYS),
        ]
    )


def whole(kind="none", **options):
    return PrepareCased(KEYS, register=kind, ct_window=[-200.0, 300.0], suv_max=7.0, **GRID, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    manifest = write_study(folder)
    return manifest, {name: str(folder / f"001_{name}.nii.gz") for name in KEYS}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """CT and PET of a simulated head in different poses; no MR."""
    folder, subject = tmp_path_factory.mktemp("head"), draw_subjects(1, 11)[0]
    coarse = {
        name: Grid.around(grid.center, (6, 6.5, 7), np.multiply(grid.shape, grid.spacing) // (6, 6.5, 7))
        for name, grid in native_grids(subject).items()
        if name != "mr"
    }
    for name, volume in simulate_volumes(subject, coarse).items():
        save_volume(volume, folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in coarse}


@pytest.mark.parametrize("method", ["percentile", "zscore"])
@pytest.mark.parametrize("center", ["foreground", "volume"])
@pytest.mark.parametrize("reference", [["ct"], ["mr"]])
def test_single_steps_equal_the_whole(files, method, center, reference):
    steps = composed(mr_normalize=method, center=center, reference=reference)(files[1])
    once = whole(mr_normalize=method, center=center, reference=reference)(files[1])
    np.testing.assert_allclose(steps["image"].numpy(), once["image"].numpy(), atol=1e-5)
    assert torch.equal(steps["present"], once["present"]) and once["image"].shape == (3, 11, 17, 25)
    assert once["image"].flatten(1).std(1).min() > 0.05


def test_single_steps_equal_the_whole_where_scans_move(simulated):
    steps, once = composed("rigid")(simulated), whole("rigid")(simulated)
    np.testing.assert_allclose(steps["image"].numpy(), once["image"].numpy(), atol=1e-5)
    assert steps["present"].tolist() == once["present"].tolist() == [True, True, False]
    kept = whole("none")(simulated)["image"]
    assert (once["image"][1] - kept[1]).abs().max() > 0.2 and torch.equal(once["image"][0], kept[0])


@pytest.mark.parametrize(
    "options",
    [{"to": "mni152", "center": "volume"}, {"to": "mni152", "brain_mask": True}, {"brain_mask": True}],
    ids=["template", "template and brain", "brain"],
)
def test_single_steps_equal_the_whole_in_template_space(tmp_path, options):
    rng = np.random.default_rng(2)
    for name in ("mr", "pet"):
        save_volume(scan_head(name, random_pose(rng), 3), tmp_path / f"{name}.nii.gz")
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("mr", "pet")}
    how = {"mr_normalize": "zscore", **options}
    steps, once = composed("affine", **how)(paths), whole("affine", **how)(paths)
    np.testing.assert_allclose(steps["image"].numpy(), once["image"].numpy(), atol=1e-5)
    assert steps["present"].tolist() == [False, True, True] and once["image"][2].std() > 0.1
    assert once["status"] == "done", once["reasons"]


def test_a_bend_travels_with_its_volume():
    field = np.random.default_rng(0).normal(0, 3, (5, 4, 6, 3))
    bend = Transform(Transform.rigid((3, 5, 2)).matrix, Displacement(field, Grid.around(MIDDLE, (30,) * 3, (5, 4, 6))))
    pet = to_meta_tensor(scan("pet"), **transform_to_meta(bend))
    assert sorted(transform_to_meta(bend)) == ["displacement", "displacement_affine", "fixed_to_moving"]
    points = np.random.default_rng(1).uniform(-60, 60, (9, 3))
    np.testing.assert_allclose(transform_from_meta(pet.meta).apply(points), bend.apply(points), atol=1e-5)
    out = ResampleToGridd(["ct", "pet"], **GRID, center=MIDDLE.tolist())({"ct": to_meta_tensor(scan("ct")), "pet": pet})
    expected = resample(scan("pet"), from_meta_tensor(out["pet"]).grid, bend).array
    np.testing.assert_allclose(out["pet"][0].numpy(), expected, atol=1e-5)
    assert "displacement" not in out["pet"].meta  # it has been followed
    with pytest.raises(OptionError, match="brain_mask needs a template: give RegisterToReferenced to= or brain_mask"):
        ResampleToGridd(["pet"], brain_mask=True)({"pet": pet})


def test_prepared_is_what_prepare_case_gives(files):
    manifest, _ = files
    case = read_manifest(manifest)[2]  # without CT
    expected = prepare_case(case, modalities=["mr", "ct"], register="none", **GRID)
    found = PrepareCased(["mr", "ct"], register="none", **GRID)({"case": case, "label": 1})
    np.testing.assert_array_equal(found["image"].numpy(), expected.image)
    assert found["present"].tolist() == [True, False] and found["present"].dtype == torch.bool
    assert (found["label"], found["status"], found["reasons"]) == (1, "done", "") and "case" not in found
    assert not found["image"][1].any()


@pytest.mark.parametrize("empty", [{}, {"ct": None}, {"ct": ""}])
def test_a_key_that_is_absent_or_empty_is_a_missing_modality(files, empty):
    paths = {name: path for name, path in files[1].items() if name != "ct"} | empty
    for way in (whole(), composed()):
        out = way({**paths, "subject": "001"})
        assert out["present"].tolist() == [False, True, True] and not out["image"][0].any()
        assert out["subject"] == "001" and not {*KEYS} & {*out}


def test_nothing_there_is_refused(files):
    with pytest.raises(OptionError, match="subject 9: none of the modalities ct, pet, mr"):
        whole()({"subject": "9"})
    for step in (RegisterToReferenced(KEYS), StackModalitiesd(KEYS)):
        with pytest.raises(GeometryError, match="none of the modalities ct, pet, mr is there"):
            step({"ct": " "})
    assert ResampleToGridd(KEYS)({"ct": None}) == {"ct": None}
    with pytest.raises(OptionError, match="unknown option 'windw'"):
        PrepareCased(KEYS, windw=[0.0, 1.0])


def test_the_mask_and_what_is_known_of_the_injection(files, tmp_path):
    ct, pet = scan("ct"), scan("pet")
    inside = np.zeros(ct.array.shape, np.uint8)
    inside[17:20, 11:14, 8:11] = 1
    save_volume(ct.replace(array=inside, units="label"), tmp_path / "mask.nii.gz")
    save_volume(pet.replace(array=pet.array * np.float32(5000)), tmp_path / "pet.nii.gz")
    data = {**files[1], "pet": tmp_path / "pet.nii.gz", "mask": str(tmp_path / "mask.nii.gz"), "weight_kg": 70}
    data |= {"dose_mbq": 350, "injection_time": "09:00:00", "acquisition_time": "10:00:00", "half_life_s": 3600}
    step = whole(center="mask")
    case = Case("", images={n: files[0].parent / f"001_{n}.nii.gz" for n in KEYS}, mask=tmp_path / "mask.nii.gz")
    found, usual = step(data), step({"case": case})
    np.testing.assert_array_equal(found["image"][0].numpy(), usual["image"][0].numpy())
    # 5000 Bq/mL an SUV: with 70 kg and 175 MBq left, SUV doubles
    low = (usual["image"][1] < 0.5).numpy()
    np.testing.assert_allclose(found["image"][1].numpy()[low], 2 * usual["image"][1].numpy()[low], atol=1e-5)
    assert "mask" not in found and found["weight_kg"] == 70


def test_each_step_does_its_part(files):
    loaded = LoadVolumed(KEYS)(files[1])
    assert isinstance(loaded["ct"], MetaTensor) and loaded["ct"].shape == (1, 27, 25, 21)
    assert [loaded[k].meta["units"] for k in KEYS] == ["HU", "SUVbw", "a.u."]
    moved = RegisterToReferenced(KEYS, kind="none")(loaded)
    assert moved["pet"].meta["reference"] == "ct" and moved["pet"].meta["verdict"] == "ok"
    np.testing.assert_array_equal(moved["pet"].meta["fixed_to_moving"], np.eye(4))
    assert torch.equal(moved["pet"], loaded["pet"]) and "reference" not in loaded["pet"].meta
    scaled = NormalizeMRd(["mr"])(moved)["mr"]
    body = foreground(scan("mr"))
    np.testing.assert_allclose(
        scaled[0].numpy(), scan("mr").array / np.percentile(scan("mr").array[body], 99), rtol=1e-5
    )
    assert WindowCTd(["ct"], 0, 100)(loaded)["ct"].max() == 1 and loaded["ct"].max() > 150
    np.testing.assert_allclose(ClipSUVd("pet", 4)(loaded)["pet"].numpy(), np.clip(loaded["pet"].numpy() / 4, 0, 1))


def test_the_reference_that_is_named_is_taken(files):
    out = RegisterToReferenced(KEYS, reference="mr", kind="none")(LoadVolumed(KEYS)(files[1]))
    assert out["ct"].meta["reference"] == "mr"
    for make in (RegisterToReferenced, PrepareCased):
        with pytest.raises(OptionError, match=r"unknown reference 'ct1'; did you mean 'ct'\? Known: ct, pet, mr"):
            make(KEYS, reference=["mr", "ct1"])
        make(["t1", "t2"])  # of the default, none


@pytest.mark.parametrize(
    ("step", "key", "words"),
    [
        (WindowCTd, "pet", "WindowCTd: pet is in SUVbw, and HU is expected; take pet from its keys"),
        (ClipSUVd, "mr", "ClipSUVd: mr is in a.u., and SUVbw or SUVlbm or SUVbsa is expected"),
        (NormalizeMRd, "ct", "NormalizeMRd: ct is in HU, and a.u. is expected"),
    ],
)
def test_values_are_scaled_by_their_own_step_and_once(files, step, key, words):
    loaded = LoadVolumed(KEYS)(files[1])
    with pytest.raises(OptionError, match=words):
        step([key])(loaded)
    own = {WindowCTd: "ct", ClipSUVd: "pet", NormalizeMRd: "mr"}[step]
    scaled = step([own])(loaded)
    assert (scaled[own].meta["units"], from_meta_tensor(scaled[own]).units) == ("normalized", "normalized")
    assert loaded[own].meta["units"] != "normalized"
    moved = ResampleToGridd(KEYS, **GRID, center="volume")(scaled)  # and they know it still
    for data in (scaled, moved):
        with pytest.raises(OptionError, match=f"{step.__name__}: {own} was normalized before; leave out one"):
            step([own])(data)


def test_mr_is_scaled_by_its_native_scan(files):
    moved = ResampleToGridd(["mr"], **GRID)(LoadVolumed(["mr"])(files[1]))
    with pytest.raises(OptionError, match=r"NormalizeMRd: mr was resampled before.*put NormalizeMRd before ResampleTo"):
        NormalizeMRd(["mr"])(moved)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI warns of an optional reader
def test_units_that_are_unknown_are_believed(files):
    """MONAI's loader does not say what it loads."""
    load = LoadImaged(["ct", "mr"], ensure_channel_first=True)
    by_monai, ours = load(files[1]), LoadVolumed(["ct", "mr"])(files[1])
    assert from_meta_tensor(by_monai["ct"]).units == ""
    steps = Compose([NormalizeMRd(["mr"]), WindowCTd(["ct"])])
    for key in ("ct", "mr"):
        np.testing.assert_allclose(steps(by_monai)[key].numpy(), steps(ours)[key].numpy(), atol=1e-4)
    with pytest.raises(OptionError, match="ct was normalized before"):
        WindowCTd(["ct"])(steps(by_monai))


def test_a_transform_is_followed_and_its_verdict_kept():
    pose = Transform.rigid((8, -5, 12), (20, -15, 9), MIDDLE)
    ct, pet = to_meta_tensor(scan("ct")), to_meta_tensor(scan("pet", pose), fixed_to_moving=pose.matrix, verdict="ok")
    out = ResampleToGridd(KEYS, **GRID, center=MIDDLE.tolist())({"ct": ct, "pet": pet})
    still = ResampleToGridd(KEYS, **GRID, center=MIDDLE.tolist())({"ct": ct, "pet": to_meta_tensor(scan("pet"))})
    assert (out["pet"] - still["pet"]).abs().max() < 0.8  # the same head, each interpolated by itself, in SUV
    assert out["pet"].meta["verdict"] == "ok" and "fixed_to_moving" not in out["pet"].meta
    np.testing.assert_allclose(from_meta_tensor(out["pet"]).grid.center, MIDDLE, atol=1e-9)
    with pytest.raises(OptionError, match=r"unknown center 'mask'\. Known: foreground, volume"):
        ResampleToGridd(KEYS, center="mask")


def test_scans_that_cannot_be_registered():
    pet = scan("pet")
    far = pet.replace(affine=Transform.rigid(translation_mm=(900, 0, 0)).matrix @ pet.affine)
    data = {"ct": to_meta_tensor(scan("ct")), "pet": to_meta_tensor(far)}
    with pytest.raises(GeometryError, match=r"pet could not be registered to ct: .*Check both scans"):
        RegisterToReferenced(KEYS, kind="none")(data)


def test_stacking_refuses_what_would_lie():
    ct, pet = to_meta_tensor(scan("ct")), to_meta_tensor(scan("pet"))
    with pytest.raises(GeometryError, match="pet and ct lie on different grids; use ResampleToGridd before stacking"):
        StackModalitiesd(KEYS)({"ct": ct, "pet": pet})
    with pytest.raises(VoxelError, match="ct is constant \\(3\\) where the modalities are stacked"):
        StackModalitiesd(KEYS)({"ct": ct * 0 + 3})
    out = StackModalitiesd(["pet", "ct"])({"ct": ct, "label": 1})
    assert out["present"].tolist() == [False, True] and out["label"] == 1 and torch.equal(out["image"][1], ct[0])
    np.testing.assert_array_equal(out["image"].affine.numpy(), GRIDS["ct"].affine)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI warns of an optional reader
def test_volumes_survive_as_meta_tensors(files):
    volume = scan("mr", frame_of_reference="1.2.3", notes=["one"], private="x")
    tensor = to_meta_tensor(volume, more=1)
    again = from_meta_tensor(tensor)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.affine, volume.affine)
    assert (again.modality, again.units, again.frame_of_reference) == ("mr", "a.u.", "1.2.3")
    assert again.meta == {"frame_of_reference": "1.2.3", "notes": ["one"]} and tensor.meta["more"] == 1
    by_monai = from_meta_tensor(LoadImaged("mr", ensure_channel_first=True)(files[1])["mr"])
    np.testing.assert_allclose(by_monai.affine, volume.affine, atol=1e-4)
    np.testing.assert_allclose(by_monai.array, volume.array, rtol=1e-5)
    center = mask_center(foreground(by_monai), by_monai.grid)
    np.testing.assert_allclose(center, mask_center(foreground(volume), volume.grid), atol=1e-3)


def test_in_a_data_loader(files):
    items = [{"case": case, "label": int(case.label)} for case in read_manifest(files[0])]
    augment = training_augmentation()
    (batch,) = DataLoader(Dataset(items, Compose([whole(), augment])), batch_size=3)
    assert batch["image"].shape == (3, 3, 11, 17, 25) and batch["label"].tolist() == [0, 1, 0]
    assert batch["present"].shape == (3, 3) and not batch["present"][2, 0] and batch["present"].any(1).all()
    paths = [files[1] | {"subject": str(n)} for n in range(2)]
    (batch,) = DataLoader(Dataset(paths, composed()), batch_size=2)
    assert batch["image"].shape == (2, 3, 11, 17, 25) and torch.equal(batch["image"][0], batch["image"][1])


def test_stored_channels_come_as_wanted(tmp_path):
    stored = np.random.default_rng(0).random((3, 5, 7, 4)).astype(np.float32)
    np.save(tmp_path / "image.npy", stored)
    out = LoadPreparedCased(["mr", "t2", "ct"], KEYS)({"image": str(tmp_path / "image.npy"), "label": 1})
    assert isinstance(out["image"], torch.Tensor) and out["image"].dtype == torch.float32 and out["label"] == 1
    np.testing.assert_array_equal(out["image"].numpy(), [stored[2], np.zeros((5, 7, 4)), stored[0]])
    out["image"][0] = 7  # the file stays
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), stored)


def case_of(present, seed=0, shape=(11, 17, 13)):
    image = torch.from_numpy(np.random.default_rng(seed).random((len(present), *shape), np.float32))
    present = torch.tensor(present)
    return {"image": image * present[:, None, None, None], "present": present}


def test_modalities_are_hidden_as_often_as_asked_but_never_all():
    drop, count, rate = RandModalityDropd(0.4).set_random_state(0), 4000, 0.4
    data = case_of([True, True, False, True], shape=(2, 1, 1))
    left = torch.stack([drop(data)["present"] for _ in range(count)])
    assert left.any(1).all() and not left[:, 2].any()
    hidden = 1 - left[:, [0, 1, 3]].float().mean(0)
    # where all three would go, each is kept with a chance of a third
    np.testing.assert_allclose(hidden.numpy(), rate - rate**3 / 3, atol=4 * (rate * (1 - rate) / count) ** 0.5)


def test_hidden_channels_are_zero_and_the_others_untouched():
    data = case_of([True, True, True])
    before = data["image"].clone()
    out = RandModalityDropd(0.9).set_random_state(1)(data)
    assert 1 <= out["present"].sum() < 3 and torch.equal(data["image"], before) and data["present"].all()
    for channel, there in enumerate(out["present"]):
        assert torch.equal(out["image"][channel], before[channel] * there)
    alone = case_of([False, True])
    assert RandModalityDropd(0.99)(alone)["present"].tolist() == [False, True]
    assert not RandModalityDropd(0.9)(case_of([False, False]))["present"].any()


def test_augmentation_repeats_by_seed_and_keeps_the_shape():
    def run(seed, **how):
        augment = training_augmentation(**how).set_random_state(seed)
        return [augment(case_of([True, True, True], seed=n)) for n in range(6)]

    first, same, other = run(5), run(5), run(6)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
    assert all(one["image"].shape == (3, 11, 17, 13) and one["image"].dtype == torch.float32 for one in first)
    plain = run(5, augment=False, modality_drop=0.0)
    assert all(torch.equal(one["image"], case_of([True] * 3, seed=n)["image"]) for n, one in enumerate(plain))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_generator_of_the_loader_decides_the_augmentation(workers):
    def epochs(seed, state):
        torch.manual_seed(state)
        np.random.seed(state)
        generator = torch.Generator().manual_seed(seed)
        data = Dataset([case_of([True, True, True])] * 4, training_augmentation())
        loader = DataLoader(data, batch_size=2, num_workers=workers, generator=generator)
        return torch.cat([batch["image"].as_tensor() for _ in range(2) for batch in loader])

    first = epochs(5, state=0)
    assert torch.equal(first, epochs(5, state=1)) and not torch.equal(first, epochs(6, state=0))
    assert not torch.equal(*first.split(4))  # another one in each epoch


def test_all_channels_move_together():
    """Contrast changes each channel by a factor and a sum; were one moved otherwise, they would no longer correlate."""
    smooth = torch.from_numpy(scan("mr").array / 1000)
    data = {"image": torch.stack([smooth, 2 * smooth]), "present": torch.tensor([True, True])}
    augment, moved = training_augmentation(modality_drop=0.0).set_random_state(2), 0
    for _ in range(8):
        one, two = augment(data)["image"]
        moved += np.corrcoef(one.flatten(), smooth.flatten())[0, 1] < 0.99
        assert np.corrcoef(one.flatten(), two.flatten())[0, 1] > 0.99999
    assert moved >= 3


def test_an_absent_channel_stays_zero_whatever_the_contrast():
    augment = training_augmentation(modality_drop=0.0).set_random_state(0)
    for n in range(10):
        out = augment(case_of([True, False, True], seed=n))
        assert not out["image"][1].any() and out["image"][0].any() and out["present"].tolist() == [True, False, True]
