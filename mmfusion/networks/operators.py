"""Fusion operators: several modalities, of which some may be absent, to one result, position by position.

An operator takes ``values [B, M, N, F]`` (zero where absent, or a learned vector; N positions, one for a vector) and
``present [B, M]`` to ``[B, N, out_features]`` and the weight of each modality ``[B, M]``, or None where there is none.
So the same operators fuse vectors (single-level fusion) and the maps of a pyramid (hierarchical fusion). New ones are
new rows of ``FEATURE_OPERATORS``.

``concat``, ``tensor``, ``low_rank`` and ``bilinear`` have a slot for each modality, which holds zeros, or the learned
vector, where it is absent. ``add``, ``gated``, ``squeeze_excitation``, ``moments`` and ``shared_specific`` look at the
present modalities only, whatever the others hold:

=====================  ==================================================================  =================
operator               what an absent modality is                                          learned vector
=====================  ==================================================================  =================
``concat``             its slot, zeros                                                     in its slot
``add``                left out, the sum rescaled                                          not looked at
``tensor``             zeros and the 1: the products of the others stay                    a factor
``low_rank``           zeros and the 1: a constant factor                                  a factor
``bilinear``           a constant factor: of a pair, the other one is left                 a factor
``gated``              weight 0                                                            not looked at
``squeeze_excitation`` its slot, zeros, and zeros in the joint layer                       not looked at
``moments``            left out of mean and variance                                       not looked at
``shared_specific``    left out of the shared mean; zeros as its specific part             not looked at
=====================  ==================================================================  =================

A case without any modality is 0 everywhere but in ``concat`` with learned vectors, so that the classifier's bias
alone answers it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import at_least_one, counted
from mmfusion.networks.losses import cross_entropy, pair_distance
from mmfusion.options import unknown

MOST_PRODUCTS = 1_000_000  # entries of a tensor fusion


class FeatureOperator(nn.Module):
    """Base of the fusion operators.

    Args:
        modalities: M.
        features: F.

    Attributes:
        out_features: width of the fused result.
    """

    out_features: int = 0

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__()

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class ConcatFusion(FeatureOperator):
    """Concatenation, zeros standing for an absent modality: ``[B, M, N, F]`` to ``[B, N, M * F]``."""

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        self.out_features = modalities * features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        return values.transpose(1, 2).flatten(2), None


class GatedFusion(FeatureOperator):
    """Weighted mean with weights that the case itself decides: ``[B, M, N, F]`` to ``[B, N, F]``.

    Gated attention of Ilse et al. (ICML 2018): the score of a modality is ``w (tanh(V h) * sigmoid(U h))`` of its mean
    h over the positions, with its own V, U and w a modality, since each encoder has a feature space of its own. A
    softmax over the present modalities makes the scores weights: they sum to one, and are 0 for an absent modality.
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        hidden = max(4, features // 4)
        self.gates = nn.ModuleList(nn.Linear(features, 2 * hidden) for _ in range(modalities))
        self.scores = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(modalities))
        self.out_features = features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        scored: list[Tensor] = []
        for m, (gate, score) in enumerate(zip(self.gates, self.scores, strict=True)):
            value, opening = gate(values[:, m].mean(1)).chunk(2, 1)
            scored.append(score(torch.tanh(value) * torch.sigmoid(opening)))
        scores = torch.cat(scored, 1).masked_fill(~counted(present), float("-inf"))
        weights = torch.softmax(scores, 1) * present
        return (weights[:, :, None, None] * values).sum(1), weights


class AddFusion(FeatureOperator):
    """Sum of linear maps: ``z = f(sum_m W_m v_m)``, ``[B, M, N, F]`` to ``[B, N, out]``.

    An absent modality is left out and the sum scaled by M over the number that is present, so that its size does not
    tell how many there are (reconstruction: the formula knows no absence).

    Args:
        out: width of the result; None takes ``features``.
        activation: ``relu`` or ``identity``, f of the formula.
    """

    def __init__(self, modalities: int, features: int, *, out: int | None = None, activation: str = "relu") -> None:
        super().__init__(modalities, features)
        if activation not in ("relu", "identity"):
            raise NetworkError(unknown("add option activation", activation, ("relu", "identity")))
        self.out_features = at_least_one("add option out", features if out is None else out)
        self.maps = nn.ModuleList(nn.Linear(features, self.out_features, bias=False) for _ in range(modalities))
        self.relu = activation == "relu"

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros_like(values[:, 0, :, :1])
        for m, linear in enumerate(self.maps):
            total = total + linear(values[:, m]) * present[:, m, None, None]
        scale = torch.reciprocal(present.sum(1).clamp_min(1).to(total.dtype)) * present.shape[1]
        total = total * scale[:, None, None]
        return torch.relu(total) if self.relu else total, None


