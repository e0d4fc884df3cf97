"""A BIDS tree (Brain Imaging Data Structure 1.10) as an index: which file of a session each column becomes.

BIDS names MR and PET. CT, which it does not name yet, and masks come in by conventions of our own, close to its
words: ``sub-X/[ses-Y/]ct/*_ct.nii.gz`` and ``derivatives/<any>/sub-X/[ses-Y/]<datatype>/*_mask.nii.gz``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.cohort.bids_tables import session_facts
from mmfusion.cohort.found import Index, Unused, describe_unused, why_first
from mmfusion.cohort.manifest import Case
from mmfusion.cohort.unread import unread_notes
from mmfusion.errors import ReadError
from mmfusion.files import is_special, is_there, read_json
from mmfusion.io import Unread, ending_of, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Row = tuple[str, str]  # subject and session, by their labels

_KINDS = {  # datatype to suffix to (column, kind)
    "anat": {
        "T1w": ("mr", "t1"),
        "T2w": ("mr", "t2"),
        "FLAIR": ("mr", "flair"),
        "PDw": ("mr", "pd"),
        "T2starw": ("mr", "t2star"),
        "UNIT1": ("mr", "unit1"),
        "angio": ("mr", "angio"),
    },
    "dwi": {"ADC": ("mr", "adc")},
    "pet": {"pet": ("pet", "")},
    "ct": {"ct": ("ct", "")},
}
_MASKS = ("_mask", "_dseg")
_VOLUMES = (".nii", ".nii.gz")
_FACTS = (".json", ".tsv", ".tsv.gz", ".bval", ".bvec")  # what BIDS has beside volumes
_OWN_FOLDERS = ("sourcedata", "code", "phenotype", "stimuli")
_NOT_FETCHED = "its content is not here; fetch it first (datalad get)"  # a link of git-annex that leads nowhere yet
_SPECIAL = "it is a pipe, a socket or a device"
_TISSUES = ("gm", "wm", "csf")  # of BIDS' common labels
_OWN_SPACES = ("orig", "individual", "t1w", "t2w", "flair", "pdw", "pet", "ct")


@dataclass(frozen=True)
class _File:
    """A volume with a BIDS name: ``sub-X[_ses-Y][_key-value ...]_suffix.nii[.gz]``."""

    path: Path
    subject: str
    session: str
    entities: dict[str, str]  # without sub and ses
    suffix: str

    @property
    def row(self) -> Row:
        return self.subject, self.session

    @property
    def datatype(self) -> str:
        return self.path.parent.name

    @property
    def label(self) -> str:
        """The name without subject, session and ending, as ``run-1_T1w``."""
        return "_".join(filter(None, [*map("-".join, self.entities.items()), self.suffix]))

    @property
    def modality(self) -> str:
        return _KINDS[self.datatype][self.suffix][0]

    @property
    def kind(self) -> str:
        """What tells volumes of one modality apart: MR sequence and contrast agent, or tracer."""
        if self.modality == "pet":
            return self.entities.get("trc", "").lower()
        contrast = "gd" if self.modality == "mr" and "ce" in self.entities else ""
        return _KINDS[self.datatype][self.suffix][1] + contrast


def is_bids(root: Path) -> bool:
    """Whether ``root`` has a ``dataset_description.json`` with a ``BIDSVersion``, or volumes at the places of BIDS.

    Raises:
        ReadError: there is such a file, but it is not JSON.
    """
    return not _lacking(root) or any(
        re.match(r"sub-[a-zA-Z0-9]+_(\w+-\w+_)*\w+\.nii(\.gz)?$", path.name)
        for visit in _visits(root)
        for path in _volumes(visit, (*_KINDS, "func"))
    )


def _lacking(root: Path) -> str:
    """What a BIDS tree lacks of its description; empty if nothing."""
    path = root / "dataset_description.json"
    if not path.is_file():
        return "there is no dataset_description.json"
    found = read_json(path, "the description of a BIDS tree")
    return "" if isinstance(found, dict) and "BIDSVersion" in found else "dataset_description.json has no BIDSVersion"


def index_bids(root: Path, *, label: str | None = None, named: Callable[[str], str] = str) -> Index:
    """Make a row of every subject and session of a BIDS tree.

    ``sub-001`` is subject ``001``, ``ses-1`` session ``1``. Columns: ``ct``, ``pet``, ``mr``. Only if some session
    holds MR of several kinds, every MR of the study goes to ``mr_t1`` (T1w), ``mr_t2`` (T2w), ``mr_flair``, ``mr_pd``,
    ``mr_t2star``, ``mr_unit1``, ``mr_angio`` or ``mr_adc``, with ``gd`` behind the kind if the name has a contrast
    agent (``ce-``). Likewise only if some session holds PET of several tracers, PET goes to ``pet_<trc>``.

    Where several files of a session want one column, the best has it: PET that is attenuation corrected (``rec-``
    without ``nac``) before not, static (without ``dyn``) before dynamic, then the name with fewest entities, lowest
    ``run-``, first name.

    The mask is the one volume in ``derivatives/<any>/sub-X/[ses-Y/]{anat,pet,ct}/`` that ends in ``_mask`` or
    ``_dseg`` and lies in the space of the subject's scans (no ``space-``, or one that is named as a scan is); one
    with ``label-`` comes before others. Two that are equally good are both left out, and so are masks of the brain
    (``desc-brain``) and of tissues (``label-GM``, ``-WM``, ``-CSF``).

    Args:
        root: the folder that holds ``dataset_description.json``, absolute.
        label: the column of ``participants.tsv`` or of the subjects' ``sessions.tsv`` that holds the class;
            ``label``, where there is one, if None.
        named: gives the name that a subject has in the index.

    Raises:
        ReadError: there is no usable volume, or a table or its JSON cannot be read.
        ManifestError: a table has no such column, or names a subject or session twice.
    """
    index = Index()
    if lacking := _lacking(root):
        index.notes.append(f"{lacking}; folders and files are named as in BIDS, and read by its rules")
    rows: dict[Row, list[_File]] = defaultdict(list)
    for visit in _visits(root):
        _list_the_rest(visit, index.others)
        for path in _volumes(visit, _KINDS):
            file, reason = _scan(path, _owner(visit))
            if reason:
                index.others.append(_unused(file, reason))
            else:
                rows[file.row].append(file)
    index.notes += _rest(root, plain=named is not str)
    if not rows:
        raise ReadError(
            f"{root} is a BIDS tree without a usable scan: no volume in sub-*/[ses-*/] anat, pet or ct"
            + describe_unused(index)
        )
    images = _columns(rows, index.others)
    masks = _masks(root, list(rows), index.others)
    facts = session_facts(root, list(rows), label, index.notes, named)
    cases = [Case(named(row[0]), row[1], images=images[row], mask=masks.get(row), **facts[row]) for row in rows]
    index.cases = sorted(cases, key=lambda case: (case.subject, case.session))
    index.others = [replace(one, subject=named(one.subject)) for one in index.others]
    return index


def _visits(root: Path) -> Iterator[Path]:
    """The folders of all subjects, each followed by those of its sessions."""
    for subject in _folders(root, "sub-"):
        yield from [subject, *_folders(subject, "ses-")]


def _folders(folder: Path, prefix: str) -> list[Path]:
    return [path for path in _inside(folder) if path.name.startswith(prefix) and is_there(path, Path.is_dir)]


def _volumes(visit: Path, datatypes: Iterable[str]) -> Iterator[Path]:
    for name in datatypes:
        yield from (path for path in _inside(visit / name) if path.name.endswith(_VOLUMES))


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder, in order; nothing if it is not there, or may not be read (:func:`_rest` says so)."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return []


def _rest(root: Path, *, plain: bool) -> list[str]:
    """Notes on files that no rule of BIDS looks at, by their places; ``plain`` hides names that are not of BIDS."""
    unread, beside = Unread(), Counter[str]()
    for path in walk(root, unread):
        top, *below = path.relative_to(root).parts
        if top.startswith("sub-") and (path.name.startswith("._") or not path.name.endswith((*_VOLUMES, *_FACTS))):
            unread.endings["._" if path.name.startswith("._") else ending_of(path.name)] += 1
        elif not top.startswith(("sub-", "derivatives")) and (below or path.name.endswith(_VOLUMES)):
            beside[top if below and (top in _OWN_FOLDERS or not plain) else "other places"] += 1
    notes = unread_notes(unread, root, [], plain=plain)
    if beside:
        counts = (f"{name} ({count} files)" for name, count in sorted(beside.items()))
        notes.append(f"not looked into: {', '.join(counts)}")
    return notes


def _list_the_rest(visit: Path, others: list[Unused]) -> None:
    """Folders of datatypes that are not used, and volumes beside them."""
    subject = _owner(visit)[0]
    for folder in _folders(visit, ""):
        if folder.name not in _KINDS and not folder.name.startswith("ses-"):
            others.append(Unused(subject, folder, "", "", "its datatype is not used"))
    for path in _volumes(visit, [""]):
        others.append(Unused(subject, path, "", "", "it lies in no folder of a datatype"))


def _owner(visit: Path) -> Row:
    """Subject and session by the names of the folders."""
    if visit.name.startswith("ses-"):
        return visit.parent.name.removeprefix("sub-"), visit.name.removeprefix("ses-")
    return visit.name.removeprefix("sub-"), ""


def _named_file(path: Path, owner: Row) -> tuple[_File, str]:
    """A volume by its name, and why the name cannot be believed (empty if it can)."""
    *pairs, suffix = path.name.removesuffix(".gz").removesuffix(".nii").split("_")
    if not all(re.fullmatch(r"[a-zA-Z0-9]+-[a-zA-Z0-9+]+", pair) for pair in pairs):
        return _File(path, *owner, {}, ""), "its name is not one of BIDS"
    entities = dict(pair.split("-") for pair in pairs)
    if (entities.pop("sub", ""), entities.pop("ses", "")) != owner:
        return _File(path, *owner, {}, ""), "its name does not say the subject and session of its folder"
    return _File(path, *owner, entities, suffix), ""


def _scan(path: Path, owner: Row) -> tuple[_File, str]:
    """A volume of a used datatype, and why it is not used (empty if it can be)."""
    file, reason = _named_file(path, owner)
    if reason:
        return file, reason
    if file.suffix not in _KINDS[file.datatype]:
        reason = f"suffix {file.suffix} is not used"
    elif file.entities.get("part", "mag") != "mag":
        reason = f"part-{file.entities['part']} is no magnitude image"
    elif "chunk" in file.entities:
        reason = f"chunk-{file.entities['chunk']} is a part of a scan; join the chunks first"
    elif not path.exists():
        reason = _NOT_FETCHED
    elif is_special(path):
        reason = _SPECIAL
    return file, reason


def _columns(rows: Mapping[Row, Sequence[_File]], others: list[Unused]) -> dict[Row, dict[str, Path]]:
    """The file of each column of each row."""
    several = {
        modality
        for files in rows.values()
        for modality in ("mr", "pet")
        if len({file.kind for file in files if file.modality == modality}) > 1
    }
    out: dict[Row, dict[str, Path]] = {}
    for row, files in rows.items():
        wanted: dict[str, list[_File]] = defaultdict(list)
        for file in files:
            column = file.modality
            wanted[f"{column}_{file.kind or 'unnamed'}" if column in several else column].append(file)
        out[row] = {}
        for column, candidates in sorted(wanted.items()):
            best, *rest = sorted(candidates, key=_rank)
            out[row][column] = best.path
            others += [_unused(file, f"{column} is {best.label!r}, {_better(best, file)}") for file in rest]
    return out


def _rank(file: _File) -> tuple[bool, bool, int, int, str]:
    """What is better comes first. PET's ``rec-`` says acstat, acdyn, nacstat or nacdyn."""
    rec, run = file.entities.get("rec", "").lower(), file.entities.get("run", "")
    return "nac" in rec, "dyn" in rec, len(file.entities), int(run) if run.isdecimal() else 0, file.path.name


