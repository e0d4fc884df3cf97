"""One function from names to a network, and the table of which names go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks.conditioning import CONDITIONINGS
from mmfusion.networks.decision import DECISION_RULES
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.encoders import ENCODERS, build_encoder, check_options
from mmfusion.networks.heads import HEADS
from mmfusion.networks.losses import LOSSES
from mmfusion.networks.network import FusionNetwork, Plan
from mmfusion.networks.operators import FEATURE_OPERATORS
from mmfusion.networks.strategies import STRATEGIES, DecisionFusion
from mmfusion.networks.tokens import TOKEN_OPERATORS
from mmfusion.options import unknown

_OPERATORS: dict[str, Callable[..., nn.Module]] = {**FEATURE_OPERATORS, **TOKEN_OPERATORS, **DECISION_RULES}


def default_losses(strategy: str) -> dict[str, float]:
    """The further losses, with their weights, of a strategy that is not told any."""
    return {"decision": {"unimodal": 1.0}, "hybrid": {"unimodal": 0.5}}.get(strategy, {})


def combinations() -> dict[str, dict[str, tuple[str, ...]]]:
    """Which strategy takes which encoders and which fusion operators: ``{strategy: {encoders, fusion}}``.

    The first operator of a strategy is its default. Strategy ``covariates``, which sees no image, is not in it.
    """
    return {
        name: {
            "encoders": tuple(one for one, kind in ENCODERS.items() if network.view in kind.views),
            "fusion": tuple(network.operators),
        }
        for name, network in STRATEGIES.items()
        if network.view
    }


def build(
    strategy: str = "single_level",
    encoder: str | Mapping[str, str] = "resnet10",
    fusion: str | None = None,
    modalities: Sequence[str] = ("ct", "pet", "mr"),
    num_classes: int = 2,
    *,
    spatial_dims: int = 3,
    width: float = 1.0,
    norm: str = "group",
    dropout: float = 0.0,
    shared: bool = False,
    absent: str = "zero",
    decision: str = "mean",
    head: str = "linear",
    covariates: int = 0,
    conditioning: str | None = None,
    losses: Mapping[str, float] | None = None,
    standardize: bool = True,
    encoder_options: Mapping[str, Any] | None = None,
    fusion_options: Mapping[str, Any] | None = None,
) -> FusionNetwork:
    """A network that classifies several modalities; weights are random, from torch's global generator.

    Args:
        strategy: where the modalities meet: a key of :func:`combinations`; or ``covariates``, alone.
        encoder: a name of :func:`combinations`, for all modalities; or a name for each modality.
        fusion: operator of the strategy (of ``decision``: its rule); None takes its first.
        modalities: names of the channels, in their order.
        num_classes: K, at least 2.
        spatial_dims: 3 for volumes ``[B, M, D, H, W]``, 2 for images ``[B, M, H, W]``.
        width: factor on the encoder's channels.
        norm: ``group``, ``batch`` or ``instance``. BatchNorm and missing modalities do not go well together: a
            batch may leave a modality a single row.
        dropout: share of the features dropped before a classifier, in [0, 1).
        shared: one encoder for all modalities, with a learned embedding of the modality on what it says; ``input``
            fusion has one anyway.
        absent: what stands for an absent modality: ``zero``, or a ``learned`` vector, map or token, where an operator
            reads it (not ``input``, whose channel is zero, nor ``decision``, whose rule does not hear it).
        decision: rule of ``hybrid``, over the fused classifier and the modalities' own.
        head: of each classifier: ``linear``; ``bayesian`` (Flipout), which needs the loss ``kl``, weighted by 1 over
            the number of training cases; or fitted after training: ``logistic``, ``ridge``.
        covariates: numbers that each case brings beside its image.
        conditioning: how they act on the encoded features: ``film`` (the default) or ``daft``.
        losses: weight of each further loss by name. ``decision`` has ``unimodal`` 1 and ``hybrid`` ``unimodal`` 0.5
            unless told otherwise.
        standardize: standardize each encoded vector over the cases; papers do not, but behind GroupNorm training
            hardly starts without.
        encoder_options: the encoder's own options, by name; where ``encoder`` names one a modality, these for each.
        fusion_options: the operator's own options, by name.

    Raises:
        NetworkError: a name is unknown, two of them do not go together, or a number is out of range.
    """
    if strategy not in STRATEGIES:
        raise NetworkError(unknown("strategy", strategy, STRATEGIES))
    network = STRATEGIES[strategy]
    fusion = network.operators[0] if fusion is None else fusion
    _check_fusion(strategy, fusion)
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise NetworkError(f"modalities must be a list of at least one name, each once, found {modalities!r}")
    if num_classes < 2:
        raise NetworkError(f"num_classes must be at least 2, found {num_classes}")
    if spatial_dims not in (2, 3):
        raise NetworkError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
    if not 0 <= dropout < 1:
        raise NetworkError(f"dropout must lie in [0, 1), found {dropout}")
    conditioning = next(iter(CONDITIONINGS)) if conditioning is None else conditioning
    if covariates < 0:
        raise NetworkError(f"covariates must be a count, found {covariates}")
    for what, name, known in (
        ("decision", decision, DECISION_RULES),
        ("head", head, HEADS),
        ("conditioning", conditioning, CONDITIONINGS),
        ("absent", absent, ("zero", "learned")),
    ):
        if name not in known:
            raise NetworkError(unknown(what, name, known))
    rule = fusion if network is DecisionFusion else decision
    chosen = default_losses(strategy) if losses is None else dict(losses)
    _check_losses(strategy, fusion, head, chosen)
    plan = Plan(
        modalities=tuple(modalities),
        num_classes=num_classes,
        spatial_dims=spatial_dims,
        encoder=_encoder_maker(
            strategy, encoder, modalities, encoder_options, shared, width=width, norm=norm, spatial_dims=spatial_dims
        ),
        operator=_operator_maker(fusion, fusion_options),
        rule=DECISION_RULES[rule],
        head=HEADS[head],
        shared=shared,
        absent=absent,
        covariates=covariates,
        conditioning=conditioning,
        dropout=dropout,
        standardize=standardize,
        losses=chosen,
    )
    return network(plan)


def _check_fusion(strategy: str, fusion: str) -> None:
    """Refuse an operator that is unknown, or not of this strategy."""
    operators = STRATEGIES[strategy].operators
    if fusion not in operators:
        everywhere = dict.fromkeys(name for one in STRATEGIES.values() for name in one.operators)
        if fusion not in everywhere:
            raise NetworkError(unknown("fusion", fusion, everywhere))
        raise NetworkError(f"strategy '{strategy}' takes fusion {_either(operators)}, found '{fusion}'")


def _check_losses(strategy: str, fusion: str, head: str, losses: Mapping[str, float]) -> None:
    """Refuse a loss that is unknown, or that this network has nothing to compute it from."""
    for name, weight in losses.items():
        if name not in LOSSES:
            raise NetworkError(unknown("loss", name, LOSSES))
        if not weight >= 0:
            raise NetworkError(f"the weight of loss '{name}' must be at least 0, found {weight}")
        LOSSES[name].check(name, strategy, fusion, head)
    alone = any(LOSSES[name].alone and weight > 0 for name, weight in losses.items())
    if not alone and (strategy == "hybrid" or fusion == "majority"):
        raise NetworkError(
            f"nothing trains the classifiers of the modalities that {strategy} fusion hears: add the loss 'unimodal' "
            f"or 'adaptive', found the losses {dict(losses)}"
        )
    if head == "bayesian" and "kl" not in losses:
        raise NetworkError(
            "head 'bayesian' needs the loss 'kl' with the weight 1 / number of training cases, without which its "
            f"uncertainty is trained away, found the losses {dict(losses)}"
        )


def _encoder_maker(
    strategy: str,
    encoder: str | Mapping[str, str],
    modalities: Sequence[str],
    options: Mapping[str, Any] | None,
    shared: bool,
    **how: Any,
) -> Callable[[str | None, int], Encoder]:
    """From a modality (None: one encoder for all) and its channels to an encoder, with its names checked."""
    view = STRATEGIES[strategy].view
    mixed = not isinstance(encoder, str)
    names: dict[str, str] = {"": encoder} if isinstance(encoder, str) else dict(encoder)
    if mixed and (shared or strategy == "input"):
        why = "one encoder is shared" if shared else "strategy 'input' has one encoder"
        raise NetworkError(f"{why}: give one encoder name, found one for each modality")
    if mixed and set(names) != set(modalities):
        raise NetworkError(f"encoder must name one for each of {', '.join(modalities)}, found {dict(names)}")
    for name in names.values():
        if name not in ENCODERS:
            raise NetworkError(unknown("encoder", name, ENCODERS))
        if view and view not in ENCODERS[name].views:
            able = _either(one for one, kind in ENCODERS.items() if view in kind.views)
            wanted = {"vector": "a vector", "tokens": "tokens", "pyramid": "a pyramid of maps"}[view]
            raise NetworkError(f"strategy '{strategy}' takes an encoder that gives {wanted} ({able}), found '{name}'")
    if not mixed:
        return lambda modality, channels: build_encoder(names[""], channels, options=options, **how)
    own = options or {}
    if lost := [name for name in own if name not in modalities or not isinstance(own[name], Mapping)]:
        raise NetworkError(
            "with an encoder a modality, encoder_options are a table for each of "
            f"{', '.join(modalities)}, found '{lost[0]}'"
        )
    return lambda modality, channels: build_encoder(
        names[str(modality)], channels, options=own.get(str(modality)), **how
    )


def _operator_maker(fusion: str, options: Mapping[str, Any] | None) -> Callable[..., nn.Module]:
    """The operator (of decision fusion: its rule) with its own options, of which the names are checked."""
    check_options("fusion", fusion, _OPERATORS[fusion], options)
    return partial(_OPERATORS[fusion], **(options or {}))


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)
