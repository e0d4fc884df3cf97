"""Two processes train as one: gradients, metrics and weights are those of one process with the same batches."""

import copy
import csv
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from tiny_cohort import FAST
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mmfusion.bundle import TEMPLATE, run_config
from mmfusion.errors import CohortError, MmfusionError, OptionError
from mmfusion.files import Predictions
from mmfusion.networks import build
from mmfusion.predict import load_model
from mmfusion.training import TrainingStep, connect, open_study, share_of_step, total_loss
from mmfusion.training.distributed import by_first, gather, refuse_together

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


# a whole training, as a user types it


def torchrun(cohort, run, **options):
    """Two processes on the CPU, by gloo."""
    files = [str(TEMPLATE / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
    given = FAST | {"cohort": str(cohort), "run_dir": str(run)} | options
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files)]
    command += [f"--{name}={value}" for name, value in given.items()]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=run.parent, capture_output=True, text=True, timeout=300, env=environment)


class SameBatches:
    """The batches of both processes, put together: what one process must train on to do the same."""

    def __init__(self, cases, share, seed):
        sampler = torch.utils.data.DistributedSampler
        self.samplers = [sampler(range(cases), num_replicas=2, rank=rank, seed=seed) for rank in (0, 1)]
        self.share, self.epoch = share, 0

    def __len__(self):
        return -(-len(self.samplers[0]) // self.share)

    def __iter__(self):
        self.epoch += 1
        for sampler in self.samplers:
            sampler.set_epoch(self.epoch)
        first, second = map(list, self.samplers)
        for start in range(0, len(first), self.share):
            yield first[start : start + self.share] + second[start : start + self.share]


def rows_of(path):
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_same_batches(tiny_cohort, tmp_path):
    plain = {"epochs": 3, "standardize": False, "modality_drop": 0.0, "seed": 4}  # nothing goes over a batch's cases
    done = torchrun(tiny_cohort, tmp_path / "two", **plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device cpu | train 14 (") == 1 and done.stderr.count("epoch   3/3 | train loss") == 1
    alone = FAST | plain | {"cohort": str(tiny_cohort), "run_dir": str(tmp_path / "one")}
    loader = {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_sampler": SameBatches(14, 4, seed=4)}
    run_config("train", **alone, **{"train#dataloader": loader})
    for two, one in zip(rows_of(tmp_path / "two/history.csv"), rows_of(tmp_path / "one/history.csv"), strict=True):
        assert two == pytest.approx(one, abs=2e-5)
    (about, two), (same, one) = load_model(tmp_path / "two"), load_model(tmp_path / "one")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert about.threshold == pytest.approx(same.threshold, abs=1e-4)
    run_config("evaluate", run_dir=str(tmp_path / "two"), resamples=100, device="cpu")
    assert len(Predictions.read(tmp_path / "two" / "predictions.csv")) == 5


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all_processes(tiny_cohort, tmp_path):
    done = torchrun(tiny_cohort, tmp_path / "run", batch_size=3)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert "error: batch_size is 3, which 2 processes cannot share; give a multiple of 2" in done.stderr
    assert done.stderr.count("Traceback") == 1 and "ChildFailedError" in done.stderr  # torchrun's own


# one process alone


def test_several_processes_are_started_by_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(OptionError, match="for several processes; start it with torchrun --standalone"):
        connect("cpu", 0)


def test_one_process_shares_with_nobody(tiny_cohort, tmp_path):
    assert gather("a") == ["a"] and by_first(max)(3, 7) == 7
    refuse_together(None)
    with pytest.raises(MmfusionError, match="^the loss is odd$"):
        refuse_together("the loss is odd")
    assert share_of_step(open_study(tmp_path, cohort=tiny_cohort, batch_size=3)) == 3


def test_each_process_needs_a_validation_case(tiny_cohort, tmp_path, monkeypatch):
    study = open_study(tmp_path, cohort=tiny_cohort, batch_size=12)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 6)
    with pytest.raises(CohortError, match="has 5 validation cases for 6 processes; each needs one"):
        share_of_step.__wrapped__(study)
