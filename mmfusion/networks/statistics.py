"""Running statistics of BatchNorm and ``Standardize``, estimated anew for the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmfusion.networks.blocks import Standardize


@torch.no_grad()
def settle_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
    """Replace all running statistics by what ``batches`` show to the present weights; the weights stay.

    The running ones are a moving average over the last steps. At a high learning rate the weights change faster than
    it follows: on the simulated study it was several deviations off for half of the training, so that the answers
    in evaluation, and with them the validation loss, jumped while those in training mode got better. This is
    "precise BatchNorm" (Wu & Johnson, arXiv 2105.07576, 2021) with the law of total variance: the mean and the variance
    (n - 1) over all values that a layer is given, within and between batches, so that neither the order of the rows
    nor the size of the batches matters. That is exact for a layer with no BatchNorm before it, as ``Standardize``
    behind encoders with ``norm: group``. A BatchNorm normalizes each batch by itself meanwhile, so what the layers
    behind it are given depends a little on which rows share a batch: give them in random order. A layer that is given
    fewer than two values keeps what it has.

    The BatchNorm of a frozen encoder, whose weights have no gradient, keeps the statistics that it came with.

    Args:
        network: any network; modes and momenta are left as they were.
        batches: ``(image [B, M, *spatial], present [B, M], covariates [B, C])`` on the network's device, read only if
            the network has such layers.
    """
    wrappers: dict[nn.Module, nn.Module] = {
        part.norm: part for part in network.modules() if isinstance(part, Standardize)
    }
    norms: list[Any] = [part for part in network.modules() if isinstance(part, _BatchNorm) and _changes(part)]
    if not norms:
        return
    modes, momenta = {part: part.training for part in network.modules()}, [norm.momentum for norm in norms]
    moments = [_Moments() for _ in norms]
    hooks = [  # a single row does not reach the BatchNorm within Standardize, but counts: so the hook is on Standardize
        wrappers.get(norm, norm).register_forward_pre_hook(seen.add) for norm, seen in zip(norms, moments, strict=True)
    ]
    try:
        for part in network.modules():
            part.training = part in norms or isinstance(part, Standardize)
        for norm in norms:
            norm.momentum = 0.0  # no moving average meanwhile
        for image, present, covariates in batches:
            network(image, present, covariates)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training
    for norm, seen in zip(norms, moments, strict=True):
        if seen.count > 1:
            norm.running_mean.copy_(seen.mean)
            norm.running_var.copy_(seen.squares / (seen.count - 1))


def _changes(norm: _BatchNorm) -> bool:
    """Whether a layer has running statistics, and is not frozen."""
    return norm.track_running_stats and (norm.weight is None or norm.weight.requires_grad)


class _Moments:
    """The mean of each channel over all values added, and the sum of their squared distances from it.

    Batches are joined by the formula of Chan, Golub and LeVeque (COMPSTAT 1982), in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, _: nn.Module, given: tuple[Tensor]) -> None:
        """Take the input ``[B, C, *spatial]`` of a layer, B may be 0 (called by torch, as a hook)."""
        values = given[0].float()
        count = values.numel() // values.shape[1]
        if count == 0:
            return
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        variance, mean = variance.cpu().double(), mean.cpu().double()
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + shift.square() * (self.count * count / total)
        self.mean, self.count = self.mean + shift * (count / total), total
