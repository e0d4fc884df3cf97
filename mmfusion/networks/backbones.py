"""Convolutional encoders on MONAI's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, cast  # noqa: UP035 (TorchScript)

import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import replace_batch_norm, scaled
from mmfusion.networks.encoder import PyramidEncoder, check_last_map, size_text

RESNET_BLOCKS = {  # kind of block, residual blocks of each stage
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
_DENSENET_MIN = 29  # ceil(ceil(n / 2) / 2) must survive three halvings that round down
_DENSENET_BLOCKS = {"densenet121": (6, 12, 24, 16)}


class ResNetEncoder(PyramidEncoder, ResNet):
    """ResNet of He et al. (CVPR 2016) in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, for any spatial size.

    MONAI's residual blocks in MedicalNet's geometry of the stem (stride 2; stride 1 costs 8 times as much). All
    depths use the projection shortcut (type B): MONAI's type A cuts the gradient of the shortcut and cannot be
    scripted. Channels are the published ones (64 to 512) times ``width``.

    Args:
        depth: a key of :data:`RESNET_BLOCKS`.
        in_channels: C.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        stem_stride: stride of the first convolution.
        spatial_dims: 2 or 3.

    F is ``512 * width``, times 4 for bottleneck blocks.
    """

    def __init__(
        self,
        depth: str,
        in_channels: int = 1,
        width: float = 1.0,
        norm: str = "group",
        *,
        stem_stride: int = 2,
        spatial_dims: int = 3,
    ) -> None:
        block, layers = RESNET_BLOCKS[depth]
        planes = [scaled(channels, width) for channels in (64, 128, 256, 512)]
        super().__init__(
            block,
            list(layers),
            planes,
            spatial_dims=spatial_dims,
            n_input_channels=in_channels,
            conv1_t_stride=stem_stride,
            feed_forward=False,
            bias_downsample=False,
        )
        replace_batch_norm(self, norm)
        self.norm = norm
        self.last_stride = 16 * stem_stride
        expansion = 4 if block == "bottleneck" else 1
        self.pyramid_channels = tuple(expansion * channels for channels in planes)
        self.out_features = self.in_planes

    @torch.jit.unused
    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a size that cannot be normalized (NetworkError)."""
        check_last_map(size, self.norm, self.last_stride)

    def pyramid(self, image: Tensor) -> List[Tensor]:  # noqa: UP006
        first = self.layer1(self.maxpool(self.act(self.bn1(self.conv1(image)))))
        second = self.layer2(first)
        third = self.layer3(second)
        return [first, second, third, self.layer4(third)]


class DenseNetEncoder(PyramidEncoder, DenseNet):
    """DenseNet of Huang et al. (CVPR 2017) in 3D: ``[B, C, D, H, W]`` to ``[B, F]``, from 29 voxels along each axis.

    Args:
        depth: ``densenet121``.
        in_channels: C.
        width: factor on the initial features (64) and the growth rate (32).
        norm: ``group``, ``batch`` or ``instance``.

    F is 1024 at width 1.
    """

    def __init__(
        self, depth: str, in_channels: int = 1, width: float = 1.0, norm: str = "group", *, spatial_dims: int = 3
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            1,
            init_features=scaled(64, width),
            growth_rate=scaled(32, width),
            block_config=_DENSENET_BLOCKS[depth],
        )
        self.out_features = cast(nn.Linear, self.class_layers.out).in_features
        del self.class_layers
        blocks = [self.features.get_submodule(f"transition{i}.norm") for i in (1, 2, 3)]
        self.pyramid_channels = tuple(int(cast(nn.BatchNorm3d, block).num_features) for block in blocks) + (
            self.out_features,
        )
        replace_batch_norm(self, norm)
        self.depth = depth
        self.norm = norm

    @torch.jit.unused
    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a volume that the poolings would empty (NetworkError)."""
        if min(size) < _DENSENET_MIN:
            raise NetworkError(
                f"encoder '{self.depth}' needs at least {_DENSENET_MIN} voxels along each axis, "
                f"found {size_text(size)}; use a finer grid, a larger field of view, or encoder 'resnet10'"
            )
        check_last_map(size, self.norm, 60)

    def pyramid(self, image: Tensor) -> List[Tensor]:  # noqa: UP006
        levels: List[Tensor] = []  # noqa: UP006
        x = image
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i == 4 or i == 6 or i == 8:  # the first three dense blocks; a transition behind each
                levels.append(x)
        levels.append(torch.relu(x))
        return levels
