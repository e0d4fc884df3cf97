"""The parts of MONAI's engines that fusion needs its own way: the step with its losses, the score, the history.

They work in one process and in several that train together, see :mod:`mmfusion.training.distributed`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import IterationEvents
from monai.utils import set_determinism
from sklearn.metrics import roc_auc_score

from mmfusion.errors import OptionError
from mmfusion.files import write_csv
from mmfusion.networks.statistics import settle_statistics
from mmfusion.predict import inputs_of
from mmfusion.training.distributed import gather, is_first, refuse_together

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mmfusion.networks import FusionNetwork


class TrainingStep(torch.nn.Module):
    """A network with its losses as one module: what an optimizer step runs, and what DDP wraps.

    Losses that are computed outside ``forward`` would silently miss DDP's gradient synchronization.

    Args:
        network: a fusion network; checkpoints hold it, never this wrapper.
        class_weight: ``[K]`` weights of the classes in the loss, or None.
    """

    class_weight: torch.Tensor | None

    def __init__(self, network: FusionNetwork, class_weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.network = network
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(
        self,
        image: torch.Tensor,
        present: torch.Tensor | None,
        covariates: torch.Tensor | None,
        label: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``[B, M, D, H, W]`` and ``[B]`` labels to logits ``[B, K]`` and the losses by name."""
        output = self.network.outputs(image, present, covariates)
        return output.logits, self.network.losses(output, label, class_weight=self.class_weight)


def start(seed: int | None, threads: int = 0) -> None:
    """Seed everything random, and let torch compute deterministically; how many CPU threads it may use.

    Args:
        seed: of Python, NumPy and torch; None leaves all as it is.
        threads: CPU threads of torch; 0 leaves torch's own choice.
    """
    if threads:
        torch.set_num_threads(threads)
    if seed is not None:
        set_determinism(seed)


def total_loss(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of all losses; each term is weighted where it is made, in the network."""
    return torch.stack(list(losses.values())).sum()


def autocast(precision: str, device: Any) -> dict[str, Any]:
    """How a training step computes: the ``amp_kwargs`` of a trainer, for ``torch.autocast``.

    Only the step is rounded. Weights stay in float32, and validation computes in float32 as the finished model will, so
    that the best epoch, the temperature and a threshold that is chosen rest on its own answers.

    Args:
        precision: ``float32``; ``bfloat16``, which pays on a GPU and on a CPU is for checks alone; or ``float16``, with
            a scaled loss, which its range needs.
        device: that the training runs on.

    Raises:
        OptionError: float16 without a GPU.
    """
    if precision == "float16" and torch.device(device).type != "cuda":
        raise OptionError(
            f"precision float16 needs a GPU, and the device is {device}; use --precision bfloat16, which a CPU can "
            "compute in (slowly), or float32"
        )
    return {"dtype": getattr(torch, precision), "enabled": precision != "float32"}


def update(engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI's ``iteration_update`` for a :class:`TrainingStep`: one optimizer step on all losses.

    Raises:
        MmfusionError: the loss, or a gradient, is not finite.
    """
    rounded = engine.amp_kwargs.get("enabled", False)
    # torch 2.13 with oneDNN gives some bfloat16 gradients of 3D convolutions from memory that nobody has written to
    # (3 x 3 x 3 over maps of depth 2; some finite, none right), so a CPU computes without it, many times slower
    wrong = rounded and engine.state.device.type == "cpu"
    off = torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None)
    with off if wrong else nullcontext():
        return _step(engine, batchdata)


def _step(engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
    image, label, _, extra = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
    engine.network.train()
    engine.optimizer.zero_grad()
    with torch.autocast(engine.state.device.type, **({"enabled": False} | engine.amp_kwargs)):
        logits, losses = engine.network(image, extra["present"], extra.get("covariates"), label)
        loss = engine.loss_function(losses)
    engine.state.output = {"label": label, "pred": logits.detach(), "loss": loss.detach()}
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    where = f"in epoch {engine.state.epoch}"
    advice = "Lower --learning_rate, or use --precision float32"
    problem = None
    if not torch.isfinite(loss):
        parts = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        problem = f"the loss is not finite {where} ({parts}; cases {', '.join(batchdata['case'])}). {advice}"
    refuse_together(problem)
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    if engine.scaler is not None:
        engine.scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.scaler.unscale_(engine.optimizer)
        _clip(engine.network)
        engine.scaler.step(engine.optimizer)
        engine.scaler.update()
    else:
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if not torch.isfinite(_clip(engine.network)):  # in every process; clipped, it would make every weight NaN
            refuse_together(f"a gradient is not finite {where} (cases {', '.join(batchdata['case'])}). {advice}")
        engine.optimizer.step()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    return engine.state.output


def _clip(network: torch.nn.Module) -> torch.Tensor:
    """Bound the gradient, and return its length: a single odd batch of few can otherwise throw the training off."""
    return torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)


