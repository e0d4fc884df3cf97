"""New cases for a model: prepared as those that it was trained on, and told apart from them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import CohortError, ReadError, printable
from mmfusion.files import check_folder, claim, clear_if_free, read_rows
from mmfusion.io import folded
from mmfusion.predict.ensemble import member_folders
from mmfusion.predict.model import model_folder
from mmfusion.prepare import prepare_cohort
from mmfusion.progress import progress_line

if TYPE_CHECKING:
    from mmfusion.predict.model import Model
    from mmfusion.prepare import Cohort

_LOG = logging.getLogger(__name__)


def prepare_for(
    model: Model,
    manifest: str | Path,
    out: str | Path,
    workers: int = 0,
    time_limit: int | None = None,
    folder: str | Path | None = None,
) -> Cohort:
    """Prepare the cases of a manifest as this model's training cases were, into the folder ``out``/cohort.

    Instead of a manifest, a folder of DICOM studies or a BIDS tree will do: it is indexed to ``out``/manifest.csv.
    Modalities that the manifest lacks altogether are missing in every case.

    Args:
        model: what the cases are for.
        manifest: table of the cases, or a folder of scans.
        out: the folder of the predictions.
        workers: processes; 0 means one per core.
        time_limit: for one case, s; the default of :func:`mmfusion.prepare.prepare_cohort` if None.
        folder: where the model is from (run, bundle, or folder of folds); subjects that it was trained on are then
            warned of.

    Raises:
        CohortError: the manifest has none of the network's modalities.
        ManifestError: the manifest has problems.
        ReadError: it is neither a table nor a folder of scans.
        OutputError: ``out`` is not a folder of predictions, or holds what is read.
    """
    from mmfusion.cohort import build_index, misplaced, read_manifest
    from mmfusion.cohort.files import inputs_of

    manifest, out = Path(str(manifest)), Path(str(out))
    if words := misplaced(manifest, "manifest", "scans"):
        raise ReadError(words)
    index = build_index(manifest) if manifest.is_dir() else None
    cases = index.cases if index else read_manifest(manifest)
    reads, series = inputs_of(cases)
    check_folder(out, "prediction", reads=[manifest, *reads], series=series)
    names = {name for case in cases for name in case.images}
    if not names & set(model.modalities):
        raise CohortError(
            f"{manifest} has none of the model's modalities {', '.join(model.modalities)}; "
            f"it has {', '.join(sorted(names))}"
        )
    if folder is not None:
        _warn_of_training_subjects({case.subject for case in cases}, folder)
    usable = [name for name in model.case["modalities"] if name in names]
    reference = [name for name in model.case["reference"] if name in usable] or None
    options = {**model.case, "modalities": usable, "reference": reference, "progress": progress_line("prepared")}
    options |= {} if time_limit is None else {"time_limit": time_limit}
    options |= {"features": list(model.features)} if model.features else {}
    clear_if_free(claim(out, "prediction"), "predictions")
    if index:
        manifest = out / "manifest.csv"
        index.write(manifest)
    return prepare_cohort(manifest, out / "cohort", workers=workers, **options)


def _warn_of_training_subjects(subjects: set[str], folder: str | Path) -> None:
    """Warn where subjects are among those that a model was trained or validated on: it knows them.

    A run says who these are in its ``split.csv``; a bundle names nobody.
    """
    rows = [row for member in member_folders(folder) for row in read_rows(model_folder(member) / "split.csv")]
    known = {folded(str(row.get("subject"))) for row in rows if row.get("part") in ("train", "head", "validation")}
    if both := sorted(one for one in subjects if folded(one) in known):
        _LOG.warning(
            "%d of %d subjects were in the training or validation of this model (%s%s): what it predicts for them does "
            "not show how well it does on others",
            len(both), len(subjects), printable(", ".join(both[:5])), ", ..." if len(both) > 5 else "",
        )  # fmt: skip
