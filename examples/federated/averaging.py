"""Federated averaging of a fusion network, where sites lack modalities.

Plain FedAvg (McMahan et al., AISTATS 2017) weights each site by its number of cases. A site without PET sends its PET
encoder back as it came, but for the decay of weights, and would hold the average back with the weight of all its cases.
Here every single weight is averaged over the cases that could change it, as HeteroFL (Diao et al., ICLR 2021)
averages a parameter over the sites that have it. For that a site says how many of its cases have which modalities, and
:func:`reach` finds by gradients which weights a case of these modalities can change: not only encoders, but also the
columns of a classifier, running means, and whatever else a strategy has a part of for each modality.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmfusion.networks import FusionNetwork

State = Mapping[str, Tensor]


def reach(network: FusionNetwork, size: Sequence[int], combinations: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Which values of the state dictionary a training step on cases of certain modalities can change.

    Gradients and running statistics of noise, three times, each with other weights, so that a layer that starts at
    zero hides nothing, and with rectifiers that never close. The network itself is left as it is.

    Args:
        network: any fusion network.
        size: ``[D, H, W]`` of a case.
        combinations: modalities of a case, as ``"ct mr"``.

    Returns:
        For each combination and each name of the state dictionary a bool tensor of that value's shape.
    """
    found = {}
    with torch.random.fork_rng(devices=[]):
        for combination in combinations:
            torch.manual_seed(0)
            names = combination.split()
            present = torch.tensor([[name in names for name in network.modalities]] * 4)
            changed = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in network.state_dict().items()}
            for _ in range(3):
                for name, there in _changed(copy.deepcopy(network).cpu().train(), size, present).items():
                    changed[name] |= there
            found[combination] = changed
    return found


def _changed(probe: FusionNetwork, size: Sequence[int], present: Tensor) -> dict[str, Tensor]:
    """What one step on noise changes in a network that may be spoiled."""
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    before = {name: value.clone() for name, value in probe.named_buffers()}
    with _NeverClosed():
        output = probe.outputs(torch.randn(*present.shape, *size), present)
        losses = probe.losses(output, torch.arange(len(present)) % probe.num_classes)
    torch.stack(list(losses.values())).sum().backward()
    steps = {name: one.grad for name, one in probe.named_parameters() if one.grad is not None}
    return {name: value != before[name] for name, value in probe.named_buffers()} | {
        name: gradient != 0 for name, gradient in steps.items()
    }


class _NeverClosed(TorchFunctionMode):
    """Softplus for ReLU: what is zero behind it is so by structure, not because these values close a rectifier."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.relu, torch.relu, torch.relu_):
            return F.softplus(args[0])
        return func(*args, **(kwargs or {}))


def average(
    sent: Mapping[str, State], cases: Mapping[str, Mapping[str, int]], reached: Mapping[str, State]
) -> dict[str, Tensor]:
    """The average of the sites' weights, each value over the cases that could change it.

    What no case of any site can change is averaged over all cases. Running variances are put together by the law of
    total variance, with the spread of the sites' means in it. Whole numbers, as batches counted, become the greatest.

    Args:
        sent: state dictionary of each site.
        cases: of each site the number of training cases of each combination of modalities.
        reached: of :func:`reach`, for all these combinations.

    Returns:
        The state dictionary of the averaged network. The order of the sites does not matter, not even to the last bit.
    """
    sites = sorted(sent)
    out: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    for name, first in sent[sites[0]].items():
        values = torch.stack([sent[site][name] for site in sites])
        if not first.is_floating_point():
            out[name] = values.amax(0)
            continue
        counts = torch.stack([_count(cases[site], reached, name) for site in sites])
        everyone = torch.tensor([float(sum(cases[site].values())) for site in sites], dtype=torch.float64)
        everyone = everyone.reshape([-1] + [1] * first.dim()).expand(counts.shape)
        counts = torch.where(counts.sum(0) > 0, counts, everyone)
        shares[name] = counts / counts.sum(0)
        out[name] = (shares[name] * values.double()).sum(0).to(first.dtype)
    for name in [name for name in out if name.endswith("running_var")]:
        means = torch.stack([sent[site][name.replace("running_var", "running_mean")] for site in sites]).double()
        apart = (shares[name] * means.square()).sum(0) - (shares[name] * means).sum(0).square()
        out[name] = (out[name].double() + apart.clamp_min(0)).to(out[name].dtype)
    return out


def _count(cases: Mapping[str, int], reached: Mapping[str, State], name: str) -> Tensor:
    """How many of a site's cases could change each value."""
    each = [count * reached[combination][name].double() for combination, count in cases.items()]
    return torch.stack(each).sum(0)


def pooled(numbers: Mapping[str, Mapping[str, Any]], name: str) -> list[float]:
    """A list of numbers that each site sends, averaged over all training cases.

    Of class priors it is that of all cases together: the loss of the federation is the average of the sites' losses.
    """
    count = {site: sum(one["cases"].values()) for site, one in numbers.items()}
    total = torch.tensor([[count[site] * x for x in numbers[site][name]] for site in sorted(numbers)]).double().sum(0)
    return (total / sum(count.values())).tolist()
