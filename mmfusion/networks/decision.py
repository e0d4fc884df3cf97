"""Decision rules: what each modality alone says, to one answer.

A rule takes logits ``[B, M, K]`` of each modality and ``present [B, M]`` to log-probabilities ``[B, K]`` and the
weight of each modality ``[B, M]``, or None where there is none. New ones are new rows of ``DECISION_RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn

from mmfusion.networks.blocks import counted


class DecisionRule(nn.Module):
    """Base of the rules.

    Args:
        modalities: M.
        num_classes: K.
    """

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        raise NotImplementedError


class MeanRule(DecisionRule):
    """Mean of the class probabilities of the present modalities, as log-probabilities ``[B, K]``.

    A row without any modality gets equal probabilities.
    """

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        weights = present / present.sum(1, keepdim=True).clamp_min(1)
        used = counted(present)
        log_probabilities = torch.log_softmax(modality_logits, 2).masked_fill(~used.unsqueeze(2), float("-inf"))
        mean = torch.logsumexp(log_probabilities, 1) - torch.log(used.sum(1, keepdim=True))
        return mean, weights


DECISION_RULES: dict[str, Callable[[int, int], DecisionRule]] = {"mean": MeanRule}
