"""What a case is made from: whether its files are as they were, and whether they hold the same."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from mmfusion import __version__
from mmfusion.cohort.files import files_of, pet_details, scans_of
from mmfusion.errors import ReadError
from mmfusion.io import split_series

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mmfusion.cohort import Case

_FORMAT = "4"  # of the files of a case; a change prepares every case again


def case_stamp(case: Case, options: Mapping[str, Any]) -> str:
    """A short text that stays as long as the files of a case keep their place, size and time; reads none of them.

    It says quickly that nothing has changed. Whether something has, :func:`case_key` decides.

    Raises:
        ReadError: a file is gone.
    """
    digest = _begin(case, options)
    for name, path in scans_of(case).items():
        digest.update(f"{name}|{path}\n".encode())
        for file in _files(name, path):
            stat = _looked_at(name, file)
            digest.update(f"{name}|{file}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def case_key(case: Case, options: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """A short text that changes with what decides the result: the content of the files, the options, and the code.

    Where the files lie, how those of a folder are called and when they were written does not count.

    Args:
        case: a row of the manifest.
        options: what was asked for.
        digests: the :func:`source_digests` of the case.
    """
    digest = _begin(case, options)
    for name, content in digests.items():
        digest.update(f"{name}|{content}\n".encode())
    return digest.hexdigest()[:16]


def source_digests(case: Case) -> dict[str, str]:
    """SHA-256 of what each scan (and ``mask``) is read from, whatever the order of the files in a folder, and of which
    series is meant.

    Raises:
        ReadError: a file is gone or cannot be read.
    """
    out = {}
    for name, path in scans_of(case).items():
        files = _files(name, path)
        # what a file is, its ending decides; in a folder of DICOM its content
        contents = sorted(f"{'' if path.is_dir() else file.suffix}|{_digest(name, file)}" for file in files)
        if len(files) > 1 and path.is_file():  # which of the files is meant
            contents.append(_digest(name, path))
        if series := split_series(case.images.get(name, path))[1]:
            contents.append(f"#{series}")
        out[name] = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    return out


def _files(name: str, path: Path) -> list[Path]:
    """The files of a scan; a mask of DICOM is one file, whatever lies beside it."""
    files = files_of(path)
    alone = name == "mask" and path.is_file() and not any(file != path and file.stem == path.stem for file in files)
    return [path] if alone else files


def _begin(case: Case, options: Mapping[str, Any]) -> Any:
    cells = case.images | {name: cell for name in ("mask", "reference_region") if (cell := getattr(case, name))}
    named = {name: split_series(cell)[1] for name, cell in cells.items()}
    asked = [_FORMAT, __version__, dict(options), named, case.roi, pet_details(case)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode())


def _looked_at(name: str, file: Path) -> Any:
    try:
        return file.stat()
    except OSError as error:
        raise ReadError(
            f"{name} {file} is gone ({error.strerror}); put it back, or drop it from the manifest"
        ) from None


def _digest(name: str, file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(name, file, error) from None


def _unreadable(name: str, file: Path, error: OSError) -> ReadError:
    return ReadError(f"{name} {file} cannot be read ({error.strerror}); put it back, or take it out of the manifest")
