"""Registration with a verdict: which motion brings one volume onto another, and whether to believe it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from mmfusion.errors import GeometryError, MmfusionError, OptionError
from mmfusion.options import unknown
from mmfusion.registration.levels import pyramid
from mmfusion.registration.search import SPACINGS, Found, Search
from mmfusion.registration.verdict import (
    FAILED_OVERLAP,
    Check,
    Evidence,
    judge,
    overlap_check,
    similarity_check,
)
from mmfusion.volume import Transform, Volume, overlap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS: tuple[str, ...] = ("translation", "rigid", "similarity", "affine", "deformable", "none")
"""The kinds of registration; ``none`` keeps the header position and measures."""

INITS: tuple[str, ...] = ("auto", "identity", "centers")
"""Where the search starts, see :func:`register`."""

_REACH = (15.0, 30.0)  # degrees about each axis, mm along each: how far around a trusted header is searched
_CLEAR_GAIN = 0.05  # of similarity; less does not overrule a trusted header
_MISSED_GAIN = 0.25  # makes a trusted header that was kept doubtful, and overrules one of unknown worth
_MISSED_GAIN_UNKNOWN = 0.10  # makes a header of unknown worth that was kept doubtful
_SEED = 20240229  # of the points that measure; the search uses others, so that it cannot flatter itself
_BATCH = 16  # pairs that a GPU searches together


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the fixed volume lies in the moving one, and how far to trust it.

    Attributes:
        fixed_to_moving: RAS mm. The start (the header position, or the given transform) if that was kept or nothing
            was found.
        verdict: ``ok``; ``doubtful`` (look at it before use, see ``reasons``); ``failed`` (do not use it).
        score: how far it can be trusted, 0..1; doubt begins at 0.5.
        reasons: what was found, as sentences; may also say why an ``ok`` position was kept.
        similarity_before, similarity_after: normalized mutual information (0..1, see
            :func:`mutual_information`) at the start and at the result, in and near the body, at points that the
            search did not use; 0 where nothing overlaps.
        overlap: share of the smaller field of view that both scans saw, after, 0..1.
        translation_mm: how far the center of the fixed field of view moves.
        rotation_deg: the angle of the rotation.
        motion_mm: how far the farthest corner of the box around the fixed body moves.
        initial: the start that won: ``identity`` (the header, or the given transform), ``centers`` (of the fields of
            view) or ``mass`` (the centers of the bodies).
        folding: share of the displacement's grid where space is folded (determinant of the Jacobian not above 0);
            0 for a linear transform.
    """

    fixed_to_moving: Transform
    verdict: str
    score: float
    reasons: tuple[str, ...]
    similarity_before: float
    similarity_after: float
    overlap: float
    translation_mm: float
    rotation_deg: float
    motion_mm: float
    initial: str
    folding: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words for JSON and tables; the transform as its matrix, four rows of four."""
        return {
            "verdict": self.verdict,
            "score": round(self.score, 4),
            "reasons": list(self.reasons),
            "similarity_before": round(self.similarity_before, 6),
            "similarity_after": round(self.similarity_after, 6),
            "overlap": round(self.overlap, 4),
            "translation_mm": round(self.translation_mm, 4),
            "rotation_deg": round(self.rotation_deg, 4),
            "motion_mm": round(self.motion_mm, 4),
            "initial": self.initial,
            "folding": round(self.folding, 6),
            "fixed_to_moving": self.fixed_to_moving.matrix.tolist(),
        }


def register(
    fixed: Volume,
    moving: Volume,
    kind: str = "rigid",
    *,
    init: str | Transform = "auto",
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> Registration:
    """Find the motion that aligns two volumes of one patient, of any modalities. Nothing is resampled.

    Maximizes normalized mutual information at 8, 4 and 2 mm. Volumes that share a DICOM frame of reference were
    aligned by the scanner: the search stays near the header position and keeps it, unless a motion gains at least
    a twentieth of similarity, is three times as long as its own uncertainty, and passes every check. Otherwise many
    starts are tried. If a frame of reference is missing, as in NIfTI files, the header position is still kept
    where the best motion gains less than a quarter and is not three times as long as its uncertainty. The same
    volumes give the same result (on a GPU up to rounding).

    Args:
        fixed: the reference.
        moving: what is to be aligned with it.
        kind: ``translation``, ``rigid``, ``similarity`` (rigid and one scale), ``affine``, ``deformable`` (affine,
            then a displacement field), or ``none`` to keep the start and only measure.
        init: ``auto`` as above; ``identity`` trusts the header position as if the frame of reference were shared;
            ``centers`` ignores it and starts where centers coincide; a linear transform (fixed_to_moving) is trusted
            as ``identity`` trusts the header.
        fixed_mask, moving_mask: ``[i, j, k]`` bool on the volumes' own voxels: only these are compared.
        device: ``cpu``, or a torch device such as ``cuda``.
        threads: for bringing volumes to lower resolution; the search itself runs on one.

    Raises:
        OptionError: an unknown ``kind`` or ``init``.
        GeometryError: the start is to be trusted and the fields of view do not overlap; a single slice; a mask of
            another shape.
        VoxelError: a volume is not finite, constant, or without a foreground; an empty mask.
    """
    pair = _Pair(fixed, moving, kind, init, fixed_mask, moving_mask, device, threads)
    return _finished(pair, _aligned([pair])[0])


def register_many(
    pairs: Sequence[tuple[Volume, Volume]],
    kind: str = "rigid",
    *,
    init: str | Transform = "auto",
    masks: Sequence[tuple[np.ndarray | None, np.ndarray | None]] | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> list[Registration | MmfusionError]:
    """:func:`register` for many pairs: one thread a pair on a CPU, many pairs in one batch on a GPU.

    Args:
        pairs: fixed and moving volumes.
        kind, init, device: as there.
        masks: the masks of each pair, fixed and moving.
        workers: threads, each with a pair of its own at a time (CPU).

    Returns:
        For each pair its registration, or the error that :func:`register` would raise for it.
    """
    masks = masks or [(None, None)] * len(pairs)
    if len(masks) != len(pairs):
        raise OptionError(f"{len(masks)} pairs of masks are given for {len(pairs)} pairs of volumes; give one for each")

    def open_one(job: tuple[tuple[Volume, Volume], tuple[Any, Any]]) -> _Pair | MmfusionError:
        try:
            return _Pair(*job[0], kind, init, *job[1], device, 1)
        except MmfusionError as error:
            return error

    def close_one(job: tuple[_Pair, _Result]) -> Registration | MmfusionError:
        try:
            return _finished(*job)
        except MmfusionError as error:
            return error

    def one(job: tuple[tuple[Volume, Volume], tuple[Any, Any]]) -> Registration | MmfusionError:
        pair = open_one(job)
        return pair if isinstance(pair, MmfusionError) else close_one((pair, _aligned([pair])[0]))

    jobs = list(zip(pairs, masks, strict=True))
    if torch.device(device).type == "cpu":
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(one, jobs))
    out: list[Registration | MmfusionError] = []
    for at in range(0, len(jobs), _BATCH):
        opened = [open_one(job) for job in jobs[at : at + _BATCH]]
        good = [pair for pair in opened if isinstance(pair, _Pair)]
        results = iter(_aligned(good)) if good else iter(())
        out += [close_one((pair, next(results))) if isinstance(pair, _Pair) else pair for pair in opened]
    return out


class _Pair:
    """Two volumes, checked and brought to low resolution, and how their start is to be treated."""

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        kind: str,
        init: str | Transform,
        fixed_mask: np.ndarray | None,
        moving_mask: np.ndarray | None,
        device: str,
        threads: int,
    ) -> None:
        if kind not in KINDS:
            raise OptionError(unknown("kind of registration", kind, KINDS))
        if not isinstance(init, Transform) and init not in INITS:
            raise OptionError(unknown("start of the registration", init, INITS))
        self.fixed_volume, self.moving_volume, self.kind, self.device = fixed, moving, kind, device
        self.masks = fixed_mask, moving_mask
        self.before = Transform()
        if isinstance(init, Transform):  # the moving world is laid so that this transform is the identity
            if init.displacement is not None:
                raise OptionError("init takes a linear transform; this one has a displacement field")
            self.before = init
            moving = moving.replace(affine=init.inverse().matrix @ moving.affine)
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
        with _threads(threads):
            self.fixed = pyramid(fixed, SPACINGS, fixed_mask, device)
            self.moving = pyramid(moving, SPACINGS, moving_mask, device)
        self.near_bone, self.swapped = self._source()

    def _source(self) -> tuple[bool, bool]:
        """Whether points are drawn near bone, and whether they come from the moving volume.

        Of two volumes of which one is masked, they come from that one. Of CT and MR, from the CT and near bone: bone
        is seen in both. Else from the smaller field of view.
        """
        masked = [mask is not None for mask in self.masks]
        if masked[0] != masked[1]:
            return False, masked[1]
        seen = [p.levels[-1].bone is not None for p in (self.fixed, self.moving)]
        blind = "SUVbw" in (self.fixed_volume.units, self.moving_volume.units)
        if seen[0] != seen[1] and not blind:
            return True, seen[1]
        return all(seen) and not blind, self.moving.volume_mm3 < self.fixed.volume_mm3

    @property
    def linear(self) -> str:
        """The kind of linear motion that is searched."""
        return "affine" if self.kind == "deformable" else self.kind

    def fixed_to_moving(self, found: np.ndarray) -> Transform:
        """Of a position in the direction of the search."""
        return Transform(np.linalg.inv(found) if self.swapped else found)


@dataclass(frozen=True, eq=False)
class _Result:
    """A position of one pair (``[4, 4]``, in the direction of its search), what is said of it, and its measure."""

    matrix: np.ndarray
    start: str
    checks: list[Check]
    note: str
    before: float
    after: float


def _aligned(pairs: Sequence[_Pair]) -> list[_Result]:
    """The best position of each pair. Pairs of one kind and one kind of start are searched together."""
    out: list[_Result | None] = [None] * len(pairs)
    with _threads(1):
        for way in (_only_measured, _near_the_start, _anywhere):
            for kind, near_bone in product(KINDS, (False, True)):
                traits = (way, kind, near_bone)
                which = [n for n, pair in enumerate(pairs) if (_way(pair), pair.kind, pair.near_bone) == traits]
                if which:
                    group = _Group([pairs[n] for n in which])
                    for n, result in zip(which, way(group), strict=True):
                        out[n] = result
    return [result for result in out if result is not None]


def _way(pair: _Pair) -> Any:
    if pair.kind == "none":
        return _only_measured
    return _near_the_start if pair.trusted else _anywhere


class _Group:
    """Pairs that are searched together, and the measure of their results."""

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        self.pairs, self.kind = pairs, pairs[0].linear
        self.first = "translation" if self.kind == "translation" else "rigid"
        sources = [pair.moving if pair.swapped else pair.fixed for pair in pairs]
        targets = [pair.fixed if pair.swapped else pair.moving for pair in pairs]
        self.search = Search(sources, targets, pairs[0].near_bone)
        self.measure = self.search.objective(-1, seed=_SEED)
        self.start = Found.identity(len(pairs))
        self.before = self.similarity(self.start)

    def similarity(self, found: Found) -> np.ndarray:
        return self.measure.similarity(found.matrices, found.pairs, gradient=False).value

    def gains(self, found: Found) -> np.ndarray:
        """``[P]`` relative gain over the start, at points that the search did not use."""
        before, after = (self.measure.values(one.matrices, one.pairs) for one in (self.start, found))
        return np.where(before > 0, after / np.maximum(before, 1e-12) - 1, np.inf)

    def some(self, which: np.ndarray) -> _Group:
        """A group of some of the pairs."""
        return _Group([self.pairs[n] for n in which])

    def evidence(self, found: Found, gains: Sequence[float | None], rivals: Sequence[float]) -> list[Evidence]:
        """What speaks for and against one position of each pair."""
        back, halves = self.search.there_and_back(found, self.first), self.search.halves(found)
        out = []
        for n, pair in enumerate(self.pairs):
            transform = pair.fixed_to_moving(found.matrices[n])
            moves = transform.displacement_mm(pair.fixed.box)
            out.append(
                Evidence(
                    back_mm=float(back[n]),
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

    def results(self, found: Found, checks: Sequence[list[Check]], notes: Sequence[str]) -> list[_Result]:
        after = self.similarity(found)
        return [
            _Result(
                found.matrices[n], str(found.starts[n]), checks[n], notes[n], float(self.before[n]), float(after[n])
            )
            for n in range(len(self.pairs))
        ]


def _only_measured(group: _Group) -> list[_Result]:
    return group.results(group.start, [[]] * len(group.pairs), [""] * len(group.pairs))


def _near_the_start(group: _Group) -> list[_Result]:
    """Keep the start unless a motion near it is clear and beyond doubt."""
    best = group.search.polish(group.start, 0, 1, 2, kind=group.first, reach=_REACH)
    if group.kind != group.first:
        best = group.search.polish(best, 1, 2, kind=group.kind, reach=_REACH)
    gains = group.gains(best)
    out = [_kept(group, best, n, gains[n], _MISSED_GAIN, []) for n in range(len(group.pairs))]
    clear = np.flatnonzero(gains >= _CLEAR_GAIN)
    if len(clear):
        some = group.some(clear)
        found = Found(np.arange(len(clear)), *(getattr(best[clear], name) for name in ("matrices", "values", "starts")))
        evidence = some.evidence(found, gains[clear].tolist(), [0.0] * len(clear))
        checks = [[*one.checks(), one.long_motion()] for one in evidence]
        moved = some.results(found, checks, [""] * len(clear))
        for n, one, result in zip(clear, evidence, moved, strict=True):
            if one.precise and judge(result.checks)[0] == "ok":
                out[n] = result
    return out


def _anywhere(group: _Group) -> list[_Result]:
    """The best position of all; the header's is kept unless a motion is clear, where nothing is known against it."""
    search, pairs = group.search, group.pairs
    starts = search.starts([pair.header for pair in pairs])
    if group.kind == "translation":
        straight = np.abs(starts.matrices[:, :3, :3] - np.eye(3)).max((1, 2)) == 0
        coarse = search.refine(search.objective(0), starts[np.flatnonzero(straight)], kind="translation")
        coarse = search.distinct(coarse, 3)
    else:
        coarse = search.distinct(search.candidates(starts), 3)
    ranked = search.distinct(search.polish(coarse, 1, kind=group.first))
    first = Found.joined([ranked.of(n)[:1] for n in range(len(pairs))])
    rivals = []
    for n in range(len(pairs)):
        values = ranked.of(n).values
        rivals.append(float(values[1] / values[0]) if len(values) > 1 and values[0] > 0 else 0.0)
    best = search.polish(first, *((1, 2) if group.kind != group.first else (2,)), kind=group.kind)
    gains = group.gains(best)
    known = [float(gain) if pair.header else None for gain, pair in zip(gains, pairs, strict=True)]
    evidence = group.evidence(best, known, rivals)
    checks = [[*one.checks(), one.unpaid_motion()] for one in evidence]
    out = group.results(best, checks, [""] * len(pairs))
    for n, (pair, gain, one) in enumerate(zip(pairs, known, evidence, strict=True)):
        if pair.keep and gain is not None and gain < _MISSED_GAIN and not one.precise:
            out[n] = _kept(group, best, n, gain, _MISSED_GAIN_UNKNOWN, one.checks())
    return out


