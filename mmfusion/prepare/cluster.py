"""Jobs on a Dask cluster, behind the interface of ``concurrent.futures`` and as safe as in processes of one's own."""

from __future__ import annotations

import gc
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

from mmfusion import __version__
from mmfusion.errors import LostError, OptionError
from mmfusion.prepare.processes import in_own_process

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECT_S = 30


class Cluster(Executor):
    """The workers of a running Dask cluster.

    Each job runs in a process of its own beside the Dask worker, so that a crash or a hang ends neither the worker nor
    the jobs beside it. If a whole node is lost, Dask gives its jobs to others; a job that is lost four times fails.

    Args:
        address: of the scheduler, as ``tcp://node7:8786``.
        limit_s: seconds that one job may take; none if None.

    Raises:
        OptionError: Dask is not installed, or no scheduler answers. A job raises it if its worker has another version.
    """

    def __init__(self, address: str, limit_s: float | None = None) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise OptionError("--scheduler needs Dask: pip install 'mmfusion[cluster]'") from None
        problem = ""
        try:
            self._client = Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            problem = str(error)
        if problem:
            # Dask's client closes itself when it is collected, and would wait forever for a lock if that happened
            # while another one starts: let it go now
            gc.collect()
            raise OptionError(f"no Dask scheduler answers at {address} ({problem}); check --scheduler")
        self._limit_s = limit_s
        self._executor = self._client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do ``fn(*args, **kwargs)`` on a worker; all of it, and what it returns or raises, is pickled."""
        job: Future[Any] = Future()
        job.set_running_or_notify_cancel()
        sent = self._executor.submit(_on_worker, __version__, (fn, args, kwargs), self._limit_s)
        sent.add_done_callback(partial(_hand_over, job))
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; jobs that have not begun are cancelled, what others do is lost, the workers stay."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


def _hand_over(job: Future[Any], sent: Future[Any]) -> None:
    """What came of a job on the cluster, with its loss in our words."""
    from distributed import KilledWorker

    if sent.cancelled():
        job.set_exception(LostError("it was cancelled on the cluster"))
    elif isinstance(sent.exception(), KilledWorker):
        job.set_exception(LostError("its Dask worker died, and so did those that tried after it"))
    elif (error := sent.exception()) is not None:
        job.set_exception(error)
    else:
        job.set_result(sent.result())


def _on_worker(version: str, job: Any, limit_s: float | None) -> Any:
    if version != __version__:  # workers may join late, so each job looks
        raise OptionError(
            f"a worker of the cluster has mmfusion {__version__}, where the command runs it is {version}; "
            "install the same version everywhere"
        )
    return in_own_process(job, limit_s)