class SettleStatistics:
    """A handler of an evaluator: before it starts, the running statistics of its network are estimated anew.

    Without it the validation, which chooses the epoch, judges weights beside statistics of earlier weights; see
    :func:`mmfusion.networks.statistics.settle_statistics`. It draws nothing at random.

    Args:
        loader: training cases, not augmented.
    """

    def __init__(self, loader: Iterable[Mapping[str, Any]]) -> None:
        self.loader = loader

    def attach(self, engine: Any) -> None:
        """Register with an evaluator (called by MONAI)."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Estimate them (called by ignite)."""
        device = engine.state.device
        settle_statistics(engine.network, (inputs_of(batch, device, engine.non_blocking) for batch in self.loader))


class ValidationScore(Metric):
    """A number from all logits and labels of an epoch, those of every process.

    Args:
        kind: ``negative_loss``: minus the class-balanced cross entropy, greater is better, a proper score that
            is less noisy than AUC on few subjects; ``auc``: area under the ROC curve (one class against the rest,
            averaged), 0.5 where only one class is there.
    """

    def __init__(self, kind: str = "negative_loss") -> None:
        self.kind = kind
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Forget everything (called by ignite)."""
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Take a batch: logits ``[B, K]`` and labels ``[B]`` (called by ignite)."""
        self._logits.append(output[0].detach().float().cpu())
        self._labels.append(output[1].detach().cpu())

    def compute(self) -> float:
        """The score of all batches since :meth:`reset`."""
        logits, labels = (torch.cat(gather(torch.cat(own))) for own in (self._logits, self._labels))
        if self.kind == "negative_loss":
            count = torch.bincount(labels, minlength=logits.shape[1]).clamp(min=1)
            return -float(torch.nn.functional.cross_entropy(logits, labels, weight=1 / count))
        if len(labels.unique()) < logits.shape[1]:
            return 0.5
        shares = torch.softmax(logits, -1).numpy()
        return float(
            roc_auc_score(labels, shares[:, 1] if shares.shape[1] == 2 else shares, multi_class="ovr", average="macro")
        )


class History:
    """``history.csv``, a row an epoch, written anew after each; and a plain line an epoch for people.

    Args:
        path: the file.
        validator: the evaluator whose scores belong to the epoch.
        epochs: how many there will be at most.
    """

    def __init__(self, path: str | Path, validator: Any, epochs: int) -> None:
        self.path, self.validator, self.epochs = Path(path), validator, epochs
        self.rows: list[dict[str, Any]] = []
        self._losses: list[float] = []
        self._start = perf_counter()

    def attach(self, engine: Any) -> None:
        """Register with a trainer, after its ValidationHandler (called by MONAI)."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: self._losses.append(e.state.output["loss"].item())
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _begin(self, _: Any) -> None:
        self._losses, self._start = [], perf_counter()

    def _end(self, engine: Any) -> None:
        validated = self.validator.state.epoch == engine.state.epoch  # not each epoch is, if val_interval is above 1
        scores = self.validator.state.metrics if validated else {}
        means = gather(sum(self._losses) / len(self._losses))
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "train_loss": round(sum(means) / len(means), 5),
            "validation_loss": round(-scores["negative_loss"], 5) if validated else None,
            "validation_auc": round(scores["auc"], 5) if validated else None,
            "seconds": round(perf_counter() - self._start, 2),
        }
        self.rows.append(row)
        told = {name: value for name, value in row.items() if name not in ("epoch", "seconds") and value is not None}
        engine.state.metrics = told  # for handlers that track a training
        if not is_first():
            return
        write_csv(self.rows, self.path)
        words = f"loss {row['validation_loss']:.3f}, auc {row['validation_auc']:.3f}" if validated else "left out"
        print(
            f"epoch {row['epoch']:3d}/{self.epochs} | train loss {row['train_loss']:.3f} | "
            f"validation {words} | {row['seconds']:.1f} s",
            file=sys.stderr,
            flush=True,
        )


class EarlyStop:
    """Ends a training when validation has not become better for a while.

    Args:
        validator: the evaluator that knows the best epoch.
        patience: epochs.
    """

    def __init__(self, validator: Any, patience: int) -> None:
        self.validator, self.patience = validator, patience

    def attach(self, engine: Any) -> None:
        """Register with a trainer, after its ValidationHandler (called by MONAI)."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """End the training, if it is time (called by ignite)."""
        seen = self.validator.state
        if seen.epoch == engine.state.epoch and engine.state.epoch - seen.best_metric_epoch >= self.patience:
            engine.terminate()
