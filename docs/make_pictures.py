"""Draw the pictures of README.md and docs/ from simulated scans: ``python docs/make_pictures.py [FOLDER]``.

SIMULATED DATA: one subject of mmfusion.cohort.simulate, its three scans in three scanner positions. The pictures of
docs/coordinates.md show the same scans as one session of a scanner would have them, read on grids made here.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from PIL import Image

from mmfusion.cohort.simulate import draw_subjects, native_grids, simulate_volumes, true_fixed_to_moving
from mmfusion.prepare import prepare_volumes
from mmfusion.registration import brain_mask, mutual_information, register, register_to_template
from mmfusion.report import figure_overlay
from mmfusion.report.pictures import comparison, equalized, palette, planes_of
from mmfusion.volume import Grid, Transform, Volume, foreground, mask_center, resample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI, SPACING_MM, EXTENT_MM = 72, 1.5, (200, 240, 200)
DRAWING_DPI, FONT = 96, 11  # of the drawings: letters stay readable at full size
PLACE, OTHER, MOVED = "#e69f00", "#56b4e9", "#cc79a7"  # told apart by the color blind, too
HEAD_MM = (220, 240)  # what the drawings show, along x and y


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
    """``[height, width, 3]`` what the QC page shows of CT and MR: before registration above, after it below."""
    arrays = prepare_volumes(
        {name: volumes[name] for name in ("ct", "mr")}, spacing=[4] * 3, size=[40, 56, 40]
    ).pictures
    gray = {key: equalized(planes_of(arrays, key) or {}) for key in ("reference", "before_mr", "after_mr")}
    rows = [
        comparison(gray["reference"], gray[key], arrays[f"histogram_{key}"]).repeat(2, axis=0).repeat(2, axis=1)
        for key in ("before_mr", "after_mr")
    ]
    return palette()[np.concatenate(rows)]


def one_place(ct: Volume, mr: Volume) -> np.ndarray:
    """``[height, width, 3]`` one point of one head in two scans, by index in each and by millimeters in the world."""
    center = ct.grid.center
    straight = Grid.around(center.tolist(), (2, 2, 3), (108, 120, 31))
    oblique = Grid.around((center + (6, -4, 5)).tolist(), (5, 5, 4), (48, 44, 31))
    oblique = Grid(oblique.shape, Transform.rigid((0, 0, 20), center=center).matrix @ oblique.affine)
    point = straight.to_world(np.array([72, 83, 15]))
    figure, axes = drawing(3.3, 3)
    rows = zip(axes, ("A", "B"), (straight, oblique), (ct, mr), (PLACE, OTHER), strict=False)
    for axis, name, grid, scan, color in rows:
        at = grid.to_index(point)
        array = resample(scan, grid).array[:, :, round(at[2])]
        axis.imshow(array.T, **gray(scan, array))
        ring(axis, at, color)
        axis.set(title=f"scan {name}: voxels of {grid.spacing[0]:.0f} mm", xlabel="i", ylabel="j")
        words = f"index ({', '.join(f'{n:.4g}' for n in np.round(at, 1))})"
        axis.text(0.5, 0.05, words, transform=axis.transAxes, ha="center", **boxed(color))
        axis.set_anchor("S")
    world = axes[2]
    show(world, resample(ct, plane(center, 1.0)))
    for grid, color, name, at in ((straight, PLACE, "A", (2, 2)), (oblique, OTHER, "B", (1, 42))):
        border = grid.to_world(np.array([[*end, 15] for end in frame(grid)]))
        world.plot(*border.T[:2], color=color, linewidth=2)
        world.text(*grid.to_world(np.array([*at, 15]))[:2], name, color=color, fontsize=15, fontweight="bold")
    ring(world, point, "white")
    words = f"({', '.join(f'{n:.0f}' for n in point)}) mm"
    world.text(0.5, 0.03, words, transform=world.transAxes, ha="center", **boxed("white"))
    world.set(title="both in the world", xlabel="x, mm", ylabel="y, mm", xlim=(-150, 160), ylim=(-212, 145))
    world.set_facecolor("black")
    world.set_anchor("S")
    return pixels(figure, DRAWING_DPI)


def two_worlds(mr: Volume) -> np.ndarray:
    """``[height, width, 3]`` an axial slice with the axes of RAS, and the same slice with those of LPS."""
    head = resample(mr, plane(mr.grid.center * (0, 1, 1), 1.0))
    figure, axes = drawing(5.2, 2)
    words = {"RAS": (1, "x: to the right", "y: to the front"), "LPS": (-1, "x: to the left", "y: to the back")}
    for axis, (name, (sign, x, y)) in zip(axes, words.items(), strict=True):
        show(axis, head, brightness=0.65)
        arrow = {"arrowstyle": "-|>", "color": PLACE, "linewidth": 3, "mutation_scale": 20}
        for tip in ((62 * sign, 0), (0, 62 * sign)):
            axis.annotate("", tip, (0, 0), arrowprops=arrow)
        axis.plot(0, 0, "o", markersize=14, markerfacecolor="black", markeredgecolor=PLACE, markeredgewidth=2)
        axis.plot(0, 0, "o", markersize=4, color=PLACE)
        middle = {"ha": "center", "va": "center"} | boxed(PLACE)
        axis.text(52 * sign, -17 * sign, x, **middle)
        axis.text(0, 74 * sign, y, **middle)
        axis.text(-42 * sign, -2, "z: to the head,\ntowards you", **middle)
        ring(axis, np.array([40, 36]), "white")
        axis.text(40, 50, f"({40 * sign}, {36 * sign}, {head.grid.center[2]:.0f}) mm", **(middle | {"color": "white"}))
        axis.set_title(name, fontweight="bold")
        sides(axis)
    return pixels(figure, DRAWING_DPI)


def direction(ct: Volume, mr: Volume) -> np.ndarray:
    """``[height, width, 3]`` a voxel of the result, its point, where that lies in the moving scan, what is read there.

    The moving scan is the MR, moved on by 20 degrees and some millimeters.
    """
    center = ct.grid.center
    motion = Transform.rigid((0, 0, 20), (16.5, 13, 0), center)
    moving = resample(mr, plane(center, 1.0), motion.inverse())
    target = plane(center, 24.0)
    centers = target.to_world(np.moveaxis(np.indices(target.shape), 0, -1)).reshape(-1, 3)
    read = motion.apply(centers)
    chosen = int(np.ravel_multi_index((5, 6, 0), target.shape))
    coarse = resample(mr, plane(center, 6.0), motion.inverse())
    figure, axes = drawing(3.6, 3)
    show(axes[0], resample(ct, plane(center, 1.0)))
    show(axes[1], moving)
    for axis, dots, color in zip(axes, (centers, read), (PLACE, MOVED), strict=False):
        axis.plot(*dots.T[:2], ".", color=color, markersize=5)
        axis.plot(*dots[chosen, :2], "o", color=color, markersize=11, markeredgecolor="white", markeredgewidth=2)
        axis.set(xlim=(-108, 108), ylim=(-136, 100), xticks=[], yticks=[])
    axes[0].set(title="1  fixed world", xlabel="centers of the result's voxels")
    axes[1].set(title="2  moving world", xlabel="where those centers lie in it")
    arc = {"arrowstyle": "-|>", "connectionstyle": "arc3,rad=-0.25", "color": PLACE, "linewidth": 3}
    start, end = centers[chosen, :2], read[chosen, :2]
    arrow = ConnectionPatch(start, end, "data", "data", axesA=axes[0], axesB=axes[1], **arc, shrinkB=8, shrinkA=8)
    arrow.set_mutation_scale(22)
    figure.add_artist(arrow)
    figure.text(0.335, 0.85, "fixed_to_moving", ha="center", va="center", **boxed(PLACE))
    zoom(axes[2], coarse, read[chosen])
    return pixels(figure, DRAWING_DPI)


def zoom(axis: Axes, coarse: Volume, point: np.ndarray) -> None:
    """The voxels of the moving scan around the point, and the four of the slice that give the value."""
    show(axis, coarse, brightness=0.7)
    at = coarse.grid.to_index(point)
    near = np.array([[np.floor(at[0]) + a, np.floor(at[1]) + b, 0] for a in (0, 1) for b in (0, 1)])
    all_centers = coarse.grid.to_world(np.moveaxis(np.indices(coarse.grid.shape), 0, -1)).reshape(-1, 3)
    axis.plot(*all_centers.T[:2], ".", color=OTHER, markersize=6)
    for corner in coarse.grid.to_world(near):
        axis.plot(*np.stack([corner, point]).T[:2], color=OTHER, linewidth=2)
        axis.plot(*corner[:2], "o", color=OTHER, markersize=9)
    axis.plot(*point[:2], "o", color=MOVED, markersize=13, markeredgecolor="white", markeredgewidth=2)
    axis.set(xlim=point[0] + np.array([-16, 16]), ylim=point[1] + np.array([-17.5, 17.5]), xticks=[], yticks=[])
    axis.set(title="3  read once", xlabel="between the moving scan's voxels")


def overlap_curve(ct: Volume, mr: Volume) -> np.ndarray:
    """``[height, width, 3]`` similarity of two blocks of 72 mm against their shift, plain and times the overlap."""
    count, step = 24, 3.0
    block = Grid.around((20, -80, 10), [step] * 3, [count] * 3)
    a, b = resample(ct, block).array, resample(mr, block).array
    shifts = np.arange(-21, 22)
    plain = np.array([mutual_information(a[max(0, n) : count + n], b[max(0, -n) : count - max(0, n)]) for n in shifts])
    weight = np.minimum(1, (1 - np.abs(shifts) / count) / 0.9)
    figure = Figure(figsize=(6.2, 3.3), layout="constrained")
    axis = figure.subplots()
    axis.plot(shifts * step, plain, color=MOVED, linewidth=2, linestyle="--", label="similarity alone")
    axis.plot(shifts * step, plain * weight, color="#0072b2", linewidth=2.5, label="similarity times overlap")
    axis.set(ylim=(0, None), xlim=(-64, 64))
    axis.set_xlabel("shift of a block of 72 mm from where it belongs, mm", fontsize=FONT)
    axis.set_ylabel("0 to 1", fontsize=FONT)
    axis.tick_params(labelsize=FONT)
    axis.legend(fontsize=FONT, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return pixels(figure, DRAWING_DPI)


def on_template(volumes: dict[str, Volume]) -> np.ndarray:
    """``[height, width, 3]`` the outline of the template's brain on three heads, before and after registration."""
    figure, axes = drawing(3.1, 3)
    for axis, (name, volume) in zip(axes, volumes.items(), strict=True):
        found = register_to_template(volume)
        grid = Grid.around(foreground_center(volume).tolist(), (1, 1, 1), (1, *HEAD_MM[::-1]))
        image = resample(volume, grid).array[0]
        axis.imshow(image.T, **gray(volume, image))
        ways = ((Transform(), "dashed", OTHER), (found.fixed_to_moving.inverse(), "solid", PLACE))
        for to_template, style, color in ways:
            brain = brain_mask(grid, to_template)[0].T.astype(float)
            axis.contour(brain, [0.5], colors=color, linewidths=2, linestyles=style)
        axis.set(title=f"{name.upper()}: {found.verdict}", xticks=[], yticks=[])
    return pixels(figure, DRAWING_DPI)


