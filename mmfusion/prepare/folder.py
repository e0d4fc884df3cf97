"""The cohort folder: a study prepared once.

::

    COHORT/
      options.json      what was asked for, and the versions that did it
      cases.csv         one row per case: status, reasons, measurements, registration numbers (of good and bad cases)
      cases/<case>/     image.npy [M, D, H, W], qc.npz, case.json (with checksums); ITK transforms: <modality>.tfm
                        (reference to modality; .h5 if it bends) and mni152.tfm (template to reference)
      covariates.csv    the manifest's other columns, as text; those of tables in covariates.npz, see
                        mmfusion.prepare.covariates
      accepted.json     what persons decided on doubtful cases, see mmfusion.prepare.acceptance
      landmarks/        of training cases, for --mr-normalize histogram
      nifti/            on request: the scans on the grid as a BIDS derivative, see mmfusion.prepare.derivatives
      qc.html           worst case first; pictures of a large cohort in qc/
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion import __version__
from mmfusion.cohort import Case, misplaced
from mmfusion.errors import CohortError, MmfusionError, OptionError, ReadError, first_line
from mmfusion.files import (
    CohortFolder,
    a_flag,
    a_table,
    a_text,
    check_fields,
    optional_fields,
    read_fields,
    read_rows,
    temporary_path,
    to_disk,
    write_csv,
    write_json,
)
from mmfusion.io import load_transform, save_transform
from mmfusion.options import GROUPS, LATER, OPTIONS, resolve
from mmfusion.report import write_qc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mmfusion.prepare.case import CaseResult
    from mmfusion.volume import Transform

_GIVEN = ("subject", "session", "label", "split", "fold", "site")
_NEEDED = ("case", *_GIVEN, "status", "reasons", "reference", "modalities", "file", "key")
_CASE_COLUMNS = (*_NEEDED, "seconds")
_STATES = ("done", "doubtful", "accepted", "failed")
_NO_COLUMNS = ("affine", "world", "stamp", "checksums", "looked_at", "features")  # of case.json, for machines only


@dataclass(frozen=True)
class PreparedCase:
    """One usable row of ``cases.csv``.

    Attributes:
        case: subject, session, label, split, fold and site, as in the manifest.
        modalities: those that the case has.
        status: ``done``, ``doubtful``, or ``accepted`` (doubtful, and a person has looked at it).
        file: ``image.npy``, ``[M, D, H, W]`` float32, channels in the order of the cohort's modalities.
    """

    case: Case
    modalities: tuple[str, ...]
    status: str
    file: Path


@dataclass(frozen=True, eq=False)
class Cohort:
    """A cohort folder, opened.

    Attributes:
        folder: where it lies.
        options: the options that its cases were prepared with (group ``case``); ``modalities`` names the channels.
        rows: ``cases.csv``, every case, failed ones too.
    """

    folder: Path
    options: dict[str, Any]
    rows: list[dict[str, str]]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The channels, in order."""
        return tuple(self.options["modalities"])

    @cached_property
    def cases(self) -> list[PreparedCase]:
        """The cases that can be used: all but the failed ones."""
        return [
            PreparedCase(
                case=Case(
                    subject=row["subject"],
                    session=row["session"],
                    label=row["label"] or None,
                    site=row["site"],
                    split=row["split"],
                    fold=row["fold"],
                ),
                modalities=tuple(row["modalities"].split()),
                status=row["status"],
                file=self.folder / row["file"],
            )
            for row in self.rows
            if row["status"] != "failed"
        ]

    @cached_property
    def simulated(self) -> bool:
        """Whether its cases were simulated, as ``options.json`` then says."""
        return bool(_read_options(self.folder)[1])

    @cached_property
    def hash(self) -> str:
        """One short text that changes with the options, the cases and their content; accepting one changes nothing."""
        rows = [{**row, "status": row["status"].replace("accepted", "doubtful")} for row in self.rows]
        keys = sorted("|".join(row[name] for name in ("case", "key", "status", "label", "split")) for row in rows)
        return hashlib.sha256("\n".join([json.dumps(self.options, sort_keys=True), *keys]).encode()).hexdigest()[:16]

    def count(self, status: str) -> int:
        """How many cases are ``done``, ``doubtful``, ``accepted`` or ``failed``."""
        return sum(row["status"] == status for row in self.rows)


