"""What papers claim of attention between modalities and of weighted losses, on generated data, with its control."""

from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paired import assert_better
from torch import nn

from mmfusion.networks import FusionOutput
from mmfusion.networks.losses import LOSSES, adaptive_weights
from mmfusion.networks.token_operator import TokenOperator
from mmfusion.networks.tokens import CrossFusion, JointFusion

SEEDS = range(10)
WIDTH = 8  # of what a token shows; one number more says which token is the cue
BOTH, A_ALONE = torch.tensor([True, True]), torch.tensor([True, False])
MANY, FEW = (3, 4), (2, 2)  # tokens of A and B


def relation(cases, seed, counts=MANY):
    """Tokens of two modalities of which each alone is the same in both classes, and where to look.

    One token of A is the cue, and one token of B is equal to a token of A: in class 1 to the cue, in class 0 to
    another one.
    """
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(cases, counts[0], WIDTH, generator=generator)
    b = torch.randn(cases, counts[1], WIDTH, generator=generator)
    label, cue, match = (torch.randint(n, (cases,), generator=generator) for n in (2, *counts))
    other = (cue + torch.randint(1, counts[0], (cases,), generator=generator)) % counts[0]
    a, b = (F.normalize(x, dim=2) * WIDTH**0.5 for x in (a, b))
    rows = torch.arange(cases)
    b[rows, match] = a[rows, torch.where(label == 1, cue, other)]
    tokens = [torch.cat([a, 2.0 * F.one_hot(cue, counts[0]).unsqueeze(2)], 2), F.pad(b, [0, 1])]
    return [x + 0.05 * torch.randn(x.shape, generator=generator) for x in tokens], label, cue, match


class Classifier(nn.Module):
    """A token operator and a linear layer, on the fused vector or on what it made of one modality."""

    def __init__(self, operator: TokenOperator, of: int | None = None) -> None:
        super().__init__()
        self.operator, self.of = operator, of
        self.head = nn.Linear(operator.out_features if of is None else operator.dim, 2)

    def forward(self, tokens, present=BOTH):
        made = self.operator(tokens, present[: len(tokens)].expand(len(tokens[0]), -1))
        return self.head(made.fused if self.of is None else made.modality_features[:, self.of])


class Late(nn.Module):
    """A read-out of each modality by itself, with attention within it; the mean of their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(Classifier(JointFusion(1, WIDTH + 1, dim=16, heads=1, layers=1)) for _ in range(2))

    def forward(self, tokens, present=BOTH):
        return (self.each[0](tokens[:1]) + self.each[1](tokens[1:])) / 2


def trained(make, seed, counts=MANY, steps=300, cases=256):
    torch.manual_seed(seed)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    tokens, label, *_ = relation(steps * cases, seed, counts)
    for batch in torch.arange(steps * cases).split(cases):
        optimizer.zero_grad()
        F.cross_entropy(net([one[batch] for one in tokens]), label[batch]).backward()
        optimizer.step()
    return net.eval()


def accuracy(net, seed, counts=MANY, present=BOTH):
    tokens, label, *_ = relation(1000, 1000 + seed, counts)
    return (net(tokens, present).argmax(1) == label).float().mean().item()


@lru_cache
def late_fusion(counts):
    return [accuracy(trained(Late, seed, counts), seed, counts) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize("counts", [MANY, FEW])
def test_late_fusion_does_not_learn_a_relation(counts):
    assert abs(np.mean(late_fusion(counts)) - 0.5) < 0.03


def cross():
    """A's tokens query B's; only what became of A's is read."""
    return Classifier(CrossFusion(2, WIDTH + 1, dim=16, heads=1, layers=1), of=0)


def joint():
    return Classifier(JointFusion(2, WIDTH + 1, dim=32, heads=1, layers=2))


def found(net, seed):
    """Share of the cases of class 1 in which A's cue attends most to the token of B that is equal to it."""
    tokens, label, cue, match = relation(1000, 1000 + seed)
    seen, attention = [], net.operator.layers[0][0].attentions[0]
    hook = attention.register_forward_hook(lambda module, args, out: seen.append(module.weights(*args)))
    net(tokens)
    hook.remove()
    most = seen[0][torch.arange(1000), cue].argmax(1)
    return (most == match)[label == 1].float().mean().item()


def alone(net):
    """The same network for A alone, with the same weights, that never heard of B."""
    one = Classifier(CrossFusion(1, WIDTH + 1, dim=16, heads=1, layers=1), of=0)
    known = net.state_dict()
    one.load_state_dict({key: known[key][:1] if key.endswith("mark") else known[key] for key in one.state_dict()})
    return one


@pytest.mark.slow
def test_cross_attention_finds_the_matching_token_of_the_other_modality():
    nets = [trained(cross, seed) for seed in SEEDS]
    assert np.mean([found(net, seed) for seed, net in enumerate(nets)]) >= 0.9
    assert np.mean([found(cross(), seed) for seed in SEEDS]) < 0.5  # 1 of 4, before training
    assert_better([accuracy(net, seed) for seed, net in enumerate(nets)], late_fusion(MANY), margin=0.3)
    without_b = [accuracy(net, seed, present=A_ALONE) for seed, net in enumerate(nets)]
    assert abs(np.mean(without_b) - 0.5) < 0.03
    tokens = relation(50, 0)[0]
    for net in nets:
        torch.testing.assert_close(net(tokens, A_ALONE), alone(net)(tokens[:1]))


@pytest.mark.slow
def test_joint_attention_learns_a_relation_that_decision_fusion_cannot():
    nets = [trained(joint, seed, FEW) for seed in SEEDS]
    assert_better([accuracy(net, seed, FEW) for seed, net in enumerate(nets)], late_fusion(FEW), margin=0.4)


def weights_after_training(separations, seed, steps=100):
    """AGDAF's weights on new cases: each modality shows the class by the distance of its two means from 0."""
    generator = torch.Generator().manual_seed(seed)

    def output(net, cases=256):
        label = torch.randint(2, (cases,), generator=generator)
        means = (2 * label - 1)[:, None, None] * torch.tensor(separations)[:, None]
        vectors = means + torch.randn(cases, len(separations), 4, generator=generator)
        logits = torch.stack([layer(vectors[:, m]) for m, layer in enumerate(net)], 1)
        return FusionOutput(logits.mean(1), torch.ones(cases, len(separations)).bool(), logits), label

    torch.manual_seed(seed)
    net = nn.ModuleList(nn.Linear(4, 2) for _ in separations)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSSES["adaptive"].term(*output(net), None, None).backward()
        optimizer.step()
    return adaptive_weights(*output(net, 2000)).numpy()


def test_adaptive_weights_follow_the_information():
    unequal = np.stack([weights_after_training([0.8, 0.2, 0.0], seed) for seed in SEEDS])
    assert_better(unequal[:, 0], unequal[:, 1], margin=0.2)
    assert_better(unequal[:, 1], unequal[:, 2], margin=0.02)
    equal = np.stack([weights_after_training([0.4, 0.4, 0.4], seed) for seed in SEEDS])
    assert np.abs(equal - 1 / 3).max() < 0.03
