"""A folder tree of DICOM and volume files: which series belong to whom, and which column each becomes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.cohort.columns import (
    COLUMNS,
    SEQUENCES,
    Candidate,
    candidates,
    rank,
    sequences_of,
    why_better,
    why_unfit,
    with_plausible_agents,
    without_free_text,
)
from mmfusion.cohort.files import without_paths
from mmfusion.cohort.found import Index, Unused
from mmfusion.cohort.manifest import MODALITIES, VOLUME_SUFFIXES, Case, is_modality_key
from mmfusion.errors import MmfusionError, ReadError, UnitsError
from mmfusion.io import find_series, read_series_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmfusion.cohort.pseudonyms import Pseudonyms
    from mmfusion.io import Series

_MASKS = ("RTSTRUCT", "SEG")
_LEAST_IMAGES = 3


@dataclass
class _Row:
    """A session of a subject while it is being put together."""

    subject: str
    series: list[Series] = field(default_factory=list)  # usable image series
    images: dict[str, Path] = field(default_factory=dict)
    chosen: list[Series] = field(default_factory=list)
    mask: Path | None = None


def index_tree(
    root: Path,
    *,
    session_days: int = 30,
    pseudonyms: Pseudonyms | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Walk a tree of DICOM (and NIfTI) and make a row of every subject and session.

    Subjects are DICOM's PatientID; where it is empty, the name of the folder directly under ``root``.

    Sessions: a study joins the one before it if their series have no modality in common and they are at most
    ``session_days`` days apart (PET/CT in one study and MR in another are one visit) or a date is missing;
    otherwise it begins a new session. ``session`` is empty for a subject with one, else 1, 2, ... by date.

    Columns: CT becomes ``ct``, PT ``pet``, NM ``spect``, MR ``mr``. Only if some session holds MR of several kinds
    (T1 and T2, say), every MR of the study goes to ``mr_t1``, ``mr_t1gd``, ``mr_t2``, ``mr_flair``, ``mr_dwi``,
    ``mr_adc``, ``mr_pd``, ``mr_swi``, ``mr_stir``, ``mr_t1map`` and the like: by ImageType, a contrast agent by
    ContrastBolusAgent, else by the words of its description, else to ``mr_`` and the description itself. Parts of an
    image (``mr_water``, ``mr_fat``, ``mr_inphase``, ``mr_opposed``, ``mr_phase``, ...) always have columns of their
    own, also where one series holds several of them. Where several series of a session want one column, the best that
    can be read has it: one frame before several, ORIGINAL\\PRIMARY before derived, then most images, then lowest
    series number. Scouts, attenuation maps, PET without attenuation correction, functional series, screenshots,
    reports, series of fewer than 3 images and everything else that is not a volume, or cannot be read as one, stay
    out. All that stays out is listed in ``others``.

    The mask is an RTSTRUCT or SEG that refers to a series of the row, or else shares its frame of reference.

    NIfTI and other volume files count as ``root/<subject>/<modality>.nii.gz`` or
    ``root/<subject>/<modality>/<one file>``, where ``<modality>`` is a known key (or ``mask``) in any case;
    with ``pseudonyms`` only a plain one, or one with a known sequence behind it (``mr_t1gd``).

    Args:
        root: the folder to walk, absolute.
        session_days: largest distance between the studies of one session, days.
        pseudonyms: give subjects other names; descriptions and names of folders then stay out of the index.
        progress: passed to :func:`mmfusion.io.find_series`.

    Raises:
        ReadError: the folder does not exist or holds no usable scan.
    """
    damaged: list[Path] = []
    special: list[Path] = []
    series = with_plausible_agents(find_series(root, progress=progress, damaged=damaged, special=special))
    named = pseudonyms or str
    if pseudonyms:
        series = [without_free_text(one) for one in series]
    index = Index()
    if damaged:
        where = "" if pseudonyms else f", the first is {damaged[0].relative_to(root)}"
        index.notes.append(f"{len(damaged)} DICOM files are damaged and left out{where}; copy or export them again")
    if special:
        index.notes.append(f"{len(special)} files are pipes, sockets or devices and were not read")
    subjects = _by_subject(series, root, named, index.notes)
    rows: dict[str, list[_Row]] = {}
    for subject, members in subjects.items():
        usable = [one for one in members if _usable(one, subject, index.others)]
        if usable:
            rows[subject] = _sessions(usable, subject, session_days, index.notes)
    in_folder = Counter(folder for one in series if one.is_image for folder in _folders(one))
    _fill(rows, in_folder, index.others, index.notes)
    for subject, members in subjects.items():
        masks = [one for one in members if one.modality in _MASKS]
        _join_masks(rows.get(subject, []), masks, subject, index.others)
    _join_files(rows, subjects, root, named, index.others)
    for subject in sorted(rows):
        sessions = [row for row in rows[subject] if row.images]
        for number, row in enumerate(sessions, 1):
            session = str(number) if len(sessions) > 1 else ""
            index.cases.append(Case(subject, session, images=row.images, mask=row.mask))
    if not index.cases:
        raise ReadError(
            f"{root} holds no usable scan: no DICOM series of CT, PT or MR, and no <subject>/<modality>.nii.gz"
            + (f", but {len(damaged)} damaged DICOM files; copy or export them again" if damaged else ".")
        )
    return index


