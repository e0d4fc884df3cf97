"""Conditioning of image features on what is known of a case beside its image: age, sex, laboratory values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmfusion.networks.blocks import MLP


class Unconditioned(nn.Module):
    """The features as they are, for networks that take no covariates."""

    def forward(self, features: Tensor, covariates: Tensor) -> Tensor:
        return features


def with_missing(covariates: Tensor) -> Tensor:
    """``[B, C]``, NaN where one is not known, to ``[B, 2 C]``: 0 in its place, then 1 where one is missing."""
    missing = torch.isnan(covariates)
    return torch.cat([torch.where(missing, torch.zeros_like(covariates), covariates), missing.to(covariates.dtype)], 1)


class Conditioning(nn.Module):
    """A factor and an offset for each channel, from the covariates and, with ``seen``, the image: 1 and 0 at first.

    FiLM (Perez et al., AAAI 2018) reads the covariates alone; DAFT (Pölsterl et al., MICCAI 2021; Wolf et al.,
    NeuroImage 2022) also the image's mean features. Both act once, on the last map of an encoder; there, DAFT acts
    inside the last residual block, which is not every encoder's to offer.

    A covariate that is not known (NaN) counts as 0, the mean, and a further input says that it is missing.

    Args:
        features: C.
        covariates: how many a case has.
        seen: DAFT: read the mean features too.
    """

    def __init__(self, features: int, covariates: int, seen: bool = False) -> None:
        super().__init__()
        self.seen = seen
        inputs = 2 * covariates + (features if seen else 0)
        self.film = MLP(inputs, max(8, features // 4), 2 * features, activation=nn.ReLU)
        for parameter in self.film[3].parameters():  # an untrained network looks at the image alone
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, covariates: Tensor) -> Tensor:
        """``[B, N, C]`` features (N positions) and ``[B, covariates]``, NaN where missing, to ``[B, N, C]``."""
        inputs = [with_missing(covariates.to(features.dtype))]
        if self.seen:
            inputs.append(features.mean(1))
        factor, offset = self.film(torch.cat(inputs, 1)).unsqueeze(1).chunk(2, 2)
        return features * (1 + factor) + offset


def _daft(features: int, covariates: int) -> nn.Module:
    return Conditioning(features, covariates, seen=True)


CONDITIONINGS: dict[str, Callable[[int, int], nn.Module]] = {"film": Conditioning, "daft": _daft}
