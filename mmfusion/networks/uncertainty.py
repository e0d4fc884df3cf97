"""How sure a network is, and why it is not: samples of what is random in it, or several networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from mmfusion.errors import NetworkError
from mmfusion.networks.encoder import Encoder
from mmfusion.networks.heads import FlipoutLinear
from mmfusion.networks.network import FusionNetwork


class Uncertainty(NamedTuple):
    """Class probabilities and the parts of their uncertainty, in nats; ``total = epistemic + aleatoric``.

    Attributes:
        probabilities: ``[B, K]``, mean p of the samples p_s.
        total: ``[B]``, entropy H(p).
        epistemic: ``[B]``, mutual information H(p) - mean H(p_s): the samples disagree, more training data would help.
        aleatoric: ``[B]``, mean H(p_s): each sample is unsure.
    """

    probabilities: Tensor
    total: Tensor
    epistemic: Tensor
    aleatoric: Tensor


def predict_with_uncertainty(
    networks: FusionNetwork | Sequence[FusionNetwork],
    image: Tensor,
    present: Tensor | None = None,
    covariates: Tensor | None = None,
    *,
    samples: int = 50,
    seed: int = 0,
) -> Uncertainty:
    """Probabilities and uncertainty of a network with random parts, or of several networks.

    Sampled is all that is random: heads ``bayesian`` (Flipout, Wen et al., ICLR 2018) and dropout of more than 0
    (Monte Carlo dropout: Gal & Ghahramani, ICML 2016); normalization stays as in evaluation. Several networks are a
    deep ensemble (Lakshminarayanan et al., NeurIPS 2017), every member with equal weight; without random parts each
    runs once. An encoder without random parts runs once for all samples. Training flags and torch's random state are
    left as they were.

    Args:
        networks: one network, or the members of an ensemble.
        image, present, covariates: as for the network.
        samples: draws of each network, at least 2.
        seed: of the draws, the same for each network: the order of the members plays no role.

    Raises:
        NetworkError: a single network without anything random, members that do not fit together, or too few samples.
    """
    members = [networks] if isinstance(networks, FusionNetwork) else list(networks)
    draws = _draws(members, samples)
    logits = []
    with torch.inference_mode(), torch.random.fork_rng(range(torch.cuda.device_count())):
        for member in members:
            torch.manual_seed(seed)
            with _sampling(member):
                logits += [member(image, present, covariates) for _ in range(draws)]
        return _parts(torch.stack(logits).double().softmax(2), image.dtype)


def _parts(sampled: Tensor, dtype: torch.dtype) -> Uncertainty:
    """Sampled probabilities ``[S, B, K]``, in double precision: the epistemic part is a small difference."""
    mean = sampled.mean(0)
    aleatoric = torch.special.entr(sampled).sum(2).mean(0)
    epistemic = (torch.special.entr(mean).sum(1) - aleatoric).clamp_min(0)  # below 0 by rounding alone
    parts = mean, aleatoric + epistemic, epistemic, aleatoric
    return Uncertainty(*(part.to(dtype) for part in parts))


def _draws(members: list[FusionNetwork], samples: int) -> int:
    """How often each member runs, after the members were checked."""
    if not members:
        raise NetworkError("predict_with_uncertainty needs at least one network, found none")
    first = members[0]
    for member in members:
        if (member.modalities, member.num_classes) != (first.modalities, first.num_classes):
            raise NetworkError(
                "the members of an ensemble must have the same modalities and classes, found "
                f"{', '.join(first.modalities)} with {first.num_classes} classes and "
                f"{', '.join(member.modalities)} with {member.num_classes}"
            )
    if not any(_random_parts(member) for member in members):
        if len(members) == 1:
            raise NetworkError(
                "this network has nothing random to sample, so that its epistemic uncertainty would read 0: "
                "build it with head 'bayesian' or dropout above 0, or give several networks"
            )
        return 1
    if samples < 2:
        raise NetworkError(f"samples must be at least 2, found {samples}")
    return samples


def _random_parts(module: nn.Module) -> list[nn.Module]:
    """The layers inside ``module`` that draw random numbers in training mode."""
    return [
        part
        for part in module.modules()
        if isinstance(part, FlipoutLinear) or (isinstance(part, _DropoutNd) and part.p > 0)
    ]


@contextmanager
def _sampling(network: FusionNetwork) -> Iterator[None]:
    """Evaluation mode with only the random parts in training mode, and encoders that remember their answer."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        for part in _random_parts(network):
            part.training = True
        with ExitStack() as stack:
            for encoder in network.encoders:
                if not _random_parts(encoder):
                    stack.enter_context(_remembering(cast(Encoder, encoder)))
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _remembering(encoder: Encoder) -> Iterator[None]:
    """The encoder's first answer is its answer to all calls: every sample gives it the same images."""

    def once(method: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        answers: list[Any] = []

        def remembered(image: Tensor) -> Any:
            if not answers:
                answers.append(method(image))
            return answers[0]

        return remembered

    names = [{"vector": "forward", "tokens": "tokens", "pyramid": "pyramid"}[view] for view in encoder.views]
    for name in names:
        setattr(encoder, name, once(getattr(encoder, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(encoder, name)
