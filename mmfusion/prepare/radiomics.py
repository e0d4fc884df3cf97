"""The larger set of features that the package mirp computes (extra ``radiomics``; Zwanenburg, JOSS 9:6413, 2024).

mirp is under the EUPL-1.2. It is called through its published interface, unchanged, and no part of it is shipped here.
It runs in a process of its own: the libraries of ITK that it loads crash one that has loaded SimpleITK.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import OptionError, VoxelError
from mmfusion.io import save_volume
from mmfusion.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmfusion.volume import Bins

_KINDS: Mapping[str, str] = {"HU": "ct", "SUV": "pet"}  # how mirp calls scans of these units
_PROGRAM = """
import json, sys
from mirp import extract_features
row = extract_features(**json.loads(sys.argv[1]))[0].iloc[0]
numbers = {str(name): float(value) for name, value in row.items() if hasattr(value, "__float__")}
json.dump(numbers, open(sys.argv[2], "w"))
"""


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
    with TemporaryDirectory(prefix=".mmfusion-tmp-") as place:
        image, region, numbers = (str(Path(place) / name) for name in ("image.nii", "mask.nii", "numbers.json"))
        save_volume(Volume(values.astype(np.float32), affine), image)
        save_volume(Volume(mask.astype(np.uint8), affine, units="label"), region)
        settings: dict[str, Any] = {
            "image": image,
            "mask": region,
            "image_modality": _KINDS.get(unit, "generic"),
            "base_feature_families": ["all"],
            "base_discretisation_method": "fixed_bin_size",
            "base_discretisation_bin_width": float(bins.width),
            "resegmentation_intensity_range": [float(bins.low), float("nan")],
        }
        command = [sys.executable, "-c", _PROGRAM, json.dumps(settings), numbers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise VoxelError(f"mirp failed ({last})")
        row = json.loads(Path(numbers).read_text(encoding="utf-8"))
    return {name: value for name, value in row.items() if not name.startswith(("image_", "sample_"))}