class TensorFusion(FeatureOperator):
    """Outer product of all modalities: ``[v_1; 1] (x) ... (x) [v_M; 1]``, flattened (Zadeh et al., EMNLP 2017).

    ``[B, M, N, F]`` to ``[B, N, (F + 1) ** M]``: every product of one entry a modality. An absent modality is 0, but
    its 1 stays, so that the products of the others are all there, unchanged.

    Args:
        out: features that each modality is brought to first by its own layer without a bias, as the paper's small
            networks do; None takes them as they are.

    Raises:
        NetworkError: the result would have more than a million entries.
    """

    def __init__(self, modalities: int, features: int, *, out: int | None = None) -> None:
        super().__init__(modalities, features)
        width = at_least_one("tensor option out", features if out is None else out)
        self.out_features = (width + 1) ** modalities
        if self.out_features > MOST_PRODUCTS:
            raise NetworkError(
                f"fusion 'tensor' of {modalities} modalities with {width} features makes {self.out_features:,} "
                f"products, more than {MOST_PRODUCTS:,}; use fusion 'low_rank', or a smaller option out"
            )
        self.project = nn.ModuleList(
            nn.Identity() if out is None else nn.Linear(features, width, bias=False) for _ in range(modalities)
        )

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        product = torch.ones_like(values[:, 0, :, :1])
        for m, project in enumerate(self.project):
            extended = F.pad(project(values[:, m]), [0, 1], value=1.0)  # [B, N, F + 1]
            product = (product.unsqueeze(3) * extended.unsqueeze(2)).flatten(2)
        return product * present.any(1)[:, None, None], None


class LowRankFusion(FeatureOperator):
    """Tensor fusion whose weight has low rank (Liu et al., ACL 2018): ``[B, M, N, F]`` to ``[B, N, out]``.

    ``h = sum_r w_r prod_m (U_mr [v_m; 1]) + b``, the product entry by entry: the linear layer behind
    :class:`TensorFusion`, with the weight ``sum_r w_r U_1r (x) ... (x) U_Mr``, without the tensor. Initialized as in
    the authors' code: Xavier normal, b zero.

    Args:
        rank: R, number of terms.
        out: width of the result; None takes ``features``.
    """

    def __init__(self, modalities: int, features: int, *, rank: int = 4, out: int | None = None) -> None:
        super().__init__(modalities, features)
        rank = at_least_one("low_rank option rank", rank)
        self.out_features = at_least_one("low_rank option out", features if out is None else out)
        self.factors = nn.Parameter(torch.empty(modalities, rank, features + 1, self.out_features))
        self.rank_weight = nn.Parameter(torch.empty(1, rank))
        self.bias = nn.Parameter(torch.zeros(self.out_features))
        for factor in self.factors.data.flatten(0, 1):
            nn.init.xavier_normal_(factor)
        nn.init.xavier_normal_(self.rank_weight)

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        extended = F.pad(values, [0, 1], value=1.0)  # [B, M, N, F + 1]
        # einsum, as matmul would copy the factors for each case
        terms = torch.einsum("bmnf,mrfd->bmrnd", extended, self.factors).prod(1)  # [B, R, N, out]
        fused = (terms * self.rank_weight[0, :, None, None]).sum(1) + self.bias
        return fused * present.any(1)[:, None, None], None


class BilinearFusion(FeatureOperator):
    """Bilinear pooling of every pair of modalities: ``[B, M, N, F]`` to ``[B, N, pairs * rank ** 2]``.

    Each modality is projected to ``rank`` features (its own layer); a pair's outer product is flattened, its signed
    square root taken, and scaled to length 1 (Lin et al., ICCV 2015). Ge et al. (MICCAI 2017) pool the joint network's
    map in this way, weighted by its class activation map; the weighting is not part of this operator. Reconstructed:
    the projections, whose bias lets a lone modality through, and all pairs of more than two modalities.

    Args:
        rank: features of each modality before the product.
    """

    def __init__(self, modalities: int, features: int, *, rank: int = 16) -> None:
        super().__init__(modalities, features)
        if modalities < 2:
            raise NetworkError("fusion 'bilinear' needs at least 2 modalities, found 1")
        rank = at_least_one("bilinear option rank", rank)
        self.project = nn.ModuleList(nn.Linear(features, rank) for _ in range(modalities))
        self.out_features = modalities * (modalities - 1) // 2 * rank**2

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        projected = [project(values[:, m]) for m, project in enumerate(self.project)]
        pairs: list[Tensor] = []
        for i in range(len(projected)):
            for j in range(i + 1, len(projected)):
                product = (projected[i].unsqueeze(3) * projected[j].unsqueeze(2)).flatten(2)
                # the small number keeps the root's gradient finite at 0
                rooted = torch.sign(product) * (torch.sqrt(product.abs() + 1e-6) - 1e-3)
                pairs.append(F.normalize(rooted, dim=2, eps=1e-3))
        return torch.cat(pairs, 2) * present.any(1)[:, None, None], None


