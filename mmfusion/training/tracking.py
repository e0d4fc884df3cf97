"""Tracking by MONAI's own handlers, beside ``history.csv``: what a training says of itself to TensorBoard and MLflow.

Losses and scores of each epoch, and the options; no subject and no path of a case.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from monai.handlers import MLFlowHandler, TensorBoardStatsHandler

from mmfusion.errors import OptionError
from mmfusion.training.distributed import is_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.training.study import Study


def trackers(study: Study) -> list[str]:
    """Who is told: option ``track``, in the first process alone.

    MLflow's own reports of its use, which it sends to its makers, are switched off.

    Raises:
        OptionError: a package is missing.
    """
    wanted = study.options["track"] or []
    check_trackers(wanted)
    if "mlflow" in wanted:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.telemetry import set_telemetry_client

        set_telemetry_client()  # again, as MONAI imports MLflow before anyone can say no
    return wanted if is_first() else []


def tracking_handlers(study: Study) -> list[Any]:
    """MONAI's handlers that tell the trackers the losses and scores of each epoch.

    Raises:
        OptionError: a package is missing.
    """
    names = trackers(study)
    handlers: list[Any] = []
    if "tensorboard" in names:
        handlers.append(TensorBoardStatsHandler(log_dir=str(study.run / "tensorboard"), iteration_log=False))
    if "mlflow" in names:
        handlers.append(
            MLFlowHandler(
                tracking_uri="sqlite:///" + str(study.run.resolve() / "mlruns.db"),
                experiment_name="mmfusion",
                run_name=tracked_name(study),
                experiment_param=tracked_options(study),
                iteration_log=False,
                close_on_complete=True,
            )
        )
    return handlers


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        OptionError: with the extra that brings it.
    """
    for name in names:
        if find_spec(name) is None:
            raise OptionError(f"track {name} needs the package {name}: pip install 'mmfusion[{name}]'")


def tracked_options(study: Study) -> dict[str, Any]:
    """The options of a run as MLflow's parameters, without names of files and what a second start changes."""
    options = {**study.cohort.options, **study.options, "modalities": study.modalities, "classes": study.classes}
    return {name: value for name, value in options.items() if name not in ("mr_standard", "resume", "track")}


def tracked_name(study: Study) -> str:
    """The name of a run in MLflow, by which a training that was ended goes on in it: its folder's and its options'."""
    digest = hashlib.sha256(json.dumps(tracked_options(study), sort_keys=True).encode()).hexdigest()
    return f"{study.run.resolve().name}-{digest[:8]}"
