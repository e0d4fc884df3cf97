"""ResNet and DenseNet encoders on MONAI's networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import replace_batch_norm, scaled
from mmfusion.networks.encoder import PyramidEncoder, check_last_map, size_text
from mmfusion.options import unknown

RESNET_BLOCKS = {  # kind of block, residual blocks of each stage
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
_DENSENET_MIN = 29  # ceil(ceil(n / 2) / 2) must survive three halvings that round down
_DENSENET_BLOCKS = {"densenet121": (6, 12, 24, 16)}


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (type A of He et al., CVPR 2016): ``[B, C, *spatial]`` to ``[B, C + extra, *]``.

    Every ``stride``-th voxel, with channels of zeros behind. MONAI's and MedicalNet's own cut the gradient here;
    this one does not.
    """

    def __init__(self, extra: int, stride: int, spatial_dims: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(1, stride) if spatial_dims == 2 else nn.MaxPool3d(1, stride)
        self.padding = [0, 0] * spatial_dims + [0, extra]

    def forward(self, image: Tensor) -> Tensor:
        return F.pad(self.pool(image), self.padding)


class ResNetEncoder(PyramidEncoder, ResNet):
    """ResNet of He et al. (CVPR 2016) in 2D or 3D: ``[B, C, *spatial]`` to ``[B, F]``, for any spatial size.

    MONAI's residual blocks with a stem of stride 2 (stride 1 costs 8 times as much) and bottlenecks that stride in
    their convolution of 3 voxels. Channels are the published ones (64 to 512) times ``width``. ``dilated`` is the
    geometry of MedicalNet (Chen et al., arXiv 1904.00625, 2019), made for segmentation: the last two stages keep the
    resolution of the second and dilate their convolutions by 2 and 4.

    Args:
        depth: a key of :data:`RESNET_BLOCKS`.
        in_channels: C.
        width: factor on all channels.
        norm: ``group``, ``batch`` or ``instance``.
        stem_stride: stride of the first convolution.
        dilated: the last two stages dilated instead of strided; costs some 16 times as much there.
        shortcut: ``B``, a convolution where size or channels change, or ``A``, see :class:`PaddedShortcut`.
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
        dilated: bool = False,
        shortcut: str = "B",
        spatial_dims: int = 3,
    ) -> None:
        if shortcut not in ("A", "B"):
            raise NetworkError(unknown(f"{depth} option shortcut", shortcut, ("A", "B")))
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
        if dilated:
            _dilate(self.layer3, 2)
            _dilate(self.layer4, 4)
        if shortcut == "A":
            _pad_shortcuts(self, spatial_dims)
        replace_batch_norm(self, norm)
        self.norm = norm
        self.stem_stride = stem_stride
        self.dilated = dilated
        self.shortcut = shortcut
        self.last_stride = (4 if dilated else 16) * stem_stride
        expansion = 4 if block == "bottleneck" else 1
        self.pyramid_channels = tuple(expansion * channels for channels in planes)
        self.out_features = self.in_planes

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a size that cannot be normalized (NetworkError)."""
        check_last_map(size, self.norm, self.last_stride)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        first = self.layer1(self.maxpool(self.act(self.bn1(self.conv1(image)))))
        second = self.layer2(first)
        third = self.layer3(second)
        return [first, second, third, self.layer4(third)]


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Take the stride out of a stage and dilate its convolutions of 3 voxels."""
    for layer in stage.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            axes = len(layer.kernel_size)
            layer.stride = (1,) * axes
            if layer.kernel_size[0] == 3:
                layer.dilation = layer.padding = (dilation,) * axes


def _pad_shortcuts(network: nn.Module, spatial_dims: int) -> None:
    """Put shortcuts of type A in the place of those of type B."""
    for block in network.modules():
        if isinstance(getattr(block, "downsample", None), nn.Sequential):
            projection = cast(nn.Conv3d, cast(nn.Sequential, block.downsample)[0])
            extra = projection.out_channels - projection.in_channels
            block.downsample = PaddedShortcut(extra, int(projection.stride[0]), spatial_dims)


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

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse a volume that the poolings would empty (NetworkError)."""
        if min(size) < _DENSENET_MIN:
            raise NetworkError(
                f"encoder '{self.depth}' needs at least {_DENSENET_MIN} voxels along each axis, "
                f"found {size_text(size)}; use a finer grid, a larger field of view, or encoder 'resnet10'"
            )
        check_last_map(size, self.norm, 60)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        x = image
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i == 4 or i == 6 or i == 8:  # the first three dense blocks; a transition behind each
                levels.append(x)
        levels.append(torch.relu(x))
        return levels
