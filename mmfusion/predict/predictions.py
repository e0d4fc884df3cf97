"""Predictions: logits to probabilities, and the one file that holds them.

``predictions.csv`` has one row a case: case, subject, session, part, label, ``p_<class>`` for each class,
predicted, modalities (those that were used), status (done, doubtful or failed preparation) and reasons. A case
without a prediction has empty cells and a reason.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmfusion.errors import CohortError
from mmfusion.evaluation import prior_correction
from mmfusion.io import write_csv
from mmfusion.predict.batches import PrepareFusionBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmfusion.predict.model import Model
    from mmfusion.prepare import Cohort


def probabilities(logits: torch.Tensor, model: Model) -> np.ndarray:
    """``[B, K]`` logits to ``[B, K]`` class probabilities at the prior of the training subjects."""
    shares = torch.softmax(logits.detach().float().cpu(), -1).double().numpy()
    return prior_correction(shares, np.array(model.training_prior), np.array(model.target_prior))


def infer(network: torch.nn.Module, loader: Iterable[Mapping[str, Any]], device: Any = "cpu") -> torch.Tensor:
    """``[N, K]`` logits of all cases of a loader, in its order."""
    prepare, out = PrepareFusionBatch(), []
    network.eval()
    with torch.inference_mode():
        for batch in loader:
            image, _, _, extra = prepare(batch, device)
            out.append(network(image, **extra).float().cpu())
    return torch.cat(out)


class PredictionsHandler:
    """Collects what a MONAI evaluator predicts and writes ``predictions.csv`` when its epoch ends.

    Args:
        path: the file to write.
        model: gives classes, prior and threshold.
        part: text for the column ``part``.
        cohort: adds the status of its cases, and a row for each of those without a prediction.
    """

    def __init__(self, path: str | Path, model: Model, part: str = "", cohort: Cohort | None = None) -> None:
        self.path, self.model, self.part, self.cohort = Path(path), model, part, cohort
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator (called by MONAI)."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, _: Any) -> None:
        self.rows = []

    def _collect(self, engine: Any) -> None:
        batch, shares = engine.state.batch, probabilities(engine.state.output["pred"], self.model)
        names = ("case", "subject", "session", "modalities")
        labels = batch["label"].tolist() if "label" in batch else [None] * len(shares)
        for row, label in enumerate(labels):
            facts = {name: batch[name][row] for name in names}
            known = "" if label is None else self.model.classes[label]
            self.rows.append({**facts, "part": self.part, "label": known} | _outcome(shares[row], self.model))

    def _write(self, _: Any) -> None:
        write_predictions(self.path, self.rows, self.model, self.part, self.cohort)


def _outcome(shares: np.ndarray, model: Model) -> dict[str, Any]:
    if model.threshold is not None:
        predicted = int(shares[-1] >= model.threshold)
    else:
        predicted = int(shares.argmax())
    columns = {f"p_{name}": round(float(share), 6) for name, share in zip(model.classes, shares, strict=True)}
    return {**columns, "predicted": model.classes[predicted]}


def write_predictions(
    path: Path, rows: Sequence[Mapping[str, Any]], model: Model, part: str = "", cohort: Cohort | None = None
) -> None:
    """Write ``predictions.csv``; with ``cohort``, every case of it, those without a prediction too."""
    shares = [f"p_{name}" for name in model.classes]
    columns = ["case", "subject", "session", "part", "label", *shares, "predicted", "modalities", "status", "reasons"]
    out = [dict(row) for row in rows]
    if cohort is not None:
        known = {row["case"]: row for row in cohort.rows}
        for row in out:
            prepared = known.pop(row["case"])
            row |= {name: prepared[name] for name in ("label", "status", "reasons")}
        for row in known.values():
            why = row["reasons"] if row["status"] == "failed" else f"has none of {', '.join(model.modalities)}"
            out.append({**row, "part": part, "modalities": "", "reasons": why})
    write_csv(out, path, columns)


def read_predictions(path: str | Path) -> list[dict[str, str]]:
    """The rows of a ``predictions.csv``, as text, without those that have no probability.

    Raises:
        CohortError: the file is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise CohortError(f"{path.parent} has no {path.name}: run evaluate.yaml or inference.yaml first")
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["predicted"]]
