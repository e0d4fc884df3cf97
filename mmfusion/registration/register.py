"""Registration with a verdict: which motion brings one volume onto another, and whether to believe it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmfusion.errors import MmfusionError, OptionError
from mmfusion.registration.align import Pair, Result, align
from mmfusion.registration.deformable import Deformed, deform
from mmfusion.registration.verdict import FAILED_OVERLAP, judge, mask_check, overlap_check, similarity_check
from mmfusion.volume import Transform, Volume, check_device, coverage, overlap, resample

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH = 16  # pairs that a GPU searches together
_MOST_FOLDING = 0.001  # of the displacement's grid
_SAME_MM = 2.0  # positions whose farthest corner differs by less look the same


@dataclass(frozen=True, eq=False)
class Alternative:
    """The position that a doubtful registration did not take, for a person to compare.

    Attributes:
        fixed_to_moving: RAS mm.
        words: which one it is, and how far it lies from the one that was taken.
    """

    fixed_to_moving: Transform
    words: str


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
            search did not use; 0 where nothing overlaps. Of a deformable registration, that of its linear part.
        overlap: share of the smaller field of view that both scans saw, after, 0..1.
        translation_mm: how far the center of the fixed field of view moves.
        rotation_deg: the angle of the rotation.
        motion_mm: how far the farthest corner of the box around the fixed body moves.
        initial: the start that won: ``identity`` (the header, or the given transform), ``centers`` (of the fields of
            view) or ``mass`` (the centers of the bodies).
        folding: share of the displacement's grid where space is folded (determinant of the Jacobian not above 0);
            0 for a linear transform.
        alternative: of a doubtful registration, the position that was not taken: the motion that was not believed
            where the start was kept, the second best one if it is nearly as good, else the start. None if there is
            no other.
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
    alternative: Alternative | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words for JSON and tables; transforms as their matrices, four rows of four."""
        other = self.alternative
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
            "alternative": other and {"words": other.words, "fixed_to_moving": other.fixed_to_moving.matrix.tolist()},
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
    where the best motion gains less than a twelfth and is not three times as long as its uncertainty. The same
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
    pair = Pair(fixed, moving, kind, init, (fixed_mask, moving_mask), device, threads)
    return _finished(pair, align([pair])[0])


