"""Conditioning on covariates against literal versions of FiLM and DAFT, and what it can learn."""

import numpy as np
import pytest
import torch
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks import build, export_onnx, export_program
from mmfusion.networks.conditioning import CONDITIONINGS

COVARIATES = torch.tensor([[0.5, -1.0], [float("nan"), 2.0], [float("nan"), float("nan")]])


def conditioning(name, features=6, covariates=2):
    """A conditioning whose last layer is no longer the zeros it starts with."""
    torch.manual_seed(1)
    module = CONDITIONINGS[name](features, covariates)
    torch.nn.init.normal_(module.film[3].weight)
    torch.nn.init.normal_(module.film[3].bias)
    return module


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_factor_and_offset_are_an_mlp_of_the_covariates(name):
    module, features = conditioning(name), torch.randn(3, 5, 6)
    out = module(features, COVARIATES).detach().numpy()
    first, last = module.film[0], module.film[3]
    for b, row in enumerate(COVARIATES.numpy()):
        known = [0.0 if np.isnan(x) else x for x in row]
        missing = [float(np.isnan(x)) for x in row]
        seen = features[b].numpy().mean(0) if name == "daft" else []
        given = np.concatenate([known, missing, seen])
        hidden = np.maximum(first.weight.detach().numpy() @ given + first.bias.detach().numpy(), 0)
        factor, offset = np.split(last.weight.detach().numpy() @ hidden + last.bias.detach().numpy(), 2)
        for n in range(5):
            np.testing.assert_allclose(out[b, n], features[b, n].numpy() * (1 + factor) + offset, atol=1e-4)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_an_untrained_network_looks_at_the_image_alone(name):
    features = torch.randn(3, 5, 6)
    assert torch.equal(CONDITIONINGS[name](6, 2)(features, COVARIATES), features)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_missing_is_not_the_mean(name):
    module, features = conditioning(name), torch.randn(1, 5, 6)
    mean, missing = module(features, torch.zeros(1, 2)), module(features, torch.full((1, 2), float("nan")))
    assert mean.isfinite().all() and missing.isfinite().all() and not torch.allclose(mean, missing)


def test_only_daft_looks_at_the_image_to_choose_the_factor():
    for name, looks in (("film", False), ("daft", True)):
        module, features = conditioning(name), torch.randn(3, 1, 6)
        zero = module(torch.zeros_like(features), COVARIATES)
        twice = module(2 * features, COVARIATES) - zero  # twice as much, if the factor stays the same
        assert torch.allclose(twice, 2 * (module(features, COVARIATES) - zero), atol=1e-4) != looks


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_gradients_and_an_empty_batch(name):
    module, features = conditioning(name), torch.randn(3, 5, 6, requires_grad=True)
    module(features, COVARIATES).square().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (features, *module.parameters()))
    assert module(features[:0], COVARIATES[:0]).shape == (0, 5, 6)


@pytest.mark.parametrize("strategy", ["input", "single_level", "hierarchical", "attention", "decision", "hybrid"])
@pytest.mark.parametrize("name", CONDITIONINGS)
def test_a_network_answers_by_its_covariates(strategy, name):
    torch.manual_seed(0)
    net = build(strategy, covariates=2, conditioning=name, width=0.06).eval()
    image = torch.randn(3, 3, 9, 11, 10)
    assert torch.equal(net(image, None, COVARIATES), net(image, None, COVARIATES.flip(0)))  # untrained
    for module in net.modules():
        if hasattr(module, "film"):
            torch.nn.init.normal_(module.film[3].weight)
    answer, other = net(image, None, COVARIATES), net(image, None, COVARIATES.flip(0))
    assert answer.isfinite().all() and not torch.allclose(answer[::2], other[::2])
    assert torch.allclose(answer[1], other[1])


def accuracy(condition, seed):
    """Of 1000 new cases: the label is the sign of the image's first feature, turned by the sign of a covariate."""
    generator = torch.Generator().manual_seed(seed)
    features, covariate = torch.randn(2000, 1, 4, generator=generator), torch.randn(2000, 1, generator=generator)
    label = (features[:, 0, 0] * covariate[:, 0] > 0).long()
    torch.manual_seed(seed)
    module, classifier = condition(), torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam([*module.parameters(), *classifier.parameters()], 1e-2)
    train, test = slice(0, 1000), slice(1000, 2000)
    for _ in range(200):
        optimizer.zero_grad()
        logits = classifier(module(features[train], covariate[train]).squeeze(1))
        torch.nn.functional.cross_entropy(logits, label[train]).backward()
        optimizer.step()
    logits = classifier(module(features[test], covariate[test]).squeeze(1))
    return (logits.argmax(1) == label[test]).float().mean().item()


class Beside(torch.nn.Module):
    """The negative control: the covariate only adds to the features, as an offset would."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Linear(1, 4)

    def forward(self, features, covariates):
        return features + self.offset(covariates).unsqueeze(1)


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_conditioning_learns_an_interaction_that_the_image_alone_cannot_show(name):
    learned = [accuracy(lambda: CONDITIONINGS[name](4, 1), seed) for seed in range(3)]
    assert min(learned) > 0.9
    assert max(accuracy(Beside, seed) for seed in range(3)) < 0.6


def test_covariates_alone_are_a_linear_model_of_values_and_of_what_is_missing():
    torch.manual_seed(0)
    net = build("covariates", covariates=2, num_classes=3)
    image = torch.randn(3, 3, 2, 3, 5)
    assert torch.equal(net(image, None, COVARIATES), net.classifier[1].bias.expand(3, 3))  # untrained
    nn.init.normal_(net.classifier[1].weight)
    inputs = torch.tensor([[0.5, -1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 1]])
    assert torch.allclose(net(image, None, COVARIATES), net.classifier[1](inputs))
    assert torch.equal(net(image, None, COVARIATES), net(image + 1, torch.zeros(3, 3), COVARIATES))


def test_covariates_alone_need_one():
    with pytest.raises(NetworkError, match="strategy 'covariates' classifies by covariates alone, and none is named"):
        build("covariates")


@pytest.mark.parametrize("head", ["linear", "bayesian"])
def test_covariates_alone_can_be_exported(head, tmp_path):
    net = build("covariates", covariates=2, head=head, losses={"kl": 0.1} if head == "bayesian" else None)
    nn.init.normal_(net.classifier[1].weight)
    export_onnx(net, tmp_path / "model.onnx", (5, 6, 7))  # compared with the network there
    export_program(net, (5, 6, 7))
