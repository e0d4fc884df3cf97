"""Token operators: attention between the tokens of several modalities, of which some may be absent.

An operator takes a list with the tokens ``[B, N_m, F]`` of each modality and ``present [B, M]``, and gives a
:class:`TokenFusion`. New ones are new rows of ``TOKEN_OPERATORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import List, NamedTuple  # noqa: UP035 (TorchScript)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import TransformerBlock, embedding


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
    """Base of the token operators.

    Args:
        modalities: M.
        features: F of the tokens that come in.
        learned: an absent modality is one learned token; otherwise it is not there at all.
        dim: width inside; None takes ``features``, rounded up to a multiple of ``heads``.
        heads: attention heads; ``dim`` must be a multiple of it.
        layers: number of layers.
        mlp_dim: hidden width of the MLPs; None takes twice ``dim``.
        dropout: of attention and MLPs.

    Attributes:
        out_features: width of the fused vector.
        dim: width of ``modality_features``.
    """

    out_features = 0  # no annotation: TorchScript cannot read a postponed one
    dim = 0

    def forward(self, tokens: List[Tensor], present: Tensor) -> TokenFusion:  # noqa: UP006
        raise NotImplementedError


class JointFusion(TokenOperator):
    """Joint self-attention (TransMed: Dai et al., Diagnostics 2021): one transformer over all modalities' tokens.

    ``[class token, tokens of the present modalities]`` with a learned embedding of the modality on each; the class
    token is the fused vector. ``attention`` is the class token's in the last layer.
    """

    def __init__(
        self,
        modalities: int,
        features: int,
        learned: bool = False,
        *,
        dim: int | None = None,
        heads: int = 4,
        layers: int = 2,
        mlp_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim = token_width(features, dim, heads)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(features), nn.Linear(features, dim)) for _ in range(modalities)
        )
        self.cls = embedding(1, 1, dim)
        self.mark = embedding(modalities, dim)
        self.absent = embedding(modalities, dim) if learned else None
        mlp = 2 * dim if mlp_dim is None else mlp_dim
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.out_features = self.dim = dim

    def forward(self, tokens: List[Tensor], present: Tensor) -> TokenFusion:  # noqa: UP006
        batch = present.shape[0]
        parts = [self.cls.expand(batch, 1, -1)]
        seen = [torch.ones_like(present[:, :1])]
        for m, enter in enumerate(self.enter):
            parts.append(enter(tokens[m]) + self.mark[m])
            seen.append(present[:, m : m + 1].expand(batch, tokens[m].shape[1]))
        if self.absent is not None:
            parts.append((self.absent + self.mark).expand(batch, -1, -1))
            seen.append(~present)
        sequence, visible = torch.cat(parts, 1), torch.cat(seen, 1)
        attention = torch.zeros_like(visible, dtype=sequence.dtype)
        for block in self.blocks:
            attention = block.attention(sequence, 1, visible)[:, 0]  # type: ignore[operator]
            sequence = block(sequence, visible)
        sequence = self.norm(sequence)
        return TokenFusion(
            sequence[:, 0],
            modality_means(sequence[:, 1:], tokens, present),
            modality_shares(attention[:, 1:], tokens, present),
        )


def token_width(features: int, dim: int | None, heads: int) -> int:
    """``dim``, by default ``features`` rounded up to a multiple of ``heads``; others are refused (NetworkError)."""
    if dim is None and heads > 0:
        return heads * -(-features // heads)
    if heads < 1 or dim is None or dim % heads:
        raise NetworkError(f"the width of a token must be a multiple of the heads, found dim {dim} and heads {heads}")
    return dim


def modality_means(sequence: Tensor, tokens: List[Tensor], present: Tensor) -> Tensor:  # noqa: UP006
    """The mean of each modality's part of ``sequence [B, N_1 + N_2 + ..., dim]``: ``[B, M, dim]``, 0 where absent."""
    means: List[Tensor] = []  # noqa: UP006
    start = 0
    for one in tokens:
        means.append(sequence[:, start : start + one.shape[1]].mean(1))
        start += one.shape[1]
    return torch.stack(means, 1) * present.unsqueeze(2)


def modality_shares(attention: Tensor, tokens: List[Tensor], present: Tensor) -> Tensor:  # noqa: UP006
    """``attention [B, N_1 + N_2 + ...]`` as ``[B, M, N]``, 0 where absent, scaled to a sum of 1."""
    longest = max([one.shape[1] for one in tokens])
    rows: List[Tensor] = []  # noqa: UP006
    start = 0
    for one in tokens:
        count = one.shape[1]
        rows.append(F.pad(attention[:, start : start + count], [0, longest - count]))
        start += count
    shares = torch.stack(rows, 1) * present.unsqueeze(2)
    return shares / shares.sum((1, 2), keepdim=True).clamp_min(1e-12)


TOKEN_OPERATORS: dict[str, Callable[..., TokenOperator]] = {"joint": JointFusion}
