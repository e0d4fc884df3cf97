"""M3T finds a lesion that is visible in slices of one plane only, whichever plane it is."""

import pytest
import torch
from paired import assert_better

from mmfusion.networks import build
from mmfusion.networks.slices import PLANES

SIZE, SLAB, SEEDS = 16, 12, 3
STEPS, RATE = 40, 3e-3
M3T = {"slice_stride": 1, "layers": 1, "cnn_width": 0.5}


def cohort(plane, cases, seed):
    """Volumes ``[cases, 1, 16, 16, 16]`` of Gaussian noise, in every second one a slab of 12 slices of stripes.

    A slice of the slab is ``g[j - i]``, g noise: stripes along its diagonal. Each of its rows and columns, which is
    all that a slice of another plane has of it, is independent noise, as everywhere else.
    """
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(cases) % 2
    image = torch.randn(cases, 1, SIZE, SIZE, SIZE, generator=draw)
    place = torch.arange(SIZE)
    for volume in image[1::2]:
        stripes = torch.randn(SLAB, 2 * SIZE - 1, generator=draw)[:, place[None] - place[:, None] + SIZE - 1]
        first = int(torch.randint(0, SIZE - SLAB + 1, (1,), generator=draw))
        volume[0].movedim(PLANES[plane] - 2, 0)[first : first + SLAB] = stripes
    return image, label


def settle(net, image):
    """Standardize by what the trained network says of its training cases.

    The running statistics still hold what it said while it changed fast. After few steps at a high learning rate they
    may lag so far behind that a network that tells all cases apart in training mode puts all in one class afterwards.
    """
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.reset_running_stats()
            part.momentum = None  # the mean over the batches
    with torch.no_grad():
        for rows in image.split(32):
            net.train()(rows, torch.ones(len(rows), 1))


def accuracy(encoder, options, plane, seed, shuffled=False):
    """Of new cases, after training on 192."""
    image, label = cohort(plane, 192, seed)
    torch.manual_seed(seed)
    target = label.view(-1, 2, 2).mT.flatten() if shuffled else label  # half of each class gets the other's label
    net = build("single_level", encoder, modalities=("mr",), width=0.25, encoder_options=options)
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.randperm(len(target))[:16]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image[rows], torch.ones(16, 1)), target[rows]).backward()
        optimizer.step()
        schedule.step()
    settle(net, image)
    image, label = cohort(plane, 96, seed + 100)
    with torch.no_grad():
        return (net.eval()(image, torch.ones(96, 1)).argmax(1) == label).float().mean().item()


def test_rows_and_columns_of_the_lesion_are_noise_and_its_diagonals_are_not():
    image, label = cohort("axial", 400, 0)
    inside = image[label == 1, 0, :, :, 4:12]  # every slab has these slices
    for one, other in ((inside[:, 1:], inside[:, :-1]), (inside[:, :, 1:], inside[:, :, :-1])):
        assert abs((one * other).mean()) < 0.02
    assert abs((inside[..., 1:] * inside[..., :-1]).mean()) < 0.02
    assert torch.equal(inside[:, 1:, 1:], inside[:, :-1, :-1])
    assert abs(inside.var() - 1) < 0.05 and abs(inside.mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("plane", PLANES)
def test_m3t_finds_what_one_plane_shows_and_slices_of_another_plane_do_not(plane):
    other = next(name for name in PLANES if name != plane)
    m3t = [accuracy("m3t_small", M3T, plane, seed) for seed in range(SEEDS)]
    own = [accuracy("slices", {"plane": plane, "cnn": "resnet10"}, plane, seed) for seed in range(SEEDS)]
    blind = [accuracy("slices", {"plane": other, "cnn": "resnet10"}, plane, seed) for seed in range(SEEDS)]
    assert_better(m3t, blind, margin=0.4)
    assert_better(own, blind, margin=0.4)  # the encoder can, in the right plane
    assert abs(sum(blind) / SEEDS - 0.5) < 0.12


@pytest.mark.slow
def test_m3t_finds_nothing_where_labels_are_shuffled():
    shuffled = [accuracy("m3t_small", M3T, "axial", seed, shuffled=True) for seed in range(SEEDS)]
    assert abs(sum(shuffled) / SEEDS - 0.5) < 0.12
