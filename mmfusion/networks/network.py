"""The contract of every network: one forward, all outputs, all losses; and how absent modalities are skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import Standardize, embedding, fixed_sizes, voxels_last
from mmfusion.networks.conditioning import CONDITIONINGS, Unconditioned
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.losses import LOSSES, classification

if TYPE_CHECKING:
    from typing import Self


class FusionOutput(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: ``[B, K]``; of decision and hybrid fusion log-probabilities, which softmax leaves as they are.
        present: ``[B, M]`` bool, the modalities that were used.
        modality_logits: ``[B, M, K]`` of each modality's own classifier, 0 where absent; None without these.
        modality_features: ``[B, M, F]``, one vector a modality: what its encoder says, or what attention made of it;
            0, or the learned vector, where absent. None for input fusion.
        fused_logits: ``[B, K]`` of the fused features alone; None where these are the logits, or there are none.
        features: ``[B, F']``, what the classifier saw; None for decision fusion.
        weights: ``[B, M]``, share of each modality in the fusion, 0 where absent; None where the operator has none.
        attention: ``[B, M, N]``, share of the attention that each token of each modality gets, all of a case summing
            to 1; None without tokens.
    """

    logits: Tensor
    present: Tensor
    modality_logits: Tensor | None = None
    modality_features: Tensor | None = None
    fused_logits: Tensor | None = None
    features: Tensor | None = None
    weights: Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """The choices of :func:`mmfusion.networks.build`, checked; what every strategy is made from.

    Attributes:
        modalities: names of the channels, in their order.
        num_classes: K.
        spatial_dims: 2 or 3.
        encoder: from a modality's name (None: all channels in one) and its channels to an encoder.
        operator: from the strategy's own arguments to its fusion operator.
        rule: from M and K to a decision rule.
        head: from features and K to a classifier.
        shared: one encoder for all modalities.
        absent: ``zero`` or ``learned``.
        covariates: how many a case has.
        conditioning: a key of ``CONDITIONINGS``.
        dropout: share of the features dropped before a classifier.
        standardize: standardize the vectors over the cases.
        losses: weight of each further loss, by its name in ``LOSSES``.
    """

    modalities: tuple[str, ...]
    num_classes: int
    spatial_dims: int
    encoder: Callable[[str | None, int], Encoder]
    operator: Callable[..., Any]
    rule: Callable[[int, int], nn.Module]
    head: Callable[[int, int], nn.Module]
    shared: bool = False
    absent: str = "zero"
    covariates: int = 0
    conditioning: str = "film"
    dropout: float = 0.0
    standardize: bool = True
    losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """Whether a loss needs each modality's own classifier."""
        return any(LOSSES[name].alone for name in self.losses)

    def classifier(self, features: int) -> nn.Sequential:
        """Dropout and a head: ``[B, features]`` to ``[B, K]``."""
        return nn.Sequential(nn.Dropout(self.dropout), self.head(features, self.num_classes))

    def standard(self, features: int) -> nn.Module:
        """Standardization over the cases, or nothing where it is not wanted."""
        return Standardize(features) if self.standardize else nn.Identity()

    def condition(self, features: int) -> nn.Module:
        """Conditioning of ``features`` channels on the covariates, or nothing where a case has none."""
        if self.covariates == 0:
            return Unconditioned()
        return CONDITIONINGS[self.conditioning](features, self.covariates)


def seen_channels(image: Tensor) -> Tensor:
    """Which modalities of ``image [B, M, *spatial]`` are there, bool ``[B, M]``: those not zero everywhere."""
    return (image != 0).flatten(2).any(2)


