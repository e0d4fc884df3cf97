"""What a path is that a command was given in place of what it takes, and which command comes next."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mmfusion.cohort.files import is_scan_file
from mmfusion.files import KINDS, folder_kind

_TABLES = (".csv", ".tsv", ".txt")
_FILES = 1000  # that are looked at to know a folder of scans
_TRAIN = "mmfusion train {path} --out RUN"
_PREDICT = "mmfusion predict {path} MANIFEST --out predictions"
_EXPECTED = {
    "scan": "a scan",
    "scans": "a folder of scans",
    "manifest": "a manifest (CSV or TSV)",
    "cohort": "a cohort folder",
    "model": "a run folder or a bundle",
}
_NEXT = {  # in order: what it is, what it serves as, the command that takes it
    "scan": ("a scan", "scan", "mmfusion index {folder} --out manifest.csv"),
    "scans": ("a folder of scans", "scans", "mmfusion index {path} --out manifest.csv"),
    "raw study": (KINDS["raw study"].words, "scans", "mmfusion index {path} --out manifest.csv"),
    "table": ("a table", "manifest", "mmfusion prepare {path} --out cohort"),
    "cohort": (KINDS["cohort"].words, "cohort", _TRAIN),
    "simulated cohort": (KINDS["simulated cohort"].words, "cohort", _TRAIN),
    "run": (KINDS["run"].words, "model", _PREDICT),
    "bundle": (KINDS["bundle"].words, "model", _PREDICT),
}


def misplaced(path: str | Path, *expected: str) -> str:
    """What a path is, and the command that takes it, if it is not what is expected; empty if it is, or is unknown.

    Args:
        path: file or folder that was given.
        expected: one or more of ``scan`` (a file), ``scans`` (a folder), ``manifest``, ``cohort`` and ``model``.
    """
    path, order = Path(path), list(_NEXT)
    kind = _kind(path)
    if kind not in _NEXT:
        return ""
    words, role, command = _NEXT[kind]
    if role in expected:
        return ""
    follows = order.index(kind) > max(n for n, one in enumerate(order) if _NEXT[one][1] in expected)
    command = command.format(path=shlex.quote(str(path)), folder=shlex.quote(str(path.parent)))
    remedy = f"give the one that it was made from, or go on with: {command}" if follows else f"first: {command}"
    return f"{path} is {words}, and {' or '.join(_EXPECTED[one] for one in expected)} is expected; {remedy}"


def _kind(path: Path) -> str:
    """A key of :data:`_NEXT`, or another kind of folder of ours; empty if it is none of these."""
    with suppress(OSError):
        if path.is_file():
            return "scan" if is_scan_file(path) else "table" if path.suffix.lower() in _TABLES else ""
        if path.is_dir():
            files = (Path(place) / name for place, _, names in os.walk(path) for name in names)
            return folder_kind(path) or ("scans" if any(map(is_scan_file, islice(files, _FILES))) else "")
    return ""
