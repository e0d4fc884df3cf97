"""What a run leaves behind: the finished model with its threshold, and the metrics of its predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from mmfusion.errors import CohortError, ReadError
from mmfusion.evaluation import Estimate, choose_threshold, classification_metrics, compare, fit_temperature
from mmfusion.files import RunFolder, interpreting, optional_fields, write_json
from mmfusion.predict import (
    PrepareFusionBatch,
    infer,
    load_weights,
    prior_shift,
    probabilities,
    read_model,
    read_predictions,
    save_model,
)
from mmfusion.report.result import models_of
from mmfusion.training.distributed import by_first

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mmfusion.networks import FusionNetwork
    from mmfusion.networks.decision import DecisionRule
    from mmfusion.predict import Model
    from mmfusion.training.study import Study

_AGAIN = "evaluate the run again"


@by_first
def finish(study: Study, network: torch.nn.Module, loader: Iterable[Mapping[str, Any]], device: Any = "cpu") -> Path:
    """Load the best weights; fit decision rule and temperature on validation; write the finished model.

    Of two classes the threshold is the share of the last one among the training cases, to which the probabilities are
    corrected, or chosen on validation where ``threshold_rule`` says so.

    Args:
        study: what was trained on.
        network: the network that was trained; gets the best weights.
        loader: the validation cases, in the order of ``study.items("validation")``.
        device: to run on.

    Returns:
        The run folder, with ``model.pt`` and ``model.json``.

    Raises:
        CohortError: the best weights are not there, or damaged.
    """
    files = RunFolder(study.run)
    best = files.best
    if not best.is_file():
        raise CohortError(
            f"{study.run} has no checkpoints/best.pt: no epoch was validated. Train longer, or lower val_interval"
        )
    network.load_state_dict(load_weights(best, cast("FusionNetwork", network)))
    network.to(device)
    rule = cast("DecisionRule | None", getattr(network, "rule", None))
    if rule is not None and rule.learns:
        rule.fit(*voices(cast("FusionNetwork", network), loader, device), study.class_weight)
    labels, logits = np.array([item["label"] for item in study.items("validation")]), infer(network, loader, device)
    model = study.model()
    model = replace(model, temperature=fit_temperature(labels, logits.double().numpy(), prior_shift(model)))
    if len(study.classes) == 2:
        chosen = study.options["threshold_rule"] == "youden"
        threshold = choose_threshold(labels, probabilities(logits, model)[:, 1]) if chosen else model.target_prior[1]
        model = replace(model, threshold=threshold)
    save_model(study.run, network, model)
    files.resume.unlink(missing_ok=True)  # nothing is left to go on with
    study.lock.release()
    return study.run


def voices(
    network: FusionNetwork, loader: Iterable[Mapping[str, Any]], device: Any = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the decision rule of a network hears: logits ``[N, V, K]``, present ``[N, V]`` and labels ``[N]``.

    V is M for decision fusion; for hybrid fusion 1 + M, the fused classifier first, which is always present.
    """
    prepare, said, there, labels = PrepareFusionBatch(), [], [], []
    network.eval()
    with torch.no_grad():
        for batch in loader:
            image, label, _, extra = prepare(batch, device)
            output = network.outputs(image, **extra)
            logits, present = cast(torch.Tensor, output.modality_logits), output.present
            if output.fused_logits is not None:
                logits = torch.cat([output.fused_logits.unsqueeze(1), logits], 1)
                present = torch.cat([torch.ones_like(present[:, :1]), present], 1)
            said.append(logits.float().cpu())
            there.append(present.cpu())
            labels.append(cast(torch.Tensor, label).cpu())
    return torch.cat(said), torch.cat(there), torch.cat(labels)


def single_runs(run: str | Path) -> dict[str, Path]:
    """The runs below ``RUN/single`` that have predictions: each modality trained alone."""
    folders = sorted((Path(run) / "single").glob("*/predictions.csv"))
    return {path.parent.name: path.parent for path in folders}


