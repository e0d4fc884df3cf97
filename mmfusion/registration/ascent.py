"""Climbing to the next maximum: a batched quasi-Newton ascent on the matrices of a kind of motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

RADIUS_MM = 70.0
"""One unit of rotation, scale or shear moves a point at this distance by one mm."""

_FIRST_MM = 2.0  # length of the first step
_LONGEST_MM = 8.0  # of any parameter in one step: farther, the curvature says nothing
_SHORTEST_MM = 1e-4  # a shorter step changes nothing
_HALVINGS = 6  # in a row, then a row has arrived


def generators(kind: str) -> np.ndarray:
    """``[K, 4, 4]`` the small motions about the origin that make up a kind, each scaled to about one mm.

    Args:
        kind: ``translation`` (K = 3), ``rigid`` (6), ``similarity`` (7) or ``affine`` (12).
    """
    shifts = np.zeros((3, 4, 4))
    shifts[range(3), range(3), 3] = 1
    turns = np.zeros((3, 4, 4))
    for axis, (a, b) in enumerate([(1, 2), (2, 0), (0, 1)]):
        turns[axis, a, b], turns[axis, b, a] = -1 / RADIUS_MM, 1 / RADIUS_MM
    sizes = np.zeros((6, 4, 4))
    for axis, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        sizes[axis, a, b] = sizes[axis, b, a] = 1 / RADIUS_MM
    parts = {
        "translation": [shifts],
        "rigid": [turns, shifts],
        "similarity": [turns, shifts, sizes[:3].sum(0, keepdims=True)],
        "affine": [turns, shifts, sizes],
    }
    return np.concatenate(parts[kind])


def exponential(small: np.ndarray) -> np.ndarray:
    """``[R, 4, 4]`` matrix exponentials (of a turn, a rotation): scaled, a Taylor series, squared back."""
    norm = np.abs(small).sum((1, 2)).max(initial=0.0)
    squarings = max(0, int(np.ceil(np.log2(max(norm, 1e-12)))) + 2)
    part = small / 2**squarings
    out = term = np.tile(np.eye(4), (len(small), 1, 1))
    for n in range(1, 11):
        term = term @ part / n
        out = out + term
    for _ in range(squarings):
        out = out @ out
    return out


def climb(
    objective: Objective,
    matrices: np.ndarray,
    centers: np.ndarray,
    basis: np.ndarray,
    *,
    iterations: int = 40,
    tolerance: float = 1e-5,
    reach: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Climb from each of R positions at once; rows that have arrived wait for the others.

    BFGS (Nocedal and Wright, Numerical Optimization, ch. 6) with shortened steps. Each step multiplies the position
    by a small motion of the kind about the points' center, so a rigid position stays rigid, and no parametrization
    has a singular point.

    Args:
        objective: ``([A, 4, 4] matrices, [A] which of the R rows they belong to)`` to ``[A]`` values and
            ``[A, 3, 4]`` slopes.
        matrices: ``[R, 4, 4]`` where from.
        centers: ``[R, 3]`` the middle of each row's points, in their own world, RAS mm.
        basis: ``[K, 4, 4]`` of :func:`generators`.
        iterations: evaluations at most.
        tolerance: a row has arrived when a step gains less than this share of its value.
        reach: ``[K]`` how far each parameter may go from the start (sum of its steps, mm); no limit if None.

    Returns:
        ``[R, 4, 4]`` the best positions and ``[R]`` their values.
    """
    rows, size = len(matrices), len(basis)
    best = matrices.astype(float)
    value, slope = objective(best, np.arange(rows))
    gradient = _along(slope, best, centers, basis)
    norm = np.linalg.norm(gradient, axis=1)
    curvature = np.eye(size) * (_FIRST_MM / np.maximum(norm, 1e-12))[:, None, None]  # its inverse
    step, gone = np.einsum("rij,rj->ri", curvature, gradient), np.zeros((rows, size))
    started, halved, active = np.zeros(rows, bool), np.zeros(rows, int), norm > 0
    for _ in range(iterations):
        which = np.flatnonzero(active)
        if len(which) == 0:
            break
        if reach is not None:
            step[which] = np.clip(gone[which] + step[which], -reach, reach) - gone[which]
        middle = _moved(best[which], centers[which])
        moved = _about(exponential(np.einsum("rk,kij->rij", step[which], basis)), middle) @ best[which]
        found, slopes = objective(moved, which)
        gradients = _along(slopes, moved, centers[which], basis)
        for n, row in enumerate(which):
            gain = found[n] - value[row]
            if not gain > 0:
                step[row] *= 0.35
                halved[row] += 1
                active[row] = halved[row] <= _HALVINGS and np.abs(step[row]).max() > _SHORTEST_MM
                continue
            s, y = step[row], gradient[row] - gradients[n]
            if not started[row] and s @ y > 0:  # the size of the curvature is known only now
                curvature[row] = np.eye(size) * (s @ y) / (y @ y)
            started[row], halved[row] = True, 0
            curvature[row] = _updated(curvature[row], s, y)
            gone[row] += s
            best[row], value[row], gradient[row] = moved[n], found[n], gradients[n]
            step[row] = curvature[row] @ gradient[row]
            step[row] *= min(1.0, _LONGEST_MM / max(np.abs(step[row]).max(), 1e-12))
            active[row] = gain >= tolerance * abs(found[n])
    return best, value


def _moved(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[R, 3]`` each row's point under its matrix."""
    return np.einsum("rij,rj->ri", matrices[:, :3, :3], points) + matrices[:, :3, 3]


def _along(slope: np.ndarray, matrices: np.ndarray, centers: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """``[R, K]`` the slope along each small motion about the points' center, as the position is."""
    about = matrices.copy()
    about[:, :3, 3] -= _moved(matrices, centers)
    return np.einsum("rij,kil,rlj->rk", slope, basis[:, :3], about, optimize=True)


def _about(motion: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """The motions about the origin ``[R, 4, 4]``, done about ``middle`` ``[R, 3]``."""
    out = motion.copy()
    out[:, :3, 3] += middle - np.einsum("rij,rj->ri", motion[:, :3, :3], middle)
    return out


def _updated(inverse: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The BFGS update of the inverse curvature ``[K, K]`` after step ``s`` changed the slope by ``-y``."""
    product = s @ y
    if product <= 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
        return inverse
    left = np.eye(len(s)) - np.outer(s, y) / product
    return left @ inverse @ left.T + np.outer(s, s) / product
