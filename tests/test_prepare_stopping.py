"""Ctrl-C while cases are prepared: what is waited for is said, a second one ends at once, and the work is kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_scans import write_study

from mmfusion.prepare import damaged_files, open_cohort, prepare_cohort

OPTIONS = ["--spacing", "12", "11", "13", "--size", "9", "11", "7", "--register", "none"]
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of three subjects, and its cohort."""
    folder = tmp_path_factory.mktemp("study")
    manifest = write_study(folder)
    grid = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7]}
    return manifest, prepare_cohort(manifest, folder / "cohort", workers=1, register="none", **grid)


def start(manifest, out, *options):
    command = [sys.executable, "-m", "mmfusion", "prepare", str(manifest), "--out", str(out), *OPTIONS, *options]
    # a shell lets what it starts in the background ignore Ctrl-C, which the command would inherit through these tests
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def halted_workers(parent, count):
    """The processes that a command has started, as soon as all are there, each of them halted."""
    for _ in range(600):
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        workers = [pid for pid in children if "serve()" in Path(f"/proc/{pid}/cmdline").read_text()]  # has begun
        if len(workers) == count:
            for pid in workers:
                send(pid, signal.SIGSTOP)
            return workers
        time.sleep(0.1)
    pytest.fail("no workers after 60 s")


def is_alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and " Z " not in state.read_text()


def send(pid, number):
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)


def goes_on(manifest, out, whole):
    """The same command makes the same bytes and leaves nothing else behind."""
    with start(manifest, out, "--workers", "2") as again:
        again.communicate()
    cohort = open_cohort(out)
    assert again.returncode == 0 and cohort.hash == whole.hash and damaged_files(out) == []
    for mine, theirs in zip(cohort.cases, whole.cases, strict=True):
        assert mine.file.read_bytes() == theirs.file.read_bytes()
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["001", "002", "003"]


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False], ids=["a second Ctrl-C", "waiting"])
def test_what_is_waited_for_is_said(made, tmp_path, again):
    manifest, whole = made
    with start(manifest, tmp_path / "cohort", "--workers", "2", "--time-limit", "600") as command:
        workers = halted_workers(command, 2)
        command.send_signal(signal.SIGINT)
        words = "stopping: 2 cases are being finished, at most 600 s; Ctrl-C again ends at once\n"
        assert next(line for line in command.stderr if "cases " in line) == words
        if again:
            command.send_signal(signal.SIGINT)
        else:
            for pid in workers:
                send(pid, signal.SIGCONT)
        rest = command.stderr.read()
    assert command.returncode == 130 and "stopped; the same command goes on from here" in rest
    assert "Traceback" not in rest and not any(is_alive(pid) for pid in workers)
    done = sorted(path.parent.name for path in tmp_path.glob("cohort/cases/*/case.json"))
    assert done == ([] if again else ["001", "002"])
    goes_on(manifest, tmp_path / "cohort", whole)


@pytest.mark.slow
def test_a_command_without_workers_ends_at_once(made, tmp_path):
    manifest, whole = made
    with start(manifest, tmp_path / "cohort", "--workers", "1") as command:
        assert "cases 1/3" in next(line for line in command.stderr if "cases" in line)
        command.send_signal(signal.SIGINT)
        rest = command.stderr.read()
    assert command.returncode == 130 and "stopping:" not in rest and "Traceback" not in rest
    goes_on(manifest, tmp_path / "cohort", whole)
