"""The cohort folder: a study prepared once, and only what changed prepared again.

::

    COHORT/
      options.json      what was asked for, and the versions that did it
      cases.csv         one row a case: status, reasons, registration numbers (of good and bad cases alike)
      cases/<case>/     image.npy [M, D, H, W] float32, qc.npz, case.json; ITK transforms: <modality>.tfm (reference to
                        modality; .h5 if it bends) and, with a template, mni152.tfm (template to reference)
      qc.html           worst case first
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import traceback
from concurrent.futures import Future, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion import __version__
from mmfusion.cohort import Case, read_manifest
from mmfusion.errors import CohortError, LostError, MmfusionError, OptionError
from mmfusion.io import save_transform, sidecar_of, split_series, write_csv, write_json
from mmfusion.options import resolve
from mmfusion.prepare.case import CaseResult, pet_details, prepare_case
from mmfusion.prepare.processes import Processes
from mmfusion.report import write_qc
from mmfusion.volume import check_device

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

_ON_ONE_DEVICE = 4  # processes that share a GPU: each takes some memory of it
_FORMAT = "1"  # of the files of a case; a change prepares every case again
_WHOLE = (".nii", ".nii.gz", ".mha", ".nrrd", ".zip")  # one file holds the whole scan
_HEADERS = (".mhd", ".nhdr", ".hdr", ".img")  # two files of one stem do
_GIVEN = ("subject", "session", "label", "split", "fold", "site")
_CASE_COLUMNS = ("case", *_GIVEN, "status", "reasons", "reference", "modalities", "file", "key", "seconds")


@dataclass(frozen=True)
class PreparedCase:
    """One usable row of ``cases.csv``.

    Attributes:
        case: subject, session, label, split, fold and site, as in the manifest.
        modalities: those that the case has.
        status: ``done`` or ``doubtful``.
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
        """The cases that can be used: done and doubtful ones."""
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
    def hash(self) -> str:
        """One short text that changes with the options, the cases and their content."""
        keys = sorted("|".join(row[name] for name in ("case", "key", "status", "label", "split")) for row in self.rows)
        return hashlib.sha256("\n".join([json.dumps(self.options, sort_keys=True), *keys]).encode()).hexdigest()[:16]

    def count(self, status: str) -> int:
        """How many cases ended as ``done``, ``doubtful`` or ``failed``."""
        return sum(row["status"] == status for row in self.rows)


def open_cohort(folder: str | Path) -> Cohort:
    """Open a cohort folder.

    Raises:
        CohortError: it is not there, or :func:`prepare_cohort` has not finished in it.
    """
    folder = Path(folder)
    for name in ("options.json", "cases.csv"):
        if not (folder / name).is_file():
            raise CohortError(
                f"{folder} has no {name}: it is not a finished cohort folder. "
                f"Run: mmfusion prepare MANIFEST --out {folder}"
            )
    options = json.loads((folder / "options.json").read_text())
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Cohort(folder, resolve({k: v for k, v in options.items() if k in resolve({}, "case")}, "case"), rows)


