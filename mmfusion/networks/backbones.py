"""What an encoder is, and the convolutional ones: MONAI's ResNet and DenseNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import replace_batch_norm, scaled

RESNET_BLOCKS = {  # kind of block, residual blocks of each stage
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
_DENSENET_MIN = 29  # ceil(ceil(n / 2) / 2) must survive three halvings that round down
_DENSENET_BLOCKS = {"densenet121": (6, 12, 24, 16)}


def _size_text(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


def _check_last_map(size: Sequence[int], norm: str, largest: int) -> None:
    """Refuse a volume whose last map has one voxel, where only GroupNorm has a deviation to divide by."""
    if norm != "group" and max(size) <= largest:
        raise NetworkError(
            f"norm '{norm}' needs more than {largest} voxels along at least one axis, found {_size_text(size)}; "
            "use norm 'group', a finer grid or a larger field of view"
        )


class Encoder(nn.Module):
    """Base of all encoders: one volume ``[B, C, D, H, W]`` to one vector ``[B, F]``; B may be 0.

    Attributes:
        out_features: F.
    """

    out_features = 0  # no annotation: TorchScript cannot read a postponed one

    @torch.jit.unused
    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a volume of D, H, W voxels that is too small for this encoder, before any work (NetworkError)."""
        raise NotImplementedError


class ResNetEncoder(ResNet, Encoder):
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
        self.out_features = self.in_planes

    @torch.jit.unused
    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a size that cannot be normalized (NetworkError)."""
        _check_last_map(size, self.norm, self.last_stride)

    def forward(self, image: Tensor) -> Tensor:
        # MONAI's own forward ends in view(0, -1), which an empty batch cannot have
        x = self.maxpool(self.act(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.flatten(2).mean(2)


class DenseNetEncoder(DenseNet, Encoder):
    """DenseNet of Huang et al. (CVPR 2017) in 3D: ``[B, C, D, H, W]`` to ``[B, F]``, from 29 voxels along each axis.

    Args:
        depth: ``densenet121``.
        in_channels: C.
        width: factor on the initial features (64) and the growth rate (32).
        norm: ``group``, ``batch`` or ``instance``.

    F is 1024 at width 1.
    """

    def __init__(self, depth: str, in_channels: int = 1, width: float = 1.0, norm: str = "group") -> None:
        super().__init__(
            3,
            in_channels,
            1,
            init_features=scaled(64, width),
            growth_rate=scaled(32, width),
            block_config=_DENSENET_BLOCKS[depth],
        )
        self.out_features = cast(nn.Linear, self.class_layers.out).in_features
        self.class_layers.out = nn.Identity()
        replace_batch_norm(self, norm)
        self.depth = depth
        self.norm = norm

    @torch.jit.unused
    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a volume that the poolings would empty (NetworkError)."""
        if min(size) < _DENSENET_MIN:
            raise NetworkError(
                f"encoder '{self.depth}' needs at least {_DENSENET_MIN} voxels along each axis, "
                f"found {_size_text(size)}; use a finer grid, a larger field of view, or encoder 'resnet10'"
            )
        _check_last_map(size, self.norm, 60)
