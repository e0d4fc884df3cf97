"""Systems: whole networks by name, each a row of plain data that settles some options.

A row stands directly below the options of the place that names it, see :func:`mmfusion.options.settle`: what is given
beside ``system`` changes the system, what is not given is the system's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class System:
    """A row of :data:`SYSTEMS`.

    Attributes:
        help: what it is, in a line.
        options: what it settles, by name of :data:`mmfusion.options.OPTIONS`.
        paper: where it was published; empty if it is ours.
        year: of that.
        provenance: what it was written from.
        reconstructed: what these did not say, or what differs from the paper; empty if nothing.
        needs: what a study must have, in words; empty if any will do.
    """

    help: str
    options: Mapping[str, Any]
    paper: str = ""
    year: int | None = None
    provenance: str = ""
    reconstructed: str = ""
    needs: tuple[str, ...] = ()


_M3T = {"encoder": "m3t", "norm": "batch", "standardize": False}
_TRANSFORMER = {"layers": 8, "heads": 8, "mlp_dim": 768}
_JANG = "Jang and Hwang, M3T, CVPR 2022, pp. 20686-20697"
_FROM = "the abstract, third-party descriptions that quote the paper, and third-party code; no code of the authors"
_GUESSED = (
    "the way from 32 channels into ResNet-50, the width of the projection, one separator for all planes, plane "
    "embeddings on class token and separators, position embeddings interpolated to the volume"
)
_FORMS = f"{_GUESSED}; the paper has one modality, its form for several is ours"

SYSTEMS: dict[str, System] = {
    "input_fusion": System(
        "ResNet-10 that reads all modalities as channels, as in the bundle of this name",
        {"strategy": "input", "encoder": "resnet10"},
        provenance="ours",
    ),
    "feature_fusion": System(
        "One ResNet-10 per modality, vectors side by side, as in the bundle of this name",
        {"strategy": "single_level", "encoder": "resnet10"},
        provenance="ours",
    ),
    "decision_fusion": System(
        "One ResNet-10 and classifier per modality, answers by Bayes' rule, as in the bundle of this name",
        {"strategy": "decision", "encoder": "resnet10", "fusion": "product"},
        provenance="ours",
    ),
    "m3t_fusion": System(
        "One M3T per modality with GroupNorm, vectors side by side, as in the bundle of this name",
        {"strategy": "single_level", "encoder": "m3t"},
        paper=_JANG,
        year=2022,
        provenance=_FROM,
        reconstructed=f"{_FORMS}; GroupNorm and standardized vectors in place of BatchNorm",
    ),
    "m3t": System(
        "The paper's M3T for one modality; for several one M3T each, vectors side by side",
        {**_M3T, "strategy": "single_level", "shared": False, "encoder_options": _TRANSFORMER},
        paper=_JANG,
        year=2022,
        provenance=_FROM,
        reconstructed=_FORMS,
    ),
    "m3t_shared": System(
        "One M3T that reads all modalities in turn, with an embedding of the modality",
        {**_M3T, "strategy": "single_level", "shared": True, "encoder_options": _TRANSFORMER},
        paper=_JANG,
        year=2022,
        provenance=_FROM,
        reconstructed=_FORMS,
    ),
    "m3t_joint": System(
        "The slices of all modalities as the tokens of one transformer",
        {
            **_M3T,
            "strategy": "attention",
            "fusion": "joint",
            "encoder_options": {**_TRANSFORMER, "layers": 0},  # the transformer is the operator's
            "fusion_options": _TRANSFORMER,
        },
        paper=_JANG,
        year=2022,
        provenance=_FROM,
        reconstructed=_FORMS,
    ),
}
