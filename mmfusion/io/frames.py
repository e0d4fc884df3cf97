"""The frames of a dynamic DICOM series: slices that repeat every position, told apart by a tag that says why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmfusion.errors import ReadError
from mmfusion.io.frame_choice import FrameTimes
from mmfusion.io.slices import Slice, frame_tag, places
from mmfusion.io.tags import number
from mmfusion.io.times import date_time, parse_time, past_midnight

_CLOCK = "s after the first"  # dates and times are told by this alone: they identify a patient's visit
_TAGS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    # functional group of a multi-frame object, tags (the last one names the frame), unit
    ("FrameContentSequence", ("TemporalPositionIndex",), ""),
    ("", ("TemporalPositionIdentifier",), ""),
    ("", ("FrameReferenceTime",), "ms"),
    ("TemporalPositionSequence", ("TemporalPositionTimeOffset",), "s"),
    ("FrameContentSequence", ("FrameReferenceDateTime",), _CLOCK),
    ("FrameContentSequence", ("FrameAcquisitionDateTime",), _CLOCK),
    ("", ("AcquisitionDateTime",), _CLOCK),
    ("", ("AcquisitionDate", "AcquisitionTime"), _CLOCK),
    ("", ("TriggerTime",), "ms"),
    ("CardiacSynchronizationSequence", ("NominalCardiacTriggerDelayTime",), "ms"),
    ("", ("EchoTime",), "ms"),
    ("MREchoSequence", ("EffectiveEchoTime",), "ms"),
    ("MRDiffusionSequence", ("DiffusionBValue",), "s/mm2"),
    ("", ("InversionTime",), "ms"),
    ("", ("FlipAngle",), "degrees"),
    ("", ("AcquisitionNumber",), ""),
    ("", ("ContentDate", "ContentTime"), _CLOCK),
    ("", ("InstanceNumber",), ""),
)
_RISING = [  # tags that may rise from slice to slice, too, and then tell frames apart by the order of the slices
    *(row for row in _TAGS if row[2] == _CLOCK),
    ("", ("InstanceNumber",), ""),
]


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a series, in the order of the tag that tells them apart.

    Attributes:
        sets: the slices of each frame.
        tag: the name of the tag; empty for a single frame.
        values: of the tag, for each frame, with the unit; dates and times in seconds after the first frame.
    """

    sets: tuple[list[Slice], ...]
    tag: str = ""
    values: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """``FrameReferenceTime 0, 300000, 600000 ms``, shortened in the middle."""
        shown = [*self.values[:3], "...", self.values[-1]] if len(self.values) > 5 else self.values
        unit = self.values[0].partition(" ")[1:] if self.values else ()
        return f"{self.tag} {', '.join(value.partition(' ')[0] for value in shown)}{''.join(unit)}"


def frames_of(slices: list[Slice], source: object) -> Frames:
    """Parallel slices as frames: one, unless positions repeat and a standard tag tells the repetitions apart.

    A tag does so if every slice has it, no position has a value twice, and there are as many values as repetitions.
    Else a time or the InstanceNumber does if the slices, in its order, come frame by frame or position by position.
    Private tags are not believed.

    Raises:
        ReadError: a frame lacks slices that others have.
    """
    place = places(slices)
    repeats = max(Counter(place).values())
    if repeats == 1:
        return Frames((slices,))
    for row in _TAGS:
        found, unit = _values(slices, *row)
        keys = [tuple(map(_comparable, value)) for value in found]
        distinct = sorted(set(keys))
        if len(distinct) != repeats or len(set(zip(place, keys, strict=True))) < len(slices):
            continue
        sets = tuple([one for one, key in zip(slices, keys, strict=True) if key == wanted] for wanted in distinct)
        texts = (str(found[keys.index(wanted)][-1]) for wanted in distinct)
        frames = Frames(sets, row[1][-1], tuple(f"{text} {unit}".rstrip() for text in texts))
        _refuse_incomplete(frames, max(place) + 1, source)
        return frames
    for row in _RISING:
        found, unit = _values(slices, *row)
        if found and (members := _frames_by_order([tuple(map(_comparable, value)) for value in found], place, repeats)):
            sets = tuple([slices[n] for n in frame] for frame in members)
            ends = ((found[frame[0]][-1], found[frame[-1]][-1]) for frame in members)
            return Frames(sets, row[1][-1], tuple(f"{first}-{last} {unit}".rstrip() for first, last in ends))
    return Frames((slices,))


def _values(slices: list[Slice], macro: str, names: tuple[str, ...], unit: str) -> tuple[list[tuple[Any, ...]], str]:
    """A row of :data:`_TAGS` for each slice, and the unit; nothing if some have none."""
    values = [tuple(frame_tag(one.path, one.header, one.frame, macro, name) for name in names) for one in slices]
    if any(value[-1] in (None, "") for value in values):
        return [], unit
    return _since_first(values) if unit == _CLOCK else (values, unit)