def open_cohort(folder: str | Path) -> Cohort:
    """Open a cohort folder.

    Raises:
        CohortError: it is not there, or :func:`prepare_cohort` has not finished in it.
        ReadError: ``options.json`` or ``cases.csv`` is damaged, or of another version.
    """
    folder = Path(folder)
    if words := misplaced(folder, "cohort"):
        raise CohortError(words)
    options, _ = _read_options(folder)
    rows = read_rows(CohortFolder(folder).table, _unfinished(folder), _NEEDED)
    if not rows:
        raise ReadError(f"{folder / 'cases.csv'} is damaged, it has no row; {_again(folder)}")
    names: set[str] = set()
    for line, row in enumerate(rows, 2):
        if problem := _wrong_row(row, options["modalities"]) or (row["case"] in names and "its case is there twice"):
            raise ReadError(f"{folder / 'cases.csv'}, row {line} is damaged: {problem}; {_again(folder)}")
        names.add(row["case"])
    return Cohort(folder, options, rows)


def _unfinished(folder: Path) -> str:
    return f"it is not a finished cohort folder. Run: mmfusion prepare MANIFEST --out {folder}"


def _again(folder: Path) -> str:
    return f"put back the file as mmfusion wrote it, or run: mmfusion prepare MANIFEST --out {folder}"


def _read_options(folder: Path) -> tuple[dict[str, Any], bool]:
    """The group ``case`` of a cohort's ``options.json``, and whether it is simulated."""
    path = CohortFolder(folder).options
    fields: dict[str, Any] = {"save_nifti": False, "keep_paths": False, "dtype": "float32", "features": None}
    fields |= {"simulated": False, "versions": {}, **LATER}
    fields |= optional_fields(path, _unfinished(folder))
    checks = dict.fromkeys((*GROUPS["case"], *GROUPS["storage"]), lambda value: value)
    checks |= {"simulated": a_flag, "versions": a_table}
    facts = check_fields(path, fields, checks, _again(folder))
    try:
        options = resolve({name: facts[name] for name in GROUPS["case"]}, "case")
        resolve({name: facts[name] for name in GROUPS["storage"]}, "storage")
    except OptionError as error:
        raise ReadError(
            f"{path}: {error}; it is damaged, or of another version of mmfusion: {_again(folder)}"
        ) from None
    if not options["modalities"]:
        raise ReadError(f"{path} is damaged, it names no modalities; {_again(folder)}")
    return options, facts["simulated"]


def _wrong_row(row: Mapping[str, str], modalities: Sequence[str]) -> str:
    """What is wrong with a row of ``cases.csv``: spreadsheets make 1 of 001, and no file may lie elsewhere."""
    case = Case(row["subject"], session=row["session"]).id
    if row["status"] not in _STATES:
        return f"status is {row['status']!r:.40}, not one of {', '.join(_STATES)}"
    if row["case"] != case or not row["subject"]:
        return f"case is {row['case']!r:.40}, but subject and session make {case!r:.40}"
    if row["status"] == "failed":
        return ""
    if row["file"] != f"cases/{case}/image.npy":
        return f"file is {row['file']!r:.60}, not 'cases/{case}/image.npy'"
    if not row["modalities"].split() or not set(row["modalities"].split()) <= set(modalities):
        return f"modalities are {row['modalities']!r:.60}, not some of {', '.join(modalities)}"
    return ""


