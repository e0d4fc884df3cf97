"""The table of encoders by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import DenseNetEncoder, Encoder, ResNetEncoder
from mmfusion.networks.blocks import NORMS
from mmfusion.networks.m3t import MultiPlaneSliceEncoder
from mmfusion.options import unknown


def _resnet(depth: str, in_channels: int, width: float, norm: str, *, stem_stride: int = 2) -> Encoder:
    return ResNetEncoder(depth, in_channels, width, norm, stem_stride=stem_stride)


# each takes in_channels, width and norm, and the encoder's own options by keyword only
ENCODERS: dict[str, Callable[..., Encoder]] = {
    "resnet10": partial(_resnet, "resnet10"),
    "resnet18": partial(_resnet, "resnet18"),
    "densenet121": partial(DenseNetEncoder, "densenet121"),
    "m3t": MultiPlaneSliceEncoder,
    # the same parts, small enough to train on volumes of some 48 voxels without a GPU
    "m3t_small": partial(
        MultiPlaneSliceEncoder,
        stem_channels=8,
        stem_kernel=3,
        slice_stride=2,  # the stem mixes 5 neighboring slices, so every second one still sees all
        cnn="resnet10",
        cnn_width=0.25,
        hidden=64,
        dim=64,
        layers=2,
        heads=4,
        mlp_dim=128,
        positions=48,
    ),
}


def build_encoder(
    name: str,
    in_channels: int = 1,
    width: float = 1.0,
    norm: str = "group",
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """The encoder of that name.

    Args:
        name: a key of :data:`ENCODERS`.
        in_channels: channels of the volume, one for a single modality.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        options: the encoder's own options: ``stem_stride`` of the ResNets, those of
            :class:`~mmfusion.networks.m3t.MultiPlaneSliceEncoder`.

    Raises:
        NetworkError: a name or an option is unknown, or ``width`` is not positive.
    """
    if name not in ENCODERS:
        raise NetworkError(unknown("encoder", name, ENCODERS))
    if norm not in NORMS:
        raise NetworkError(unknown("norm", norm, NORMS))
    if not width > 0:
        raise NetworkError(f"width must be positive, found {width}")
    known = [key for key, p in inspect.signature(ENCODERS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options or {}:
        if option not in known:
            if not known:
                raise NetworkError(f"encoder '{name}' has no options, found '{option}'")
            raise NetworkError(unknown(f"{name} option", option, known))
    return ENCODERS[name](in_channels=in_channels, width=width, norm=norm, **(options or {}))
