"""SE-ResNet encoder on MONAI's blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.squeeze_and_excitation import SEResNetBottleneck
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import replace_batch_norm, scaled
from mmfusion.networks.encoder import PyramidEncoder, check_last_map, size_text

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels, residual blocks
_MIN = 3  # two voxels must reach the pooling


class SEResNetEncoder(PyramidEncoder):
    """SE-ResNet-50 (Hu et al., CVPR 2018) in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, from 3 voxels an axis.

    Bottlenecks whose result is weighted channel by channel, ``x * sigmoid(W2 relu(W1 mean(x)))``, before the shortcut
    is added. MONAI's blocks under the names of its ``SEResNet50``, whose weights fit at width 1; that class has no
    ``width``.

    Args:
        in_channels: C.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        reduction: the hidden layer of the weighting has one ``reduction``-th of the channels.
        spatial_dims: 2 or 3.

    F is ``2048 * width``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        reduction: int = 16,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        planes = [scaled(channels, width) for channels, _ in _STAGES]
        if not 1 <= reduction <= 4 * planes[0]:
            raise NetworkError(f"se_resnet50 option reduction must lie in [1, {4 * planes[0]}], found {reduction}")
        flat = spatial_dims == 2
        convolution: Any = nn.Conv2d if flat else nn.Conv3d
        normalization: Any = nn.BatchNorm2d if flat else nn.BatchNorm3d
        pool: Any = nn.MaxPool2d if flat else nn.MaxPool3d
        stem = [
            ("conv1", convolution(in_channels, planes[0], 7, stride=2, padding=3, bias=False)),
            ("bn1", normalization(planes[0])),
            ("relu1", nn.ReLU(inplace=True)),
            ("pool", pool(3, 2, ceil_mode=True)),
        ]
        self.layer0 = nn.Sequential(OrderedDict(stem))
        into = [planes[0], *(4 * channels for channels in planes)]
        stages = [
            _stage(spatial_dims, into[i], planes[i], blocks, reduction, 1 if i == 0 else 2)
            for i, (_, blocks) in enumerate(_STAGES)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for layer in self.modules():
            if isinstance(layer, convolution):
                nn.init.kaiming_normal_(torch.as_tensor(layer.weight))
        replace_batch_norm(self, norm)
        self.norm = norm
        self.pyramid_channels = tuple(into[1:])
        self.out_features = into[-1]

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse an image that the pooling would empty, or that cannot be normalized (NetworkError)."""
        if min(size) < _MIN:
            raise NetworkError(
                f"encoder 'se_resnet50' needs at least {_MIN} voxels along each axis, found {size_text(size)}; "
                "use encoder 'resnet50' or 'cnn'"
            )
        check_last_map(size, self.norm, 34)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        first = self.layer1(self.layer0(image))
        second = self.layer2(first)
        third = self.layer3(second)
        return [first, second, third, self.layer4(third)]


def _stage(
    spatial_dims: int, in_channels: int, channels: int, blocks: int, reduction: int, stride: int
) -> nn.Sequential:
    """Bottlenecks of one resolution, the first of which strides and changes the channels."""
    project = Convolution(
        spatial_dims, in_channels, 4 * channels, strides=stride, kernel_size=1, act=None, norm="batch", bias=False
    )
    first = SEResNetBottleneck(spatial_dims, in_channels, channels, 1, reduction, stride, project)
    rest = (SEResNetBottleneck(spatial_dims, 4 * channels, channels, 1, reduction) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
