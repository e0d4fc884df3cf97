"""The finished model that a training leaves behind: the best weights, with heads, rule, temperature and threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from mmfusion.errors import CohortError
from mmfusion.evaluation import choose_threshold, fit_temperature
from mmfusion.files import RunFolder
from mmfusion.networks.trained import learns
from mmfusion.predict import (
    infer,
    load_weights,
    prior_shift,
    probabilities,
    run_cases,
    save_model,
)
from mmfusion.training.distributed import by_first
from mmfusion.training.heads import fit_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mmfusion.networks import FusionNetwork
    from mmfusion.networks.decision import DecisionRule
    from mmfusion.training.study import Study


@by_first
def finish(study: Study, network: torch.nn.Module, loader: Iterable[Mapping[str, Any]], device: Any = "cpu") -> Path:
    """Load the best weights; fit heads, decision rule and temperature; write the finished model.

    Heads are fitted on training subjects, see :func:`mmfusion.training.heads.fit_heads`; rule and temperature on
    validation. A network of which nothing was trained has no best weights.

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
    if learns(network):
        best = files.best
        if not best.is_file():
            raise CohortError(
                f"{study.run} has no checkpoints/best.pt: no epoch was validated. Train longer, or lower val_interval"
            )
        network.load_state_dict(load_weights(best, cast("FusionNetwork", network)))
    network.to(device)
    fit_heads(study, cast("FusionNetwork", network), device)
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
    network.eval()
    said, there, labels = [], [], []
    for batch, output in run_cases(lambda given: network.outputs(*given), loader, device):
        logits, present = cast(torch.Tensor, output.modality_logits), output.present
        if output.fused_logits is not None:
            logits = torch.cat([output.fused_logits.unsqueeze(1), logits], 1)
            present = torch.cat([torch.ones_like(present[:, :1]), present], 1)
        said.append(logits.float().cpu())
        there.append(present.cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(said), torch.cat(there), torch.cat(labels)