def measure(
    fixed: Volume,
    moving: Volume,
    transform: Transform,
    *,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    threads: int = 1,
) -> Registration:
    """A known transform, of any kind, as a registration: measured, not searched.

    For a transform with a displacement field, which cannot be a start of :func:`register`; what is compared is the
    moving volume read through it.

    Args:
        fixed, moving, fixed_mask, moving_mask, threads: see :func:`register`.
        transform: fixed_to_moving.

    Raises:
        GeometryError, VoxelError: see :func:`register`.
    """
    seen = coverage(moving.grid, fixed.grid, transform)
    if moving_mask is not None:
        seen &= resample(moving.replace(array=moving_mask), fixed.grid, transform, order=0, fill=0).array
    moved = resample(moving, fixed.grid, transform)
    found = register(fixed, moved, "none", fixed_mask=fixed_mask, moving_mask=seen, threads=threads)
    shared = overlap(fixed.grid, moving.grid, transform)
    other = found.alternative
    if other is not None:  # in the world that the moving volume was read into
        other = replace(other, fixed_to_moving=other.fixed_to_moving.compose(transform))
    return replace(found, fixed_to_moving=transform, overlap=shared, folding=transform.folding, alternative=other)


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

    Raises:
        OptionError: a device that is not there, or not one pair of masks for each pair.
    """
    check_device(device)
    masks = masks or [(None, None)] * len(pairs)
    if len(masks) != len(pairs):
        raise OptionError(f"{len(masks)} pairs of masks are given for {len(pairs)} pairs of volumes; give one for each")

    def one(job: tuple[tuple[Volume, Volume], tuple[Any, Any]]) -> Registration | MmfusionError:
        try:
            return register(*job[0], kind, init=init, fixed_mask=job[1][0], moving_mask=job[1][1], device=device)
        except MmfusionError as error:
            return error

    jobs = list(zip(pairs, masks, strict=True))
    if torch.device(device).type == "cpu":
        with ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(one, jobs))
    return [
        result for at in range(0, len(jobs), _BATCH) for result in _batch(jobs[at : at + _BATCH], kind, init, device)
    ]


def _batch(jobs: Sequence[Any], kind: str, init: str | Transform, device: str) -> list[Registration | MmfusionError]:
    """Pairs that are searched together; those that fail alone do not stop the others."""
    out: list[Any] = []
    for volumes, masks in jobs:
        try:
            out.append(Pair(volumes[0], volumes[1], kind, init, masks, device, 1))
        except MmfusionError as error:
            out.append(error)
    good = [n for n, one in enumerate(out) if isinstance(one, Pair)]
    for n, result in zip(good, align([out[n] for n in good]) if good else [], strict=True):
        try:
            out[n] = _finished(out[n], result)
        except MmfusionError as error:
            out[n] = error
    return out


def _finished(pair: Pair, found: Result) -> Registration:
    """Judge, and bend if a bend was asked for."""
    transform, start, after = Transform(found.matrix), found.start, found.after
    shared = overlap(pair.fixed.field, pair.moving.field, transform)
    limits = [overlap_check(shared), similarity_check(after)]
    masks = [mask_check(p.near_ml) for p, m in zip((pair.fixed, pair.moving), pair.masks, strict=True) if m is not None]
    checks = [*(found.evidence.checks() if found.evidence else []), *found.checks, *masks, *limits]
    verdict, score, reasons = judge(checks)
    if found.note:
        reasons = (*reasons, found.note)
    if shared < FAILED_OVERLAP or (not found.kept and limits[1].score <= 0.5):
        verdict, score = "failed", 0.0
        reasons = tuple(check.sentence for check in limits if check.score <= 0.5)
        transform, after, start = Transform(), found.before, "identity"
        shared = overlap(pair.fixed.field, pair.moving.field)
    linear, folding = transform, 0.0
    if pair.kind == "deformable" and verdict != "failed":
        bent = _bent(pair, transform)
        transform, folding = bent.transform, bent.folded
        if bent.largest_mm == 0:
            reasons = (*reasons, "nothing was bent: no displacement that was found raises the similarity")
        if folding > _MOST_FOLDING:
            verdict, score = "doubtful", min(score, 0.49)
            reasons = (*reasons, f"the displacement folds space in {folding:.1%} of its grid")
    return Registration(
        fixed_to_moving=transform.compose(pair.before),
        verdict=verdict,
        score=score,
        reasons=reasons,
        similarity_before=found.before,
        similarity_after=after,
        overlap=shared,
        translation_mm=float(transform.displacement_mm(pair.fixed.field.center)),
        rotation_deg=transform.rotation_deg,
        motion_mm=float(transform.displacement_mm(pair.fixed.box).max()),
        initial=start,
        folding=folding,
        alternative=_alternative(pair, found, linear) if verdict == "doubtful" else None,
    )


def _alternative(pair: Pair, found: Result, used: Transform) -> Alternative | None:
    """The position to compare with the linear one that was used; None if no other is known."""
    start = "the position of the headers" if pair.before.is_identity else "the given position"
    second = "the second best position of the search"
    candidates = [(Transform(), start)]
    if found.other is not None:
        words = "the best position of the search" if found.kept else second
        candidates.insert(0, (Transform(found.other), words))
    for other, words in candidates:
        apart = float(np.linalg.norm(other.apply(pair.fixed.box) - used.apply(pair.fixed.box), axis=-1).max())
        if apart >= _SAME_MM:
            turn = used.inverse().compose(other).rotation_deg
            return Alternative(other.compose(pair.before), f"{words}, up to {apart:.0f} mm away, turned by {turn:.0f}°")
    return None


def _bent(pair: Pair, linear: Transform) -> Deformed:
    """The linear transform with the displacement that it left."""
    fixed_mask, moving_mask = pair.masks
    return deform(
        pair.fixed_volume,
        pair.moving_volume,
        linear,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        device=pair.device,
        threads=pair.threads,
    )
