"""Losses: cross entropy that suits class weights, and the further terms that papers add to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import counted
from mmfusion.networks.heads import FlipoutLinear

if TYPE_CHECKING:
    from mmfusion.networks.network import FusionNetwork, FusionOutput
    from mmfusion.networks.operators import SharedSpecificFusion


def cross_entropy(logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Weighted cross entropy of ``[N, K]`` and ``[N]``, averaged over the rows; 0 of no row.

    torch's own mean divides by the weights of the batch, so that a small batch keeps its class shares: the network
    would not learn the prior that the weights stand for, and correcting it would spoil the probabilities.
    """
    return F.cross_entropy(logits, label, class_weight, reduction="sum") / max(len(label), 1)


def classification(output: FusionOutput, label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Cross entropy of the fused features' own classifier, or of the logits where there is no such one."""
    logits = output.logits if output.fused_logits is None else output.fused_logits
    return cross_entropy(logits, label, class_weight)


def unimodal(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """Cross entropy of each present modality alone, averaged over them.

    Without it a modality that is right enough would leave the others untrained.
    """
    assert output.modality_logits is not None
    case, modality = torch.nonzero(output.present, as_tuple=True)
    return cross_entropy(output.modality_logits[case, modality], label[case], class_weight)


def pair_distance(vectors: Tensor, present: Tensor) -> Tensor:
    """Mean of ``|v_i / |v_i| - v_j / |v_j||^2`` over all cases and the pairs i < j that are present; 0 without a pair.

    Of ``vectors [B, M, F]`` and ``present [B, M]``. At length 1, shrinking the vectors does not bring them together.
    """
    unit = F.normalize(vectors, dim=2)
    distance = (unit.unsqueeze(1) - unit.unsqueeze(2)).square().sum(3)
    pairs = torch.triu(present.unsqueeze(1) & present.unsqueeze(2), 1)
    return (distance * pairs).sum() / pairs.sum().clamp_min(1)


def similarity(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """How far apart the features of a case's modalities are, see :func:`pair_distance`.

    Le et al. (Phys Med Biol 2017) draw what two networks say of the same case together; that the distance is squared
    and taken at length 1 is reconstructed, and so is the mean over the pairs of more than two modalities.
    """
    assert output.modality_features is not None
    return pair_distance(output.modality_features, output.present)


def shared_specific(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """How far the shared and the specific parts are from being so, see ``SharedSpecificFusion.separation``."""
    operator = cast("SharedSpecificFusion", network.operator)
    assert output.modality_features is not None
    return operator.separation(output.modality_features, output.present)


def modality_losses(output: FusionOutput, label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Cross entropy L_m ``[M]`` of each modality's own classifier over the cases that have it; 0 where none has."""
    assert output.modality_logits is not None
    rows = [torch.nonzero(there).squeeze(1) for there in output.present.t()]
    return torch.stack(
        [cross_entropy(output.modality_logits[row, m], label[row], class_weight) for m, row in enumerate(rows)]
    )


def adaptive_weights(
    output: FusionOutput, label: Tensor, class_weight: Tensor | None = None, tau: float = 0.5
) -> Tensor:
    """What weight :func:`adaptive` gives each modality: ``[M]``, 0 for one that no case of the batch has.

    ``softmax(-L_m / tau)`` over the modalities that some case has, without a gradient: greater where the modality's own
    classifier errs less (AGDAF: CMIG 2022, 97:102050; the softmax and tau are reconstructed from its abstract).
    """
    return _weights_of(modality_losses(output, label, class_weight), output.present, tau)


def _weights_of(alone: Tensor, present: Tensor, tau: float = 0.5) -> Tensor:
    there = present.any(0)
    scores = (-alone.detach() / tau).masked_fill(~counted(there.unsqueeze(0))[0], float("-inf"))
    return torch.softmax(scores, 0) * there


def adaptive(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """Adaptive modality weighting (AGDAF: CMIG 2022, 97:102050): sum of w_m L_m, see :func:`adaptive_weights`."""
    alone = modality_losses(output, label, class_weight)
    return (_weights_of(alone, output.present) * alone).sum()


def discriminative(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """Discriminative loss (AGDAF: CMIG 2022, 97:102050): near the own class's center, centers of classes apart.

    For each modality that some case has ``mean_i ||f_i - c_{y_i}||^2 + sum_{j<k} max(0, delta - ||c_j - c_k||)^2``,
    averaged over these modalities. f is ``modality_features`` scaled to length 1, c_k its mean over the cases of class
    k in the batch, over the classes that are there. From the abstract: the same class pulled together, others pushed
    apart, in each modality; the formula, the length of 1, centers of the batch and delta = 1 are reconstructed.
    """
    assert output.modality_features is not None
    terms = [
        _compactness(output.modality_features[there, m], label[there]) for m, there in enumerate(output.present.t())
    ]
    return torch.stack(terms).sum() / output.present.any(0).sum().clamp_min(1)


def _compactness(features: Tensor, label: Tensor, delta: float = 1.0) -> Tensor:
    """The discriminative loss of one modality's ``features [N, F]``, ``label [N]``; 0 of no row."""
    features = F.normalize(features, dim=1, eps=1e-6)
    classes, number = torch.unique(label, return_inverse=True)
    members = F.one_hot(number, max(len(classes), 1)).to(features.dtype)  # [N, K]
    centers = members.t() @ features / members.sum(0).clamp_min(1).unsqueeze(1)
    within = (features - centers[number]).square().sum() / max(len(features), 1)
    j, k = torch.triu_indices(len(classes), len(classes), 1, device=label.device)
    distance = (centers[j] - centers[k]).square().sum(1).clamp_min(1e-12).sqrt()  # the root of 0 has no gradient
    return within + F.relu(delta - distance).square().sum()


def kl(output: FusionOutput, label: Tensor, class_weight: Tensor | None, network: FusionNetwork) -> Tensor:
    """KL divergence of all Bayesian layers from their prior, in nats.

    Weighted by 1 / (number of training cases), beside the mean cross entropy, it makes the negative evidence lower
    bound of a case.
    """
    return torch.stack([layer.kl() for layer in network.modules() if isinstance(layer, FlipoutLinear)]).sum()


@dataclass(frozen=True)
class Loss:
    """A further loss.

    Attributes:
        term: from output ``FusionOutput``, label ``[B]``, class weight ``[K]`` or None, and the network to a number.
        strategies: those that give what it needs.
        alone: it needs each modality's own classifier.
        fusion, head: the operator or head that it belongs to; empty for any.
    """

    term: Callable[[FusionOutput, Tensor, Tensor | None, FusionNetwork], Tensor]
    strategies: tuple[str, ...] = ("single_level", "hierarchical", "attention", "decision", "hybrid")
    alone: bool = False
    fusion: str = ""
    head: str = ""

    def check(self, name: str, strategy: str, fusion: str, head: str) -> None:
        """Refuse a network that has nothing to compute this loss from (NetworkError)."""
        if strategy not in self.strategies:
            raise NetworkError(f"loss '{name}' needs strategy {' or '.join(self.strategies)}, found '{strategy}'")
        if self.fusion and fusion != self.fusion:
            raise NetworkError(f"loss '{name}' needs fusion '{self.fusion}', found '{fusion}'")
        if self.head and head != self.head:
            raise NetworkError(f"loss '{name}' needs head '{self.head}', found '{head}'")


LOSSES = {
    "unimodal": Loss(unimodal, alone=True),
    "similarity": Loss(similarity),
    "shared_specific": Loss(shared_specific, strategies=("single_level", "hybrid"), fusion="shared_specific"),
    "adaptive": Loss(adaptive, alone=True),
    "discriminative": Loss(discriminative),
    "kl": Loss(
        kl,
        strategies=("input", "single_level", "hierarchical", "attention", "decision", "hybrid", "covariates"),
        head="bayesian",
    ),
}
