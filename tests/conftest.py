"""What tests share: where the real volumes are, quiet threads, and no display."""

import os
import warnings
from pathlib import Path

import pytest

pytest_plugins = ["tiny_cohort"]
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTDATA = Path(os.environ.get("MMFUSION_TESTDATA", Path(__file__).parents[2] / "shared" / "testdata"))


@pytest.fixture
def testdata() -> Path:
    """The folder of real volumes; the test skips where it is absent."""
    if not TESTDATA.is_dir():
        pytest.skip(f"no real volumes at {TESTDATA} (set MMFUSION_TESTDATA)")
    return TESTDATA


def pytest_configure(config: pytest.Config) -> None:
    warnings.filterwarnings("error")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Of torch. Where the tests run: the process that hands them out need not wait for its import."""
    import torch

    torch.set_num_threads(1)
