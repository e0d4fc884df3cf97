"""Which RTSTRUCT or SEG of a folder tree is the mask of a row."""

from __future__ import annotations

from collections import defaultdict
from filecmp import cmp
from typing import TYPE_CHECKING

from mmfusion.cohort.found import Index, Unused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mmfusion.cohort.tree import _Row
    from mmfusion.io import Series

_REFERENCES = ("CT", "MR", "PT")  # what others are registered to, the first before the next
_FRAME_ONLY = len(_REFERENCES) + 1


def join_masks(rows: Sequence[_Row], masks: Sequence[Series], subject: str, root: Path | None, index: Index) -> None:
    """Give each row of a subject the mask that refers to its series, else one in its frame of reference.

    One that refers to the reference of the row comes before one that refers to another scan. Which of several that fit
    equally well is meant, a person must say.

    Args:
        rows: of one subject; they get their ``mask``.
        masks: the subject's series of masks, of which each file is a mask.
        subject: what messages call the subject.
        root: where the paths begin that notes name; None to name none.
        index: takes what is not used, and notes.
    """
    reasons: dict[Path, str] = {}
    for row in rows:
        fitting: dict[int, dict[Path, Series]] = defaultdict(dict)
        for mask in masks:
            rank = _rank(mask, row)
            if rank is not None:
                fitting[rank] |= dict.fromkeys(mask.files, mask)
        if not fitting:
            continue
        best = _distinct(list(fitting[min(fitting)]))
        reason = f"mask is {fitting[min(fitting)][best[0]].description or 'another series'!r}"
        if len(best) > 1:
            reason = f"{len(best)} masks fit equally well"
            index.notes.append(f"subject {subject}: {reason} and none is used; {_remedy(best, root)}")
        for file in (file for files in fitting.values() for file in files):
            reasons.setdefault(file, reason)
        if len(best) == 1:
            row.mask = best[0]
            reasons[best[0]] = ""
    for one in masks:
        for file in one.files:
            if reason := reasons.get(file, "refers to no series of a row"):
                index.others.append(Unused(subject, file, one.modality, one.description, reason))


def _rank(mask: Series, row: _Row) -> int | None:
    """How well a mask fits a row, the lowest best; None if it does not."""
    referred = [
        _REFERENCES.index(one.modality) if one.modality in _REFERENCES else len(_REFERENCES)
        for one in row.chosen
        if one.series_uid in mask.referenced_series
    ]
    shares = mask.frame_of_reference and mask.frame_of_reference in {one.frame_of_reference for one in row.chosen}
    return min(referred, default=_FRAME_ONLY if shares else None)


def _remedy(files: Sequence[Path], root: Path | None) -> str:
    if root is None:
        return "index once without --pseudonymize to see them, and write the path of the right one into column mask"
    paths = ", ".join(file.relative_to(root).as_posix() for file in files)
    return f"write the path of the right one into column mask: {paths}"


def _distinct(files: Sequence[Path]) -> list[Path]:
    """The files in order, without copies of others."""
    files = sorted(files)
    return [file for n, file in enumerate(files) if not any(cmp(file, other, shallow=False) for other in files[:n])]
