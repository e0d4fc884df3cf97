"""What of a network is trained by gradients, what is fitted afterwards, and what stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mmfusion.networks.heads import FittedHead

if TYPE_CHECKING:
    from torch import nn


def fitted_heads(network: nn.Module) -> list[tuple[FittedHead, int | None]]:
    """The heads that are fitted after training, and the number of the modality whose vectors each reads.

    None is the classifier of the fused features, see ``features`` and ``modality_features`` of the network's outputs.
    """
    classifiers = [
        (getattr(network, "classifier", None), None),
        *((one, m) for m, one in enumerate(getattr(network, "classifiers", ()))),
    ]
    return [
        (part, modality)
        for classifier, modality in classifiers
        if classifier is not None
        for part in classifier.modules()
        if isinstance(part, FittedHead)
    ]


def learns(network: nn.Module) -> bool:
    """Whether any parameter has a use for a gradient; fitted heads alone have none."""
    fitted = {id(parameter) for head, _ in fitted_heads(network) for parameter in head.parameters()}
    return any(parameter.requires_grad and id(parameter) not in fitted for parameter in network.parameters())


def freeze(network: nn.Module, encoders: bool) -> None:
    """Take the gradient from all that is not to be trained.

    A frozen encoder stays in evaluation mode, and its BatchNorm keeps its statistics.

    Args:
        network: changed in place.
        encoders: freeze them. Fitted heads are frozen in any case where nothing before them is left to be trained.
    """
    if encoders:
        cast("nn.ModuleList", network.encoders).requires_grad_(False)
    if not learns(network):
        network.requires_grad_(False)
    network.train(network.training)
