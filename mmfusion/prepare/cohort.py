"""From a manifest to a cohort folder: every case by itself, in processes or on a cluster, and only what changed."""

from __future__ import annotations

import os
import traceback
from concurrent.futures import as_completed
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion import __version__
from mmfusion.cohort import Case, read_study
from mmfusion.cohort.files import inputs_of, with_region, without_paths
from mmfusion.errors import CohortError, LostError, MmfusionError, OutputError, ReadError, VoxelError
from mmfusion.files import CohortFolder, optional_fields, read_fields, write_json
from mmfusion.io import check_frame
from mmfusion.options import GROUPS, resolve, settle
from mmfusion.prepare.acceptance import apply_acceptances, read_acceptances
from mmfusion.prepare.case import measure_case, prepare_case
from mmfusion.prepare.covariates import read_tables, write_covariates
from mmfusion.prepare.derivatives import refuse_shared_names, write_dataset, write_derivative
from mmfusion.prepare.exclusive import exclusive, refuse_other_run
from mmfusion.prepare.folder import Cohort, read_case, remove_case, row_of, transforms_of, write_case, write_cohort
from mmfusion.prepare.placing import check_crop, check_reference
from mmfusion.prepare.processes import Processes
from mmfusion.prepare.radiomics import check_features
from mmfusion.prepare.scaling import check_pet, is_suv, parse_standard
from mmfusion.prepare.sources import case_key, case_stamp, source_digests
from mmfusion.prepare.standard import LOADING, are_landmarks, fit_standard, landmarks_of, training_cases
from mmfusion.volume import check_device

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from concurrent.futures import Executor

    from mmfusion.prepare.case import CaseResult

_VERSION = {"GeneratedBy": f"mmfusion {__version__}"}
_ON_ONE_DEVICE = 4  # processes that share a GPU: each takes some memory of it


