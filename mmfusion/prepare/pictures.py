"""Small arrays of a prepared case for the QC page: three planes and joint histograms, before and after."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.options import resolve
from mmfusion.prepare.scaling import scaling
from mmfusion.volume import Grid, Transform, Volume, coverage, foreground, resample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mmfusion.registration import Registration

    Scaling = Callable[[Volume], np.ndarray]

_PLANES = ("sagittal", "coronal", "axial")


def case_pictures(
    volumes: Mapping[str, Volume],
    reference: str,
    transforms: Mapping[str, Transform],
    grid: Grid,
    scalings: Mapping[str, Scaling],
    head: str | None,
    to_head: Transform,
    registrations: Mapping[str, Registration],
) -> dict[str, np.ndarray]:
    """:func:`qc_pictures` of a case, with its template and with the positions that doubtful registrations did not take.

    Args:
        volumes, reference, transforms, grid, scalings: see there.
        head: name of the template, if there is one.
        to_head: where a point of the grid's world lies in the template.
        registrations: by moving modality, and by the name of the template.
    """
    here, others = transforms.get(reference, Transform()), {}
    for name, one in registrations.items():
        if one.alternative is None or (name != head and one.alternative.fixed_to_moving.is_identity):
            continue  # where the headers put a scan is shown in any case
        way = one.alternative.fixed_to_moving
        others[name] = here.compose(way.inverse() if name == head else way)
    shown = None
    if head:
        from mmfusion.registration import template

        volume = template(head).volume
        shown = volume, to_head, scaling(head, volume, resolve({}, "case"), partial(foreground, volume))
    return qc_pictures(volumes, reference, transforms, grid, scalings, shown, others)


def qc_pictures(
    volumes: Mapping[str, Volume],
    reference: str,
    transforms: Mapping[str, Transform],
    grid: Grid,
    scalings: Mapping[str, Scaling],
    head: tuple[Volume, Transform, Scaling] | None = None,
    others: Mapping[str, Transform] | None = None,
    pixels: int = 128,
) -> dict[str, np.ndarray]:
    """Planes through the middle of the grid with square pixels, and joint histograms with the reference.

    Args:
        volumes: by modality.
        reference: the modality that the others are compared with.
        transforms: where a point of the grid's world lies in each modality; without the reference's, the grid lies in
            the reference's world.
        grid: the prepared grid.
        scalings: what makes the values of each modality comparable.
        head: the template, where a point of the grid's world lies in it, and its scaling.
        others: where it would lie in a modality (any other name is the template's) in a position that was not taken.
        pixels: along the longest side.

    Returns:
        ``<key>_<plane>`` ``[pixels, pixels]`` float16 for the keys ``reference``, ``before_<modality>`` (by the
        headers), ``after_<modality>``, ``other_<modality>`` (not taken), ``template`` and ``other_<template>``;
        ``histogram_<key>`` ``[32, 32]``, reference first (for the template: the template first).
    """
    extent = np.ptp(grid.corners(), axis=0)
    step = extent.max() / pixels
    size = np.maximum(np.round(extent / step).astype(int), 1)
    coarse = Grid.around(grid.center, extent / np.minimum(grid.shape, 64), np.minimum(grid.shape, 64))
    out: dict[str, np.ndarray] = {}

    def planes(key: str, volume: Volume, transform: Transform | None, scaling: Scaling) -> None:
        for axis, plane in enumerate(_PLANES):
            thin = [1 if a == axis else int(n) for a, n in enumerate(size)]
            flat = resample(volume, Grid.around(grid.center, [step] * 3, thin), transform)
            out[f"{key}_{plane}"] = np.clip(scaling(flat), 0, 1).squeeze(axis).astype(np.float16)

    def seen(volume: Volume, transform: Transform | None, scaling: Scaling) -> tuple[np.ndarray, np.ndarray]:
        return scaling(resample(volume, coarse, transform)), coverage(volume.grid, coarse, transform)

    def histogram(key: str, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> None:
        both = a[1] & b[1]
        x, y = (np.clip(values[both], 0, 1) for values, _ in (a, b))
        out[key] = np.histogram2d(x, y, bins=32, range=((0, 1), (0, 1)))[0].astype(np.float32)

    others = others or {}
    here = transforms.get(reference)  # also where the headers put every other scan
    fixed = volumes[reference], here, scalings[reference]
    planes("reference", *fixed)
    fixed_seen = seen(*fixed)
    for name, volume in volumes.items():
        if name == reference:
            continue
        moments = {"before": here, "after": transforms[name]} | ({"other": others[name]} if name in others else {})
        for moment, transform in moments.items():
            planes(f"{moment}_{name}", volume, transform, scalings[name])
            histogram(f"histogram_{moment}_{name}", fixed_seen, seen(volume, transform, scalings[name]))
    if head is not None:
        volume, to_head, head_scaling = head
        keys = {"template": to_head} | {f"other_{name}": way for name, way in others.items() if name not in volumes}
        for key, way in keys.items():
            planes(key, volume, way, head_scaling)
            histogram(f"histogram_{key}", seen(volume, way, head_scaling), fixed_seen)
    return out
