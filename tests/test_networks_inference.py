"""Networks made ready for answers say what they said before."""

import pytest
import torch
from torch import nn

from mmfusion.networks import build, for_inference

PRESENT = torch.tensor([[1, 1], [1, 0], [0, 0]])


def trained(strategy, encoder, norm):
    """Running statistics, scales and shifts as a training leaves them: not 0 and 1."""
    torch.manual_seed(0)
    net = build(strategy, encoder, modalities=("ct", "pet"), width=0.06, norm=norm)
    for part in net.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (part.bias.data, part.running_mean):
                tensor.normal_()
    return net


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("strategy", "encoder"),
    [("single_level", "resnet10"), ("attention", "m3t_small"), ("hierarchical", "cnn"), ("decision", "se_resnet50")],
)
def test_folding_changes_rounding_only(strategy, encoder, norm):
    net, image = trained(strategy, encoder, norm), torch.randn(3, 2, 35, 33, 34)
    ready = for_inference(net)
    assert net.training and not ready.network.training
    expected = net.eval()(image, PRESENT)
    torch.testing.assert_close(ready(image, PRESENT), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ready(image), net(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet10", "resnet50", "m3t_small", "cnn"])
def test_every_batch_norm_of_these_encoders_is_folded(encoder):
    ready = for_inference(trained("single_level", encoder, "batch"))
    assert not any(isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)) for part in ready.modules())


@pytest.mark.parametrize("strategy", ["single_level", "decision", "attention", "hierarchical"])
def test_half_the_bits_for_about_the_same_answer(strategy):
    net, image = trained(strategy, "resnet10", "batch").eval(), torch.randn(3, 2, 35, 33, 34)
    ready = for_inference(net, torch.bfloat16)
    said, expected = ready(image, PRESENT), net(image, PRESENT)
    assert said.dtype == torch.float32 and ready.network.encoders[0].conv1.weight.dtype == torch.bfloat16
    assert (said - expected).abs().max() < 0.05 * expected.abs().max().clamp_min(1)
