"""What every token operator shares: the sequences of tokens, their masks, and how attention is reported."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import at_least_one, embedding


class TokenFusion(NamedTuple):
    """What attention made of the tokens.

    Attributes:
        fused: ``[B, out_features]``.
        modality_features: ``[B, M, dim]``, the mean of each modality's tokens afterwards, 0 where absent.
        attention: ``[B, M, N]``, share of the attention that each token gets, all of a case summing to 1 (to 0 where
            no modality is present); N is the largest N_m, the rest is 0.
    """

    fused: Tensor
    modality_features: Tensor
    attention: Tensor


class TokenOperator(nn.Module):
    """Base of the token operators: the tokens ``[B, N_m, features]`` of each modality to width ``dim``.

    Each modality has a layer of its own (LayerNorm, Linear) and a learned embedding, which is added.

    Args:
        modalities: M.
        features: F of the tokens that come in.
        learned: an absent modality is one learned token; otherwise it is not there at all.
        dim: width inside; None takes ``features``, rounded up to a multiple of ``heads``.
        heads: attention heads; ``dim`` must be a multiple of it.
        layers: number of layers.

    Attributes:
        out_features: width of the fused vector.
        dim: width of ``modality_features``.
    """

    out_features: int = 0
    dim = 0

    def __init__(self, modalities: int, features: int, learned: bool, dim: int | None, heads: int, layers: int) -> None:
        super().__init__()
        self.out_features = self.dim = dim = token_width(features, dim, heads)
        at_least_one("option layers of a token operator", layers)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(features), nn.Linear(features, dim)) for _ in range(modalities)
        )
        self.mark = embedding(modalities, dim)
        self.absent = embedding(modalities, dim) if learned else None

    def forward(self, tokens: list[Tensor], present: Tensor) -> TokenFusion:
        raise NotImplementedError

    def sequences(self, tokens: list[Tensor], present: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """For each modality its sequence ``[B, N_m, dim]`` and which of it is visible, bool ``[B, N_m]``.

        Where an absent modality is a learned token, each sequence has it as its last, visible only then.
        """
        parts: list[Tensor] = []
        seen: list[Tensor] = []
        for m, enter in enumerate(self.enter):
            part = enter(tokens[m])
            there = present[:, m : m + 1]
            visible = there.expand(part.shape[0], part.shape[1])
            if self.absent is not None:
                part = torch.cat([part, self.absent[m].expand(part.shape[0], 1, -1)], 1)
                visible = torch.cat([visible, ~there], 1)
            parts.append(part + self.mark[m])
            seen.append(visible)
        return parts, seen


def token_width(features: int, dim: int | None, heads: int) -> int:
    """``dim``, by default ``features`` rounded up to a multiple of ``heads``; others are refused (NetworkError)."""
    if dim is None and heads > 0:
        return heads * -(-features // heads)
    if heads < 1 or dim is None or dim < 1 or dim % heads:
        raise NetworkError(f"the width of a token must be a multiple of the heads, found dim {dim} and heads {heads}")
    return dim


def pieces(sequence: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """``sequence [B, N_1 + N_2 + ..., ...]`` cut into pieces as long as ``parts``."""
    out: list[Tensor] = []
    start = 0
    for part in parts:
        out.append(sequence[:, start : start + part.shape[1]])
        start += part.shape[1]
    return out


def visible_mean(values: Tensor, visible: Tensor) -> Tensor:
    """Mean of ``values [B, N, F]`` over the N that bool ``visible [B, N]`` shows: ``[B, F]``, 0 where there is none."""
    return (values * visible.unsqueeze(2)).sum(1) / visible.sum(1, keepdim=True).clamp_min(1)


def modality_means(parts: list[Tensor], seen: list[Tensor]) -> Tensor:
    """:func:`visible_mean` of each modality's sequence: ``[B, M, dim]``."""
    means = [visible_mean(part, visible) for part, visible in zip(parts, seen, strict=True)]
    return torch.stack(means, 1)


def modality_shares(received: list[Tensor], tokens: list[Tensor], present: Tensor) -> Tensor:
    """What each token receives, ``[B, N_m]`` for each modality, as ``[B, M, N]``, scaled to a sum of 1.

    Learned tokens, behind those of ``tokens``, are left out, and absent modalities are 0. Where no token received
    anything, as a modality that is alone does not attend to others, all present tokens have an equal share.
    """
    longest = max([one.shape[1] for one in tokens])
    rows: list[Tensor] = []
    even: list[Tensor] = []
    for m, one in enumerate(tokens):
        space = [0, longest - one.shape[1]]
        row = received[m][:, : one.shape[1]] * present[:, m : m + 1]
        rows.append(F.pad(row, space))
        even.append(F.pad(present[:, m : m + 1].expand_as(row).to(row.dtype), space))
    shares = torch.stack(rows, 1)
    shares = torch.where(shares.sum((1, 2), keepdim=True) > 0, shares, torch.stack(even, 1))
    return shares / shares.sum((1, 2), keepdim=True).clamp_min(1e-12)
