"""Fusion operators, decision rules and losses against slow, literal versions of their formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from mmfusion.errors import NetworkError
from mmfusion.networks import build
from mmfusion.networks.decision import DECISION_RULES, MeanRule
from mmfusion.networks.losses import pair_distance
from mmfusion.networks.operators import (
    FEATURE_OPERATORS,
    ConcatFusion,
    GatedFusion,
    LowRankFusion,
    SharedSpecificFusion,
    TensorFusion,
)

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
    operator = make(3, 5)
    operator(given, PRESENT)[0].square().sum().backward()
    assert given.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in operator.parameters())


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


def fused(name, **options):
    """An operator on 3 modalities of 4 features at 5 positions, and the same in numpy."""
    torch.manual_seed(1)
    operator = FEATURE_OPERATORS[name](3, 4, **options)
    values = torch.randn(4, 3, 5, 4) * PRESENT[:, :, None, None]
    out, _ = operator(values, PRESENT)
    assert out.shape == (4, 5, operator.out_features)
    weights = {key: value.detach().numpy() for key, value in operator.state_dict().items()}
    return out.detach().numpy(), values.numpy(), weights


def rows(values):
    """Each case and position, with its present modalities; a case without any is not among them."""
    for b, n in itertools.product(range(3), range(values.shape[2])):
        yield b, n, torch.nonzero(PRESENT[b]).flatten().tolist()


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_add_is_a_rescaled_sum_of_projections(activation):
    out, values, w = fused("add", out=6, activation=activation)
    for b, n, there in rows(values):
        expected = 3 / len(there) * sum(w[f"maps.{m}.weight"] @ values[b, m, n] for m in there)
        np.testing.assert_allclose(out[b, n], np.maximum(expected, 0) if activation == "relu" else expected, atol=1e-5)
    assert (out >= 0).all() == (activation == "relu") and not out[3].any()


@pytest.mark.parametrize("width", [None, 2])
def test_tensor_is_the_outer_product(width):
    out, values, w = fused("tensor", out=width)
    for b, n, _ in rows(values):
        each = [values[b, m, n] if width is None else w[f"project.{m}.weight"] @ values[b, m, n] for m in range(3)]
        a, c, d = (np.append(v, 1) for v in each)
        expected = [x * y * z for x in a for y in c for z in d]
        np.testing.assert_allclose(out[b, n], expected, atol=1e-5)
    assert not out[3].any()


def test_tensor_keeps_the_products_of_the_others_where_one_is_absent():
    values, absent = torch.randn(1, 3, 1, 4), torch.tensor([[True, False, True]])
    full = TensorFusion(3, 4)(values, torch.ones(1, 3).bool())[0].reshape(5, 5, 5)
    less = TensorFusion(3, 4)(values * absent[:, :, None, None], absent)[0].reshape(5, 5, 5)
    assert torch.equal(less[:, 4], full[:, 4]) and not less[:, :4].any()


def test_low_rank_is_a_sum_of_products_of_projections():
    out, values, w = fused("low_rank", rank=3, out=6)
    for b, n, _ in rows(values):
        expected = w["bias"].copy()
        for r, o in itertools.product(range(3), range(6)):
            factors = [np.append(values[b, m, n], 1) @ w["factors"][m, r, :, o] for m in range(3)]
            expected[o] += w["rank_weight"][0, r] * math.prod(factors)
        np.testing.assert_allclose(out[b, n], expected, atol=1e-5)
    assert not out[3].any()


def test_low_rank_equals_tensor_with_a_weight_of_low_rank():
    torch.manual_seed(2)
    low, values, both = LowRankFusion(2, 4, rank=3, out=6).double(), torch.randn(9, 2, 1, 4).double(), torch.ones(9, 2)
    weight = torch.einsum("r,rao,rbo->abo", low.rank_weight[0], *low.factors).flatten(0, 1)
    tensor = TensorFusion(2, 4)(values, both.bool())[0]
    torch.testing.assert_close(low(values, both.bool())[0], tensor @ weight + low.bias, rtol=0, atol=1e-6)


def test_bilinear_pools_each_pair():
    out, values, w = fused("bilinear", rank=3)
    for b, n, _ in rows(values):
        p = [w[f"project.{m}.weight"] @ values[b, m, n] + w[f"project.{m}.bias"] for m in range(3)]
        for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            root = np.asarray([np.sign(x * y) * math.sqrt(abs(x * y)) for x in p[i] for y in p[j]])
            np.testing.assert_allclose(out[b, n, 9 * k : 9 * k + 9], root / np.linalg.norm(root), atol=5e-3)
    assert not out[3].any()


def test_squeeze_excitation_gates_channels_by_the_mean_over_positions():
    out, values, w = fused("squeeze_excitation", reduction=2)
    for b in range(4):
        squeezed = np.concatenate([values[b, m].mean(0) for m in range(3)])
        joint = np.maximum(w["squeeze.weight"] @ squeezed + w["squeeze.bias"], 0)
        for m in range(3):
            gate = 2 / (1 + np.exp(-(w[f"excite.{m}.weight"] @ joint + w[f"excite.{m}.bias"])))
            np.testing.assert_allclose(out[b, :, 4 * m : 4 * m + 4], values[b, m] * gate, atol=1e-5)
    assert w["squeeze.weight"].shape == (6, 12)


def test_moments_are_mean_and_variance_of_the_present():
    out, values, _ = fused("moments")
    for b, n, there in rows(values):
        chosen = values[b, there, n]
        variance = chosen.var(0, ddof=1) if len(there) > 1 else np.zeros(4)
        np.testing.assert_allclose(out[b, n], np.concatenate([chosen.mean(0), variance]), atol=1e-5)
    assert not out[3].any()


def test_moments_do_not_know_the_order_of_the_modalities():
    values, order = torch.randn(4, 3, 5, 4) * PRESENT[:, :, None, None], torch.tensor([2, 0, 1])
    for name, same in (("moments", True), ("concat", False), ("add", False)):
        operator = FEATURE_OPERATORS[name](3, 4)
        out, turned = operator(values, PRESENT)[0], operator(values[:, order], PRESENT[:, order])[0]
        assert torch.allclose(out, turned, atol=1e-6) == same


def test_shared_specific_parts():
    out, values, w = fused("shared_specific")
    for b, n, there in rows(values):
        shared = np.mean([w["shared.weight"] @ values[b, m, n] + w["shared.bias"] for m in there], 0)
        each = [w[f"specific.{m}.weight"] @ values[b, m, n] + w[f"specific.{m}.bias"] for m in range(3)]
        specific = [each[m] if m in there else np.zeros(4) for m in range(3)]
        np.testing.assert_allclose(out[b, n], np.concatenate([shared, *specific]), atol=1e-5)
    assert not out[3].any()


@pytest.mark.parametrize("name", FEATURE_OPERATORS)
def test_who_looks_at_what_stands_for_an_absent_modality(name):
    takes = name in ("concat", "tensor", "low_rank", "bilinear")  # the learned vector
    operator, values = FEATURE_OPERATORS[name](3, 4), torch.randn(4, 3, 5, 4)
    zeros = values * PRESENT[:, :, None, None]
    learned = torch.where(PRESENT[:, :, None, None], values, torch.full((4,), 2.0))
    out, other = operator(zeros, PRESENT)[0], operator(learned, PRESENT)[0]
    assert torch.equal(out[0], other[0])
    assert torch.equal(out[1:3], other[1:3]) != takes
    assert not out[3].any() and (name == "concat" or not other[3].any())


@pytest.mark.parametrize("name", FEATURE_OPERATORS)
def test_operators_fuse_position_by_position_and_an_empty_batch(name):
    if name in ("gated", "squeeze_excitation"):  # these look at the mean over the positions
        return
    operator, values = FEATURE_OPERATORS[name](3, 4), torch.randn(4, 3, 5, 4)
    alone = torch.cat([operator(values[:, :, n : n + 1], PRESENT)[0] for n in range(5)], 1)
    torch.testing.assert_close(operator(values, PRESENT)[0], alone)
    assert operator(values[:0], PRESENT[:0])[0].shape == (0, 5, operator.out_features)


@pytest.mark.parametrize(
    ("name", "modalities", "options", "message"),
    [
        (
            "tensor",
            3,
            {},
            "3 modalities with 100 features makes 1,030,301 products, more than 1,000,000; use fusion 'low",
        ),
        ("tensor", 3, {"out": 0}, "tensor option out must be at least 1, found 0"),
        ("bilinear", 1, {}, "fusion 'bilinear' needs at least 2 modalities, found 1"),
        ("bilinear", 2, {"rank": 0}, "bilinear option rank must be at least 1, found 0"),
        ("low_rank", 2, {"rank": 0}, "low_rank option rank must be at least 1, found 0"),
        ("low_rank", 2, {"out": -1}, "low_rank option out must be at least 1, found -1"),
        ("squeeze_excitation", 2, {"reduction": 0}, "squeeze_excitation option reduction must be at least 1, found 0"),
        ("add", 2, {"out": 0}, "add option out must be at least 1, found 0"),
        ("add", 2, {"activation": "rel"}, "unknown add option activation 'rel'; did you mean 'relu'?"),
    ],
)
def test_operators_refuse(name, modalities, options, message):
    with pytest.raises(NetworkError) as error:
        FEATURE_OPERATORS[name](modalities, 100, **options)
    assert message in str(error.value)


def literal_pair_distance(vectors, present):
    terms = []
    for row, there in zip(vectors, present, strict=True):
        unit = [v / np.linalg.norm(v) if there[m] else None for m, v in enumerate(row)]
        terms += [((unit[i] - unit[j]) ** 2).sum() for i, j in ((0, 1), (0, 2), (1, 2)) if there[i] and there[j]]
    return np.mean(terms)


@pytest.mark.parametrize("strategy", ["single_level", "hierarchical", "attention", "decision", "hybrid"])
def test_similarity_loss_is_the_distance_of_present_pairs(strategy):
    torch.manual_seed(0)
    net = build(strategy, width=0.06, losses={"similarity": 0.5, "unimodal": 0.5})
    output = net.outputs(torch.randn(4, 3, 9, 11, 10), PRESENT)
    found = net.losses(output, torch.tensor([0, 1, 1, 0]))["similarity"]
    expected = literal_pair_distance(output.modality_features.detach().numpy(), PRESENT.numpy())
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-4) and expected > 0.01
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_similarity_of_known_vectors():
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[1.0, 1.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 1.0]]])
    present = torch.tensor([[1, 1], [1, 1], [1, 0]]).bool()
    assert pair_distance(vectors, present).item() == pytest.approx(1)  # 2 and 0; the last has no pair
    assert pair_distance(vectors[2:], present[2:]) == 0 and pair_distance(vectors[:0], present[:0]) == 0


def test_shared_specific_loss():
    torch.manual_seed(0)
    net = build(fusion="shared_specific", width=0.06, losses={"shared_specific": 2.0})
    output = net.outputs(torch.randn(4, 3, 9, 11, 10), PRESENT)
    found = net.losses(output, torch.tensor([0, 1, 1, 0]))["shared_specific"].item()
    vectors, shared = output.modality_features, net.operator.shared(output.modality_features).detach().numpy()
    cosines, told = [], []
    for b, m in torch.nonzero(PRESENT).tolist():
        s, p = shared[b, m], net.operator.specific[m](vectors[b, m]).detach().numpy()
        cosines.append((s @ p / np.linalg.norm(s) / np.linalg.norm(p)) ** 2)
        told.append(-log_softmax(p @ net.operator.directions.numpy())[m])
    expected = literal_pair_distance(shared, PRESENT.numpy()) + np.mean(cosines) + np.mean(told)
    assert found == pytest.approx(2 * expected, rel=1e-4)


def test_shared_specific_loss_parts_the_features():
    torch.manual_seed(0)
    operator, values, there = SharedSpecificFusion(2, 6), torch.randn(200, 2, 6), torch.ones(200, 2).bool()
    values[:, 1, :3] = values[:, 0, :3]  # what both modalities show
    optimizer = torch.optim.Adam(operator.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = operator.separation(values, there)
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    weight = operator.shared.weight.detach().abs()
    assert weight[:, :3].mean() > 3 * weight[:, 3:].mean()  # the shared part reads what both show


def test_loss_shared_specific_needs_its_operator():
    with pytest.raises(NetworkError, match="loss 'shared_specific' needs fusion 'shared_specific', found 'concat'"):
        build(losses={"shared_specific": 1.0})
