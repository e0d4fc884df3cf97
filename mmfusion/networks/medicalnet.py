"""Pretrained weights of MedicalNet from a local file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import ResNetEncoder
from mmfusion.networks.encoder import Encoder

_HEADS = ("conv_seg.", "fc.")  # of segmentation and classification; not part of an encoder
_SHOWN = 3  # names in a message


def load_medicalnet(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Load the weights that MedicalNet published for its 3D ResNets (Chen et al., arXiv 1904.00625, 2019).

    Weights of the same shapes also fit a network that strides where MedicalNet dilates, and then say nothing; so the
    geometry of the encoder is checked before: one channel, ``width`` 1, ``norm`` ``batch`` and the options
    ``stem_stride`` 2, ``dilated`` true and ``shortcut`` as in the file (``A`` for MedicalNet's ResNet-18 and 34, ``B``
    for 10 and 50). MedicalNet saw volumes standardized to mean 0 and deviation 1. Nothing is downloaded.

    Args:
        encoder: of a :class:`~mmfusion.networks.FusionNetwork`, one of ``network.encoders``; changed in place.
        path: a file of tensors as ``resnet_10.pth``; a state dict, or a dictionary that holds it as ``state_dict``,
            with or without ``module.`` before each name.

    Raises:
        NetworkError: the encoder has another geometry, or the file cannot be read or is of another network.
    """
    if not isinstance(encoder, ResNetEncoder):
        raise NetworkError(f"MedicalNet's weights fit a ResNet encoder, found {type(encoder).__name__}; use 'resnet10'")
    weights = _read(path)
    shortcut = "B" if any(".downsample." in name for name in weights) else "A"
    _check_geometry(encoder, shortcut)
    own = encoder.state_dict()
    counts = {name for name in own if name.endswith("num_batches_tracked")}  # old files do without
    missing = [name for name in own if name not in weights and name not in counts]
    other = [name for name in weights if name not in own]
    shapes = [
        f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    found = {"missing": missing, "unknown": other, "of another shape": shapes}
    problems = [f"{what}: {_some(names)}" for what, names in found.items() if names]
    if problems:
        raise NetworkError(f"{path} is of another network, perhaps of another depth; {'; '.join(problems)}")
    encoder.load_state_dict({**{name: own[name] for name in counts}, **weights})


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the backbone by their name in an encoder."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise NetworkError(f"cannot read MedicalNet's weights: {error}") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, IndexError, AttributeError):
        raise NetworkError(f"{path} is not a file of tensors as torch.save writes; download it again") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(torch.is_tensor(value) for value in content.values()):
        raise NetworkError(f"{path} holds no state dict (tensors by name); found {type(content).__name__}")
    named = {str(name).removeprefix("module."): value for name, value in content.items()}
    return {name: value for name, value in named.items() if not name.startswith(_HEADS)}


def _check_geometry(encoder: ResNetEncoder, shortcut: str) -> None:
    """Refuse an encoder that MedicalNet's weights would fit by shape only, or not at all."""
    stem = encoder.conv1
    facts = {
        "spatial_dims": (3 if isinstance(stem, nn.Conv3d) else 2, 3),
        "in_channels": (stem.in_channels, 1),
        "channels of the stem (64 times width)": (stem.out_channels, 64),
        "norm": (encoder.norm, "batch"),
        "stem_stride": (encoder.stem_stride, 2),
        "dilated": (encoder.dilated, True),
        "shortcut": (encoder.shortcut, shortcut),
    }
    wrong = [f"{name} {found} instead of {wanted}" for name, (found, wanted) in facts.items() if found != wanted]
    if wrong:
        raise NetworkError(
            f"the encoder has not the geometry of these MedicalNet weights: {', '.join(wrong)}; build it with norm "
            f"'batch', width 1 and encoder_options {{stem_stride: 2, dilated: true, shortcut: {shortcut}}}"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
