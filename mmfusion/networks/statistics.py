"""Running statistics of BatchNorm and ``Standardize``, estimated anew for the weights as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmfusion.networks.blocks import Standardize


@torch.no_grad()
def settle_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None]]) -> None:
    """Replace all running statistics by what ``batches`` show to the present weights; everything else stays.

    The running ones are a moving average over the last steps. At a high learning rate the weights change faster than
    it follows: on the simulated study it was several deviations off for half of the training, so that the answers
    in evaluation, and with them the validation loss, jumped while those in training mode got better. This is
    "precise BatchNorm" (Wu & Johnson, arXiv 2105.07576, 2021): means and variances of the batches, averaged with the
    number of their rows as weights. A layer that sees no batch that it can use keeps what it has.

    Args:
        network: any network; modes and momenta are left as they were.
        batches: ``(image [B, M, *spatial], present [B, M], covariates [B, C])`` on the network's device, read only if
            the network has such layers.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    if not norms:
        return
    modes, momenta = {part: part.training for part in network.modules()}, [norm.momentum for norm in norms]
    seen: Counter[nn.Module] = Counter()

    def weigh(norm: Any, given: tuple[Tensor]) -> None:
        rows = len(given[0])
        seen[norm] += rows
        norm.momentum = rows / max(seen[norm], 1)  # 1 of the first batch, which so replaces what was there

    hooks = [norm.register_forward_pre_hook(weigh) for norm in norms]
    try:
        for part in network.modules():
            part.training = isinstance(part, (_BatchNorm, Standardize))
        for image, present, covariates in batches:
            network(image, present, covariates)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes.items():
            part.training = training
