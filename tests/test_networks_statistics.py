"""Running statistics are those of the weights as they are."""

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


def test_mean_and_variance_are_those_of_the_rows_whatever_was_there():
    net, rows = First(Standardize(3)), torch.randn(11, 3) * 5 + 7
    net[0].norm.running_mean += 100
    settle_statistics(net, batches(rows, 4, 4, 2, 1))  # a single row is not normalized in training either
    seen = rows[:10]
    variance = (4 * seen[:4].var(0) + 4 * seen[4:8].var(0) + 2 * seen[8:].var(0)) / 10
    torch.testing.assert_close(net[0].norm.running_mean, seen.mean(0))
    torch.testing.assert_close(net[0].norm.running_var, variance)


def test_modes_momenta_and_weights_stay():
    net = First(torch.nn.Linear(3, 3), Standardize(3), torch.nn.Dropout(), torch.nn.BatchNorm1d(3, momentum=0.2))
    net[2].eval()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    settle_statistics(net, batches(torch.randn(8, 3), 4, 4))
    assert [part.training for part in net] == [True, True, False, True] and net.training
    assert (net[1].norm.momentum, net[3].momentum) == (0.1, 0.2)
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


def test_a_layer_that_sees_nothing_keeps_what_it_has():
    net = First(Standardize(2))
    net[0].norm.running_mean += 3
    settle_statistics(net, batches(torch.randn(2, 2), 1, 1))
    assert net[0].norm.running_mean.tolist() == [3, 3] and net[0].norm.running_var.tolist() == [1, 1]


def test_a_network_without_running_statistics_reads_nothing():
    def broken():
        raise AssertionError
        yield

    settle_statistics(First(torch.nn.Linear(2, 2)), broken())


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
    settle_statistics(net, [(image, present, None)])
    with torch.no_grad():
        seen = net.encoders[1](image[:4, 1:])
    torch.testing.assert_close(net.standardize[1].norm.running_mean, seen.mean(0))
    torch.testing.assert_close(net.standardize[1].norm.running_var, seen.var(0))
