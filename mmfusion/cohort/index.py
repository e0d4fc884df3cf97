"""From a folder of scans to a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.cohort.labels import join_labels
from mmfusion.cohort.tree import index_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmfusion.cohort.found import Index


def build_index(
    root: str | Path,
    *,
    labels: str | Path | None = None,
    label: str | None = None,
    session_days: int = 30,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Walk a folder of scans and make a row of every subject and session.

    A tree of DICOM (and other volume files) is read by the rules of :func:`~mmfusion.cohort.tree.index_tree`. All that
    no row holds is listed in ``others``.

    Args:
        root: the folder to walk.
        labels: table to join labels from, by subject.
        label: column of that table; ``label`` if None.
        session_days: largest distance between the studies of one session, days.
        progress: passed to :func:`mmfusion.io.find_series`.

    Raises:
        ReadError: the folder does not exist or holds no usable scan.
        ManifestError: the label table does not fit.
    """
    index = index_tree(Path(root).absolute(), session_days=session_days, progress=progress)
    if labels is not None:
        index.cases, found = join_labels(index.cases, labels, label or "label")
        index.notes += found
    return index
