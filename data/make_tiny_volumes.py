"""Make ``data/tiny/*.nii.gz`` and ``data/example_manifest.csv``: one head of ellipsoids, stored in awkward ways.

Run it as ``python data/make_tiny_volumes.py [FOLDER]``. Everything is synthetic; no voxel comes from a patient. Each
volume shows one thing that real headers do, and all of them show the same head at the same place in the world.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

# centers and radii in mm (RAS), and the value of each ellipsoid in CT (HU), PET (SUV), MR (a.u.)
HEAD = [
    ((0, 0, 0), (72, 92, 84), (900, 0.8, 60)),  # skull
    ((0, 0, 0), (64, 84, 76), (35, 6.0, 420)),  # brain
    ((0, -4, 6), (16, 34, 12), (8, 0.4, 130)),  # ventricles
    ((0, 60, -45), (40, 22, 24), (-1000, 0.0, 20)),  # air in front and below: no rotation leaves the head as it is
    ((28, 20, 20), (18, 16, 14), (60, 9.0, 560)),  # something on the right: nor does a mirror
]
AIR = {"ct": -1000.0, "pet": 0.0, "mr": 0.0}
MANIFEST = """\
subject,label,ct,pet,mr,weight_kg,dose_mbq,injection_time,acquisition_time
001,0,tiny/001_ct.nii.gz,tiny/001_pet.nii.gz,tiny/001_mr.nii.gz,,,,
002,1,tiny/002_ct.nii.gz,tiny/002_pet.nii.gz,tiny/002_mr.nii.gz,,,,
003,0,,tiny/003_pet.nii.gz,tiny/003_mr.nii.gz,71.5,250,08:12:00,09:14:30
004,1,tiny/004_ct.nii.gz,,tiny/004_mr.nii.gz,,,,
"""


def scan(modality: str, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """``[i, j, k]`` the head on a grid with this affine (RAS, mm); a voxel is the mean of 4 x 4 x 4 points in it."""
    out = np.zeros(shape)
    for shift in np.ndindex(4, 4, 4):
        index = np.moveaxis(np.indices(shape), 0, -1) + (np.array(shift) - 1.5) / 4
        points, values = index @ affine[:3, :3].T + affine[:3, 3], np.full(shape, AIR[modality])
        for center, radii, by_modality in HEAD:
            inside = (((points - center) / radii) ** 2).sum(-1) <= 1
            values[inside] = by_modality[("ct", "pet", "mr").index(modality)]
        out += values / 64
    return out


def around_origin(axes: np.ndarray, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """``[4, 4]`` affine with these axes (columns, unit length) and the middle of the volume at the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def axes_of(code: str, tilt_deg: float = 0.0) -> np.ndarray:
    """``[3, 3]`` voxel axes (columns) that run in the directions of ``code``, tilted about the left-right axis."""
    directions = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes = np.zeros((3, 3))
    for column, letter in enumerate(code):
        world, sign = directions[letter]
        axes[world, column] = sign
    c, s = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ axes


def save(path: Path, array: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None, slope: float = 1.0) -> None:
    """Write int16 NIfTI with these two affines; None leaves the form's code 0. Values are ``slope * stored``."""
    image = nib.Nifti1Image(np.rint(array).astype(np.int16), None)
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.header.set_qform(qform, 1 if qform is not None else 0)
    image.header.set_sform(sform, 1 if sform is not None else 0)
    write(path, image.to_bytes())


def write(path: Path, content: bytes) -> None:
    """Compress without a date, so that the same volume always gives the same file."""
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def edit(path: Path, offset: int, layout: str, *values: float) -> None:
    """Overwrite bytes of the header, for what a library would refuse to write."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(layout, content, offset, *values)
    write(path, bytes(content))


def make(folder: Path) -> None:
    """Write ``folder/example_manifest.csv`` and ``folder/tiny/``."""
    tiny = folder / "tiny"
    tiny.mkdir(parents=True, exist_ok=True)

    shape, step = (21, 25, 23), (9.0, 9.0, 9.0)
    flipped = around_origin(axes_of("LAS"), step, shape)
    save(tiny / "001_ct.nii.gz", scan("ct", flipped, shape), flipped, flipped)
    plain = around_origin(axes_of("RAS"), step, shape)
    save(tiny / "001_pet.nii.gz", scan("pet", plain, shape) * 100, plain, plain, slope=0.01)
    shape = (25, 23, 21)
    oblique = around_origin(axes_of("PIR", tilt_deg=20), step, shape)
    save(tiny / "001_mr.nii.gz", scan("mr", oblique, shape), oblique, oblique)

    shape = (29, 35, 13)
    thick = around_origin(axes_of("LPS"), (6.5, 6.5, 15.0), shape)
    save(tiny / "002_ct.nii.gz", scan("ct", thick, shape), None, thick)
    shape = (21, 25, 23)
    save(tiny / "002_pet.nii.gz", scan("pet", plain, shape)[..., None] * 100, plain, None, slope=0.01)
    moved = plain.copy()
    moved[:3, 3] += (4, -6, 3)  # as tools leave it that write a registration into one form only
    save(tiny / "002_mr.nii.gz", scan("mr", plain, shape), plain, moved)

    save(tiny / "003_pet.nii.gz", scan("pet", plain, shape) * 2350, plain, plain)  # Bq/mL, see the manifest's row
    turned = around_origin(axes_of("LPS"), step, shape)
    save(tiny / "003_mr.nii.gz", scan("mr", turned, shape), None, turned)
    edit(tiny / "003_mr.nii.gz", 256, "<3f", 0.0, 0.0, 1.0001)  # its quaternion (0, 0, 1), a little too long

    sheared = plain.copy()
    sheared[0, 2] = 1.5  # a tilted gantry, stored without correction
    save(tiny / "004_ct.nii.gz", scan("ct", sheared, shape), sheared, None)
    meters = plain.copy()
    meters[:3] /= 1000
    save(tiny / "004_mr.nii.gz", scan("mr", plain, shape), meters, meters)
    edit(tiny / "004_mr.nii.gz", 123, "<B", 1)  # xyzt_units: meters

    (folder / "example_manifest.csv").write_text(MANIFEST)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
