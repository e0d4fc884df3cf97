"""Where to look for the alignment, and how to climb to it: starts, coarse scoring, refinement. Many pairs at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.registration.ascent import RADIUS_MM, climb, generators
from mmfusion.registration.similarity import Similarity
from mmfusion.volume import Transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.registration.levels import Pyramid

SPACINGS = (8.0, 4.0, 2.0)  # mm, coarse to fine
COUNTS = (4_000, 12_000, 30_000)  # sample points on each level
_TOLERANCES = (1e-3, 3e-4, 1e-5)  # a step that gains a smaller share of the value ends the climb on each level
_FULL = 0.9  # share of the overlap from which on more of it earns nothing
_CANDIDATES = 8  # starts of a pair that are refined at the coarsest level, and maxima that are taken to the next


@dataclass(frozen=True, eq=False)
class Objective:
    """What the search maximizes: similarity times ``min(1, overlap / 0.9)``, for P pairs, at fixed_to_moving.

    Plain mutual information grows when the overlap shrinks, and so drives cropped volumes apart.

    Attributes:
        similarity: between the points of P images and P other images.
        expected: ``[P]`` share of the points that can fall inside at best, 0..1.
        flipped: ``[P]`` bool: the points are those of the moving volume, and are read in the fixed one.
    """

    similarity: Similarity
    expected: np.ndarray
    flipped: np.ndarray

    def __call__(self, matrices: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[R]`` values and ``[R, 3, 4]`` slopes at positions ``[R, 4, 4]`` of pairs ``[R]``."""
        flipped = self.flipped[pairs]
        directed = self._directed(matrices, flipped)
        found = self.similarity(directed, pairs)
        weight = self._weight(found.inside, pairs)
        slope = found.gradient
        if flipped.any():  # the derivative of f(X^-1) with X is -X^-T f' X^-T
            back = directed[flipped].transpose(0, 2, 1)
            whole = np.concatenate([slope[flipped], np.zeros((int(flipped.sum()), 1, 4))], 1)
            slope[flipped] = -(back @ whole @ back)[:, :3]
        return found.value * weight, slope * weight[:, None, None]

    def values(self, matrices: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """``[R]`` values alone."""
        found = self.similarity(self._directed(matrices, self.flipped[pairs]), pairs, gradient=False)
        return found.value * self._weight(found.inside, pairs)

    def settled(self, found: Found) -> Objective:
        """The same, where only a loss of overlap against ``found`` (one position a pair) counts.

        The head of a scan may be cut off: once the place is known, pulling what was cut off back into view, by
        turning or stretching, must earn nothing.
        """
        inside = self.similarity(self._directed(found.matrices, self.flipped), found.pairs, gradient=False).inside
        return replace(self, expected=np.minimum(self.expected, inside))

    def plain(self, matrices: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """``[R]`` similarities, whatever the overlap."""
        return self.similarity(self._directed(matrices, self.flipped[pairs]), pairs, gradient=False).value

    def _weight(self, inside: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return np.minimum(1.0, inside / (_FULL * self.expected[pairs]))

    @staticmethod
    def _directed(matrices: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        """Points' world to target's world."""
        return np.where(flipped[:, None, None], np.linalg.inv(matrices), matrices) if flipped.any() else matrices


@dataclass(frozen=True, eq=False)
class Found:
    """R positions.

    Attributes:
        pairs: ``[R]`` which pair each belongs to.
        matrices: ``[R, 4, 4]`` fixed_to_moving, RAS mm.
        values: ``[R]`` of the objective.
        starts: ``[R]`` the names of the starts they come from.
    """

    pairs: np.ndarray
    matrices: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, which: np.ndarray | slice) -> Found:
        return Found(self.pairs[which], self.matrices[which], self.values[which], self.starts[which])

    def of(self, pair: int) -> Found:
        """Those of one pair, best first."""
        rows = np.flatnonzero(self.pairs == pair)
        return self[rows[np.argsort(-self.values[rows], kind="stable")]]

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """Several in a row."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def identity(cls, pairs: int) -> Found:
        """The header position of each pair."""
        matrices = np.tile(np.eye(4), (pairs, 1, 1))
        return cls(np.arange(pairs), matrices, np.zeros(pairs), np.full(pairs, "identity"))


@dataclass(frozen=True, eq=False)
class Search:
    """The alignment of P pairs of pyramids, from points of one volume of each pair that are read in the other.

    Attributes:
        fixed, moving: the pyramids of each pair.
        flipped: ``[P]`` bool: the points come from the moving volume. They should come from the smaller field of
            view: the other can cover it wholly, so the share of points inside says what the overlap is.
        near_bone: draw most points near bone, see :meth:`Level.points`.
        seed: of the points.
    """

    fixed: Sequence[Pyramid]
    moving: Sequence[Pyramid]
    flipped: np.ndarray
    near_bone: bool = False
    seed: int = 0

    @cached_property
    def sources(self) -> list[Pyramid]:
        """Where the points come from."""
        return [m if back else f for f, m, back in zip(self.fixed, self.moving, self.flipped, strict=True)]

    @cached_property
    def targets(self) -> list[Pyramid]:
        """Where they are read."""
        return [f if back else m for f, m, back in zip(self.fixed, self.moving, self.flipped, strict=True)]

    @cached_property
    def expected(self) -> np.ndarray:
        """``[P]`` share of the source's points that the target can hold at best."""
        sizes = [(s.volume_mm3, t.volume_mm3) for s, t in zip(self.sources, self.targets, strict=True)]
        return np.array([min(1.0, target / source) for source, target in sizes])

    def objective(self, level: int) -> Objective:
        """The objective on a level (0 coarsest)."""
        drawn = [s.levels[level].points(COUNTS[level], self.seed, near_bone=self.near_bone) for s in self.sources]
        points, values = (np.stack(column) for column in zip(*drawn, strict=True))
        similarity = Similarity(points, values, [t.levels[level] for t in self.targets])
        return Objective(similarity, self.expected, self.flipped)

    def starts(self, header: Sequence[bool]) -> Found:
        """Where to start: header position, fields of view centered, bodies centered; 53 turns of each.

        Args:
            header: for each pair, whether its header position is one of the starts.
        """
        rows: list[tuple[int, np.ndarray, str]] = []
        for pair, (fixed, moving) in enumerate(zip(self.fixed, self.moving, strict=True)):
            shifts = {"centers": moving.field.center - fixed.field.center, "mass": moving.mass - fixed.mass}
            if header[pair]:
                shifts["identity"] = np.zeros(3)
            for name, shift in shifts.items():
                rows += [(pair, Transform.rigid(turn, tuple(shift), fixed.mass).matrix, name) for turn in _TURNS]
        pairs, matrices, names = zip(*rows, strict=True)
        return Found(np.array(pairs), np.stack(matrices), np.zeros(len(rows)), np.array(names))

    def candidates(self, starts: Found) -> Found:
        """The local maxima of the coarsest level that the best starts of each pair lead to."""
        quick = self.objective(0)
        scored = Found(starts.pairs, starts.matrices, quick.values(starts.matrices, starts.pairs), starts.starts)
        chosen = []
        for pair in range(len(self.fixed)):
            ranked = scored.of(pair)
            keep = list(range(min(_CANDIDATES, len(ranked))))
            for name in np.unique(ranked.starts):  # each position gets its chance: scores before refinement are rough
                first = int(np.flatnonzero(ranked.starts == name)[0])
                keep += [first] * (first not in keep)
            chosen.append(ranked[np.array(keep)])
        return self.distinct(self.refine(quick, Found.joined(chosen)))

    def distinct(self, found: Found, best: int = _CANDIDATES) -> Found:
        """Of each pair, the ``best`` maxima that lie more than 6 mm apart, best first."""
        parts = []
        for pair in np.unique(found.pairs):
            ranked = found.of(pair)
            kept: list[int] = []
            for row in range(len(ranked)):
                if all(self.apart(pair, ranked.matrices[row], ranked.matrices[other]) > 6 for other in kept):
                    kept.append(row)
            parts.append(ranked[np.array(kept[:best])])
        return Found.joined(parts)

    def polish(
        self,
        found: Found,
        *levels: int,
        kind: str = "rigid",
        reach: tuple[float, float] | None = None,
        settled: bool = False,
    ) -> Found:
        """Refine on the given levels, one after the other; see :meth:`refine` and :meth:`Objective.settled`."""
        for level in levels:
            objective = self.objective(level)
            objective = objective.settled(found) if settled else objective
            found = self.refine(objective, found, kind=kind, reach=reach, tolerance=_TOLERANCES[level])
        return found

    def refine(
        self,
        objective: Objective,
        found: Found,
        *,
        kind: str = "rigid",
        reach: tuple[float, float] | None = None,
        tolerance: float = _TOLERANCES[0],
    ) -> Found:
        """Climb to the next maximum.

        Args:
            objective: what to maximize.
            found: where from.
            kind: of motion.
            reach: how far to go at most, as degrees about each axis and mm along each; no limit if None.
            tolerance: a step that gains a smaller share of the value ends the climb.
        """
        basis, limit = generators(kind), None
        if reach is not None:
            limit = np.full(len(basis), np.radians(reach[0]) * RADIUS_MM)
            limit[:3] = reach[1] if kind == "translation" else limit[:3]
            limit[3:6] = reach[1]
        matrices, values = climb(
            lambda matrices, rows: objective(matrices, found.pairs[rows]),
            found.matrices,
            self._middles[found.pairs],
            basis,
            tolerance=tolerance,
            reach=limit,
        )
        return Found(found.pairs, matrices, values, found.starts)

    def again(self, found: Found, *levels: int, kind: str = "rigid", **changes: Any) -> np.ndarray:
        """How far a search of other traits, started at one position of each pair, ends from it, ``[P]`` mean mm."""
        other = replace(self, **changes).polish(found, *levels, kind=kind, settled=True)
        return np.array([self.apart(n, found.matrices[n], other.matrices[n]) for n in range(len(self.fixed))])

    def halves(self, found: Found, count: int = 8_000) -> np.ndarray:
        """How far halves of the body move on when each is refined alone: the largest mean over a half, ``[P]`` mm.

        Six halves: left and right, back and front, lower and upper. They agree if the whole is rigid and well
        determined; they part if the patient was bent differently or the similarity is nearly flat.

        Args:
            found: one position for each pair.
            count: points of the whole.
        """
        points, values, targets = [], [], []
        for source, target in zip(self.sources, self.targets, strict=True):
            where, what = source.levels[1].points(count, self.seed, near_bone=self.near_bone)
            for along in where:
                order = np.argsort(along, kind="stable")
                for half in (order[: count // 2], order[count // 2 :]):
                    some = np.sort(half)
                    points.append(where[:, some])
                    values.append(what[some])
                    targets.append(target.levels[1])
        parts = Similarity(np.stack(points), np.stack(values), targets)
        start = np.repeat(found.matrices, 6, axis=0)
        rows = Found(np.arange(len(start)), start, np.zeros(len(start)), np.repeat(found.starts, 6))
        objective = Objective(parts, np.repeat(self.expected, 6), np.repeat(self.flipped, 6)).settled(rows)
        moved, _ = climb(
            objective, start, np.repeat(self._middles, 6, axis=0), generators("rigid"), tolerance=_TOLERANCES[0]
        )
        # each half's points, in the fixed world
        flipped = objective.flipped[:, None, None]
        back = np.where(flipped, np.linalg.inv(start), np.eye(4))
        there = np.einsum("rij,rjn->rin", back[:, :3, :3], parts.points) + back[:, :3, 3:]
        change = moved - start
        away = np.einsum("rij,rjn->rin", change[:, :3, :3], there) + change[:, :3, 3:]
        return np.linalg.norm(away, axis=1).mean(1).reshape(-1, 6).max(1)

    @cached_property
    def _middles(self) -> np.ndarray:
        """``[P, 3]`` what each pair is turned about: the middle of the fixed body."""
        return np.stack([fixed.mass for fixed in self.fixed])

    def apart(self, pair: int, one: np.ndarray, other: np.ndarray) -> float:
        """Mean distance between where two matrices take the fixed body (corners of its box), mm."""
        box = self.fixed[pair].box
        return float(np.linalg.norm(box @ (one - other)[:3, :3].T + (one - other)[:3, 3], axis=1).mean())


def _turns() -> list[tuple[float, float, float]]:
    """No rotation, and 20 and 40 degrees about the axes and all diagonals, both ways."""
    ways = [np.array(way) / np.linalg.norm(way) for way in product((-1, 0, 1), repeat=3) if any(way)]
    return [(0.0, 0.0, 0.0), *(tuple((angle * way).tolist()) for angle in (20, 40) for way in ways)]


_TURNS = _turns()
