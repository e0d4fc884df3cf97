"""Encoders and blocks against MONAI's and torch's own."""

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import DenseNetEncoder, ResNetEncoder
from mmfusion.networks.blocks import TransformerBlock, groups_of, norm_layer, scaled
from mmfusion.networks.encoders import ENCODERS, build_encoder


def test_resnet10_is_monais_in_medicalnet_geometry():
    ours = ResNetEncoder("resnet10", norm="batch").eval()
    theirs = nets.resnet10(n_input_channels=1, conv1_t_stride=2, feed_forward=False, bias_downsample=False).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 1, 17, 21, 19)
    torch.testing.assert_close(ours(image), theirs(image))
    assert ours.out_features == 512


def test_densenet121_is_monais():
    ours, theirs = DenseNetEncoder("densenet121", norm="batch").eval(), nets.DenseNet121(3, 1, 1).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(1, 1, 33, 29, 31)
    torch.testing.assert_close(theirs.class_layers.out(ours(image)), theirs(image))
    assert ours.out_features == 1024


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("name", ENCODERS)
def test_no_batch_norm_is_left(name, norm):
    encoder = build_encoder(name, width=0.06, norm=norm)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    groups = [m.num_channels // m.num_groups for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert all(size == 1 if norm == "instance" else size >= 4 for size in groups)


@pytest.mark.parametrize("norm", ["group", "batch", "instance"])
@pytest.mark.parametrize("name", ENCODERS)
def test_empty_and_single_batches(name, norm):
    encoder, size = build_encoder(name, 2, 0.06, norm), (61, 33, 35)
    if name == "m3t":
        encoder = build_encoder(name, 2, 0.06, norm, options={"cnn": "resnet10", "slice_stride": 5})
    encoder.check_size(size)
    for rows in (0, 1):
        vectors = encoder(torch.randn(rows, 2, *size))
        assert vectors.shape == (rows, encoder.out_features) and vectors.isfinite().all()


def test_group_norm_takes_one_voxel_of_one_case():
    encoder = build_encoder("resnet10", width=0.06)
    assert encoder(torch.randn(1, 1, 2, 3, 1)).isfinite().all()


def test_densenet_refuses_what_its_pooling_would_empty():
    encoder = build_encoder("densenet121", width=0.06)
    with pytest.raises(RuntimeError, match="smaller than kernel size"):  # what torch says without the check
        encoder(torch.zeros(1, 1, 30, 28, 33))
    with pytest.raises(
        NetworkError, match="'densenet121' needs at least 29 voxels along each axis, found 30 x 28 x 33"
    ):
        encoder.check_size((30, 28, 33))
    encoder.check_size((29, 29, 29))
    assert encoder(torch.zeros(1, 1, 29, 29, 29)).shape == (1, encoder.out_features)


@pytest.mark.parametrize(("name", "size"), [("resnet10", (32, 20, 31)), ("densenet121", (60, 33, 29))])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_norms_that_cannot_take_one_voxel_are_refused_early(name, size, norm):
    encoder = build_encoder(name, width=0.06, norm=norm)
    with pytest.raises(ValueError, match="Expected more than 1"):  # what torch says without the check
        encoder(torch.zeros(1, 1, *size))
    with pytest.raises(NetworkError, match=f"norm '{norm}' needs more than {max(size)} voxels along at least one axis"):
        encoder.check_size(size)
    encoder.check_size((max(size) + 1, *size[1:]))
    assert encoder(torch.randn(1, 1, max(size) + 1, *size[1:])).isfinite().all()


def test_channels_and_groups():
    assert [scaled(64, w) for w in (0.01, 0.1, 0.25, 1, 1.5)] == [4, 8, 16, 64, 96]
    for channels in range(4, 1025, 4):
        groups = groups_of(channels)
        assert channels % groups == 0 and channels // groups >= 4 and groups <= 8
    assert groups_of(512) == 8


def test_instance_norm_is_torchs():
    image = torch.randn(2, 8, 5, 4, 3)
    torch.testing.assert_close(norm_layer("instance", 8)(image), nn.InstanceNorm3d(8)(image))


def test_unknown_norm():
    with pytest.raises(NetworkError, match="unknown norm 'layer'"):
        norm_layer("layer", 8)


def test_transformer_block_is_torchs_pre_norm_layer():
    ours = TransformerBlock(12, 3, 20).eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    pairs = [
        (theirs.norm1, ours.norm1),
        (theirs.norm2, ours.norm2),
        (theirs.self_attn.out_proj, ours.project),
        (theirs.linear1, ours.mlp[0]),
        (theirs.linear2, ours.mlp[3]),
    ]
    for to, source in pairs:
        to.load_state_dict(source.state_dict())
    theirs.self_attn.load_state_dict({"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}, strict=False)
    tokens = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_dropout_acts_in_training_only():
    block, tokens = TransformerBlock(8, 2, 16, dropout=0.5), torch.randn(1, 5, 8)
    assert not torch.equal(block(tokens), block(tokens))
    block.eval()
    assert torch.equal(block(tokens), block(tokens))
