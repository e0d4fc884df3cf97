"""Draw the pictures of README.md and docs/ from simulated scans: ``python docs/make_pictures.py [FOLDER]``.

SIMULATED DATA: one subject of mmfusion.cohort.simulate, its three scans in three scanner positions.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmfusion.cohort.simulate import draw_subjects, native_grids, simulate_volumes
from mmfusion.prepare import prepare_volumes
from mmfusion.registration import register
from mmfusion.report import figure_overlay
from mmfusion.report.pictures import planes_of, strip
from mmfusion.volume import Grid, Volume, foreground, mask_center, resample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI, SPACING_MM, EXTENT_MM = 72, 1.5, (200, 240, 200)


def outlines(volumes: dict[str, Volume]) -> np.ndarray:
    """``[height, width, 3]`` the outline of the CT on PET and MR, before and after registration, in three planes."""
    fixed = volumes["ct"]
    center = mask_center(foreground(fixed), fixed.grid)
    grid = Grid.around(center.tolist(), [SPACING_MM] * 3, [round(n / SPACING_MM) for n in EXTENT_MM])
    still = resample(fixed, grid).array + 1000  # positive, as the outline needs it
    rows = []
    for name in ("pet", "mr"):
        found = register(fixed, volumes[name]).fixed_to_moving
        for words, transform in (("as the headers say", None), ("after registration", found)):
            title = f"SIMULATED: outline of the CT on the {name.upper()}, {words}"
            moved = resample(volumes[name], grid, transform).array
            rows.append(pixels(figure_overlay(still, moved, kind="contour", title=title)))
    return np.concatenate(rows)


def checkerboards(volumes: dict[str, Volume]) -> np.ndarray:
    """``[height, width]`` the strips of the QC page for CT and MR: before registration above, after it below."""
    arrays = prepare_volumes(
        {name: volumes[name] for name in ("ct", "mr")}, spacing=[4] * 3, size=[40, 56, 40]
    ).pictures
    fixed = planes_of(arrays, "reference")
    moving = [planes_of(arrays, f"{moment}_mr") for moment in ("before", "after")]
    return np.concatenate([strip(fixed, one) for one in moving if fixed and one])


def pixels(figure: Figure) -> np.ndarray:
    """``[height, width, 3]`` a matplotlib figure, uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return np.asarray(Image.open(buffer).convert("RGB"))


def main(folder: Path) -> None:
    """Write the pictures, each well below 300 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = draw_subjects(8, seed=3, positive=0.0)[4]
    volumes = simulate_volumes(subject, native_grids(subject))
    for name, picture in (("registration", outlines(volumes)), ("qc", checkerboards(volumes))):
        Image.fromarray(picture).convert("RGB").quantize(48).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
