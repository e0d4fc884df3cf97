"""Two processes train as one: every loss of a network takes part in the exchange of gradients."""

import copy
import os
from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mmfusion.networks import build
from mmfusion.training import TrainingStep, total_loss

NETWORKS = {
    "decision": {},
    "hybrid": {"losses": {"unimodal": 1.0, "similarity": 0.5}},
    "attention": {"losses": {"unimodal": 0.7}},
}


def make(strategy):
    torch.manual_seed(0)
    return TrainingStep(build(strategy, width=0.06, **NETWORKS[strategy]), [0.75, 1.5])


def half(rank):
    """Three cases; those of rank 1 lack the third modality altogether."""
    image = torch.randn(3, 3, 9, 11, 10, generator=torch.Generator().manual_seed(rank))
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1]]).bool()
    present[:, 2] &= rank == 0
    return image, present, None, torch.tensor([0, 1, rank])


def gradients(step):
    return {name: p.grad.clone() for name, p in step.named_parameters()}


def work(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=240), world_size=2, rank=rank)
    image, present, covariates, label = half(rank)
    found = {}
    for strategy in NETWORKS:
        step = make(strategy)
        ddp = DistributedDataParallel(step)
        output = ddp.module.network.outputs(image, present)  # past DDP's forward
        total_loss(ddp.module.network.losses(output, label, step.class_weight)).backward()
        outside = gradients(step)
        step.zero_grad()
        ddp = DistributedDataParallel(make(strategy))
        total_loss(ddp(image, present, covariates, label)[1]).backward()
        found[strategy] = {"inside": gradients(ddp.module), "outside": outside}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_all_losses_are_those_of_one_process(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for strategy in NETWORKS:
        alone = []
        for rank in (0, 1):  # each half by itself, as the statistics over the cases are per process
            step = copy.deepcopy(make(strategy))
            losses = step(*half(rank))[1]
            assert set(losses) == {"classification", "unimodal", *NETWORKS[strategy].get("losses", {})}
            total_loss(losses).backward()
            alone.append(gradients(step))
        for name in alone[0]:
            one, other = (ranks[rank][strategy]["inside"][name] for rank in (0, 1))
            assert torch.equal(one, other), (strategy, name)
            torch.testing.assert_close(one, (alone[0][name] + alone[1][name]) / 2, rtol=1e-5, atol=1e-6)
        apart = [torch.cat([g.flatten() for g in ranks[rank][strategy]["outside"].values()]) for rank in (0, 1)]
        assert (apart[0] - apart[1]).norm() > 0.1 * apart[0].norm()  # the negative control
