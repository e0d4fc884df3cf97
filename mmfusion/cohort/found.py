"""What an index of a folder consists of, whichever rules made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cohort.manifest import Case, order_modalities, write_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_SHOWN = 5


@dataclass(frozen=True)
class Unused:
    """A series or file that no row of the index holds, and why."""

    subject: str
    path: Path
    modality: str
    description: str
    reason: str

    def __str__(self) -> str:
        """One line without the path, which may hold more than one wants to show."""
        what = " ".join(filter(None, [self.modality, self.description and repr(self.description)]))
        return f"subject {self.subject}: {what}{': ' if what else ''}{self.reason}"


@dataclass
class Index:
    """What :func:`~mmfusion.cohort.index.build_index` found.

    Attributes:
        cases: a row a subject and session, sorted.
        others: what is not in a row, each with the reason.
        notes: what was decided and should be looked at.
    """

    cases: list[Case] = field(default_factory=list)
    others: list[Unused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def modalities(self) -> list[str]:
        """The columns, in the usual order."""
        return order_modalities(name for case in self.cases for name in case.images)

    def write(self, path: str | Path) -> None:
        """Write the rows as a manifest."""
        write_manifest(self.cases, path, self.modalities)


def describe_unused(index: Index) -> str:
    """The end of the sentence that there is no case: what was found instead, and why it is not used."""
    kinds = dict.fromkeys(str(one) for one in index.others)
    left_out = f"{len(index.others)} left out ({'; '.join(list(kinds)[:_MOST_SHOWN])}" if index.others else ""
    left_out += ("; ...)" if len(kinds) > _MOST_SHOWN else ")") if left_out else ""
    sentences = [*filter(None, [left_out]), *index.notes]
    return f". Found: {'. '.join(sentences)}." if sentences else "."


def why_first(words: Sequence[str], best: Sequence[Any], other: Sequence[Any]) -> str:
    """The word for the first place in which two ranks differ; there are words for the first places only."""
    return next((word for word, a, b in zip(words, best, other, strict=False) if a != b), "which comes first")
