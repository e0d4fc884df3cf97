"""How pairs of volumes are aligned: from the start alone, near it, or anywhere. Many pairs go together."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock, local
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from mmfusion.errors import GeometryError, OptionError
from mmfusion.options import unknown
from mmfusion.registration.levels import pyramid
from mmfusion.registration.search import SPACINGS, Found, Search
from mmfusion.registration.verdict import Check, Evidence, judge
from mmfusion.volume import PET_UNITS, Transform, Volume, check_device, overlap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS: tuple[str, ...] = ("translation", "rigid", "similarity", "affine", "deformable", "none")
"""The kinds of registration; ``none`` keeps the header position and measures."""

INITS: tuple[str, ...] = ("auto", "identity", "centers")
"""Where the search starts, see :func:`mmfusion.registration.register`."""

_REACH = (15.0, 30.0)  # degrees about each axis, mm along each: how far around a trusted header is searched
_CLEAR_GAIN = 0.05  # of similarity; less does not overrule a trusted header
_MISSED_GAIN = 0.25  # makes a trusted header that was kept doubtful
_KEEP_GAIN = 0.08  # a motion that gains less and is not clear does not overrule a header of unknown worth
_RIVALS = 3  # positions of a pair that stay in the race until a rigid one is known on the middle level
_SEED = 20240229  # of the points that measure; the search uses others, so that it cannot flatter itself


class Pair:
    """Two volumes, checked and brought to low resolution, and how their start is to be treated.

    Args:
        fixed, moving, kind, init, masks, device, threads: see :func:`mmfusion.registration.register`.
    """

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        kind: str,
        init: str | Transform,
        masks: tuple[np.ndarray | None, np.ndarray | None],
        device: str,
        threads: int,
    ) -> None:
        if kind not in KINDS:
            raise OptionError(unknown("kind of registration", kind, KINDS))
        if not isinstance(init, Transform) and init not in INITS:
            raise OptionError(unknown("start of the registration", init, INITS))
        check_device(device)
        self.kind, self.masks, self.device, self.threads = kind, masks, device, threads
        self.before = Transform()
        if isinstance(init, Transform):  # the moving world is laid so that this transform is the identity
            if init.displacement is not None:
                raise OptionError("init takes a linear transform; this one has a displacement field")
            self.before = init
            moving = moving.replace(affine=init.inverse().matrix @ moving.affine)
        self.fixed_volume, self.moving_volume = fixed, moving
        frames = {volume.frame_of_reference for volume in (fixed, moving)}
        known = init == "auto" and len(frames) == 1 and "" not in frames
        self.trusted = isinstance(init, Transform) or init == "identity" or known
        shared = overlap(fixed.grid, moving.grid)
        if kind != "none" and self.trusted and shared == 0:
            apart = float(np.linalg.norm(fixed.grid.center - moving.grid.center))
            raise GeometryError(
                f"{moving.name} and {fixed.name} share 0 % of their field of view (centers {apart:.0f} mm apart). "
                "Headers disagree; re-export, or use --init centers"
            )
        self.header = init == "auto" and shared > 0  # may be right
        self.keep = "" in frames  # nothing is known against it
        with cores(threads):
            self.fixed = pyramid(fixed, SPACINGS, masks[0], device)
            self.moving = pyramid(moving, SPACINGS, masks[1], device)
        smaller = self.moving.volume_mm3 < self.fixed.volume_mm3
        one_masked = (masks[0] is None) != (masks[1] is None)
        # points come from the smaller field of view; of two of which one is masked, from that one
        self.flipped = masks[1] is not None if one_masked else smaller
        # where a CT meets another scan that sees bone, the last refinement draws its points there, from the CT
        bones = [p.levels[-1].bone is not None for p in (self.fixed, self.moving)]
        blind = bool(set(PET_UNITS) & {fixed.units, moving.units})
        self.near_bone = any(bones) and not blind and not one_masked
        self.bone_flipped = bones[1] if bones[0] != bones[1] else self.flipped

    @property
    def linear(self) -> str:
        """The kind of linear motion that is searched."""
        return "affine" if self.kind == "deformable" else self.kind


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for one pair.

    Attributes:
        matrix: ``[4, 4]`` fixed_to_moving, on top of the pair's start.
        start: name of the start that won.
        evidence: what speaks for and against it; None if nothing was searched.
        checks: further ones.
        note: on a motion that was not believed.
        before, after: similarity at the start and here.
        other: ``[4, 4]`` the position that was found beside it and not taken: the motion that was not believed, or the
            second best one if that is nearly as good; None if only the start is known.
    """

    matrix: np.ndarray
    start: str
    evidence: Evidence | None
    checks: list[Check]
    note: str
    before: float
    after: float
    other: np.ndarray | None = None

    @property
    def kept(self) -> bool:
        """It is the start."""
        return bool(np.array_equal(self.matrix, np.eye(4)))


