"""Closed planar contours to voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from skimage.measure import points_in_poly

if TYPE_CHECKING:
    from mmfusion.volume import Grid

_SAME_PLANE_MM = 0.1
_SAME_LINE_MM = 0.05
_NEIGHBORS = 1.5  # planes farther apart than this many usual steps have nothing between them
_LEAST_GAPS = 3  # of one spacing


def inside_contours(contours: list[np.ndarray], grid: Grid, layers: list[int] | None = None) -> np.ndarray:
    """Which voxels of a grid lie inside a structure that was drawn plane by plane.

    A contour stands for a slab that reaches halfway to the next contoured plane. Each voxel center is projected
    onto the plane of its slab and tested against the polygons there, so the grid may lie in any direction and no
    intermediate raster rounds the outline. Where contours of one plane enclose each other, the even-odd rule
    makes holes.

    Args:
        contours: polygons ``[N, 3]``, RAS mm, in parallel planes; those with fewer than three points are left out.
        grid: where the result lies.
        layers: the :func:`crossing_layers` of the contours; the even-odd rule holds within each, and what lies inside
            one of them is inside. None for one layer.

    Returns:
        ``[i, j, k]`` bool.
    """
    mask = np.zeros(grid.shape, bool)
    layers = [layer for layer, points in zip(layers or [0] * len(contours), contours, strict=True) if len(points) >= 3]
    contours = [np.asarray(points, float) for points in contours if len(points) >= 3]
    if not contours:
        return mask
    normal, u, v = _frame(contours)
    heights = np.array([float(np.mean(points @ normal)) for points in contours])
    planes = _distinct(np.sort(heights))
    low, high = _slabs(planes, float(np.abs(normal @ grid.affine[:3, :3]).max()))
    index = _box(contours, normal, float((high - low).max()), grid)
    world = grid.to_world(index)
    height = world @ normal
    slab = np.clip(np.searchsorted(low, height, side="right") - 1, 0, None)
    slab[(height < low[0]) | (height >= high[slab])] = -1
    order = np.argsort(slab, kind="stable")
    starts = np.searchsorted(slab[order], np.arange(len(planes) + 1))
    found = np.zeros(len(index), bool)
    for n, plane in enumerate(planes):
        members = order[starts[n] : starts[n + 1]]
        points = np.stack([world[members] @ u, world[members] @ v], -1)
        inside = np.zeros((max(layers) + 1, len(members)), bool)
        for contour in np.flatnonzero(np.abs(heights - plane) <= _SAME_PLANE_MM):
            polygon = np.stack([contours[contour] @ u, contours[contour] @ v], -1)
            near = ((points >= polygon.min(0)) & (points <= polygon.max(0))).all(-1)
            inside[layers[contour], near] ^= points_in_poly(points[near], polygon)
        found[members] = inside.any(0)
    mask[tuple(index[found].T)] = True
    return mask


def without_repeats(contours: list[np.ndarray]) -> list[np.ndarray]:
    """The contours ``[N, 3]`` (mm) without those that repeat the outline of an earlier one, from whichever point and
    in whichever direction: by the even-odd rule, both together would enclose nothing."""
    boxes = np.array([[points.min(0), points.max(0)] for points in contours if len(points)]).reshape(-1, 2, 3)
    contours = [points for points in contours if len(points)]
    kept: list[int] = []
    for n, points in enumerate(contours):
        near = (kept[m] for m in np.flatnonzero(np.abs(boxes[kept] - boxes[n]).max((1, 2)) <= _SAME_LINE_MM))
        if not any(_away(points, contours[m]) <= _SAME_LINE_MM >= _away(contours[m], points) for m in near):
            kept.append(n)
    return [contours[n] for n in kept]


def crossing_layers(contours: list[np.ndarray]) -> list[int]:
    """The layer, from 0, of each contour ``[N, 3]`` (mm): those of one layer do not cross each other.

    Contours that enclose each other share a layer, so that the inner one is a hole. Where they cross, the even-odd rule
    would make a hole of what both enclose.
    """
    if not any(len(points) >= 3 for points in contours):
        return [0] * len(contours)
    normal, u, v = _frame(contours)
    flat = [np.stack([points @ u, points @ v], -1) for points in contours]
    heights = [float(np.mean(points @ normal)) for points in contours]
    areas = [abs(float((p[:, 0] * np.roll(p[:, 1], -1) - np.roll(p[:, 0], -1) * p[:, 1]).sum())) for p in flat]
    layers = [0] * len(contours)
    placed: list[int] = []
    for n in sorted(range(len(contours)), key=lambda n: -areas[n]):
        beside = [m for m in placed if abs(heights[m] - heights[n]) <= _SAME_PLANE_MM]
        taken = {layers[m] for m in beside if _cross(flat[n], flat[m]) or _cross(flat[m], flat[n])}
        layers[n] = next(layer for layer in range(len(contours) + 1) if layer not in taken)
        placed.append(n)
    return layers


def _cross(line: np.ndarray, outline: np.ndarray) -> bool:
    """True if a closed line ``[N, 2]`` lies clearly inside another in one place, and clearly outside in another, mm."""
    if (line.min(0) > outline.max(0)).any() or (line.max(0) < outline.min(0)).any():
        return False
    points = np.concatenate([line, (line + np.roll(line, -1, axis=0)) / 2])
    clear = _distances(points, outline) > _SAME_LINE_MM
    inside = points_in_poly(points, outline)
    return bool((inside & clear).any() and (~inside & clear).any())


def is_planar(points: np.ndarray) -> bool:
    """True if points ``[N, 3]`` (mm) lie in one plane."""
    return float(np.ptp(points @ _frame([points])[0])) <= _SAME_PLANE_MM


def _away(points: np.ndarray, outline: np.ndarray) -> float:
    """The largest distance of points ``[N, 3]`` from a closed line through ``outline [M, 3]``, mm."""
    return float(_distances(points, outline).max())


def _distances(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """``[N]`` distances of points ``[N, D]`` from a closed line through ``outline [M, D]``, mm."""
    along = np.roll(outline, -1, axis=0) - outline
    offset = points[:, None] - outline
    share = np.clip((offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12), 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1).min(1)


def _frame(contours: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit normal of the planes and two unit vectors within, by the contour of largest area (Newell's formula)."""
    areas = [np.cross(points, np.roll(points, -1, axis=0)).sum(0) / 2 for points in (p - p.mean(0) for p in contours)]
    largest = max(areas, key=lambda area: float(np.linalg.norm(area)))
    normal = largest / max(float(np.linalg.norm(largest)), 1e-12)
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    u = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    u /= np.linalg.norm(u)
    return normal, u, np.cross(normal, u)


