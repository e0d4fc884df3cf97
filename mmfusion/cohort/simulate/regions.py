"""What is measured in a simulated brain: regions whose true outline is known, as numbers in physical units."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.cohort.simulate import anatomy
from mmfusion.cohort.simulate.drawing import Points, read_template
from mmfusion.cohort.simulate.scan import disease_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.cohort.simulate.subjects import SimulatedSubject
    from mmfusion.volume import Transform, Volume

# Tissue, and the ellipsoids that it lies in (None: anywhere). The sizes follow no atlas.
_REGIONS = {
    "brain": (("gm", "wm"), None),
    "medial_temporal_left": (("gm",), anatomy.ATROPHY[0:1]),
    "medial_temporal_right": (("gm",), anatomy.ATROPHY[1:2]),
    "parietal_left": (("gm",), anatomy.ATROPHY[2:3]),
    "parietal_right": (("gm",), anatomy.ATROPHY[3:4]),
    "posterior_cingulate": (("gm",), anatomy.HYPOMETABOLISM[0:1]),
    "temporo_parietal_left": (("gm",), anatomy.HYPOMETABOLISM[1:2]),
    "temporo_parietal_right": (("gm",), anatomy.HYPOMETABOLISM[2:3]),
    "ventricles": (("csf",), [((0.0, -15.0, 12.0), (25.0, 45.0, 25.0))]),
}
REGIONS = tuple(_REGIONS)
_UNITS = {"pet": "suv", "mr": "au"}


def measure_regions(
    subject: SimulatedSubject, volumes: Mapping[str, Volume], pose: Transform | None = None
) -> dict[str, float]:
    """Measure a subject's brain in scans on one grid, as :func:`simulate_volumes` gives them.

    Two numbers for each of :data:`REGIONS` and each modality of the two that show disease:

    - MR: ``<region>_volume_ml``, the tissue that atrophy has left, and ``mr_<region>_mean_au``;
    - PET: ``pet_<region>_mean_suv``.

    Means are taken over the region as it was before any atrophy, so that each modality's numbers know its own severity
    alone. ``brain`` and ``ventricles`` hardly know the label: the first is there to divide by, the second as a control.

    Args:
        subject: whose scans they are.
        volumes: by modality, on one grid; those absent are not measured.
        pose: as it was given to :func:`simulate_volumes`.
    """
    if not volumes:
        return {}
    grid = next(iter(volumes.values())).grid
    weights, vulnerable = _template_regions()
    pose = pose or subject.reference_pose
    outlines = read_template(weights, Points(subject, grid, pose).index).astype(float)
    # of the subject's own head, also where the grid lies in template space
    voxel_ml = float(np.prod(grid.spacing)) / 1000 / float(np.linalg.det(pose.matrix[:3, :3]))
    sizes = outlines.sum((1, 2, 3))
    values: dict[str, float] = {}
    for number, region in enumerate(REGIONS):
        if "mr" in volumes:
            left = 1 - disease_share(subject, "mr") * vulnerable[number]
            values[f"{region}_volume_ml"] = sizes[number] * left * voxel_ml
        for name, unit in _UNITS.items():
            if name in volumes:
                mean = (outlines[number] * volumes[name].array).sum() / sizes[number]
                values[f"{name}_{region}_mean_{unit}"] = mean
    return {name: round(float(value), 3) for name, value in values.items()}


@lru_cache(maxsize=1)
def _template_regions() -> tuple[np.ndarray, list[float]]:
    """Shares ``[R, i, j, k]`` float32 of the head's voxels that are the region, and how much of it atrophy can take."""
    tissue, atrophy = anatomy.head().tissue, anatomy.region(anatomy.ATROPHY)
    weights, vulnerable = [], []
    for names, ellipsoids in _REGIONS.values():
        where = np.float32(1) if ellipsoids is None else anatomy.region(ellipsoids)
        weights.append(where * sum(tissue[name] for name in names))
        gray = where * tissue["gm"] if "gm" in names else np.float32(0)
        vulnerable.append(float((gray * atrophy).sum() / weights[-1].sum()))
    return np.stack(weights), vulnerable
