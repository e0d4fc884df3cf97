"""What is measured in a case, for ``cases.csv``: its scans, its registrations, and the region that its mask marks.

The region is measured in each scan on the scan's own voxels, in physical units. A mask is drawn on one scan. In the
others a voxel belongs to the region if its center, taken through the registration, lies in a voxel of the mask: so
volumes are right on average, however coarse the scan.
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import MmfusionError
from mmfusion.options import OPTIONS
from mmfusion.prepare.radiomics import mirp_features
from mmfusion.volume import (
    BINS,
    SUV_UNITS,
    Bins,
    Grid,
    Transform,
    Volume,
    bounding_box,
    discretize,
    first_order,
    glcm,
    normalize_mr,
    peak,
    resample,
    shape,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mmfusion.registration import Registration

_AROUND_MM = 7.0  # what the sphere of a peak needs beside the mask
_SUFFIX = dict.fromkeys(SUV_UNITS, "suv") | {"HU": "hu", "a.u.": "au", "SUVR": "suvr", "Bq/mL": "bqml"}  # of columns


def scan_facts(name: str, volume: Volume, share: float, clipped: float | None) -> dict[str, Any]:
    """How a scan was stored, the share of the grid that it saw, and that of the region which is clipped."""
    stored = volume.meta.get("stored_spacing", volume.spacing)
    facts = {} if clipped is None else {f"{name}_clipped": round(clipped, 4)}
    return facts | {
        f"{name}_spacing": " ".join(f"{step:.3g}" for step in stored),
        f"{name}_orientation": volume.meta.get("stored_orientation", volume.grid.orientation),
        f"{name}_units": volume.units,
        f"{name}_coverage": round(share, 4),
        f"{name}_notes": "; ".join(volume.meta.get("notes", ())),
    }


def mask_facts(mask: Volume) -> dict[str, Any]:
    """Which structures the mask joins, which it does not, and what was repaired."""
    return {
        "mask_roi": ", ".join(mask.meta.get("rois", ())),
        "mask_others": ", ".join(mask.meta.get("others", ())),
        "mask_notes": "; ".join(mask.meta.get("notes", ())),
    }


def registration_facts(name: str, registration: Registration | None) -> dict[str, Any]:
    """The numbers of a registration, by the name of what moved."""
    if registration is None:
        return {}
    return {
        f"{name}_{key}": value for key, value in registration.as_dict().items() if isinstance(value, str | float | int)
    } | {f"{name}_alternative": registration.alternative.words if registration.alternative else ""}


def features_of(columns: Collection[str]) -> list[str]:
    """The values of the option ``features`` that these columns of ``cases.csv`` come from; measurements need none."""
    return [name for name in OPTIONS["features"].choices if any(f"_{name}_" in column for column in columns)]


def region_facts(
    volumes: Mapping[str, Volume],
    transforms: Mapping[str, Transform],
    mask: Volume,
    owner: str,
    features: Sequence[str],
    body_of: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """Measurements and features of the region that a mask marks, by column of ``cases.csv``.

    A scan that saw nothing of the region has a volume of 0 and no other value. What cannot be measured is left out, and
    ``region_notes`` says why.

    Args:
        volumes: the scans by modality, in physical units.
        transforms: where a point of the reference lies in each other scan.
        mask: on the grid of ``owner``, not empty.
        owner: the scan that the mask was drawn on.
        features: what to compute beside the measurements: values of the option ``features``.
        body_of: gives the foreground of a scan, if it is needed.
    """
    drawn = mask.array > 0
    facts: dict[str, float] = {"mask_volume_ml": _volume_ml(drawn, mask.grid)}
    if "shape" in features:
        facts |= _columns("mask_shape", shape(drawn, mask.affine))
    notes = []
    for name, volume in volumes.items():
        try:
            to_mask = Transform()
            if name != owner:
                back = transforms.get(name, Transform()).inverse()
                to_mask = back.compose(transforms.get(owner, Transform()))
            inside = drawn if name == owner else _on_scan(mask, volume.grid, to_mask)
            facts |= _columns(name, {"volume_ml": _volume_ml(inside, volume.grid)})
            if inside.any():
                facts |= _columns(name, _measurements(volume, inside))
                facts |= _features(name, volume, inside, features, partial(body_of, name))
                if "mirp" in features:
                    facts |= _features_by_mirp(name, volume, inside, partial(body_of, name))
        except MmfusionError as error:
            notes.append(f"{name} is not measured: {error}")
    return facts | ({"region_notes": "; ".join(notes)} if notes else {})


def _on_scan(mask: Volume, grid: Grid, to_mask: Transform) -> np.ndarray:
    """``[i, j, k]`` bool: the mask on the grid of another scan."""
    inside = np.zeros(grid.shape, bool)
    box = tuple(slice(0, n) for n in grid.shape)
    if to_mask.is_linear:  # a field may bring the mask from anywhere
        where = bounding_box(mask.array > 0)
        marked = mask.grid.regrouped([part.stop - part.start for part in where], first=[part.start for part in where])
        ends = grid.to_index(to_mask.inverse().apply(marked.corners()))
        first = np.clip(np.floor(ends.min(0)), 0, grid.shape).astype(int)
        last = np.clip(np.ceil(ends.max(0)) + 1, 0, grid.shape).astype(int)
        if not (last > first).all():
            return inside
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    part = grid.regrouped([one.stop - one.start for one in box], first=[one.start for one in box])
    inside[box] = resample(mask, part, to_mask, order=0, fill=0).array > 0
    return inside


def _measurements(volume: Volume, inside: np.ndarray) -> dict[str, float]:
    values = volume.array[inside].astype(np.float64)
    unit = _SUFFIX.get(volume.units, "stored")
    measured = {
        f"max_{unit}": float(values.max()),
        f"mean_{unit}": float(values.mean()),
        f"peak_{unit}": peak(volume.array, inside, volume.affine),
    }
    if volume.units in SUV_UNITS:
        measured["tlg_ml"] = measured["mean_suv"] * _volume_ml(inside, volume.grid)
    return measured


def _features(
    name: str, volume: Volume, inside: np.ndarray, features: Sequence[str], body: Callable[[], np.ndarray]
) -> dict[str, float]:
    if not {"first", "glcm"} & set(features):
        return {}
    box = bounding_box(inside)
    inside = inside[box]
    values, _, bins = _comparable(volume, box, body)
    levels = np.where(inside, discretize(values, bins), 0)
    facts = _columns(f"{name}_first", first_order(values[inside], levels[inside])) if "first" in features else {}
    return facts | (_columns(f"{name}_glcm", glcm(levels)) if "glcm" in features else {})


def _features_by_mirp(
    name: str, volume: Volume, inside: np.ndarray, body: Callable[[], np.ndarray]
) -> dict[str, float]:
    box = bounding_box(inside, np.ceil(_AROUND_MM / np.asarray(volume.spacing)).astype(int))
    values, unit, bins = _comparable(volume, box, body)
    return _columns(f"{name}_mirp", mirp_features(values, inside[box], volume.affine, unit, bins))


def _comparable(
    volume: Volume, box: tuple[slice, slice, slice], body: Callable[[], np.ndarray]
) -> tuple[np.ndarray, str, Bins]:
    """The values in a box that are comparable between patients, their unit, and bins.

    HU, SUV and SUVR stay as they are. Others get mean 0 and standard deviation 1 in the body of the scan; in the mask,
    they would lose what it differs by.
    """
    values = volume.array[box].astype(np.float64)
    unit = "SUV" if volume.units in SUV_UNITS else volume.units
    if unit in BINS:
        return values, unit, BINS[unit]
    offset, scale = normalize_mr(volume.array, body(), "zscore")
    return (values - offset) / scale, "z", BINS["z"]


def _volume_ml(inside: np.ndarray, grid: Grid) -> float:
    return _short(np.count_nonzero(inside) * abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000)


def _columns(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """By column; a value that is not a number has none."""
    return {f"{prefix}_{name}": _short(value) for name, value in values.items() if isfinite(value)}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