def load_image(file: str | Path, wanted: Sequence[str], stored: Sequence[str]) -> np.ndarray:
    """A prepared case ``[M, D, H, W]`` float32 with the wanted channels in order.

    Args:
        file: ``image.npy`` of a cohort.
        wanted: modalities; one that is not stored becomes a channel of zeros.
        stored: the cohort's modalities, the channels of the file.

    Raises:
        ReadError: see :func:`open_image`.
    """
    array = open_image(file, stored)
    image = np.zeros((len(wanted), *array.shape[1:]), np.float32)
    for channel, name in zip(image, wanted, strict=True):
        if name in stored:
            channel[...] = array[list(stored).index(name)]
    return image


def open_image(file: str | Path, stored: Sequence[str], size: Sequence[int] | None = None) -> np.ndarray:
    """The tensor of a prepared case as it lies on the disk, of which nothing is read yet.

    Args:
        file: ``image.npy`` of a cohort.
        stored: the cohort's modalities, the channels of the file.
        size: voxels that each channel must have; any if None.

    Raises:
        ReadError: the file is gone, damaged, or has another shape or type.
    """
    file = Path(file)
    expected = f"float32 or float16 in shape {[len(stored), *(size or ('D', 'H', 'W'))]}".replace("'", "")
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # np.load would also open archives and pickles
        problem = f"it holds {array.dtype} in shape {list(array.shape)}, {expected} is expected"
        fits = array.ndim == 4 and len(array) == len(stored) and array.dtype in (np.float32, np.float16)
        if fits and 0 not in array.shape and (size is None or array.shape[1:] == tuple(size)):
            return array
    except Exception as error:  # numpy reads the header as Python, and says so in many ways
        problem = first_line(error)
    raise ReadError(
        f"case {file.parent.name}: {file} is damaged ({problem}); delete {file.parent} and run mmfusion prepare again"
    )


def write_cohort(
    out: Path, options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, qc: bool = True
) -> Cohort:
    """Write the tables and the QC page of a cohort folder whose cases are there, and open it."""
    write_json({**options, "versions": versions()}, CohortFolder(out).options)
    write_table(out, rows)  # last: with it the folder counts as finished
    if qc:
        write_qc(out)
    return open_cohort(out)


