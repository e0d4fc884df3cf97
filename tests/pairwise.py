"""Samples of combinations in which every pair of choices occurs that can: most faults need no more than two."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(
    factors: Mapping[str, Sequence[Any]],
    allowed: Callable[[dict[str, Any]], bool],
    apart: Sequence[tuple[str, str]] = (),
) -> list[dict[str, Any]]:
    """Few combinations, each allowed, that hold every pair of values of two factors that an allowed combination holds.

    Greedy, and the same in every run: the first combination that holds most of the pairs that are left.

    Args:
        factors: name to values.
        allowed: whether a combination can be.
        apart: factors of which the pairs do not count.
    """
    names = list(factors)
    every = [c for values in product(*factors.values()) if allowed(c := dict(zip(names, values, strict=True)))]
    couples = [pair for pair in combinations(names, 2) if pair not in apart]
    pairs_of = [{(a, c[a], b, c[b]) for a, b in couples} for c in every]
    left = set().union(*pairs_of)
    chosen = []
    while left:
        best = max(range(len(every)), key=lambda n: len(pairs_of[n] & left))
        chosen.append(every[best])
        left -= pairs_of[best]
    return chosen
