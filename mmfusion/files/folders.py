"""Whose folder it is: the mark in each folder that mmfusion writes, and the one rule of what may be written to.

Three questions, asked by every command for every target before anything is touched:

- :func:`claim`: a folder of its own (a cohort, a run, ...) is new, empty, or of this kind;
- :func:`claim_place`: a file of ours in a folder that was given may be written, if the folder is ours;
- :func:`check_output_file`: a single file is new, or is to be replaced, and is no input.
"""

from __future__ import annotations

import csv
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import OutputError
from mmfusion.files.locks import clear_if_free
from mmfusion.files.writing import TEMPORARY, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MARK = ".mmfusion.json"
"""The file that says of which kind a folder is."""

_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave in a folder that counts as empty


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        name: as in the mark.
        words: for messages, with article.
        is_known: whether an unmarked folder is one, by its own files: it was written before there were marks, or
            copied without them.
    """

    name: str
    words: str
    is_known: Callable[[Path], bool]


def _fields(path: Path) -> dict[str, object]:
    """The fields of a JSON file; none if there are none, for whatever reason."""
    with suppress(OSError, ValueError, RecursionError):
        if not path.is_file():  # a pipe would be waited for
            return {}
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(fields, dict):
            return fields
    return {}


def _first_rows(path: Path) -> list[list[str]]:
    """The header of a CSV file and the row below it; fewer if there are fewer."""
    if not path.is_file():
        return []
    with suppress(OSError, ValueError, csv.Error), path.open(newline="", encoding="utf-8-sig") as stream:
        return [row for _, row in zip(range(2), csv.reader(stream), strict=False)]
    return []


def _is_ours(facts: dict[str, object]) -> bool:
    versions = facts.get("versions")
    return isinstance(versions, dict) and "mmfusion" in versions


def _made_by(folder: Path) -> str:
    """``simulated`` or ``prepared`` for a cohort folder, empty for any other."""
    header, row = [*_first_rows(folder / "cases.csv"), [], []][:2]
    facts = _fields(folder / "options.json")
    if {"case", "key", "status", "file"} <= set(header) and _is_ours(facts) and "cohort_hash" not in facts:
        return "simulated" if dict(zip(header, row, strict=False)).get("key") == "simulated" else "prepared"
    if not (folder / "cases").is_dir():
        return ""
    for entry in folder.joinpath("cases").iterdir():  # preparing was ended before its tables were written
        record = _fields(entry / "case.json")
        if "checksums" in record and "key" in record:
            return "simulated" if record["key"] == "simulated" else "prepared"
    return ""


def _is_run(folder: Path) -> bool:
    facts = _fields(folder / "options.json")
    if "cohort_hash" in facts and _is_ours(facts):
        return True
    if is_bundle(folder) or is_bundle(folder.parent):  # whose folder models holds a model, too
        return False
    model = _fields(folder / "model.json")
    if {"format", "training_prior", "classes"} <= model.keys():
        return True
    parts = [entry for entry in folder.glob("fold_*") if entry.name[5:].isdecimal()]
    return any(map(_is_run, (*parts, *folder.glob("single/*"))))  # its folds, or modalities alone, were trained first


def _is_prediction(folder: Path) -> bool:
    header = [*_first_rows(folder / "predictions.csv"), []][0]
    ours = header[:4] == ["case", "subject", "session", "part"] and not (folder / "options.json").exists()
    return ours and bool(_made_by(folder / "cohort"))


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle of mmfusion, as its metadata say."""
    packages = _fields(folder / "configs" / "metadata.json").get("required_packages_version")
    return isinstance(packages, dict) and "mmfusion" in packages


def _is_demo(folder: Path) -> bool:
    return {"subjects", "train", "test", "seed", "epochs"} <= _fields(folder / "demo.json").keys()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("cohort", "a cohort folder", lambda folder: _made_by(folder) == "prepared"),
        Kind("simulated cohort", "a simulated cohort", lambda folder: _made_by(folder) == "simulated"),
        Kind("run", "a run folder", _is_run),
        Kind("prediction", "a folder of predictions", _is_prediction),
        Kind("bundle", "a bundle", is_bundle),
        Kind("demo", "a folder of the demo", _is_demo),
        Kind("raw study", "a simulated raw study", lambda folder: "subjects" in _fields(folder / "truth.json")),
    )
}  # fmt: skip
"""By name."""


def folder_kind(folder: str | Path) -> str:
    """The kind of a folder, by its mark, else by its own files; empty if it is none of ours."""
    folder = Path(folder)
    if not folder.is_dir():
        return ""
    kind = _fields(folder / MARK).get("kind")
    if isinstance(kind, str):
        return kind
    return next((kind.name for kind in KINDS.values() if kind.is_known(folder)), "")


