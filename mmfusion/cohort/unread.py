"""Sentences about what an index met in a tree and did not read: each kind once, with its count."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mmfusion.io import is_common

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mmfusion.io import Unread

_MOST_ENDINGS = 12


def unread_notes(unread: Unread, root: Path, elsewhere: Sequence[Path], *, plain: bool) -> list[str]:
    """The sentences, each with the first of its kind.

    Args:
        unread: what the walk met.
        root: the folder that was walked, absolute.
        elsewhere: volume files that lie where no rule looks for them.
        plain: name no file or folder, and only endings that are common.
    """
    kinds = [
        (unread.damaged, "DICOM files are damaged and left out", "; copy or export them again"),
        (unread.unreadable, "files or folders cannot be read", "; check their permissions"),
        (unread.broken_links, "links lead nowhere", "; put back what they stand for, or fetch it first (datalad get)"),
        (unread.repeated, "links to folders lead to what is read already, or around the tree", ""),
        (unread.ours, "folders were written by mmfusion and are not looked into", ""),
        (elsewhere, "volume files lie neither at <subject>/<modality>.nii.gz nor alone in <subject>/<modality>/", ""),
    ]
    notes = []
    for paths, words, remedy in kinds:
        if paths:
            where = "" if plain else f", the first is {paths[0].relative_to(root)}"
            notes.append(f"{len(paths)} {words}{where}{remedy}")
    if unread.special:
        notes.append(f"{len(unread.special)} files are pipes, sockets or devices and were not read")
    if unread.system:
        notes.append(f"folders of the system are not looked into: {_counts(unread.system)}")
    if unread.endings:
        notes.append(f"not images: {_counts(_shown_endings(unread.endings, plain=plain))}")
    return notes


def _shown_endings(endings: Counter[str], *, plain: bool) -> Counter[str]:
    """The counts by ending, with those that are not common (or rare, if there are many) taken together."""
    shown: Counter[str] = Counter()
    for ending, count in endings.most_common():
        may_show = not plain or is_common(ending) or ending == "._"
        several = len(shown) >= _MOST_ENDINGS
        shown[(ending if may_show and not several else "others") if ending else "without ending"] += count
    return shown


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
