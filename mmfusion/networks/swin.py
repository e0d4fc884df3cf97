"""Swin: a transformer of shifted windows, with a pyramid (Liu et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.networks.blocks import TransformerBlock, check_counts, embedding, joined, scaled
from mmfusion.networks.encoder import PyramidEncoder
from mmfusion.networks.vit import PatchEmbedding, pad_to_multiple


def to_windows(maps: Tensor, window: list[int]) -> Tensor:
    """``[B, *spatial, C]`` cut into windows: ``[B * windows, voxels of a window, C]``, the last axis fastest."""
    axes = len(window)
    shape = [maps.shape[0]]
    for axis in range(axes):
        shape += [int(maps.shape[1 + axis]) // window[axis], window[axis]]
    order = [0] + [1 + 2 * i for i in range(axes)] + [2 + 2 * i for i in range(axes)] + [1 + 2 * axes]
    cut = maps.reshape(shape + [int(maps.shape[-1])]).permute(order)
    count, voxels = maps.shape[0], 1
    for axis in range(axes):
        count *= int(maps.shape[1 + axis]) // window[axis]
        voxels *= window[axis]
    return cut.reshape([count, voxels, int(maps.shape[-1])])


def from_windows(windows: Tensor, window: list[int], size: list[int]) -> Tensor:
    """The inverse of :func:`to_windows`: back to ``[B, *size, C]``."""
    axes, count = len(window), 1
    for axis in range(axes):
        count *= size[axis] // window[axis]
    shape = [windows.shape[0] // count]
    shape += [size[axis] // window[axis] for axis in range(axes)]
    order = [0]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    maps = windows.reshape(shape + window + [int(windows.shape[2])]).permute(order + [1 + 2 * axes])
    return maps.reshape([shape[0]] + size + [int(windows.shape[2])])


def rolled_by(maps: Tensor, shifts: list[int], dims: list[int]) -> Tensor:
    """``torch.roll``, in cuts: torch's own asks whether there are rows, which an exported program cannot know."""
    for shift, dim in zip(shifts, dims, strict=True):
        count = int(maps.shape[dim])
        first = (count - shift) % count
        if first > 0:
            maps = torch.cat([maps.narrow(dim, first, count - first), maps.narrow(dim, 0, first)], dim)
    return maps


