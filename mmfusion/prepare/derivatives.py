"""The scans of a case on its grid as NIfTI, in the layout of a BIDS derivative, for FSLeyes, ITK-SNAP and Slicer.

::

    COHORT/nifti/
      dataset_description.json, README, .bidsignore
      sub-<subject>/[ses-<session>/]
        pet/  sub-001_space-ct_desc-pet_pet.nii.gz   SUVbw, float32, on the prepared grid
              sub-001_space-ct_desc-pet_pet.json     sources, transforms, options, versions
        ct/, anat/                                   the others
        anat/ sub-001_space-ct_desc-petFOV_mask.nii.gz   1 where the scanner looked; for each scan
              sub-001_space-ct_desc-roi_mask.nii.gz      the mask of the case, if it has one
        xfm/  sub-001_from-pet_to-ct_mode-image_xfm.tfm

BIDS does not name CT yet, nor MR of unknown contrast: both are listed in ``.bidsignore``.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion import __version__
from mmfusion.errors import OptionError
from mmfusion.files import temporary_path, to_disk, write_json, write_text
from mmfusion.io import kind_of, save_transform, save_volume
from mmfusion.prepare.folder import announce_files
from mmfusion.volume import PET_UNITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mmfusion.cohort import Case
    from mmfusion.prepare.case import CaseResult
    from mmfusion.volume import Volume

FOLDER = "nifti"

_SPACES = {"mni152": "MNI152NLin2009aSym"}
_CONTRASTS = {"t1": "T1w", "t1gd": "T1w", "t1ce": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw"}
_IGNORED = "**/ct\n**/xfm\n*_mr.nii.gz\n*_mr.json\n"
_README = """\
# Scans on one grid