@dataclass(frozen=True)
class _Order:
    """What is to be done with each case, wherever that happens.

    Attributes:
        out: the cohort folder, absolute.
        options: the group ``case``.
        storage: the group ``storage``.
        device: where registration runs.
        run: token of the run that has the folder, see :func:`mmfusion.prepare.exclusive.exclusive`.
    """

    out: Path
    options: Mapping[str, Any]
    storage: Mapping[str, Any]
    device: str
    run: str

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the files of a case, beside its sources and the code; features are only added to its record."""
        return {name: value for name, value in {**self.options, **self.storage}.items() if name != "features"}

    @property
    def features(self) -> list[str]:
        """What is computed of each mask, beside the measurements."""
        return self.storage["features"] or []

    def is_measured(self, record: Mapping[str, Any]) -> bool:
        """Whether the record of a case has all features that are wanted."""
        return set(self.features) <= set(record["features"].split())


def prepare_cohort(
    manifest: str | Path,
    out: str | Path,
    *,
    workers: int = 0,
    time_limit: int = 1800,
    strict: bool = False,
    device: str = "cpu",
    scheduler: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Cohort:
    """Prepare every case of a manifest; a case that is there and unchanged is left alone.

    A case is keyed by the content of its files, its options and the version of mmfusion; files that only moved or were
    written again are read, found equal, and not prepared again. A bad case ends as ``failed`` with its error and stops
    nothing, even if it crashes its process, takes all memory, or never ends. Whatever ends this call, the same call
    goes on where it stopped, and gives the same tensors and transforms with any number of workers. What persons decided
    on doubtful cases stays, see :mod:`mmfusion.prepare.acceptance`.

    Args:
        manifest: CSV or TSV, see :func:`mmfusion.cohort.read_manifest`.
        out: the cohort folder to write.
        workers: processes; 0 means one a core (4 where registration runs elsewhere), 1 means none but this one, which
            then is not safe from a crash and knows no time limit.
        time_limit: seconds for one case; 0 means none.
        strict: stop at the first case that fails.
        device: where registration runs, ``cpu`` or a torch device that all processes share; no part of a case's key.
        scheduler: address of a Dask scheduler, whose workers then do the work; they must see the same files under the
            same paths.
        progress: called with (done, all, case and its status) after each case.
        options: the groups ``case`` and ``storage`` of :mod:`mmfusion.options`.

    Raises:
        ManifestError: the manifest has problems (all are listed).
        OptionError: an option does not fit, ``reference`` is misspelt or names no modality, or ``features`` needs a
            package that is not installed.
        OutputError: ``out`` is not a cohort folder, holds what is read, or cannot be written.
        CohortError: a case failed, and ``strict``; or another call is writing into the folder.
    """
    storage = resolve({name: options.pop(name) for name in GROUPS["storage"] if name in options}, "storage")
    settings = settle("case", ("call", options))
    options = settings.used
    check_device(device)
    check_crop(options)
    check_pet(options)
    check_features(storage["features"])
    check_frame(options["frame"])
    parse_standard(options["mr_standard"])
    cases, names = read_study(manifest, options["modalities"])
    cases = [with_region(case, options["suvr"]) for case in cases]
    options["suvr"] = options["suvr"] and "manifest"  # the cases have it now; a path is not kept
    before = _options_before(Path(out))
    options["modalities"] = options["modalities"] or _kept_order(names, before)
    if "suv_max" not in settings.chosen:
        options["suv_max"] = _kept_suv_max(options, before)
    check_reference(options["reference"], options["modalities"])
    if storage["save_nifti"]:
        refuse_shared_names(cases)
    folder = Path(out).absolute()
    tables = read_tables(cases, manifest)
    reads, series = inputs_of(cases)
    with exclusive(folder, reads=[Path(manifest), *reads], series=series) as run_token:
        order = _Order(folder, options, storage, device, run_token)
        accepted = read_acceptances(folder)
        if storage["save_nifti"]:
            write_dataset(order.out)
        run = partial(_run, order=order, make=partial(_executor, workers, time_limit, device, scheduler))
        fitted = training_cases(cases) if _is_to_be_fitted(options) else []
        tell = _counted(progress, len(fitted) + len(cases))
        if fitted:
            options["mr_standard"] = _fit(fitted, run, tell)
        records = {case.id: _unchanged(case, order) for case in cases}
        todo = [case for case in cases if records[case.id] is None]
        tell(len(cases) - len(todo))
        if todo:  # until all is done the folder is not a finished cohort, see open_cohort
            CohortFolder(order.out).table.unlink(missing_ok=True)
        with closing(run(_prepare_one, todo)) as results:
            for case, found in results:
                record = _failed(case, order, str(found)) if isinstance(found, LostError) else found
                records[case.id] = record
                tell(1, f"{case.id} {apply_acceptances(folder, [row_of(case, record)], accepted)[0]['status']}")
                if strict and record["status"] == "failed":
                    tried = sum(one is not None for one in records.values())
                    raise CohortError(
                        f"stopped at case {case.id} ({tried} of {len(cases)} were tried): {record['reasons']}. "
                        "The same command goes on where it stopped; without --strict a failed case stops nothing"
                    )
        write_covariates(folder, cases, tables, manifest)  # anew each time: no tensor depends on them
        rows = [row_of(case, records[case.id] or {}) for case in cases]
        return write_cohort(Path(out), {**options, **storage}, apply_acceptances(folder, rows, accepted))


def _options_before(out: Path) -> dict[str, Any]:
    """The options of the cohort that is there; none where none is, or they are damaged and will be written again."""
    with suppress(MmfusionError):
        known = optional_fields(CohortFolder(out).options)
        return resolve({name: known[name] for name in GROUPS["case"] if name in known}, "case") if known else {}
    return {}


def _kept_order(modalities: Sequence[str], before: Mapping[str, Any]) -> list[str]:
    """The modalities as the cohort that is there has them, and new ones behind; else as the manifest has them."""
    known = [name for name in before.get("modalities") or () if name in modalities]
    return [*known, *(name for name in modalities if name not in known)]


def _kept_suv_max(options: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """That of the cohort that is there, if its PET is SUV and stays SUV; else the default."""
    return float((before if before and is_suv(before) and is_suv(options) else options)["suv_max"])


def _counted(progress: Callable[[int, int, str], None] | None, total: int) -> Callable[..., None]:
    """``(more, words="")``: adds to the count of what is done, and tells it if there are words."""
    done = 0

    def tell(more: int, words: str = "") -> None:
        nonlocal done
        done += more
        if progress and words:
            progress(done, total, words)

    return tell


def _is_to_be_fitted(options: Mapping[str, Any]) -> bool:
    return options["mr_normalize"] == "histogram" and options["mr_standard"] is None


def _fit(cases: Sequence[Case], run: Callable[..., Any], tell: Callable[..., None]) -> str:
    """The standard scale of these cases, in their order, whoever is done first."""
    found = {}
    with closing(run(_landmarks_of, cases)) as results:
        for case, one in results:
            found[case.id] = {} if isinstance(one, LostError) else one
            tell(1, f"{case.id} landmarks")
    return fit_standard(found[case.id] for case in cases)


def _landmarks_of(case: Case, order: _Order) -> dict[str, Any]:
    """The landmarks of a case's MR scans, kept in the cohort folder for the next time; none if it cannot be read."""
    place = CohortFolder(order.out).landmarks / f"{case.id}.json"
    asked = {name: order.options[name] for name in LOADING}
    try:
        key = case_key(case, asked, source_digests(case))
        with suppress(MmfusionError):
            kept = read_fields(place, "the landmarks of a case")
            if kept.get("key") == key and are_landmarks(kept.get("landmarks")):
                return dict(kept["landmarks"])
        found = landmarks_of(case, order.options)
    except Exception:  # it will fail, and be told, as a case
        return {}
    write_json({"key": key, "landmarks": found}, place)
    return found


