"""The table of encoders by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import DenseNetEncoder, ResNetEncoder
from mmfusion.networks.blocks import NORMS
from mmfusion.networks.cnn import PlainEncoder
from mmfusion.networks.efficientnet import EfficientNetEncoder
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.m3t import MultiPlaneSliceEncoder
from mmfusion.networks.senet import SEResNetEncoder
from mmfusion.networks.slices import SliceEncoder
from mmfusion.networks.swin import SwinEncoder
from mmfusion.networks.vit import ViTEncoder
from mmfusion.options import unknown


@dataclass(frozen=True)
class EncoderKind:
    """A row of the table of encoders.

    Attributes:
        make: the class, which takes ``in_channels``, ``width``, ``norm`` and ``spatial_dims``, and its own options by
            keyword only; or a ``partial`` of it.
        spatial_dims: 3 for volumes, 2 for images; or both.
    """

    make: Callable[..., Encoder]
    spatial_dims: tuple[int, ...] = (2, 3)

    @property
    def views(self) -> tuple[str, ...]:
        """What it gives, see :class:`~mmfusion.networks.encoder.Encoder`."""
        made: Any = self.make.func if isinstance(self.make, partial) else self.make
        return made.views


_M3T_SMALL: dict[str, Any] = {  # small enough to train on volumes of some 48 voxels without a GPU
    "stem_channels": 8,
    "stem_kernel": 3,
    "slice_stride": 2,  # the stem mixes 5 neighboring slices, so every second one still sees all
    "cnn": "resnet10",
    "cnn_width": 0.25,
    "hidden": 64,
    "dim": 64,
    "layers": 2,
    "heads": 4,
    "mlp_dim": 128,
    "positions": 48,
}

ENCODERS: dict[str, EncoderKind] = {
    "resnet10": EncoderKind(partial(ResNetEncoder, "resnet10")),
    "resnet18": EncoderKind(partial(ResNetEncoder, "resnet18")),
    "resnet34": EncoderKind(partial(ResNetEncoder, "resnet34")),
    "resnet50": EncoderKind(partial(ResNetEncoder, "resnet50")),
    "densenet121": EncoderKind(partial(DenseNetEncoder, "densenet121")),
    "se_resnet50": EncoderKind(SEResNetEncoder),
    "efficientnet_b0": EncoderKind(EfficientNetEncoder),
    "cnn": EncoderKind(PlainEncoder),
    "vit": EncoderKind(ViTEncoder),
    "swin": EncoderKind(SwinEncoder),
    "slices": EncoderKind(SliceEncoder, (3,)),
    "m3t": EncoderKind(MultiPlaneSliceEncoder, (3,)),
    "m3t_small": EncoderKind(partial(MultiPlaneSliceEncoder, **_M3T_SMALL), (3,)),
}


def check_options(what: str, name: str, make: Callable[..., Any], options: Mapping[str, Any] | None) -> None:
    """Refuse an option that ``make`` has no keyword-only argument for (NetworkError).

    ``spatial_dims`` is keyword-only too, but decided for the whole network.
    """
    parameters = inspect.signature(make).parameters
    known = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY and key != "spatial_dims"]
    for option in options or {}:
        if option not in known:
            if not known:
                raise NetworkError(f"{what} '{name}' has no options, found '{option}'")
            raise NetworkError(unknown(f"{name} option", option, known))


_IMAGES = {2: "images (spatial_dims 2)", 3: "volumes (spatial_dims 3)"}


def build_encoder(
    name: str,
    in_channels: int = 1,
    width: float = 1.0,
    norm: str = "group",
    spatial_dims: int = 3,
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """The encoder of that name.

    Args:
        name: a key of :data:`ENCODERS`.
        in_channels: channels of the volume, one for a single modality.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        spatial_dims: 2 or 3.
        options: the encoder's own options, which the class of its row of :data:`ENCODERS` documents.

    Raises:
        NetworkError: a name or an option is unknown, or ``width`` is not positive.
    """
    if name not in ENCODERS:
        raise NetworkError(unknown("encoder", name, ENCODERS))
    if norm not in NORMS:
        raise NetworkError(unknown("norm", norm, NORMS))
    if not width > 0:
        raise NetworkError(f"width must be positive, found {width}")
    kind = ENCODERS[name]
    if spatial_dims not in kind.spatial_dims:
        raise NetworkError(f"encoder '{name}' takes {_IMAGES[kind.spatial_dims[0]]}, found spatial_dims {spatial_dims}")
    check_options("encoder", name, kind.make, options)
    how = {**(options or {}), "in_channels": in_channels, "width": width, "norm": norm, "spatial_dims": spatial_dims}
    return kind.make(**how)
