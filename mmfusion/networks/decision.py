"""Decision rules: what each modality alone says, to one answer.

A rule takes logits ``[B, M, K]`` of each modality and ``present [B, M]`` to log-probabilities ``[B, K]`` and the
weight of each modality ``[B, M]``, or None where there is none. A row without any modality gets equal probabilities
(of ``product``, the prior). New ones are new rows of ``DECISION_RULES``.

Rules have no parameters that are trained with the network. Those that learn something (``weighted``, ``stacking``)
learn it from cases that the network was not trained on, by :meth:`DecisionRule.fit`, and keep it in buffers, so that
the weights on disk hold it. Until then they answer like a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.networks.blocks import counted
from mmfusion.networks.heads import check_classes, logistic_regression


class DecisionRule(nn.Module):
    """Base of the rules.

    Args:
        modalities: M.
        num_classes: K.

    Attributes:
        learns: whether :meth:`fit` learns anything.
    """

    learns = False

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.num_classes = num_classes

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def fit(
        self, modality_logits: Tensor, present: Tensor, label: Tensor, class_weight: Sequence[float] | None = None
    ) -> None:
        """Learn from cases that the network was not trained on; a rule with nothing to learn does nothing.

        Args:
            modality_logits: ``[N, M, K]``.
            present: ``[N, M]`` bool.
            label: ``[N]`` class numbers, each class at least once.
            class_weight: ``[K]``, of the training loss; so that the rule keeps the prior that the network learned.

        Raises:
            NetworkError: a class has no case.
        """

    def set_prior(self, shares: Sequence[float]) -> None:
        """Tell the class shares ``[K]`` that the modalities' classifiers learned from; most rules do not need them."""


class MeanRule(DecisionRule):
    """Mean of the class probabilities of the present modalities."""

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = present / present.sum(1, keepdim=True).clamp_min(1)
        return _weighted_mean(modality_logits, present, weights), weights


class MaxRule(DecisionRule):
    """The greatest probability that any present modality gives each class, scaled to a sum of 1."""

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        used = counted(present).unsqueeze(2)
        greatest = torch.log_softmax(modality_logits, 2).masked_fill(~used, float("-inf")).amax(1)
        return torch.log_softmax(greatest, 1), None


class MajorityRule(DecisionRule):
    """Votes of the present modalities, each for its most probable class: ``(votes + 1 / K) / (voters + 1)``.

    The one vote that is spread over all classes keeps the logarithm finite (Laplace's rule with a weight of one vote).
    Modalities that find classes equally probable share their vote. Votes have no gradient: the modalities learn from
    their own loss.
    """

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        best = (modality_logits == modality_logits.amax(2, keepdim=True)).to(modality_logits.dtype)
        votes = (best / best.sum(2, keepdim=True) * present.unsqueeze(2)).sum(1)
        voters = present.sum(1, keepdim=True)
        shares = (votes + 1.0 / self.num_classes) / (voters + 1)
        # zero times the logits: a path for the gradient, which distributed training needs
        return torch.log(shares) + 0 * modality_logits.sum(1), present / voters.clamp_min(1)


