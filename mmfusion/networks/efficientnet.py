"""EfficientNet encoder on MONAI's network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from monai.networks.nets.efficientnet import EfficientNet
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import replace_batch_norm
from mmfusion.networks.encoder import PyramidEncoder, check_last_map

_STAGES = [  # Table 1 of the paper: repeats, kernel, stride, expansion, channels in and out, share of squeezed channels
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
]


class SamePadding(nn.Module):
    """Zeros around ``[B, C, *spatial]``, of which a convolution of odd ``kernel`` and stride 2 makes ``ceil(n / 2)``.

    As TensorFlow pads, for which EfficientNet was made: where n is even, the side before gets one voxel less. MONAI
    computes this once, for images of 224 voxels.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.side = kernel // 2

    def forward(self, image: Tensor) -> Tensor:
        padding: list[int] = []
        for axis in range(image.dim() - 1, 1, -1):
            padding += [self.side - 1 + image.shape[axis] % 2, self.side]
        return F.pad(image, padding)


class EfficientNetEncoder(PyramidEncoder, EfficientNet):
    """EfficientNet-B0 (Tan & Le, ICML 2019) in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, for any spatial size.

    MONAI's inverted residual blocks; its padding is replaced by one for any size, its swish by torch's, which can be
    exported. Levels of the pyramid are the last maps of 1/4, 1/8, 1/16 and 1/32 of the resolution.

    Args:
        in_channels: C.
        width: factor on all channels, which are rounded to multiples of 8 as in the paper.
        norm: ``group``, ``batch`` (with the paper's momentum, which wants long training) or ``instance``.
        drop_connect: share of the cases that a residual branch is left out for in training, growing with the depth
            from 0 to this (stochastic depth; 0.2 in the authors' code).
        spatial_dims: 2 or 3.

    F is ``1280 * width``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        drop_connect: float = 0.2,
        spatial_dims: int = 3,
    ) -> None:
        if not 0 <= drop_connect < 1:
            raise NetworkError(f"efficientnet_b0 option drop_connect must lie in [0, 1), found {drop_connect}")
        super().__init__(
            list(_STAGES), spatial_dims, in_channels, 1, width_coefficient=width, drop_connect_rate=drop_connect
        )
        self.out_features = self._fc.in_features
        del self._fc, self._dropout, self._avg_pooling
        for module in list(self.modules()):
            if hasattr(module, "_swish"):
                module._swish = nn.SiLU()
        _pad_any_size(self, "_conv_stem")
        for block in self.blocks():
            _pad_any_size(block, "_depthwise_conv")
        replace_batch_norm(self, norm)
        self.norm = norm
        self.pyramid_channels = (*(self._blocks_args[i].output_filters for i in (1, 2, 4)), self.out_features)

    def blocks(self) -> list[nn.Module]:
        """All inverted residual blocks, first to last."""
        return [block for stage in self._blocks for block in cast(nn.Sequential, stage)]

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a size that cannot be normalized (NetworkError)."""
        check_last_map(size, self.norm, 32)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(image))))
        for i, stage in enumerate(self._blocks):
            x = stage(x)
            if i == 1 or i == 2 or i == 4:
                levels.append(x)
        levels.append(self._swish(self._bn1(self._conv_head(x))))
        return levels


def _pad_any_size(module: nn.Module, name: str) -> None:
    """Replace the padding of the convolution of that name by one that fits any size."""
    convolution = cast(nn.Conv3d, getattr(module, name))
    kernel = int(convolution.kernel_size[0])
    strided = convolution.stride[0] == 2
    if not strided:
        convolution.padding = tuple(n // 2 for n in convolution.kernel_size)
    setattr(module, f"{name}_padding", SamePadding(kernel) if strided else nn.Identity())
