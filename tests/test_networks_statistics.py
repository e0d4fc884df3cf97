"""Running statistics are those of the weights as they are, over all rows, however these come."""

import copy

import pytest
import torch

from mmfusion.networks import build
from mmfusion.networks.blocks import Standardize
from mmfusion.networks.statistics import settle_statistics


def batches(rows, *sizes):
    """The rows as batches of these sizes, for a network that reads its first argument only."""
    return [(part, None, None) for part in rows.split(sizes)]


class First(torch.nn.Sequential):
    def forward(self, image, present, covariates):
        return super().forward(image)


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 2, 1), (1,) * 11])
def test_mean_and_variance_are_those_of_all_rows(sizes):
    net, rows = First(Standardize(3)), torch.randn(11, 3).sort(0).values * 5 + 7
    net[0].norm.running_mean += 100
    settle_statistics(net, batches(rows, *sizes))
    torch.testing.assert_close(net[0].norm.running_mean, rows.mean(0))
    torch.testing.assert_close(net[0].norm.running_var, rows.var(0))


def test_maps_count_with_every_voxel():
    net, rows = First(torch.nn.BatchNorm3d(2)), torch.randn(7, 2, 3, 5, 4) + torch.arange(7).reshape(7, 1, 1, 1, 1)
    settle_statistics(net, batches(rows, 3, 0, 3, 1))
    values = rows.transpose(0, 1).flatten(1)
    torch.testing.assert_close(net[0].running_mean, values.mean(1))
    torch.testing.assert_close(net[0].running_var, values.var(1))


def test_modes_momenta_and_weights_stay():
    net = First(torch.nn.Linear(3, 3), Standardize(3), torch.nn.Dropout(), torch.nn.BatchNorm1d(3, momentum=0.2))
    net[2].eval()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    settle_statistics(net, batches(torch.randn(8, 3), 4, 4))
    assert [part.training for part in net] == [True, True, False, True] and net.training
    assert (net[1].norm.momentum, net[3].momentum) == (0.1, 0.2)
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


def test_a_layer_that_sees_one_row_keeps_what_it_has():
    net = First(Standardize(2))
    net[0].norm.running_mean += 3
    settle_statistics(net, batches(torch.randn(1, 2), 1, 0))
    assert net[0].norm.running_mean.tolist() == [3, 3] and net[0].norm.running_var.tolist() == [1, 1]


def test_a_network_without_running_statistics_reads_nothing():
    def broken():
        raise AssertionError
        yield

    settle_statistics(First(torch.nn.Linear(2, 2)), broken())


def classes_apart(norm):
    """A network whose vectors differ between the classes, its cases ``[24, 2, ...]``, and their labels."""
    torch.manual_seed(0)
    net = build("single_level", "cnn", modalities=("ct", "mr"), width=0.5, norm=norm)
    label = torch.arange(24) % 2
    image = 0.3 * torch.rand(24, 2, 11, 13, 17)
    image[:, :, 3:8, 4:9, 5:11] += label.reshape(-1, 1, 1, 1, 1)
    return net, image, label


def answers(net, image, order, size):
    """Logits in evaluation, the statistics settled on the rows in this order."""
    net, present = copy.deepcopy(net), torch.ones(len(image), 2, dtype=torch.bool)
    settle_statistics(net, [(image[rows], present[rows], None) for rows in order.split(size)])
    with torch.no_grad():
        return net.eval()(image, present)


def test_neither_the_order_nor_the_size_of_batches_changes_the_answers():
    net, image, label = classes_apart("group")
    expected = answers(net, image, torch.arange(24), 24)
    assert expected.std(0).min() > 0.1
    for order, size in ((label.argsort(), 8), (label.argsort(), 23), (torch.randperm(24), 5)):
        torch.testing.assert_close(answers(net, image, order, size), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_within_the_encoder_depends_a_little_on_who_shares_a_batch():
    net, image, label = classes_apart("batch")
    one, two = (answers(net, image, torch.randperm(24), 8) for _ in range(2))
    far = answers(net, image, label.argsort(), 8)  # which is why a training draws the order at random
    assert (one - two).abs().max() < 0.2 * one.std() < 0.5 * (one - far).abs().max()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_evaluation_answers_as_training_after_the_weights_have_jumped(norm):
    torch.manual_seed(0)
    net = build("single_level", "cnn", modalities=("ct", "mr"), width=0.5, norm=norm)
    image, present = torch.rand(12, 2, 11, 13, 17), torch.ones(12, 2, dtype=torch.bool)
    with torch.no_grad():
        for weight in net.encoders.parameters():
            weight.add_(0.5)
        in_training = net.train()(image, present)
        assert (net.eval()(image, present) - in_training).abs().max() > 0.1
        settle_statistics(net, [(image, present, None)])
        torch.testing.assert_close(net.eval()(image, present), in_training, rtol=0.1, atol=0.02)


def test_absent_modalities_do_not_count():
    torch.manual_seed(0)
    net = build("single_level", "cnn", modalities=("ct", "mr"), width=0.5)
    image, present = torch.rand(6, 2, 11, 13, 17), torch.ones(6, 2, dtype=torch.bool)
    present[4:, 1] = False
    settle_statistics(net, [(image[rows], present[rows], None) for rows in torch.arange(6).split(3)])
    with torch.no_grad():
        seen = net.encoders[1](image[:4, 1:])
    torch.testing.assert_close(net.standardize[1].norm.running_mean, seen.mean(0))
    torch.testing.assert_close(net.standardize[1].norm.running_var, seen.var(0))
