"""Series as dcm2niix and SimpleITK read them: the same voxels at the same places of the world."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import voxels, write_series
from pydicom import dcmread

from mmfusion.io import load_volume
from mmfusion.volume import Grid, Volume

AXIAL = (1, 0, 0, 0, 1, 0)
COSINE, SINE = np.cos(0.3), np.sin(0.3)
OBLIQUE = (COSINE, 0, SINE, SINE * 0.6, 0.8, -COSINE * 0.6)


def by_dcm2niix(folder: Path, ending: str = "") -> nib.Nifti1Image:
    """What dcm2niix makes of a folder: of its files the one with this ending of its name."""
    out = folder.parent / "nifti"
    out.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "one", "-d", "3", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return nib.load(out / f"one{ending}.nii")


def by_simpleitk(folder: Path) -> nib.Nifti1Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, affine = reader.Execute(), np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).T.astype(np.float32)
    return nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) @ affine)


def assert_same(volume: Volume, image: nib.Nifti1Image, *, atol_mm: float = 1e-3, atol: float = 1e-3) -> None:
    turned = nib.as_closest_canonical(image)
    assert volume.array.shape == turned.shape
    np.testing.assert_allclose(volume.grid.corners(), Grid(turned.shape, turned.affine).corners(), atol=atol_mm)
    np.testing.assert_allclose(volume.array, turned.get_fdata(dtype=np.float32), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE, (0, 1, 0, 0, 0, -1)], ids=["axial", "oblique", "sagittal"])
@pytest.mark.parametrize(("modality", "slope", "intercept"), [("CT", 1.0, -24.0), ("MR", 0.25, 3.0)])
def test_series(tmp_path: Path, axes: tuple[float, ...], modality: str, slope: float, intercept: float) -> None:
    step = np.cross(axes[:3], axes[3:]) * 2.5
    stored, tags = voxels((7, 5, 6)), {"Modality": modality, "SliceThickness": 2.5}
    write_series(tmp_path / "scan", stored, axes=axes, step=step, slopes=slope, intercept=intercept, **tags)
    volume = load_volume(tmp_path / "scan", modality=modality)
    assert_same(volume, by_simpleitk(tmp_path / "scan"))
    assert_same(volume, by_dcm2niix(tmp_path / "scan"))


def test_positions_rounded_to_a_tenth(tmp_path: Path) -> None:
    """dcm2niix takes the distance of two slices; the step over the whole stack is nearer to what was scanned."""
    stored = voxels((7, 5, 23))

    def rounded(dataset, n: int) -> None:
        dataset.ImagePositionPatient = [-10.0, 20.0, round(30 + 0.625 * n, 1)]
        dataset.SpacingBetweenSlices = 0.625

    write_series(tmp_path / "scan", stored, step=(0, 0, 0.625), edit=rounded, Modality="MR")
    volume, image = load_volume(tmp_path / "scan"), by_dcm2niix(tmp_path / "scan")
    assert_same(volume, image, atol_mm=0.625)
    assert volume.spacing[2] == pytest.approx(0.625, abs=0.005)


def test_two_spacings(tmp_path: Path) -> None:
    """dcm2niix resamples such a CT to its finest spacing, too."""
    heights = [*range(0, 20, 2), *range(20, 56, 6)]
    stored = voxels((7, 5, len(heights)))

    def placed(dataset, n: int) -> None:
        dataset.ImagePositionPatient = [-10.0, 20.0, 30.0 + heights[n]]

    write_series(tmp_path / "scan", stored, edit=placed, SliceThickness=2.0)
    volume, image = load_volume(tmp_path / "scan"), by_dcm2niix(tmp_path / "scan", "_Eq_1")
    assert volume.spacing == pytest.approx((0.8, 1.1, 2.0))
    turned = nib.as_closest_canonical(image)
    count = min(turned.shape[2], volume.array.shape[2])
    assert abs(turned.shape[2] - volume.array.shape[2]) <= 1
    np.testing.assert_allclose(
        volume.array[..., :count], turned.get_fdata()[..., :count], atol=1.01
    )  # its are whole HU


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble(tmp_path: Path, implicit: bool) -> None:
    stored = voxels((7, 5, 6))
    write_series(tmp_path / "scan", stored)
    for path in sorted((tmp_path / "scan").iterdir()):
        dataset = dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(path.with_suffix(""), implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        path.unlink()
    assert_same(load_volume(tmp_path / "scan"), by_dcm2niix(tmp_path / "scan"))


def test_series_in_two_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", voxels((7, 5, 6)), series_uid="1.2.77")
    (tmp_path / "scan" / "more").mkdir()
    for path in sorted((tmp_path / "scan").glob("*.dcm"))[::2]:
        path.rename(tmp_path / "scan" / "more" / path.name)
    assert_same(load_volume(f"{tmp_path / 'scan'}#1.2.77"), by_dcm2niix(tmp_path / "scan"))


def test_gzipped_files(tmp_path: Path) -> None:
    """SimpleITK and dcm2niix do not look into them: what they read before packing is what we read after it."""
    write_series(tmp_path / "scan", voxels((7, 5, 6)))
    image = by_simpleitk(tmp_path / "scan")
    for path in sorted((tmp_path / "scan").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert_same(load_volume(tmp_path / "scan"), image)
