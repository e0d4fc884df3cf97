"""Classification heads: from features to logits. New ones are new rows of ``HEADS``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FlipoutLinear(nn.Linear):
    """Bayesian linear layer: ``[B, in_features]`` to ``[B, out_features]``.

    Each weight has a normal posterior N(mu, sigma^2), sigma = softplus(rho), and the prior N(0, 1); the bias is a
    plain parameter. In training a draw is ``x mu^T + b + ((x * s) dW^T) * r`` with dW = sigma * eps, eps ~ N(0, 1),
    one for the batch, and signs ``s [B, in_features]``, ``r [B, out_features]``, which make the perturbations of the
    cases uncorrelated (Flipout: Wen et al., ICLR 2018). In evaluation the means are used, as ``nn.Linear`` does.

    As the head of a fusion network after Huang et al., Front Med 2022, 9:923096. Their paper has a probabilistic
    network; that the layer is a single one, rho = -4 at the start and the prior are reconstructed. One layer because
    it then takes the place of the linear head, with the same answer (the bias) where there are no features.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.rho = nn.Parameter(torch.full_like(self.weight, -4.0))

    def forward(self, input: Tensor) -> Tensor:
        mean = F.linear(input, self.weight, self.bias)
        if not self.training:
            return mean
        delta = F.softplus(self.rho) * torch.randn_like(self.rho)
        signs_in = 1 - 2 * torch.randint_like(input, 2)
        signs_out = 1 - 2 * torch.randint_like(mean, 2)
        return mean + F.linear(input * signs_in, delta) * signs_out

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence of the posterior from the prior, summed over the weights, in nats."""
        sigma = F.softplus(self.rho)
        return (0.5 * (sigma**2 + self.weight**2 - 1) - sigma.log()).sum()


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": nn.Linear, "bayesian": FlipoutLinear}
