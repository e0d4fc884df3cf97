"""Classification heads: from features to logits. New ones are new rows of ``HEADS``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfusion.errors import NetworkError


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


class FittedHead(nn.Linear):
    """Base of the heads that are fitted after training: ``[B, in_features]`` to ``[B, out_features]``.

    Until then it is the linear classifier that the layers before it are trained through, as they are through any other;
    :meth:`fit` replaces its weights. The deviations by which the features are scaled are part of the weights, so that a
    file of weights, an export and a trace see one linear layer.
    """

    @torch.no_grad()
    def fit(self, features: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Learn from cases whose labels nothing before the head has seen.

        The features are standardized first; one that is constant stays 0.

        Args:
            features: ``[N, in_features]``, what :meth:`forward` reads of each case.
            label: ``[N]`` class numbers, each class at least once.
            weight: ``[N]``, how much each case counts, scaled to a mean of 1; all the same if None.

        Raises:
            NetworkError: a class has no case, or a feature is not finite.
        """
        features, label = features.detach().cpu().double(), label.cpu()
        check_classes("a head", label, self.out_features)
        if not features.isfinite().all():
            raise NetworkError("a head is fitted on finite features, found NaN or infinite ones")
        weight = torch.ones(len(label)) if weight is None else weight.cpu()
        weight = weight.double() / weight.double().mean()
        mean, deviation = features.mean(0), features.std(0, correction=0)
        deviation[deviation <= 1e-9 * mean.abs() + 1e-12] = 1.0
        slope, intercept = self.solve((features - mean) / deviation, label, weight)
        slope = slope / deviation
        self.weight.copy_(slope)
        self.bias.copy_(intercept - slope @ mean)

    def solve(self, features: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[out_features, in_features]`` and bias ``[out_features]`` for standardized features, in float64."""
        raise NotImplementedError


class LogisticHead(FittedHead):
    """Multinomial logistic regression: minimizes ``sum_i w_i nll_i + |W|^2 / 2``, over weights without the bias."""

    def solve(self, features: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return logistic_regression(features.numpy(), label.numpy(), weight.numpy(), tol=1e-8, max_iter=10_000)


class RidgeHead(FittedHead):
    """Ridge regression to 1 for the case's class and 0 for the others, in closed form, with a penalty of 1.

    Its values y are scaled to logits ``y / (2 v)``, v being the mean squared error of leaving each case out, which has
    a closed form, too: the logits of a linear discriminant analysis, if the classes are normal with one covariance.
    """

    def solve(self, features: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        target = F.one_hot(label, self.out_features).double()
        share = (weight / weight.sum()).unsqueeze(1)
        middle, level = (share * features).sum(0), (share * target).sum(0)
        root = weight.sqrt().unsqueeze(1)
        seen, wanted = root * (features - middle), root * (target - level)
        gram = seen @ seen.T
        inverse = torch.linalg.inv(gram + torch.eye(len(label), dtype=torch.float64))
        slope = (seen.T @ (inverse @ wanted)).T
        error = target - level - (features - middle) @ slope.T
        leverage = (gram * inverse).sum(1, keepdim=True) + share
        left_out = error / (1 - leverage).clamp_min(1e-6)
        scale = 1 / (2 * (share * left_out.square()).sum(0).mean().clamp_min(1e-3))
        return scale * slope, scale * (level - slope @ middle)


def logistic_regression(
    features: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Weights ``[K, F]`` and bias ``[K]`` as scikit-learn fits them; of two classes it has the difference only.

    Args:
        features: ``[N, F]``.
        label: ``[N]``, each class at least once.
        weight: ``[N]``, of the cases; or None.
        options: of ``LogisticRegression``.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(**options).fit(features, label, weight)
    weight, bias = model.coef_, model.intercept_
    if len(bias) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight), torch.from_numpy(bias)


def check_classes(owner: str, label: Tensor, num_classes: int) -> None:
    """Refuse labels among which a class is missing (NetworkError)."""
    missing = sorted(set(range(num_classes)) - set(label.tolist()))
    if missing:
        raise NetworkError(f"{owner} is fitted on cases of every class; class {missing[0]} has none")


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "bayesian": FlipoutLinear,
    "logistic": LogisticHead,
    "ridge": RidgeHead,
}