def check_folder(folder: str | Path, kind: str, *, reads: Iterable[Path] = (), series: Iterable[Path] = ()) -> None:
    """Refuse a folder that this kind of folder may not be written to; nothing is touched.

    Args:
        folder: the target.
        kind: a key of :data:`KINDS`.
        reads: files and folders that the command reads, none of which may lie inside the target.
        series: folders of a series, inside which the target may not lie either.

    Raises:
        OutputError: it is a file, a folder of another kind, neither empty nor ours, or holds an input, or lies within
            the folder of a series.
    """
    folder, words = Path(folder), KINDS[kind].words
    real = Path(os.path.realpath(folder))
    for path in reads:
        if (read := Path(os.path.realpath(path))).is_relative_to(real):
            where = "is" if read == real else "lies inside"
            raise OutputError(f"{path} is read and {where} {folder}, the folder to write; choose another folder")
    for path in series:
        if real.is_relative_to(os.path.realpath(path)):
            raise OutputError(f"{folder} lies inside {path}, a series that is read; choose another folder")
    with writing(folder, "check the path and its permissions"):
        try:
            folder.lstat()
        except FileNotFoundError:
            return
        if not folder.is_dir():
            raise OutputError(f"{folder} is a file, and {words} is to be written; choose another folder")
        other = folder_kind(folder)
        strangers = sorted({path.name for path in folder.iterdir()} - {MARK, *_SYSTEM})
    strangers = [name for name in strangers if not name.startswith(TEMPORARY)]
    if other == kind or (not other and not strangers):
        return
    if other:
        called = KINDS[other].words if other in KINDS else f"a folder of kind {other!r}, of another version of mmfusion"
        raise OutputError(f"{folder} is {called}, and {words} is to be written; choose another folder")
    raise OutputError(
        f"{folder} is not empty and not {words} (it holds {strangers[0]!r}"
        + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
        + "); choose a new or empty folder"
    )


def claim(folder: str | Path, kind: str, *, reads: Iterable[Path] = (), series: Iterable[Path] = ()) -> Path:
    """Make a folder, mark it as one of this kind, and return it; see :func:`check_folder`.

    Raises:
        OutputError: as there, or it cannot be written.
    """
    folder = Path(folder)
    check_folder(folder, kind, reads=reads, series=series)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _fields(folder / MARK).get("kind") != kind:
        write_json({"kind": kind, "note": "mmfusion writes in this folder; files of other names are left alone"},
                   folder / MARK)  # fmt: skip
    return folder


def claim_place(path: str | Path, *kinds: str) -> None:
    """Refuse a file in a folder that is not of one of these kinds, whether it is there or not.

    A folder of ours that had no mark gets it, and what killed commands left in it goes.

    Raises:
        OutputError: the folder is not ours, or cannot be written.
    """
    folder = Path(path).parent
    kind = folder_kind(folder)
    if kind not in kinds:
        raise OutputError(
            f"{folder} is not {' or '.join(KINDS[kind].words for kind in kinds)} of mmfusion, and {Path(path).name} is "
            "not written there; give another folder"
        )
    clear_if_free(claim(folder, kind))


def check_output_file(path: str | Path, *, overwrite: bool = False, reads: Iterable[str | Path | None] = ()) -> Path:
    """Refuse a single file that may not be written; nothing is touched.

    Args:
        path: the target.
        overwrite: replace a file that is there.
        reads: what the command reads; None counts for nothing.

    Raises:
        OutputError: it is an input, a folder, a special file, or there and ``overwrite`` is not given.
    """
    path = Path(path)
    real = os.path.realpath(path)
    with writing(path, "choose another name"), suppress(FileNotFoundError):
        path.lstat()  # the name is too long, or a folder on the way is a file
    if path.is_dir():
        raise OutputError(f"{path} is a folder, and a file is to be written; give the name of a file")
    for read in reads:
        if read is not None and (real == os.path.realpath(read) or _same_file(path, Path(read))):
            raise OutputError(f"{path} is read by the same command; choose another file to write")
    if not os.path.lexists(path):
        return path
    if not overwrite:
        raise OutputError(f"{path} is there already; choose another name, or add --overwrite to replace it")
    if not path.is_file():
        raise OutputError(f"{path} is no regular file and is not replaced; choose another name")
    return path


def _same_file(one: Path, other: Path) -> bool:
    """Also under another name of the same file: a link, or other letters where the case does not count."""
    try:
        return one.samefile(other)
    except OSError:
        return False
