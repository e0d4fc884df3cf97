"""Encoders and blocks against MONAI's and torch's own."""

from itertools import pairwise

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import DenseNetEncoder, ResNetEncoder
from mmfusion.networks.blocks import TransformerBlock, groups_of, norm_layer, scaled
from mmfusion.networks.efficientnet import SamePadding
from mmfusion.networks.encoders import ENCODERS, build_encoder
from mmfusion.options import OPTIONS

PYRAMIDS = [name for name, kind in ENCODERS.items() if "pyramid" in kind.views]
SIZE = (33, 31, 37)


@pytest.mark.parametrize("depth", ["resnet10", "resnet34", "resnet50"])
@pytest.mark.parametrize("dims", [2, 3])
def test_resnet_is_monais_in_medicalnets_stem(depth, dims):
    ours = ResNetEncoder(depth, width=0.125, norm="batch", spatial_dims=dims).eval()
    block, layers, *_ = nets.resnet.resnet_params[depth]
    how = {"conv1_t_stride": 2, "feed_forward": False, "bias_downsample": False, "widen_factor": 0.125}
    theirs = nets.ResNet(block, layers, [64, 128, 256, 512], dims, 1, **how).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 1, *(17, 21, 19)[:dims])
    torch.testing.assert_close(ours(image), theirs(image))
    assert ours.out_features == (256 if depth == "resnet50" else 64)


def test_published_widths():
    features = {"resnet10": 512, "resnet34": 512, "se_resnet50": 2048, "efficientnet_b0": 1280, "cnn": 64}
    assert {name: build_encoder(name, spatial_dims=2).out_features for name in features} == features


def test_shortcuts_without_parameters_hand_on_a_gradient():
    encoder, image = ResNetEncoder("resnet10", width=0.06, shortcut="A"), torch.randn(2, 1, 9, 8, 7)
    maps = encoder.layer1(torch.randn(2, 4, 9, 8, 7, requires_grad=True))
    maps.retain_grad()
    block = encoder.layer2[0]
    block.downsample(maps).sum().backward()
    expected = torch.zeros(9, 8, 7)
    expected[::2, ::2, ::2] = 1
    assert torch.equal(maps.grad, expected.expand(2, 4, 9, 8, 7))
    assert encoder(image).isfinite().all()
    with pytest.raises(NetworkError, match="unknown resnet10 option shortcut 'C'"):
        ResNetEncoder("resnet10", shortcut="C")


def test_densenet121_is_monais():
    ours, theirs = DenseNetEncoder("densenet121", norm="batch").eval(), nets.DenseNet121(3, 1, 1).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(1, 1, 33, 29, 31)
    torch.testing.assert_close(theirs.class_layers.out(ours(image)), theirs(image))
    assert ours.out_features == 1024


