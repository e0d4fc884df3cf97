"""The one DICOM series that is meant, among those that lie together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import ReadError
from mmfusion.files import is_there
from mmfusion.io.dates import DATES
from mmfusion.io.header import settled_kind
from mmfusion.io.image_kinds import kinds_of, split_kind
from mmfusion.io.people import patient_of
from mmfusion.io.pictures import why_no_volume
from mmfusion.io.sniff import pattern_of, stands_for_slice
from mmfusion.io.spelling import folded
from mmfusion.io.tags import (
    FRAMES,
    GEOMETRY,
    IDENTITY,
    PIXELS,
    VALUES,
    claims_dicom,
    head_of,
    is_image,
    is_localizer,
    pixel_bytes,
    read_tags,
    series_name,
)
from mmfusion.io.zipped import DicomFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

_SUV_DEPENDS_ON = ("ActualFrameDuration", "SUVType", "TimezoneOffsetFromUTC")  # absent, they mean something else
_NEEDED = {*IDENTITY, *GEOMETRY, "RescaleSlope", "RescaleIntercept", *_SUV_DEPENDS_ON}
_TELLING = ("ImagePositionPatient", "ImageType", *FRAMES, "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime")
_UID = r"\d+(\.\d+)+"  # or the end of one
_Files = list[tuple[DicomFile, "Dataset"]]


def split_series(path: str | Path) -> tuple[Path, str | None]:
    """A path, and what of it is meant if it holds several things: a DICOM series, or a structure of a mask.

    ``scans/017`` is a file or folder; ``scans/017#1.2.840.113619.2.55`` is the one series of that folder with
    that SeriesInstanceUID, or the end of one; ``scans/017#water`` and ``scans/017#1.2.840.113619.2.55:water`` are its
    images of one kind (:data:`mmfusion.io.image_kinds.IMAGE_KINDS`). What exists is meant as it is, with any ``#`` in
    it; else the part behind the last ``#`` is a name if a UID stands there, or if what stands before it exists.
    """
    path = Path(path)
    before, mark, name = path.name.rpartition("#")
    if not (mark and before and name) or is_there(path):
        return path, None
    place = path.with_name(before)
    return (place, name) if names_uid(name) or is_there(place) else (path, None)


def names_uid(name: str | None) -> bool:
    """Whether the name of a series is a UID, or the end of one, with or without a kind of image behind it."""
    return bool(re.fullmatch(_UID, split_kind(name)[0] or ""))


def one_series(
    files: Iterable[DicomFile],
    where: str,
    *,
    series: str | None,
    kind: str,
    settled: bool,
    notes: list[str],
    doubts: list[str],
) -> tuple[_Files, str]:
    """The image files of the series that is meant, each object once, without localizers; and the kind of image.

    Args:
        files: what lies there, DICOM or not.
        where: what messages call the place.
        series: a SeriesInstanceUID, a description (in any case), the end of a UID, or a part of a description; what
            fits first counts. A kind of image (:func:`~mmfusion.io.image_kinds.split_kind`) that some series hold
            means these. None: the only series.
        kind: ``ct``, ``pet``, ``mr`` or empty. Among several series, the only one of this kind is meant.
        settled: convert all values at once, which takes long: those that cannot be converted are then absent, or named.
        notes: takes what was left out, and which series was chosen by its kind.
        doubts: takes what lies beside the slices and may be one.

    Raises:
        ReadError: there is no such series, or several, or it is of several people or studies; a file says that it is
            DICOM and cannot be read, or stands in place of a slice.
    """
    groups, others, not_read = _group_by_series(files, settled)
    if not groups:
        _refuse_damaged([number for number, path in not_read if claims_dicom(path)], where)
        kinds = {why_no_volume(header) or str(header.get("Modality") or "no modality") for header in others}
        modalities = f" (found {', '.join(sorted(kinds))})" if others else ""
        raise ReadError(
            f"{where} holds no DICOM image with a position{modalities}; give the folder or a file of the series"
        )
    meant, image_kind = _chosen(groups, where, series, kind, notes)
    _check_not_read(not_read, meant, where, doubts)
    _refuse_several_people(meant, where, notes)
    _refuse_several_studies(meant, where)
    if placeless := sum(_is_like(header, meant[0][1]) for header in others):
        doubts.append(f"{placeless} images of the series have no position and are left out. Export the series again.")
    once = _without_copies(meant, where)
    if len(once) < len(meant):
        notes.append(f"{len(meant) - len(once)} files are copies of others; left out")
    kept = [(path, header) for path, header in once if not is_localizer(header)]
    if kept and len(kept) < len(once):
        notes.append(f"{len(once) - len(kept)} localizer images left out")
    return kept or once, image_kind


def _refuse_several_people(files: _Files, where: str, notes: list[str]) -> None:
    """One volume is of one person. Spellings of one PatientID are one, and so are images without one.

    Raises:
        ReadError: the images have several PatientIDs.
    """
    spelled = Counter(patient_of(header) for _, header in files)
    bare = spelled.pop("", 0)
    people = len({folded(one) for one in spelled})
    if people > 1:
        raise ReadError(
            f"{where} holds images of {people} PatientIDs under one SeriesInstanceUID; one volume would be of several "
            "people. Anonymizers that give everybody the same UIDs do this: put the files of each PatientID into a "
            "folder of their own"
        )
    if len(spelled) > 1:
        notes.append(f"PatientID is spelled in {len(spelled)} ways in the series; they count as one person")
    if bare and spelled:
        notes.append(f"{bare} of {len(files)} images have no PatientID; they count as the person of the others")


def _refuse_several_studies(files: _Files, where: str) -> None:
    """One volume is of one visit, though stacks of two may continue each other. What has no study is of any.

    Raises:
        ReadError: the images have several StudyInstanceUIDs.
    """
    studies = {str(header.get("StudyInstanceUID") or "") for _, header in files} - {""}
    if len(studies) > 1:
        raise ReadError(
            f"{where} holds images of {len(studies)} studies under one SeriesInstanceUID; one volume would be of "
            "several visits. Put the files of each StudyInstanceUID into a folder of their own"
        )


def _without_copies(files: _Files, where: str) -> _Files:
    """The first of each object: a copy has its UID, and lies at its place and in its frame (UIDs may be made badly).

    Raises:
        ReadError: what seem to be copies have other pixels, seen in the first and the last of them.
    """
    uids = [str(header.get("SOPInstanceUID") or "") for _, header in files]
    times = Counter(uids)
    first: dict[tuple[str, ...], tuple[DicomFile, Dataset]] = {}
    copies: list[tuple[DicomFile, DicomFile]] = []
    for uid, (path, header) in zip(uids, files, strict=True):
        about = [str(header.get(tag)) for tag in _TELLING] if times[uid] > 1 else []
        original, _ = first.setdefault((uid, *about) if uid else (str(path),), (path, header))
        copies += [(original, path)] if original is not path else []
    if any(pixel_bytes(original) != pixel_bytes(copy) for original, copy in (*copies[:1], *copies[-1:])):
        raise ReadError(
            f"{where}: {len(copies)} files have the SOPInstanceUID and the place of others, but other pixels. If "
            "they are two scans, put each into a folder of its own"
        )
    return list(first.values())


def _group_by_series(
    files: Iterable[DicomFile], settled: bool
) -> tuple[dict[str, _Files], list[Dataset], list[tuple[int, DicomFile]]]:
    """The images by series, the headers of what else is DICOM, and with its number each file that cannot be read."""
    groups: dict[str, _Files] = {}
    others: list[Dataset] = []
    not_read: list[tuple[int, DicomFile]] = []
    for number, path in enumerate(files, 1):
        header = read_tags(path, ("PatientID", *DATES, *IDENTITY, *GEOMETRY, *VALUES, *FRAMES, *PIXELS))
        if header is None:
            not_read.append((number, path))
            continue
        if settled:
            _settle_values(header, path)
        if is_image(header):
            groups.setdefault(series_name(header), []).append((path, header))
        else:
            others.append(header)
    return groups, others, not_read


def _is_like(header: Dataset, image: Dataset) -> bool:
    """True for an image of the same series and kind as another."""
    same_kind = header.get("SOPClassUID") == image.get("SOPClassUID") and bool(header.get("Rows"))
    return same_kind and series_name(header) == series_name(image)


def _check_not_read(not_read: list[tuple[int, DicomFile]], meant: _Files, where: str, doubts: list[str]) -> None:
    """See that no file is a slice that cannot be read: it may be the first or last, which nothing else would miss.

    Raises:
        ReadError: some are, among the files of the series.
    """
    folders = {path.parent for path, _ in meant}
    patterns = {pattern_of(path.name) for path, _ in meant}
    damaged: list[int] = []
    elsewhere = unclear = 0
    for number, path in not_read:
        if path.parent not in folders:
            elsewhere += claims_dicom(path)
        elif claims_dicom(path) or (like := stands_for_slice(path.name, head_of(path), patterns)) == "yes":
            damaged.append(number)
        else:
            unclear += like == "perhaps"
    _refuse_damaged(damaged, where)
    if unclear:
        doubts.append(
            f"{unclear} files beside the slices are neither DICOM nor anything that is known, and may be slices that "
            "were lost. Copy or export them again, or take them away."
        )
    if elsewhere:
        doubts.append(
            f"{elsewhere} damaged DICOM files lie in other folders, and may be slices. Copy or export them again, or "
            "take them away."
        )


def _refuse_damaged(numbers: list[int], where: str) -> None:
    if numbers:
        raise ReadError(
            f"{where}: {len(numbers)} DICOM files are damaged, the first is number {numbers[0]} in order of name; copy "
            "or export them again, or take them away if they belong to nothing"
        )


def _settle_values(header: Dataset, path: DicomFile) -> None:
    """Convert the values, which pydicom does when they are asked for; what cannot be converted counts as absent.

    Raises:
        ReadError: it is a value that no volume can do without.
    """
    from pydicom.datadict import keyword_for_tag

    for tag in list(header.keys()):
        try:
            header[tag]
        except Exception:  # pydicom raises nearly anything on damaged values
            name = keyword_for_tag(tag)
            if name in _NEEDED:
                raise ReadError(f"{path}: {name} {tag} is damaged. Copy or export the series again") from None
            del header[tag]
    for item in header.get("RadiopharmaceuticalInformationSequence") or []:
        _settle_values(item, path)


def _chosen(
    groups: dict[str, _Files], where: str, series: str | None, kind: str, notes: list[str]
) -> tuple[_Files, str]:
    """The files of the series that is meant, and the kind of image, by the rules of :func:`one_series`."""
    name, image_kind = split_kind(series)
    holding = {uid: files for uid, files in groups.items() if image_kind and _holds(files, image_kind)}
    if image_kind and not holding and not name:  # a word of a description, then
        name, image_kind = series, ""
    candidates = _named(groups, name) if name else holding or groups
    if not candidates:
        raise ReadError(f"{where} holds no DICOM image of series '{series}', but {_listed(groups)}; name one of these")
    if len(candidates) > 1 and kind:
        fitting = {uid: files for uid, files in candidates.items() if _is_kind(files, kind)}
        if len(fitting) == 1:
            rest = {uid: files for uid, files in groups.items() if uid not in fitting}
            notes.append(f"{_listed(fitting)} is used, the only {kind}; beside it {_listed(rest)}")
            candidates = fitting
    if len(candidates) > 1:
        raise ReadError(
            f"{where} holds {len(candidates)} image series: {_listed(candidates)}. Name one by #SeriesInstanceUID "
            "behind the path, or keep each series in a folder of its own"
        )
    (chosen,) = candidates.values()
    return chosen, image_kind


def _holds(files: _Files, image_kind: str) -> bool:
    return any(image_kind in kinds_of(path, header) for path, header in files)


def _named(groups: dict[str, _Files], series: str) -> dict[str, _Files]:
    """The series that the first rule finds under this name."""
    word = series.strip().casefold()
    about = {uid: str(files[0][1].get("SeriesDescription") or "").strip().casefold() for uid, files in groups.items()}
    rules = (
        lambda uid: uid == series,
        lambda uid: about[uid] == word,
        lambda uid: uid.endswith(series),
        lambda uid: word in about[uid],
    )
    return next((found for rule in rules if (found := {uid: groups[uid] for uid in groups if rule(uid)})), {})


def _is_kind(files: _Files, kind: str) -> bool:
    first = files[0][1]
    found = settled_kind("", str(first.get("Modality", "")), files[0][0])
    return found == kind and not all(is_localizer(header) or why_no_volume(header) for _, header in files)


def _listed(groups: dict[str, _Files]) -> str:
    """What tells series apart, without their descriptions: free text may name the patient, and errors are kept."""
    texts = []
    for uid, files in sorted(groups.items()):
        header = files[0][1]
        modality, number = header.get("Modality", ""), header.get("SeriesNumber", "-")
        texts.append(f"...{uid[-8:]} {modality} number {number}, {len(files)} files")
    return "; ".join(texts)
