"""What NVFLARE runs beside the training: the average at the server, and a guard at each site's door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from agreement import read_agreement
from averaging import average, pooled, reach
from judging import NUMBERS, validation_loss
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from mmfusion.files import write_json
from mmfusion.networks.decision import DecisionRule
from mmfusion.predict import save_model


class Federation(ModelAggregator):
    """The aggregator of NVFLARE's FedAvg: averages by :func:`averaging.average`, and ends with a run folder.

    The weights of the round with the best validation loss over all sites become ``model.pt``; ``model.json`` beside it
    holds the class priors of all sites together and the threshold; ``federation.json`` the loss of each round.

    Args:
        agreement: path of the file that the sites agreed on.
        run: the folder to write.
    """

    def __init__(self, agreement: str, run: str) -> None:
        super().__init__()
        self.agreement, self.run = agreement, run
        self._agreed: Any = None
        self._reached: dict[str, dict[str, torch.Tensor]] = {}
        self._received: dict[str, FLModel] = {}
        self._current: dict[str, torch.Tensor] = {}
        self._best: dict[str, Any] = {}
        self._losses: list[float] = []

    def reset_stats(self) -> None:
        """Forget what the round before received (called by NVFLARE)."""
        self._received = {}

    def accept_model(self, model: FLModel) -> None:
        """Take what a site sent (called by NVFLARE)."""
        self._received[model.meta["client_name"]] = model

    def aggregate_model(self) -> FLModel:
        """The average of what was sent; after the last round also the run folder (called by NVFLARE)."""
        if self._agreed is None:
            self._agreed = read_agreement(self.agreement)
        sent = {site: one.params for site, one in self._received.items()}
        numbers = {site: one.meta["numbers"] for site, one in self._received.items()}
        loss = validation_loss(numbers)  # of the weights that this round began with
        if self._current and loss < self._best.get("loss", float("inf")):
            self._best = {"loss": loss, "round": len(self._losses), "weights": self._current, "numbers": numbers}
        self._losses.append(loss)
        if len(self._losses) > self._agreed.rounds:
            self._finish()
        else:
            self._current = self._average(sent, {site: one["cases"] for site, one in numbers.items()})
        return FLModel(params=self._current, metrics={"validation_loss": loss})

    def _average(self, sent: dict[str, Any], cases: dict[str, dict[str, int]]) -> dict[str, torch.Tensor]:
        new = sorted({name for one in cases.values() for name in one} - set(self._reached))
        if new:
            self._reached |= reach(self._agreed.initial(), self._agreed.case["size"], new)
        return average(sent, cases, self._reached)

    def _finish(self) -> None:
        numbers = self._best["numbers"]
        model = self._agreed.model(pooled(numbers, "training_prior"), pooled(numbers, "target_prior"))
        network = model.build()
        network.load_state_dict(self._best["weights"])
        if isinstance(rule := getattr(network, "rule", None), DecisionRule):
            rule.set_prior(model.training_prior)
        run = Path(self.run)
        save_model(run, network, model)
        facts = {"validation_loss": self._losses, "best_round": self._best["round"]}
        write_json({**facts, "cases": {site: one["cases"] for site, one in numbers.items()}}, run / "federation.json")


class OnlyNumbers(Filter):
    """At the site's door: lets the weights of the agreed network and the agreed numbers out, and nothing else.

    Each message that leaves is written down in ``record``, a JSON line with every name and shape in it.

    Args:
        agreement: path of the file that the sites agreed on.
        record: the file to write, in the site's own folder.
    """

    def __init__(self, agreement: str, record: str) -> None:
        super().__init__()
        self.agreement, self.record = agreement, record
        self._shapes: dict[str, list[int]] = {}

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Pass a message on, or refuse it (ContentBlockedException); called by NVFLARE."""
        if not self._shapes:
            state = read_agreement(self.agreement).initial().state_dict()
            self._shapes = {name: list(value.shape) for name, value in state.items()}
        message = from_shareable(shareable)
        shapes = {name: list(value.shape) for name, value in (message.data or {}).items()}
        numbers = message.meta.get("numbers", {})
        if message.data_kind != DataKind.WEIGHTS or shapes != self._shapes:
            odd = [name for name, shape in shapes.items() if self._shapes.get(name) != shape]
            raise ContentBlockedException(f"not the weights of the agreed network: {', '.join(odd) or 'some lack'}")
        if set(numbers) != set(NUMBERS) or not all(_only_numbers(value) for value in numbers.values()):
            raise ContentBlockedException(f"numbers must be {', '.join(NUMBERS)}, found {', '.join(numbers)}")
        Path(self.record).parent.mkdir(parents=True, exist_ok=True)
        with Path(self.record).open("a") as file:
            file.write(json.dumps({"weights": shapes, "meta": message.meta}, default=str) + "\n")
        return shareable


def _only_numbers(value: Any) -> bool:
    """Whether a number, or lists and dictionaries of these."""
    if isinstance(value, dict):
        return all(_only_numbers(one) for one in value.values())
    return all(_only_numbers(one) for one in value) if isinstance(value, list) else isinstance(value, (int, float))
