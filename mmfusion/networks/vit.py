"""Vision transformer: patches of the image as tokens (Dosovitskiy et al., ICLR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.networks.blocks import TransformerBlock, check_counts, embedding, scaled, voxels_last
from mmfusion.networks.encoder import Encoder


def pad_to_multiple(maps: Tensor, step: int) -> Tensor:
    """``[B, C, *spatial]`` with zeros behind the end of each axis, up to a multiple of ``step``."""
    pad: list[int] = []
    for axis in range(maps.dim() - 1, 1, -1):
        pad += [0, -maps.shape[axis] % step]
    return F.pad(maps, pad)


class PatchEmbedding(nn.Module):
    """Patches that do not overlap, each by one linear layer: ``[B, C, *spatial]`` to ``[B, dim, *patches]``.

    An image that is no multiple of the patch is padded with zeros behind its end: any size is taken, none is cropped.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.project = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(in_channels, dim, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        return self.project(pad_to_multiple(image, self.patch))


class ViTEncoder(Encoder):
    """ViT in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, for any size.

    Patch embedding, a class token in front, learned positions, pre-norm transformer blocks, LayerNorm; the class token
    is the vector, the others are the tokens. F is ``dim * width``.

    From the paper: all of that. Its ViT-Base is 2D with ``patch=16, dim=768, layers=12, heads=12, mlp_dim=3072,
    positions=14``. The defaults here are smaller: 64 voxels along an axis are 8 patches. The paper interpolates its
    positions when it fine-tunes at another size; here they are a grid of ``positions`` along each axis that is always
    interpolated linearly to the patches of the image, so that weights load and run whatever the size.

    Args:
        in_channels: C.
        width: factor on the widths of tokens and MLP.
        norm: not used: a transformer has LayerNorm, which does not depend on the batch.
        patch: voxels of a patch along each axis.
        dim: width of a token (rounded to a multiple of ``heads``).
        layers, heads, mlp_dim, dropout: of the transformer.
        positions: learned positions along each axis.
        spatial_dims: 2 or 3.

    Raises:
        NetworkError: a number is below 1.
    """

    views = ("vector", "tokens")

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        patch: int = 8,
        dim: int = 192,
        layers: int = 6,
        heads: int = 6,
        mlp_dim: int = 768,
        dropout: float = 0.0,
        positions: int = 8,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        check_counts("vit", patch=patch, layers=layers, heads=heads, positions=positions)
        dim = scaled(dim, width, heads)
        self.embed = PatchEmbedding(in_channels, dim, patch, spatial_dims)
        self.class_token = embedding(1, 1, dim)  # its position is a part of it
        self.position = embedding(1, dim, *[positions] * spatial_dims)
        self.drop = nn.Dropout(dropout)
        self.transformer = nn.Sequential(
            *(TransformerBlock(dim, heads, scaled(mlp_dim, width), dropout) for _ in range(layers)),
            nn.LayerNorm(dim),
        )
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.out_features = dim

    def read(self, image: Tensor) -> Tensor:
        """The transformer's output ``[B, 1 + patches, F]``, the class token first."""
        patches = self.embed(image)
        place = F.interpolate(self.position, size=patches.shape[2:], mode=self.mode, align_corners=False)
        tokens = voxels_last(patches + place)
        first = self.class_token.expand(tokens.shape[0], 1, tokens.shape[2])
        return self.transformer(self.drop(torch.cat([first, tokens], 1)))

    def forward(self, image: Tensor) -> Tensor:
        return self.read(image)[:, 0]

    def tokens(self, image: Tensor) -> Tensor:
        """One token a patch, ``[B, patches, F]``, the last axis fastest."""
        return self.read(image)[:, 1:]