def write_table(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``cases.csv``."""
    columns = list(dict.fromkeys([*_CASE_COLUMNS, *sorted({name for row in rows for name in row})]))
    write_csv(rows, CohortFolder(out).table, columns)


def write_case(
    out: Path,
    case: Case,
    result: CaseResult,
    *,
    key: str = "",
    stamp: str = "",
    seconds: float = 0.0,
    dtype: str = "float32",
    features: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
    others: Sequence[Path] = (),
    allowed: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Write one prepared case, and return its row of ``cases.csv``.

    ``features`` are those that were computed, if there was a mask. ``sources`` are the digests of what was read, by
    scan. ``others`` are files that belong to the case and lie elsewhere in ``out``, already. ``allowed`` is asked at
    the last moment, and raises if the folder belongs to somebody else by now.

    Whatever ends the process or the machine, a case is whole or counts as not prepared: ``case.json`` says so until all
    files are on the disk under their names. Files of an earlier preparation that the case no longer has are removed;
    files of others stay.
    """
    final = CohortFolder(out).cases / case.id
    temporary = temporary_path(final)
    temporary.mkdir(parents=True)
    try:
        written = _write_files(temporary, result, dtype)
        checksums = {f"cases/{case.id}/{file.name}": checksum(file) for file in written}
        checksums |= {file.relative_to(out).as_posix(): checksum(file) for file in others}
        record = {
            "key": key,
            "status": result.status,
            "reasons": " | ".join(result.reasons),
            "causes": " ".join(dict.fromkeys(doubt.cause for doubt in result.doubts)),
            "reference": result.reference,
            "modalities": " ".join(n for n, there in zip(result.modalities, result.present, strict=True) if there),
            "file": f"cases/{case.id}/image.npy",
            "seconds": round(seconds, 2),
            **result.facts,
        }
        where = {"affine": result.grid.affine.tolist(), "world": result.world or result.reference}
        seen = _looked_at(result, sources or {})
        if allowed:
            allowed()
        before = announce_files(out, case.id, checksums)
        for file in written:
            file.replace(final / file.name)
        more = {**where, "stamp": stamp, "checksums": checksums, "looked_at": seen}
        more |= {"features": " ".join(features)} if features else {}
        write_json({**record, **more}, final / "case.json")
        to_disk(final / "case.json")
        _remove_files(out, before - checksums.keys())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return row_of(case, record)


def _looked_at(result: CaseResult, sources: Mapping[str, str]) -> dict[str, str]:
    """Digests of what a person judges who looks at a case: scans, transforms and mask, by what they are called."""
    transforms = {}
    for name, registration in result.registrations.items():
        transform = registration.fixed_to_moving
        digest = hashlib.sha256(transform.matrix.tobytes())
        if transform.displacement is not None:
            digest.update(transform.displacement.grid.affine.tobytes() + transform.displacement.array.tobytes())
        transforms[f"transform of {name}"] = digest.hexdigest()
    scans = {"mask file" if name == "mask" else f"scan of {name}": digest for name, digest in sources.items()}
    return {**scans, **transforms, "mask": result.mask_digest}


def announce_files(out: Path, case_id: str, names: Iterable[str]) -> set[str]:
    """Say in ``case.json`` which files a case is about to have, beside those that it has; it counts as not prepared
    from here on, and whatever ends this process, no file of it is forgotten.

    Returns:
        The files that it had, relative to ``out``.
    """
    before = _files_of(out, case_id)
    file = CohortFolder(out).record(case_id)
    record = {**(_record(out, case_id) or {}), "key": "", "stamp": ""}
    write_json({**record, "checksums": dict.fromkeys(sorted({*names, *before}), "")}, file)
    to_disk(file)
    return before


def remove_case(out: Path, case: Case) -> None:
    """Remove what preparing wrote of a case, and nothing else."""
    own = [f"{name}.{ending}" for name in (*case.images, *OPTIONS["to"].choices) for ending in ("tfm", "h5")]
    names = {f"cases/{case.id}/{name}" for name in ("image.npy", "qc.npz", *own)}
    _remove_files(out, names | _files_of(out, case.id))
    _remove_files(out, {f"cases/{case.id}/case.json"})  # last: it knows the others


def _files_of(out: Path, case_id: str) -> set[str]:
    """The files that a case has, or was about to have, relative to ``out``: also of one that is being prepared.

    Names that preparing does not give count for nothing: a record may come from others.
    """
    names: Any = ()
    with suppress(MmfusionError):
        names = optional_fields(CohortFolder(out).record(case_id)).get("checksums")
    own = re.compile(rf"cases/{re.escape(case_id)}/[^/]+|nifti/sub-[^/]+/([^/]+/)+sub-[^/]+")
    return {name for name in names or () if isinstance(name, str) and _is_below(name) and own.fullmatch(name)}


def _remove_files(out: Path, names: Iterable[str]) -> None:
    """Remove files, given relative to ``out``, and the folders that are empty then."""
    for name in names:
        file = out / name
        file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or not there
            for folder in list(file.parents)[: len(Path(name).parts) - 2]:
                folder.rmdir()


def _write_files(folder: Path, result: CaseResult, dtype: str) -> list[Path]:
    """Everything of a case but ``case.json``, safely on the disk."""
    np.save(folder / "image.npy", result.image.astype(dtype, copy=False))
    if result.pictures:
        np.savez_compressed(folder / "qc.npz", allow_pickle=False, **result.pictures)
    for name, registration in result.registrations.items():
        ending = "tfm" if registration.fixed_to_moving.is_linear else "h5"  # text is large and slow for fields
        save_transform(registration.fixed_to_moving, folder / f"{name}.{ending}")
    files = sorted(folder.iterdir())
    for file in files:
        to_disk(file)
    return files


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_case(out: Path, case_id: str) -> dict[str, Any] | None:
    """The record of a case that is there with all its files, or None."""
    record = _record(out, case_id)
    names = (f"cases/{case_id}/image.npy", *(record or {}).get("checksums", ()))
    return record if all((out / name).is_file() for name in names) else None


def transforms_of(out: Path, case_id: str, modalities: Iterable[str]) -> dict[str, Transform]:
    """Where a point of a prepared case's reference lies in each other modality, as far as files say it.

    Raises:
        ReadError: a file is damaged.
    """
    folder = CohortFolder(out).cases / case_id
    files = {name: folder / f"{name}.{ending}" for name in modalities for ending in ("tfm", "h5")}
    return {name: load_transform(file) for name, file in files.items() if file.is_file()}


_RECORD = {
    **dict.fromkeys(("key", "stamp", "status", "reasons", "causes"), a_text),
    **dict.fromkeys(("reference", "modalities", "file", "world", "features"), a_text),
    **dict.fromkeys(("checksums", "looked_at"), a_table),
}
_LATER: dict[str, Any] = {"causes": "", "looked_at": {}, "features": ""}  # what records of earlier versions do not have


def _record(out: Path, case_id: str) -> dict[str, Any] | None:
    """``case.json``; None if it is gone or damaged, or names files outside the cohort."""
    path = CohortFolder(out).record(case_id)
    with suppress(MmfusionError):
        record = _LATER | read_fields(path, "the record of a case")
        needed = {name: value for name, value in record.items() if name in _RECORD}
        names = check_fields(path, needed, _RECORD, "prepare it again")["checksums"]
        safe = all(isinstance(value, str) and _is_below(name) for name, value in names.items())
        plain = all(isinstance(record[name], str | int | float | None) for name in record.keys() - set(_NO_COLUMNS))
        if safe and plain and record["file"] == f"cases/{case_id}/image.npy" and record["status"] in _STATES[:2]:
            return record
    return None


def _is_below(name: str) -> bool:
    """Whether a name in a cohort is that of a file below it, whatever the system."""
    path = PurePosixPath(name)
    usable = all(part != ".." and len(part.encode()) < 256 for part in path.parts)
    return bool(path.parts) and usable and not path.is_absolute() and not {"\\", ":", "\0"} & set(name)


def damaged_files(folder: str | Path) -> list[str]:
    """The files of a cohort that are gone or no longer have the content that was written, from its folder, sorted.

    Raises:
        CohortError: the folder is no finished cohort.
    """
    cohort = open_cohort(folder)
    bad = []
    for row in (row for row in cohort.rows if row["status"] != "failed"):
        record = _record(cohort.folder, row["case"])
        if record is None:
            bad.append(f"cases/{row['case']}/case.json")
        for name, expected in (record or {}).get("checksums", {}).items():
            file = cohort.folder / name
            if not file.is_file() or checksum(file) != expected:
                bad.append(name)
    return sorted(bad)


def row_of(case: Case, record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``cases.csv``: what the manifest says of a case, and what came of it."""
    given = {name: getattr(case, name) or "" for name in _GIVEN}
    return {"case": case.id, **given, **{name: value for name, value in record.items() if name not in _NO_COLUMNS}}


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "scikit-image")
    return {"mmfusion": __version__, **{name: version(name) for name in names}}


def refuse_contradictions(cohort: Cohort, given: Mapping[str, Any]) -> None:
    """Refuse options that differ from those the cohort was prepared with.

    Args:
        cohort: the prepared study.
        given: options of the group ``case``; None means "as the cohort has it". ``modalities`` may be a subset.

    Raises:
        OptionError: an option contradicts, or a modality is not in the cohort.
    """
    for name, value in given.items():
        if value is None or name == "modalities":
            continue
        wanted, there = resolve({name: value}, "case")[name], cohort.options[name]
        if wanted != there:
            raise OptionError(
                f"option {name} is {value}, but the cohort {cohort.folder} was prepared with {there}. "
                f"Leave {name} out, or prepare another cohort folder"
            )
    missing = [name for name in given.get("modalities") or () if name not in cohort.modalities]
    if missing:
        raise OptionError(
            f"modality {', '.join(missing)} is not in the cohort {cohort.folder}; it has {', '.join(cohort.modalities)}"
        )
