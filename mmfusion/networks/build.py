"""One function from names to a network, and the table of which names go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmfusion.errors import NetworkError
from mmfusion.networks.encoders import ENCODERS, build_encoder
from mmfusion.networks.network import STRATEGIES, FusionNetwork
from mmfusion.options import unknown


def combinations() -> dict[str, dict[str, tuple[str, ...]]]:
    """Which strategy takes which encoders and which fusion operators: ``{strategy: {encoders, fusion}}``.

    The first operator of a strategy is its default.
    """
    return {
        name: {"encoders": tuple(ENCODERS), "fusion": tuple(network.operators)} for name, network in STRATEGIES.items()
    }


def build(
    strategy: str = "single_level",
    encoder: str = "resnet10",
    fusion: str | None = None,
    modalities: Sequence[str] = ("ct", "pet", "mr"),
    num_classes: int = 2,
    width: float = 1.0,
    norm: str = "group",
    dropout: float = 0.0,
    encoder_options: Mapping[str, Any] | None = None,
) -> FusionNetwork:
    """A network that classifies several modalities; weights are random, from torch's global generator.

    Args:
        strategy: where the modalities meet: ``input``, ``single_level`` or ``decision``.
        encoder: ``resnet10``, ``resnet18``, ``densenet121``, ``m3t`` (with ``norm="batch"`` as in its paper) or
            ``m3t_small``.
        fusion: operator of the strategy; None takes its first (see :func:`combinations`).
        modalities: names of the channels, in their order.
        num_classes: K, at least 2.
        width: factor on the encoder's channels.
        norm: ``group``, ``batch`` or ``instance``. BatchNorm and missing modalities do not go well together: a
            batch may leave a modality a single row.
        dropout: share of the features dropped before the classifier, in [0, 1).
        encoder_options: the encoder's own options, by name.

    Raises:
        NetworkError: a name is unknown, two of them do not go together, or a number is out of range.
    """
    if strategy not in STRATEGIES:
        raise NetworkError(unknown("strategy", strategy, STRATEGIES))
    operators = STRATEGIES[strategy].operators
    fusion = operators[0] if fusion is None else fusion
    if fusion not in operators:
        everywhere = dict.fromkeys(name for one in STRATEGIES.values() for name in one.operators)
        if fusion not in everywhere:
            raise NetworkError(unknown("fusion", fusion, everywhere))
        raise NetworkError(f"strategy '{strategy}' takes fusion {' or '.join(operators)}, found '{fusion}'")
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise NetworkError(f"modalities must be a list of at least one name, each once, found {modalities!r}")
    if num_classes < 2:
        raise NetworkError(f"num_classes must be at least 2, found {num_classes}")
    if not 0 <= dropout < 1:
        raise NetworkError(f"dropout must lie in [0, 1), found {dropout}")
    make = partial(build_encoder, encoder, width=width, norm=norm, options=encoder_options)
    return STRATEGIES[strategy](make, fusion, tuple(modalities), num_classes, dropout)
