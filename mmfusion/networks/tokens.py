"""Token operators: attention between the tokens of several modalities, of which some may be absent.

An operator takes a list with the tokens ``[B, N_m, F]`` of each modality and ``present [B, M]``, and gives a
:class:`~mmfusion.networks.token_operator.TokenFusion`. New ones are new rows of ``TOKEN_OPERATORS``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmfusion.networks.blocks import MLP, MaskedAttention, TransformerBlock, at_least_one, embedding
from mmfusion.networks.token_operator import (
    TokenFusion,
    TokenOperator,
    modality_means,
    modality_shares,
    pieces,
    visible_mean,
)


class JointFusion(TokenOperator):
    """Joint self-attention (TransMed: Dai et al., Diagnostics 2021): one transformer over all modalities' tokens.

    ``[class token, tokens of the present modalities]``; the class token is the fused vector ``[B, dim]``.
    ``attention`` is the class token's in the last layer.

    Args:
        modalities, features, learned, dim, heads, layers: see :class:`TokenOperator`.
        mlp_dim: hidden width of the MLPs; None takes twice ``dim``.
        dropout: of attention and MLPs.
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
        super().__init__(modalities, features, learned, dim, heads, layers)
        self.cls = embedding(1, 1, self.dim)
        mlp = 2 * self.dim if mlp_dim is None else mlp_dim
        self.blocks = nn.ModuleList(TransformerBlock(self.dim, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, tokens: list[Tensor], present: Tensor) -> TokenFusion:
        parts, seen = self.sequences(tokens, present)
        sequence = torch.cat([self.cls.expand(present.shape[0], 1, -1)] + parts, 1)
        visible = torch.cat([torch.ones_like(present[:, :1])] + seen, 1)
        attention = torch.zeros_like(visible, dtype=sequence.dtype)
        for i, block in enumerate(self.blocks):
            if i + 1 == len(self.blocks):
                attention = block.attention(sequence, 1, visible)[:, 0]  # type: ignore[operator]
            sequence = block(sequence, visible)
        sequence = self.norm(sequence)
        means = modality_means(pieces(sequence[:, 1:], parts), seen)
        shares = modality_shares(pieces(attention[:, 1:], parts), tokens, present)
        return TokenFusion(sequence[:, 0], means * present.unsqueeze(2), shares)


class CascadeBlock(nn.Module):
    """Cross-attention of one modality's tokens to those of ``others`` modalities in turn, then an MLP; pre-norm.

    ``x <- x + Attention_n(LN_n(x), LN_n(x_n))`` for each other modality n, then ``x + MLP(LN(x))``.
    """

    def __init__(self, others: int, dim: int, heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(others))
        self.attentions = nn.ModuleList(MaskedAttention(dim, heads, dropout) for _ in range(others))
        self.norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        own: Tensor,
        others: list[Tensor],
        seen: list[Tensor],
        weigh: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """``own [B, N, dim]`` after it, and where ``weigh`` its attention ``[B, N, N_n]`` to each other modality."""
        weights: list[Tensor] = []
        for n, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True)):
            query, context = norm(own), norm(others[n])
            if weigh:
                weights.append(attention.weights(query, context, seen[n]))  # type: ignore[operator]
            own = own + self.drop(attention(query, context, seen[n]))
        return own + self.drop(self.mlp(self.norm(own))), weights


