"""A folder tree of DICOM and volume files: which series belong to whom, and which column each becomes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
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
from mmfusion.cohort.found import Index, Unused, describe_unused
from mmfusion.cohort.index_masks import join_masks
from mmfusion.cohort.manifest import MODALITIES, Case, is_modality_key
from mmfusion.cohort.subjects import by_subject, sharing_uid, top_folder
from mmfusion.cohort.unread import unread_notes
from mmfusion.cohort.visits import SESSION_DAYS, visits
from mmfusion.errors import MmfusionError, ReadError, UnitsError
from mmfusion.files import is_there
from mmfusion.io import VOLUMES, Unread, clean_name, find_series, pair_of, read_series_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mmfusion.cohort.pseudonyms import Pseudonyms
    from mmfusion.io import Series

_MASKS = ("RTSTRUCT", "SEG")
_LEAST_IMAGES = 3
_SHARED_UID = (
    "its folder holds images of another PatientID or study under the same SeriesInstanceUID; put the files of each "
    "into a folder of their own"
)


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
    session_days: int = SESSION_DAYS,
    subject_from: str | None = None,
    pseudonyms: Pseudonyms | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Walk a tree of DICOM (and NIfTI) and make a row of every subject and session.

    Subjects are DICOM's PatientID; spellings of one within a study are one person. Series without one, or with one
    that names nobody and has several studies (ANONYMOUS), are of the subject of their study. If nothing of the study
    has one, it and what shares its frame of reference is a subject named by its folder: the deepest level that is
    not of series, modalities or visits (``site/p1/ct`` and ``CT/p1`` are p1), or ``root`` itself. ``subject_from``
    chooses otherwise: ``PatientID`` (also if it names nobody), ``folder`` (directly under ``root``) or a pattern for
    the folders below ``root``, as ``*/{subject}`` (``*`` is any part of a name).

    Sessions: the scans of one study and day join those before if they have no modality in common and are of the same
    study, or at most ``session_days`` days apart (PET/CT in one study and MR in another are one visit), or a date is
    missing; otherwise they begin a new session, and so do CT and PET of different days. ``session`` is empty for a
    subject with one, else 1, 2, ... by date.

    Columns: CT becomes ``ct``, PT ``pet``, NM ``spect``, MR ``mr``. Only if some session holds MR of several kinds
    (T1 and T2, say), every MR of the study goes to ``mr_t1``, ``mr_t1gd``, ``mr_t2``, ``mr_flair``, ``mr_dwi``,
    ``mr_adc``, ``mr_pd``, ``mr_swi``, ``mr_stir``, ``mr_t1map`` and the like: by ImageType, a contrast agent by
    ContrastBolusAgent, else by the words of its description, else to ``mr_`` and the description itself. Parts of an
    image (``mr_water``, ``mr_fat``, ``mr_inphase``, ``mr_opposed``, ``mr_phase``, ...) always have columns of their
    own, also where one series holds several of them. Where several series of a session want one column, the best that
    can be read has it: one frame before several, ORIGINAL\\PRIMARY before derived, then most images, then lowest
    series number. Scouts, attenuation maps, PET without attenuation correction, functional series, screenshots,
    reports, series of fewer than 3 images and everything else that is not a volume, or cannot be read as one, stay
    out. All that stays out is listed in ``others``, or counted in ``notes``.

    The mask is an RTSTRUCT or SEG that refers to a series of the row (to CT before MR before PET), or else shares its
    frame of reference. Where several fit equally well, none is taken and a note names them.

    NIfTI and other volume files count as ``root/<subject>/<modality>.nii.gz`` or
    ``root/<subject>/<modality>/<one file>``, where ``<modality>`` is a known key (or ``mask``) in any case;
    with ``pseudonyms`` only a plain one, or one with a known sequence behind it (``mr_t1gd``).

    Args:
        root: the folder to walk, absolute.
        session_days: largest distance between the scans of one session, days.
        subject_from: what names the subjects, if not the rule above.
        pseudonyms: give subjects other names; descriptions and names of folders then stay out of the index.
        progress: passed to :func:`mmfusion.io.find_series`.

    Raises:
        ReadError: the folder does not exist or holds no usable scan.
        OptionError: ``subject_from`` is nothing that names subjects, or fits no folder.
    """
    unread = Unread()
    series = with_plausible_agents(find_series(root, progress=progress, unread=unread))
    named = pseudonyms or str
    if pseudonyms:
        series = [without_free_text(one) for one in series]
    index = Index()
    subjects = by_subject(series, root, subject_from=subject_from, named=named, notes=index.notes)
    shared = sharing_uid(series)
    rows: dict[str, list[_Row]] = {}
    for subject, members in subjects.items():
        alone = [one for one in members if one not in shared]
        index.others += [_unused(one, subject, _SHARED_UID) for one in members if one in shared]
        usable = [one for one in alone if _is_usable(one, subject, index.others)]
        if usable:
            rows[subject] = [_Row(subject, scans) for scans in visits(usable, subject, session_days, index.notes)]
    in_folder = Counter(folder for one in series if one.is_image for folder in _folders(one))
    _fill_columns(rows, in_folder, index.others, index.notes)
    for subject, members in subjects.items():
        masks = [one for one in members if one.modality in _MASKS]
        join_masks(rows.get(subject, []), masks, subject, None if pseudonyms else root, index)
    deeper = _join_files(rows, subjects, root, named, unread.volumes, index.others)
    index.notes += unread_notes(unread, root, deeper, plain=pseudonyms is not None)
    for subject in sorted(rows):
        sessions = [row for row in rows[subject] if row.images]
        for number, row in enumerate(sessions, 1):
            session = str(number) if len(sessions) > 1 else ""
            index.cases.append(Case(subject, session, images=row.images, mask=row.mask))
    if not index.cases:
        raise ReadError(
            f"{root} holds no usable scan: no DICOM series of CT, PT or MR, and no <subject>/<modality>.nii.gz"
            + describe_unused(index)
        )
    return index