@pytest.mark.parametrize("dims", [2, 3])
def test_se_resnet50_is_monais(dims):
    ours, theirs = build_encoder("se_resnet50", norm="batch", spatial_dims=dims).eval(), nets.SEResNet50
    theirs = theirs(spatial_dims=dims, in_channels=1, num_classes=1).eval()
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert found.unexpected_keys == [] and found.missing_keys == ["last_linear.weight", "last_linear.bias"]
    image = torch.randn(2, 1, *(37, 35, 36)[:dims])
    torch.testing.assert_close(theirs.last_linear(ours(image)), theirs(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_efficientnet_b0_is_monais(dims, monkeypatch):
    size = 27  # the one size that their padding is made for
    params = {"efficientnet-b0": (1.0, 1.0, size, 0.2, 0.2)}
    monkeypatch.setattr(nets.efficientnet, "efficientnet_params", params)
    theirs = nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=dims, in_channels=1, num_classes=1).eval()
    ours = build_encoder("efficientnet_b0", norm="batch", spatial_dims=dims).eval()
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert found.unexpected_keys == [] and found.missing_keys == ["_fc.weight", "_fc.bias"]
    image = torch.randn(2, 1, *[size] * dims)
    torch.testing.assert_close(theirs._fc(ours(image)), theirs(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_rounds_up_and_splits_as_tensorflow(kernel):
    for n in range(1, 12):
        padded = SamePadding(kernel)(torch.ones(1, 1, n, n + 1))
        for axis, size in ((2, n), (3, n + 1)):
            total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)  # SAME padding as TensorFlow documents it
            kept = (padded.sum(5 - axis) > 0).flatten().nonzero().flatten()
            assert kept[0] == total // 2 and padded.shape[axis] == size + total


@pytest.mark.parametrize("dims", [2, 3])
def test_cnn_is_its_layers_one_by_one(dims):
    ours = build_encoder("cnn", 2, 0.5, "batch", dims, {"channels": [8, 24], "kernel": 5}).eval()
    image = torch.randn(2, 2, *(12, 8, 16)[:dims])
    x = image
    for i, channels in enumerate((4, 12)):
        weight = ours.blocks[i][0].weight
        assert weight.shape[0] == channels
        x = (
            getattr(nn.functional, f"conv{dims}d")(x, weight, padding=2) / (1 + 1e-5) ** 0.5
        )  # BatchNorm before training
        x = getattr(nn.functional, f"max_pool{dims}d")(x.clamp(min=0), 2)
    torch.testing.assert_close(ours(image), x.flatten(2).mean(2))
    torch.testing.assert_close(ours.pyramid(image)[1], x)


@pytest.mark.parametrize("size", [(9, 9, 9), (1, 2, 3)])
def test_cnn_empties_no_volume(size):
    encoder = build_encoder("cnn")
    encoder.check_size(size)
    assert encoder(torch.randn(2, 1, *size)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {"channels": []}, r"cnn option channels must be one positive number a block, found \[\]"),
        ("cnn", {"channels": [8, 0]}, r"found \[8, 0\]"),
        ("cnn", {"kernel": 2}, "cnn option kernel must be odd, found 2"),
        ("efficientnet_b0", {"drop_connect": 1}, r"option drop_connect must lie in \[0, 1\), found 1"),
        ("se_resnet50", {"reduction": 300}, r"option reduction must lie in \[1, 256\], found 300"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(NetworkError, match=message):
        build_encoder(name, options=options)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_are_as_announced_finest_first(name, dims):
    encoder, image = build_encoder(name, 2, 0.06, spatial_dims=dims).eval(), torch.randn(2, 2, *SIZE[:dims])
    levels = encoder.pyramid(image)
    assert tuple(level.shape[1] for level in levels) == encoder.pyramid_channels
    assert encoder.pyramid_channels[-1] == encoder.out_features
    sizes = [level.shape[2:] for level in levels]
    assert all(a > b for finer, coarser in pairwise(sizes) for a, b in zip(finer, coarser, strict=True))
    torch.testing.assert_close(encoder(image), levels[-1].flatten(2).mean(2))


def test_drop_connect_acts_in_training_only():
    encoder, image = build_encoder("efficientnet_b0", 1, 0.06, spatial_dims=2), torch.randn(8, 1, 32, 32)
    assert not torch.equal(encoder(image), encoder(image))
    assert torch.equal(encoder.eval()(image), encoder(image))
    always = build_encoder("efficientnet_b0", 1, 0.06, spatial_dims=2, options={"drop_connect": 0})
    assert torch.equal(always(image), always(image))


def test_the_table_is_that_of_the_options():
    assert tuple(ENCODERS) == OPTIONS["encoder"].choices


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


def test_se_resnet_refuses_what_its_pooling_would_empty():
    encoder = build_encoder("se_resnet50", width=0.06)
    with pytest.raises(RuntimeError, match="Output size is too small"):  # what torch says without the check
        encoder(torch.zeros(1, 1, 5, 2, 9))
    with pytest.raises(NetworkError, match="'se_resnet50' needs at least 3 voxels along each axis, found 5 x 2 x 9"):
        encoder.check_size((5, 2, 9))
    encoder.check_size((3, 3, 3))
    assert encoder(torch.zeros(1, 1, 3, 3, 3)).shape == (1, encoder.out_features)


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


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet10", (32, 20, 31), {}),
        ("resnet50", (32, 20, 31), {}),
        ("resnet10", (8, 5, 7), {"dilated": True}),
        ("densenet121", (60, 33, 29), {}),
        ("se_resnet50", (34, 20, 31), {}),
        ("efficientnet_b0", (32, 20, 31), {}),
        ("cnn", (8, 3, 1), {}),
        ("cnn", (4, 3, 1), {"channels": [8, 8, 8]}),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_norms_that_cannot_take_one_voxel_are_refused_early(name, size, options, norm):
    encoder = build_encoder(name, width=0.06, norm=norm, options=options)
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