def prepare_cohort(
    manifest: str | Path,
    out: str | Path,
    *,
    workers: int = 0,
    time_limit: int = 1800,
    strict: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Cohort:
    """Prepare every case of a manifest; a case that is there and unchanged is left alone.

    A case is keyed by its options, its files (path, size, time) and the version of mmfusion. A bad case ends as
    ``failed`` with its error and stops nothing, even if it crashes its process, takes all memory, or never ends. After
    Ctrl-C the same call goes on where it stopped.

    Args:
        manifest: CSV or TSV, see :func:`mmfusion.cohort.read_manifest`.
        out: the cohort folder to write.
        workers: processes; 0 means one a core (4 where registration runs elsewhere), 1 means none but this one, which
            then is not safe from a crash and knows no time limit.
        time_limit: seconds for one case; 0 means none.
        strict: stop at the first case that fails.
        device: where registration runs, ``cpu`` or a torch device that all processes share; no part of a case's key.
        progress: called with (done, all, case and its status) after each case.
        options: the group ``case`` of :mod:`mmfusion.options`.

    Raises:
        ManifestError: the manifest has problems (all are listed).
        OptionError: an option does not fit, or ``reference`` names no modality.
        CohortError: a case failed, and ``strict``; the folder cannot be written.
    """
    chosen_by_hand = options.get("reference") is not None
    options = resolve(options, "case")
    check_device(device)
    cases = read_manifest(manifest, options["modalities"])
    if options["modalities"] is None:
        options["modalities"] = list(dict.fromkeys(name for case in cases for name in case.images))
    if chosen_by_hand:
        _refuse_reference(options["reference"], cases)
    out = Path(out)
    (out / "cases").mkdir(parents=True, exist_ok=True)
    keys = {case.id: _key(case, options) for case in cases}
    records = {case.id: _unchanged(out, case.id, keys[case.id]) for case in cases}
    todo = [case for case in cases if records[case.id] is None]
    finished = len(cases) - len(todo)
    if todo:  # until all is done the folder is not a finished cohort, see open_cohort
        (out / "cases.csv").unlink(missing_ok=True)
    processes = _processes(workers, len(todo), device)
    with closing(_run(todo, options, out, keys, processes, time_limit, device)) as results:
        for case, record in results:
            records[case.id] = record
            finished += 1
            if progress:
                progress(finished, len(cases), f"{case.id} {record['status']}")
            if strict and record["status"] == "failed":
                raise CohortError(
                    f"stopped at case {case.id} ({finished} of {len(cases)} were tried): {record['reasons']}. "
                    "The same command goes on where it stopped; without --strict a failed case stops nothing"
                )
    return write_cohort(out, options, [_row(case, keys[case.id], records[case.id] or {}) for case in cases])


def write_cohort(
    out: Path, options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, qc: bool = True
) -> Cohort:
    """Write the tables and the QC page of a cohort folder whose cases are there, and open it."""
    columns = list(dict.fromkeys([*_CASE_COLUMNS, *sorted({name for row in rows for name in row})]))
    write_csv(rows, out / "cases.csv", columns)
    write_json({**options, "versions": versions()}, out / "options.json")
    if qc:
        write_qc(out)
    return open_cohort(out)


def write_case(out: Path, case: Case, result: CaseResult, key: str = "", seconds: float = 0.0) -> dict[str, Any]:
    """Write one prepared case under its final name in one step, and return its row of ``cases.csv``."""
    final, temporary = out / "cases" / case.id, out / "cases" / f".{case.id}"  # no case begins with a dot
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / "image.npy", result.image)
    if result.pictures:
        np.savez_compressed(temporary / "qc.npz", allow_pickle=False, **result.pictures)
    for name, registration in result.registrations.items():
        ending = "tfm" if registration.fixed_to_moving.is_linear else "h5"  # text is large and slow for fields
        save_transform(registration.fixed_to_moving, temporary / f"{name}.{ending}")
    record = {
        "status": result.status,
        "reasons": " | ".join(result.reasons),
        "reference": result.reference,
        "modalities": " ".join(n for n, there in zip(result.modalities, result.present, strict=True) if there),
        "file": f"cases/{case.id}/image.npy",
        "seconds": round(seconds, 2),
        **result.facts,
    }
    where = {"affine": result.grid.affine.tolist(), "world": result.world or result.reference}
    write_json({"key": key, **where, **record}, temporary / "case.json")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    return _row(case, key, record)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "scikit-image")
    return {"mmfusion": __version__, **{name: version(name) for name in names}}


def _row(case: Case, key: str, record: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: getattr(case, name) or "" for name in _GIVEN}
    facts = {name: value for name, value in record.items() if name not in ("key", "affine", "world")}
    return {"case": case.id, **given, "key": key, **facts}


