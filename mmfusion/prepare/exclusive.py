"""A cohort folder that one command writes into, and no other."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmfusion.errors import CohortError
from mmfusion.files import write_text
from mmfusion.prepare.derivatives import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_RUN = ".run"  # file with the token of the run that has the folder


@contextmanager
def exclusive(out: Path) -> Iterator[str]:
    """The folder, made, ours alone, and without what a killed run left; what the system refuses is named.

    Gives the token of this run. Processes of an earlier one may still be at work somewhere on a cluster: before they
    write they ask :func:`refuse_other_run`.

    Raises:
        CohortError: it cannot be written, or somebody else is writing into it.
    """
    try:
        (out / "cases").mkdir(parents=True, exist_ok=True)
        with _locked(out):
            temporary = (*(out / "cases").glob(".*"), *(out / FOLDER).rglob(".*~*"), *out.rglob(".tmp-*"))
            for left in temporary:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            token = secrets.token_hex(8)
            write_text(token, out / _RUN)
            try:
                yield token
            finally:
                (out / _RUN).unlink(missing_ok=True)
    except OSError as error:
        raise CohortError(
            f"the cohort folder {out} cannot be written ({error.strerror or error}): free space, or choose another "
            "--out; the same command goes on where it stopped"
        ) from error


def refuse_other_run(out: Path, token: str) -> None:
    """Stop what is left of a run that no longer has the folder.

    Raises:
        CohortError: it has ended, or another has begun.
    """
    try:
        found = (out / _RUN).read_text()
    except FileNotFoundError:
        found = ""
    if found != token:
        raise CohortError(f"the run that this case belongs to has ended; nothing is written into {out} any more")


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
