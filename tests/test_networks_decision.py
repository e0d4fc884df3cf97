"""The decision rules against slow, literal forms, and the prior that they answer with."""

import numpy as np
import pytest
import torch

from mmfusion.evaluation import prior_correction
from mmfusion.networks.decision import DECISION_RULES

PRESENT = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1]]).bool()


def shares(seed=0, classes=4):
    return torch.randn(4, 3, classes, generator=torch.Generator().manual_seed(seed)).softmax(2)


def independent(cases, seed, separations=(1.0, 1.0, 1.0), frequent=0.8, prior=None):
    """Labels, and logits of calibrated classifiers of normal features at ``prior`` (of the cases, unless given)."""
    rng, means = np.random.default_rng(seed), np.array(separations)
    label = (rng.random(cases) >= frequent).astype(int)
    odds = means * (rng.normal(size=(cases, len(means))) + (label[:, None] - 0.5) * means)
    chance = 1 - frequent if prior is None else prior
    logit = torch.from_numpy(odds + np.log(chance / (1 - chance))).float()
    return (
        torch.stack([torch.zeros_like(logit), logit], 2),
        torch.ones(cases, len(means)).bool(),
        torch.from_numpy(label),
    )


def literal(name, p):
    if name == "max":
        out = p.max(0)
    elif name == "product":
        out = np.prod(p, 0) / np.array([0.4, 0.3, 0.2, 0.1]) ** (len(p) - 1)
    else:
        out = np.bincount(p.argmax(1), minlength=4) + 0.25
    return out / out.sum()


@pytest.mark.parametrize("name", ["max", "product", "majority"])
def test_rule_against_its_literal_form(name):
    given, rule = shares(), DECISION_RULES[name](3, 4)
    rule.set_prior([4.0, 3.0, 2.0, 1.0])
    said = rule(given.log(), PRESENT)[0].exp()
    for b, row in enumerate(PRESENT):
        np.testing.assert_allclose(said[b], literal(name, given[b][row].numpy()), rtol=1e-5)


@pytest.mark.parametrize("name", DECISION_RULES)
def test_absent_modalities_do_not_count(name):
    given, rule = shares().log(), DECISION_RULES[name](3, 4)
    other = torch.where(PRESENT.unsqueeze(2), given, torch.randn(4, 3, 4))
    torch.testing.assert_close(rule(given, PRESENT)[0], rule(other, PRESENT)[0])
    torch.testing.assert_close(rule(given, PRESENT)[0].exp().sum(1), torch.ones(4))


def test_stacking_fitted_with_class_weights_answers_at_the_weighted_prior():
    """Corrected to the shares of the cases, it must agree with the true posterior; without the weights it does not."""
    weight = [1 / (2 * 0.8), 1 / (2 * 0.2)]
    logits, present, label = independent(20000, 0, prior=0.5)
    truth = torch.sigmoid((logits[:, :, 1]).sum(1) + np.log(0.2 / 0.8)).numpy()
    error = {}
    for name, given in (("weighted", weight), ("plain", None)):
        rule = DECISION_RULES["stacking"](3, 2)
        rule.fit(logits, present, label, given)
        said = prior_correction(rule(logits, present)[0].exp().double().numpy(), np.full(2, 0.5), np.array([0.8, 0.2]))
        error[name] = np.abs(said[:, 1] - truth).mean()
    assert error["weighted"] < 0.02 < 0.08 < error["plain"]


def test_product_at_the_weighted_prior_is_corrected_to_the_true_posterior():
    logits, present, _ = independent(500, 1, prior=0.5)
    rule = DECISION_RULES["product"](3, 2)
    rule.set_prior([0.8 * 0.625, 0.2 * 2.5])
    said = prior_correction(rule(logits, present)[0].exp().double().numpy(), np.full(2, 0.5), np.array([0.8, 0.2]))
    truth = torch.sigmoid(logits[:, :, 1].sum(1) + np.log(0.2 / 0.8))
    np.testing.assert_allclose(said[:, 1], truth, rtol=1e-4, atol=1e-6)
