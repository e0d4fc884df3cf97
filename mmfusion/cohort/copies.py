"""The same scan twice: under two subjects, where it could leak from train to test, or in two columns of one row."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort.table import Problem
from mmfusion.files import is_there
from mmfusion.io import names_uid, pixel_bytes, split_series

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mmfusion.cohort.manifest import Case
    from mmfusion.volume import Volume


def copies(scans: Iterable[tuple[Case, str, str]], what: str) -> list[Problem]:
    """The same scan, by its digest, under two subjects or twice in one row."""
    out = []
    first: dict[str, tuple[Case, str]] = {}
    for case, name, digest in scans:
        other, modality = first.setdefault(digest, (case, name))
        if other.subject != case.subject:
            problem = f"same {what} as subject {other.subject} {modality} (line {other.line})"
            remedy = "If they are one person, give them one subject: it could leak from train to test."
            out.append(Problem("warning", case.line, case.subject, name, problem, remedy))
        elif other is case and name != modality:
            problem = f"same {what} as {modality} of this row"
            out.append(Problem("warning", case.line, case.subject, name, problem, "Fix one path."))
    return out


def same_files(cases: Sequence[Case]) -> Iterator[tuple[Case, str, str]]:
    """Row, modality and digest of the files that have the size of another."""
    sizes: dict[Any, list[tuple[Case, str, Path]]] = defaultdict(list)
    for case in cases:
        for name, path in case.images.items():
            if (size := _size(path)) is not None:
                sizes[size].append((case, name, path))
    for members in sizes.values():
        if len(members) > 1:
            yield from ((case, name, _content(path)) for case, name, path in members)


def voxel_digest(volume: Volume) -> str:
    """The same for two scans with the same values in the same order, whatever file they come from."""
    digest = hashlib.sha256(str(volume.array.shape).encode())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def _size(path: Path) -> Any:
    """What two equal scans have in common and a directory listing tells; None if there is nothing to read."""
    location, name = split_series(path)
    if is_there(location, Path.is_file):
        return location.stat().st_size
    return name if names_uid(name) else (len(_files(location)) or None)


def _content(path: Path) -> str:
    """A digest of a file, or of the voxels of the middle image of a DICOM folder (identifiers may differ)."""
    location, name = split_series(path)
    if names_uid(name):
        return str(name)
    if location.is_dir():
        files = _files(location)
        data = pixel_bytes(files[len(files) // 2])
        # an image of one value says nothing: fall back to the path, which is unique
        data = data if len(set(data[:: max(1, len(data) // 4096)])) > 2 else str(location.resolve()).encode()
        return hashlib.sha256(data).hexdigest() + (name or "")  # water and fat of one folder are two scans
    with location.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(file for file in folder.iterdir() if file.is_file())
    return []