Made by mmfusion. Each scan of a case was read once from its own voxels onto the grid of the case: CT in HU, PET in SUV
(g/mL), MR in the scanner's units. `xfm/` holds the transforms as ITK files, from the world of the grid to each scan.
Research use only.
"""


def write_dataset(out: Path) -> None:
    """Write what describes the data set as a whole into ``out``/nifti."""
    folder = out / FOLDER
    made_by = {"Name": "mmfusion", "Version": __version__, "Description": "registered and resampled onto one grid"}
    about = {
        "Name": "PET, CT and MR on one grid",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }
    write_json(about, folder / "dataset_description.json")
    write_text(_README, folder / "README")
    write_text(_IGNORED, folder / ".bidsignore")


def refuse_shared_names(cases: Iterable[Case]) -> None:
    """BIDS labels have letters and digits only, so two subjects, visits or modalities may want one.

    Raises:
        OptionError: they do, or a subject has rows with and without a session, one folder within the other.
    """
    owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    modalities: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        owners[labels_of(case)].add(case.id)
        for name in case.images:
            modalities[_plain(name)].add(name)
    for labels, ids in owners.items():
        if labels[1:] and labels[:1] in owners:
            raise OptionError(
                f"with --save-nifti, {labels[0]} has a row without a session and one with {labels[1]}; "
                "give all its rows a session in the manifest"
            )
        if len(ids) > 1:
            raise OptionError(
                f"with --save-nifti, {' and '.join(sorted(ids))} would share the BIDS name {'/'.join(labels)}, which "
                "has letters and digits only; rename one in the manifest"
            )
    _refuse_shared_modalities(modalities)


def _refuse_shared_modalities(modalities: Mapping[str, set[str]]) -> None:
    for label, names in modalities.items():
        if len(names) > 1:
            raise OptionError(
                f"with --save-nifti, columns {' and '.join(sorted(names))} would share the BIDS name {label}, which "
                "has letters and digits only; rename one in the manifest"
            )


def labels_of(case: Case) -> tuple[str, ...]:
    """``("sub-001",)`` or ``("sub-001", "ses-2")``."""
    return (f"sub-{_plain(case.subject)}", *([f"ses-{_plain(case.session)}"] if case.session else []))


def write_derivative(out: Path, case: Case, result: CaseResult, about: Mapping[str, Any]) -> list[Path]:
    """Write the NIfTI files of a case, and return their paths; files of others beside them stay.

    Args:
        out: the cohort folder.
        case: whose scans these are.
        result: with ``on_grid``.
        about: facts for every sidecar; ``sources`` by modality goes into that modality's.
    """
    labels = labels_of(case)
    temporary = temporary_path(out / FOLDER / "_".join(labels))
    space = _space(result.world)
    stem = f"{'_'.join(labels)}_space-{space}"
    sources = about.get("sources", {})
    common = {name: value for name, value in about.items() if name != "sources"}
    try:
        transforms = _write_transforms(temporary / "xfm", "_".join(labels), result)
        for name, volume in result.on_grid.items():
            kind, suffix = ("anat", "mask") if name == "mask" else _kind_and_suffix(name, volume.units)
            label = "roi" if name == "mask" else _plain(name)
            facts = {
                "Description": f"{name} on the prepared grid, one interpolation",
                "Units": volume.units,
                "SpatialReference": space,
                "SkullStripped": bool(common.get("Options", {}).get("brain_mask")),
                "Transforms": [f"xfm/{file}" for file in transforms.get(name, [])],
                **({"Type": "ROI"} if name == "mask" else {}),
                **sources.get(name, {}),
                **common,
            }
            _save(volume, temporary / kind / f"{stem}_desc-{label}_{suffix}", facts)
            if name != "mask":
                seen = volume.replace(array=result.valid[result.modalities.index(name)])
                about_it = {"Description": f"1 where {name} looked", "SpatialReference": space, "Type": "ROI"}
                _save(seen, temporary / "anat" / f"{stem}_desc-{label}FOV_mask", about_it)
        folder, written = out.joinpath(FOLDER, *labels), []
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for file in files:
            to_disk(file)
            written.append(folder / file.relative_to(temporary))
        announce_files(out, case.id, [str(file.relative_to(out)) for file in written])
        for file, final in zip(files, written, strict=True):
            final.parent.mkdir(parents=True, exist_ok=True)
            file.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _save(volume: Volume, stem: Path, facts: Mapping[str, Any]) -> None:
    save_volume(volume, f"{stem}.nii.gz")
    write_json(facts, f"{stem}.json")


def _write_transforms(folder: Path, stem: str, result: CaseResult) -> dict[str, list[str]]:
    """Write the transforms of a case; the files that a point of the grid's world passes on its way to each scan."""
    first = _space(result.reference)
    written: dict[str, list[str]] = {}
    for name, registration in result.registrations.items():
        # fixed_to_moving takes points of the fixed world to the moving one, and so images the other way round
        fixed, moving = (name, result.reference) if name == result.facts.get("template") else (result.reference, name)
        ending = "tfm" if registration.fixed_to_moving.is_linear else "h5"
        file = f"{stem}_from-{_space(moving)}_to-{_space(fixed)}_mode-image_xfm.{ending}"
        save_transform(registration.fixed_to_moving, folder / file)
        written[name] = [file]
    start = written.get(result.world, []) if _space(result.world) != first else []
    scans = (name for name in result.on_grid if name != "mask")
    return {name: [*start, *(written.get(name, []) if name != result.reference else [])] for name in scans}


def _space(world: str) -> str:
    return _SPACES.get(world, _plain(world))


def _kind_and_suffix(modality: str, units: str) -> tuple[str, str]:
    """Folder and suffix by BIDS: ``pet``, ``ct`` (a convention of ours) or the contrast of an MR."""
    if units in PET_UNITS:
        return "pet", "pet"
    if units == "HU" or kind_of(modality) == "ct":
        return "ct", "ct"
    words = modality.lower().split("_")
    return "anat", next((_CONTRASTS[word] for word in words if word in _CONTRASTS), "mr")


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text) or "unnamed"
