"""The sampler against MONAI, SimpleITK and scipy: 256^3 float32 voxels of (0.9, 0.9, 1.2) mm to 1 mm, linear.

    python benchmarks/resampling.py

The ways take turns, so that what else the machine does meets all of them; the median counts. Differences are to
SimpleITK, away from the border (whose rules differ), as a share of the range of the values.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing, SpatialResample
from scipy import ndimage

from mmfusion.files import write_json
from mmfusion.prepare import versions
from mmfusion.volume import Displacement, Grid, Transform, Volume, resample

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "resampling.json"
SPACING = (0.9, 0.9, 1.2)
BORDER = 4  # voxels of the target


def main() -> None:
    """Time all ways on each grid, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", type=int, default=256, help="voxels an axis")
    given = parser.parse_args()
    n = given.size
    rng = np.random.default_rng(0)
    array = ndimage.gaussian_filter(rng.normal(size=(n, n, n)).astype(np.float32), 1.0)
    volume = Volume(array, Grid.around((0, 0, 0), SPACING, (n, n, n)).affine)
    image = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(volume.affine))

    lattice = Spacing((1, 1, 1), mode="bilinear")(image)
    spacing_grid = Grid(tuple(lattice.shape[1:]), lattice.affine.numpy())
    extent = n * np.asarray(SPACING)
    kept = Grid.around((0, 0, 0), extent / extent.round(), extent.round().astype(int))  # ends where the source ends
    tilted = Transform.rigid((8, -5, 12)).matrix @ Grid.around((0, 0, 0), (1, 1, 1), spacing_grid.shape).affine
    oblique = Grid(spacing_grid.shape, tilted)
    coarse = Grid.around((0, 0, 0), extent / 32, (32, 32, 32))
    bend = ndimage.gaussian_filter(rng.normal(size=(*coarse.shape, 3)), (2, 2, 2, 0)).astype(np.float32) * 60
    warp = Transform(np.linalg.inv(Transform.rigid((8, -5, 12)).matrix), Displacement(bend, coarse))

    def spacing() -> Any:
        return Spacing((1, 1, 1), mode="bilinear")(image)

    def spatial() -> Any:
        return SpatialResample(mode="bilinear")(
            image, dst_affine=torch.from_numpy(oblique.affine), spatial_size=oblique.shape
        )

    results = []
    for name, grid, transform, monai in (
        ("axis-aligned, extent kept", kept, None, ("Spacing", spacing)),
        ("axis-aligned, Spacing's own grid", spacing_grid, None, ("Spacing", spacing)),
        ("oblique", oblique, None, ("SpatialResample", spatial)),
        ("displacement field", oblique, warp, None),
    ):
        ways: dict[str, Callable[[], Any]] = {
            "mmfusion": lambda g=grid, t=transform: resample(volume, g, t).array,
            "SimpleITK": lambda g=grid, t=transform: by_itk(volume, g, t),
            "scipy": lambda g=grid, t=transform: by_scipy(volume, g, t),
        }
        if monai is not None:
            ways[monai[0]] = monai[1]
        seconds = alternate(ways, given.repeats)
        inner = (slice(BORDER, -BORDER),) * 3
        if transform is not None:
            inner = (slice(n // 4, -n // 4),) * 3
        ours, theirs = ways["mmfusion"](), ways["SimpleITK"]()
        seen = np.abs(ours - theirs)[inner]
        if grid is oblique:  # its corners lie outside, and the rim of the source with them
            index = volume.grid.to_index(
                world(grid)[inner] if transform is None else transform.apply(world(grid)[inner])
            )
            seen = seen[((index > 1) & (index < np.asarray(array.shape) - 2)).all(-1)]
        results.append(
            {
                "grid": name,
                "shape": grid.shape,
                "median_seconds": {way: float(np.median(times)) for way, times in seconds.items()},
                "seconds": seconds,
                "difference_to_simpleitk": float(seen.max() / np.ptp(array)),
            }
        )
        report(results[-1], monai[0] if monai else None)
    facts = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "versions": versions(),
        "source": {"shape": array.shape, "spacing_mm": SPACING, "type": "float32"},
        "results": results,
    }
    write_json(facts, RESULTS)
    print(f"wrote {RESULTS}")


def alternate(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, taking turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(result: dict[str, Any], monai: str | None) -> None:
    """One block of the table."""
    median = result["median_seconds"]
    print(f"{result['grid']} {result['shape']}, difference to SimpleITK {result['difference_to_simpleitk']:.1e}")
    for way, seconds in median.items():
        ratio = f"{seconds / median[monai]:8.3f} of {monai}" if monai else ""
        print(f"  {way:16s} {seconds:8.3f} s {ratio}", flush=True)


def world(grid: Grid) -> np.ndarray:
    """``[i, j, k, 3]`` the centers of all voxels, RAS mm."""
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))


def by_itk(volume: Volume, grid: Grid, transform: Transform | None) -> np.ndarray:
    """As its users do it: images in LPS, from and to numpy."""
    flip = np.diag([-1.0, -1, 1])

    def placed(image: sitk.Image, affine: np.ndarray) -> sitk.Image:
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(steps.tolist())
        image.SetOrigin((flip @ affine[:3, 3]).tolist())
        image.SetDirection((flip @ affine[:3, :3] / steps).ravel().tolist())
        return image

    image = placed(sitk.GetImageFromArray(volume.array.T), volume.affine)
    empty = placed(sitk.Image([1, 1, 1], sitk.sitkUInt8), grid.affine)
    move = sitk.Transform(3, sitk.sitkIdentity)
    if transform is not None and transform.displacement is not None:
        matrix = flip @ transform.matrix[:3, :3] @ flip
        linear = sitk.AffineTransform(matrix.ravel().tolist(), (flip @ transform.matrix[:3, 3]).tolist())
        vectors = (transform.displacement.array @ flip).transpose(2, 1, 0, 3)
        field = placed(sitk.GetImageFromArray(vectors, isVector=True), transform.displacement.grid.affine)
        move = sitk.CompositeTransform(
            [linear, sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))]
        )
    out = sitk.Resample(
        image, grid.shape, move, sitk.sitkLinear, empty.GetOrigin(), empty.GetSpacing(), empty.GetDirection(), 0.0
    )
    return sitk.GetArrayFromImage(out).T


def by_scipy(volume: Volume, grid: Grid, transform: Transform | None) -> np.ndarray:
    """``affine_transform``, or ``map_coordinates`` behind a displacement field."""
    if transform is None:
        matrix = np.linalg.inv(volume.affine) @ grid.affine
        return ndimage.affine_transform(volume.array, matrix, output_shape=grid.shape, order=1)
    index = volume.grid.to_index(transform.apply(world(grid)))
    return ndimage.map_coordinates(volume.array, np.moveaxis(index, -1, 0), order=1)


if __name__ == "__main__":
    main()
