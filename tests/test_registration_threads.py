"""Threads of torch and BLAS: registering limits them for a while, and leaves the process as it was."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from registration_heads import scan
from threadpoolctl import threadpool_info

from mmfusion.errors import MmfusionError
from mmfusion.registration import register_many
from mmfusion.registration.align import cores
from mmfusion.volume import Volume


def counts():
    """Threads of torch as this thread and as one that begins now sees them, and those of BLAS."""
    with ThreadPoolExecutor(1) as pool:
        fresh = pool.submit(torch.get_num_threads).result()
    blas = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return torch.get_num_threads(), fresh, blas


@pytest.fixture
def three_threads():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield counts()
    torch.set_num_threads(usual)


def test_threads_that_limit_themselves_at_the_same_time_leave_all_as_it_was(three_threads):
    """The second reads its numbers while the first has limited them, and puts back its own last."""
    came, joined, left = Event(), Event(), Event()

    def first():
        with cores(2):
            came.set()
            assert joined.wait(60) and torch.get_num_threads() == 2
        left.set()

    def second():
        assert came.wait(60)
        with cores(1):
            joined.set()
            assert left.wait(60) and torch.get_num_threads() == 1
            with cores(2):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(first), pool.submit(second)]:
            job.result()
    assert counts() == three_threads and three_threads[:2] == (3, 3)


def test_an_error_inside_leaves_all_as_it_was(three_threads):
    with pytest.raises(ValueError, match="x"), cores(1):
        raise ValueError("x")
    assert counts() == three_threads


def test_register_many_leaves_the_threads_as_they_were(three_threads):
    good, slice_alone = scan("ct", None, 1), Volume(np.ones((5, 6, 1), np.float32), np.eye(4))
    many = register_many([(good, good), (good, slice_alone)] * 2, "none", workers=4)
    assert [isinstance(one, MmfusionError) for one in many] == [False, True] * 2
    assert counts() == three_threads
