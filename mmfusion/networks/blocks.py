"""The small parts that every network here shares: channel widths, normalization, MLP and transformer block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.options import unknown

NORMS = ("group", "batch", "instance")


def scaled(channels: int, width: float) -> int:
    """``channels * width``, as a multiple of 4 and at least 4, so that groups always divide it."""
    return max(4, 4 * round(channels * width / 4))


def groups_of(channels: int) -> int:
    """Groups for GroupNorm: at most 8, a divisor of ``channels``, and with at least 4 channels each.

    A group of one channel could not be normalized where deep layers see a single voxel of a single case.
    """
    return next(g for g in (8, 7, 6, 5, 4, 3, 2, 1) if channels % g == 0 and (channels >= 4 * g or g == 1))


def norm_layer(norm: str, channels: int, spatial_dims: int = 3) -> nn.Module:
    """A normalization layer for maps ``[B, channels, *spatial]``.

    Args:
        norm: ``group`` (Wu & He, ECCV 2018: independent of the batch), ``batch`` or ``instance``.
        channels: channels of the map.
        spatial_dims: 2 or 3.

    Raises:
        NetworkError: ``norm`` is none of these.
    """
    if norm == "group":
        return nn.GroupNorm(groups_of(channels), channels)
    if norm == "batch":
        return (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(channels)
    if norm == "instance":
        return nn.GroupNorm(channels, channels)  # the same function; torch's InstanceNorm fails on an empty batch
    raise NetworkError(unknown("norm", norm, NORMS))


def replace_batch_norm(module: nn.Module, norm: str) -> None:
    """Turn every BatchNorm inside ``module`` into ``norm``, in place.

    MONAI's own ``norm`` argument is not used because its ResNet (1.6.1) hands it to the first layer only and
    keeps BatchNorm in every residual block, and its GroupNorm has one group count for all layers.

    Raises:
        NetworkError: ``norm`` is not the name of a normalization.
    """
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
            dims = 2 if isinstance(child, nn.BatchNorm2d) else 3
            setattr(module, name, norm_layer(norm, child.num_features, dims))
        else:
            replace_batch_norm(child, norm)


class Standardize(nn.Module):
    """Each feature to mean 0 and deviation 1 over the cases: vectors ``[B, F]`` to ``[B, F]``.

    BatchNorm (Ioffe & Szegedy, ICML 2015) of the encoded vectors, without scale and shift, which the layer behind
    has. Behind GroupNorm all heads give nearly the same vector, and what tells the classes apart is a small part of
    it; without this layer training hardly starts. It also makes 0, which stands for an absent modality, the mean.
    In training a batch of one row, which missing modalities may leave, is read with the running statistics.
    """

    def __init__(self, features: int, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, eps, momentum, affine=False)

    def forward(self, vectors: Tensor) -> Tensor:
        if vectors.shape[0] > 1:
            return self.norm(vectors)
        return F.batch_norm(vectors, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)


class MLP(nn.Sequential):
    """Linear, activation, dropout, Linear: ``[..., in_features]`` to ``[..., out_features]``."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        activation: type[nn.Module] = nn.GELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            nn.Linear(in_features, hidden), activation(), nn.Dropout(dropout), nn.Linear(hidden, out_features)
        )


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: tokens ``[B, N, dim]`` to ``[B, N, dim]`` (Xiong et al., ICML 2020).

    MONAI's block needs einops and, without cross-attention, holds parameters that never get a gradient.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        dropout: of the attention weights and of both residual branches.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, dim / heads]
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped)
        tokens = tokens + self.drop(self.project(mixed.transpose(1, 2).reshape(batch, count, dim)))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))


def embedding(*shape: int) -> nn.Parameter:
    """A learned table of embeddings, drawn from a truncated normal of deviation 0.02 as in ViT and BERT."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))
