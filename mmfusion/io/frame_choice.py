"""Which frames of a dynamic scan become the volume: one, or the mean of several, weighted by how long they took."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import OptionError, ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FrameTimes = list[tuple[float | None, float | None]]
"""For each frame its start, s after any common time, and its duration, s; None for what is not known."""

_SECONDS = {"s": 1.0, "min": 60.0}
_NUMBERS = re.compile(r"(\d+)-(\d+)")
_WINDOW = re.compile(r"(\d+(?:\.\d+)?)(s|min)?-(\d+(?:\.\d+)?)(s|min)")
_TOLERANCE = 0.01  # of a frame's duration: how far it may reach out of a window


@dataclass(frozen=True)
class FrameChoice:
    """The frames that are used.

    Attributes:
        indices: rising, from 0.
        weights: of their mean, any scale; one each.
        note: what was used, for people; empty if there is nothing to choose.
        doubts: what may be wrong with it, sentences.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    note: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """Whether one frame is used as it is."""
        return len(self.indices) == 1


ONLY_FRAME = FrameChoice((0,), (1.0,))
"""The choice where there is none."""


def check_frame(frame: str | int | None) -> None:
    """Refuse what is no choice of frames, whatever the scans are: those with one frame ignore a choice.

    Raises:
        OptionError: ``frame`` is none of what :func:`choose_frames` takes.
    """
    text = str(frame).replace(" ", "")
    if frame is None or text in ("first", "last", "mean") or text.isdecimal():
        return
    if not (_NUMBERS.fullmatch(text) or _WINDOW.fullmatch(text)):
        raise OptionError(
            "frame is first, last, mean, a number from 0, numbers as 20-24, or a window as 40min-60min, found "
            f"'{frame}'"
        )


def choose_frames(
    frame: str | int | None,
    frames: int,
    what: str,
    source: object,
    times: Callable[[], FrameTimes] = list,
    values: Sequence[str] = (),
) -> FrameChoice:
    """The frames that ``frame`` means.

    Args:
        frame: ``first``, ``last``, ``mean``, a number from 0, ``20-24`` (both included), or ``40min-60min`` (also
            ``s``) after the start of the first frame: the frames that lie wholly in that window; or None.
        frames: how many there are.
        what: what shows that there are several, as ``shape (3, 4, 5, 6)``.
        source: what messages call the scan.
        times: gives start and duration of each frame; empty if nothing is known of them.
        values: what tells the frames apart, for the note.

    Raises:
        ReadError: there are several frames and none was chosen; the chosen ones do not exist; or a window is asked for
            and the times of the frames are not known, or none lies in it.
        OptionError: ``frame`` is none of these.
    """
    check_frame(frame)
    if frames == 1:
        return ONLY_FRAME
    if frame is None:
        raise ReadError(
            f"{source} has {what}: {frames} frames; one static frame is needed. "
            "Choose with --frame last or --frame mean"
        )
    text = str(frame).replace(" ", "")
    if text == "mean":
        return _mean(range(frames), "their mean", _known(times, frames))
    if numbers := _NUMBERS.fullmatch(text):
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise OptionError(f"frame {frame} ends before it begins")
        _refuse_beyond(last, frames, source)
        return _mean(range(first, last + 1), f"the mean of {first} to {last}", _known(times, frames))
    if window := _WINDOW.fullmatch(text):
        known = _known(times, frames)
        inside, doubts = _in_window(window, frame, known, source)
        chosen = _mean(inside, f"the mean of {inside[0]} to {inside[-1]} ({text})", known)
        return replace(chosen, doubts=doubts)
    if text in ("first", "last"):
        index = 0 if text == "first" else frames - 1
    else:
        index = int(text)
        _refuse_beyond(index, frames, source)
    value = f" ({values[index]})" if values else ""
    return FrameChoice((index,), (1.0,), f"{frames} frames: frame {index}{value} is used")


def _known(times: Callable[[], FrameTimes], frames: int) -> FrameTimes:
    known = times()
    return known if len(known) == frames else [(None, None)] * frames


def _refuse_beyond(index: int, frames: int, source: object) -> None:
    if index >= frames:
        raise ReadError(f"{source} has {frames} frames, numbered from 0; frame {index} does not exist")


def _in_window(
    window: re.Match[str], frame: object, known: FrameTimes, source: object
) -> tuple[list[int], tuple[str, ...]]:
    """The frames that lie wholly in a window of seconds or minutes after the start of the first, and a doubt if they do
    not fill it."""
    begin, end = float(window[1]) * _SECONDS[window[2] or window[4]], float(window[3]) * _SECONDS[window[4]]
    if begin >= end:
        raise OptionError(f"frame {frame} ends before it begins")
    spans = [(start, duration) for start, duration in known if start is not None and duration is not None]
    if len(spans) < len(known):
        raise ReadError(
            f"{source}: start and duration of its frames are not known, so none can be chosen by time. Choose by "
            "number, as --frame 20-24"
        )
    zero = min(start for start, _ in spans)
    inside = [
        n
        for n, (start, duration) in enumerate(spans)
        if start - zero >= begin - _TOLERANCE * duration and start - zero + duration <= end + _TOLERANCE * duration
    ]
    if not inside:
        whole = max(start + duration for start, duration in spans) - zero
        raise ReadError(
            f"{source}: no frame lies wholly between {begin:g} and {end:g} s after the start of the first; the "
            f"{len(spans)} frames end after {whole:g} s. Choose another window"
        )
    first, last = min(spans[n][0] for n in inside) - zero, max(sum(spans[n]) for n in inside) - zero
    if first > begin + _TOLERANCE * spans[inside[0]][1] or last < end - _TOLERANCE * spans[inside[-1]][1]:
        return inside, (
            f"the frames that lie wholly in the window {begin:g} to {end:g} s fill {first:g} to {last:g} s of it. "
            "Choose a window that begins and ends with frames",
        )
    return inside, ()


def _mean(indices: Sequence[int], which: str, known: FrameTimes) -> FrameChoice:
    """The mean over these frames, weighted by their durations if all are known."""
    durations = [known[n][1] or 0.0 for n in indices]
    timed = min(durations) > 0
    weights = durations if timed and not np.allclose(durations, durations[0], rtol=1e-3) else [1.0] * len(indices)
    if len(indices) == 1:
        which, weighting = f"frame {indices[0]}", ""
    elif timed:
        weighting = ", weighted by duration" if weights is durations else ""
    else:
        weighting = ", unweighted"
    return FrameChoice(tuple(indices), tuple(weights), f"{len(known)} frames: {which} is used{weighting}")