def _frames_by_order(keys: list[tuple[Any, ...]], place: list[int], repeats: int) -> list[list[int]]:
    """The slices of each frame, in order; nothing unless the order of their values leaves no doubt.

    It does not if each run of as many slices as there are positions lies at all of them (frame by frame), or each run
    of as many as there are frames at one (position by position), and values are equal within a frame at most.
    """
    positions = max(place) + 1
    if len(keys) != repeats * positions:
        return []
    order = sorted(range(len(keys)), key=keys.__getitem__)
    by_frame = [order[n : n + positions] for n in range(0, len(order), positions)]
    by_position = [order[n : n + repeats] for n in range(0, len(order), repeats)]
    if all(len({place[n] for n in run}) == positions for run in by_frame):
        follow = all(keys[one[-1]] < keys[two[0]] for one, two in pairwise(by_frame))
        return by_frame if follow else []
    if all(len({place[n] for n in run}) == 1 for run in by_position):
        return [list(frame) for frame in zip(*by_position, strict=True)] if len(set(keys)) == len(keys) else []
    return []


def _since_first(found: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], str]:
    """Dates and times in seconds after the first, and the unit; nothing if one of them is none, or some lack a date.

    Clock times, or times of one date, that lie more than 12 hours apart are believed to lie on both sides of midnight.
    """
    try:
        times: list[Any] = [parse_time(date_time(*value) if len(value) == 2 else value[0]) for value in found]
    except ValueError:
        return [], _CLOCK
    if len({(type(time), getattr(time, "tzinfo", None) is None) for time in times}) > 1:
        return [], _CLOCK
    unit = _CLOCK
    if (moved := past_midnight(times)) != times:
        times, unit = moved, f"{unit}, past midnight"
    first = min(times)
    return [(f"{(time - first).total_seconds():.10g}",) for time in times], unit


def _comparable(value: Any) -> tuple[float, str]:
    """Numbers by size; other text by alphabet."""
    size = number(value)
    return (0.0, str(value or "")) if size is None else (size, "")


def _refuse_incomplete(frames: Frames, positions: int, source: object) -> None:
    short = [n for n, pieces in enumerate(frames.sets) if len(pieces) < positions]
    if short:
        n = short[0]
        raise ReadError(
            f"{source}: {len(short)} of {len(frames.sets)} frames lack slices, the first is frame {n} "
            f"({frames.tag} {frames.values[n]}) with {len(frames.sets[n])} of {positions}. Copy or export the series "
            "again, or leave the files of these frames out"
        )


def times_of(frames: Frames) -> FrameTimes:
    """Start and duration of each frame, s, by the tags of its slices; the earliest slice of a frame says its start.

    Where all frames have one time of acquisition, the middle of a frame by FrameReferenceTime stands in.
    """
    durations = [_duration_s(pieces[0]) for pieces in frames.sets]
    starts = [_earliest(pieces) for pieces in frames.sets]
    if all(start is not None for start in starts) and len({type(start) for start in starts}) == 1:
        starts = past_midnight(starts)
        seconds = [(start - starts[0]).total_seconds() for start in starts]
    if None in starts or len(set(starts)) < len(starts):
        middles = [number(pieces[0].header.get("FrameReferenceTime")) for pieces in frames.sets]
        seconds = [(middle or 0.0) / 1e3 - (long or 0.0) / 2 for middle, long in zip(middles, durations, strict=True)]
        if None in middles:
            return [(None, long) for long in durations]
    return list(zip(seconds, durations, strict=True))


def _duration_s(piece: Slice) -> float | None:
    """How long the frame of a slice took."""
    own = frame_tag(piece.path, piece.header, piece.frame, "FrameContentSequence", "FrameAcquisitionDuration")
    duration_ms = number(own) or number(piece.header.get("ActualFrameDuration"))
    return duration_ms / 1e3 if duration_ms and duration_ms > 0 else None


def _earliest(pieces: list[Slice]) -> Any:
    """When the first slice of a frame was acquired; None if that is not known."""
    times: list[Any] = []
    for piece in pieces:
        own = frame_tag(piece.path, piece.header, piece.frame, "FrameContentSequence", "FrameAcquisitionDateTime")
        header = piece.header
        clock = date_time(header.get("AcquisitionDate"), header.get("AcquisitionTime"))
        try:
            times.append(parse_time(own or clock or header.get("AcquisitionDateTime")))
        except ValueError:
            return None
    if len({(type(time), getattr(time, "tzinfo", None) is None) for time in times}) > 1 or times[0] is None:
        return None
    return min(past_midnight(times))
