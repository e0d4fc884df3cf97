"""Small scans of one made-up head, smooth and without symmetry, that are known at every point of the world."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mmfusion.io import save_volume
from mmfusion.volume import Grid, Transform, Volume

MIDDLE = np.array([4.0, -17.0, 11.0])
UNITS = {"ct": "HU", "pet": "SUVbw", "mr": "a.u."}
GRIDS = {  # odd, different for each, mm
    "ct": Grid.around(MIDDLE + (3, -2, 1), (7.0, 8.0, 9.0), (27, 25, 21)),
    "pet": Grid.around(MIDDLE - (2, 3, 4), (9.0, 7.5, 8.0), (19, 27, 23)),
    "mr": Grid.around(MIDDLE + (1, 5, -2), (8.0, 8.5, 7.5), (23, 21, 25)),
}


def values(modality: str, points: np.ndarray) -> np.ndarray:
    """``[...]`` what a scanner would measure at ``points`` ``[..., 3]`` (RAS mm): HU, SUVbw or a.u."""
    x, y, z = np.moveaxis(points - MIDDLE, -1, 0)
    body = 1 / (1 + np.exp((np.sqrt((x / 62) ** 2 + (y / 74) ** 2 + (z / 66) ** 2) - 1) * 9))
    detail = np.sin(x / 17 + 0.4) * np.cos(y / 23 - 0.2) + 0.6 * np.sin(z / 19 + x / 41)
    if modality == "ct":
        return -1000 + body * (1050 + 120 * detail)
    if modality == "pet":
        return body * (4 + 2.5 * detail)
    return 700 * body * (1 - 0.35 * detail)


def scan(modality: str, pose: Transform | None = None, **meta: object) -> Volume:
    """The head as one scanner sees it; ``pose`` maps the head's world to the scanner's."""
    grid = GRIDS[modality]
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    points = points if pose is None else pose.inverse().apply(points)
    return Volume(values(modality, points).astype(np.float32), grid.affine, modality, UNITS[modality], meta)


def write_study(folder: Path, subjects: int = 3, **columns: list[str]) -> Path:
    """Scans as NIfTI and their manifest; subjects differ in brightness, the last one has no CT."""
    rows = []
    for n in range(subjects):
        row = {"subject": f"{n + 1:03d}", "label": str(n % 2)} | {name: cells[n] for name, cells in columns.items()}
        for name in ("ct", "pet", "mr"):
            if name != "ct" or n < subjects - 1:
                one = scan(name)
                factor = 1.0 if name == "ct" else 1 - 0.1 * n
                save_volume(one.replace(array=one.array * np.float32(factor)), folder / f"{n + 1:03d}_{name}.nii.gz")
                row[name] = f"{n + 1:03d}_{name}.nii.gz"
        rows.append(row)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "label", "ct", "pet", "mr", *columns], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"