def write_metrics(run: str | Path, resamples: int = 2000, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Compute ``metrics.json`` from ``predictions.csv``, compared with the single modalities where they are there.

    Where cases of doubtful preparation are among them, the AUC of the others stands beside that of all.
    The fusion and a modality alone are compared on the cases that both predicted, with a paired subject bootstrap.
    Of a cross-validation the folds count together, each case at its own fold's threshold; beside that stand the AUC of
    each fold, their mean and standard deviation.

    Args:
        run: a run folder with ``predictions.csv``, or that of a cross-validation.
        resamples, seed: of the bootstrap.
        more: further plain entries of ``metrics.json``, as ``simulated=True`` or ``ceilings={...}``.

    Raises:
        CohortError: there are no predictions, or they have no labels.
        ReadError: they are damaged.
    """
    run = Path(run)
    rows = {row["case"]: row for row in read_predictions(run / "predictions.csv") if row["label"]}
    if not rows:
        raise CohortError(f"{run / 'predictions.csv'} has no labels; metrics need them")
    models = _models(run, rows.values())
    folds = [fold for fold in models if fold]
    thresholds = {fold: 0.5 if model.threshold is None else model.threshold for fold, model in models.items()}
    model = next(iter(models.values()))
    label, shares, groups = _arrays(rows.values(), model.classes, run)
    threshold = np.array([thresholds[row.get("fold", "")] for row in rows.values()])
    how: dict[str, Any] = {"resamples": resamples, "seed": seed}
    metrics = classification_metrics(label, shares, threshold=threshold, groups=groups, **how)
    sure = _without_doubtful(rows, label, shares, groups, how)
    comparison = {}
    for name, folder in single_runs(run).items():
        alone = {row["case"]: row for row in read_predictions(folder / "predictions.csv") if row["case"] in rows}
        if not alone:  # evaluated on another part
            continue
        _models(folder, alone.values())
        label, own, groups = _arrays(alone.values(), model.classes, folder)
        _, fused, _ = _arrays([rows[case] for case in alone], model.classes, run)
        comparison[name] = {
            "auc": classification_metrics(label, own, groups=groups, **how)["auc"].as_dict(),
            "fusion_auc": classification_metrics(label, fused, groups=groups, **how)["auc"].as_dict(),
            "difference": compare(label, fused, own, groups=groups, **how).as_dict(),
            "models": models_of(alone.values()),
        }
    out = {
        "part": next(iter(rows.values()))["part"],
        "n": len(rows),
        "classes": list(model.classes),
        "threshold": None if folds else model.threshold,
        "metrics": {name: estimate.as_dict() for name, estimate in metrics.items()},
        **({"without_doubtful": sure} if sure else {}),
        "comparison": comparison,
        "models": models_of(rows.values()),
        **(_by_fold(run, folds) if folds else {}),
        **more,
    }
    write_json(out, RunFolder(run).metrics)
    return out


def _without_doubtful(
    rows: Mapping[str, Mapping[str, str]],
    label: np.ndarray,
    shares: np.ndarray,
    groups: np.ndarray,
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Which cases are doubtful, and the AUC of the others; empty if none is. Accepted cases are not doubtful."""
    doubtful = [case for case, row in rows.items() if row.get("status") == "doubtful"]
    if not doubtful:
        return {}
    sure = np.array([case not in doubtful for case in rows])
    if sure.any():
        auc = classification_metrics(label[sure], shares[sure], groups=groups[sure], **how)["auc"]
    else:
        auc = Estimate(None, None, None, 0, reason="every case is doubtful")
    return {"doubtful": doubtful, "auc": auc.as_dict()}


def _models(run: Path, rows: Collection[Mapping[str, str]]) -> dict[str, Model]:
    """Fold to the model of the predictions in a run; the fold is empty where it is no cross-validation.

    Raises:
        CohortError: another model made them than the one that lies beside them now.
    """
    folds = list(dict.fromkeys(row.get("fold", "") for row in rows))
    if strange := [fold for fold in folds if fold and not fold.isdecimal()]:
        raise ReadError(f"{run / 'predictions.csv'} is damaged: fold is {strange[0]!r:.40}; {_AGAIN}")
    models = {fold: read_model(RunFolder(run).fold(fold).path if fold else run) for fold in folds}
    for row in rows:
        now = models[row.get("fold", "")].weights
        if now and row.get("model") not in (None, "", now):
            raise CohortError(
                f"{run / 'predictions.csv'} was made by another model than the one that is there now; evaluate again"
            )
    return models


def _by_fold(run: Path, folds: list[str]) -> dict[str, Any]:
    """The AUC of each fold, from its own ``metrics.json``, with mean and standard deviation; and a note for readers."""
    aucs, values = {}, []
    for fold in folds:
        path = RunFolder(run).fold(fold).metrics
        metrics = optional_fields(path, _AGAIN)
        with interpreting(path, _AGAIN):
            aucs[fold] = metrics["metrics"]["auc"]
            values += [] if aucs[fold]["value"] is None else [float(aucs[fold]["value"])]
    mean = float(np.mean(values)) if values else None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found = ", ".join(f"{value:.3f}" for value in values)
    beside = "" if spread is None else f" (mean {mean:.3f}, standard deviation {spread:.3f})"
    note = (
        f"Cross-validation: each case was predicted by the one of {len(folds)} models that was trained without it. "
        f"The AUCs of the folds are {found}{beside}; that of all cases together also compares cases of different "
        "models, and is lower where their probabilities differ in scale."
    )
    return {"folds": {"auc": aucs, "mean": mean, "standard_deviation": spread}, "notes": [note]}


def _arrays(
    rows: Iterable[Mapping[str, str]], classes: tuple[str, ...], run: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels ``[N]``, probabilities ``[N, K]`` and subjects ``[N]`` of the predictions of a run."""
    rows = list(rows)
    with interpreting(run / "predictions.csv", _AGAIN):
        label = np.array([classes.index(row["label"]) for row in rows])
        shares = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
        if not ((shares >= 0) & (shares <= 1)).all() or not shares.sum(1).all():
            raise ValueError("a probability does not lie between 0 and 1")
    return label, shares / shares.sum(1, keepdims=True), np.array([row["subject"] for row in rows])
