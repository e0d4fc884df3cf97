"""How far long work is, for people: on a terminal one moving line, in a log file a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from mmfusion.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["progress_line"]


_BAR = 20  # characters


def progress_line(what: str) -> Callable[..., None]:
    """A function ``(done, total, note="")`` that shows progress: one moving line on a terminal, else few lines.

    It is called once for each thing done; what was there before its first call does not count for the rate.
    """
    start, first, shown = time.monotonic(), list[int](), [-1]

    def show(done: int, total: int, note: str = "") -> None:
        if not first:
            first.append(max(done - 1, 0))
        spent, new = time.monotonic() - start, done - first[0]
        left = spent / new * (total - done) if new else 0.0
        rate = 60 * new / spent if spent else 0.0
        pace = f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"
        line = f"{what} {done}/{total} | {pace} a minute, {spent:.0f} s, {left:.0f} s left {printable(note)}"
        if sys.stderr.isatty():
            full = _BAR * done // max(total, 1)
            bar = f"[{'#' * full}{'.' * (_BAR - full)}] "
            print(f"\r{(bar + line)[:110]:110s}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or done * 10 // max(total, 1) > shown[0]:
            shown[0] = done * 10 // max(total, 1)
            print(line, file=sys.stderr, flush=True)

    return show