def foreground_center(volume: Volume) -> np.ndarray:
    """``[3]`` the middle of the body, RAS mm."""
    return mask_center(foreground(volume), volume.grid)


def plane(center: np.ndarray, spacing: float) -> Grid:
    """One axial slice of the drawings."""
    i, j = (round(n / spacing) for n in HEAD_MM)
    return Grid.around(center.tolist(), (spacing, spacing, 1), (i, j, 1))


def frame(grid: Grid) -> list[tuple[float, float]]:
    """The border of a slice, in voxel indices, closed."""
    i, j = grid.shape[0] - 0.5, grid.shape[1] - 0.5
    return [(-0.5, -0.5), (i, -0.5), (i, j), (-0.5, j), (-0.5, -0.5)]


def drawing(height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a page with a row of axes, inches."""
    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = list(figure.subplots(1, columns))
    for axis in axes:
        axis.tick_params(labelsize=FONT - 1)
        axis.title.set_size(FONT + 1)
        axis.xaxis.label.set_size(FONT)
        axis.yaxis.label.set_size(FONT)
    return figure, axes


def gray(volume: Volume, array: np.ndarray, brightness: float = 1.0) -> dict[str, object]:
    """How a slice of a volume is shown."""
    low, high = (-100, 150) if volume.units == "HU" else (0, np.percentile(array, 99) / brightness)
    return {"cmap": "gray", "vmin": low, "vmax": high, "origin": "lower", "interpolation": "nearest"}


def show(axis: Axes, volume: Volume, brightness: float = 1.0) -> None:
    """An axial slice in the world, gray."""
    array, ends = volume.array[:, :, 0], np.array([[*end, 0] for end in frame(volume.grid)])
    x, y, _ = volume.grid.to_world(ends).T
    axis.imshow(array.T, extent=(x.min(), x.max(), y.min(), y.max()), **gray(volume, array, brightness))


def ring(axis: Axes, at: np.ndarray, color: str) -> None:
    """A ring around a point."""
    axis.plot(*at[:2], "o", markersize=11, markerfacecolor="none", markeredgecolor=color, markeredgewidth=2.5)


def sides(axis: Axes) -> None:
    """The patient's sides at the border of an axial slice."""
    for x, y, letter in ((0.03, 0.5, "L"), (0.97, 0.5, "R"), (0.5, 0.97, "A"), (0.5, 0.03, "P")):
        axis.text(x, y, letter, transform=axis.transAxes, ha="center", va="center", **boxed("white"))
    axis.set(xticks=[], yticks=[])


def boxed(color: str) -> dict[str, object]:
    """Letters that can be read on a scan."""
    box = {"boxstyle": "round", "facecolor": "black", "edgecolor": "none", "pad": 0.2}
    return {"fontsize": FONT, "fontweight": "bold", "color": color, "bbox": box}


def pixels(figure: Figure, dpi: int = DPI) -> np.ndarray:
    """``[height, width, 3]`` a matplotlib figure, uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return np.asarray(Image.open(buffer).convert("RGB"))


def main(folder: Path) -> None:
    """Write the pictures, each well below 200 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = draw_subjects(8, seed=3, positive=0.0)[4]
    volumes = simulate_volumes(subject, native_grids(subject))
    ct, mr = volumes["ct"], volumes["mr"]
    session = resample(
        mr, Grid.around(ct.grid.center.tolist(), (2, 2, 3), ct.grid.shape), true_fixed_to_moving(subject, "ct", "mr")
    )
    pictures = {
        "registration": outlines(volumes),
        "qc": checkerboards(volumes),
        "coordinates_point": one_place(ct, session),
        "coordinates_axes": two_worlds(session),
        "coordinates_direction": direction(ct, session),
        "registration_overlap": overlap_curve(ct, session),
        "registration_template": on_template(volumes),
    }
    for name, picture in pictures.items():
        few = {"colors": 48} if name == "registration" else {"colors": 128, "method": Image.Quantize.MAXCOVERAGE}
        Image.fromarray(picture).convert("RGB").quantize(**few).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
