"""A number with its interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence interval, and where both come from.

    Attributes:
        value: the number; None where it cannot be computed.
        low, high: ends of the confidence interval; None where there is none.
        n: the cases that the value is computed from (sensitivity: the positive ones).
        method: how the interval was made; empty without one.
        reason: why value or interval is None, or a caution; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Difference(Estimate):
    """An :class:`Estimate` of a difference, with the two-sided p value of "no difference"."""

    p_value: float | None = None