class SqueezeExcitationFusion(FeatureOperator):
    """Each modality's channels scaled by what all of them say (MMTM: Joze et al., CVPR 2020).

    The mean over the positions of every present modality (squeeze) is read by one layer of ``F M / reduction``
    features; from it, a layer a modality makes gates ``2 sigmoid(...)`` for its channels (excitation), which are 1 at
    an undecided 0. The gated values stand side by side: ``[B, M, N, F]`` to ``[B, N, M F]``.

    Args:
        reduction: how much narrower the joint layer is.
    """

    def __init__(self, modalities: int, features: int, *, reduction: int = 4) -> None:
        super().__init__(modalities, features)
        joint = max(4, modalities * features // at_least_one("squeeze_excitation option reduction", reduction))
        self.squeeze = nn.Linear(modalities * features, joint)
        self.excite = nn.ModuleList(nn.Linear(joint, features) for _ in range(modalities))
        self.out_features = modalities * features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        values = values * present[:, :, None, None]
        joint = torch.relu(self.squeeze(values.mean(2).flatten(1)))
        gated = [values[:, m] * (2 * torch.sigmoid(excite(joint))).unsqueeze(1) for m, excite in enumerate(self.excite)]
        return torch.cat(gated, 2), None


class MomentFusion(FeatureOperator):
    """Mean and variance over the present modalities (HeMIS: Havaei et al., MICCAI 2016).

    ``[B, M, N, F]`` to ``[B, N, 2 F]``. The variance of one modality is 0, of more the unbiased one. The order of the
    modalities does not matter, so their features must mean the same: training makes them.
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        self.out_features = 2 * features

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        there = present[:, :, None, None]
        count = present.sum(1)[:, None, None]
        mean = (values * there).sum(1) / count.clamp_min(1)
        squares = (values - mean.unsqueeze(1)).square() * there
        return torch.cat([mean, squares.sum(1) / (count - 1).clamp_min(1)], 2), None


class SharedSpecificFusion(FeatureOperator):
    """What the modalities share and what is each one's own, apart (after Wang et al., CVPR 2023).

    One layer for all modalities finds what they share, averaged over the present ones; a layer a modality finds the
    rest, side by side: ``[B, M, N, F]`` to ``[B, N, F + M F]``. Loss ``shared_specific`` makes the two differ. That the
    shared parts of all modalities agree, that shared and specific parts are orthogonal, and that the specific part
    tells the modality is from the paper; widths, the mean and the exact terms are reconstructed.
    """

    def __init__(self, modalities: int, features: int) -> None:
        super().__init__(modalities, features)
        self.shared = nn.Linear(features, features)
        self.specific = nn.ModuleList(nn.Linear(features, features) for _ in range(modalities))
        # fixed, as the layer before it learns: a network without the loss would have a layer without a gradient
        self.register_buffer("directions", F.normalize(torch.randn(features, modalities), dim=0))
        self.out_features = features + modalities * features

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, M, N, F]`` to the shared and the specific parts, each ``[B, M, N, F]``."""
        specific = [layer(values[:, m]) for m, layer in enumerate(self.specific)]
        return self.shared(values), torch.stack(specific, 1)

    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        shared, specific = self.parts(values)
        there = present[:, :, None, None]
        mean = (shared * there).sum(1) / present.sum(1).clamp_min(1)[:, None, None]
        return torch.cat([mean, (specific * there).transpose(1, 2).flatten(2)], 2), None

    def separation(self, vectors: Tensor, present: Tensor) -> Tensor:
        """How far the parts are from what they should be, for ``vectors [B, M, F]``: a number, 0 at best.

        The distance of the shared parts of a case (see ``losses.pair_distance``), the mean squared cosine between a
        modality's two parts, and the cross entropy of a linear classifier, with fixed random directions as weights,
        that tells the modality from the specific part; each over the present modalities.
        """
        shared, specific = (part.squeeze(2) for part in self.parts(vectors.unsqueeze(2)))
        case, modality = torch.nonzero(present, as_tuple=True)
        cosine = F.cosine_similarity(shared[case, modality], specific[case, modality]).square().sum()
        told = cross_entropy(specific[case, modality] @ self.get_buffer("directions"), modality, None)
        return pair_distance(shared, present) + cosine / max(len(case), 1) + told


FEATURE_OPERATORS: dict[str, Callable[..., FeatureOperator]] = {
    "concat": ConcatFusion,
    "add": AddFusion,
    "tensor": TensorFusion,
    "low_rank": LowRankFusion,
    "bilinear": BilinearFusion,
    "gated": GatedFusion,
    "squeeze_excitation": SqueezeExcitationFusion,
    "moments": MomentFusion,
    "shared_specific": SharedSpecificFusion,
}
