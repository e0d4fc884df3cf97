"""A cohort folder that one command writes into, and no other."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmfusion.errors import CohortError
from mmfusion.files import CohortFolder, write_text, writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


_RUN = ".run"  # file with the token of the run that has the folder


@contextmanager
def exclusive(out: Path, *, reads: Iterable[Path] = (), series: Iterable[Path] = ()) -> Iterator[str]:
    """The folder, made, ours alone, and without what a killed run left; what the system refuses is named.

    Gives the token of this run. Processes of an earlier one may still be at work somewhere on a cluster: before they
    write they ask :func:`refuse_other_run`.

    Args:
        out: the cohort folder.
        reads, series: what is read, see :func:`mmfusion.files.check_folder`.

    Raises:
        OutputError: it is not a cohort folder, or cannot be written.
        CohortError: somebody else is writing into it.
    """
    folder = CohortFolder(out).claim(reads=reads, series=series)
    remedy = "free space, or choose another --out; the same command goes on where it stopped"
    with writing(f"the cohort folder {out}", remedy), folder.lock():
        folder.clear()
        token = secrets.token_hex(8)
        write_text(token, out / _RUN)
        try:
            yield token
        finally:
            (out / _RUN).unlink(missing_ok=True)


def refuse_other_run(out: Path, token: str) -> None:
    """Stop what is left of a run that no longer has the folder.

    Raises:
        CohortError: it has ended, or another has begun.
    """
    try:
        current = (out / _RUN).read_text()
    except FileNotFoundError:
        current = ""
    if current != token:
        raise CohortError(f"the run that this case belongs to has ended; nothing is written into {out} any more")
