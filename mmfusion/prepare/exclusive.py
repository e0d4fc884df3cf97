"""A cohort folder that one command writes into, and no other."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmfusion.errors import CohortError
from mmfusion.prepare.derivatives import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """The folder, made, ours alone, and without what a killed run left; what the system refuses is named.

    Raises:
        CohortError: it cannot be written, or somebody else is writing into it.
    """
    try:
        (out / "cases").mkdir(parents=True, exist_ok=True)
        with _locked(out):
            for left in (*(out / "cases").glob(".*"), *(out / FOLDER).rglob(".*~*")):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield
    except OSError as error:
        raise CohortError(
            f"the cohort folder {out} cannot be written ({error.strerror or error}): free space, or choose another "
            "--out; the same command goes on where it stopped"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which leaves no file and ends with this process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CohortError(
                f"another mmfusion prepare is writing into {folder}; wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
