"""Where to look for the alignment, and how to climb to it: starts, coarse scoring, refinement. Many pairs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.registration.ascent import RADIUS_MM, climb, generators
from mmfusion.registration.similarity import Similarity
from mmfusion.volume import Transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.registration.levels import Pyramid

SPACINGS = (8.0, 4.0, 2.0)  # mm, coarse to fine
COUNTS = (4_000, 12_000, 30_000)  # sample points on each level
_FULL = 0.9  # share of the overlap from which on more of it earns nothing
_CANDIDATES = 6  # starts that are refined at the coarsest level


@dataclass(frozen=True, eq=False)
class Objective:
    """What the search maximizes: similarity times ``min(1, overlap / 0.9)``, for P pairs.

    Plain mutual information grows when the overlap shrinks, and so drives cropped volumes apart.

    Attributes:
        similarity: between the points of P images and P other images.
        expected: ``[P]`` share of the points that can fall inside at best, 0..1.
    """

    similarity: Similarity
    expected: np.ndarray

    def __call__(self, matrices: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``[R]`` values and ``[R, 3, 4]`` slopes at positions ``[R, 4, 4]`` of pairs ``[R]``."""
        found = self.similarity(matrices, pairs)
        weight = self._weight(found.inside, pairs)
        return found.value * weight, found.gradient * weight[:, None, None]

    def values(self, matrices: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """``[R]`` values alone."""
        found = self.similarity(matrices, pairs, gradient=False)
        return found.value * self._weight(found.inside, pairs)

    def _weight(self, inside: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return np.minimum(1.0, inside / (_FULL * self.expected[pairs]))


@dataclass(frozen=True, eq=False)
class Found:
    """R positions.

    Attributes:
        pairs: ``[R]`` which pair each belongs to.
        matrices: ``[R, 4, 4]`` points' world to target's world, RAS mm.
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

    def inverse(self) -> Found:
        """The other way round."""
        return Found(self.pairs, np.linalg.inv(self.matrices), self.values, self.starts)


@dataclass(frozen=True, eq=False)
class Search:
    """The alignment of P pairs of pyramids, from points of ``sources`` that are read in ``targets``.

    The source should be the one with the smaller field of view: the other can cover it wholly, so the share of
    points inside says what the overlap is.

    Attributes:
        sources, targets: the pyramids of each pair.
        near_bone: draw most points near bone, see :meth:`Level.points`.
        seed: of the points.
    """

    sources: Sequence[Pyramid]
    targets: Sequence[Pyramid]
    near_bone: bool = False
    seed: int = 0

    @property
    def expected(self) -> np.ndarray:
        """``[P]`` share of the source's points that the target can hold at best."""
        return np.array(
            [min(1.0, t.volume_mm3 / s.volume_mm3) for s, t in zip(self.sources, self.targets, strict=True)]
        )

    def objective(self, level: int, count: int | None = None, seed: int | None = None) -> Objective:
        """The objective on a level (0 coarsest), at ``count`` points a pair."""
        seed = self.seed if seed is None else seed
        drawn = [s.levels[level].points(count or COUNTS[level], seed, near_bone=self.near_bone) for s in self.sources]
        points, values = (np.stack(column) for column in zip(*drawn, strict=True))
        return Objective(Similarity(points, values, [t.levels[level] for t in self.targets]), self.expected)

    def starts(self, header: Sequence[bool]) -> Found:
        """Where to start: header position, fields of view centered, bodies centered; 21 turns of each.

        Args:
            header: for each pair, whether its header position is one of the starts.
        """
        rows: list[tuple[int, np.ndarray, str]] = []
        for pair, (source, target) in enumerate(zip(self.sources, self.targets, strict=True)):
            shifts = {
                "centers": target.field.center - source.field.center,
                "mass": target.mass - source.mass,
            }
            if header[pair]:
                shifts["identity"] = np.zeros(3)
            for name, shift in shifts.items():
                rows += [(pair, Transform.rigid(turn, tuple(shift), source.mass).matrix, name) for turn in _TURNS]
        pairs, matrices, names = zip(*rows, strict=True)
        return Found(np.array(pairs), np.stack(matrices), np.zeros(len(rows)), np.array(names))

    def candidates(self, starts: Found) -> Found:
        """The local maxima of the coarsest level that the best starts of each pair lead to."""
        quick = self.objective(0)
        scored = Found(starts.pairs, starts.matrices, quick.values(starts.matrices, starts.pairs), starts.starts)
        chosen = []
        for pair in range(len(self.sources)):
            ranked = scored.of(pair)
            keep = list(range(min(_CANDIDATES, len(ranked))))
            for name in np.unique(ranked.starts):  # each position gets its chance: scores before refinement are rough
                first = int(np.flatnonzero(ranked.starts == name)[0])
                keep += [first] * (first not in keep)
            chosen.append(ranked[np.array(keep)])
        return self.distinct(self.refine(quick, Found.joined(chosen)))

    def distinct(self, found: Found, best: int = 4) -> Found:
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
        self, found: Found, *levels: int, kind: str = "rigid", reach: tuple[float, float] | None = None
    ) -> Found:
        """Refine on the given levels, one after the other."""
        for level in levels:
            found = self.refine(self.objective(level), found, kind=kind, reach=reach)
        return found

    def refine(
        self,
        objective: Objective,
        found: Found,
        *,
        kind: str = "rigid",
        reach: tuple[float, float] | None = None,
        iterations: int = 40,
    ) -> Found:
        """Climb to the next maximum.

        Args:
            objective: what to maximize.
            found: where from.
            kind: of motion.
            reach: how far to go at most, as degrees about each axis and mm along each; no limit if None.
            iterations: at most so many.
        """
        basis, limit = generators(kind), None
        if reach is not None:
            limit = np.full(len(basis), np.radians(reach[0]) * RADIUS_MM)
            limit[:3] = reach[1] if kind == "translation" else limit[:3]
            limit[3:6] = reach[1]
        matrices, values = climb(
            lambda matrices, rows: objective(matrices, found.pairs[rows]),
            found.matrices,
            objective.similarity.center[found.pairs],
            basis,
            iterations=iterations,
            reach=limit,
        )
        return Found(found.pairs, matrices, values, found.starts)

    def there_and_back(self, found: Found, kind: str = "rigid") -> np.ndarray:
        """Inverse consistency: how far the other direction, started at ``found``, ends from it, ``[P]`` mean mm."""
        back = (
            Search(self.targets, self.sources, self.near_bone, self.seed)
            .polish(found.inverse(), 1, kind=kind)
            .inverse()
        )
        return np.array(
            [self.apart(p, a, b) for p, a, b in zip(found.pairs, found.matrices, back.matrices, strict=True)]
        )

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
        moved = self.refine(Objective(parts, np.repeat(self.expected, 6)), rows, iterations=20).matrices
        away = np.einsum("rij,rjn->rin", (moved - start)[:, :3, :3], parts.points) + (moved - start)[:, :3, 3:]
        return np.linalg.norm(away, axis=1).mean(1).reshape(-1, 6).max(1)

    def apart(self, pair: int, one: np.ndarray, other: np.ndarray) -> float:
        """Mean distance between where two matrices take the source's body (corners of its box), mm."""
        box = self.sources[pair].box
        return float(np.linalg.norm(box @ (one - other)[:3, :3].T + (one - other)[:3, 3], axis=1).mean())


def _turns() -> list[tuple[float, float, float]]:
    """No rotation, 15 and 30 degrees about each axis both ways, 25 degrees about the eight diagonals."""
    turns = [(0.0, 0.0, 0.0)]
    for axis in range(3):
        for degrees in (15.0, -15.0, 30.0, -30.0):
            x, y, z = (degrees if axis == a else 0.0 for a in range(3))
            turns.append((x, y, z))
    side = 25 / np.sqrt(3)
    turns += [(x, y, z) for x in (side, -side) for y in (side, -side) for z in (side, -side)]
    return turns


_TURNS = _turns()
