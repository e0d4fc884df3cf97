"""Figures of volumes for notebooks and pages: matplotlib's object interface, never pyplot, so nothing is global."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import GeometryError, OptionError
from mmfusion.options import unknown
from mmfusion.report.pictures import PLANES, checkerboard, equalize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
_NOTE = "Left of an axial or coronal picture is the patient's left (neurological display)."


def figure_slices(
    volumes: Mapping[str, np.ndarray],
    *,
    spacing: Sequence[float] = (1, 1, 1),
    center: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Three planes of each volume, a row a volume.

    Args:
        volumes: name to ``[i, j, k]`` array on RAS axes, all of one shape.
        spacing: of the voxels, mm.
        center: voxel that the planes go through; None: the middle.
    """
    figure, axes = _canvas(len(volumes), title)
    shape = next(iter(volumes.values())).shape
    for row, (name, array) in zip(axes, volumes.items(), strict=True):
        _same_shape(shape, array.shape)
        gray = _gray(array)
        for axis, (plane, image, aspect) in zip(row, _planes(array, spacing, center), strict=True):
            axis.imshow(image.T, origin="lower", aspect=aspect, **gray)
            _letters(axis, plane)
        row[0].set_ylabel(name)
    return figure


def figure_overlay(
    fixed: np.ndarray,
    moving: np.ndarray,
    *,
    kind: str = "checkerboard",
    squares: int = 6,
    spacing: Sequence[float] = (1, 1, 1),
    center: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Two volumes on one grid, laid over each other in three planes.

    Args:
        fixed, moving: ``[i, j, k]`` arrays on RAS axes, of one shape.
        kind: ``checkerboard``: squares by turns (edges should continue); ``contour``: the outlines of the fixed
            volume on the moving one; ``color``: fixed magenta, moving green, gray where they agree.
        squares: along the longer side of a plane.
        spacing: of the voxels, mm.
        center: voxel that the planes go through; None: the middle.

    Raises:
        GeometryError: the volumes have different shapes.
        OptionError: an unknown kind.
    """
    kinds = ("checkerboard", "contour", "color")
    if kind not in kinds:
        raise OptionError(unknown("kind of overlay", kind, kinds))
    _same_shape(fixed.shape, moving.shape)
    figure, axes = _canvas(1, title)
    (a,), (b,) = equalize([fixed]), equalize([moving])
    both = zip(_planes(a, spacing, center), _planes(b, spacing, center), strict=True)
    for axis, ((plane, first, aspect), (_, second, _)) in zip(axes[0], both, strict=True):
        show: dict[str, Any] = {"origin": "lower", "aspect": aspect, "vmin": 0, "vmax": 1}
        if kind == "checkerboard":
            axis.imshow(checkerboard(first, second, squares).T, cmap="gray", **show)
        elif kind == "color":
            axis.imshow(np.stack([first.T, second.T, first.T], axis=-1), **show)
        else:
            axis.imshow(second.T, cmap="gray", **show)
            if first.min() < 0.3 < first.max():
                axis.contour(first.T, levels=[0.3], colors="#e69f00", linewidths=1)
        _letters(axis, plane)
    return figure


def figure_map(
    volume: np.ndarray,
    values: np.ndarray,
    *,
    signed: bool = False,
    largest: float | None = None,
    label: str = "",
    spacing: Sequence[float] = (1, 1, 1),
    center: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """Values as colors on a volume in gray, in three planes, with a color bar: PET on CT, or a map of evidence.

    Args:
        volume, values: ``[i, j, k]`` arrays on RAS axes, of one shape; values near 0 are transparent.
        signed: colors from blue (negative) through 0 to red (positive); else they begin at 0, and less is not shown.
        largest: value of the last color, which gives several figures one scale; None: the largest of either sign, but
            for a thousandth of the voxels.
        label: of the color bar: what the values are, and their unit.
        spacing: of the voxels, mm.
        center: voxel that the planes go through; None: the middle.

    Raises:
        GeometryError: the volumes have different shapes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    _same_shape(volume.shape, values.shape)
    gray, values = _gray(volume), values if signed else values.clip(0)
    largest = max(float(np.percentile(np.abs(values), 99.9)), 1e-6) if largest is None else largest
    colors: dict[str, Any] = {"cmap": "bwr" if signed else "hot", "vmin": -largest if signed else 0, "vmax": largest}
    figure, axes = _canvas(1, title)
    both = zip(_planes(volume, spacing, center), _planes(values, spacing, center), strict=True)
    for axis, ((plane, below, aspect), (_, above, _)) in zip(axes[0], both, strict=True):
        axis.imshow(below.T, origin="lower", aspect=aspect, **gray)
        opacity = 0.7 * np.clip(1.5 * np.abs(above) / largest, 0, 1)  # never so much that the gray is hidden
        axis.imshow(above.T, alpha=opacity.T, origin="lower", aspect=aspect, **colors)
        _letters(axis, plane)
    opaque = ScalarMappable(Normalize(colors["vmin"], colors["vmax"]), colors["cmap"])
    figure.colorbar(opaque, ax=list(axes[0]), label=label, shrink=0.8)
    return figure


def figure_joint_histogram(
    fixed: np.ndarray, moving: np.ndarray, *, mask: np.ndarray | None = None, bins: int = 32, title: str = ""
) -> Figure:
    """How often intensities of two volumes meet; thin ridges mean alignment, a haze means misalignment.

    Args:
        fixed, moving: arrays of one shape.
        mask: bool of that shape, the voxels that count; None: all.
        bins: along each axis.

    Raises:
        GeometryError: the shapes differ.
    """
    from matplotlib.figure import Figure

    _same_shape(fixed.shape, moving.shape)
    mask = np.ones(fixed.shape, bool) if mask is None else mask
    counts, x, y = np.histogram2d(fixed[mask], moving[mask], bins=bins)
    figure = Figure(figsize=(4, 3.4), layout="constrained")
    axis = figure.add_subplot()
    image = axis.pcolormesh(x, y, np.log10(1 + counts).T, cmap="magma")
    figure.colorbar(image, label="log10(1 + voxels)")
    axis.set(xlabel="fixed intensity", ylabel="moving intensity", title=title)
    return figure


def _canvas(rows: int, title: str) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel(_NOTE, fontsize=8, color="0.4")
    return figure, figure.subplots(rows, 3, squeeze=False)


def _planes(array: np.ndarray, spacing: Sequence[float], center: Sequence[int] | None):
    """Name, 2D array ``[x, y]`` and the height of a pixel over its width, for each plane."""
    middle = center if center is not None else [size // 2 for size in array.shape]
    for plane in PLANES:
        across = _AXES[plane]
        x, y = (axis for axis in range(3) if axis != across)
        yield plane, np.take(array, middle[across], axis=across), spacing[y] / spacing[x]


def _gray(array: np.ndarray) -> dict[str, Any]:
    """How a volume is shown in gray: one window for all its planes."""
    low, high = np.percentile(array, [0.5, 99.5])
    return {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}


def _letters(axis: Any, plane: str) -> None:
    left, right, bottom, top = tuple(PLANES[plane])
    box = {"facecolor": "black", "edgecolor": "none", "pad": 1}
    for letter, x, y in ((left, 0.04, 0.5), (right, 0.96, 0.5), (bottom, 0.5, 0.04), (top, 0.5, 0.96)):
        axis.text(x, y, letter, color="white", ha="center", va="center", transform=axis.transAxes, bbox=box)
    axis.set(title=plane, xticks=[], yticks=[])


def _same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if a != b:
        raise GeometryError(f"volumes of shapes {a} and {b} cannot be laid over each other; resample both to one Grid")