class WindowBlock(nn.Module):
    """Transformer block within windows of the map ``[B, *spatial, dim]``, with a learned bias by relative position.

    Shifted windows start half a window later. The map is rolled, so that their number stays the same, and voxels that
    come from different ends of an axis do not see each other. A map that is no multiple of the window is padded, and
    the padding is not seen. A map that is smaller than the window is one window along that axis, without a shift.
    """

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, window: int, shifted: bool, dropout: float = 0.0, axes: int = 3
    ) -> None:
        super().__init__()
        self.block = TransformerBlock(dim, heads, mlp_dim, dropout)
        self.bias = embedding((2 * window - 1) ** axes, heads)
        self.window = window
        self.shift = window // 2 if shifted else 0

    def forward(self, maps: Tensor) -> Tensor:
        axes = maps.dim() - 2
        size = [int(maps.shape[1 + axis]) for axis in range(axes)]
        window = [min(n, self.window) for n in size]
        shift = [self.shift if n > self.window else 0 for n in size]
        whole = [(n + w - 1) // w * w for n, w in zip(size, window, strict=True)]
        pad = [0, 0]
        for axis in range(axes - 1, -1, -1):
            pad += [0, whole[axis] - size[axis]]
        dims = [1 + axis for axis in range(axes)]
        rolled = rolled_by(F.pad(maps, pad), [-s for s in shift], dims)
        bias = self.relative(window, maps.device) + self.apart(size, whole, window, shift, maps.device)
        bias = joined(bias.expand([maps.shape[0]] + list(bias.shape))).to(maps.dtype)
        read = from_windows(self.block(to_windows(rolled, window), None, bias), window, whole)
        read = rolled_by(read, shift, dims)
        for axis in range(axes):
            read = read.narrow(1 + axis, 0, size[axis])
        # attention over no rows gives its bias no gradient, which distributed training needs from every parameter
        return read + 0 * self.bias.sum()

    def relative(self, window: list[int], device: torch.device) -> Tensor:
        """The bias of each pair of voxels of a window: ``[heads, n, n]``."""
        places = [torch.arange(n, device=device) for n in window]
        grid = torch.stack(torch.meshgrid(places, indexing="ij"), -1).flatten(0, -2)  # coordinates [n, axes]
        offset = grid[:, None] - grid[None] + self.window - 1  # [n, n, axes], from 0
        index = torch.zeros(offset.shape[:2], dtype=torch.long, device=device)
        for axis in range(len(window)):
            index = index * (2 * self.window - 1) + offset[:, :, axis]
        return self.bias[index].permute(2, 0, 1)

    def apart(
        self,
        size: list[int],
        whole: list[int],
        window: list[int],
        shift: list[int],
        device: torch.device,
    ) -> Tensor:
        """0 where two voxels of a window may see each other, else minus infinity: ``[windows, 1, n, n]``."""
        part = torch.zeros([1] + whole + [1], device=device)
        for axis in range(len(size)):
            place = torch.arange(whole[axis], device=device) + shift[axis]
            padding = place % whole[axis] >= size[axis]
            label = (place >= whole[axis]) + 2 * padding  # came round, padding: each its own part
            shape = [1] * part.dim()
            shape[1 + axis] = whole[axis]
            part = 4 * part + label.reshape(shape)
        part = to_windows(part, window)  # [windows, n, 1]
        other = part != part.transpose(1, 2)
        return torch.zeros(other.shape, device=device).masked_fill(other, float("-inf")).unsqueeze(1)


class PatchMerging(nn.Module):
    """Each cube of 2 voxels an axis to one, of twice the channels: ``[B, *spatial, dim]``, any size, padded if odd."""

    def __init__(self, dim: int, axes: int = 3) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2**axes * dim)
        self.reduce = nn.Linear(2**axes * dim, 2 * dim, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        even = pad_to_multiple(maps.movedim(maps.dim() - 1, 1), 2).movedim(1, maps.dim() - 1)
        axes = maps.dim() - 2
        size = [int(even.shape[1 + axis]) // 2 for axis in range(axes)]
        cubes = to_windows(even, [2] * axes)
        cubes = cubes.reshape([cubes.shape[0], int(cubes.shape[1]) * int(cubes.shape[2])])
        return self.reduce(self.norm(cubes)).reshape([maps.shape[0]] + size + [2 * int(maps.shape[-1])])


class SwinEncoder(PyramidEncoder):
    """Swin transformer in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, for any size.

    Patch embedding, then stages of window blocks of which every second one is shifted, with patch merging between;
    channels and heads double from stage to stage. F is ``dim * width * 2 ** (stages - 1)``. The levels of the pyramid
    are the stages' maps, each through a LayerNorm (with weights only the last, which all views read).

    From the paper: all of that; its Swin-T is 2D with ``dim=96, depths=(2, 2, 6, 2), window=7``. The defaults are made
    for volumes of some 32 to 96 voxels. Not taken over: stochastic depth, and the LayerNorm behind the patch
    embedding. The paper's code pads maps with zeros that are attended to; here padding is not seen. MONAI's Swin
    (``monai.networks.nets.swin_unetr``) is the same function on maps that need no padding, but needs einops.

    Args:
        in_channels: C.
        width: factor on all channels.
        norm: not used: a transformer has LayerNorm, which does not depend on the batch.
        patch: voxels of a patch along each axis.
        dim: channels of the first stage (rounded to a multiple of ``heads``).
        depths: blocks of each stage.
        heads: attention heads of the first stage.
        window: voxels of a window along each axis.
        mlp_ratio: hidden width of the MLP over that of its input.
        dropout: of the transformer blocks.
        spatial_dims: 2 or 3.

    Raises:
        NetworkError: a number is below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        patch: int = 4,
        dim: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: int = 3,
        window: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        check_counts("swin", patch=patch, stages=len(depths), heads=heads, window=window, mlp_ratio=mlp_ratio)
        dim = scaled(dim, width, heads)
        self.embed = PatchEmbedding(in_channels, dim, patch, spatial_dims)
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            check_counts("swin", depths=depth)
            wide, many = dim * 2**stage, heads * 2**stage
            blocks = [
                WindowBlock(wide, many, mlp_ratio * wide, window, i % 2 == 1, dropout, spatial_dims)
                for i in range(depth)
            ]
            merging = [PatchMerging(wide // 2, spatial_dims)] if stage else []
            self.stages.append(nn.Sequential(*merging, *blocks))
        self.pyramid_channels = tuple(dim * 2**stage for stage in range(len(depths)))
        self.out_features = self.pyramid_channels[-1]
        self.last_norm = nn.LayerNorm(self.out_features)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        maps = self.embed(image).movedim(1, image.dim() - 1)
        levels: list[Tensor] = []
        for stage in self.stages:
            maps = stage(maps)
            levels.append(F.layer_norm(maps, [int(maps.shape[maps.dim() - 1])]).movedim(maps.dim() - 1, 1))
        levels[-1] = self.last_norm(maps).movedim(maps.dim() - 1, 1)
        return levels
