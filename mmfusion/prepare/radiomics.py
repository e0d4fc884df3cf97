"""The larger set of features that the package mirp computes (extra ``radiomics``; Zwanenburg, JOSS 9:6413, 2024).

mirp is under the EUPL-1.2. It is called through its published interface, unchanged, and no part of it is shipped here.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import OptionError, VoxelError, first_line
from mmfusion.io import save_volume
from mmfusion.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmfusion.volume import Bins

_KINDS: Mapping[str, str] = {"HU": "ct", "SUV": "pet"}  # how mirp calls scans of these units


def check_features(features: Sequence[str] | None) -> None:
    """Refuse features of a package that is not installed.

    Raises:
        OptionError: it is mirp.
    """
    if "mirp" in (features or ()) and find_spec("mirp") is None:
        raise OptionError("features mirp needs the package mirp: pip install 'mmfusion[radiomics]'")


def mirp_features(values: np.ndarray, mask: np.ndarray, affine: np.ndarray, unit: str, bins: Bins) -> dict[str, float]:
    """All base features of mirp, in 3D and on the voxels as they are, by mirp's names.

    Args:
        values: ``[i, j, k]`` in ``unit``.
        mask: ``[i, j, k]`` bool, not empty.
        affine: ``[4, 4]`` voxel index to RAS mm.
        unit: a key of :data:`mmfusion.volume.BINS`.
        bins: for gray levels.

    Raises:
        VoxelError: mirp failed.
    """
    from mirp import extract_features  # late: an extra

    settings: dict[str, Any] = {
        "image_modality": _KINDS.get(unit, "generic"),
        "base_feature_families": ["all"],
        "base_discretisation_method": "fixed_bin_size",
        "base_discretisation_bin_width": float(bins.width),
        "resegmentation_intensity_range": [float(bins.low), float("nan")],
    }
    with TemporaryDirectory(prefix=".mmfusion-tmp-") as place:
        files = {name: str(Path(place) / f"{name}.nii") for name in ("image", "mask")}
        save_volume(Volume(values.astype(np.float32), affine), files["image"])
        save_volume(Volume(mask.astype(np.uint8), affine, units="label"), files["mask"])
        try:
            with _quiet():
                row = extract_features(**files, **settings)[0].iloc[0]
        except Exception as error:  # of whatever kind: the case has its tensor and measurements all the same
            raise VoxelError(f"mirp failed ({first_line(error)})") from error
    return {
        str(name): float(value)
        for name, value in row.items()
        if not str(name).startswith(("image_", "sample_")) and isinstance(value, int | float | np.number)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """mirp speaks through the root logger, and sets it up; here it does neither."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
        root.setLevel(level)
