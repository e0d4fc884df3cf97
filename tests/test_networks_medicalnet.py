"""MedicalNet's geometry against a literal second implementation, and its weights from a file."""

import re

import pytest
import torch
import torch.nn.functional as F

from mmfusion.errors import NetworkError
from mmfusion.networks import load_medicalnet
from mmfusion.networks.backbones import RESNET_BLOCKS, ResNetEncoder
from mmfusion.networks.encoders import build_encoder

GEOMETRY = {"stem_stride": 2, "dilated": True}
TYPE = {"resnet10": "B", "resnet18": "A", "resnet34": "A", "resnet50": "B"}  # of MedicalNet's own files
STAGES = ((64, 1, 1), (128, 2, 1), (256, 1, 2), (512, 1, 4))  # channels, stride, dilation


def encoder(depth, width=1.0, **options):
    how = {**GEOMETRY, "shortcut": TYPE[depth], **options}
    return build_encoder(depth, width=width, norm="batch", options=how).eval()


def norm(x, weights, name):
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))


def literal_block(x, weights, name, bottleneck, channels, stride, dilation):
    """One residual block, convolution by convolution."""
    if bottleneck:
        y = F.relu(norm(F.conv3d(x, weights[f"{name}.conv1.weight"]), weights, f"{name}.bn1"))
        y = F.conv3d(y, weights[f"{name}.conv2.weight"], None, stride, dilation, dilation)
        y = F.relu(norm(y, weights, f"{name}.bn2"))
        y = norm(F.conv3d(y, weights[f"{name}.conv3.weight"]), weights, f"{name}.bn3")
    else:
        y = F.conv3d(x, weights[f"{name}.conv1.weight"], None, stride, dilation, dilation)
        y = F.relu(norm(y, weights, f"{name}.bn1"))
        y = F.conv3d(y, weights[f"{name}.conv2.weight"], None, 1, dilation, dilation)
        y = norm(y, weights, f"{name}.bn2")
    if f"{name}.downsample.0.weight" in weights:
        x = F.conv3d(x, weights[f"{name}.downsample.0.weight"], None, stride)
        x = norm(x, weights, f"{name}.downsample.1")
    elif y.shape != x.shape:
        x = x[:, :, ::stride, ::stride, ::stride]
        x = torch.cat([x, torch.zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], 1)
    return F.relu(y + x)


def literal_medicalnet(image, weights, depth):
    """The maps of the four stages of MedicalNet's ResNet of that depth."""
    kind, blocks = RESNET_BLOCKS[depth]
    x = F.relu(norm(F.conv3d(image, weights["conv1.weight"], None, 2, 3), weights, "bn1"))
    x, maps = F.max_pool3d(x, 3, 2, 1), []
    for stage, ((channels, stride, dilation), count) in enumerate(zip(STAGES, blocks, strict=True), start=1):
        for i in range(count):
            name = f"layer{stage}.{i}"
            x = literal_block(x, weights, name, kind == "bottleneck", channels, stride if i == 0 else 1, dilation)
        maps.append(x)
    return maps


def randomized(net):
    """Its weights, with running statistics as after training."""
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bn1.bias", "bn2.bias")):
            value.uniform_(0.5, 1.5)
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("depth", TYPE)
def test_the_maps_are_medicalnets(depth):
    net, image = encoder(depth, 0.125), torch.randn(2, 1, 21, 17, 25)
    weights = randomized(net)
    expected = literal_medicalnet(image, weights, depth)
    assert [m.shape[2:] for m in expected] == [(6, 5, 7), *[(3, 3, 4)] * 3]
    for ours, literal in zip(net.pyramid(image), expected, strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "module", "nested"])
def test_weights_come_from_a_file(form, tmp_path):
    weights = randomized(encoder("resnet10"))
    stored = {name: value for name, value in weights.items() if "num_batches" not in name}
    stored["conv_seg.0.weight"] = stored["fc.weight"] = torch.zeros(3)
    if form != "plain":
        stored = {f"module.{name}": value for name, value in stored.items()}
    torch.save({"state_dict": stored, "epoch": 3} if form == "nested" else stored, tmp_path / "resnet_10.pth")
    net = encoder("resnet10")
    load_medicalnet(net, tmp_path / "resnet_10.pth")
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_the_shortcut_is_that_of_the_file(tmp_path):
    net = encoder("resnet10", shortcut="A")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    load_medicalnet(net, tmp_path / "weights.pth")
    with pytest.raises(NetworkError, match=r"of these MedicalNet weights: shortcut B instead of A; build it with norm"):
        load_medicalnet(encoder("resnet10"), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"stem_stride": 1}, "stem_stride 1 instead of 2"),
        ({}, {"dilated": False}, "dilated False instead of True"),
        ({"norm": "group"}, {}, "norm group instead of batch"),
        ({"width": 0.25}, {}, "channels of the stem (64 times width) 16 instead of 64"),
        ({"in_channels": 2}, {}, "in_channels 2 instead of 1"),
        ({"spatial_dims": 2}, {"dilated": False}, "spatial_dims 2 instead of 3, dilated False instead of True"),
    ],
)
def test_another_geometry_is_refused(change, options, message, tmp_path):
    net = build_encoder("resnet10", **{"norm": "batch", **change}, options={**GEOMETRY, **options})
    torch.save({"layer1.0.downsample.0.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(NetworkError, match=re.escape(message)):
        load_medicalnet(net, tmp_path / "weights.pth")


def test_another_depth_is_refused_and_nothing_is_changed(tmp_path):
    net = encoder("resnet10")
    stored = {**net.state_dict(), "layer1.1.conv1.weight": torch.zeros(2), "conv1.weight": torch.zeros(64, 3, 7, 7, 7)}
    del stored["layer2.0.bn1.weight"]
    before = net.conv1.weight.clone()
    torch.save(stored, tmp_path / "weights.pth")
    with pytest.raises(NetworkError) as error:
        load_medicalnet(net, tmp_path / "weights.pth")
    assert str(error.value).endswith(
        "weights.pth is of another network, perhaps of another depth; missing: layer2.0.bn1.weight; "
        "unknown: layer1.1.conv1.weight; of another shape: conv1.weight [64, 3, 7, 7, 7] for [64, 1, 7, 7, 7]"
    )
    assert torch.equal(net.conv1.weight, before)


def test_files_that_hold_no_weights(tmp_path):
    net, path = encoder("resnet10"), tmp_path / "weights.pth"
    with pytest.raises(NetworkError, match=r"cannot read MedicalNet's weights: .*No such file"):
        load_medicalnet(net, path)
    path.write_bytes(b"<html>sign in</html>")
    with pytest.raises(NetworkError, match=r"weights.pth is not a file of tensors"):
        load_medicalnet(net, path)
    torch.save(ResNetEncoder, path)  # code, which must not be run
    with pytest.raises(NetworkError, match=r"weights.pth is not a file of tensors"):
        load_medicalnet(net, path)
    torch.save([1, 2], path)
    with pytest.raises(NetworkError, match=r"weights.pth holds no state dict .* found list"):
        load_medicalnet(net, path)


def test_only_a_resnet_takes_them(tmp_path):
    with pytest.raises(NetworkError, match="fit a ResNet encoder, found PlainEncoder; use 'resnet10'"):
        load_medicalnet(build_encoder("cnn"), tmp_path)
