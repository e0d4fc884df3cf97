"""How far long work is, for people: on a terminal one moving line, in a log file a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["progress_line"]


def progress_line(what: str) -> Callable[..., None]:
    """A function ``(done, total, note="")`` that shows progress: one moving line on a terminal, else few lines."""
    start, shown = time.monotonic(), [-1]

    def show(done: int, total: int, note: str = "") -> None:
        spent = time.monotonic() - start
        left = spent / done * (total - done) if done else 0.0
        line = f"{what} {done}/{total} | {spent:.0f} s, {left:.0f} s left {note}"
        if sys.stderr.isatty():
            print(f"\r{line[:110]:110s}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or done * 10 // max(total, 1) > shown[0]:
            shown[0] = done * 10 // max(total, 1)
            print(line, file=sys.stderr, flush=True)

    return show