def _better(best: _File, other: _File) -> str:
    words = ("which is attenuation corrected", "which is static", "which has fewer entities in its name")
    return why_first(words, _rank(best), _rank(other))


def _masks(root: Path, rows: Sequence[Row], others: list[Unused]) -> dict[Row, Path]:
    """The mask of each row, if one of its masks is better than all others."""
    found: dict[Row, list[_File]] = defaultdict(list)
    for pipeline in _folders(root / "derivatives", ""):
        for visit in _visits(pipeline):
            for path in _volumes(visit, ("anat", "pet", "ct")):
                if path.name.split(".")[0].endswith(_MASKS):
                    mask, row, reason = _mask(path, _owner(visit), rows)
                    if row is None:
                        others.append(_unused(mask, reason, "mask"))
                    else:
                        found[row].append(mask)
    out = {}
    for row, masks in found.items():
        best = [mask for mask in masks if "label" in mask.entities] or masks
        if len(best) == 1:
            out[row] = best[0].path
            reason = f"mask is {best[0].label!r}, which says with label- what it shows"
        else:
            reason = f"{len(masks)} masks where one is expected; give one of them in column mask"
        others += [_unused(mask, reason, "mask") for mask in masks if mask.path != out.get(row)]
    return out


def _mask(path: Path, owner: Row, rows: Sequence[Row]) -> tuple[_File, Row | None, str]:
    """A mask, the row it belongs to, and if it belongs to none, why."""
    mask, reason = _named_file(path, owner)
    row = _row_of(mask, rows)
    if not reason and mask.entities.get("space", "orig").lower() not in _OWN_SPACES:
        reason = f"space-{mask.entities['space']} is not that of the subject's scans"
    elif not reason and mask.entities.get("desc", "").lower() == "brain":
        reason = "desc-brain is the brain, not a lesion"
    elif not reason and mask.entities.get("label", "").lower() in _TISSUES:
        reason = f"label-{mask.entities['label']} is a tissue, not a lesion"
    elif not reason and not path.exists():
        reason = _NOT_FETCHED
    elif not reason and is_special(path):
        reason = _SPECIAL
    elif not reason and row is None:
        reason = "there is no row of its subject and session"
    return mask, None if reason else row, reason


def _row_of(mask: _File, rows: Sequence[Row]) -> Row | None:
    """The row that a mask belongs to; without a session in its name, that of a subject with one."""
    own = [row for row in rows if row[0] == mask.subject]
    if not mask.session and len(own) == 1:
        return own[0]
    return mask.row if mask.row in own else None


def _unused(file: _File, reason: str, modality: str = "") -> Unused:
    return Unused(file.subject, file.path, modality or file.datatype, file.label, reason)
