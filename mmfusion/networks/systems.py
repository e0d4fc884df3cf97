"""Whole systems of the literature: names that :func:`mmfusion.networks.build` assembles with a paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import scaled
from mmfusion.networks.build import build
from mmfusion.networks.network import FusionNetwork
from mmfusion.options import unknown

_M3T_FORMS: dict[str, dict[str, Any]] = {  # what a form settles
    "separate": {"shared": False},
    "shared": {"shared": True},
    "joint": {"strategy": "attention", "fusion": "joint"},
}


def m3t(
    modalities: Sequence[str] = ("mr",),
    num_classes: int = 2,
    form: str = "separate",
    *,
    layers: int = 8,
    heads: int = 8,
    mlp_dim: int = 768,
    width: float = 1.0,
    encoder_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> FusionNetwork:
    """M3T (Jang & Hwang, CVPR 2022, pp. 20686-20697), for one modality as in the paper, or for several.

    ``[B, M, D, H, W]`` to logits ``[B, K]``. With one modality: :class:`MultiPlaneSliceEncoder`, whose class token
    passes LayerNorm and one linear layer; BatchNorm, and no standardization of the vector.

    Forms for several modalities:

    - ``separate``: an M3T for each, fused by any strategy and operator (class tokens side by side unless told).
    - ``shared``: one M3T reads them all, in one batch, with a learned embedding of the modality on what it says.
    - ``joint``: the tokens of all modalities, each of ``slices + 4``, pass one transformer with an embedding of the
      modality. Its class token is another than those of the modalities, and a LayerNorm and a linear layer for each
      modality lead into it.

    Provenance: :class:`MultiPlaneSliceEncoder` says what is from the paper, what from third parties and what is
    reconstructed. The paper states 29.12 M parameters; this network has 30.28 M for one modality and two classes.
    The paper has one modality (T1 MRI): the three forms are ours.

    Args:
        modalities, num_classes, width: see :func:`build`.
        form: ``separate``, ``shared`` or ``joint``.
        layers, heads, mlp_dim: of the transformer, of which there is one a modality, or one in all.
        encoder_options: further options of :class:`MultiPlaneSliceEncoder`.
        options: further options of :func:`build`; ``norm`` is ``batch`` and ``standardize`` False unless told.

    Raises:
        NetworkError: the form is unknown or already settles an option, or :func:`build` refuses one.
    """
    if form not in _M3T_FORMS:
        raise NetworkError(unknown("form", form, _M3T_FORMS))
    for name, value in {"encoder": "m3t", **_M3T_FORMS[form]}.items():
        if name in options:
            raise NetworkError(f"M3T in form '{form}' has {name} {value!r}: leave it out, found {options[name]!r}")
    how = {"norm": "batch", "standardize": False, **_M3T_FORMS[form], **options}
    own = {"layers": layers, "heads": heads, "mlp_dim": mlp_dim, **(encoder_options or {})}
    if form == "joint" and (lost := {"layers", "heads", "mlp_dim", "dropout"} & set(encoder_options or {})):
        raise NetworkError(
            f"M3T in form 'joint' has one transformer, the operator's: give {min(lost)} to m3t itself, dropout in "
            "fusion_options, not in encoder_options"
        )
    if form == "joint":  # the transformer is the operator's; the encoder still makes tokens that its heads divide
        own["layers"] = 0
        joint = {"layers": layers, "heads": heads, "mlp_dim": scaled(mlp_dim, width)}
        how["fusion_options"] = {**joint, **(options.get("fusion_options") or {})}
    return build(encoder="m3t", modalities=modalities, num_classes=num_classes, width=width, encoder_options=own, **how)