def _executor(workers: int, time_limit: int, device: str, scheduler: str | None, jobs: int) -> Executor | None:
    """Who does the work; None for this process."""
    if scheduler and jobs:
        from mmfusion.prepare.cluster import Cluster  # late: Dask is an extra

        return Cluster(scheduler, time_limit or None)
    count = _processes(workers, jobs, device)
    return Processes(count, time_limit or None) if count else None


def _processes(workers: int, jobs: int, device: str = "cpu") -> int:
    """How many; 0 for this one alone."""
    if workers == 1 or not jobs:
        return 0
    usual = os.cpu_count() or 1
    if device != "cpu":
        usual = min(usual, _ON_ONE_DEVICE)
    return min(workers or usual, jobs)


def _run(
    do: Callable[[Case, _Order], Any], cases: Sequence[Case], order: _Order, make: Callable[[int], Executor | None]
) -> Generator[tuple[Case, Any], None, None]:
    """Each case with what ``do`` returned for it, or the :class:`LostError` that it was lost by, as they are done."""
    pool = make(len(cases))
    if pool is None:
        for case in cases:
            yield case, do(case, order)
        return
    try:
        jobs = {pool.submit(do, case, order): case for case in cases}
        for job in as_completed(jobs):
            try:
                yield jobs[job], job.result()
            except LostError as error:
                yield jobs[job], error
    finally:
        pool.shutdown(cancel_futures=True)  # cases under way are finished, so that none is half written


def _unchanged(case: Case, order: _Order) -> dict[str, Any] | None:
    """The record of a case that is there and whose files nobody has touched, or None."""
    record = read_case(order.out, case.id)
    try:
        if record and record.get("stamp") == case_stamp(case, order.asked) and order.is_measured(record):
            return record
    except MmfusionError:
        pass  # found again, and told, where the case is prepared
    return None


