"""Fusion operators, decision rules and losses against slow, literal versions of their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from mmfusion.networks import build
from mmfusion.networks.decision import DECISION_RULES, MeanRule
from mmfusion.networks.operators import FEATURE_OPERATORS, ConcatFusion, GatedFusion

PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()


def vectors(features=5, requires_grad=False):
    drawn = torch.randn(4, 3, features, generator=torch.Generator().manual_seed(3)) * PRESENT[:, :, None]
    return drawn.requires_grad_(requires_grad)


def test_concat_keeps_the_order_of_the_modalities():
    fused, weights = ConcatFusion(3, 5)(vectors().unsqueeze(2), PRESENT)
    fused = fused.squeeze(1)
    assert np.array_equal(fused.numpy(), np.concatenate(list(vectors().numpy().transpose(1, 0, 2)), 1))
    assert weights is None and not fused[1, 5:10].any()


def test_gated_weights_are_a_softmax_over_present_modalities():
    gated, h = GatedFusion(3, 5), vectors()
    fused, weights = gated(h.unsqueeze(2), PRESENT)
    fused = fused.squeeze(1)
    for b, row in enumerate(PRESENT):
        scores = {}
        for m in torch.nonzero(row).flatten().tolist():
            value, opening = gated.gates[m](h[b, m]).detach().numpy().reshape(2, -1)
            hidden = np.tanh(value) / (1 + np.exp(-opening))
            score = gated.scores[m]
            scores[m] = float(score.weight.detach().numpy()[0] @ hidden) + score.bias.item()
        total = sum(map(math.exp, scores.values()))
        expected = [math.exp(scores[m]) / total if m in scores else 0.0 for m in range(3)]
        np.testing.assert_allclose(weights[b].detach(), expected, rtol=1e-5)
        np.testing.assert_allclose(fused[b].detach(), np.asarray(expected) @ h[b].numpy(), rtol=1e-5, atol=1e-6)


def test_gated_weights_can_follow_the_case():
    weights = GatedFusion(3, 5)(vectors().unsqueeze(2), PRESENT)[1].detach()
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    swapped = GatedFusion(2, 5)(torch.randn(2, 2, 1, 5), torch.ones(2, 2).bool())[1]
    assert not torch.allclose(swapped[0], swapped[1])


def test_mean_rule_is_the_mean_of_present_probabilities():
    logits = vectors(4)
    log_probabilities, weights = MeanRule(3, 4)(logits, PRESENT)
    for b, row in enumerate(PRESENT.numpy()):
        expected = softmax(logits[b].numpy()[row], axis=1).mean(0) if row.any() else np.full(4, 0.25)
        np.testing.assert_allclose(log_probabilities[b].exp(), expected, rtol=1e-5)
        np.testing.assert_allclose(weights[b], row / max(row.sum(), 1))


def test_mean_rule_survives_certain_modalities():
    logits = torch.tensor([[[200.0, -200.0], [200.0, -200.0]]])
    log_probabilities, _ = MeanRule(2, 2)(logits, torch.ones(1, 2).bool())
    torch.testing.assert_close(log_probabilities, torch.tensor([[0.0, -400.0]]))


@pytest.mark.parametrize("make", FEATURE_OPERATORS.values())
def test_gradients_of_operators_are_finite_also_in_a_row_without_modalities(make):
    given = vectors().unsqueeze(2).repeat(1, 1, 7, 1).requires_grad_()
    make(3, 5)(given, PRESENT)[0].sum().backward()
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("make", DECISION_RULES.values())
def test_gradients_of_rules_are_finite_also_in_a_row_without_modalities(make):
    given = vectors(requires_grad=True)
    make(3, 5)(given, PRESENT)[0].sum().backward()
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("weight", [None, [0.5, 2.0]])
def test_decision_losses(weight):
    net, label = build("decision", width=0.06), torch.tensor([0, 1, 1, 0])
    output = net.outputs(torch.randn(4, 3, 9, 11, 10), PRESENT)
    class_weight = None if weight is None else torch.tensor(weight)
    losses = net.losses(output, label, class_weight)
    weight = [1, 1] if weight is None else weight
    rows = [(weight[y], -float(lp[y])) for lp, y in zip(output.logits.detach(), label.tolist(), strict=True)]
    each = [
        (weight[y], -log_softmax(output.modality_logits[b, m].detach().numpy())[y])
        for b, y in enumerate(label.tolist())
        for m in range(3)
        if PRESENT[b, m]
    ]
    assert len(each) == 6 and sorted(losses) == ["classification", "unimodal"]
    for name, terms in (("classification", rows), ("unimodal", each)):
        expected = sum(w * t for w, t in terms) / len(terms)
        assert losses[name].item() == pytest.approx(expected, rel=1e-5)


def test_decision_loss_of_a_batch_without_any_modality_is_defined():
    net = build("decision", width=0.06)
    losses = net.losses(net.outputs(torch.ones(2, 3, 9, 9, 9), torch.zeros(2, 3)), torch.tensor([0, 1]))
    assert losses["unimodal"] == 0 and losses["classification"].item() == pytest.approx(math.log(2))


def test_other_strategies_have_the_one_loss():
    net = build("single_level", width=0.06)
    output = net.outputs(torch.randn(2, 3, 9, 9, 9))
    losses = net.losses(output, torch.tensor([0, 1]))
    expected = -np.mean(log_softmax(output.logits.detach().numpy(), axis=1)[[0, 1], [0, 1]])
    assert list(losses) == ["classification"] and losses["classification"].item() == pytest.approx(expected, rel=1e-5)
