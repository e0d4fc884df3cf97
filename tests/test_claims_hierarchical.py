"""Claim: where the class is what two modalities show at the same place, fusion at every level beats pooled vectors.

Each of two modalities shows 8 patterns, one in each octant, at a random place there: stripes along the first axis (A)
or along the second (B), four of each, so that counts say nothing. The class is whether both modalities show the same
pattern at the same place (everywhere) or the other one (everywhere).
"""

import itertools

import pytest
import torch
from paired import assert_better

from mmfusion.networks import build, combinations

pytestmark = pytest.mark.slow
SIZE, PATCH, SEEDS = (16, 18, 20), 4, range(3)


def corners(generator):
    """A place for a pattern in each octant: ``[8, 3]``."""
    octants = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    return octants * torch.tensor(SIZE) // 2 + torch.randint(0, 5, (8, 3), generator=generator)


def show(volume, corner, pattern):
    """Add stripes along axis ``pattern`` (0: A, 1: B) at ``corner``."""
    wave = torch.tensor([2.0, -2.0, 2.0, -2.0]).reshape([PATCH if axis == pattern else 1 for axis in range(3)])
    x, y, z = corner
    volume[x : x + PATCH, y : y + PATCH, z : z + PATCH] += wave


def agreement(cases, generator):
    """Class 1: both modalities show the same pattern at each place. Class 0: the other one."""
    label = torch.randint(2, (cases,), generator=generator)
    image = 0.5 * torch.randn(cases, 2, *SIZE, generator=generator)
    for volumes, one in zip(image, label.tolist(), strict=True):
        patterns = (torch.randperm(8, generator=generator) < 4).long().tolist()
        for corner, pattern in zip(corners(generator).tolist(), patterns, strict=True):
            show(volumes[0], corner, pattern)
            show(volumes[1], corner, pattern if one else 1 - pattern)
    return image, label


def presence(cases, generator):
    """The negative control: pet shows pattern B somewhere (class 1) or A (class 0); ct shows A somewhere."""
    label = torch.randint(2, (cases,), generator=generator)
    image = 0.5 * torch.randn(cases, 2, *SIZE, generator=generator)
    for volumes, one in zip(image, label.tolist(), strict=True):
        for volume, pattern in zip(volumes, (one, 0), strict=True):
            for corner in corners(generator)[torch.randperm(8, generator=generator)[:4]].tolist():
                show(volume, corner, pattern)
    return image, label


def network(strategy, fusion="concat"):
    # the single-level network is twice as wide, so that it has no fewer parameters
    width = 1.0 if strategy == "hierarchical" else 2.0
    options = {"channels": (8, 16)}
    return build(strategy, "cnn", fusion, ("pet", "ct"), width=width, encoder_options=options)


def accuracy(strategy, cohort, seed, fusion="concat"):
    """On 200 new cases, after 40 steps on 256."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    (image, label), (new, truth) = cohort(256, generator), cohort(200, generator)
    net = network(strategy, fusion)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(40):
        rows = torch.randint(256, (32,), generator=generator)
        optimizer.zero_grad()
        sum(net.losses(net.outputs(image[rows]), label[rows]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        return (net.eval()(new).argmax(1) == truth).float().mean().item()


def test_hierarchical_fusion_sees_what_agrees_at_the_same_place():
    fused = [accuracy("hierarchical", agreement, seed) for seed in SEEDS]
    pooled = [accuracy("single_level", agreement, seed) for seed in SEEDS]
    assert_better(fused, pooled, margin=0.25)
    assert min(fused) > 0.9 and max(pooled) < 0.65  # chance is 0.5


@pytest.mark.parametrize("fusion", combinations()["single_level"]["fusion"])
def test_no_operator_finds_the_place_in_pooled_vectors(fusion):
    assert accuracy("single_level", agreement, 0, fusion) < 0.65


def test_both_see_a_pattern_that_one_modality_shows_anywhere():
    assert min(accuracy(one, presence, seed) for seed in SEEDS for one in ("hierarchical", "single_level")) > 0.9


def test_the_comparison_is_fair():
    counts = [sum(p.numel() for p in network(one).parameters()) for one in ("hierarchical", "single_level")]
    assert counts[0] <= counts[1]
    image, label = agreement(64, torch.Generator().manual_seed(0))
    spread = (image**2).flatten(2).mean(2)  # neither modality tells the class by itself
    assert (spread[label == 1].mean(0) - spread[label == 0].mean(0)).abs().max() < 0.02
