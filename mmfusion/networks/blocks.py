"""The small parts that every network here shares: channel widths, normalization, MLP and transformer block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.options import unknown

NORMS = ("group", "batch", "instance")


def scaled(channels: int, width: float, multiple: int = 4) -> int:
    """``channels * width`` as a ``multiple``, at least one: of 4 so that groups divide it, of the heads for tokens."""
    return multiple * max(1, round(channels * width / multiple))


def at_least_one(what: str, number: int) -> int:
    """``number``, or NetworkError below 1."""
    if number < 1:
        raise NetworkError(f"{what} must be at least 1, found {number}")
    return number


def check_counts(owner: str, **counts: int) -> None:
    """Refuse an option of an encoder that must be at least 1 and is not (NetworkError)."""
    for name, number in counts.items():
        at_least_one(f"{owner} option {name}", number)


def groups_of(channels: int) -> int:
    """Groups for GroupNorm: at most 8, a divisor of ``channels``, and with at least 4 channels each.

    A group of one channel could not be normalized where deep layers see a single voxel of a single case.
    """
    return next(g for g in (8, 7, 6, 5, 4, 3, 2, 1) if channels % g == 0 and (channels >= 4 * g or g == 1))


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He, ECCV 2018) that ONNX takes with no rows at all, which an absent modality leaves.

    While a trace or program is taken the formula is spelled out with sizes that are known; torch's own form asks how
    many rows there are, and the ONNX exporter's has a size that onnxruntime cannot find where there is none.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and not torch.compiler.is_exporting():
            return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        size = [input.shape[0]] + fixed_sizes(input)
        grouped = input.reshape([size[0], self.num_groups, self.num_channels // self.num_groups] + size[2:])
        dims = list(range(2, grouped.dim()))
        centered = grouped - grouped.mean(dims, keepdim=True)
        scaled = centered * torch.rsqrt(centered.square().mean(dims, keepdim=True) + self.eps)
        channels = [1, self.num_channels] + [1] * (input.dim() - 2)
        return scaled.reshape(size) * self.weight.reshape(channels) + self.bias.reshape(channels)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm (Ioffe & Szegedy, ICML 2015) that a program of torch.export takes with no rows at all.

    torch's own asks how many rows there are, which an export cannot know: there the formula is spelled out.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training or not torch.compiler.is_exporting():
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        shape = [1, self.num_features] + [1] * (input.dim() - 2)
        return input * factor.reshape(shape) + (self.bias - self.running_mean * factor).reshape(shape)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """BatchNorm of maps ``[B, C, H, W]``."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """BatchNorm of maps ``[B, C, D, H, W]``."""


def fixed_sizes(maps: Tensor) -> list[int]:
    """All sizes but the first, as plain numbers: ONNX can reshape no rows, but not to a size that it has to find."""
    return [int(n) for n in maps.shape[1:]]


def voxels_last(maps: Tensor) -> Tensor:
    """``[B, C, *spatial]`` to positions ``[B, N, C]``, the last axis fastest."""
    count = 1
    for n in fixed_sizes(maps)[1:]:
        count *= n
    return maps.reshape([maps.shape[0], maps.shape[1], count]).transpose(1, 2)


def joined(maps: Tensor) -> Tensor:
    """The first two axes as one: ``[A, B, ...]`` to ``[A * B, ...]``."""
    return maps.reshape([maps.shape[0] * maps.shape[1]] + fixed_sizes(maps)[1:])


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
        return GroupNorm(groups_of(channels), channels)
    if norm == "batch":
        return (BatchNorm2d if spatial_dims == 2 else BatchNorm3d)(channels)
    if norm == "instance":
        return GroupNorm(channels, channels)  # the same function; torch's InstanceNorm fails on an empty batch
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
            layer = norm_layer(norm, child.num_features, 2 if isinstance(child, nn.BatchNorm2d) else 3)
            if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)):
                layer.eps, layer.momentum = child.eps, child.momentum  # EfficientNet has its own
            setattr(module, name, layer)
        else:
            replace_batch_norm(child, norm)


def counted(present: Tensor) -> Tensor:
    """``present [B, M]``, or all modalities in a row that has none, so that no softmax runs over an empty set (NaN).

    What is counted then is the zeros that stand for absent modalities.
    """
    return present | ~present.any(1, keepdim=True)


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
        if self.training and vectors.shape[0] > 1:
            return self.norm(vectors)
        # spelled out: torch's own layer asks how many rows there are, which torch.export cannot know
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return (vectors - mean) * torch.rsqrt(variance + self.norm.eps)


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
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, dropout=dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, visible: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``[B, N, dim]``; where bool ``visible [B, N]`` is False a token is not attended to (each row needs one).

        ``bias [B, heads, N, N]``, in place of ``visible``, is added to the scores of the attention.
        """
        batch, count, dim = tokens.shape
        mask = bias
        if visible is not None:
            mask = visible[:, None, None, :]
        qkv = self.qkv(self.norm1(tokens)).reshape(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, dim / heads]
        dropped = self.drop.p if self.drop.training else 0.0  # the module's flag: Monte Carlo dropout sets it alone
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped)
        tokens = tokens + self.drop(self.project(mixed.transpose(1, 2).reshape(batch, count, dim)))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))

    def attention(self, tokens: Tensor, queries: int, visible: Tensor | None = None) -> Tensor:
        """What the first ``queries`` tokens attend to: ``[B, queries, N]``, the mean over heads; each row sums to 1."""
        width = tokens.shape[2]
        qkv = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, width // self.heads))
        q, k = qkv[:, :queries, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
        scores = q @ k.transpose(2, 3) / float(q.shape[3]) ** 0.5
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
        return torch.softmax(scores, 3).mean(1)


def embedding(*shape: int) -> nn.Parameter:
    """A learned table of embeddings, drawn from a truncated normal of deviation 0.02 as in ViT and BERT."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def axis_positions(maps: Tensor) -> Tensor:
    """Fixed positions of the voxels of ``maps [B, C, *spatial]``, as ``[1, N, C]`` (N voxels, last axis fastest).

    Sine and cosine of each coordinate at geometric frequencies (Vaswani et al., NeurIPS 2017), an equal share of the
    channels for each axis; channels that are left over stay 0, all of them (``[1, 1, 1]``) where there are too few.
    Coordinates are counted in voxels of the map.
    """
    axes = maps.dim() - 2
    channels = int(maps.shape[1])
    pairs = channels // (2 * axes)
    if pairs == 0:
        return torch.zeros([1, 1, 1], device=maps.device, dtype=maps.dtype)
    frequency = torch.pow(10000.0, -torch.arange(pairs, device=maps.device, dtype=torch.float32) / max(pairs, 1))
    parts: list[Tensor] = []
    for axis in range(axes):
        count = maps.shape[2 + axis]
        angle = torch.arange(count, device=maps.device, dtype=torch.float32).unsqueeze(1) * frequency  # [n, pairs]
        along = torch.cat([torch.sin(angle), torch.cos(angle)], 1)  # [n, 2 * pairs]
        shape = [1] * axes + [2 * pairs]
        shape[axis] = count
        full = [maps.shape[2 + i] for i in range(axes)] + [2 * pairs]
        parts.append(along.reshape(shape).expand(full))
    table = torch.cat(parts, -1).flatten(0, axes - 1)  # [N, 2 * pairs * axes]
    return F.pad(table, [0, channels - table.shape[1]]).unsqueeze(0).to(maps.dtype)


class MaskedAttention(nn.Module):
    """Multi-head attention of queries over a context of which a part may be hidden (Vaswani et al., NeurIPS 2017).

    Where nothing is visible the result is 0: not a number of a softmax over nothing, and no voxel's influence.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the attention weights, in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)  # its training flag decides, so that Monte Carlo dropout can switch it alone

    def split(self, tokens: Tensor) -> Tensor:
        """``[B, N, dim]`` to ``[B, heads, N, dim / heads]``."""
        return tokens.unflatten(2, (self.heads, tokens.shape[2] // self.heads)).transpose(1, 2)

    def forward(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """``[B, Nq, dim]`` queries, ``[B, Nk, dim]`` context and bool ``visible [B, Nk]`` to ``[B, Nq, dim]``."""
        keys, values = self.key_value(context).chunk(2, 2)
        some = visible.any(1)[:, None, None]
        mask = counted(visible)[:, None, None, :]
        dropped = self.drop.p if self.drop.training else 0.0
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(queries)), self.split(keys), self.split(values), attn_mask=mask, dropout_p=dropped
        )
        return self.project(mixed.transpose(1, 2).flatten(2)) * some

    def weights(self, queries: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """The attention ``[B, Nq, Nk]``, mean over heads; rows sum to 1, or are 0 where nothing is visible."""
        keys = self.split(self.key_value(context).chunk(2, 2)[0])
        query = self.split(self.query(queries))
        scores = query @ keys.transpose(2, 3) / float(query.shape[3]) ** 0.5
        mask = counted(visible)[:, None, None, :]
        return torch.softmax(scores.masked_fill(~mask, float("-inf")), 3).mean(1) * visible.any(1)[:, None, None]
