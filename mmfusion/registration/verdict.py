"""Whether to believe a registration: a few independent checks, each a number with the limit where doubt begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_LOW_SIMILARITY = 0.02  # normalized mutual information of images that say nothing about each other
FAILED_OVERLAP = 0.1
_LOW_OVERLAP = 0.5
_BACK_MM, _HALVES_MM, _SAMPLE_MM = 3.0, 5.0, 2.5  # how far other evidence may lie from the result
_LEAST_ML = 30.0  # in a mask; less fits nearly anywhere
_STRETCH = 0.25  # a same patient's scan is not stretched by more, nor a head to the template
_RIVAL = 0.95
_ROTATION_DEG = 45.0
_TRUSTED_MM = 20.0  # a longer motion is not believed where the header is trusted
_PRECISE = 3.0  # a motion this many times its own uncertainty is clear
_UNPAID_MM, _UNPAID_GAIN = 5.0, 0.05  # a longer motion has to gain more


class Check(NamedTuple):
    """One number that is best at 0 and doubtful from ``limit`` on, and the sentence for that case."""

    value: float
    limit: float
    sentence: str

    @property
    def score(self) -> float:
        """1 at zero, 0.5 at the limit, towards 0 beyond."""
        return 1 / (1 + (max(self.value, 0.0) / self.limit) ** 2)


def judge(checks: list[Check]) -> tuple[str, float, tuple[str, ...]]:
    """The verdict (``ok`` or ``doubtful``), the weakest check's score, the sentences of those beyond their limit."""
    score = min((check.score for check in checks), default=1.0)
    reasons = tuple(check.sentence for check in checks if check.score <= 0.5)
    return ("doubtful" if reasons else "ok"), score, reasons


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against a motion that a search found.

    Attributes:
        back_mm: inverse consistency: how far the registration the other way round ends from it.
        sample_mm: how far the result moves on with other sample points.
        halves_mm: how far halves of the body move on when each is registered alone.
        rotation_deg: the angle of its rotation.
        mean_mm, motion_mm: how far it moves the corners of the body's box: mean, farthest.
        gain: relative gain of similarity over the header position; None if that position does not count.
        rival: similarity of the second best, distinct position as a share of this one's; 0 if there is none.
        scales: how much it stretches along its main axes.
    """

    back_mm: float
    sample_mm: float
    halves_mm: float
    rotation_deg: float
    mean_mm: float
    motion_mm: float
    gain: float | None = None
    rival: float = 0.0
    scales: tuple[float, ...] = (1.0,)

    @property
    def precise(self) -> bool:
        """The motion is several times as long as its own uncertainty."""
        return self.mean_mm >= _PRECISE * max(self.back_mm, self.halves_mm)

    @property
    def has_rival(self) -> bool:
        """Another position is so good that the choice is in doubt."""
        return self.rival >= _RIVAL

    def checks(self) -> list[Check]:
        """Each against its limit, but for the length of the motion."""
        turn, stretch = self.rotation_deg, max(max(self.scales), 1 / min(self.scales)) - 1
        return [
            Check(self.back_mm, _BACK_MM, f"the other way round, the result differs by {self.back_mm:.1f} mm"),
            Check(
                self.halves_mm,
                _HALVES_MM,
                f"halves of the body, each alone, move {self.halves_mm:.1f} mm on from the whole",
            ),
            Check(self.sample_mm, _SAMPLE_MM, f"other sample points move the result by {self.sample_mm:.1f} mm"),
            Check(self.rival, _RIVAL, f"another position is nearly as good ({self.rival:.0%} of the similarity)"),
            Check(turn, _ROTATION_DEG, f"a rotation of {turn:.0f} degrees is implausible"),
            Check(stretch, _STRETCH, f"a stretch of {stretch:.0%} is implausible"),
        ]

    def long_motion(self) -> Check:
        """The check that a motion away from a trusted header is short."""
        sentence = f"a motion of {self.mean_mm:.1f} mm on average is implausible where the header is trusted"
        return Check(self.mean_mm, _TRUSTED_MM, sentence)

    def unpaid_motion(self) -> Check:
        """The check that a motion of some length gains similarity over the header position."""
        if self.gain is None or self.motion_mm <= _UNPAID_MM:
            return Check(0.0, 1.0, "")
        sentence = f"a motion of {self.motion_mm:.1f} mm gains only {self.gain:.1%} of similarity"
        return Check(_UNPAID_GAIN / max(self.gain, 1e-3), 1.0, sentence)


def overlap_check(share: float) -> Check:
    """The check that both scans saw enough of the same (``share`` of the smaller field of view, 0..1)."""
    return Check(1 - share, 1 - _LOW_OVERLAP, f"the fields of view share only {share:.0%} of the smaller one")


def similarity_check(value: float) -> Check:
    """The check that the volumes have anything in common (``value``: normalized mutual information, 0..1)."""
    sentence = f"the volumes have nothing in common where they overlap (similarity {value:.3f})"
    return Check(_LOW_SIMILARITY / max(value, 1e-6), 1.0, sentence)


def mask_check(ml: float) -> Check:
    """The check that a mask holds enough of the body to say where it lies (``ml``: of the body and 10 mm around)."""
    return Check(_LEAST_ML / max(ml, 1e-6), 1.0, f"the mask holds only {ml:.0f} ml of the body")
