"""The deep check: what only voxels tell, each with its words, and one bad file after another."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmfusion.cli import main
from mmfusion.cohort import build_index, check_manifest
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.volume import Volume

SHAPE = (9, 11, 10)
AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
LEVELS = {"ct": (-1000.0, 700.0), "pet": (0.0, 7.0), "mr": (0.0, 400.0)}  # outside and inside of the body


def values(modality: str, seed: int = 0) -> np.ndarray:
    """``[i, j, k]`` a plausible scan: an ellipsoid, a little rough."""
    points = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij"), -1)
    rough = np.random.default_rng([seed, len(modality)]).uniform(0.8, 1, SHAPE)
    outside, inside = LEVELS[modality]
    return np.where((points**2).sum(-1) < 1, inside * rough, outside).round(2).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    nib.save(image, path)


def study(folder: Path, **changed: np.ndarray) -> Path:
    """Four subjects with ct, pet and mr, all good but those in ``changed``, as ``B_pet=array``; the manifest."""
    rows = ["subject,label,ct,pet,mr"]
    for number, subject in enumerate("ABCD"):
        names = [f"{subject}_{modality}.nii.gz" for modality in LEVELS]
        for modality, name in zip(LEVELS, names, strict=True):
            save(folder / name, changed.get(f"{subject}_{modality}", values(modality, number)))
        rows.append(f"{subject},{number % 2},{','.join(names)}")
    (folder / "m.csv").write_text("\n".join(rows))
    return folder / "m.csv"


def deep(manifest: Path, level: str = "") -> list[tuple[str, str, str, str, str]]:
    found = check_manifest(manifest, deep=True)
    return [(p.level, p.subject, p.modality, p.problem, p.remedy) for p in found if not level or p.level == level]


def changed(modality: str, at: tuple[int, ...] | slice, value: float) -> np.ndarray:
    array = values(modality, 9)
    array[at] = value
    return array


def test_a_good_study_has_no_problem(tmp_path: Path) -> None:
    assert deep(study(tmp_path)) == []


def test_bad_voxels_are_named_one_after_another_and_headers_do_not_show_them(tmp_path: Path) -> None:
    manifest = study(
        tmp_path,
        A_ct=changed("ct", (1, 2, 3), np.nan),
        B_mr=changed("mr", (1, 2, 3), np.inf),
        B_pet=changed("pet", slice(None), 3),
        D_mr=changed("mr", slice(None), 0) + (np.arange(990).reshape(SHAPE) == 500),
    )
    whole = (tmp_path / "C_ct.nii.gz").read_bytes()
    (tmp_path / "C_ct.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert check_manifest(manifest) == []
    not_finite = "1 of 990 voxels are not finite (NaN or infinite); export the scan again or drop this modality"
    by_option = "; with --nan background they count as air or zero"
    constant = "every voxel is 3; an empty or constant scan cannot be used, export it again or leave the cell empty"
    cut = "ct cannot be read: Compressed file ended before the end-of-stream marker was reached"
    assert deep(manifest) == [
        ("error", "A", "ct", f"ct: {not_finite}{by_option}", ""),
        ("error", "B", "pet", f"pet: {constant}", ""),
        ("error", "B", "mr", f"mr: {not_finite}", ""),
        ("error", "C", "ct", cut, "Copy or export it again."),
        *[("error", "D", "mr", "no foreground: nothing stands out from the background",
           "Export the scan again or leave the cell empty.")],
    ]  # fmt: skip


def test_values_that_are_not_plausible(tmp_path: Path) -> None:
    manifest = study(
        tmp_path,
        A_ct=values("ct", 9) + 1000,
        B_ct=values("ct", 9) / 1000,
        C_pet=values("pet", 9) / 7,
        D_pet=changed("pet", (1, 2, 3), -40) * 60,
    )
    hu = "Check that the values are HU: rescale slope and intercept applied."
    suv = "Check that the values are SUV: units, weight, dose and times."
    problems = deep(manifest, "warning")
    assert [(one[0], one[1], one[2], one[4]) for one in problems] == [
        *[("warning", "A", "ct", hu), ("warning", "B", "ct", hu), ("warning", "C", "pet", suv)],
        *[("warning", "D", "pet", suv)] * 2,
    ]
    words = [one[3] for one in problems]
    assert words[0] == "the lowest value is 0 HU; -10240 to -1 is usual"
    assert words[1].startswith("the highest value is 0.") and words[1].endswith(" HU; 100 to 32767 is usual")
    assert words[2].startswith("the highest value is 0.") and words[2].endswith(" SUVbw; 1 to 300 is usual")
    assert words[3] == "the lowest value is -2400 SUVbw; -5 or more is usual"
    assert words[4].startswith("the highest value is 4") and words[4].endswith(" SUVbw; 1 to 300 is usual")


def test_pet_in_becquerels(tmp_path: Path) -> None:
    manifest = study(tmp_path, B_pet=values("pet", 9) * 5000)
    ((_, subject, modality, problem, _),) = deep(manifest)
    assert (subject, modality) == ("B", "pet")
    assert problem.startswith("pet: maximum 3") and "looks like Bq/mL, not SUV; convert it to SUVbw, or give" in problem
    header, *rows = manifest.read_text().splitlines()
    columns = ",weight_kg,dose_mbq,injection_time,acquisition_time"
    manifest.write_text("\n".join([header + columns, *(f"{row},70,350,09:00,10:00" for row in rows)]))
    ((level, *_, problem, _),) = deep(manifest)
    assert level == "note" and problem.startswith("Bq/mL to SUVbw by ")


def test_the_same_voxels_in_another_file(tmp_path: Path) -> None:
    """Uncompressed, and stored from the other end, as converters do."""
    manifest = study(tmp_path)
    save(tmp_path / "B_ct.nii", values("ct", 0))
    flip = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 4.0 * (SHAPE[0] - 1)
    save(tmp_path / "D_mr.nii.gz", values("mr", 2)[::-1], flip)
    save(tmp_path / "C_pet.nii.gz", values("mr", 2) / 100)
    manifest.write_text(manifest.read_text().replace("B_ct.nii.gz", "B_ct.nii"))
    remedy = "If they are one person, give them one subject: it could leak from train to test."
    assert not [one for one in check_manifest(manifest) if one.level == "warning"]
    assert deep(manifest, "warning") == [
        ("warning", "B", "ct", "same voxels as subject A ct (line 2)", remedy),
        ("warning", "D", "mr", "same voxels as subject C mr (line 4)", remedy),
    ]


def test_a_nifti_file_of_a_dicom_series(tmp_path: Path) -> None:
    array = values("ct").round()
    save_dicom_series(Volume(array, AFFINE, units="HU"), tmp_path / "s" / "A", modality="CT", patient_id="A")
    (tmp_path / "s" / "B").mkdir()
    save(tmp_path / "s" / "B" / "ct.nii.gz", array.astype(np.int16))
    build_index(tmp_path / "s").write(tmp_path / "m.csv")
    (found,) = deep(tmp_path / "m.csv", "warning")
    assert found[3] == "same voxels as subject A ct (line 2)"


def test_a_file_that_the_headers_refuse_is_named_once(tmp_path: Path) -> None:
    manifest = study(tmp_path)
    (tmp_path / "A_ct.nii.gz").write_bytes(b"no scan")
    (tmp_path / "A_pet.nii.gz").unlink()
    assert [(one[2], one[3].split(": ")[0]) for one in deep(manifest, "error")] == [
        ("pet", "pet file A_pet.nii.gz does not exist"),
        ("ct", "ct is not a NIfTI file, or is damaged"),
    ]


def test_pet_that_will_be_clipped(tmp_path: Path) -> None:
    """Six hot voxels, two of them in the mask of 20 voxels; in a row without a mask the hot volume counts."""
    array = np.minimum(values("pet"), 3)
    at = np.argwhere(array > 0)
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(at[:20].T)] = 1
    array[tuple(at[[3, 8, 40, 50, 60, 70]].T)] = [30, 27, 26, 20, 5, 4]
    manifest = study(tmp_path, A_pet=array, B_pet=array * np.float32(1.001))
    save(tmp_path / "mask.nii.gz", mask)
    lines = manifest.read_text().splitlines()
    cells = zip(lines, ("mask", "mask.nii.gz", "", "", ""), strict=True)
    manifest.write_text("\n".join(f"{line},{cell}" for line, cell in cells))
    words, remedy = "lies above suv_max 25 and will be clipped", "A larger --suv-max keeps it."
    assert deep(manifest) == [
        ("note", "A", "pet", f"10.0% of the mask {words} (up to 30)", remedy),
        ("note", "B", "pet", f"50.0% of the hot volume (SUV of 4 or more) {words} (up to 30.03)", remedy),
    ]
    assert check_manifest(manifest, deep=True, suv_max=31.0) == check_manifest(manifest) == []
    stored = [one.problem for one in check_manifest(manifest, deep=True, suv="none", pet_max=29.0)]
    assert stored == ["5.0% of the mask lies above pet_max 29 and will be clipped (up to 30)"]


def test_on_the_command_line_with_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = study(tmp_path, D_mr=changed("mr", (1, 2, 3), np.nan))
    assert main(["check", str(manifest)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["check", str(manifest), "--deep"]) == 1
    said = capsys.readouterr()
    assert "mr: 1 of 990 voxels are not finite" in said.out and str(tmp_path) not in said.out
    assert said.err.splitlines()[-1].startswith("rows 4/4 | ")
