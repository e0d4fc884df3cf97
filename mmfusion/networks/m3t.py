"""M3T: slices of three planes as the tokens of one transformer (Jang & Hwang, CVPR 2022, pp. 20686-20697)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import RESNET_BLOCKS, ResNetEncoder
from mmfusion.networks.blocks import MLP, TransformerBlock, check_counts, embedding, joined, norm_layer, scaled
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.slices import PLANES, cut_slices
from mmfusion.options import unknown


class MultiPlaneSliceEncoder(Encoder):
    """Multi-plane multi-slice transformer: ``[B, C, D, H, W]`` to ``[B, F]``, for any size of volume.

    A 3D CNN at full resolution; a 2D CNN, shared by the three planes, turns every coronal, sagittal and axial
    slice of its map into a vector; a projection makes it a token; a transformer reads
    ``[cls, coronal slices, sep, sagittal slices, sep, axial slices, sep]``, which are D + H + W + 4 tokens, and the
    class token is the output. "Multi" counts planes and slices: of several modalities each gets such an encoder.

    The defaults are the paper's: two 5 x 5 x 5 convolutions of 32 channels, ResNet-50 with global average pooling
    (2048), projection 2048-512-256, 8 layers, 8 heads, MLP 768, BatchNorm; 128 x 128 x 128 voxels give 388 tokens.

    Provenance: written from the paper's abstract, from third-party descriptions that quote its text, and from
    third-party code, without the authors' code. Reconstructed: the way from 32 channels to ResNet-50 (its first
    convolution takes 32 channels, so ImageNet weights of that one layer do not fit), one separator shared by the
    planes, and GELU in the transformer.
    The paper states 29.12 M parameters. This module has 30.28 M (one input channel); with ``mlp_dim=512`` and a
    first convolution of 3 channels the same parts count 29.14 M, the nearest of the variants, which suggests that the
    768 quoted as "hidden and MLP size" is the width of query, key and value together (3 x 256).

    Position embeddings are learned for ``positions`` places along each axis of the volume and interpolated to its
    slices, rather than sized at construction: weights then load and run whatever the size, and a
    token's embedding says where along the axis the slice lies. At 128 slices nothing is interpolated.

    Args:
        in_channels: C.
        width: factor on all channels and token widths.
        norm: ``batch`` (the paper's), ``group`` or ``instance``.
        stem_channels, stem_kernel: of the two 3D convolutions.
        cnn: 2D CNN, ``resnet50``, ``resnet18`` or ``resnet10``.
        cnn_width: factor on the channels of the 2D CNN.
        hidden: hidden width of the projection.
        dim: width of a token (rounded to a multiple of ``heads``).
        layers, heads, mlp_dim, dropout: of the transformer.
        positions: learned positions along each axis.
        slice_stride: take every n-th slice of each plane, starting so that they lie centered.
        slice_chunk: slices of each case that pass the 2D CNN at once in training, where BatchNorm takes its statistics
            over a chunk; a chunk of all slices of a plane is the paper's. In evaluation, where the answer does not
            depend on it, at most 16: what fits the CPU's caches is computed faster.
        checkpoint: recompute the 2D CNN chunk by chunk in the backward pass, which bounds the memory of training by
            the chunk, too. Nothing else changes: BatchNorm sees the same chunks and updates its running statistics
            once.

    ``layers=0`` leaves the transformer out, but for its last normalization: the tokens then wait for one transformer
    over several modalities, and the vector is their mean.

    F is ``dim * width``.

    Raises:
        NetworkError: the 2D CNN is unknown, or a number is out of range.
    """

    views = ("vector", "tokens")

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "batch",
        *,
        stem_channels: int = 32,
        stem_kernel: int = 5,
        cnn: str = "resnet50",
        cnn_width: float = 1.0,
        hidden: int = 512,
        dim: int = 256,
        layers: int = 8,
        heads: int = 8,
        mlp_dim: int = 768,
        dropout: float = 0.0,
        positions: int = 128,
        slice_stride: int = 1,
        slice_chunk: int = 32,
        checkpoint: bool = False,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        assert spatial_dims == 3
        check_counts("m3t", heads=heads, positions=positions, slice_stride=slice_stride, slice_chunk=slice_chunk)
        if layers < 0:
            raise NetworkError(f"m3t option layers must be at least 0, found {layers}")
        if stem_kernel % 2 == 0:
            raise NetworkError(f"m3t option stem_kernel must be odd, found {stem_kernel}")
        if cnn not in RESNET_BLOCKS:
            raise NetworkError(unknown("m3t option cnn", cnn, RESNET_BLOCKS))
        stem = scaled(stem_channels, width)
        dim = scaled(dim, width, heads)
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, stem, stem_kernel, padding=stem_kernel // 2),
            norm_layer(norm, stem),
            nn.ReLU(inplace=True),
            nn.Conv3d(stem, stem, stem_kernel, padding=stem_kernel // 2),
            norm_layer(norm, stem),
            nn.ReLU(inplace=True),
        )
        self.slice_cnn = ResNetEncoder(cnn, stem, width * cnn_width, norm, spatial_dims=2)
        self.slice_features = self.slice_cnn.out_features
        self.project = MLP(self.slice_features, scaled(hidden, width), dim, activation=nn.ReLU)
        self.special = embedding(2, dim)  # class token, separator
        self.special_position = embedding(4, dim)  # of the class token and of the three separators
        self.position = embedding(3, dim, positions)
        self.plane = embedding(3, dim)
        self.transformer = nn.Sequential(
            *(TransformerBlock(dim, heads, scaled(mlp_dim, width), dropout) for _ in range(layers)),
            nn.LayerNorm(dim),
        )
        self.layers = layers
        self.norm = norm
        self.slice_stride = slice_stride
        self.slice_chunk = slice_chunk
        self.checkpoint = checkpoint
        self.out_features = dim

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse slices that cannot be normalized one by one (NetworkError)."""
        if self.norm == "instance":
            for axis in PLANES.values():
                self.slice_cnn.check_size([n for i, n in enumerate(size, start=2) if i != axis])

    def slice_vectors(self, features: Tensor, axis: int) -> Tensor:
        """Slices of the stem's map ``[B, C, D, H, W]`` across ``axis`` to vectors ``[B, slices, F of the 2D CNN]``."""
        count = self.slice_chunk if self.training else min(self.slice_chunk, 16)
        chunks = cut_slices(features, axis, self.slice_stride, count)
        return torch.cat([self.encode_slices(chunk) for chunk in chunks], 1)

    def encode_slices(self, slices: Tensor) -> Tensor:
        """The 2D CNN on ``[B, slices, C, height, width]``, recomputed in the backward pass if so chosen."""
        if self.checkpoint and self.training:
            # slices is a view: it is copied inside, so that between the passes nothing but the stem's map is kept
            keep = partial(_forward_and_again, self.slice_cnn)
            return checkpoint(self.read_slices, slices, use_reentrant=False, context_fn=keep)
        return self.read_slices(slices)

    def read_slices(self, slices: Tensor) -> Tensor:
        """``[B, slices, C, height, width]`` to ``[B, slices, F of the 2D CNN]``."""
        encoded = self.slice_cnn(joined(slices))
        return encoded.reshape([slices.shape[0], slices.shape[1], self.slice_features])

    def sequence(self, planes: list[Tensor]) -> Tensor:
        """Vectors of the coronal, sagittal and axial slices to tokens ``[B, slices + 4, F]`` with embeddings."""
        batch = planes[0].shape[0]
        special = [self.special[0], self.special[1], self.special[1], self.special[1]]
        marks = [(token + self.special_position[i]).expand(batch, 1, -1) for i, token in enumerate(special)]
        parts = [marks[0] + self.plane[0]]
        for i, vectors in enumerate(planes):
            place = F.interpolate(self.position[i : i + 1], size=vectors.shape[1], mode="linear", align_corners=False)
            parts.append(self.project(vectors) + place.transpose(1, 2) + self.plane[i])
            parts.append(marks[i + 1] + self.plane[i])
        return torch.cat(parts, 1)

    def read(self, image: Tensor) -> Tensor:
        """The tokens of :meth:`sequence` behind the transformer: ``[B, slices + 4, F]``."""
        features = self.stem(image)
        return self.transformer(self.sequence([self.slice_vectors(features, axis) for axis in (3, 2, 4)]))

    def forward(self, image: Tensor) -> Tensor:
        read = self.read(image)
        return read[:, 0] if self.layers else read.mean(1)

    def tokens(self, image: Tensor) -> Tensor:
        """All tokens but the class token, ``[B, slices + 3, F]``; without a transformer that one, too."""
        read = self.read(image)
        return read[:, 1:] if self.layers else read


def _forward_and_again(module: nn.Module) -> tuple[Any, Any]:
    """What surrounds the forward pass of a checkpoint, and its repetition: BatchNorm must count the batch once."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm inside ``module`` normalizes by the batch as before, but leaves its running statistics alone."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
