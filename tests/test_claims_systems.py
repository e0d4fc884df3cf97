"""What each system says of itself: the numbers of its parameters, and the order in which it computes.

``CLAIMS`` has a test for each row of ``SYSTEMS``; a row without one fails.
"""

import json

import pytest
import torch
from tiny_cohort import FAST

from mmfusion.networks import build
from mmfusion.networks.blocks import Standardize
from mmfusion.options import GROUPS, settle
from mmfusion.systems import SYSTEMS
from mmfusion.training import train

MODALITIES = ("ct", "pet", "mr")
RESNET10 = 14_355_520  # 64, 128, 256, 512 channels, blocks of two convolutions, 512 features
M3T = 30_280_160  # with 256 features; the paper states 29.12 M for the whole network
SIZE = (17, 19, 18)


def network_of(name, modalities=MODALITIES, **options):
    used = settle(("network", "bundle new"), ("call", {"system": name, **options})).used
    return build(modalities=modalities, **{option: used[option] for option in GROUPS["network"]})


def count(name, modalities=MODALITIES):
    with torch.device("meta"):
        return sum(p.numel() for p in network_of(name, modalities).parameters())


def small(name):
    torch.manual_seed(0)
    network = network_of(name, width=0.06).eval()
    return network, torch.randn(2, 3, *SIZE), torch.tensor([[True, True, True], [True, False, True]])


def linear(features, classes=2):
    return features * classes + classes


def input_fusion():
    """The channels are mixed by the first convolution: three of them cost two more kernels of 7 voxels, no more."""
    assert count("input_fusion") == RESNET10 + 2 * 64 * 7**3 + linear(512)
    network, image, present = small("input_fusion")
    features = network.standardize(network.encoders[0](image * present[:, :, None, None, None]))
    torch.testing.assert_close(network(image, present), network.classifier(features))


def feature_fusion():
    """Vectors side by side: each modality, encoded alone, adds its own part to the logits, an absent one nothing."""
    assert count("feature_fusion") == 3 * RESNET10 + linear(3 * 512)
    network, image, present = small("feature_fusion")
    head = network.classifier[-1]
    parts = head.weight.split(network.encoded_features, 1)
    vectors = [network.standardize[m](network.encoders[m](image[:, m : m + 1])) for m in range(3)]
    added = sum(present[:, m : m + 1] * (vectors[m] @ parts[m].T) for m in range(3))
    torch.testing.assert_close(network(image, present), head.bias + added)


def decision_fusion():
    """Each modality is classified alone, then Bayes' rule for independent modalities: p ~ prod p_m / prior^(n - 1)."""
    assert count("decision_fusion") == 3 * (RESNET10 + linear(512))
    network, image, present = small("decision_fusion")
    prior = torch.tensor([0.8, 0.2])
    network.rule.set_prior(prior)
    alone = [
        network.classifiers[m](network.standardize[m](network.encoders[m](image[:, m : m + 1]))).softmax(1)
        for m in range(3)
    ]
    both = torch.stack([alone[0][0] * alone[1][0] * alone[2][0] / prior**2, alone[0][1] * alone[2][1] / prior])
    torch.testing.assert_close(network(image, present).exp(), both / both.sum(1, keepdim=True))


def m3t_fusion():
    """The paper's M3T for each modality, but GroupNorm within and standardized vectors behind it."""
    assert count("m3t_fusion") == 3 * M3T + linear(3 * 256)
    network, image, _ = small("m3t_fusion")
    kinds = [type(part) for part in network.encoders.modules()]
    assert any(issubclass(kind, torch.nn.GroupNorm) for kind in kinds)
    assert not any(issubclass(kind, torch.nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert all(isinstance(one, Standardize) for one in network.standardize)
    torch.testing.assert_close(network(image), network.classifier(torch.cat(_vectors(network, image), 1)))


def m3t():
    """The paper has one modality: 4 % more parameters than it states. Of several, each has a network of its own."""
    assert count("m3t", ("mr",)) == M3T + linear(256)
    assert count("m3t", ("mr",)) == pytest.approx(29.12e6, rel=0.04)
    assert count("m3t") == 3 * M3T + linear(3 * 256)
    network, image, _ = small("m3t")
    assert {len(encoder.transformer[:-1]) for encoder in network.encoders} == {8}
    torch.testing.assert_close(network(image), network.classifier(torch.cat(_vectors(network, image), 1)))


def m3t_shared():
    """One M3T reads all modalities; a vector of each is all that tells them apart: as large as for one modality."""
    assert count("m3t_shared") == M3T + 3 * 256 + linear(3 * 256)
    network, image, _ = small("m3t_shared")
    marked = [network.encoders[0](image[:, m : m + 1]) + network.place[0].mark[m] for m in range(3)]
    torch.testing.assert_close(network(image), network.classifier(torch.cat(marked, 1)))


def m3t_joint():
    """One transformer over the slices of all modalities, none within an encoder: it is where they meet first."""
    network, image, _ = small("m3t_joint")
    assert len(network.operator.blocks) == 8 and network.operator.blocks[0].heads == 8
    assert all(len(encoder.transformer) == 1 for encoder in network.encoders)  # the LayerNorm
    own = [encoder.tokens(image[:, m : m + 1]) for m, encoder in enumerate(network.encoders)]
    changed = image.clone()
    changed[:, 2] += 1
    assert torch.equal(own[0], network.encoders[0].tokens(changed[:, :1]))
    assert own[0].shape[1] == sum(SIZE) + 4 and network.outputs(image).attention.shape[1:] == (3, own[0].shape[1])
    output, other = (network.outputs(one).modality_features[:, 0] for one in (image, changed))
    assert not torch.allclose(output, other)  # what is read of CT depends on MR


def _vectors(network, image):
    return [network.standardize[m](network.encoders[m](image[:, m : m + 1])) for m in range(3)]


CLAIMS = {
    claim.__name__: claim
    for claim in (input_fusion, feature_fusion, decision_fusion, m3t_fusion, m3t, m3t_shared, m3t_joint)
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_what_it_says(name):
    with torch.no_grad():
        CLAIMS[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_trained_by_its_name(name, tiny_cohort, tmp_path):
    small = {option: value for option, value in FAST.items() if option != "encoder"} | {"width": 0.06, "epochs": 1}
    train(tiny_cohort, tmp_path / "run", system=name, **small)
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert {option: options[option] for option in SYSTEMS[name].options} == SYSTEMS[name].options
    model = json.loads((tmp_path / "run" / "model.json").read_text())["network"]
    assert all(model[option] == value for option, value in SYSTEMS[name].options.items() if option in model)