def _key(case: Case, options: Mapping[str, Any]) -> str:
    """What decides the result: the options, the code, and the files by path, size and time of change."""
    digest = hashlib.sha256(json.dumps([_FORMAT, __version__, options], sort_keys=True).encode())
    sources = {name: split_series(cell)[0] for name, cell in case.images.items()}
    sources |= {"mask": case.mask} if case.mask else {}
    for name, path in sorted(sources.items()):
        for file in _files(path):
            stat = file.stat()
            digest.update(f"{name}|{case.images.get(name)}|{file}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    digest.update(json.dumps(pet_details(case), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """The files that a scan is read from: a header brings its voxels, a DICOM slice all of its folder."""
    found: Iterable[Path] = [path, sidecar_of(path)]
    if path.is_dir():
        found = path.rglob("*")
    elif path.suffix.lower() in _HEADERS:
        found = path.parent.glob(f"{escape(path.stem)}.*")
    elif not path.name.lower().endswith(_WHOLE):
        found = path.parent.iterdir()
    return sorted(file for file in found if file.is_file())


def _unchanged(out: Path, case_id: str, key: str) -> dict[str, Any] | None:
    """The record of a case that is there under this key, or None."""
    folder = out / "cases" / case_id
    try:
        record = json.loads((folder / "case.json").read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("key") == key and (folder / "image.npy").is_file() else None


def _refuse_reference(reference: Sequence[str], cases: Sequence[Case]) -> None:
    """A misspelt reference would silently leave the choice to the order of the columns."""
    there = {name for case in cases for name in case.images}
    if not there & set(reference):
        raise OptionError(
            f"reference {' '.join(reference)} names none of the modalities {', '.join(sorted(there))}; "
            "give --reference one of them, or leave it out"
        )


def _processes(workers: int, jobs: int, device: str = "cpu") -> int:
    """How many; 0 for this one alone."""
    if workers == 1 or not jobs:
        return 0
    usual = os.cpu_count() or 1
    if device != "cpu":
        usual = min(usual, _ON_ONE_DEVICE)
    return min(workers or usual, jobs)


def _run(
    cases: Sequence[Case],
    options: Mapping[str, Any],
    out: Path,
    keys: Mapping[str, str],
    processes: int,
    time_limit: int,
    device: str,
) -> Generator[tuple[Case, dict[str, Any]], None, None]:
    if not processes:
        for case in cases:
            yield case, _prepare_one(case, options, out, keys[case.id], device)
        return
    pool = Processes(processes, time_limit or None)
    try:
        jobs: dict[Future[dict[str, Any]], Case] = {
            pool.submit(_prepare_one, case, options, out, keys[case.id], device): case for case in cases
        }
        for job in as_completed(jobs):
            try:
                yield jobs[job], job.result()
            except LostError as error:
                yield jobs[job], _failed(out, jobs[job], str(error))
    finally:
        pool.shutdown(cancel_futures=True)  # cases under way are finished, so that none is half written


def _prepare_one(case: Case, options: Mapping[str, Any], out: Path, key: str, device: str) -> dict[str, Any]:
    start, trace = perf_counter(), out / "cases" / f"{case.id}.error.txt"
    trace.unlink(missing_ok=True)
    try:
        result = prepare_case(case, device=device, **options)
    except MmfusionError as error:
        message = str(error)
    except Exception as error:  # one case must never stop the others
        trace.write_text(traceback.format_exc())
        message = f"unexpected {type(error).__name__}: {error} (trace in cases/{trace.name})"
    else:
        try:
            return write_case(out, case, result, key, perf_counter() - start)
        except OSError as error:  # a full disk stops them all
            raise CohortError(f"case {case.id} cannot be written: {error}") from error
    return _failed(out, case, message)


def _failed(out: Path, case: Case, message: str) -> dict[str, Any]:
    """The record of a case without a tensor; what an earlier run left of it goes."""
    for name in (case.id, f".{case.id}"):
        shutil.rmtree(out / "cases" / name, ignore_errors=True)
    return {"status": "failed", "reasons": message, "reference": "", "modalities": "", "file": "", "seconds": 0.0}


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
