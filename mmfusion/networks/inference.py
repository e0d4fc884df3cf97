"""A network made ready to answer fast: BatchNorm folded into the convolutions, and a smaller number format."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmfusion.networks.network import FusionNetwork, seen_channels

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


class Prepared(nn.Module):
    """A network for answers only: the same ``forward``, which takes and gives float32.

    Args:
        network: in evaluation mode.
        dtype: number format of its weights.
    """

    def __init__(self, network: FusionNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, image: Tensor, present: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Logits ``[B, K]`` in float32, see :meth:`~mmfusion.networks.FusionNetwork.outputs`."""
        if present is None:
            present = seen_channels(image)  # before small numbers become zero
        if covariates is not None:
            covariates = covariates.to(self.dtype)
        return self.network(image.to(self.dtype), present, covariates).float()


def for_inference(network: FusionNetwork, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of the network that answers faster, in evaluation mode.

    A BatchNorm that stands right behind its convolution, as in ResNets, the plain CNN and M3T, becomes part of its
    weights, which changes the answer by rounding only; those of other encoders stay as they are. With
    ``torch.bfloat16`` weights and maps have that format, and channels come last in memory, as the CPU's matrix units
    want them: logits then differ by about a percent, and it pays only on a CPU or GPU that computes in this format.

    Args:
        network: stays as it is.
        dtype: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        A module with the ``forward`` of the network; without its ``outputs`` and ``losses``.
    """
    prepared = copy.deepcopy(network).eval()
    _fold(prepared)
    prepared = prepared.to(dtype)
    if dtype == torch.bfloat16:
        for part in prepared.modules():  # only the weights' order in memory changes
            if isinstance(part, _CONVOLUTIONS):
                order = torch.channels_last if isinstance(part, nn.Conv2d) else torch.channels_last_3d
                part.weight.data = part.weight.data.contiguous(memory_format=order)
    return Prepared(prepared, dtype)


def _fold(module: nn.Module) -> None:
    """Fold each BatchNorm whose convolution stands right before it, in a Sequential or under the same number."""
    for (name, convolution), (after, norm) in pairwise(list(module.named_children())):
        neighbors = isinstance(module, nn.Sequential) or name.replace("conv", "bn") == after
        if neighbors and isinstance(convolution, _CONVOLUTIONS) and isinstance(norm, _BATCH_NORMS):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, after, nn.Identity())
    for child in module.children():
        _fold(child)