def _by_subject(
    series: Iterable[Series], root: Path, named: Callable[[str], str], notes: list[str]
) -> dict[str, list[Series]]:
    subjects: dict[str, list[Series]] = defaultdict(list)
    folders: dict[str, dict[str, str]] = defaultdict(dict)  # subject to folder to a study in it
    nameless: Counter[str] = Counter()
    for one in series:
        top = _top(one.folder, root)
        subject = named(one.patient_id or top or root.name)
        subjects[subject].append(one)
        folders[subject][top] = one.study_uid
        nameless[subject] += not one.patient_id
    for subject, count in sorted(nameless.items()):
        if count:
            notes.append(f"{count} series of {subject} have no PatientID: the folder's name is the subject")
    for subject, found in sorted(folders.items()):
        if len(set(found.values())) > 1:  # as when every patient was exported under one name
            which = f" ({', '.join(sorted(found)[:5])}{', ...' if len(found) > 5 else ''})" if named is str else ""
            notes.append(
                f"PatientID {subject} is in {len(found)} folders{which} and counts as one subject; if these are "
                "several people, give each an identifier of its own"
            )
    return dict(sorted(subjects.items()))


def _top(folder: Path, root: Path) -> str:
    """The name of the folder directly under ``root`` that holds ``folder``; empty for ``root`` itself."""
    parts = folder.absolute().relative_to(root).parts
    return parts[0] if parts else ""


def _usable(series: Series, subject: str, others: list[Unused]) -> bool:
    """True for volumes; what is none is listed (masks come later)."""
    reason = ""
    if series.modality in _MASKS:
        return False
    if not series.is_image:
        reason = "not a volume"
    elif series.is_localizer:
        reason = "a scout"
    elif series.modality not in COLUMNS:
        reason = f"modality {series.modality or 'unknown'} is not used"
    elif unfit := why_unfit(series):
        reason = unfit
    elif series.count < _LEAST_IMAGES:
        reason = f"{series.count} images are no volume"
    elif len(_folders(series)) > 1:
        reason = f"its files lie in {len(_folders(series))} folders; put them into one"
    if reason:
        others.append(_unused(series, subject, reason))
    return not reason


def _sessions(series: Sequence[Series], subject: str, days: int, notes: list[str]) -> list[_Row]:
    """The rows of one subject, by the rule of :func:`build_index`."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        studies[one.study_uid].append(one)
    rows: list[_Row] = []
    begun: date | None = None
    for members in sorted(studies.values(), key=lambda study: (study[0].study_date, study[0].study_uid)):
        day, kinds = _day(members[0].study_date), {one.modality for one in members}
        apart = abs((day - begun).days) if day and begun else None
        fits = rows and not kinds & {one.modality for one in rows[-1].series}
        if fits and (apart is None or apart <= days):
            rows[-1].series += members
            when = "of unknown distance in time" if apart is None else f"{apart} days apart"
            notes.append(f"subject {subject}: studies {when} with different modalities count as one session")
        else:
            rows.append(_Row(subject, list(members)))
            begun = day
    return rows


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _fill(rows: dict[str, list[_Row]], in_folder: Counter[Path], others: list[Unused], notes: list[str]) -> None:
    """Give each session's series their columns: of several the best that can be read."""
    every = [row for sessions in rows.values() for row in sessions]
    several = any(len(sequences_of(row.series)) > 1 for row in every)
    dynamic: Counter[str] = Counter()
    for row in every:
        wanted: dict[str, list[Candidate]] = defaultdict(list)
        for column, candidate in candidates(row.series, several=several):
            wanted[column].append(candidate)
        for column, competing in sorted(wanted.items()):
            best: Candidate | None = None
            for one in sorted(competing, key=rank):
                if best is None:
                    cell = _cell(one, in_folder)
                    reason, frames = _asked(one, cell, column, row.subject)
                    if not reason:
                        best = one
                        row.images[column] = cell
                        row.chosen.append(one.series)
                        dynamic[column] += frames > 1
                else:
                    name = best.series.description or f"series {best.series.series_number}"
                    reason = f"{column} is {name!r}, {why_better(best, one)}"
                if reason:
                    others.append(_unused(one.series, row.subject, reason))
    for column, count in sorted(dynamic.items()):
        if count:
            rows_word = "row" if count == 1 else "rows"
            notes.append(f"{column} has several frames in {count} {rows_word}; check and prepare need --frame")


