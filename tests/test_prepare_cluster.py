"""A real Dask cluster on this machine prepares the same bytes, and survives what a case does to its process."""

import gc
import os
import signal
import sys
import time

import pytest
from small_scans import write_study

from mmfusion.errors import LostError, OptionError
from mmfusion.prepare import cohort as room
from mmfusion.prepare import prepare_cohort

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")

from mmfusion.prepare.cluster import Cluster  # noqa: E402  (after the skip)

OPTIONS = {"spacing": [12.0, 11.0, 13.0], "size": [9, 11, 7], "register": "none"}


@pytest.fixture(scope="module")
def address():
    """Two Dask workers, each a process with two threads."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs=50, env={"MMFUSION_TROUBLE": "1"}
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    manifest = write_study(folder)
    return manifest, prepare_cohort(manifest, folder / "cohort", workers=1, **OPTIONS)


def same_bytes(one, other):
    names = [path.relative_to(other.folder) for path in sorted(other.folder.glob("cases/*/*.*"))]
    names = [name for name in names if name.name == "image.npy" or name.suffix == ".tfm"]
    return names and all((one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_cluster_makes_the_same_bytes(made, address, tmp_path):
    manifest, whole = made
    steps = []
    cohort = prepare_cohort(
        manifest, tmp_path, scheduler=address, progress=lambda *step: steps.append(step[:2]), **OPTIONS
    )
    assert cohort.hash == whole.hash and same_bytes(cohort, whole) and steps == [(1, 3), (2, 3), (3, 3)]


def troubled(case, order):
    """Prepare in the process beside a Dask worker, where the second case crashes."""
    if case.id == "002":
        assert os.environ["MMFUSION_TROUBLE"] == "1"  # so not in the process of the test
        exec("import ctypes; ctypes.string_at(0)")
    return room._prepare_one(case, order)


@pytest.mark.slow
def test_a_case_that_crashes_harms_no_other_and_no_worker(made, address, tmp_path, monkeypatch):
    with distributed.Client(address, set_as_default=False) as client:
        before = client.run(os.getpid)
        with monkeypatch.context() as patch:
            patch.setattr(room, "_prepare_one", troubled)
            cohort = prepare_cohort(made[0], tmp_path, scheduler=address, **OPTIONS)
        assert client.run(os.getpid) == before
    assert [row["reasons"] for row in cohort.rows] == ["", "its process was ended by SIGSEGV", ""]
    assert prepare_cohort(made[0], tmp_path, scheduler=address, **OPTIONS).hash == made[1].hash


def test_a_job_that_hangs_is_ended(address):
    with Cluster(address, limit_s=3) as pool, pytest.raises(LostError, match="took longer than 3 s"):
        pool.submit(time.sleep, 600).result()


@pytest.mark.slow
def test_a_lost_worker_gives_its_job_to_another(address):
    with distributed.Client(address, set_as_default=False) as client, Cluster(address) as pool:
        job = pool.submit(time.sleep, 4)
        time.sleep(2)
        busy = [worker for worker, tasks in client.processing().items() if tasks]
        process = client.run(os.getpid, workers=busy)[busy[0]]
        os.kill(process, signal.SIGKILL)
        assert job.result(timeout=60) is None
        assert pool.submit(divmod, 17, 5).result(timeout=60) == (3, 2)


def test_what_cannot_be_is_one_sentence(address, monkeypatch):
    with pytest.raises(OptionError, match=r"no Dask scheduler answers at somewhere .*; check --scheduler"):
        Cluster("somewhere")
    clients = [one for one in gc.get_objects() if type(one) is distributed.Client]
    assert all(one.status == "closed" for one in clients)
    monkeypatch.setattr("mmfusion.prepare.cluster.__version__", "0.0.1")
    with (
        Cluster(address) as pool,
        pytest.raises(OptionError, match=r"has mmfusion 0\.1\.0, .* runs it is 0\.0\.1"),
    ):
        pool.submit(len, "abc").result()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"--scheduler needs Dask: pip install 'mmfusion\[cluster\]'"):
        Cluster(address)
