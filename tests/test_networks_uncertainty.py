"""The Bayesian head against a literal one, and what predict_with_uncertainty promises of every kind of network."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks import FusionOutput, build, combinations, predict_with_uncertainty
from mmfusion.networks.heads import FlipoutLinear

KL = {"kl": 1 / 100, "unimodal": 0.5}
STRATEGIES = list(combinations())


def network(strategy="single_level", seed=0, **options):
    torch.manual_seed(seed)
    return build(strategy, modalities=("ct", "pet"), num_classes=3, width=0.06, **options).eval()


def bayesian(strategy="single_level", **options):
    losses = {"kl": 1 / 100} if strategy == "input" else KL
    net = network(strategy, head="bayesian", losses=losses, **options)
    for layer in flipouts(net):
        nn.init.constant_(layer.rho, 0.0)  # wide posteriors, as if hardly trained
    return net


def flipouts(net):
    return [layer for layer in net.modules() if isinstance(layer, FlipoutLinear)]


def batch(cases=3, seed=0):
    return torch.randn(cases, 2, 9, 11, 10, generator=torch.Generator().manual_seed(seed))


def layer(inputs=5, outputs=3):
    torch.manual_seed(1)
    made = FlipoutLinear(inputs, outputs)
    nn.init.normal_(made.rho)
    return made


def test_a_draw_is_the_one_of_the_paper_case_by_case():
    made, x = layer(), torch.randn(4, 5)
    torch.manual_seed(7)
    drawn = made(x)
    torch.manual_seed(7)
    delta = made.rho.exp().add(1).log() * torch.randn(3, 5)
    s, r = 1 - 2 * torch.randint(2, (4, 5)), 1 - 2 * torch.randint(2, (4, 3))
    for n in range(4):  # case n sees the weights mu + dW * (r s^T)
        weight = made.weight + delta * torch.outer(r[n], s[n])
        torch.testing.assert_close(drawn[n], weight @ x[n] + made.bias)


def test_mean_and_variance_of_the_draws_are_the_posteriors():
    made, x = layer(), torch.randn(2, 5)
    draws = torch.stack([made(x) for _ in range(20_000)]).detach()
    torch.testing.assert_close(draws.mean(0), made.eval()(x).detach(), rtol=0, atol=0.06)
    variance = (x**2) @ (F.softplus(made.rho) ** 2).T
    torch.testing.assert_close(draws.var(0), variance.detach(), rtol=0.06, atol=0)


def test_perturbations_of_the_cases_of_a_batch_are_uncorrelated():
    made, x = layer(), torch.ones(2, 5)
    draws = torch.stack([made(x) for _ in range(20_000)]).detach()
    together = torch.stack([torch.corrcoef(draws[:, :, k].T)[0, 1] for k in range(3)])
    assert together.abs().max() < 0.03  # one draw of the weights for both would give 1


def test_in_evaluation_the_layer_is_linear():
    made, x = layer().eval(), torch.randn(4, 5)
    assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
    assert made.train()(torch.zeros(0, 5)).shape == (0, 3)


def test_kl_is_that_of_torch():
    made = layer()
    posterior = torch.distributions.Normal(made.weight.double(), F.softplus(made.rho.double()))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(made.kl().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_classifier_is_bayesian_and_learns(strategy):
    net = bayesian(strategy).train()
    output = net.outputs(batch(), torch.tensor([[1, 1], [0, 1], [0, 0]]))
    losses = net.losses(output, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(losses["kl"], sum(one.kl() for one in flipouts(net)) / 100)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    expected = {"input": 1, "decision": 2}.get(strategy, 3)  # the fused one and one a modality
    assert len(flipouts(net)) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["bayesian", "dropout", "ensemble"])
def test_the_parts_are_those_of_the_sampled_probabilities(strategy, kind):
    image, present = batch(), torch.tensor([[1, 1], [0, 1], [0, 0]])
    if kind == "ensemble":
        nets = [network(strategy, seed) for seed in range(3)]
        drawn = [net(image, present) for net in nets]
    else:
        nets = bayesian(strategy) if kind == "bayesian" else network(strategy, dropout=0.4)
        torch.manual_seed(5)
        for module in nets.modules():
            module.training = isinstance(module, (FlipoutLinear, nn.Dropout))
        drawn = [nets(image, present) for _ in range(6)]  # the encoders run each time
        nets.train()
    answer = predict_with_uncertainty(nets, image, present, samples=6, seed=5)
    p = torch.stack(drawn).softmax(2).detach()
    entropy = torch.distributions.Categorical(probs=p).entropy().mean(0)
    torch.testing.assert_close(answer.probabilities, p.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answer.total, torch.distributions.Categorical(p.mean(0)).entropy())
    torch.testing.assert_close(answer.aleatoric, entropy)
    torch.testing.assert_close(answer.epistemic, answer.total - entropy, rtol=1e-3, atol=1e-6)
    assert (answer.epistemic[:2] > 1e-5).all() and (answer.total <= math.log(3) + 1e-6).all()


@pytest.mark.parametrize(("dropout", "runs"), [(0.0, 1), (0.3, 5)])
@pytest.mark.parametrize("strategy", ["single_level", "attention"])
def test_an_encoder_runs_once_unless_something_in_it_is_random(strategy, dropout, runs):
    small = {"layers": 1, "dim": 8, "heads": 2, "dropout": dropout}
    net = bayesian(strategy, encoder="m3t_small", encoder_options=small)
    calls = []
    next(net.encoders[0].children()).register_forward_hook(lambda *_: calls.append(1))
    first, other = (predict_with_uncertainty(net, batch(seed=seed), samples=5) for seed in range(2))
    assert len(calls) == 2 * runs
    assert not torch.equal(first.probabilities, other.probabilities)  # nothing is remembered beyond a call


def test_seeds_repeat_and_nothing_is_left_behind():
    net = bayesian(dropout=0.3, norm="batch").train()
    net.classifier.eval()
    image = torch.cat([batch()] * 4, 3)  # long enough for BatchNorm
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags, state = [m.training for m in net.modules()], torch.get_rng_state()
    first, again = (predict_with_uncertainty(net, image, samples=4, seed=3) for _ in range(2))
    other = predict_with_uncertainty(net, image, samples=4, seed=4)
    assert all(map(torch.equal, first, again)) and not torch.equal(first.probabilities, other.probabilities)
    assert [m.training for m in net.modules()] == flags and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all("forward" not in vars(encoder) for encoder in net.encoders)


def test_flags_come_back_after_an_error():
    net = bayesian().train()
    with pytest.raises(NetworkError, match="the network takes image"):
        predict_with_uncertainty(net, torch.zeros(1, 3, 9, 9, 9))
    assert all(m.training for m in net.modules()) and "forward" not in vars(net.encoders[0])


def test_members_that_agree_leave_no_epistemic_part_and_their_order_plays_no_role():
    net, image = network("decision"), batch()
    same = predict_with_uncertainty([net, net], image)
    assert (same.epistemic < 1e-7).all() and (same.aleatoric > 0).all()
    torch.testing.assert_close(same.probabilities, net(image).softmax(1).detach())
    members = [net, network(seed=1), bayesian("hybrid")]  # one random member: all are drawn, with equal weight
    there, back = (predict_with_uncertainty(nets, image, samples=8) for nets in (members, members[::-1]))
    torch.testing.assert_close(there, back)
    each = [net(image).softmax(1), members[1](image).softmax(1)]
    each.append(predict_with_uncertainty(members[2], image, samples=8).probabilities)
    torch.testing.assert_close(there.probabilities, torch.stack(each).mean(0).detach())


def test_covariates_reach_the_network_and_an_empty_batch_is_answered():
    net = bayesian(covariates=1)
    for parameter in net.condition.parameters():  # at the start it has no effect
        nn.init.normal_(parameter)
    answers = [predict_with_uncertainty(net, batch(), covariates=torch.full((3, 1), c)) for c in (-1.0, 1.0)]
    assert not torch.allclose(answers[0].probabilities, answers[1].probabilities)
    none = predict_with_uncertainty(net, batch(0), torch.zeros(0, 2), torch.zeros(0, 1), samples=2)
    assert none.probabilities.shape == (0, 3) and none.epistemic.shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (network, "this network has nothing random to sample, so that its epistemic uncertainty would read 0"),
        (list, "predict_with_uncertainty needs at least one network, found none"),
        (
            lambda: [network(), build(modalities=("mr", "ct"), width=0.06)],
            "same modalities and classes, found ct, pet with 3 classes and mr, ct with 2",
        ),
        (bayesian, "samples must be at least 2, found 1"),
        (lambda: network(head="bayesian"), "head 'bayesian' needs the loss 'kl' with the weight 1 / number of"),
        (lambda: network(losses={"kl": 0.1}), "loss 'kl' needs head 'bayesian', found 'linear'"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(NetworkError) as error:
        predict_with_uncertainty(make(), batch(), samples=1)
    assert message in str(error.value)


def test_kl_counts_each_layer_once_whatever_the_output():
    net = bayesian("hybrid")
    nothing = FusionOutput(torch.zeros(0, 3), torch.zeros(0, 2), modality_logits=torch.zeros(0, 2, 3))
    assert net.losses(nothing, torch.zeros(0, dtype=torch.long))["kl"] > 0
