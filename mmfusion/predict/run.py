"""``mmfusion predict``: from raw scans to ``predictions.csv``, with nothing of the bundle executed.

Of a bundle only ``models/model.json`` and the weights are read, or ``model.onnx`` by its runtime: its YAML files can
run any code, and are never opened here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from mmfusion.files import check_folder
from mmfusion.options import OPTIONS
from mmfusion.predict.batches import CaseImages, inference_items
from mmfusion.predict.engines import load_engine
from mmfusion.predict.ensemble import joint_model, member_folders
from mmfusion.predict.predictions import predict_rows, write_predictions
from mmfusion.predict.preparing import prepare_for

Progress = Callable[[int, int, str], None]


def predict_manifest(
    folder: str | Path,
    manifest: str | Path,
    out: str | Path,
    *,
    engine: str = "eager",
    batch_size: int = 8,
    workers: int = 0,
    device: Any = "cpu",
    time_limit: int = OPTIONS["time_limit"].default,
    progress: Progress | None = None,
) -> Path:
    """Prepare raw scans as the training's were, and write their class probabilities.

    Args:
        folder: a bundle, a run folder, or a folder of ``fold_*`` runs, whose probabilities are averaged.
        manifest: table of the cases, see :func:`mmfusion.cohort.read_manifest`; or a folder of DICOM studies.
        out: the folder to write: ``predictions.csv``, ``predictions/<case>.json``, ``cohort/`` with ``qc.html``.
        engine: ``eager`` or ``onnx``, see :func:`~mmfusion.predict.load_engine`.
        batch_size: cases that the network sees at once.
        workers: processes that prepare cases; 0 means one a core.
        device: of the network, as ``cuda``; with engine ``onnx`` it is the CPU.
        time_limit: seconds for preparing one case; 0 means none.
        progress: called with (done, all, words) after each batch.

    Returns:
        The path of ``predictions.csv``.

    Raises:
        CohortError, ManifestError, OptionError: see :func:`~mmfusion.predict.prepare_for` and
            :func:`~mmfusion.predict.load_engine`; or the folds do not belong together.
        OutputError: ``out`` is not a folder of predictions, holds what is read, or cannot be written.
    """
    folders = member_folders(folder)
    check_folder(out, "prediction", reads=folders)
    members = [load_engine(one, engine, device) for one in folders]
    model = joint_model([one for one, _ in members])
    cohort = prepare_for(model, manifest, out, workers=workers, time_limit=time_limit, folder=folder)
    path = Path(out) / "predictions.csv"
    items = inference_items(model, cohort)
    loader = DataLoader(CaseImages(items, model.modalities, cohort.modalities), batch_size)
    rows = []
    for row in predict_rows(members, model, loader):
        rows.append(row)
        if progress and (len(rows) % batch_size == 0 or len(rows) == len(items)):
            progress(len(rows), len(items), "predicted")
    write_predictions(path, rows, model, "inference", cohort, each=True)
    return path