def _distinct(heights: np.ndarray) -> np.ndarray:
    """Sorted heights, one for each plane."""
    return heights[np.concatenate([[True], np.diff(heights) > _SAME_PLANE_MM])]


def _slabs(planes: np.ndarray, lone_thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of each plane's slab, mm.

    A stack may go on in another spacing (head CT), where planes are as far apart as that.
    """
    gaps = np.diff(planes)
    usual = float(np.median(gaps)) if len(gaps) else lone_thickness
    other = _other_spacing(gaps, usual)
    half = np.where((gaps <= _NEIGHBORS * usual) | other, gaps, usual) / 2
    first, last = (gaps[n] / 2 if len(gaps) and other[n] else usual / 2 for n in (0, -1))
    return planes - np.concatenate([[first], half]), planes + np.concatenate([half, [last]])


def _other_spacing(gaps: np.ndarray, usual: float) -> np.ndarray:
    """Which gaps ``[N]`` between planes belong to another spacing, which at least three in a row have; bool."""
    other = (gaps > _NEIGHBORS * usual) | (gaps < usual / _NEIGHBORS)
    run = np.cumsum(np.abs(np.diff(gaps, prepend=gaps[:1])) > 0.1 * gaps)  # the number of the run of each gap
    return other & (np.bincount(run)[run] >= _LEAST_GAPS)


def _box(contours: list[np.ndarray], normal: np.ndarray, thickness: float, grid: Grid) -> np.ndarray:
    """Indices ``[N, 3]`` of the voxels of the grid that may lie inside."""
    points = np.concatenate(contours)
    points = grid.to_index(np.concatenate([points - thickness * normal, points + thickness * normal]))
    low = np.clip(np.floor(points.min(0)), 0, None).astype(int)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 1, grid.shape)
    axes = [np.arange(a, max(a, b)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
