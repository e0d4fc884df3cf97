"""Heads that are fitted after training, on cases whose labels nothing before them has seen.

Where parts of the network were trained, their features of the training cases know the labels, and a head that is fitted
on these trusts them too much. Features of other networks, trained without a fold, have no axes in common with this
one's. So some of the training subjects are kept from the gradient, as part ``head`` of the split, and the head is
fitted on them. Where nothing is trained, it is fitted on all training subjects.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from monai.data import DataLoader, Dataset

from mmfusion.networks.statistics import settle_statistics
from mmfusion.networks.trained import fitted_heads, learns
from mmfusion.predict import inputs_of, run_cases
from mmfusion.transforms import LoadPreparedCased

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmfusion.networks import FusionNetwork, FusionOutput
    from mmfusion.training.study import Study


def fit_heads(study: Study, network: FusionNetwork, device: Any = "cpu") -> None:
    """Fit the heads of a network that are fitted, all on the same cases; a modality's own on those that have it.

    A network of which nothing was trained gets its running statistics from these cases, too.

    Args:
        study: what was trained on.
        network: changed in place.
        device: to run on.

    Raises:
        NetworkError: a class has no case with a modality that has a head of its own.
    """
    heads = fitted_heads(network)
    if not heads:
        return
    load = LoadPreparedCased(study.modalities, study.cohort.modalities)
    items = study.items("head" if "head" in study.parts.values() else "train")
    loader = DataLoader(Dataset(items, load), batch_size=study.options["batch_size"])
    if not learns(network):
        settle_statistics(network, (inputs_of(batch, device) for batch in loader))
    network.eval()
    outputs = [output for _, output in run_cases(lambda given: network.outputs(*given), loader, device)]
    present = torch.cat([output.present for output in outputs]).cpu()
    label = torch.tensor([item["label"] for item in items])
    for head, m in heads:
        read = [output.features if m is None else _of_modality(output, m) for output in outputs]
        features = torch.cat(cast("list[torch.Tensor]", read)).cpu()
        rows = (present.any(1) if m is None else present[:, m]).nonzero().flatten()
        weight = case_weights([items[row]["subject"] for row in rows], label[rows], study.model().training_prior)
        head.fit(features[rows], label[rows], weight)


def _of_modality(output: FusionOutput, m: int) -> torch.Tensor:
    return cast("torch.Tensor", output.modality_features)[:, m]


def case_weights(subjects: Sequence[str], label: torch.Tensor, prior: Sequence[float]) -> torch.Tensor:
    """How much each case counts: each subject of a class the same, each class as the loss of a training sees it.

    The prior that a fitted head learns is then the one that is undone in the probabilities.

    Args:
        subjects: ``[N]``, of each case.
        label: ``[N]``.
        prior: ``[K]``, share of each class.

    Returns:
        ``[N]``, of the mean 1.
    """
    cases = Counter(subjects)
    weight = torch.tensor([1 / cases[one] for one in subjects], dtype=torch.float64)
    total = torch.zeros(len(prior), dtype=torch.float64).index_add(0, label, weight)
    return weight * (torch.tensor(prior, dtype=torch.float64) / total.clamp_min(1e-12))[label] * len(subjects)
