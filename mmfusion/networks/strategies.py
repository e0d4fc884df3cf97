"""The strategies: where in the network the modalities are fused."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import norm_layer
from mmfusion.networks.conditioning import with_missing
from mmfusion.networks.decision import DECISION_RULES
from mmfusion.networks.network import FusionNetwork, FusionOutput, PerModalityNetwork, Plan
from mmfusion.networks.operators import FEATURE_OPERATORS
from mmfusion.networks.tokens import TOKEN_OPERATORS

MOST_WEIGHTS = 100_000_000  # of one convolution of hierarchical fusion


class InputFusion(FusionNetwork):
    """Input fusion: the channels enter one encoder together.

    The encoder runs whatever is present: an absent modality's channel is set to zero, not skipped.
    """

    strategy = "input"
    view = "vector"
    operators = ("concat",)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        encoder = plan.encoder(None, len(plan.modalities))
        self.encoders = nn.ModuleList([encoder])
        self.standardize = plan.standard(encoder.out_features)
        self.condition = plan.condition(encoder.out_features)
        self.classifier = plan.classifier(encoder.out_features)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        mask = present.reshape([image.shape[0], image.shape[1]] + [1] * (image.dim() - 2))
        image = torch.where(mask, image, torch.zeros_like(image))
        features = self.standardize(self.encoders[0](image))
        features = self.condition(features.unsqueeze(1), covariates).squeeze(1)
        # a case without any modality is answered by the classifier's bias alone, as in the other strategies
        features = features * present.any(1, keepdim=True)
        return FusionOutput(self.classifier(features), present, None, None, None, features)


class SingleLevelFusion(PerModalityNetwork):
    """Single-level feature fusion: an encoder a modality, one operator on their vectors, one classifier."""

    strategy = "single_level"
    view = "vector"
    operators = tuple(FEATURE_OPERATORS)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        operator = plan.operator(len(plan.modalities), self.encoded_features)
        self.operator = operator
        self.classifier = plan.classifier(operator.out_features)
        if plan.alone:
            self.add_classifiers(plan, self.encoded_features)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        vectors = self.encode_vectors(image, present, covariates)
        fused, weights = self.operator(vectors.unsqueeze(2), present)
        features = fused.squeeze(1)
        alone = self.alone(vectors, present)
        return FusionOutput(self.classifier(features), present, alone, vectors, None, features, weights)


class HierarchicalFusion(PerModalityNetwork):
    """Hierarchical feature fusion (Li et al., OMIA 2022, arXiv 2209.00979): the encoders' maps are fused at each level.

    A stream of its own starts at the finest level: the operator fuses the modalities' maps voxel by voxel, a
    convolution mixes the result with the stream of the level before, halved in size. The classifier sees the mean of
    the last stream and of each modality's last map. Reconstructed from the paper's abstract: the convolution of
    3 voxels with normalization and ReLU, linear halving, and GroupNorm.
    """

    strategy = "hierarchical"
    view = "pyramid"
    operators = tuple(FEATURE_OPERATORS)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        convolution: Any = nn.Conv3d if plan.spatial_dims == 3 else nn.Conv2d
        operators, mixers, before = [], [], 0
        for channels in self.level_channels:
            operator = plan.operator(len(plan.modalities), channels)
            _check_mixer(operator.out_features + before, channels, plan.spatial_dims)
            mixer = convolution(operator.out_features + before, channels, 3, padding=1, bias=False)
            mixers.append(nn.Sequential(mixer, norm_layer("group", channels, plan.spatial_dims), nn.ReLU()))
            operators.append(operator)
            before = channels
        self.operator = nn.ModuleList(operators)
        self.mixers = nn.ModuleList(mixers)
        self.resize = "trilinear" if plan.spatial_dims == 3 else "bilinear"
        self.stream = plan.standard(before)
        self.classifier = plan.classifier(before + len(plan.modalities) * self.encoded_features)
        if plan.alone:
            self.add_classifiers(plan, self.encoded_features)

    def check_sizes(self, maps: list[Tensor]) -> None:
        """Refuse maps of one level that differ in size, as encoders of different strides make them (NetworkError)."""
        sizes = {m: list(one.shape[2:]) for m, one in zip(self.modalities, maps, strict=True)}
        if len({tuple(size) for size in sizes.values()}) > 1:
            raise NetworkError(
                "strategy 'hierarchical' needs maps of the same size at each level, found "
                f"{'; '.join(f'{m} {size}' for m, size in sizes.items())}: give all encoders the same strides"
            )

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        encoded = self.encode(image, present, covariates)
        streams: list[Tensor] = []
        for i, (operator, mixer) in enumerate(zip(self.operator, self.mixers, strict=True)):
            if not torch.jit.is_tracing():
                self.check_sizes([levels[i] for levels in encoded])
            maps = torch.stack([levels[i] for levels in encoded], 1)  # [B, M, C, *spatial]
            fused, _ = operator(maps.flatten(3).transpose(2, 3), present)
            size = maps.shape[3:]
            parts = [fused.transpose(1, 2).reshape([maps.shape[0], fused.shape[2]] + list(size))]
            if len(streams) > 0:
                parts.append(F.interpolate(streams[-1], size=size, mode=self.resize, align_corners=False))
            streams.append(mixer(torch.cat(parts, 1)))
        vectors = torch.stack([levels[-1] for levels in encoded], 1)
        last = self.stream(streams[-1].flatten(2).mean(2)) * present.any(1, keepdim=True)
        features = torch.cat([last, vectors.flatten(1)], 1)
        return FusionOutput(
            self.classifier(features), present, self.alone(vectors, present), vectors, None, features, None
        )


def _check_mixer(features: int, channels: int, spatial_dims: int) -> None:
    """Refuse a convolution behind an operator that makes too many features (NetworkError)."""
    weights = 3**spatial_dims * features * channels
    if weights > MOST_WEIGHTS:
        raise NetworkError(
            f"the fusion operator makes {features:,} features of maps with {channels} channels, and the convolution "
            f"behind it would have {weights:,} weights, more than {MOST_WEIGHTS:,}; use fusion 'low_rank', "
            "fusion_options {'out': ...} or a smaller width"
        )


class AttentionFusion(PerModalityNetwork):
    """Attention fusion: an encoder a modality, attention between their tokens, one classifier."""

    strategy = "attention"
    view = "tokens"
    operators = tuple(TOKEN_OPERATORS)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        operator = plan.operator(len(plan.modalities), self.encoded_features, plan.absent == "learned")
        self.operator = operator
        self.stream = plan.standard(operator.out_features)
        self.classifier = plan.classifier(operator.out_features)
        if plan.alone:
            self.add_classifiers(plan, operator.dim)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        tokens = [levels[0] for levels in self.encode(image, present, covariates)]
        made = self.operator(tokens, present)
        features = self.stream(made.fused) * present.any(1, keepdim=True)
        vectors = made.modality_features
        return FusionOutput(
            self.classifier(features),
            present,
            self.alone(vectors, present),
            vectors,
            None,
            features,
            made.attention.sum(2),
            made.attention,
        )


class DecisionFusion(PerModalityNetwork):
    """Decision fusion: an encoder and a classifier a modality, one rule on their answers."""

    strategy = "decision"
    view = "vector"
    operators = tuple(DECISION_RULES)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.add_classifiers(plan, self.encoded_features)
        self.rule = plan.rule(len(plan.modalities), plan.num_classes)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        vectors = self.encode_vectors(image, present, covariates)
        modality_logits = self.alone_logits(vectors, present)
        logits, weights = self.rule(modality_logits, present)
        return FusionOutput(logits, present, modality_logits, vectors, None, None, weights)


class HybridFusion(SingleLevelFusion):
    """Hybrid fusion: single-level fusion and each modality's own classifier are heard together by a decision rule.

    The rule takes the fused classifier as one voice more, which is always present.
    """

    strategy = "hybrid"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.rule = plan.rule(1 + len(plan.modalities), plan.num_classes)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        vectors = self.encode_vectors(image, present, covariates)
        fused, weights = self.operator(vectors.unsqueeze(2), present)
        features = fused.squeeze(1)
        fused_logits = self.classifier(features)
        modality_logits = self.alone_logits(vectors, present)
        voices = torch.cat([fused_logits.unsqueeze(1), modality_logits], 1)
        logits, _ = self.rule(voices, torch.cat([torch.ones_like(present[:, :1]), present], 1))
        return FusionOutput(logits, present, modality_logits, vectors, fused_logits, features, weights)


class CovariatesAlone(FusionNetwork):
    """No fusion: the covariates alone, classified without any voxel; what images add is measured against it.

    One linear layer, zero at first, reads each covariate (0, the mean, where it is unknown) and whether it is unknown.
    There is no encoder, and no operator beyond putting the covariates side by side.
    """

    strategy = "covariates"
    view = ""
    operators = ("concat",)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if not plan.covariates:
            raise NetworkError("strategy 'covariates' classifies by covariates alone, and none is named; name some")
        self.classifier = plan.classifier(2 * plan.covariates)
        nn.init.zeros_(cast("nn.Linear", self.classifier[1]).weight)  # a start without opinion: training is convex

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        features = with_missing(covariates)
        return FusionOutput(self.classifier(features), present, None, None, None, features)


STRATEGIES: dict[
    str,
    type[InputFusion]
    | type[SingleLevelFusion]
    | type[HierarchicalFusion]
    | type[AttentionFusion]
    | type[DecisionFusion]
    | type[HybridFusion]
    | type[CovariatesAlone],
] = {
    network.strategy: network
    for network in (
        *(InputFusion, SingleLevelFusion, HierarchicalFusion, AttentionFusion, DecisionFusion, HybridFusion),
        CovariatesAlone,
    )
}
