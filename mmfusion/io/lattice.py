"""The regular lattice that parallel DICOM slices form, and what it takes to make them form one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.slices import SAME_POSITION_MM, normal_of

if TYPE_CHECKING:
    from mmfusion.io.slices import Slice

_POSITION_TOLERANCE = 0.01  # of the slice spacing
_MOST_ROUNDING = 0.15  # of the slice spacing; what is more is no rounding of positions
_OTHER_SPACING = 0.1  # of the smaller gap; gaps that differ by less belong to one spacing
_LEAST_GAPS = 3  # of one spacing; fewer are missing slices


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where the voxels of a stack lie.

    Attributes:
        affine: ``[4, 4]`` (column, row, slice) index to LPS mm.
        order: the slices, by their number, in order of place along their normal.
        weights: ``[slices in order, slices of the lattice]`` float32, by which the ones are made of the others; None if
            they are the same.
        notes, doubts: as of :class:`mmfusion.io.header.Opened`.
    """

    affine: np.ndarray
    order: list[int]
    weights: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """The number of slices."""
        return len(self.order) if self.weights is None else self.weights.shape[1]


def stack(slices: list[Slice], source: object) -> Lattice:
    """The lattice that parallel slices (:func:`mmfusion.io.slices.parallel`) form.

    A gantry tilt (slices shifted sideways by a constant step) gives a sheared affine. Positions that were rounded to
    whole mm or tenths of them lie on the straight line that fits them best. A stack of several spacings, one after the
    other, comes in the finest of them.

    Args:
        slices: in any order.
        source: what messages call them.

    Raises:
        ReadError: missing or repeated slices, unequal steps, or a single slice of unknown thickness.
    """
    first = slices[0]
    normal = normal_of(first.axes)
    positions = np.asarray([piece.position for piece in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    along = positions @ normal
    numbers = [int(n) for n in order]
    _refuse_repeated(along, source)
    if len(slices) == 1:
        if not first.thickness:
            raise ReadError(f"{source}: a single slice whose thickness the DICOM does not say (0018,0050)")
        return Lattice(_affine(first, normal * first.thickness, positions[0]), numbers)
    start, step, off = _line(np.arange(len(slices)), positions)
    spacing = float(np.linalg.norm(step))
    if np.linalg.norm(off, axis=1).max() <= _tolerance(spacing):
        return Lattice(_affine(first, step, start), numbers)
    rounding = _rounding(positions, spacing)
    if (np.abs(off).max(0) <= _tolerance(spacing) + rounding).all():
        note = (
            f"positions of slices are rounded, by up to {np.linalg.norm(off, axis=1).max():.2f} mm; even steps of "
            f"{spacing:.3f} mm fit them"
        )
        return Lattice(_affine(first, step, start), numbers, notes=(note,))
    thickness = np.asarray([piece.thickness for piece in slices])[order]
    resampled = _resampled(first, positions, along, thickness, numbers)
    if resampled is not None:
        return resampled
    _refuse_missing(positions, along, source)
    raise _uneven(off, along, normal, _tolerance(spacing), source)


def _affine(first: Slice, step: np.ndarray, start: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.axes[0] * first.spacing[0], first.axes[1] * first.spacing[1]
    affine[:3, 2], affine[:3, 3] = step, start
    return affine


def _tolerance(spacing: float) -> float:
    return max(SAME_POSITION_MM, _POSITION_TOLERANCE * spacing)


def _line(at: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The straight line that fits ``positions [N, 3]`` at ``at [N]`` best: its point at 0, its step, how far off."""
    centered = at - at.mean()
    step = centered @ positions / (centered @ centered)
    start = positions.mean(0) - at.mean() * step
    return start, step, positions - start - at[:, None] * step


def _rounding(positions: np.ndarray, spacing: float) -> np.ndarray:
    """By how much each coordinate ``[3]`` of the positions may be off because it was written with few digits, mm."""
    out = np.zeros(3)
    for unit in (0.1, 1.0):
        if unit / 2 <= _MOST_ROUNDING * spacing:
            out[(np.abs(positions - np.rint(positions / unit) * unit) < 1e-6).all(0)] = unit / 2
    return out


def _resampled(
    first: Slice, positions: np.ndarray, along: np.ndarray, thickness: np.ndarray, order: list[int]
) -> Lattice | None:
    """The lattice of slices in several spacings, one after the other, as in head CT; None if they are not so.

    It has the slices of the finest spacing where they are; between the others it interpolates.
    """
    runs = _runs(along, positions)
    if len(runs) < 2:
        return None
    start, direction, off = _line(along, positions)
    steps = [float(along[b] - along[a]) / (b - a) for a, b in runs]
    finest = int(np.argmin(steps))
    spacing, anchor = steps[finest], along[runs[finest][0]]
    tolerance = _tolerance(spacing) + _rounding(positions, spacing)
    if (np.abs(off).max(0) > tolerance).any():
        return None
    slack = float(tolerance.max())
    # int() goes toward the anchor: nothing beyond the outer slices is made up
    below, above = (int((end - anchor + sign * slack) / spacing) for end, sign in ((along[0], -1), (along[-1], 1)))
    wanted = anchor + spacing * np.arange(below, above + 1)
    nearest = along[np.abs(along[:, None] - wanted).argmin(0)]
    snapped = np.where(np.abs(nearest - wanted) <= slack, nearest, wanted)  # a slice that is there is taken as it is
    weights = np.stack([np.interp(snapped, along, row) for row in np.eye(len(along))])
    apart = ", then ".join(f"{step:.2f} mm" for step in steps)
    where = ", ".join(f"{along[b]:.1f}" for _, b in runs[:-1])
    thin = thickness[slice(*runs[finest])].mean()
    doubts = []
    for (a, b), step in zip(runs, steps, strict=True):
        times = round(step / spacing)
        thicker = abs(thickness[a + 1 : b].mean() - thin) > 0.01 * spacing
        if times > 1 and not thicker and abs(step - times * spacing) <= 2 * slack:
            doubts.append(
                f"slices are {step:.2f} mm apart from {along[a]:.1f} to {along[b]:.1f} mm along the slice axis, and "
                "the DICOM does not say that they are thicker there: perhaps some are missing. Compare with the archive"
            )
    return Lattice(
        _affine(first, direction * spacing, start + direction * wanted[0]),
        order,
        weights.astype(np.float32),
        (f"slices are {apart} apart (changing at {where} mm along the slice axis); resampled to {spacing:.2f} mm",),
        tuple(doubts),
    )


def _runs(along: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
    """First and last slice of each spacing; empty if the gaps do not all belong to a spacing of several gaps.

    Where two spacings meet, one gap may be of any size up to the wider: positions are those of the middle of slices,
    and two stacks may overlap.
    """
    gaps = np.diff(along)
    rough = 2 * float(_rounding(positions, float(gaps.min())).max())
    changes = np.abs(np.diff(gaps)) > _OTHER_SPACING * np.minimum(gaps[:-1], gaps[1:]) + rough
    ends = [0, *(int(n) + 1 for n in np.flatnonzero(changes)), len(gaps)]
    runs = list(pairwise(ends))
    long = [run for run in runs if run[1] - run[0] >= _LEAST_GAPS]
    for n, (a, b) in enumerate(runs):
        if (a, b) in long:
            _, step, off = _line(np.arange(b - a + 1), along[a : b + 1, None])
            if np.abs(off).max() > _tolerance(float(step[0])) + rough:
                return []
            continue
        inner = b - a == 1 and 0 < n < len(runs) - 1
        if not inner or gaps[a] > max(gaps[a - 1], gaps[b]):
            return []
    return long


def _refuse_repeated(along: np.ndarray, source: object) -> None:
    """Refuse repeated slices, by their sorted positions ``[N]`` along the normal, mm."""
    gaps = np.diff(along)
    repeated = int((gaps < SAME_POSITION_MM).sum())
    if repeated:
        places = len(gaps) + 1 - repeated
        raise ReadError(
            f"{source}: {len(gaps) + 1} slices at {places} positions; each position may occur once. "
            "If the series holds several frames (time, echo, b-value), no tag tells them apart; keep one of them"
        )


def _refuse_missing(positions: np.ndarray, along: np.ndarray, source: object) -> None:
    """Refuse missing slices, by their sorted ``positions [N, 3]``, also ``along [N]`` their normal, mm."""
    gaps = np.diff(along)
    usual = float(gaps[gaps < 1.5 * np.median(gaps)].mean())
    steps = np.rint(gaps / usual)
    tolerance = 2 * (_tolerance(usual) + float(_rounding(positions, usual).max()))
    if (np.abs(gaps - steps * usual) <= tolerance).all() and (steps > 1).any():
        where = along[int(np.argmax(steps > 1))]
        raise ReadError(
            f"{source}: {int((steps - 1).sum())} of {int(steps.sum()) + 1} slices are missing, the first after "
            f"{where:.1f} mm along the slice axis (spacing {usual:.2f} mm). Copy or export the series again"
        )


def _uneven(off: np.ndarray, along: np.ndarray, normal: np.ndarray, tolerance: float, source: object) -> ReadError:
    """What is wrong with slices that lie ``off [N, 3]`` mm from a straight line of even steps."""
    if np.abs(off @ normal).max() > tolerance:
        gaps = np.diff(along)
        return ReadError(
            f"{source}: slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; equal steps are needed. "
            "Resample the series to even slices first"
        )
    sideways = float(np.linalg.norm(off, axis=1).max())
    return ReadError(
        f"{source}: slices are shifted sideways by up to {sideways:.2f} mm from a straight stack; "
        "resample the series first"
    )
