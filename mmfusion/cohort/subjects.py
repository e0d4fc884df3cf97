"""The subject of each DICOM series: by PatientID, by study, by folders."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from mmfusion.cohort.manifest import MODALITIES
from mmfusion.errors import OptionError, few
from mmfusion.io import SPELLING_DIFFERENCES, clean_name, folded, names_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mmfusion.io import Series

_Item = TypeVar("_Item")
_Parts = tuple[str, ...]  # names of the folders between the root and a series

_KINDS = {*MODALITIES, "pt", "mri", "nm", "dicom", "dcm", "images", "scans"}
_SURELY_VISIT = re.compile(r"(ses|session|visit|timepoint|baseline|follow.?up)[ ._-]*\d*", re.IGNORECASE)
_VISIT = re.compile(
    rf"{_SURELY_VISIT.pattern}|(v|tp|t|time|scan|st|std|study|exam|day|week|month|year|bl|fu|pre|post)[ ._-]*\d*"
    r"|\d{4}[._-]?\d\d[._-]?\d\d.*|\d\d[._-]\d\d[._-]\d{4}.*"  # a date
    r"|\d+(\.\d+){3,}",  # a UID
    re.IGNORECASE,
)
REMEDY = "--subject-from chooses otherwise: PatientID, folder, or a pattern of folders such as '*/{subject}'"


def by_subject(
    series: Sequence[Series],
    root: Path,
    *,
    subject_from: str | None,
    named: Callable[[str], str],
    notes: list[str],
) -> dict[str, list[Series]]:
    """Subject to its series, sorted, by the rule of :func:`~mmfusion.cohort.tree.index_tree`.

    Args:
        series: what was found.
        root: the folder that was walked.
        subject_from: ``PatientID``, ``folder``, a pattern with ``{subject}``, or None.
        named: gives the name of a subject in the index; where it is not ``str``, notes hold no identifier or folder.
        notes: takes what was decided.

    Raises:
        OptionError: ``subject_from`` is none of these, or a pattern that no folder fits.
    """
    show = named is str
    if subject_from is None or subject_from.lower() == "patientid":
        owners = _by_patient(series, root, named, show, notes, any_identifier=subject_from is not None)
    else:
        owners = _by_folder(series, root, subject_from, notes)
    out: dict[str, list[Series]] = defaultdict(list)
    for one, owner in zip(series, owners, strict=True):
        if owner:
            out[named(owner)].append(one)
    return dict(sorted(out.items()))


def top_folder(folder: Path, root: Path) -> str:
    """The name of the folder directly under ``root`` that holds ``folder``; empty for ``root`` itself."""
    return next(iter(_parts(folder, root)), "")


def sharing_uid(series: Sequence[Series]) -> set[Series]:
    """The series that are read together with files of another person or study under the same SeriesInstanceUID.

    They lie in one folder, or below the folder that holds a series of several folders.
    """
    owners: dict[str, dict[Path, set[tuple[str, str]]]] = defaultdict(lambda: defaultdict(set))
    for one in series:
        for folder in one.folders:
            owners[one.series_uid][folder].add((one.patient_id, one.study_uid))
    sharing = set()
    for one in series:
        owners_by_folder = owners[one.series_uid]
        alone = len(one.folders) == 1
        read = one.folders if alone else [folder for folder in owners_by_folder if folder.is_relative_to(one.folder)]
        if len(set().union(*(owners_by_folder[folder] for folder in read))) > 1:
            sharing.add(one)
    return sharing


def _parts(folder: Path, root: Path) -> _Parts:
    return tuple(map(clean_name, folder.absolute().relative_to(root).parts))


def _by_folder(series: Sequence[Series], root: Path, how: str, notes: list[str]) -> list[str]:
    """The subject of each series by its folder; empty if it does not fit the pattern."""
    if how.lower() == "folder":
        owners = [top_folder(one.folder, root) or root.name for one in series]
    else:
        pattern = _pattern(how)
        fits = [pattern.match("/".join(_parts(one.folder, root)) + "/") for one in series]
        owners = [match["subject"] if match else "" for match in fits]
        if series and not any(owners):
            raise OptionError(
                f"no folder with scans fits --subject-from {how}; it is compared with the folders below {root}, "
                "one name or * for each level"
            )
        if left := owners.count(""):
            notes.append(f"{left} series are left out: their folders do not fit --subject-from {how}")
    studies: dict[str, set[str]] = defaultdict(set)
    for one, owner in zip(series, owners, strict=True):
        if owner and one.study_uid:
            studies[one.study_uid].add(owner)
    if divided := sum(len(found) > 1 for found in studies.values()):
        notes.append(f"--subject-from {how} gives the series of {divided} studies to several subjects each; look again")
    return owners


def _pattern(text: str) -> re.Pattern[str]:
    """The pattern as a regular expression for the path below the root, with a slash behind each folder.

    Raises:
        OptionError: it does not hold ``{subject}`` once.
    """
    if text.count("{subject}") != 1:
        raise OptionError(
            f"--subject-from takes PatientID, folder, or a pattern with {{subject}} once, as '*/{{subject}}'; found "
            f"'{text}'"
        )
    words = {r"\*": "[^/]*", r"\{subject\}": "(?P<subject>[^/]+)"}
    escaped = re.escape(clean_name(text).strip("/"))
    return re.compile(re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], escaped) + "/")


def _by_patient(
    series: Sequence[Series],
    root: Path,
    named: Callable[[str], str],
    show: bool,
    notes: list[str],
    *,
    any_identifier: bool,
) -> list[str]:
    """The subject of each series by PatientID, and by study and folder where there is none.

    ``any_identifier``: an identifier such as ANONYMOUS is one, whatever it stands for.
    """
    spelled = _spellings(series, named, show, notes)
    owners = [spelled.get(one.patient_id, "") for one in series]
    studies: dict[str, set[str]] = defaultdict(set)
    for one, owner in zip(series, owners, strict=True):
        studies[owner].add(one.study_uid)
    repeated = _repeated_studies(series)
    nobody = {one for one, found in studies.items() if names_nobody(one) and (len(found) > 1 or found & repeated)}
    owners = ["" if owner in nobody and not any_identifier else owner for owner in owners]
    _join_by_study(series, owners, named, notes)
    _name_by_folder(series, owners, root, named, show, notes)
    _note_several_folders(series, owners, root, named, show, notes)
    return owners


def _spellings(series: Sequence[Series], named: Callable[[str], str], show: bool, notes: list[str]) -> dict[str, str]:
    """Each PatientID to the spelling that counts: spellings within one study are of one person, the most common one."""
    count: Counter[str] = Counter()
    keys: dict[str, set[Hashable]] = defaultdict(set)
    people: dict[str, set[str]] = defaultdict(set)
    shared_studies = _repeated_studies(series) | {""}
    for one in series:
        count[one.patient_id] += 1
        people[one.series_uid] |= {folded(one.patient_id)} - {""}
        for spelling in one.spellings:
            place = one.folder if one.study_uid in shared_studies else one.study_uid
            keys[spelling] |= {(place, folded(spelling))}
    spelled: dict[str, str] = {}
    for members in _grouped_by_key(keys):
        best = min(members, key=lambda one: (-count[one], one))
        spelled |= dict.fromkeys(members, best)
        if len(members) > 1:
            which = f" ({', '.join(map(repr, sorted(members)))})" if show else ""
            notes.append(
                f"subject {named(best)}: one study has its PatientID in {len(members)} spellings{which}; they count as "
                "one person"
            )
    alike: dict[str, list[str]] = defaultdict(list)
    for best in sorted(one for one in set(spelled.values()) if not names_nobody(one)):
        alike[folded(best)].append(named(best))
    for names in alike.values():
        if len(names) > 1:
            notes.append(
                f"subjects {' and '.join(names)} may be one person: their PatientIDs differ {SPELLING_DIFFERENCES}; if "
                "so, give them one subject in the manifest"
            )
    if shared := sum(len(found) > 1 for found in people.values()):
        notes.append(f"{shared} SeriesInstanceUIDs are of several PatientIDs each; the PatientID is the subject")
    return spelled


def _join_by_study(series: Sequence[Series], owners: list[str], named: Callable[[str], str], notes: list[str]) -> None:
    """Give series without an owner to the one of their study, if it has one."""
    known: dict[str, set[str]] = defaultdict(set)
    shared_studies = _repeated_studies(series) | {""}
    for one, owner in zip(series, owners, strict=True):
        if owner and one.study_uid not in shared_studies:
            known[one.study_uid].add(owner)
    joined: Counter[str] = Counter()
    for n, one in enumerate(series):
        if not owners[n] and len(known[one.study_uid]) == 1:
            owners[n] = next(iter(known[one.study_uid]))
            joined[owners[n]] += 1
    notes += [
        f"{count} series without PatientID are of subject {named(owner)}, as others of their study"
        for owner, count in sorted(joined.items())
    ]


def _name_by_folder(
    series: Sequence[Series], owners: list[str], root: Path, named: Callable[[str], str], show: bool, notes: list[str]
) -> None:
    """Give series without an owner one by the names of folders; those of one study have one."""
    bare = [n for n, owner in enumerate(owners) if not owner]
    if not bare:
        return
    frames = _personal_frames([series[n] for n in bare])
    repeated = _repeated_studies([series[n] for n in bare]) | {""}
    keys: dict[int, set[Hashable]] = {}
    for n in bare:
        one = series[n]
        keys[n] = {("folder", one.folder) if one.study_uid in repeated else ("study", one.study_uid)}
        keys[n] |= set() if one.study_uid in repeated else {("frame", one.frame_of_reference)} & frames
    groups = _grouped_by_key(keys)
    names = _folder_names([[_parts(series[n].folder, root) for n in group] for group in groups], root.name)
    scattered = set()
    for group, name in zip(groups, names, strict=True):
        for n in group:
            owners[n] = name
        if _scattered([series[n] for n in group], root):
            scattered.add(named(name))
    which = few(sorted({named(owners[n]) for n in bare}), most=5)
    level, owner = min(("/".join(_parts(series[n].folder, root)) or ".", owners[n]) for n in bare)
    example = f" ({level} is of {owner})" if show else ""
    none = "a PatientID that names nobody" if any(series[n].patient_id for n in bare) else "no PatientID"
    notes.append(
        f"{len(bare)} series of {which} have {none}: those of one study are one subject, named by its folder{example}. "
        f"{REMEDY}"
    )
    if scattered:
        notes.append(
            f"one study of {few(sorted(scattered), most=5)} has the same modality in several folders; if these are "
            "several people with one study UID, --subject-from folder tells them apart"
        )


def _scattered(series: Sequence[Series], root: Path) -> bool:
    """Whether several of the folders that divide a study hold the same modality."""
    paths = [(_parts(one.folder, root), one.modality) for one in series if one.is_image]
    levels = (
        d for d in range(max((len(path) for path, _ in paths), default=0)) if len({p[: d + 1] for p, _ in paths}) > 1
    )
    branches = {(path[: depth + 1], kind) for depth in [next(levels, 0)] for path, kind in paths}
    return max(Counter(kind for _, kind in branches).values(), default=0) > 1


def _repeated_studies(series: Iterable[Series]) -> set[str]:
    """The studies with a SeriesInstanceUID that occurs twice: several people were given the same UIDs."""
    times = Counter((one.study_uid, one.series_uid) for one in series)
    return {study for (study, _), count in times.items() if count > 1}


def _personal_frames(series: Iterable[Series]) -> set[Hashable]:
    """The frames of reference that join studies of one person: each modality is in one of the studies that share it."""
    kinds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one in series:
        if one.is_image and one.frame_of_reference:
            kinds[one.frame_of_reference][one.study_uid].add(one.modality)
    return {
        ("frame", frame)
        for frame, studies in kinds.items()
        if max(Counter(chain.from_iterable(studies.values())).values()) == 1
    }


def _folder_names(groups: Sequence[Sequence[_Parts]], root: str) -> list[str]:
    """A name for each group of paths: of the folder that is the person's, as far as folders tell.

    Levels at which one group has several names (``CT/p1`` and ``PET/p1``, or ``p1/ct`` and ``p1/pet``) are of series,
    and so are names of modalities; names such as ``visit2`` or dates (which may be people's, if nothing else is) of
    visits. The deepest of the other levels is the person's (``site/p1``), with those above it where a name occurs under
    several of them.
    """
    own = [{d for d in range(max(map(len, paths))) if len({path[d : d + 1] for path in paths}) > 1} for paths in groups]
    usual = Counter(frozenset(levels) for levels in own if levels).most_common(1)
    kept: list[_Parts] = []
    for paths, levels in zip(groups, own, strict=True):
        dropped = levels or (usual[0][0] if usual and len(set(paths)) == 1 else frozenset())
        names = tuple(name for d, name in enumerate(paths[0]) if d not in dropped and name.lower() not in _KINDS)
        names = tuple(name for name in names if not _SURELY_VISIT.fullmatch(name))
        kept.append(tuple(name for name in names if not _VISIT.fullmatch(name)) or names[:1])
    while len(kept) > 1 and min(map(len, kept)) > 1 and len({names[-1] for names in kept}) == 1:
        kept = [names[:-1] for names in kept]  # a level that is the same for all tells nobody apart
    last = Counter(names[-1] for names in set(kept) if names)
    whole = any(count > 1 for count in last.values())
    return [("_".join(names) if whole else names[-1]) if names else root for names in kept]


def _note_several_folders(
    series: Sequence[Series],
    owners: Sequence[str],
    root: Path,
    named: Callable[[str], str],
    show: bool,
    notes: list[str],
) -> None:
    """Point out who has a study of its own in each of several folders, as when all were exported under one name."""
    folders: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for one, owner in zip(series, owners, strict=True):
        if one.patient_id and owner:
            folders[owner][top_folder(one.folder, root)].add(one.study_uid)
    for owner, found in sorted(folders.items()):
        if len(found) > 1 and max(Counter(chain.from_iterable(found.values())).values()) == 1:
            which = f" ({few(sorted(found), most=5)})" if show else ""
            notes.append(
                f"PatientID {named(owner)} is in {len(found)} folders{which} and counts as one subject; if these are "
                "several people, give --subject-from folder"
            )


def _grouped_by_key(keys: Mapping[_Item, Iterable[Hashable]]) -> list[list[_Item]]:
    """The items in groups: two that share a key are in one."""
    above: dict[Hashable, Hashable] = {}

    def highest(node: Hashable) -> Hashable:
        while (higher := above.setdefault(node, node)) != node:
            above[node] = node = above.setdefault(higher, higher)  # halves the way for the next
        return node

    for item, own in keys.items():
        for key in own:
            above[highest((item,))] = highest(key)
    groups: dict[Hashable, list[_Item]] = defaultdict(list)
    for item in keys:
        groups[highest((item,))].append(item)
    return list(groups.values())