def _is_usable(series: Series, subject: str, others: list[Unused]) -> bool:
    """Whether a series may become a column; if not, ``others`` takes it with the reason (masks are joined later)."""
    reason = ""
    if series.modality in _MASKS:
        return False
    if series.unusable:
        reason = series.unusable
    elif not series.is_image:
        reason = "not a volume"
    elif series.is_localizer:
        reason = "a scout"
    elif series.modality not in COLUMNS:
        reason = f"modality {series.modality or 'unknown'} is not used"
    elif unfit := why_unfit(series):
        reason = unfit
    elif series.count < _LEAST_IMAGES:
        reason = f"{series.count} images are no volume"
    if reason:
        others.append(_unused(series, subject, reason))
    return not reason


def _fill_columns(
    rows: dict[str, list[_Row]], in_folder: Counter[Path], others: list[Unused], notes: list[str]
) -> None:
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
                    reason, frames = _try_candidate(one, cell, column, row.subject)
                    if not reason:
                        best = one
                        row.images[column] = cell
                        row.chosen.append(one.series)
                        notes += _notes_of(one.series, column, row.subject)
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


def _try_candidate(candidate: Candidate, cell: Path, column: str, subject: str) -> tuple[str, int]:
    """Why a candidate cannot be read (empty if it can), and its number of frames; plain stacks are not opened."""
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


def _notes_of(series: Series, column: str, subject: str) -> list[str]:
    """What is unusual about where the files of a chosen series lie."""
    notes, folders = [], len(series.folders)
    if series.copies:
        notes.append(f"subject {subject}: {len(series.copies)} files of {column} are copies of others, and not used")
    if folders > 1:
        notes.append(f"subject {subject}: the files of {column} lie in {folders} folders, and are read as one series")
    return notes


def _folders(series: Series) -> set[Path]:
    """In which its files and their copies lie."""
    return {*series.folders, *(file.parent for file in series.copies)}


def _join_files(
    rows: dict[str, list[_Row]],
    subjects: dict[str, list[Series]],
    root: Path,
    named: Callable[[str], str],
    files: Iterable[Path],
    others: list[Unused],
) -> list[Path]:
    """Add ``root/<subject>/<modality>.nii.gz`` and ``root/<subject>/<modality>/<one file>`` to the rows.

    Returns the files that lie elsewhere.
    """
    within: dict[str, set[str]] = defaultdict(set)
    for subject, members in subjects.items():
        for one in members:
            within[top_folder(one.folder, root)].add(subject)
    places, elsewhere = _volume_files(files, root)
    for place, found in sorted(places.items()):
        folder, name = place.relative_to(root).parts
        folder = clean_name(folder)
        name = _without_ending(name) if place in found else name.lower()
        subject = named(folder)
        if subject not in subjects and len(within[folder]) == 1:
            subject = next(iter(within[folder]))
        path = found[0] if len(found) == 1 else place
        sessions = rows.get(subject, [])
        reason, known = "", name == "mask" or (is_modality_key(name) if named is str else _is_plain_key(name))
        if not known:
            reason = "its name is not a modality"
        elif len(found) > 1:
            reason = f"{len(found)} volumes where one is expected"
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
    return elsewhere


def _is_plain_key(name: str) -> bool:
    """True for a known key, alone or with the name of a known sequence behind it: no other text of a file's name."""
    key, _, sequence = name.partition("_")
    return key in MODALITIES and sequence in ("", *SEQUENCES)


def _volume_files(files: Iterable[Path], root: Path) -> tuple[dict[Path, list[Path]], list[Path]]:
    """The files at each place below a subject's folder, which is the file itself or the folder that holds it, and those
    that lie elsewhere. Of a pair the header counts."""
    places: dict[Path, list[Path]] = defaultdict(list)
    elsewhere = []
    for path in files:
        depth = len(path.relative_to(root).parts)
        header = pair_of(path)[0]
        if header != path and is_there(header):
            continue
        if depth in (2, 3):
            places[path if depth == 2 else path.parent].append(path)
        else:
            elsewhere.append(path)
    return places, elsewhere


def _without_ending(name: str) -> str:
    """``mr`` for ``MR.nii.gz``."""
    name = name.lower()
    return name.removesuffix(next(ending for ending in VOLUMES if name.endswith(ending)))


def _cell(candidate: Candidate, in_folder: Counter[Path]) -> Path:
    """The path that :func:`mmfusion.io.split_series` reads.

    With the UID if the folder holds more, or only a part, and with the kind of image if the series holds several.
    """
    series, folder = candidate.series, candidate.series.folder.absolute()
    alone = in_folder[series.folder] == 1 and len(series.folders) == 1
    name = ":".join(filter(None, ["" if alone else series.series_uid, candidate.image_kind]))
    return folder.with_name(f"{folder.name}#{name}") if name else folder


def _unused(series: Series, subject: str, reason: str) -> Unused:
    return Unused(subject, series.folder, series.modality, series.description, reason)
