"""The parts that a network is built from, by name: where each is written, and one line of help.

Here each name stands once. The choices of options and ``mmfusion networks`` come from these tables without importing
torch, and the tables of :mod:`mmfusion.networks`, which know more of each part, have the same names in the same order.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Part(NamedTuple):
    """A row of a family.

    Attributes:
        where: ``module:name`` of its class or function.
        help: what it is, in a line.
    """

    where: str
    help: str

    def load(self) -> Any:
        """The class or function, imported now."""
        module, name = self.where.split(":")
        return getattr(import_module(module), name)


_NETWORKS = "mmfusion.networks."

STRATEGIES: dict[str, Part] = {
    "input": Part(_NETWORKS + "strategies:InputFusion", "The channels enter one encoder together"),
    "single_level": Part(
        _NETWORKS + "strategies:SingleLevelFusion", "One encoder per modality, one operator on their vectors"
    ),
    "hierarchical": Part(
        _NETWORKS + "strategies:HierarchicalFusion", "An operator fuses the encoders' maps at every level"
    ),
    "attention": Part(_NETWORKS + "strategies:AttentionFusion", "Attention between the tokens of the modalities"),
    "decision": Part(
        _NETWORKS + "strategies:DecisionFusion", "One encoder and classifier per modality, one rule on their answers"
    ),
    "hybrid": Part(
        _NETWORKS + "strategies:HybridFusion", "Single-level fusion and the modalities' own classifiers, by a rule"
    ),
    "covariates": Part(_NETWORKS + "strategies:CovariatesAlone", "The covariates alone, without any voxel"),
}

ENCODERS: dict[str, Part] = {
    "resnet10": Part(_NETWORKS + "backbones:ResNetEncoder", "ResNet of 10 layers (He et al., CVPR 2016)"),
    "resnet18": Part(_NETWORKS + "backbones:ResNetEncoder", "ResNet of 18 layers"),
    "resnet34": Part(_NETWORKS + "backbones:ResNetEncoder", "ResNet of 34 layers"),
    "resnet50": Part(_NETWORKS + "backbones:ResNetEncoder", "ResNet of 50 layers, with bottleneck blocks"),
    "densenet121": Part(_NETWORKS + "backbones:DenseNetEncoder", "DenseNet of 121 layers (Huang et al., CVPR 2017)"),
    "se_resnet50": Part(_NETWORKS + "senet:SEResNetEncoder", "ResNet-50 that weights its channels (CVPR 2018)"),
    "efficientnet_b0": Part(_NETWORKS + "efficientnet:EfficientNetEncoder", "EfficientNet-B0 (Tan and Le, ICML 2019)"),
    "cnn": Part(_NETWORKS + "cnn:PlainEncoder", "Blocks of convolution, normalization, ReLU and pooling"),
    "vit": Part(
        _NETWORKS + "vit:ViTEncoder", "Vision transformer, patches of 8 voxels (Dosovitskiy et al., ICLR 2021)"
    ),
    "swin": Part(_NETWORKS + "swin:SwinEncoder", "Swin transformer, windows of 4 voxels (Liu et al., ICCV 2021)"),
    "slices": Part(_NETWORKS + "slices:SliceEncoder", "Slices of one plane through a 2D ResNet-18 or ViT"),
    "m3t": Part(_NETWORKS + "m3t:MultiPlaneSliceEncoder", "Slices of three planes in one transformer (M3T, CVPR 2022)"),
    "m3t_small": Part(
        _NETWORKS + "m3t:MultiPlaneSliceEncoder", "The same parts, for a CPU and some 48 voxels along each axis"
    ),
}

FEATURE_OPERATORS: dict[str, Part] = {
    "concat": Part(_NETWORKS + "operators:ConcatFusion", "The modalities' features side by side"),
    "add": Part(_NETWORKS + "operators:AddFusion", "The sum of one linear map per modality"),
    "tensor": Part(_NETWORKS + "operators:TensorFusion", "All products of one entry per modality (EMNLP 2017)"),
    "low_rank": Part(_NETWORKS + "operators:LowRankFusion", "These products, with a weight of low rank (ACL 2018)"),
    "bilinear": Part(_NETWORKS + "operators:BilinearFusion", "The outer product of each pair (ICCV 2015)"),
    "gated": Part(_NETWORKS + "operators:GatedFusion", "A mean whose weights depend on the case (ICML 2018)"),
    "squeeze_excitation": Part(
        _NETWORKS + "operators:SqueezeExcitationFusion", "Channels scaled by what all modalities say (CVPR 2020)"
    ),
    "moments": Part(_NETWORKS + "operators:MomentFusion", "Mean and variance over the modalities (HeMIS, 2016)"),
    "shared_specific": Part(
        _NETWORKS + "operators:SharedSpecificFusion", "What the modalities share, and what is each one's own"
    ),
}

TOKEN_OPERATORS: dict[str, Part] = {
    "joint": Part(
        _NETWORKS + "tokens:JointFusion", "Self-attention over the tokens of all modalities (TransMed, 2021)"
    ),
    "cross": Part(_NETWORKS + "tokens:CrossFusion", "Tokens of each modality query those of the others (3MT, 2023)"),
    "intra_inter": Part(
        _NETWORKS + "tokens:IntraInterFusion", "Attention within a modality plus attention to the others (AGDAF, 2022)"
    ),
    "bottleneck": Part(
        _NETWORKS + "tokens:BottleneckFusion", "The modalities exchange what they know through few tokens (MBT, 2021)"
    ),
}

DECISION_RULES: dict[str, Part] = {
    "mean": Part(_NETWORKS + "decision:MeanRule", "Mean of the class probabilities"),
    "max": Part(_NETWORKS + "decision:MaxRule", "Greatest probability of each class, scaled to a sum of 1"),
    "majority": Part(_NETWORKS + "decision:MajorityRule", "Votes, smoothed by one vote spread over the classes"),
    "weighted": Part(_NETWORKS + "decision:WeightedRule", "Weighted mean; the weights are fitted on validation cases"),
    "product": Part(_NETWORKS + "decision:ProductRule", "Bayes' rule for modalities independent given the class"),
    "stacking": Part(_NETWORKS + "decision:StackingRule", "Logistic regression on the modalities' log-probabilities"),
}

LOSSES: dict[str, Part] = {
    "unimodal": Part(_NETWORKS + "losses:unimodal", "Cross entropy of each modality's own classifier"),
    "similarity": Part(_NETWORKS + "losses:similarity", "Squared distance of the modalities' unit vectors"),
    "shared_specific": Part(_NETWORKS + "losses:shared_specific", "Shared parts agree, specific parts differ"),
    "adaptive": Part(_NETWORKS + "losses:adaptive", "Unimodal, with greater weights where the loss is lower"),
    "discriminative": Part(
        _NETWORKS + "losses:discriminative", "Features near the center of their class, centers apart"
    ),
    "kl": Part(_NETWORKS + "losses:kl", "Divergence of a bayesian head's weights from their prior"),
}

HEADS: dict[str, Part] = {
    "linear": Part("torch.nn:Linear", "One linear layer"),
    "bayesian": Part(_NETWORKS + "heads:FlipoutLinear", "One linear layer whose weights are distributions (Flipout)"),
    "logistic": Part(_NETWORKS + "heads:LogisticHead", "Logistic regression, fitted after training"),
    "ridge": Part(_NETWORKS + "heads:RidgeHead", "Ridge regression, fitted after training"),
}

CONDITIONINGS: dict[str, Part] = {
    "film": Part(_NETWORKS + "conditioning:Conditioning", "Covariates scale and shift the features (AAAI 2018)"),
    "daft": Part(_NETWORKS + "conditioning:_daft", "Covariates and the image together do (MICCAI 2021)"),
}

FAMILIES: dict[str, dict[str, Part]] = {
    "strategies": STRATEGIES,
    "encoders": ENCODERS,
    "fusion operators": FEATURE_OPERATORS,
    "token operators": TOKEN_OPERATORS,
    "decision rules": DECISION_RULES,
    "losses": LOSSES,
    "heads": HEADS,
    "conditionings": CONDITIONINGS,
}

FUSIONS: tuple[str, ...] = (*FEATURE_OPERATORS, *TOKEN_OPERATORS, *DECISION_RULES)
"""What option ``fusion`` may name; which of them goes with a strategy, :func:`mmfusion.networks.combinations` says."""
