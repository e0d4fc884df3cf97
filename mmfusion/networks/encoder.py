"""What an encoder is: one image to a vector, to tokens, or to a pyramid of maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import axis_positions, voxels_last


class Encoder(nn.Module):
    """Base of all encoders: one image ``[B, C, *spatial]`` to one vector ``[B, F]``; B may be 0.

    Attributes:
        out_features: F, the width of the vector and of each token.
        views: what it can give: ``vector`` (:meth:`forward`), ``tokens`` (:meth:`tokens`), ``pyramid``
            (:meth:`pyramid`).
        pyramid_channels: C_l of each level of the pyramid, finest first; empty without a pyramid.
    """

    out_features: int = 0
    views: tuple[str, ...] = ("vector",)
    pyramid_channels: tuple[int, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        """Vectors ``[B, F]``."""
        raise NotImplementedError

    def tokens(self, image: Tensor) -> Tensor:
        """Tokens ``[B, N, F]``, which know their place in the image."""
        raise NotImplementedError

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Maps ``[B, C_l, *spatial_l]``, finest first."""
        raise NotImplementedError

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse an image of that many voxels that this encoder cannot take, before any work (NetworkError)."""


class PyramidEncoder(Encoder):
    """Base of the convolutional encoders: a pyramid; tokens are the last map's voxels, the vector is their mean.

    A token knows its place by the sine and cosine of its coordinates, added to it (see ``blocks.axis_positions``).
    """

    views = ("vector", "tokens", "pyramid")

    def forward(self, image: Tensor) -> Tensor:
        return voxels_last(self.pyramid(image)[-1]).mean(1)

    def tokens(self, image: Tensor) -> Tensor:
        last = self.pyramid(image)[-1]
        return voxels_last(last) + axis_positions(last)


def size_text(size: Sequence[int]) -> str:
    """Voxels along each axis, for messages."""
    return " x ".join(str(n) for n in size)


def check_last_map(size: Sequence[int], norm: str, largest: int) -> None:
    """Refuse an image whose last map has one voxel, where only GroupNorm has a deviation to divide by.

    Args:
        size: voxels along each axis.
        norm: name of the normalization.
        largest: the most voxels along an axis of which one is left.

    Raises:
        NetworkError: the image is too small.
    """
    if norm != "group" and max(size) <= largest:
        raise NetworkError(
            f"norm '{norm}' needs more than {largest} voxels along at least one axis, found {size_text(size)}; "
            "use norm 'group', a finer grid or a larger field of view"
        )
