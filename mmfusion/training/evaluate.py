"""From a finished run to its numbers: predictions of one part of the split, metrics with intervals, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmfusion.errors import OptionError
from mmfusion.files import RunFolder
from mmfusion.report import write_report
from mmfusion.training.cross_validation import evaluate_folds, predict_part
from mmfusion.training.distributed import own_device
from mmfusion.training.engine import start
from mmfusion.training.metrics import write_metrics


def evaluate(
    run: str | Path,
    *,
    part: str = "test",
    batch_size: int = 8,
    resamples: int = 2000,
    seed: int = 0,
    case_control: bool = False,
    device: Any = None,
    threads: int = 0,
    loaders: int = 0,
) -> dict[str, Any]:
    """Predict one part of a run's split; write ``predictions.csv``, ``metrics.json`` and ``report.html`` into it.

    Of a cross-validation each fold is predicted by the model that was trained without it; its numbers go into the
    fold's run, those of all folds together into ``run``.

    Args:
        run: a run folder, or the folder of the folds of a cross-validation.
        part: ``train``, ``validation`` or ``test``; of folds always the test.
        batch_size: cases at a time.
        resamples, seed: of the bootstrap.
        case_control: subjects were chosen by their label, see :func:`mmfusion.training.write_metrics`.
        device: to run on; a GPU if there is one, else the CPU, if None.
        threads: CPU threads of torch; 0 leaves torch's own choice.
        loaders: processes that load batches.

    Returns:
        What is in ``metrics.json``, see :func:`mmfusion.training.write_metrics`.

    Raises:
        CohortError: no finished run, or its cohort has changed; of folds see :func:`mmfusion.predict.fold_runs`.
        ReadError: a file of the run is damaged.
    """
    run, device = Path(run), own_device() if device is None else torch.device(device)
    start(seed, threads)
    bootstrap: dict[str, Any] = {"resamples": resamples, "seed": seed, "case_control": case_control}
    if RunFolder(run).folds():
        if part != "test":
            raise OptionError(
                f"{run} holds the folds of a cross-validation, of which the test is evaluated, not {part}"
            )
        metrics = evaluate_folds(run, batch_size=batch_size, device=device, loaders=loaders, **bootstrap)
    else:
        predict_part(run, part, batch_size=batch_size, device=device, loaders=loaders)
        metrics = write_metrics(run, **bootstrap)
    write_report(run)
    return metrics
