"""Processes that crash, hang, print and lose their parent; the jobs beside them are not harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import as_completed
from pathlib import Path

import pytest

from mmfusion.errors import LostError, VoxelError
from mmfusion.prepare.processes import Processes


def test_results_and_errors_come_back():
    with Processes(2) as pool:
        jobs = {pool.submit(divmod, n, 7): n for n in range(20)}
        assert {jobs[job]: job.result() for job in as_completed(jobs)} == {n: divmod(n, 7) for n in range(20)}
        with pytest.raises(ValueError, match="invalid literal for int"):
            pool.submit(int, "seven").result()
        with pytest.raises(VoxelError, match="the mask is empty"):
            pool.submit(exec, "from mmfusion.errors import VoxelError; raise VoxelError('the mask is empty')").result()
        assert pool.submit(os.getpid).result() != os.getpid()


def test_a_process_that_dies_takes_only_its_own_job():
    ends = {
        f"os.kill(os.getpid(), {int(signal.SIGSEGV)})": "its process was ended by SIGSEGV",
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})": "its process was ended by SIGKILL, most likely for lack of "
        "memory",
        "os._exit(3)": "its process ended with code 3",
    }
    with Processes(2) as pool:
        for end, why in ends.items():
            jobs = [pool.submit(divmod, n, 7) for n in range(4)]
            dying = pool.submit(exec, f"import os; {end}")
            jobs += [pool.submit(divmod, n, 7) for n in range(4, 8)]
            with pytest.raises(LostError) as error:
                dying.result()
            assert str(error.value) == why
            assert [job.result() for job in jobs] == [divmod(n, 7) for n in range(8)]


def test_a_crash_in_native_code_is_survived():
    with Processes(1) as pool:
        with pytest.raises(LostError, match="ended by SIGSEGV"):
            pool.submit(exec, "import ctypes; ctypes.string_at(0)").result()
        assert pool.submit(len, "abc").result() == 3


def test_a_job_that_hangs_is_ended():
    with Processes(1, limit_s=3) as pool:
        with pytest.raises(LostError, match="took longer than 3 s"):
            pool.submit(time.sleep, 600).result()
        assert pool.submit(len, "abc").result() == 3


def test_memory_that_is_not_there_is_an_error_of_the_job():
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); bytearray(8 << 30)"
    with Processes(1) as pool, pytest.raises(MemoryError):
        pool.submit(exec, limited).result()


def test_what_a_job_prints_does_not_get_between_the_answers(capfd):
    with Processes(1) as pool:
        assert pool.submit(os.system, "echo from below").result() == 0
        assert pool.submit(print, "from above").result() is None
        assert pool.submit(len, "abc").result() == 3
    assert capfd.readouterr().out == ""


def test_a_script_needs_no_guard_and_its_workers_end_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nfrom mmfusion.prepare.processes import Processes\npool = Processes(1)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\npool.submit(time.sleep, 600)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    state = Path(f"/proc/{worker}/stat")
    for _ in range(100):
        if not state.exists() or " Z " in state.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent by 10 s")