def align(pairs: Sequence[Pair]) -> list[Result]:
    """The best position of each pair. Pairs of one kind and one kind of start are searched together."""
    out: list[Result | None] = [None] * len(pairs)
    with cores(1):
        alike: dict[tuple[Any, str, bool], list[int]] = {}
        for n, pair in enumerate(pairs):
            alike.setdefault((_way(pair), pair.kind, pair.near_bone), []).append(n)
        for (way, *_), which in alike.items():
            for n, result in zip(which, way(Group([pairs[n] for n in which])), strict=True):
                out[n] = result
    return [result for result in out if result is not None]


def _way(pair: Pair) -> Any:
    if pair.kind == "none":
        return _only_measured
    return _near_the_start if pair.trusted else _anywhere


class Group:
    """Pairs of one kind that are searched together: widely for where to look, and finely for the last mm."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs, self.kind = pairs, pairs[0].linear
        self.first = "translation" if self.kind == "translation" else "rigid"
        fixed, moving = [pair.fixed for pair in pairs], [pair.moving for pair in pairs]
        self.wide = Search(fixed, moving, np.array([pair.flipped for pair in pairs]))
        self.fine = self.wide
        if pairs[0].near_bone:
            self.fine = Search(fixed, moving, np.array([pair.bone_flipped for pair in pairs]), near_bone=True)
        self.measure = replace(self.fine, seed=_SEED).objective(-1)
        self.start = Found.identity(len(pairs))

    @cached_property
    def before(self) -> np.ndarray:
        """``[P]`` similarity at the start, at points that the search does not use."""
        return self.measure.plain(self.start.matrices, self.start.pairs)

    def gains(self, found: Found) -> np.ndarray:
        """``[P]`` relative gain over the start, at points that the search did not use."""
        before, after = (self.measure.values(one.matrices, one.pairs) for one in (self.start, found))
        return np.where(before > 0, after / np.maximum(before, 1e-12) - 1, np.inf)

    def evidence(self, found: Found, gains: Sequence[float | None], rivals: Sequence[float]) -> list[Evidence]:
        """What speaks for and against one position of each pair.

        Args:
            found: one position for each pair.
            gains: over the start; None where that position does not count.
            rivals: similarity of the second best position as a share of this one's.
        """
        search = self.fine
        back = search.again(found, 1, kind=self.first, flipped=~search.flipped, near_bone=False)
        other = search.again(found, 2, kind=self.first, seed=search.seed + 1)
        halves = self.wide.halves(found)
        out = []
        for n, pair in enumerate(self.pairs):
            transform = Transform(found.matrices[n])
            moves = transform.displacement_mm(pair.fixed.box)
            out.append(
                Evidence(
                    back_mm=float(back[n]),
                    sample_mm=float(other[n]),
                    halves_mm=float(halves[n]),
                    rotation_deg=transform.rotation_deg,
                    mean_mm=float(moves.mean()),
                    motion_mm=float(moves.max()),
                    gain=gains[n],
                    rival=rivals[n],
                    scales=tuple(np.linalg.svd(transform.matrix[:3, :3], compute_uv=False)),
                )
            )
        return out

    def results(self, found: Found, evidence: Sequence[Evidence | None], checks: Sequence[list[Check]]) -> list[Result]:
        """One for each pair, with its similarity."""
        after = self.measure.plain(found.matrices, found.pairs)
        columns = (found.matrices, found.starts, evidence, checks, self.before, after)
        return [
            Result(matrix, str(start), one, more, "", float(before), float(value))
            for matrix, start, one, more, before, value in zip(*columns, strict=True)
        ]

    def kept(self, best: Found, n: int, gain: float, limit: float, evidence: Evidence | None) -> Result:
        """The start of pair ``n``, with a note on the motion that was not believed."""
        pair = self.pairs[n]
        motion = float(Transform(best.matrices[n]).displacement_mm(pair.fixed.box).max())
        note = f"the {'header' if pair.before.is_identity else 'given'} position was kept: "
        note += f"a motion of {motion:.1f} mm gains {gain:.1%} of similarity"
        missed = Check(gain, limit, f"{note}, too much to ignore, but is itself in doubt")
        note = "" if missed.score <= 0.5 else f"{note}, which is too little or too uncertain"
        before = float(self.before[n])
        return Result(np.eye(4), "identity", evidence, [missed], note, before, before, other=best.matrices[n])


def _only_measured(group: Group) -> list[Result]:
    """Keep the start, and say so if a motion near it would gain much."""
    best = group.fine.polish(group.start, 0, 1, 2, reach=_REACH)
    return [group.kept(best, n, gain, _MISSED_GAIN, None) for n, gain in enumerate(group.gains(best))]


def _near_the_start(group: Group) -> list[Result]:
    """Keep the start unless a motion near it is clear and beyond doubt."""
    best = group.fine.polish(group.start, 0, 1, 2, kind=group.first, reach=_REACH)
    if group.kind != group.first:
        best = group.fine.polish(best, 1, 2, kind=group.kind, reach=_REACH, settled=True)
    gains = group.gains(best)
    out = [group.kept(best, n, gains[n], _MISSED_GAIN, None) for n in range(len(group.pairs))]
    clear = np.flatnonzero(gains >= _CLEAR_GAIN).tolist()
    if clear:
        some = Group([group.pairs[n] for n in clear])
        found = Found(np.arange(len(clear)), best.matrices[clear], best.values[clear], best.starts[clear])
        evidence = some.evidence(found, gains[clear].tolist(), [0.0] * len(clear))
        moved = some.results(found, evidence, [[one.long_motion()] for one in evidence])
        for n, one, result in zip(clear, evidence, moved, strict=True):
            if one.precise and judge([*one.checks(), *result.checks])[0] == "ok":
                out[n] = result
    return out


def _anywhere(group: Group) -> list[Result]:
    """The best position of all; the header's is kept unless a motion is clear, where nothing is known against it."""
    pairs, wide, fine = group.pairs, group.wide, group.fine
    starts = wide.starts([pair.header for pair in pairs])
    if group.kind == "translation":
        straight = np.abs(starts.matrices[:, :3, :3] - np.eye(3)).max((1, 2)) == 0
        coarse = wide.distinct(wide.refine(wide.objective(0), starts[np.flatnonzero(straight)], kind="translation"))
    else:
        coarse = wide.candidates(starts)
    ranked = wide.distinct(wide.polish(coarse, 1, kind=group.first), _RIVALS)
    if group.kind != group.first:
        ranked = wide.distinct(wide.polish(ranked, 1, kind=group.kind))
    first = Found.joined([ranked.of(n)[:1] for n in range(len(pairs))])
    rivals = []
    for n in range(len(pairs)):
        values = ranked.of(n).values
        rivals.append(float(values[1] / values[0]) if len(values) > 1 and values[0] > 0 else 0.0)
    levels = (2,) if fine is wide and group.kind == group.first else (1, 2)
    best = fine.polish(first, *levels, kind=group.kind, settled=True)
    gains = group.gains(best)
    known = [float(gain) if pair.header else None for gain, pair in zip(gains, pairs, strict=True)]
    evidence = group.evidence(best, known, rivals)
    out = group.results(best, evidence, [[one.unpaid_motion()] for one in evidence])
    for n, (pair, gain, one) in enumerate(zip(pairs, known, evidence, strict=True)):
        if one.has_rival:
            out[n] = replace(out[n], other=ranked.of(n).matrices[1])
        if pair.keep and gain is not None and gain < _KEEP_GAIN and not one.precise:
            out[n] = group.kept(best, n, gain, _KEEP_GAIN, one)
    return out


class _Cores:
    """Torch's and BLAS's numbers of threads, which several threads may limit at the same time.

    Both belong to the whole process (torch gives its number to every thread that begins), so what was usual is read
    when nobody has changed it yet, and not by each thread, which may read what another has set for a while.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._usual, self._mine = Lock(), 0, 1, local()
        self._blas: threadpool_limits | None = None

    @contextmanager
    def __call__(self, count: int) -> Iterator[None]:
        """Torch's number of threads, for a while; and one for BLAS, whose threads only wait on arrays this small."""
        outer = getattr(self._mine, "count", None)
        with self._lock:
            now = torch.get_num_threads()  # a thread that asks for the first time takes the process's, also after a set
            if not self._users:
                self._usual, self._blas = now, threadpool_limits(1, user_api="blas")
            self._users += 1
        try:
            self._mine.count = max(1, count)
            torch.set_num_threads(self._mine.count)
            yield
        finally:
            self._mine.count = outer
            with self._lock:
                self._users -= 1
                torch.set_num_threads(outer or self._usual)
                if self._blas and not self._users:
                    self._blas.restore_original_limits()


cores = _Cores()
