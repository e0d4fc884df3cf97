"""The plain convolutional encoder of many papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import norm_layer, scaled
from mmfusion.networks.encoder import PyramidEncoder, check_last_map


class PlainEncoder(PyramidEncoder):
    """Blocks of convolution, normalization, ReLU and max pooling by 2: ``[B, C, *spatial]`` to ``[B, F]``, any size.

    The small CNN of Kong et al. (Biomedical Signal Processing and Control 75, 2022) and of many others. What the paper
    does not say is reconstructed: channels, normalization, and a pooling that rounds up, so that no image is too small
    and no voxel is lost. The pyramid has a level a block, behind its pooling.

    Args:
        in_channels: C.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        channels: of each block; as many blocks.
        kernel: odd number of voxels that a convolution sees along each axis.
        spatial_dims: 2 or 3.

    F is the last of ``channels``, times ``width``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        channels: Sequence[int] = (8, 16, 32, 64),
        kernel: int = 3,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise NetworkError(f"cnn option channels must be one positive number a block, found {list(channels)}")
        if kernel < 1 or kernel % 2 == 0:
            raise NetworkError(f"cnn option kernel must be odd, found {kernel}")
        convolution: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        pool: Any = nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d
        widths = [scaled(count, width) for count in channels]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution(before, after, kernel, padding=kernel // 2, bias=False),
                norm_layer(norm, after, spatial_dims),
                nn.ReLU(inplace=True),
                pool(2, ceil_mode=True),
            )
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.norm = norm
        self.pyramid_channels = tuple(widths)
        self.out_features = widths[-1]

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a size that cannot be normalized (NetworkError)."""
        check_last_map(size, self.norm, 2 ** (len(self.blocks) - 1))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        x = image
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return levels
