"""Predictions: logits to calibrated probabilities, and the files that hold them.

``predictions.csv`` is :class:`mmfusion.files.Predictions`; ``predictions/<case>.json`` says the same of one case, and
what preparing measured.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import entr

from mmfusion.errors import MmfusionError
from mmfusion.evaluation import prior_correction
from mmfusion.files import Predictions, read_fields, write_json
from mmfusion.predict.batches import Inputs, run_cases
from mmfusion.predict.ensemble import own_covariates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mmfusion.predict.engines import Engine
    from mmfusion.predict.model import Model
    from mmfusion.prepare import Cohort


def prior_shift(model: Model) -> np.ndarray:
    """``[K]`` what logits need added to be corrected as :func:`mmfusion.evaluation.prior_correction` corrects."""
    undecided = np.ones((1, len(model.classes)))
    return np.log(prior_correction(undecided, np.array(model.training_prior), np.array(model.target_prior)))[0]


def probabilities(logits: torch.Tensor, model: Model) -> np.ndarray:
    """``[B, K]`` logits to ``[B, K]`` calibrated class probabilities at the prior of the training subjects."""
    shares = torch.softmax(logits.detach().double().cpu() / model.temperature, -1).numpy()
    return prior_correction(shares, np.array(model.training_prior), np.array(model.target_prior))


def uncertainty(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure the mean of several models is, in nats.

    Args:
        members: probabilities ``[S, B, K]`` of S models, or of S samples of one.

    Returns:
        ``[B]`` entropy of the mean, and the part of it that the members' disagreement makes (mutual information;
        Depeweg et al., ICML 2018), 0 for a single one.
    """
    mean = members.mean(0)
    entropy = entr(mean).sum(1)
    return entropy, np.maximum(entropy - entr(members).sum(2).mean(0), 0.0)


def infer(network: torch.nn.Module, loader: Iterable[Mapping[str, Any]], device: Any = "cpu") -> torch.Tensor:
    """``[N, K]`` logits of all cases of a loader, in its order."""
    network.eval()
    return torch.cat([logits.float().cpu() for _, logits in run_cases(lambda given: network(*given), loader, device)])