def _asked(candidate: Candidate, cell: Path, column: str, subject: str) -> tuple[str, int]:
    """Why a candidate cannot be read, or nothing, and its number of frames; evident stacks of slices are not read."""
    if candidate.series.is_plain_stack and not candidate.image_kind:
        return "", 1
    try:
        kind = candidate.image_kind
        return "", read_series_header(candidate.series, image_kind=kind, modality=column, frame="first").frames
    except UnitsError as error:
        if column == "pet":  # columns of the manifest may say what its header does not
            return "", 1
        problem = str(error)
    except MmfusionError as error:
        problem = str(error)
    problem = without_paths(problem, Case(subject, images={column: cell})).partition(". ")[0]
    return f"cannot be read, {problem.removeprefix(column).lstrip(': ').removesuffix('.')}", 1


def _folders(series: Series) -> set[Path]:
    return {file.parent for file in series.files}


def _join_masks(rows: Sequence[_Row], masks: Sequence[Series], subject: str, others: list[Unused]) -> None:
    """Give each row of a subject the mask that refers to its series, else one in its frame of reference."""

    def refers(mask: Series, row: _Row) -> bool:
        return bool({one.series_uid for one in row.chosen} & set(mask.referenced_series))

    taken: dict[str, str] = {}
    for row in rows:
        frames = {one.frame_of_reference for one in row.chosen} - {""}
        fitting = [one for one in masks if refers(one, row) or one.frame_of_reference in frames]
        fitting.sort(key=lambda one: (not refers(one, row), one.series_number or 0, one.series_uid))
        if fitting:
            row.mask = fitting[0].files[0]
            taken[fitting[0].series_uid] = ""
            for one in fitting[1:]:
                taken.setdefault(one.series_uid, f"mask is {fitting[0].description or 'another series'!r}")
    for one in masks:
        reason = taken.get(one.series_uid, "refers to no series of a row")
        if reason:
            others.append(_unused(one, subject, reason))


def _join_files(
    rows: dict[str, list[_Row]],
    subjects: dict[str, list[Series]],
    root: Path,
    named: Callable[[str], str],
    others: list[Unused],
) -> None:
    """Add ``root/<subject>/<modality>.nii.gz`` and ``root/<subject>/<modality>/<one file>`` to the rows."""
    within: dict[str, set[str]] = defaultdict(set)
    for subject, members in subjects.items():
        for one in members:
            within[_top(one.folder, root)].add(subject)
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        subject = named(folder.name)
        if subject not in subjects and len(within[folder.name]) == 1:
            subject = next(iter(within[folder.name]))
        for name, path, count in _volume_files(folder):
            sessions = rows.get(subject, [])
            reason, known = "", name == "mask" or (is_modality_key(name) if named is str else _is_plain_key(name))
            if not known:
                reason = "its name is not a modality"
            elif count > 1:
                reason = f"{count} volumes where one is expected"
            elif len(sessions) > 1:
                reason = f"the subject has {len(sessions)} sessions; which one is unknown"
            elif sessions and (sessions[0].mask if name == "mask" else name in sessions[0].images):
                reason = f"{name} is already there"
            if reason:
                others.append(Unused(subject, path, name if known else "", "", reason))
                continue
            row = sessions[0] if sessions else rows.setdefault(subject, [_Row(subject)])[0]
            if name == "mask":
                row.mask = path
            else:
                row.images[name] = path


def _is_plain_key(name: str) -> bool:
    """True for a known key, alone or with the name of a known sequence behind it: no other text of a file's name."""
    key, _, sequence = name.partition("_")
    return key in MODALITIES and sequence in ("", *SEQUENCES)


def _volume_files(folder: Path) -> list[tuple[str, Path, int]]:
    """(modality key, file, how many compete) of a subject's folder."""
    out = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found = [one for one in sorted(path.iterdir()) if _stem(one)]
            out += [(path.name.lower(), found[0] if len(found) == 1 else path, len(found))] if found else []
        elif stem := _stem(path):
            out.append((stem, path, 1))
    return out


def _stem(path: Path) -> str:
    """``mr`` for ``MR.nii.gz``; empty for what is no volume file (DICOM is found by content)."""
    name = path.name.lower()
    ending = next((end for end in VOLUME_SUFFIXES if name.endswith(end) and end != ".dcm"), None)
    return name.removesuffix(ending) if ending and path.is_file() else ""


def _cell(candidate: Candidate, in_folder: Counter[Path]) -> Path:
    """The path that :func:`mmfusion.io.split_series` reads: with UID and kind of image if the folder holds more."""
    series, folder = candidate.series, candidate.series.folder.absolute()
    name = ":".join(filter(None, ["" if in_folder[series.folder] == 1 else series.series_uid, candidate.image_kind]))
    return folder.with_name(f"{folder.name}#{name}") if name else folder


def _unused(series: Series, subject: str, reason: str) -> Unused:
    return Unused(subject, series.folder, series.modality, series.description, reason)
