"""Rigid registration with a verdict: which motion brings one volume onto another, and whether to believe it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from threadpoolctl import threadpool_limits

from mmfusion.errors import GeometryError, OptionError
from mmfusion.options import unknown
from mmfusion.registration.levels import Pyramid, pyramid
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
    from collections.abc import Iterator

KINDS: tuple[str, ...] = ("rigid", "none")
"""The kinds of registration; ``none`` keeps the header position and measures."""

INITS: tuple[str, ...] = ("auto", "identity", "centers")
"""Where the search starts, see :func:`register`."""

_REACH = (15.0, 30.0)  # degrees about each axis, mm along each: how far around a trusted header is searched
_CLEAR_GAIN = 0.05  # of similarity; less does not overrule a trusted header
_MISSED_GAIN = 0.25  # makes a trusted header that was kept doubtful, and overrules one of unknown worth
_MISSED_GAIN_UNKNOWN = 0.10  # makes a header of unknown worth that was kept doubtful
_SEED = 20240229  # of the points that measure; the search uses others, so that it cannot flatter itself
_HEADER = Found(Transform(), 0.0, "identity")


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the fixed volume lies in the moving one, and how far to trust it.

    Attributes:
        fixed_to_moving: rigid, RAS mm. The identity if the header position was kept or nothing was found.
        verdict: ``ok``; ``doubtful`` (look at it before use, see ``reasons``); ``failed`` (do not use it).
        score: the weakest of the checks behind the verdict, 0..1; doubt begins at 0.5.
        reasons: what was found, as sentences; may also say why an ``ok`` position was kept.
        similarity_before, similarity_after: normalized mutual information (0..1, see
            :func:`mutual_information`) at the header position and at the result, in and near the body, at points
            that the search did not use; 0 where nothing overlaps.
        overlap: share of the smaller field of view that both scans saw, after, 0..1.
        translation_mm: how far the center of the fixed field of view moves.
        rotation_deg: the angle of the rotation.
        motion_mm: how far the farthest corner of the box around the fixed body moves.
        initial: the start that won: ``identity`` (the header), ``centers`` (of the fields of view) or ``mass``
            (the centers of the bodies).
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
            "fixed_to_moving": self.fixed_to_moving.matrix.tolist(),
        }


def register(
    fixed: Volume, moving: Volume, kind: str = "rigid", *, init: str = "auto", threads: int = 1
) -> Registration:
    """Find the rigid motion that aligns two volumes of one patient, of any modalities. Nothing is resampled.

    Maximizes normalized mutual information at 8, 4 and 2.5 mm. Volumes that share a DICOM frame of reference were
    aligned by the scanner: the search stays near the header position and keeps it, unless a motion gains at least
    a twentieth of similarity, is three times as long as its own uncertainty, and passes every check. Otherwise many
    starts are tried. If a frame of reference is missing, as in NIfTI files, the header position is still kept
    where the best motion gains less than a quarter and is not three times as long as its uncertainty. The same
    volumes give the same result.

    Args:
        fixed: the reference.
        moving: what is to be aligned with it.
        kind: ``rigid``, or ``none`` to keep the header position and only measure.
        init: ``auto`` as above; ``identity`` trusts the header position as if the frame of reference were shared;
            ``centers`` ignores it and starts where centers coincide.
        threads: for bringing volumes to lower resolution; the search itself runs on one.

    Raises:
        OptionError: an unknown ``kind`` or ``init``.
        GeometryError: the header position is to be trusted and the fields of view do not overlap; or a single slice.
        VoxelError: a volume is not finite, constant, or without a foreground.
    """
    if kind not in KINDS:
        raise OptionError(unknown("kind of registration", kind, KINDS))
    if init not in INITS:
        raise OptionError(unknown("start of the registration", init, INITS))
    frames = {volume.frame_of_reference for volume in (fixed, moving)}
    trusted = init == "identity" or (init == "auto" and len(frames) == 1 and "" not in frames)
    shared = overlap(fixed.grid, moving.grid)
    if kind == "rigid" and trusted and shared == 0:
        apart = float(np.linalg.norm(fixed.grid.center - moving.grid.center))
        raise GeometryError(
            f"{moving.name} and {fixed.name} share 0 % of their field of view (centers {apart:.0f} mm apart). "
            "Headers disagree; re-export, or use --init centers"
        )
    with _threads(threads):
        pair = _Pair(pyramid(fixed, SPACINGS), pyramid(moving, SPACINGS))
        if kind == "none":
            return pair.result(_HEADER, [])
        if trusted:
            return pair.near_header()
        return pair.anywhere(header=init == "auto" and shared > 0, keep="" in frames)


class _Pair:
    """Two pyramids, and the two ways to align them."""

    def __init__(self, fixed: Pyramid, moving: Pyramid) -> None:
        self.fixed, self.moving = fixed, moving
        self.swapped = moving.volume_mm3 < fixed.volume_mm3  # points come from the smaller field of view
        self.search = Search(moving, fixed) if self.swapped else Search(fixed, moving)
        self.measure = self.search.objective(-1, seed=_SEED)

    def near_header(self) -> Registration:
        """Keep the header position unless a motion near it is clear and beyond doubt."""
        best = self.search.polish(_HEADER, 0, 1, 2, reach=_REACH)
        gain = self.gain(best)
        if gain >= _CLEAR_GAIN:
            evidence = self.evidence(best, gain)
            checks = [*evidence.checks(), evidence.long_motion()]
            if evidence.precise and judge(checks)[0] == "ok":
                return self.result(best, checks)
        return self.kept(best, gain, _MISSED_GAIN, [])

    def anywhere(self, header: bool, keep: bool) -> Registration:
        """The best position of all.

        Args:
            header: the header position is one of the starts.
            keep: it is kept unless a motion is clear.
        """
        coarse = self.search.candidates(self.search.starts(header))[:3]
        ranked = self.search.distinct([self.search.polish(one, 1) for one in coarse])
        best = self.search.polish(ranked[0], 2)
        rival = ranked[1].value / ranked[0].value if len(ranked) > 1 and ranked[0].value > 0 else 0.0
        gain = self.gain(best) if header else None
        evidence = self.evidence(best, gain, rival)
        if keep and gain is not None and gain < _MISSED_GAIN and not evidence.precise:
            return self.kept(best, gain, _MISSED_GAIN_UNKNOWN, evidence.checks())
        return self.result(best, [*evidence.checks(), evidence.unpaid_motion()])

    def evidence(self, found: Found, gain: float | None, rival: float = 0.0) -> Evidence:
        moves = self.fixed_to_moving(found).displacement_mm(self.fixed.box)
        return Evidence.of(self.search, found, float(moves.mean()), float(moves.max()), gain, rival)

    def gain(self, found: Found) -> float:
        """Relative gain over the header position, at points that the search did not use."""
        before = self.measure(_HEADER.transform)
        return self.measure(found.transform) / before - 1 if before > 0 else float(np.inf)

    def fixed_to_moving(self, found: Found) -> Transform:
        return found.transform.inverse() if self.swapped and found is not _HEADER else found.transform

    def kept(self, best: Found, gain: float, limit: float, checks: list[Check]) -> Registration:
        """The header position, with a note on the motion that was not believed."""
        motion = float(self.fixed_to_moving(best).displacement_mm(self.fixed.box).max())
        note = f"the header position was kept: a motion of {motion:.1f} mm gains {gain:.1%} of similarity"
        missed = Check(gain, limit, f"{note}, too much to ignore, but is itself in doubt")
        note = "" if missed.score <= 0.5 else f"{note}, which is too little or too uncertain"
        return self.result(_HEADER, [missed, *checks], note)

    def result(self, found: Found, checks: list[Check], note: str = "") -> Registration:
        """Judge and measure."""
        shared = overlap(self.fixed.field, self.moving.field, self.fixed_to_moving(found))
        before, after = self.similarity(_HEADER), self.similarity(found)
        limits = [overlap_check(shared), similarity_check(after)]
        verdict, score, reasons = judge([*checks, *limits])
        if note:
            reasons = (*reasons, note)
        if shared < FAILED_OVERLAP or (found is not _HEADER and limits[1].score <= 0.5):
            verdict, score = "failed", 0.0
            reasons = tuple(check.sentence for check in limits if check.score <= 0.5)
            found, after = _HEADER, before
            shared = overlap(self.fixed.field, self.moving.field)
        transform = self.fixed_to_moving(found)
        return Registration(
            fixed_to_moving=transform,
            verdict=verdict,
            score=score,
            reasons=reasons,
            similarity_before=before,
            similarity_after=after,
            overlap=shared,
            translation_mm=float(transform.displacement_mm(self.fixed.field.center)),
            rotation_deg=transform.rotation_deg,
            motion_mm=float(transform.displacement_mm(self.fixed.box).max()),
            initial=found.start,
        )

    def similarity(self, found: Found) -> float:
        return self.measure.similarity(found.transform.matrix, gradient=False).value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """SimpleITK's number of threads, for a while; and one for BLAS, whose threads only wait on arrays this small."""
    usual = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, count))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(usual)