def _kept(group: _Group, best: Found, n: int, gain: float, limit: float, checks: list[Check]) -> _Result:
    """The start of pair ``n``, with a note on the motion that was not believed."""
    pair = group.pairs[n]
    motion = float(pair.fixed_to_moving(best.matrices[n]).displacement_mm(pair.fixed.box).max())
    note = f"the {'header' if pair.before.is_identity else 'given'} position was kept: "
    note += f"a motion of {motion:.1f} mm gains {gain:.1%} of similarity"
    missed = Check(gain, limit, f"{note}, too much to ignore, but is itself in doubt")
    note = "" if missed.score <= 0.5 else f"{note}, which is too little or too uncertain"
    before = float(group.before[n])
    return _Result(np.eye(4), "identity", [missed, *checks], note, before, before)


def _finished(pair: _Pair, found: _Result) -> Registration:
    """Judge, and bend if a bend was asked for."""
    kept = np.array_equal(found.matrix, np.eye(4))
    transform = pair.fixed_to_moving(found.matrix)
    shared = overlap(pair.fixed.field, pair.moving.field, transform)
    limits = [overlap_check(shared), similarity_check(found.after)]
    verdict, score, reasons = judge([*found.checks, *limits])
    if found.note:
        reasons = (*reasons, found.note)
    after, start, folding = found.after, found.start, 0.0
    if shared < FAILED_OVERLAP or (not kept and limits[1].score <= 0.5):
        verdict, score = "failed", 0.0
        reasons = tuple(check.sentence for check in limits if check.score <= 0.5)
        transform, after, start = Transform(), found.before, "identity"
        shared = overlap(pair.fixed.field, pair.moving.field)
    moves = transform.displacement_mm(pair.fixed.box)
    numbers = partial(
        Registration,
        verdict=verdict,
        score=score,
        reasons=reasons,
        similarity_before=found.before,
        similarity_after=after,
        overlap=shared,
        translation_mm=float(transform.displacement_mm(pair.fixed.field.center)),
        rotation_deg=transform.rotation_deg,
        motion_mm=float(moves.max()),
        initial=start,
    )
    return numbers(fixed_to_moving=transform.compose(pair.before), folding=folding)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's number of threads, for a while; and one for BLAS, whose threads only wait on arrays this small."""
    usual = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(usual)