class CrossFusion(TokenOperator):
    """Cross-attention in a cascade (3MT: Liu et al., NeuroImage 2023, arXiv 2210.00255).

    In each layer the tokens of each modality query those of the others in turn (:class:`CascadeBlock`), all from what
    the layer before made. With two modalities that is plain cross-attention, in both directions. The fused vector
    ``[B, M * dim]`` is the mean over the tokens of each modality, side by side, 0 for one that is not there.
    ``attention`` is what a token gets in the last layer, the mean over the tokens that query it, summed over the
    present modalities that do.

    From the paper: a cascade of cross-attentions, one a modality, that takes any number of modalities. Reconstructed
    (its abstract was at hand, not its code): every modality starts a cascade of its own, where the paper has a single
    one with auxiliary outputs; pre-norm; and the mean as read-out.

    Args:
        modalities, features, learned, dim, heads, layers: see :class:`TokenOperator`.
        mlp_dim: hidden width of the MLPs; None takes twice ``dim``.
        dropout: of attention and MLPs.
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
        super().__init__(modalities, features, learned, dim, heads, layers)
        mlp = 2 * self.dim if mlp_dim is None else mlp_dim
        self.layers = nn.ModuleList(
            nn.ModuleList(CascadeBlock(modalities - 1, self.dim, heads, mlp, dropout) for _ in range(modalities))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(self.dim)
        self.out_features = modalities * self.dim

    def forward(self, tokens: list[Tensor], present: Tensor) -> TokenFusion:
        parts, seen = self.sequences(tokens, present)
        received = [torch.zeros_like(part[:, :, 0]) for part in parts]
        for i, layer in enumerate(self.layers):
            made: list[Tensor] = []
            for m, block in enumerate(layer):  # type: ignore
                others, visible = parts[:m] + parts[m + 1 :], seen[:m] + seen[m + 1 :]
                own, weights = block(parts[m], others, visible, i + 1 == len(self.layers))
                made.append(own)
                for j, weight in enumerate(weights):
                    n = j if j < m else j + 1
                    received[n] = received[n] + visible_mean(weight, seen[m]) * present[:, m : m + 1]
            parts = made
        means = modality_means([self.norm(part) for part in parts], seen)
        shares = modality_shares(received, tokens, present)
        return TokenFusion(means.flatten(1), means * present.unsqueeze(2), shares)


class IntraInterBlock(nn.Module):
    """``LN(X + SelfAttention(X) + CrossAttention(Q = X, K and V = the other modalities' tokens))``."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.intra = MaskedAttention(dim, heads, dropout)
        self.inter = MaskedAttention(dim, heads, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, own: Tensor, seen: Tensor, context: Tensor, others: Tensor) -> Tensor:
        """``own [B, N, dim]``, bool ``seen [B, N]``; all tokens ``[B, N', dim]``, bool ``others [B, N']`` of others."""
        return self.norm(own + self.intra(own, own, seen) + self.inter(own, context, others))


class IntraInterFusion(TokenOperator):
    """Intra- and inter-modality attention (AGDAF: CMIG 2022, 97:102050).

    ``Z_m = LN(X_m + SelfAttention(X_m) + CrossAttention(Q = X_m, K and V = [X_n], n != m))`` of each modality's tokens;
    the means over the tokens of each modality, side by side, are the fused vector ``[B, M * dim]``, 0 for one that is
    not there. ``attention`` is what a token gets in the last layer from its own modality and from the others, the mean
    over the tokens that query it, summed over the present modalities.

    From the paper's abstract: attention within and between modalities. Reconstructed: the formula, LayerNorm after the
    sum, the mean as read-out, and a single layer.

    Args:
        modalities, features, learned, dim, heads, layers: see :class:`TokenOperator`.
        dropout: of the attention weights.
    """

    def __init__(
        self,
        modalities: int,
        features: int,
        learned: bool = False,
        *,
        dim: int | None = None,
        heads: int = 4,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(modalities, features, learned, dim, heads, layers)
        self.layers = nn.ModuleList(
            nn.ModuleList(IntraInterBlock(self.dim, heads, dropout) for _ in range(modalities)) for _ in range(layers)
        )
        self.out_features = modalities * self.dim

    def forward(self, tokens: list[Tensor], present: Tensor) -> TokenFusion:
        parts, seen = self.sequences(tokens, present)
        hidden = [torch.zeros_like(visible) for visible in seen]
        received = [torch.zeros_like(part[:, :, 0]) for part in parts]
        for i, layer in enumerate(self.layers):
            made: list[Tensor] = []
            context = torch.cat(parts, 1)
            for m, block in enumerate(layer):  # type: ignore
                own, visible = parts[m], seen[m]
                others = torch.cat(seen[:m] + [hidden[m]] + seen[m + 1 :], 1)
                made.append(block(own, visible, context, others))
                if i + 1 == len(self.layers):
                    asking = visible & present[:, m : m + 1]
                    received[m] = received[m] + visible_mean(block.intra.weights(own, own, visible), asking)
                    inter = pieces(visible_mean(block.inter.weights(own, context, others), asking), parts)
                    received = [before + more for before, more in zip(received, inter, strict=True)]
            parts = made
        means = modality_means(parts, seen)
        shares = modality_shares(received, tokens, present)
        return TokenFusion(means.flatten(1), means * present.unsqueeze(2), shares)


class BottleneckFusion(TokenOperator):
    """Bottleneck tokens (MBT: Nagrani et al., NeurIPS 2021): modalities exchange what fits into a few tokens.

    In each layer each modality's transformer block sees its class token, its tokens and the bottleneck tokens z:
    ``[x_m, z_m] = Block_m([x_m, z])``; then z is the mean of z_m over the present modalities. The fused vector
    ``[B, dim]`` is the mean of their class tokens, which under a linear classifier is the paper's mean of logits.
    ``attention`` is that of the class tokens to their own modality's tokens in the last layer; what reaches them
    through the bottleneck is not counted.

    Reconstructed: one LayerNorm at the end for all modalities. There are no layers before the exchange starts: the
    encoders are these.

    Args:
        modalities, features, learned, dim, heads, layers: see :class:`TokenOperator`.
        mlp_dim: hidden width of the MLPs; None takes twice ``dim``.
        bottlenecks: number of bottleneck tokens, 4 in the paper.
        dropout: of attention and MLPs.
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
        bottlenecks: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(modalities, features, learned, dim, heads, layers)
        at_least_one("option bottlenecks of a token operator", bottlenecks)
        self.cls = embedding(modalities, 1, self.dim)
        self.bottleneck = embedding(bottlenecks, self.dim)
        mlp = 2 * self.dim if mlp_dim is None else mlp_dim
        self.layers = nn.ModuleList(
            nn.ModuleList(TransformerBlock(self.dim, heads, mlp, dropout) for _ in range(modalities))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, tokens: list[Tensor], present: Tensor) -> TokenFusion:
        batch = present.shape[0]
        parts, seen = self.sequences(tokens, present)
        heard = present if self.absent is None else torch.ones_like(present)
        always = torch.ones_like(present[:, :1])
        shared = self.bottleneck.expand(batch, -1, -1)
        visible = [torch.cat([always, one, always.expand(batch, shared.shape[1])], 1) for one in seen]
        parts = [torch.cat([self.cls[m].expand(batch, 1, -1), part], 1) for m, part in enumerate(parts)]
        received: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            exchanged: list[Tensor] = []
            for m, block in enumerate(layer):  # type: ignore
                sequence, count = torch.cat([parts[m], shared], 1), parts[m].shape[1]
                if i + 1 == len(self.layers):
                    received.append(block.attention(sequence, 1, visible[m])[:, 0, 1:count])
                sequence = block(sequence, visible[m])
                parts[m] = sequence[:, :count]
                exchanged.append(sequence[:, count:].flatten(1))
            shared = visible_mean(torch.stack(exchanged, 1), heard).unflatten(1, (-1, self.dim))
        parts = [self.norm(part) for part in parts]
        fused = visible_mean(torch.stack([part[:, 0] for part in parts], 1), heard)
        means = modality_means([part[:, 1:] for part in parts], seen) * present.unsqueeze(2)
        return TokenFusion(fused, means, modality_shares(received, tokens, present))


TOKEN_OPERATORS: dict[str, Callable[..., TokenOperator]] = {
    "joint": JointFusion,
    "cross": CrossFusion,
    "intra_inter": IntraInterFusion,
    "bottleneck": BottleneckFusion,
}
