"""Jobs in processes of their own: what ends or stops one of them harms no other job."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

from mmfusion.errors import LostError

if TYPE_CHECKING:
    from collections.abc import Callable

_START = "from mmfusion.prepare.processes import serve; serve()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}  # the others have theirs


class Processes(Executor):
    """Worker processes behind the interface of ``concurrent.futures``; each does one job at a time.

    Unlike ``ProcessPoolExecutor``, a process that dies takes only its own job with it: the job's future raises
    :class:`LostError`, and a new process takes its place. Workers are started afresh, not forked, and know nothing of
    the calling script, which therefore needs no ``if __name__ == "__main__"``. They end when their parent does.

    Args:
        count: processes.
        limit_s: seconds that one job may take; none if None.
    """

    def __init__(self, count: int, limit_s: float | None = None) -> None:
        self._threads = ThreadPoolExecutor(count)  # each waits for a process of its own
        self._limit_s = limit_s
        self._team = _Team()
        self._jobs: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do ``fn(*args, **kwargs)`` in a process; all of it, and what it returns or raises, is pickled."""
        self._jobs.append(self._threads.submit(self._team.do, (fn, args, kwargs), self._limit_s))
        return self._jobs[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finish what is under way (and what waits, unless it is cancelled), and end the processes.

        If there is something to wait for, that is said; Ctrl-C meanwhile ends the processes at once. Without ``wait``
        they end with the parent: one that is at work cannot be asked to.
        """
        try:
            self._threads.shutdown(False, cancel_futures=cancel_futures)
            if wait:
                self._say_what_is_under_way()
                self._threads.shutdown()
                self._team.stop()
        except KeyboardInterrupt:
            self._team.kill()  # which also ends the threads that wait for them
            raise

    def _say_what_is_under_way(self) -> None:
        if count := sum(job.running() for job in self._jobs):
            cases = "1 case is" if count == 1 else f"{count} cases are"
            most = f", at most {self._limit_s:g} s" if self._limit_s else ""
            line = f"stopping: {cases} being finished{most}; Ctrl-C again ends at once"
            print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)


class _Team:
    """A process for each thread that asks, kept for its next job and replaced when it dies."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._workers: list[_Worker] = []
        self._is_over = False

    def do(self, job: Any, limit_s: float | None) -> Any:
        """What the job returns, from this thread's process; raises what it raises, or :class:`LostError`."""
        worker = getattr(self._mine, "worker", None)
        if worker is None or worker.late.is_set():
            worker = self._mine.worker = _Worker()
            self._workers.append(worker)
        if self._is_over:  # asked after the others were killed, or this one was made meanwhile
            worker.kill()
        try:
            good, answer = worker.ask(job, limit_s)
        except LostError:
            self._workers.remove(worker)
            self._mine.worker = None
            raise
        if good:
            return answer
        raise answer

    def stop(self) -> None:
        """End the processes; none has anything to do."""
        for worker in self._workers:
            worker.stop()

    def kill(self) -> None:
        """End the processes at once, whatever they do; what they did is lost."""
        self._is_over = True
        for worker in list(self._workers):
            worker.kill()


_beside = _Team()


def in_own_process(job: Any, limit_s: float | None = None) -> Any:
    """Do a job ``(fn, args, kwargs)`` in a process beside this one, which the calling thread keeps for its next job.

    For threads that belong to somebody else, as those of a Dask worker do. The processes end with this one.
    """
    return _beside.do(job, limit_s)


class _Worker:
    """One process, and the pipes to it.

    Attributes:
        late: its last job took too long, and it was ended, perhaps with the answer just given.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is the parent's: a case under way is finished, so that none is half written
            start_new_session=True,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self.late = threading.Event()
        self._jobs, self._answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)

    def ask(self, job: Any, limit_s: float | None) -> tuple[bool, Any]:
        """Whether the job went well, and what it returned, or the error that it raised."""

        def end() -> None:
            self.late.set()
            self._process.kill()

        timer = threading.Timer(limit_s, end) if limit_s else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            pickle.dump(job, self._jobs)
            self._jobs.flush()
            good, answer = pickle.load(self._answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.stop()
            raise LostError(f"took longer than {limit_s:g} s" if self.late.is_set() else _ended(code)) from None
        finally:
            if timer:
                timer.cancel()
        return good, answer

    def kill(self) -> None:
        """End it at once; whoever waits for its answer gets a :class:`LostError`."""
        self._process.kill()

    def stop(self) -> int:
        """End it, if it has not ended, and return its exit code; it has nothing to do."""
        with suppress(BrokenPipeError):
            self._jobs.close()
        code = self._process.wait()
        self._answers.close()
        return code


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    why = ", most likely for lack of memory" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{why}"


def serve() -> None:
    """The life of a worker process: jobs from standard input, answers to what was standard output."""
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            fn, args, kwargs = pickle.load(jobs)
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, fn(*args, **kwargs)))
        except Exception as error:
            answer = pickle.dumps((False, error))
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(1)


def _end_with_parent() -> None:
    """Wait until nobody holds the other end of standard input, and end at once, whatever is under way."""
    hang_up = select.poll()
    hang_up.register(0, 0)
    hang_up.poll()
    os._exit(1)
