"""Fusion operators: several modalities, of which some may be absent, to one result, position by position.

An operator takes ``values [B, M, N, F]`` (zero where absent, or a learned vector; N positions, one for a vector) and
``present [B, M]`` to ``[B, N, out_features]`` and the weight of each modality ``[B, M]``, or None where there is none.
So the same operators fuse vectors (single-level fusion) and the maps of a pyramid (hierarchical fusion). New ones are
new rows of ``FEATURE_OPERATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn

from mmfusion.networks.blocks import counted


class FeatureOperator(nn.Module):
    """Base of the fusion operators.

    Args:
        modalities: M.
        features: F.

    Attributes:
        out_features: width of the fused result.
    """

    out_features = 0  # no annotation: TorchScript cannot read a postponed one

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__()

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        raise NotImplementedError


class ConcatFusion(FeatureOperator):
    """Concatenation, zeros standing for an absent modality: ``[B, M, N, F]`` to ``[B, N, M * F]``."""

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        self.out_features = modalities * features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        return values.transpose(1, 2).flatten(2), None


class GatedFusion(FeatureOperator):
    """Weighted mean with weights that the case itself decides: ``[B, M, N, F]`` to ``[B, N, F]``.

    Gated attention of Ilse et al. (ICML 2018): the score of a modality is ``w (tanh(V h) * sigmoid(U h))`` of its mean
    h over the positions, with its own V, U and w a modality, since each encoder has a feature space of its own. A
    softmax over the present modalities makes the scores weights: they sum to one, and are 0 for an absent modality.
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        hidden = max(4, features // 4)
        self.gates = nn.ModuleList(nn.Linear(features, 2 * hidden) for _ in range(modalities))
        self.scores = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(modalities))
        self.out_features = features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        scored: list[Tensor] = []
        for m, (gate, score) in enumerate(zip(self.gates, self.scores)):  # noqa: B905 (not scriptable)
            value, opening = gate(values[:, m].mean(1)).chunk(2, 1)
            scored.append(score(torch.tanh(value) * torch.sigmoid(opening)))
        scores = torch.cat(scored, 1).masked_fill(~counted(present), float("-inf"))
        weights = torch.softmax(scores, 1) * present
        return (weights[:, :, None, None] * values).sum(1), weights


FEATURE_OPERATORS: dict[str, Callable[..., FeatureOperator]] = {"concat": ConcatFusion, "gated": GatedFusion}
