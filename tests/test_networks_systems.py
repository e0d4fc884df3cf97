"""Systems of the literature: M3T as in the paper, and its forms for several modalities."""

import pytest
import torch
import torch.nn.functional as F

from mmfusion.errors import NetworkError
from mmfusion.networks import MultiPlaneSliceEncoder, m3t

SMALL = {"stem_channels": 4, "stem_kernel": 3, "cnn": "resnet10", "cnn_width": 0.06, "hidden": 20, "dim": 16}
FORMS = ("separate", "shared", "joint")
SIZE = (9, 12, 10)


def small(form="separate", modalities=("ct", "pet", "mr"), **options):
    torch.manual_seed(0)
    how = {"layers": 2, "heads": 2, "mlp_dim": 24, "encoder_options": {**SMALL, "positions": 16}, **options}
    return m3t(modalities, form=form, **how)


def volumes(modalities=3, cases=2):
    return torch.randn(cases, modalities, *SIZE, generator=torch.Generator().manual_seed(1))


def test_one_modality_is_the_papers_network():
    """The encoder, of which other tests count the parts, and a linear layer of 256 x 2: nothing else."""
    with torch.device("meta"):
        network = m3t()
    parameters = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(parameters.values()) == 30_280_160 + 256 * 2 + 2
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in network.modules())
    assert not any(isinstance(part, torch.nn.GroupNorm | torch.nn.BatchNorm1d) for part in network.modules())


def test_its_answer_is_the_linear_layer_on_the_class_token():
    network, image = small(modalities=("mr",)).eval(), volumes(1)
    encoder = network.encoders[0]
    planes = [encoder.slice_vectors(encoder.stem(image), axis) for axis in (3, 2, 4)]
    read = encoder.transformer[:-1](encoder.sequence(planes))[:, 0]
    norm, head = encoder.transformer[-1], network.classifier[-1]
    expected = F.linear(F.layer_norm(read, (16,), norm.weight, norm.bias), head.weight, head.bias)
    torch.testing.assert_close(network(image), expected)


def test_each_form_has_its_trunks_and_transformers():
    def count(form, name):
        return sum(type(part).__name__ == name for part in small(form).modules())

    found = {form: (count(form, "ResNetEncoder"), count(form, "TransformerBlock")) for form in FORMS}
    assert found == {"separate": (3, 6), "shared": (1, 2), "joint": (3, 2)}


def test_joint_reads_all_tokens_in_one_transformer():
    network, seen = small("joint").eval(), []
    first = network.operator.blocks[0]
    first.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    output = network.outputs(volumes())
    assert seen == [(2, 1 + 3 * (sum(SIZE) + 4), 16)]
    assert output.attention.shape == (2, 3, sum(SIZE) + 4)


def test_joint_at_full_width_has_the_papers_transformer():
    with torch.device("meta"):
        network = m3t(("ct", "pet"), form="joint")
    assert len(network.operator.blocks) == 8 and network.operator.dim == 256
    assert {block.heads for block in network.operator.blocks} == {8}
    ours = [tuple(p.shape) for p in network.operator.blocks.parameters()]
    with torch.device("meta"):
        theirs = [tuple(p.shape) for p in MultiPlaneSliceEncoder().transformer[:-1].parameters()]
    assert ours == theirs


def test_width_scales_both_transformers_alike():
    with torch.device("meta"):
        separate, joint = (m3t(("ct", "pet"), form=form, width=0.25) for form in ("separate", "joint"))
    expected = [p.shape for p in separate.encoders[0].transformer[0].parameters()]
    assert [p.shape for p in joint.operator.blocks[0].parameters()] == expected


@pytest.mark.parametrize("form", FORMS)
def test_absent_modalities_do_not_matter_and_every_parameter_learns(form):
    network, image = small(form, norm="group"), volumes()
    present = torch.tensor([[True, False, True], [True, True, False]])
    changed = torch.where(present[:, :, None, None, None], image, torch.full_like(image, 1e3))
    torch.testing.assert_close(network(changed, present), network(image, present))
    F.cross_entropy(network(image, present), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.eval()(image, torch.zeros(2, 3, dtype=torch.bool)).isfinite().all()
    assert network(image[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("strategy", "fusion"), [("single_level", "gated"), ("attention", "cross"), ("decision", "max")]
)
def test_separate_and_shared_take_any_fusion(strategy, fusion):
    for form in ("separate", "shared"):
        network = small(form, strategy=strategy, fusion=fusion).eval()
        assert type(network).strategy == strategy and network(volumes()).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "jont"}, "unknown form 'jont'; did you mean 'joint'? Known: separate, shared, joint"),
        (
            {"form": "joint", "fusion": "cross"},
            "M3T in form 'joint' has fusion 'joint': leave it out, found 'cross'",
        ),
        (
            {"form": "joint", "encoder_options": {"layers": 3}},
            "M3T in form 'joint' has one transformer, the operator's: give layers to m3t itself, dropout in "
            "fusion_options, not in encoder_options",
        ),
        ({"shared": True}, "M3T in form 'separate' has shared False: leave it out, found True"),
        ({"encoder": "vit"}, "M3T in form 'separate' has encoder 'm3t': leave it out, found 'vit'"),
        ({"spatial_dims": 2}, "encoder 'm3t' takes volumes (spatial_dims 3), found spatial_dims 2"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(NetworkError) as caught:
        m3t(("ct", "pet"), **options)
    assert str(caught.value) == message