def _prepare_one(case: Case, order: _Order) -> dict[str, Any]:
    start, trace = perf_counter(), CohortFolder(order.out).cases / f"{case.id}.error.txt"
    trace.unlink(missing_ok=True)
    try:
        stamp, digests = case_stamp(case, order.asked), source_digests(case)
        key = case_key(case, order.asked, digests)
        record = read_case(order.out, case.id)
        if record and record.get("key") == key:  # the files moved or were written again, and hold the same
            if not order.is_measured(record):
                record = _measured(record, case, order)
            write_json({**record, "stamp": stamp}, CohortFolder(order.out).record(case.id))
            return record
        how: dict[str, Any] = {"keep_volumes": order.storage["save_nifti"], "device": order.device}
        result = prepare_case(case, features=order.features, **how, **order.options)
        if case_stamp(case, order.asked) != stamp:
            raise ReadError("its files changed while they were read; run the same command again")
        _check_range(result, order.storage["dtype"])
    except OutputError:  # a full disk stops them all
        raise
    except MmfusionError as error:
        message = str(error)
    except Exception as error:  # one case must never stop the others
        trace.write_text(_named(traceback.format_exc(), case, order))
        message = f"unexpected {type(error).__name__}: {error} (trace in cases/{trace.name})"
    else:
        try:
            result = _without_paths(result, case, order)
            refuse_other_run(order.out, order.run)
            others = _write_nifti(case, result, digests, order)
            how = {"key": key, "stamp": stamp, "seconds": perf_counter() - start, "dtype": order.storage["dtype"]}
            how |= {"sources": digests, "features": order.features}
            allowed = partial(refuse_other_run, order.out, order.run)
            return write_case(order.out, case, result, others=others, allowed=allowed, **how)
        except OutputError as error:
            raise OutputError(f"case {case.id}: {error}") from error
        except OSError as error:
            raise OutputError(
                f"case {case.id} cannot be written ({error.strerror or error}): free space, or choose another --out; "
                "the same command goes on where it stopped"
            ) from error
    return _failed(case, order, message)


def _measured(record: Mapping[str, Any], case: Case, order: _Order) -> dict[str, Any]:
    """The record of a prepared case with the measurements and features of its mask; its tensor stays as it is."""
    transforms = transforms_of(order.out, case.id, case.images)
    try:
        facts = measure_case(case, transforms, order.features, **order.options)
    except MmfusionError as error:  # of the mask: the case is doubtful, and says why
        facts = {"region_notes": str(error)}
    return {**record, **_nameless(facts, case, order), "features": " ".join(order.features)}


def _nameless(facts: Mapping[str, Any], case: Case, order: _Order) -> dict[str, Any]:
    return {name: _named(value, case, order) if name.endswith("_notes") else value for name, value in facts.items()}


def _check_range(result: CaseResult, dtype: str) -> None:
    largest = float(np.abs(result.image).max())
    if not largest <= float(np.finfo(dtype).max):
        raise VoxelError(
            f"a prepared value of {largest:g} does not fit {dtype}; use --dtype float32, or look at the scan"
        )


def _without_paths(result: CaseResult, case: Case, order: _Order) -> CaseResult:
    """The result with the reasons and notes as they may be written."""
    facts = _nameless(result.facts, case, order)
    doubts = tuple(doubt._replace(sentence=_named(doubt.sentence, case, order)) for doubt in result.doubts)
    return replace(result, doubts=doubts, facts=facts)


def _write_nifti(case: Case, result: CaseResult, digests: Mapping[str, str], order: _Order) -> list[Path]:
    """The NIfTI files of a case, if they are wanted."""
    if not order.storage["save_nifti"]:
        return []
    sources: dict[str, dict[str, Any]] = {name: {"SourceSHA256": digest} for name, digest in digests.items()}
    if order.storage["keep_paths"]:
        for name, path in {**case.images, **({"mask": case.mask} if case.mask else {})}.items():
            sources[name]["Sources"] = [str(path)]
    return write_derivative(order.out, case, result, {"sources": sources, "Options": order.options, **_VERSION})


def _failed(case: Case, order: _Order, message: str) -> dict[str, Any]:
    """The record of a case without a tensor; what an earlier run left of it goes."""
    refuse_other_run(order.out, order.run)
    remove_case(order.out, case)
    empty = dict.fromkeys(("reference", "modalities", "file"), "")
    return {"key": "", "status": "failed", "reasons": _named(message, case, order), **empty, "seconds": 0.0}


def _named(message: str, case: Case, order: _Order) -> str:
    return message if order.storage["keep_paths"] else without_paths(message, case)
