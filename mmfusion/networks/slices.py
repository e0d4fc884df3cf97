"""Slices of a volume as images: cutting, and the encoder of one plane's slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import RESNET_BLOCKS, ResNetEncoder
from mmfusion.networks.blocks import axis_positions, check_counts, joined
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.vit import ViTEncoder
from mmfusion.options import unknown

PLANES = {"coronal": 3, "sagittal": 2, "axial": 4}  # the axis of [B, C, D, H, W] to cut


def cut_slices(volume: Tensor, axis: int, stride: int, chunk: int) -> list[Tensor]:
    """``[B, C, D, H, W]`` to its slices across ``axis``, up to ``chunk`` at a time: ``[B, n, C, height, width]``.

    Every ``stride``-th slice, starting so that they lie centered. The parts are views of the volume.
    """
    slices = volume.movedim(axis, 1)
    first = int((slices.shape[1] - 1) % stride // 2)
    slices = slices[:, first::stride]
    count = int(slices.shape[1])
    chunk = -(-count // -(-count // chunk))  # as many parts, of about the same size: BatchNorm needs no single slice
    return [slices[:, start : start + chunk] for start in range(0, count, chunk)]


class SliceEncoder(Encoder):
    """A 2D encoder over the slices of one plane: ``[B, C, D, H, W]`` to ``[B, F]``, the mean over the slices.

    ``vector = mean_s encoder(slice_s)``; the tokens are one for each slice, ``encoder(slice_s)`` plus the sine and
    cosine of s (``blocks.axis_positions``). F is that of the 2D encoder.

    Lyu et al. (PETRA 2022) classify the slices of one plane by a ViT and take the mean of the slices' predictions.
    Here the mean is of the vectors, which a linear classifier turns into the mean of the slices' logits. Reconstructed:
    all slices rather than chosen ones. Their pretraining on natural images is not part of this.

    Args:
        in_channels: C.
        width: factor on the channels of the 2D encoder.
        norm: normalization of a ResNet: ``group``, ``batch`` or ``instance``.
        plane: ``axial``, ``coronal`` or ``sagittal``, of a volume whose axes run right, front, head (RAS).
        cnn: the 2D encoder: a ResNet, or ``vit``.
        stride: take every n-th slice, starting so that they lie centered.
        chunk: slices of each case that pass the 2D encoder at once; bounds the memory of inference. In training,
            BatchNorm takes its statistics over a chunk.

    Raises:
        NetworkError: the plane or the 2D encoder is unknown, or a number is below 1.
    """

    views = ("vector", "tokens")

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        plane: str = "axial",
        cnn: str = "resnet18",
        stride: int = 1,
        chunk: int = 32,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        assert spatial_dims == 3
        check_counts("slices", stride=stride, chunk=chunk)
        encoders = (*RESNET_BLOCKS, "vit")
        if plane not in PLANES:
            raise NetworkError(unknown("slices option plane", plane, PLANES))
        if cnn not in encoders:
            raise NetworkError(unknown("slices option cnn", cnn, encoders))
        self.slice_encoder: Encoder
        if cnn == "vit":
            self.slice_encoder = ViTEncoder(in_channels, width, norm, spatial_dims=2)
        else:
            self.slice_encoder = ResNetEncoder(cnn, in_channels, width, norm, spatial_dims=2)
        self.axis = PLANES[plane]
        self.stride = stride
        self.chunk = chunk
        self.out_features = self.slice_encoder.out_features

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse slices that the 2D encoder cannot take (NetworkError)."""
        self.slice_encoder.check_size([n for i, n in enumerate(size, start=2) if i != self.axis])

    def slice_vectors(self, image: Tensor) -> Tensor:
        """Each slice by the 2D encoder: ``[B, slices, F]``."""
        vectors: list[Tensor] = []
        for chunk in cut_slices(image, self.axis, self.stride, self.chunk):
            encoded = self.slice_encoder(joined(chunk))
            vectors.append(encoded.reshape(chunk.shape[0], chunk.shape[1], encoded.shape[1]))
        return torch.cat(vectors, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.slice_vectors(image).mean(1)

    def tokens(self, image: Tensor) -> Tensor:
        """One token a slice, ``[B, slices, F]``."""
        vectors = self.slice_vectors(image)
        return vectors + axis_positions(vectors.transpose(1, 2))
