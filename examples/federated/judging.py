"""How the averaged network is judged on cases that stay where they are: each site counts, the server adds up."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mmfusion.predict import infer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mmfusion.training import Study

NUMBERS = ("cases", "training_prior", "target_prior", "validation", "loss")


def counted(study: Study) -> dict[str, Any]:
    """What a site says of its training cases: how many have which modalities, and how frequent the classes are."""
    each = [[name for name in study.modalities if name in one.modalities] for one in study.cases("train")]
    model = study.model()
    return {
        "cases": dict(Counter(" ".join(names) for names in each)),
        "training_prior": list(model.training_prior),
        "target_prior": list(model.target_prior),
    }


def judged(network: torch.nn.Module, study: Study, loader: Iterable[Mapping[str, Any]], device: Any) -> dict[str, Any]:
    """What a site says of a network on its validation cases, sums and counts for each class.

    Returns:
        ``validation [K]`` number of cases, and ``loss [K]`` their summed cross entropy.
    """
    logits = infer(network, loader, device)
    label = torch.tensor([item["label"] for item in study.items("validation")])
    loss = cross_entropy(logits, label, reduction="none")
    rows = [label == k for k in range(len(study.classes))]
    return {
        "validation": [int(row.sum()) for row in rows],
        "loss": [float(loss[row].sum()) for row in rows],
    }


def validation_loss(numbers: Mapping[str, Mapping[str, Any]]) -> float:
    """The class-balanced cross entropy over the validation cases of all sites, as one training would have it."""
    count, loss = (np.sum([one[name] for one in numbers.values()], axis=0) for name in ("validation", "loss"))
    return float((loss / np.maximum(count, 1)).mean())