def predict_rows(
    members: Sequence[tuple[Model, Engine]], model: Model, loader: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The rows of ``predictions.csv`` for the cases of a loader, in its order.

    Args:
        members: the models of an ensemble, or the one model, each with what answers for it.
        model: what the members have in common.
        loader: batches of cases, on the CPU.
    """

    spans = own_covariates([about for about, _ in members])

    def shares(given: Inputs) -> np.ndarray:
        image, present, known = given
        return np.stack(
            [
                probabilities(answer(image, present, None if known is None else known[:, own]), about)
                for (about, answer), own in zip(members, spans, strict=True)
            ]
        )

    for batch, each in run_cases(shares, loader):
        yield from prediction_rows(batch, each, model)


class PredictionsHandler:
    """Collects what a MONAI evaluator predicts and writes ``predictions.csv`` when its epoch ends.

    Args:
        path: the file to write.
        model: gives classes, prior and threshold.
        part: text for the column ``part``.
        cohort: adds the status of its cases, and a row for each of those without a prediction.
        each: also write ``predictions/<case>.json``.
        members: the models of MONAI's ``EnsembleEvaluator``, in the order of its networks.
    """

    def __init__(
        self,
        path: str | Path,
        model: Model,
        part: str = "",
        cohort: Cohort | None = None,
        each: bool = False,
        members: Sequence[Model] = (),
    ) -> None:
        self.path, self.model, self.part, self.cohort, self.each = Path(path), model, part, cohort, each
        self.answers = {f"pred_{number}": one for number, one in enumerate(members)} or {"pred": model}
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator (called by MONAI)."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def _start(self, _: Any) -> None:
        self.rows = []

    def _collect(self, engine: Any) -> None:
        shares = [probabilities(engine.state.output[name], one) for name, one in self.answers.items()]
        self.rows += prediction_rows(engine.state.batch, np.stack(shares), self.model)

    def write(self, _: Any = None) -> None:
        """Write what was collected (called by ignite; and where there is nothing to evaluate, as every case failed)."""
        write_predictions(self.path, self.rows, self.model, self.part, self.cohort, each=self.each)


def prediction_rows(batch: Mapping[str, Any], members: np.ndarray, model: Model) -> list[dict[str, Any]]:
    """A row of ``predictions.csv`` for each case of a batch.

    Args:
        batch: lists ``case``, ``subject``, ``session``, ``modalities``; and ``label [B]`` where it is known.
        members: probabilities ``[S, B, K]`` of each model of an ensemble; their mean is the prediction.
        model: gives classes and threshold.
    """
    shares, (entropy, epistemic), rows = members.mean(0), uncertainty(members), []
    labels = batch["label"].tolist() if "label" in batch else [None] * len(shares)
    for row, label in enumerate(labels):
        facts = {name: batch[name][row] for name in ("case", "subject", "session", "modalities")}
        known = "" if label is None else model.classes[label]
        sure = {
            "entropy": round(float(entropy[row]), 6),
            "epistemic": round(float(epistemic[row]), 6) if len(members) > 1 else "",
        }
        rows.append({**facts, "label": known} | _outcome(shares[row], model) | sure)
    return rows


def decide(shares: np.ndarray, model: Model) -> str:
    """The class that ``[K]`` probabilities are for: by the model's threshold if it has one, else the most probable."""
    if model.threshold is not None:
        return model.classes[int(shares[-1] >= model.threshold)]
    return model.classes[int(shares.argmax())]


def _outcome(shares: np.ndarray, model: Model) -> dict[str, Any]:
    columns = {f"p_{name}": round(float(share), 6) for name, share in zip(model.classes, shares, strict=True)}
    return {**columns, "predicted": decide(shares, model)}


def write_predictions(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    model: Model,
    part: str = "",
    cohort: Cohort | None = None,
    *,
    each: bool = False,
) -> None:
    """Write ``predictions.csv``; with ``cohort``, every case of it, those without a prediction too.

    With ``each``, also ``predictions/<case>.json`` beside it, in place of those of an earlier call.
    """
    out = [{**row, "part": part} for row in rows]
    prepared: dict[str, Mapping[str, Any]] = {}
    if cohort is not None:
        prepared = {row["case"]: row for row in cohort.rows}
        for row in out:
            row |= {name: prepared[row["case"]][name] for name in ("label", "status", "reasons")}
        predicted = {row["case"] for row in out}
        for left in (row for name, row in prepared.items() if name not in predicted):
            why = left["reasons"] if left["status"] == "failed" else f"has none of {', '.join(model.modalities)}"
            out.append({**left, "part": part, "modalities": "", "reasons": why})
    for row in out:
        row["model"] = model.weights
    if each:
        folder = path.with_suffix("")
        names = {f"{row['case']}.json" for row in out}
        for file in folder.glob("*.json"):  # of an earlier call; those of others stay
            if file.name not in names and _is_prediction_of(file.stem, file):
                file.unlink()
        for row in out:
            write_json(_as_json(row, prepared.get(row["case"], {}), model), folder / f"{row['case']}.json")
    Predictions.write(path, out, model.classes)  # last: it names the others


def _is_prediction_of(case: str, file: Path) -> bool:
    """Whether a file is what :func:`write_predictions` wrote of a case."""
    with suppress(MmfusionError):
        fields = read_fields(file, "a prediction")
        return fields.get("case") == case and {"probabilities", "preparation", "notice"} <= fields.keys()
    return False


def _as_json(row: Mapping[str, Any], prepared: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """One case for other programs: its prediction, and what preparing found."""
    used, done = row["modalities"].split(), bool(row.get("predicted"))
    measured = {
        name: {key.removeprefix(f"{name}_"): value for key, value in prepared.items() if key.startswith(f"{name}_")}
        for name in model.case["modalities"]
    }
    return {
        "case": row["case"],
        "subject": row["subject"],
        "session": row["session"],
        "probabilities": {name: row[f"p_{name}"] for name in model.classes} if done else None,
        "predicted": row["predicted"] if done else None,
        "threshold": model.threshold,
        "uncertainty": {name: row[name] if row[name] != "" else None for name in ("entropy", "epistemic")}
        if done
        else None,
        "modalities_used": used,
        "modalities_absent": [name for name in model.modalities if name not in used],
        "preparation": {
            "status": row.get("status", ""),
            "reasons": [reason for reason in str(row.get("reasons", "")).split(" | ") if reason],
            "reference": prepared.get("reference", ""),
            "modalities": {name: facts for name, facts in measured.items() if any(facts.values())},
        },
        "model": model.weights,
        "notice": model.notice,
    }
