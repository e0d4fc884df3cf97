"""Several processes that train one network: what each does alone, and what all must agree on.

Everything here is what it is in one process, too, where there is nothing to agree on.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ignite.distributed as idist
import torch
from ignite.engine import Events
from torch import distributed

from mmfusion.errors import CohortError, MmfusionError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmfusion.training.study import Study

Work = TypeVar("Work", bound="Callable[..., Any]")

_PATIENCE = timedelta(days=1)  # the others wait while the first process prepares a cohort


def own_device() -> torch.device:
    """The GPU of this process, one each as ``torchrun`` numbers them; or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def connect(device: Any, seed: int) -> None:
    """Join the processes that ``torchrun`` started, by NCCL on GPUs and by gloo on CPUs.

    Args:
        device: the one that this process trains on.
        seed: of the run; each process draws its own random numbers, as each sees other cases.

    Raises:
        OptionError: nothing started several processes.
    """
    if "RANK" not in os.environ:
        raise OptionError(
            "multi_gpu_train.yaml is for several processes; start it with torchrun --standalone --nproc_per_node=2 "
            "-m monai.bundle run ..., or leave it out"
        )
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    torch.manual_seed(seed + idist.get_rank())


def disconnect() -> None:
    """Leave the other processes, all together: gloo's thread may hold the last reference to what was just exchanged,
    and a process that ends meanwhile waits for this thread, which waits for Python, for ever."""
    with suppress(RuntimeError):  # another one has left already
        distributed.barrier()
    distributed.destroy_process_group()


@contextmanager
def joined(device: Any, seed: int) -> Iterator[None]:
    """Where ``torchrun`` started several processes: together, until all have ended well; else nothing.

    Args:
        device, seed: see :func:`connect`.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized()
    if several:
        connect(device, seed)
    yield
    if several:
        disconnect()


def is_first() -> bool:
    """Whether this process writes and prints for all: the first one, or the only one."""
    return idist.get_rank() == 0


def gather(value: Any) -> list[Any]:
    """What each process has, in their order, in every process."""
    if idist.get_world_size() == 1:
        return [value]
    values = [None] * idist.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def refuse_together(problem: str | None) -> None:
    """End every process where one has a problem; the first one says which.

    Raises:
        MmfusionError: the first problem, in the first process.
        SystemExit: in the others, which have nothing to add.
    """
    if idist.all_reduce(int(problem is not None)):  # cheap enough for every step
        problems = [one for one in gather(problem) if one]
        _end_others()
        raise MmfusionError(problems[0])


def by_first(work: Work) -> Work:
    """A function that the first process alone runs, and that gives its result to all.

    Where it fails, the first process raises what it raised, and the others end without a word.
    """

    @wraps(work)
    def shared(*args: Any, **kwargs: Any) -> Any:
        if idist.get_world_size() == 1:
            return work(*args, **kwargs)
        said: list[Any] = [False, None]
        try:
            if is_first():
                said = [True, work(*args, **kwargs)]
        finally:  # also after an error, which the others wait for
            distributed.broadcast_object_list(said)
            if not said[0]:
                _end_others()
        return said[1]

    return cast("Work", shared)


def _end_others() -> None:
    """End this process without a word, unless it is the first, whose word counts: torchrun ends all processes as soon
    as it sees one fail, so the others wait for that."""
    if idist.get_world_size() > 1:
        distributed.barrier()  # see disconnect
        if not is_first():
            time.sleep(60)
            raise SystemExit(1)


class FollowFirst:
    """Gives every process the buffers of the first one before each validation: its network is the one that is written.

    Running statistics are those of a process's own cases in between.

    Args:
        network: without any wrapper.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def attach(self, engine: Any) -> None:
        """Register with an evaluator (called by MONAI)."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Take over the buffers (called by ignite)."""
        for buffer in self.network.buffers():
            distributed.broadcast(buffer, 0)


@by_first
def share_of_step(study: Study) -> int:
    """How many of the ``batch_size`` cases of a step each process takes.

    Raises:
        OptionError: the batch does not divide among the processes.
        CohortError: there are fewer validation cases than processes.
    """
    processes, batch = idist.get_world_size(), study.options["batch_size"]
    if batch % processes:
        raise OptionError(
            f"batch_size is {batch}, which {processes} processes cannot share; give a multiple of {processes}, or "
            "another --nproc_per_node"
        )
    if (cases := len(study.cases("validation"))) < processes:
        raise CohortError(
            f"{study.cohort.folder} has {cases} validation cases for {processes} processes; each needs one. Start "
            "fewer (--nproc_per_node)"
        )
    return int(batch // processes)