class WeightedRule(DecisionRule):
    """Weighted mean of the class probabilities, the weights scaled to a sum of 1 over the present modalities.

    :meth:`fit` chooses the weights that minimize the negative log-likelihood; before, all are equal.
    """

    learns = True
    shares: Tensor

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__(modalities, num_classes)
        self.register_buffer("shares", torch.full((modalities,), 1.0 / modalities))

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        # where only modalities of weight 0 are left, they count the same
        raw = (self.shares + 1e-6) * present
        weights = raw / raw.sum(1, keepdim=True).clamp_min(1e-12)
        return _weighted_mean(modality_logits, present, weights), weights

    def fit(
        self, modality_logits: Tensor, present: Tensor, label: Tensor, class_weight: Sequence[float] | None = None
    ) -> None:
        check_classes("a decision rule", label, self.num_classes)
        logits = modality_logits.detach().double()
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64)
        score = torch.zeros(self.modalities, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([score], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            raw = torch.softmax(score, 0) * present
            weights = raw / raw.sum(1, keepdim=True).clamp_min(1e-12)
            said = _weighted_mean(logits, present, weights)
            loss = (
                torch.nn.functional.nll_loss(said, label, weight) + 1e-4 * score.square().sum()
            )  # bounded, where one is all
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.shares.copy_(torch.softmax(score.detach(), 0))


class ProductRule(DecisionRule):
    """Bayes' rule for modalities that are independent given the class: ``p ~ prod_m p_m / prior ** (M - 1)``.

    Over the present modalities, in logarithms. The prior is what the modalities' classifiers learned it to be; it is
    uniform until :meth:`set_prior`. Modalities that repeat each other make the answer over-confident.
    """

    log_prior: Tensor

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__(modalities, num_classes)
        self.register_buffer("log_prior", torch.full((num_classes,), 1.0 / num_classes).log())

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        each = torch.log_softmax(modality_logits, 2) - self.log_prior
        return torch.log_softmax((each * present.unsqueeze(2)).sum(1) + self.log_prior, 1), None

    def set_prior(self, shares: Sequence[float]) -> None:
        prior = torch.tensor([float(share) for share in shares])
        if len(prior) != self.num_classes or not bool((prior > 0).all()):
            raise NetworkError(f"the prior takes {self.num_classes} class shares above 0, found {list(shares)}")
        self.log_prior.copy_((prior / prior.sum()).log())


class StackingRule(DecisionRule):
    """Multinomial logistic regression on the modalities' log-probabilities (stacking: Wolpert, Neural Netw 1992).

    An absent modality is 0 in all its columns, and an indicator says so. :meth:`fit` must see predictions for cases
    that the network was not trained on (held out, or out of fold: ``mmfusion.training.out_of_fold``); in-fold ones
    make it trust the modality that overfits most. Before, it answers by the mean of the log-probabilities. The weights
    have scikit-learn's quadratic penalty (C = 1).
    """

    learns = True
    weight: Tensor
    bias: Tensor

    def __init__(self, modalities: int, num_classes: int) -> None:
        super().__init__(modalities, num_classes)
        start = torch.cat([torch.eye(num_classes).repeat(1, modalities), torch.zeros(num_classes, modalities)], 1)
        start[:, : modalities * num_classes] /= modalities
        self.register_buffer("weight", start)
        self.register_buffer("bias", torch.zeros(num_classes))

    def columns(self, modality_logits: Tensor, present: Tensor) -> Tensor:
        """What the regression reads: ``[B, M K + M]``."""
        each = torch.log_softmax(modality_logits, 2) * present.unsqueeze(2)
        return torch.cat([each.flatten(1), (~present).to(each.dtype)], 1)

    def forward(self, modality_logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = self.columns(modality_logits, present) @ self.weight.t() + self.bias
        some = present.any(1, keepdim=True)
        return torch.log_softmax(scores * some, 1), None

    def fit(
        self, modality_logits: Tensor, present: Tensor, label: Tensor, class_weight: Sequence[float] | None = None
    ) -> None:
        check_classes("a decision rule", label, self.num_classes)
        read = self.columns(modality_logits.detach().double(), present).cpu().numpy()
        weights = None if class_weight is None else dict(enumerate(class_weight))
        weight, bias = logistic_regression(read, label.cpu().numpy(), max_iter=2000, class_weight=weights)
        self.weight.copy_(weight)
        self.bias.copy_(bias)


def _weighted_mean(modality_logits: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of ``sum_m weights_m p_m``; of a row without modalities, equal probabilities."""
    used = counted(present)
    weights = torch.where(present.any(1, keepdim=True), weights, torch.full_like(weights, 1.0 / weights.shape[1]))
    each = torch.log_softmax(modality_logits, 2).masked_fill(~used.unsqueeze(2), float("-inf"))
    return torch.logsumexp(each + torch.log(weights.clamp_min(1e-30)).unsqueeze(2), 1)


DECISION_RULES: dict[str, Callable[..., DecisionRule]] = {
    "mean": MeanRule,
    "max": MaxRule,
    "majority": MajorityRule,
    "weighted": WeightedRule,
    "product": ProductRule,
    "stacking": StackingRule,
}
