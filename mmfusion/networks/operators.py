"""Fusion operators and decision rules: several modalities, of which some may be absent, to one result.

A fusion operator takes vectors ``[B, M, F]`` (zero where absent) and ``present [B, M]`` to one vector
``[B, out_features]``; a decision rule takes ``[B, M, K]`` logits to log-probabilities ``[B, K]``. Both also return
the weight of each modality ``[B, M]``, or None where there is none. New ones are new rows of the two tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn


def _counted(present: Tensor) -> Tensor:
    """``present``, or all modalities in a row that has none, so that no softmax runs over an empty set (NaN).

    What is counted then is the zeros that stand for absent modalities.
    """
    return present | ~present.any(1, keepdim=True)


class FeatureOperator(nn.Module):
    """Base of the fusion operators: ``out_features`` is the width of the fused vector."""

    out_features = 0  # no annotation: TorchScript cannot read a postponed one


class ConcatFusion(FeatureOperator):
    """Concatenation of the vectors, zeros standing for an absent modality: ``[B, M, F]`` to ``[B, M * F]``."""

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__()
        self.out_features = modalities * features

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        return vectors.flatten(1), None


class GatedFusion(FeatureOperator):
    """Weighted mean of the vectors with weights that the case itself decides: ``[B, M, F]`` to ``[B, F]``.

    Gated attention of Ilse et al. (ICML 2018): the score of a modality is ``w (tanh(V h) * sigmoid(U h))``, with its
    own V, U and w a modality, since each encoder has a feature space of its own. A softmax over the present
    modalities makes the scores weights: they sum to one, and are 0 for an absent modality.
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__()
        hidden = max(4, features // 4)
        self.gates = nn.ModuleList(nn.Linear(features, 2 * hidden) for _ in range(modalities))
        self.scores = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(modalities))
        self.out_features = features

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        scored: list[Tensor] = []
        for m, (gate, score) in enumerate(zip(self.gates, self.scores)):  # noqa: B905 (not scriptable)
            value, opening = gate(vectors[:, m]).chunk(2, 1)
            scored.append(score(torch.tanh(value) * torch.sigmoid(opening)))
        scores = torch.cat(scored, 1).masked_fill(~_counted(present), float("-inf"))
        weights = torch.softmax(scores, 1) * present
        return (weights.unsqueeze(2) * vectors).sum(1), weights


class MeanRule(nn.Module):
    """Mean of the class probabilities of the present modalities, as log-probabilities ``[B, K]``.

    A row without any modality gets equal probabilities.
    """

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        weights = present / present.sum(1, keepdim=True).clamp_min(1)
        counted = _counted(present)
        log_probabilities = torch.log_softmax(modality_logits, 2).masked_fill(~counted.unsqueeze(2), float("-inf"))
        mean = torch.logsumexp(log_probabilities, 1) - torch.log(counted.sum(1, keepdim=True))
        return mean, weights


FEATURE_OPERATORS: dict[str, Callable[[int, int], FeatureOperator]] = {
    "concat": ConcatFusion,
    "gated": GatedFusion,
}
DECISION_RULES: dict[str, Callable[[int, int], nn.Module]] = {"mean": MeanRule}
