"""What the fusion operators can and cannot learn, on drawn vectors, each claim with its negative control."""

import pytest
import torch
import torch.nn.functional as F
from paired import assert_better
from torch import nn

from mmfusion.networks.operators import FEATURE_OPERATORS

SEEDS = range(10)
OPERATORS = {
    "concat": {},
    "add": {"activation": "identity"},
    "tensor": {},
    "low_rank": {"rank": 1},
}


def pairs(label, seed):
    """1000 cases to train on and 1000 to test on: two modalities of 4 features; the label by their first ones."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2000, 2, 1, 4, generator=generator)
    a, b = values[:, 0, 0, 0], values[:, 1, 0, 0]
    score = {"product": a * b, "sum": a + b, "shuffled": (a + b)[torch.randperm(2000, generator=generator)]}[label]
    return values, (score > 0).long()


def trained(name, values, label, seed, drop=0.0, steps=120, **options):
    """An operator with a linear classifier after full-batch Adam; ``drop``: chance that a modality is left out."""
    torch.manual_seed(seed)
    count, features = values.shape[1], values.shape[3]
    operator = FEATURE_OPERATORS[name](count, features, **options)
    classifier = nn.Linear(operator.out_features, 2)
    optimizer = torch.optim.Adam([*operator.parameters(), *classifier.parameters()], 3e-2)
    everything = torch.ones(len(values), count).bool()
    for _ in range(steps):
        kept = everything
        if drop:
            kept = torch.rand(len(values), count) >= drop
            kept = kept | ~kept.any(1, keepdim=True)  # never none
        optimizer.zero_grad()
        F.cross_entropy(classify(operator, classifier, values, kept), label).backward()
        optimizer.step()
    return operator, classifier


def classify(operator, classifier, values, present):
    return classifier(operator(values * present[:, :, None, None], present)[0].squeeze(1))


@torch.no_grad()
def accuracy(model, values, label, kept=(True, True)):
    present = torch.tensor(kept).expand(len(values), -1)
    return (classify(*model, values, present).argmax(1) == label).float().mean().item()


def accuracies(name, task):
    found = []
    for seed in SEEDS:
        values, label = pairs(task, seed)
        model = trained(name, values[:1000], label[:1000], seed, **OPERATORS[name])
        found.append(accuracy(model, values[1000:], label[1000:]))
    return found


@pytest.mark.slow
def test_only_products_learn_a_multiplicative_interaction():
    found = {name: accuracies(name, "product") for name in OPERATORS}
    means = {name: sum(each) / len(each) for name, each in found.items()}
    assert max(means["concat"], means["add"]) < 0.6 and means["tensor"] > 0.85 and means["low_rank"] > 0.95, means
    for product in ("tensor", "low_rank"):
        for linear in ("concat", "add"):
            assert_better(found[product], found[linear], margin=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_all_learn_a_sum_and_none_a_shuffled_label(name):
    assert min(accuracies(name, "sum")) > 0.9
    shuffled = accuracies(name, "shuffled")
    assert abs(sum(shuffled) / len(shuffled) - 0.5) < 0.03


def disturbed(seed):
    """Modality 0 shows the class plainly and, more strongly, under a disturbance that modality 1 alone shows."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (2000,), generator=generator)
    sign, disturbance, noise = 2.0 * label - 1, *torch.randn(2, 2000, generator=generator)
    values = torch.zeros(2000, 2, 1, 2)
    values[:, 0, 0, 0] = sign + 3 * disturbance
    values[:, 0, 0, 1] = sign + noise
    values[:, 1, 0, 0] = disturbance
    values[:, 1, 0, 1] = torch.randn(2000, generator=generator)
    return values, label


def dropped_and_zero_filled(kept):
    """Accuracies with the modalities ``kept``, after training with modality dropout and without."""
    found = []
    for drop in (0.3, 0.0):
        each = []
        for seed in SEEDS:
            values, label = disturbed(seed)
            model = trained("concat", values[:1000], label[:1000], seed, drop)
            each.append(accuracy(model, values[1000:], label[1000:], kept))
        found.append(each)
    return found


@pytest.mark.slow
def test_modality_dropout_beats_zero_filling_where_one_modality_is_left():
    assert_better(*dropped_and_zero_filled((True, False)), margin=0.03)


@pytest.mark.slow
def test_modality_dropout_does_not_win_where_all_are_there():
    dropped, zero_filled = dropped_and_zero_filled((True, True))
    assert sum(dropped) / len(SEEDS) < sum(zero_filled) / len(SEEDS) + 0.03
