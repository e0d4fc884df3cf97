"""The files that the scans of a case are read from, and how messages name them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.io import PET_DETAILS, VOLUMES, sidecar_of, split_series, voxels_file_of, walk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmfusion.cohort.manifest import Case

_PAIRS = (".mhd", ".nhdr", ".hdr", ".img", ".hdr.gz", ".img.gz")  # two files of one stem hold a scan


def scans_of(case: Case) -> dict[str, Path]:
    """The file or folder of each scan by modality, of the mask as ``mask``, and of a label map of PET."""
    scans = {name: split_series(cell)[0] for name, cell in sorted(case.images.items())}
    region = {"reference_region": split_series(case.reference_region)[0]} if case.reference_region else {}
    return scans | ({"mask": split_series(case.mask)[0]} if case.mask else {}) | region


def with_region(case: Case, suvr: str | None) -> Case:
    """The case with the reference region that the option ``suvr`` means: that of its row, or else of the option.

    ``FILE#LABEL`` may have ``{subject}`` and ``{session}`` in it; ``manifest`` means the rows alone.
    """
    if suvr is None or suvr == "manifest" or case.reference_region:
        return case if suvr else replace(case, reference_region=None)
    path = suvr.replace("{subject}", case.subject).replace("{session}", case.session)
    return replace(case, reference_region=Path(path).absolute())


def region_of(case: Case, suvr: str | None) -> str | None:
    """The ``suvr`` of :func:`mmfusion.io.load_volume` for a case of :func:`with_region`.

    Where the rows alone are to say it and this one does not, that is ``manifest``, which is refused when PET is read.
    """
    return str(case.reference_region) if suvr and case.reference_region else suvr


def pet_details(case: Case) -> dict[str, str]:
    """What the row says of the PET scan, by the names of :data:`mmfusion.io.PET_DETAILS`."""
    return {name: case.covariates[name] for name in PET_DETAILS if case.covariates.get(name)}


def inputs_of(cases: Iterable[Case]) -> tuple[list[Path], list[Path]]:
    """What the scans of cases are read from; and of these the folders whose every file may belong to a scan, as those
    of DICOM series."""
    reads, series = [], []
    for case in cases:
        for path in scans_of(case).values():
            reads.append(path)
            if path.is_dir():
                series.append(path)
    return reads, series


def files_of(path: Path) -> list[Path]:
    """What a scan is read from: a header brings its voxels, a sidecar its facts, a DICOM slice all of its folder."""
    candidates: Iterable[Path] = [path, sidecar_of(path)]
    if path.is_dir():
        candidates = walk(path)
    elif path.name.lower().endswith(_PAIRS):
        named = {voxels_file_of(path)} if path.suffix.lower() in (".mhd", ".nhdr") else set()
        candidates = {*path.parent.glob(f"{escape(_stem(path))}.*"), *named}
    elif not path.name.lower().endswith(VOLUMES):
        candidates = path.parent.iterdir()
    with suppress(OSError):  # a folder that is gone
        return sorted(file for file in candidates if file.is_file() or file == path)
    return [path]


def _stem(path: Path) -> str:
    """The name without its ending, and without the one of its packing."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def is_scan_file(path: Path) -> bool:
    """Whether a file is a volume by its name, or DICOM (a DICOMDIR, too) by its content."""
    if path.name.lower().endswith(VOLUMES):
        return True
    with suppress(OSError):
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as stream:
                return stream.read(132)[128:] == b"DICM"
    return False


def without_paths(message: str, case: Case) -> str:
    """The message with the files of a case named by modality and number: paths and names may hold a patient's."""
    known: dict[str, str] = {}
    if not message:
        return message
    for name, path in scans_of(case).items():
        files = files_of(path)
        for n, file in enumerate(files, 1):
            called = name if len(files) == 1 or file == path else f"{name} (file {n} of {len(files)} by name)"
            known |= {str(file): called, str(file.absolute()): called}
            if re.search(r"[A-Za-z]", file.name) and re.search(r"[\d._]", file.name):  # not a word of the message
                known[file.name] = called
        known |= {str(place): name for place in (path, path.absolute(), path.absolute().parent)}
    before = "|".join(f"{re.escape(name)} (?:file )?" for name in scans_of(case)) + "|folder "
    there = [text for text in known if text in message]  # a search for each of some hundred names takes long
    for text in sorted(there, key=len, reverse=True):  # a path before those that begin like it
        pattern = rf"(?:\b(?:{before}))?(?<![\w.-]){re.escape(text)}(?![\w-])(?:/[^\s:;,'\"]*)?"
        message = re.sub(pattern, known[text].replace("\\", r"\\"), message)
    return message
