"""The contract of every network, and the strategies: where in the network the modalities are fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.backbones import Encoder
from mmfusion.networks.blocks import Standardize
from mmfusion.networks.operators import DECISION_RULES, FEATURE_OPERATORS


class FusionOutput(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: ``[B, K]``; of decision fusion log-probabilities, which softmax leaves as they are.
        present: ``[B, M]`` bool, the modalities that were used.
        modality_logits: ``[B, M, K]`` of each modality alone, 0 where absent; decision fusion only.
        features: ``[B, F]``, what the classifier saw; None for decision fusion.
        weights: ``[B, M]``, share of each modality, 0 where absent; None where the operator has none.
    """

    logits: Tensor
    present: Tensor
    modality_logits: Optional[Tensor] = None
    features: Optional[Tensor] = None
    weights: Optional[Tensor] = None


class FusionNetwork(nn.Module):
    """Base of all networks: ``forward(image [B, M, D, H, W], present [B, M], covariates) -> logits [B, K]``.

    What an absent modality's channel holds, be it NaN, never reaches the output, and a case without any modality
    gets a finite answer that no voxel influenced. Whether voxels can be used at all is checked where batches are made.

    Attributes:
        modalities: names of the channels, in their order.
        num_classes: K.
        strategy: name of the strategy.
    """

    strategy = ""

    def __init__(self, encoders: Sequence[Encoder], modalities: Sequence[str], num_classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.encoded_features = encoders[0].out_features
        self.standardize = nn.ModuleList(Standardize(encoder.out_features) for encoder in encoders)
        self.modalities = tuple(modalities)
        self.num_classes = num_classes

    def forward(
        self,
        image: Tensor,
        present: Optional[Tensor] = None,
        covariates: Optional[Tensor] = None,
    ) -> Tensor:
        """Logits ``[B, K]``; see :meth:`outputs`."""
        return self.outputs(image, present, covariates).logits

    def outputs(
        self,
        image: Tensor,
        present: Optional[Tensor] = None,
        covariates: Optional[Tensor] = None,
    ) -> FusionOutput:
        """All that the network says about a batch.

        Args:
            image: ``[B, M, D, H, W]``, one channel a modality.
            present: ``[B, M]``, bool or 0 and 1. None derives it: a channel of zeros only is absent.
            covariates: must be None; no strategy here takes any.

        Raises:
            NetworkError: a shape does not fit, or the volume is too small for the encoder.
        """
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            self.check_input(image, present, covariates)
        if present is None:
            present = (image != 0).flatten(2).any(2)
        return self.fuse(image, present != 0)

    def fuse(self, image: Tensor, present: Tensor) -> FusionOutput:
        """The strategy: ``image [B, M, D, H, W]`` and bool ``present [B, M]`` to all outputs."""
        raise NotImplementedError

    @torch.jit.unused
    def check_input(self, image: Tensor, present: Tensor | None, covariates: Tensor | None) -> None:
        """Refuse tensors that do not fit this network (NetworkError)."""
        count = len(self.modalities)
        if image.ndim != 5 or image.shape[1] != count:
            raise NetworkError(
                f"the network takes image [B, {count}, D, H, W] with the channels {', '.join(self.modalities)}, "
                f"found shape {list(image.shape)}"
            )
        if present is not None and present.shape != image.shape[:2]:
            raise NetworkError(
                f"present must have shape {list(image.shape[:2])}, a row a case and a column a modality "
                f"({', '.join(self.modalities)}), found {list(present.shape)}"
            )
        if covariates is not None:
            raise NetworkError(f"strategy '{self.strategy}' takes no covariates, found {list(covariates.shape)}")
        cast(Encoder, self.encoders[0]).check_size([int(n) for n in image.shape[2:]])

    @torch.jit.unused
    def losses(
        self,
        output: FusionOutput,
        label: Tensor,
        class_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the training loss by name; their sum is minimized.

        Args:
            output: of :meth:`outputs`.
            label: ``[B]``, class numbers.
            class_weight: ``[K]``, weight of each class.

        Returns:
            ``classification``: cross entropy of the logits (of log-probabilities: their negative log-likelihood),
            averaged over the cases.
        """
        return {"classification": _cross_entropy(output.logits, label, class_weight)}


class InputFusion(FusionNetwork):
    """Input fusion: the channels enter one encoder together.

    The encoder runs whatever is present: an absent modality's channel is set to zero, not skipped.

    Args:
        encoder: from the number of channels to an encoder.
        operator: ``concat``.
        modalities: names of the channels.
        num_classes: K.
        dropout: share of the features dropped before the classifier.
    """

    strategy = "input"
    operators = ("concat",)

    def __init__(
        self,
        encoder: Callable[[int], Encoder],
        operator: str,
        modalities: Sequence[str],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__([encoder(len(modalities))], modalities, num_classes)
        self.classifier = _classifier(self.encoded_features, num_classes, dropout)

    def fuse(self, image: Tensor, present: Tensor) -> FusionOutput:
        mask = present[:, :, None, None, None]
        features = self.standardize[0](self.encoders[0](image.masked_fill(~mask, 0.0)))
        # a case without any modality is answered by the classifier's bias alone, as in the other strategies
        features = features * present.any(1, keepdim=True)
        return FusionOutput(self.classifier(features), present, None, features, None)


class PerModalityNetwork(FusionNetwork):
    """Base of the strategies with an encoder a modality: the one place where absent modalities are skipped."""

    def encode(self, image: Tensor, present: Tensor) -> Tensor:
        """Vectors ``[B, M, F]``: only rows where a modality is present pass its encoder, the others are zero.

        An encoder that is left without a row still runs, on an empty batch, so that every parameter has a gradient
        (of zero), which distributed training needs.
        """
        vectors: list[Tensor] = []
        for m, (encoder, standardize) in enumerate(zip(self.encoders, self.standardize)):  # noqa: B905 (not scriptable)
            rows = torch.nonzero(present[:, m]).squeeze(1)
            encoded = standardize(encoder(image[:, m : m + 1].index_select(0, rows)))
            empty = torch.zeros((image.shape[0], encoded.shape[1]), dtype=encoded.dtype, device=encoded.device)
            vectors.append(empty.index_copy(0, rows, encoded))
        return torch.stack(vectors, 1)


class SingleLevelFusion(PerModalityNetwork):
    """Single-level feature fusion: an encoder a modality, one operator on their vectors, one classifier.

    Args:
        encoder: from the number of channels (1) to an encoder.
        operator: a key of ``FEATURE_OPERATORS``.
        modalities: names of the channels.
        num_classes: K.
        dropout: share of the fused features dropped before the classifier.
    """

    strategy = "single_level"
    operators = tuple(FEATURE_OPERATORS)

    def __init__(
        self,
        encoder: Callable[[int], Encoder],
        operator: str,
        modalities: Sequence[str],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__([encoder(1) for _ in modalities], modalities, num_classes)
        self.operator = FEATURE_OPERATORS[operator](len(modalities), self.encoded_features)
        self.classifier = _classifier(self.operator.out_features, num_classes, dropout)

    def fuse(self, image: Tensor, present: Tensor) -> FusionOutput:
        features, weights = self.operator(self.encode(image, present), present)
        return FusionOutput(self.classifier(features), present, None, features, weights)


class DecisionFusion(PerModalityNetwork):
    """Decision fusion: an encoder and a classifier a modality, one rule on their answers.

    Args:
        encoder: from the number of channels (1) to an encoder.
        operator: a key of ``DECISION_RULES``.
        modalities: names of the channels.
        num_classes: K.
        dropout: share of each modality's features dropped before its classifier.
    """

    strategy = "decision"
    operators = tuple(DECISION_RULES)

    def __init__(
        self,
        encoder: Callable[[int], Encoder],
        operator: str,
        modalities: Sequence[str],
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__([encoder(1) for _ in modalities], modalities, num_classes)
        self.classifiers = nn.ModuleList(_classifier(self.encoded_features, num_classes, dropout) for _ in modalities)
        self.rule = DECISION_RULES[operator](len(modalities), num_classes)

    def fuse(self, image: Tensor, present: Tensor) -> FusionOutput:
        vectors = self.encode(image, present)
        each: list[Tensor] = []
        for m, classifier in enumerate(self.classifiers):
            each.append(classifier(vectors[:, m]))
        modality_logits = torch.stack(each, 1).masked_fill(~present.unsqueeze(2), 0.0)
        logits, weights = self.rule(modality_logits, present)
        return FusionOutput(logits, present, modality_logits, None, weights)

    @torch.jit.unused
    def losses(
        self,
        output: FusionOutput,
        label: Tensor,
        class_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As in the base class, and ``modality``: cross entropy of each present modality alone, averaged.

        Without it a modality that is right enough would leave the others untrained.
        """
        assert output.modality_logits is not None
        case, modality = torch.nonzero(output.present, as_tuple=True)
        logits, labels = output.modality_logits[case, modality], label[case]
        alone = _cross_entropy(logits, labels, class_weight)
        return {**super().losses(output, label, class_weight), "modality": alone}


def _cross_entropy(logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Weighted cross entropy of ``[N, K]`` and ``[N]``, averaged over the rows; 0 of no row.

    torch's own mean divides by the weights of the batch, so that a small batch keeps its class shares: the network
    would not learn the prior that the weights stand for, and correcting it would spoil the probabilities.
    """
    return F.cross_entropy(logits, label, class_weight, reduction="sum") / max(len(label), 1)


def _classifier(features: int, num_classes: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))


STRATEGIES: dict[str, type[InputFusion | SingleLevelFusion | DecisionFusion]] = {
    network.strategy: network for network in (InputFusion, SingleLevelFusion, DecisionFusion)
}
