"""Where to look for the alignment, and how to climb to it: starts, coarse scoring, refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize

from mmfusion.registration.levels import Pyramid
from mmfusion.registration.similarity import Similarity, trilinear
from mmfusion.volume import Transform

if TYPE_CHECKING:
    from collections.abc import Mapping

SPACINGS = (8.0, 4.0, 2.5)  # mm, coarse to fine
COUNTS = (5_000, 15_000, 25_000)  # sample points on each level
_RADIUS_MM = 70.0  # one unit of rotation moves a point at this distance by one mm
_FULL = 0.9  # share of the overlap from which on more of it earns nothing
_CANDIDATES = 4  # starts that are refined at the coarsest level


@dataclass(frozen=True, eq=False)
class Objective:
    """What the search maximizes: similarity times ``min(1, overlap / 0.9)``.

    Plain mutual information grows when the overlap shrinks, and so drives cropped volumes apart.

    Attributes:
        similarity: between the points of one image and another image.
        expected: share of the points that can fall inside at best, 0..1.
    """

    similarity: Similarity
    expected: float = 1.0

    def __call__(self, transform: Transform) -> float:
        found = self.similarity(transform.matrix, gradient=False)
        return found.value * self.weight(found.inside)

    def weight(self, inside: float) -> float:
        """The factor for the share of points inside."""
        return min(1.0, inside / (_FULL * self.expected))


class Found(NamedTuple):
    """A maximum: the transform (points' world to target's world), its objective, and the start it came from."""

    transform: Transform
    value: float
    start: str


@dataclass(frozen=True, eq=False)
class Search:
    """The alignment of two pyramids, from points of ``source`` that are read in ``target``.

    The source should be the one with the smaller field of view: the other can cover it wholly, so the share of
    points inside says what the overlap is.
    """

    source: Pyramid
    target: Pyramid
    seed: int = 0

    def objective(self, level: int, count: int | None = None, seed: int | None = None) -> Objective:
        """The objective on a level (0 coarsest), at ``count`` points."""
        source, target = self.source.levels[level], self.target.levels[level]
        points = source.points(count or COUNTS[level], self.seed if seed is None else seed)
        values, _ = trilinear(source.array, source.to_index[:3, :3] @ points + source.to_index[:3, 3:], slopes=False)
        expected = min(1.0, self.target.volume_mm3 / self.source.volume_mm3)
        return Objective(Similarity(points, values, target), expected)

    def starts(self, header: bool) -> dict[str, np.ndarray]:
        """Translations ``[3]`` (mm) to start from: the header's (none), fields of view centered, bodies centered."""
        found = {
            "centers": self.target.field.center - self.source.field.center,
            "mass": self.target.mass - self.source.mass,
        }
        return {"identity": np.zeros(3)} | found if header else found

    def candidates(self, translations: Mapping[str, np.ndarray]) -> list[Found]:
        """The local maxima of the coarsest level that the best starts lead to, best first.

        Args:
            translations: start name to translation ``[3]`` mm; each is tried with 21 rotations.
        """
        quick = self.objective(0)
        middle = quick.similarity.points[:3].mean(1)
        starts = []
        for name, shift in translations.items():
            for rotation in _rotations():
                start = Transform.rigid(rotation, tuple(shift), middle)
                starts.append(Found(start, quick(start), name))
        starts.sort(key=lambda start: -start.value)
        chosen = starts[:_CANDIDATES]
        for name in translations:  # each position gets its chance: scores before refinement are rough
            if all(start.start != name for start in chosen):
                chosen.append(next(start for start in starts if start.start == name))
        return self.distinct([refine(quick, start) for start in chosen])

    def distinct(self, found: list[Found]) -> list[Found]:
        """Maxima that lie more than 6 mm apart, best first."""
        kept: list[Found] = []
        for one in sorted(found, key=lambda one: -one.value):
            if all(self.apart(one.transform, other.transform) > 6 for other in kept):
                kept.append(one)
        return kept

    def polish(self, found: Found, *levels: int, reach: tuple[float, float] | None = None) -> Found:
        """Refine on the given levels, one after the other."""
        for level in levels:
            found = refine(self.objective(level), found, reach=reach)
        return found

    def there_and_back(self, found: Found) -> float:
        """Inverse consistency: how far the other direction, started at ``found``, ends from it, mean mm."""
        back = Search(self.target, self.source, self.seed)
        other = back.polish(Found(found.transform.inverse(), 0.0, found.start), 1)
        return self.apart(other.transform.inverse(), found.transform)

    def halves(self, found: Found) -> float:
        """How far halves of the body move on when each is refined alone: the largest mean over a half, mm.

        Six halves: left and right, back and front, lower and upper. They agree if the whole is rigid and well
        determined; they part if the patient was bent differently or the similarity is nearly flat.
        """
        whole = self.objective(1, 12_000)
        points = whole.similarity.points[:3]
        moves = []
        for along in points:
            for keep in (along < np.median(along), along >= np.median(along)):
                half = refine(Objective(whole.similarity.part(keep), whole.expected), found, iterations=20)
                some = points[:, keep].T
                distance = np.linalg.norm(half.transform.apply(some) - found.transform.apply(some), axis=1)
                moves.append(float(distance.mean()))
        return max(moves)

    def apart(self, one: Transform, other: Transform) -> float:
        """Mean distance between where two transforms take the source's body (corners of its box), mm."""
        return float(np.linalg.norm(one.apply(self.source.box) - other.apply(self.source.box), axis=1).mean())


