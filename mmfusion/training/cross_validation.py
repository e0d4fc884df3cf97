"""Cross-validation: each fold is predicted by the model that was trained without it.

::

    RUN/
      fold_<number>/       a run each (see :mod:`mmfusion.training.study`), whose test part is the fold
      options.json         what the folds have in common
      split.csv            case, subject, part (test), fold
      predictions.csv      every case once, by its fold's model at its fold's threshold; the last column is the fold
      metrics.json, report.html    AUC: the mean of the folds; other metrics: of all cases; the numbers of each fold
      single/<modality>/   the same for each modality trained alone, where asked for
      ensemble/            of ensemble.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from mmfusion.errors import CohortError
from mmfusion.files import Predictions, RunFolder, clear_if_free, optional_fields, read_rows, write_csv, write_json
from mmfusion.predict import CaseImages, fold_runs, load_model, module_engine, predict_rows, write_predictions
from mmfusion.report import write_report
from mmfusion.training.metrics import write_metrics
from mmfusion.training.study import evaluation_items

if TYPE_CHECKING:
    from collections.abc import Mapping


def evaluate_folds(
    run: str | Path | None,
    *,
    batch_size: int = 8,
    resamples: int = 2000,
    seed: int = 0,
    case_control: bool = False,
    device: Any = "cpu",
    loaders: int = 0,
) -> dict[str, Any]:
    """Evaluate each fold's run by itself, then all folds together.

    Args:
        run: the folder with the runs of all folds.
        batch_size: cases at a time.
        resamples, seed: of the bootstrap.
        case_control: subjects were chosen by their label, see :func:`mmfusion.training.write_metrics`.
        device: to run on.
        loaders: processes that load batches.

    Returns:
        What is in ``metrics.json``, see :func:`mmfusion.training.write_metrics`.

    Raises:
        CohortError: see :func:`mmfusion.predict.fold_runs`; or the cohort has changed.
    """
    if run is None:
        raise CohortError("no run is given: add --run RUN, a folder with the runs of all folds")
    run = Path(str(run))
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "case_control": case_control}
    runs = fold_runs(run)
    clear_if_free(RunFolder(run).claim().path)
    for folder in runs.values():
        predict_part(folder, "test", batch_size=batch_size, device=device, loaders=loaders)
        write_metrics(folder, **options)
        write_report(folder)
    _pool(run, runs)
    return write_metrics(run, **options)


def predict_part(run: str | Path, part: str, *, batch_size: int = 8, device: Any = "cpu", loaders: int = 0) -> None:
    """Write ``predictions.csv`` of one part of a run's split.

    Raises:
        CohortError, ReadError: see :func:`mmfusion.predict.load_model` and :func:`evaluation_items`.
    """
    model, network = load_model(run)
    cohort, items = evaluation_items(run, model, part)
    loader = DataLoader(CaseImages(items, model.modalities, cohort.modalities), batch_size, num_workers=loaders)
    rows = list(predict_rows([(model, module_engine(network.to(device), device))], model, loader))
    write_predictions(RunFolder(Path(run)).predictions, rows, model, part, cohort)


def _pool(run: Path, runs: Mapping[int, Path]) -> None:
    """Write ``predictions.csv``, ``split.csv`` and ``options.json`` of all folds together, from those of each."""
    files = RunFolder(run)
    options = [optional_fields(RunFolder(folder).options) for folder in runs.values()]
    rows: list[dict[str, Any]] = []
    classes: tuple[str, ...] = ()
    split: list[dict[str, Any]] = []
    for fold, folder in runs.items():
        classes = Predictions.read(RunFolder(folder).predictions).classes
        rows += [{**row, "fold": fold} for row in read_rows(RunFolder(folder).predictions)]
        split += [row for row in read_rows(RunFolder(folder).split, "", ("case", "part")) if row["part"] == "test"]
    cohort = files.way_to(next(iter(runs.values())) / options[0]["cohort"])
    shared = {name: value for name, value in options[0].items() if all(one.get(name) == value for one in options)}
    write_json({**shared, "cohort": cohort}, files.options)
    write_csv(split, files.split)
    Predictions.write(files.predictions, rows, classes)
