"""From a folder of scans to a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cohort.bids import index_bids, is_bids
from mmfusion.cohort.inputs import misplaced
from mmfusion.cohort.labels import doubtful_labels, join_labels
from mmfusion.cohort.pseudonyms import read_pseudonyms
from mmfusion.cohort.tree import index_tree
from mmfusion.cohort.visits import SESSION_DAYS
from mmfusion.errors import OptionError, ReadError
from mmfusion.files import check_output_file, is_there

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmfusion.cohort.found import Index


def build_index(
    root: str | Path,
    *,
    labels: str | Path | None = None,
    label: str | None = None,
    session_days: int = SESSION_DAYS,
    subject_from: str | None = None,
    pseudonymize: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Walk a folder of scans and make a row of every subject and session.

    A BIDS tree (``dataset_description.json`` with a ``BIDSVersion``) is read by the rules of
    :func:`~mmfusion.cohort.bids.index_bids`, any other tree of DICOM and volume files by those of
    :func:`~mmfusion.cohort.tree.index_tree`. What no row holds is listed in ``others``.

    Args:
        root: the folder to walk.
        labels: table to join labels from, by subject.
        label: column of that table, or without one of ``participants.tsv`` (BIDS); ``label`` if None.
        session_days: largest distance between the scans of one session, days.
        subject_from: what names the subjects: ``PatientID``, ``folder``, or a pattern of folders, as ``*/{subject}``.
        pseudonymize: file with the key of :func:`~mmfusion.cohort.pseudonyms.read_pseudonyms`. Subjects then have
            pseudonyms wherever the index names them, and no free text of a header and no name of a folder is in it.
            Tables still join by identifier. The paths stay what they are.
        progress: passed to :func:`mmfusion.io.find_series`.

    Raises:
        ReadError: the folder does not exist or holds no usable scan.
        ManifestError: the label table, or a table of the BIDS tree, does not fit.
        OptionError: ``label`` without a table that could have it, or a key inside ``root``; ``subject_from``
            for a BIDS tree, or one that names nothing.
    """
    if is_there(Path(root), Path.is_file):
        raise ReadError(misplaced(root, "scans") or f"{root} is a file, and a folder of scans is expected")
    root = Path(root).absolute()
    if labels is not None and pseudonymize is not None and Path(labels).resolve() == Path(pseudonymize).resolve():
        raise OptionError(f"{labels} is given as label table and as key file; give the key a file of its own")
    pseudonyms = None if pseudonymize is None else read_pseudonyms(pseudonymize, root)
    named = pseudonyms or str
    if is_bids(root):
        if subject_from is not None:
            raise OptionError(f"{root} is a BIDS tree, whose names say the subjects; leave out --subject-from")
        index = index_bids(root, label=label if labels is None else None, named=named)
    elif label is not None and labels is None:
        raise OptionError(f"label {label} is a column of a label table; give the table with --labels")
    else:
        index = index_tree(
            root, session_days=session_days, subject_from=subject_from, pseudonyms=pseudonyms, progress=progress
        )
    if labels is not None:
        index.cases, found = join_labels(index.cases, labels, label or "label", named=named)
        index.notes += found
    index.notes += [one.problem for one in doubtful_labels(case.label for case in index.cases)]
    return index


def write_index(root: str | Path, out: str | Path, *, overwrite: bool = False, **options: Any) -> Index:
    """Index a folder, and write the manifest.

    Args:
        root: the folder to walk.
        out: the manifest to write.
        overwrite: replace it if it is there; never a file that is read.
        options: of :func:`build_index`.

    Raises:
        OutputError: the manifest is there already, is read, or cannot be written; known before the folder is walked.
        ReadError, ManifestError, OptionError: see :func:`build_index`.
    """
    reads = [options.get("labels"), options.get("pseudonymize"), out if is_input(out, root) else None]
    check_output_file(out, overwrite=overwrite, reads=reads)
    index = build_index(root, **options)
    check_output_file(out, overwrite=overwrite, reads=reads)  # walking takes its time
    index.write(out)
    return index


def is_input(path: str | Path, root: str | Path) -> bool:
    """Whether an index of ``root`` reads a file: it lies below ``root`` and is no table, or a table of a BIDS tree."""
    path, root = Path(path).resolve(), Path(root).resolve()
    tables = (".csv",) if is_bids(root) else (".csv", ".tsv")
    return path.is_relative_to(root) and is_there(path) and path.suffix.lower() not in tables