def refine(
    objective: Objective, start: Found, *, iterations: int = 40, reach: tuple[float, float] | None = None
) -> Found:
    """Climb to the next maximum by L-BFGS-B on three angles and a translation.

    Args:
        objective: what to maximize.
        start: where from.
        iterations: at most so many.
        reach: how far to go at most, as degrees about each axis and mm along each; no limit if None.
    """
    base = start.transform
    center = base.apply(objective.similarity.points[:3].mean(1))
    about_center = base.matrix[:3].copy()
    about_center[:, 3] -= center
    best = start._replace(value=objective(base))

    def cost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        (x, y, z), (a, b, c) = np.degrees(parameters[:3] / _RADIUS_MM), parameters[3:]
        transform = base.compose(Transform.rigid((x, y, z), (a, b, c), center))
        found = objective.similarity(transform.matrix)
        weight = objective.weight(found.inside)
        if found.value * weight > best.value:
            best = Found(transform, found.value * weight, start.start)
        # the rotation turns about x, then y, then z: the axis of a later turn stays, that of an earlier one is turned
        rotation = Transform.rigid((x, y, z)).matrix[:3, :3]
        turn = parameters[2] / _RADIUS_MM
        axes = np.array([rotation[:, 0], [-np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]])
        torque = np.cross(rotation, found.gradient @ about_center.T, axis=0).sum(1)
        slope = np.concatenate([axes @ torque / _RADIUS_MM, found.gradient[:, 3]]) * weight
        # the value changes by hundredths over some mm: unscaled, the first step would be far too short
        return -100 * found.value * weight, -100 * slope

    bounds = None
    if reach is not None:
        units = np.repeat([np.radians(reach[0]) * _RADIUS_MM, reach[1]], 3)
        bounds = list(zip(-units, units, strict=True))
    options = {"maxiter": iterations, "maxls": 8, "ftol": 1e-6, "gtol": 1e-3}
    minimize(cost, np.zeros(6), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return best


def _rotations() -> list[tuple[float, float, float]]:
    """No rotation, 15 and 30 degrees about each axis both ways, 25 degrees about the eight diagonals."""
    turns = [(0.0, 0.0, 0.0)]
    for axis in range(3):
        for degrees in (15.0, -15.0, 30.0, -30.0):
            x, y, z = (degrees if axis == a else 0.0 for a in range(3))
            turns.append((x, y, z))
    side = 25 / np.sqrt(3)
    turns += [(x, y, z) for x in (side, -side) for y in (side, -side) for z in (side, -side)]
    return turns
