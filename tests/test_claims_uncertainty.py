"""Uncertainty rises out of distribution, and the entropy of a network without random parts does not tell."""

import numpy as np
import pytest
import torch
from paired import assert_better
from sklearn.metrics import roc_auc_score

from mmfusion.networks import predict_with_uncertainty
from mmfusion.networks.decision import MeanRule
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.heads import HEADS
from mmfusion.networks.network import Plan
from mmfusion.networks.operators import ConcatFusion
from mmfusion.networks.strategies import SingleLevelFusion

SEEDS = range(10)
SIGNAL, NUISANCE, CASES = 1, 10, 300  # of each of two modalities; of the training set


class Numbers(Encoder):
    """Images that are vectors already: ``[B, 1, F, 1]`` to ``[B, F]``."""

    out_features = SIGNAL + NUISANCE

    def forward(self, image):
        return image.flatten(1)


def cohort(cases, seed, scale=1.0):
    """Two modalities with a signal of the class each, and nuisance numbers of that scale."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (cases,), generator=generator)
    image = torch.randn(cases, 2, SIGNAL + NUISANCE, 1, generator=generator)
    image[:, :, SIGNAL:] *= scale
    image[:, :, :SIGNAL] += 1.2 * (2 * label - 1)[:, None, None, None]
    return image, label


def trained(head, seed, steps=400):
    torch.manual_seed(seed)
    losses = {"kl": 1 / CASES} if head == "bayesian" else {}
    operator, encoder = ConcatFusion, lambda name, channels: Numbers()
    plan = Plan(("a", "b"), 2, 2, encoder, operator, MeanRule, HEADS[head], standardize=False, losses=losses)
    net = SingleLevelFusion(plan)
    image, label = cohort(CASES, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = torch.randint(CASES, (64,))
        optimizer.zero_grad()
        sum(net.losses(net.outputs(image[rows]), label[rows]).values()).backward()
        optimizer.step()
    return net.eval()


def tells_apart(inside, outside):
    """Area under the ROC curve of a number that should be larger outside."""
    return roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), torch.cat([inside, outside]).numpy())


def entropy(net, image):
    return torch.distributions.Categorical(logits=net(image).detach()).entropy()


@pytest.mark.slow
def test_epistemic_uncertainty_rises_out_of_distribution():
    known, plain, same, ratio = [], [], [], []
    for seed in SEEDS:
        inside, again, outside = (cohort(500, 100 + 100 * n + seed, scale)[0] for n, scale in enumerate((1, 1, 6)))
        net = trained("bayesian", seed)
        one, two, three = (predict_with_uncertainty(net, image).epistemic for image in (inside, again, outside))
        known.append(tells_apart(one, three))
        same.append(tells_apart(one, two))
        ratio.append((three.mean() / one.mean()).item())
        linear = trained("linear", seed)
        plain.append(tells_apart(entropy(linear, inside), entropy(linear, outside)))
    assert min(ratio) > 3 and min(known) > 0.8, (ratio, known)
    assert abs(np.mean(same) - 0.5) < 0.03  # other cases of the same distribution are not out of it
    assert np.mean(plain) < 0.5, plain  # over-confident
    assert_better(known, plain, margin=0.3)


def test_without_its_loss_the_posterior_narrows():
    """Why such a network is refused: the cross entropy alone trains the noise away."""
    net = trained("bayesian", 0, steps=150)
    head = net.classifier[1]
    start = head.rho.detach().clone()
    image, label = cohort(CASES, 0)
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-2)
    net.loss_weights = {}
    for _ in range(150):
        optimizer.zero_grad()
        sum(net.losses(net.outputs(image), label).values()).backward()
        optimizer.step()
    assert head.rho.mean() < start.mean() - 0.3
