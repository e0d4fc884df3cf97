"""Whole cases: from the files of a manifest row, or from a cohort folder, to ``image`` and ``present``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.transforms import Transform

from mmfusion.cohort import Case
from mmfusion.io import PET_DETAILS
from mmfusion.options import resolve
from mmfusion.prepare import check_reference, load_image, prepare_case

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence


class PrepareCased(Transform):
    """All of :func:`mmfusion.prepare.prepare_case` on a dictionary: what inference from raw scans uses.

    Args:
        keys: modality names, in the order of the channels; a key that is absent or empty is a missing modality.
        device: where registration runs, ``cpu`` or a torch device.
        options: the group ``case`` of :mod:`mmfusion.options`, without ``modalities``.

    Takes ``{modality: path, "mask": path, "subject": text, ...}`` (also ``roi``, ``reference_region``, ``weight_kg``
    and the other :data:`mmfusion.io.PET_DETAILS`), or ``{"case": Case}``. Gives the other entries,
    ``image [M, D, H, W]`` float32, ``present [M]`` bool, and ``status`` and ``reasons`` of the preparation.
    """

    def __init__(self, keys: Sequence[str], device: str = "cpu", **options: Any) -> None:
        self.keys, self.device = list(keys), device
        self.options = resolve({**options, "modalities": self.keys}, "case")
        check_reference(self.options["reference"], self.keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = data.get("case")
        if not isinstance(case, Case):
            images = {key: Path(data[key]) for key in self.keys if data.get(key)}
            mask = Path(data["mask"]) if data.get("mask") else None
            region = Path(data["reference_region"]) if data.get("reference_region") else None
            pet = {name: str(data[name]) for name in PET_DETAILS if data.get(name)}
            roi, subject = str(data.get("roi") or ""), str(data.get("subject", ""))
            case = Case(subject, images=images, mask=mask, roi=roi, reference_region=region, covariates=pet)
        result = prepare_case(case, pictures=False, device=self.device, **self.options)
        rest = {name: value for name, value in data.items() if name not in (*self.keys, "case", "mask", "roi")}
        return {
            **rest,
            "image": torch.from_numpy(result.image),
            "present": torch.from_numpy(result.present),
            "status": result.status,
            "reasons": " | ".join(result.reasons),
        }


class LoadPreparedCased(Transform):
    """``image`` (path of a cohort's ``image.npy``) to ``[M, D, H, W]`` float32, with the wanted channels in order.

    Args:
        wanted: the network's modalities; one that is not stored becomes a zero channel.
        stored: the cohort's modalities, the channels of the file.
    """

    def __init__(self, wanted: Sequence[str], stored: Sequence[str]) -> None:
        self.wanted, self.stored = list(wanted), list(stored)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "image": torch.from_numpy(load_image(data["image"], self.wanted, self.stored))}