class FusionNetwork(nn.Module):
    """Base of all networks: ``forward(image [B, M, *spatial], present [B, M], covariates [B, C]) -> logits [B, K]``.

    What an absent modality's channel holds, be it NaN, never reaches the output, and a case without any modality
    gets a finite answer that no voxel influenced. Whether voxels can be used at all is checked where batches are made.

    Attributes:
        modalities: names of the channels, in their order.
        num_classes: K.
        covariates: C, numbers that each case brings beside its image.
        strategy: name of the strategy.
        loss_weights: weight of each further loss, by name.
        image_size: voxels along each axis that a model's cases are prepared to, where the network belongs to a model.
    """

    strategy = ""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.modalities = plan.modalities
        self.num_classes = plan.num_classes
        self.spatial_dims = plan.spatial_dims
        self.covariates = plan.covariates
        self.loss_weights = dict(plan.losses)
        self.image_size: tuple[int, ...] = ()
        self.encoders = nn.ModuleList()

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` takes in place of this network: MONAI's ``ckpt_export`` calls it.

        Raises:
            NetworkError: ``image_size`` is not set.
        """
        from mmfusion.networks.export import Scriptable  # late, as it imports this file

        if not self.image_size:
            raise NetworkError("to script a network, set its image_size to the voxels along each axis: it is traced")
        return Scriptable(self, self.image_size)

    def forward(
        self,
        image: Tensor,
        present: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, K]``; see :meth:`outputs`."""
        return self.outputs(image, present, covariates).logits

    def outputs(
        self,
        image: Tensor,
        present: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> FusionOutput:
        """All that the network says about a batch.

        Args:
            image: ``[B, M, *spatial]``, one channel a modality.
            present: ``[B, M]``, bool or 0 and 1. None derives it: a channel of zeros only is absent.
            covariates: ``[B, C]``, standardized by the caller; NaN where one is not known. Must be None where the
                network takes none.

        Raises:
            NetworkError: a shape does not fit, or the image is too small for the encoder.
        """
        if not torch.jit.is_tracing():
            self.check_input(image, present, covariates)
        if present is None:
            present = seen_channels(image)
        if covariates is None:
            covariates = torch.full((image.shape[0], self.covariates), float("nan"), device=image.device)
        return self.fuse(image, present != 0, covariates)

    def fuse(self, image: Tensor, present: Tensor, covariates: Tensor) -> FusionOutput:
        """The strategy: ``image [B, M, *spatial]``, bool ``present [B, M]``, ``covariates [B, C]`` to all outputs."""
        raise NotImplementedError

    def check_input(self, image: Tensor, present: Tensor | None, covariates: Tensor | None) -> None:
        """Refuse tensors that do not fit this network (NetworkError)."""
        count = len(self.modalities)
        if image.ndim != 2 + self.spatial_dims or image.shape[1] != count:
            axes = ", D, H, W" if self.spatial_dims == 3 else ", H, W"
            raise NetworkError(
                f"the network takes image [B, {count}{axes}] with the channels {', '.join(self.modalities)}, "
                f"found shape {list(image.shape)}"
            )
        if not image.is_floating_point():
            raise NetworkError(f"image must hold floating point numbers, found {image.dtype}; use image.float()")
        if present is not None and present.shape != image.shape[:2]:
            raise NetworkError(
                f"present must have shape {list(image.shape[:2])}, a row a case and a column a modality "
                f"({', '.join(self.modalities)}), found {list(present.shape)}"
            )
        if covariates is not None and not self.covariates:
            raise NetworkError(f"this network takes no covariates, found {list(covariates.shape)}")
        if self.covariates and (covariates is None or covariates.shape != (image.shape[0], self.covariates)):
            found = "none" if covariates is None else list(covariates.shape)
            wanted = [image.shape[0], self.covariates]
            raise NetworkError(f"covariates must have shape {wanted}, NaN where one is not known, found {found}")
        for encoder in self.encoders:
            cast(Encoder, encoder).check_size([int(n) for n in image.shape[2:]])

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, for all but frozen encoders."""
        super().train(mode)
        for encoder in self.encoders:
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

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
            averaged over the cases; where the fused features have a classifier of their own, of that one. And each
            further loss of ``loss_weights``, times its weight.
        """
        terms = {"classification": classification(output, label, class_weight)}
        for name, weight in self.loss_weights.items():
            terms[name] = weight * LOSSES[name].term(output, label, class_weight, self)
        return terms


class Place(nn.Module):
    """Puts what an encoder said of the present cases back among all cases, for one modality and one level.

    Args:
        modalities: M.
        channels: C of the encoded rows.
        axis: their channel axis.
        marked: add a learned embedding of the modality, which tells a shared encoder's modalities apart.
        learned: an absent modality is a learned vector, not zero.
    """

    def __init__(self, modalities: int, channels: int, axis: int, marked: bool, learned: bool) -> None:
        super().__init__()
        self.axis = axis
        self.mark = embedding(modalities, channels) if marked else None
        self.absent = embedding(modalities, channels) if learned else None

    def forward(self, encoded: Tensor, rows: Tensor, present: Tensor, m: int) -> Tensor:
        """``encoded [R, ...]`` of the cases ``rows [R]``, where ``present [B]`` is true, to ``[B, ...]``."""
        shape = [1] * encoded.dim()
        shape[self.axis] = encoded.shape[self.axis]
        if self.mark is not None:
            encoded = encoded + self.mark[m].reshape(shape)
        out = encoded.new_zeros([present.shape[0]] + list(encoded.shape[1:])).index_copy(0, rows, encoded)
        if self.absent is not None:
            there = present.reshape([present.shape[0]] + [1] * (encoded.dim() - 1))
            out = torch.where(there, out, self.absent[m].reshape(shape))
        return out


class PerModalityNetwork(FusionNetwork):
    """Base of the strategies that encode each modality by itself: the one place where absent modalities are skipped.

    Only rows in which a modality is present pass its encoder. An encoder that is left without a row still runs, on an
    empty batch, so that every parameter has a gradient (of zero), which distributed training needs. Gathering by
    ``index_select`` and scattering by ``index_copy`` is the form that can be traced and exported.

    Attributes:
        view: what the strategy takes from its encoders: ``vector``, ``tokens`` or ``pyramid``.
        encoded_features: F, the widest of the encoders; narrower ones are widened by a linear layer.
        level_channels: C_l of each level (one for vectors and tokens).
    """

    view = "vector"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        count = len(plan.modalities)
        encoders = [plan.encoder(None, 1)] if plan.shared else [plan.encoder(name, 1) for name in plan.modalities]
        each = encoders * count if plan.shared else encoders
        width = max(encoder.out_features for encoder in encoders)
        if self.view == "pyramid" and len({tuple(encoder.pyramid_channels) for encoder in encoders}) > 1:
            found = "; ".join(f"{m} {one.pyramid_channels}" for m, one in zip(plan.modalities, encoders, strict=True))
            raise NetworkError(
                f"strategy '{self.strategy}' needs encoders with the same channels at each level, found {found}. "
                "Take resnet10, resnet18 and resnet34 together, or one encoder for all"
            )
        self.shared = plan.shared
        self.encoders = nn.ModuleList(encoders)
        self.encoded_features = width
        self.level_channels = tuple(encoders[0].pyramid_channels) if self.view == "pyramid" else (width,)
        tokens = self.view == "tokens"
        self.standardize = nn.ModuleList(nn.Identity() if tokens else plan.standard(one.out_features) for one in each)
        self.widen = nn.ModuleList(
            nn.Identity() if one.out_features == width else nn.Linear(one.out_features, width) for one in each
        )
        self.condition = nn.ModuleList(plan.condition(width) for _ in each)
        learned = plan.absent == "learned" and not tokens  # token operators have an absent token of their own
        channels = [*self.level_channels, width] if self.view == "pyramid" else self.level_channels
        self.place = nn.ModuleList(Place(count, c, 2 if tokens else 1, plan.shared, learned) for c in channels)
        self.classifiers = nn.ModuleList()

    def encode(self, image: Tensor, present: Tensor, covariates: Tensor) -> list[list[Tensor]]:
        """For each modality what its encoder says, zero (or the learned vector) where the modality is absent.

        Vectors: one ``[B, F]``. Tokens: one ``[B, N, F]``. Pyramid: the maps ``[B, C_l, *spatial_l]`` and, last, the
        vector ``[B, F]``. Vectors are standardized over the cases; the last level is conditioned on the covariates.
        """
        flags = present.t().flatten()
        if self.shared:  # all present images in one batch
            images = image.transpose(0, 1).flatten(0, 1).unsqueeze(1)
            given = [images.index_select(0, torch.nonzero(flags).squeeze(1))]
        else:
            rows_of = [torch.nonzero(present[:, m]).squeeze(1) for m in range(image.shape[1])]
            given = [image[:, m : m + 1].index_select(0, rows) for m, rows in enumerate(rows_of)]
        seen = [self._look(cast(Encoder, encoder), rows) for encoder, rows in zip(self.encoders, given, strict=True)]
        order = (torch.cumsum(flags.to(torch.int64), 0) - 1).reshape(image.shape[1], image.shape[0])
        out: list[list[Tensor]] = []
        layers = zip(self.standardize, self.widen, self.condition, strict=True)
        for m, (standardize, widen, condition) in enumerate(layers):
            rows = torch.nonzero(present[:, m]).squeeze(1)
            levels = seen[0] if self.shared else seen[m]
            if self.shared:
                levels = [level.index_select(0, order[m].index_select(0, rows)) for level in levels]
            known = covariates.index_select(0, rows)
            if self.view == "vector":
                vector = widen(standardize(levels[0]))
                levels = [condition(vector.unsqueeze(1), known).squeeze(1)]
            elif self.view == "tokens":
                levels = [condition(widen(levels[0]), known)]
            else:
                last = levels[-1]
                voxels = condition(voxels_last(last), known)
                last = voxels.transpose(1, 2).reshape([last.shape[0]] + fixed_sizes(last))
                levels = levels[:-1] + [last, standardize(voxels.mean(1))]
            placed = [place(levels[i], rows, present[:, m], m) for i, place in enumerate(self.place)]
            out.append(placed)
        return out

    def _look(self, encoder: Encoder, image: Tensor) -> list[Tensor]:
        """What an encoder says, as the strategy takes it."""
        if self.view == "pyramid":
            return encoder.pyramid(image)
        return [encoder(image) if self.view == "vector" else encoder.tokens(image)]

    def encode_vectors(self, image: Tensor, present: Tensor, covariates: Tensor) -> Tensor:
        """Vectors ``[B, M, F]``, see :meth:`encode`."""
        return torch.stack([levels[0] for levels in self.encode(image, present, covariates)], 1)

    def add_classifiers(self, plan: Plan, features: int) -> None:
        """A classifier a modality, for vectors of that width."""
        self.classifiers.extend(plan.classifier(features) for _ in plan.modalities)

    def alone_logits(self, features: Tensor, present: Tensor) -> Tensor:
        """Each modality's own logits ``[B, M, K]`` from ``features [B, M, F]``, 0 where absent."""
        each = [classifier(features[:, m]) for m, classifier in enumerate(self.classifiers)]
        return torch.stack(each, 1) * present.unsqueeze(2)

    def alone(self, features: Tensor, present: Tensor) -> Tensor | None:
        """:meth:`alone_logits`, or None in a network whose modalities have no classifiers."""
        if len(self.classifiers) == 0:
            return None
        return self.alone_logits(features, present)
