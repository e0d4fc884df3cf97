"""Training, top to bottom: from a prepared cohort to a finished model in a run folder.

:func:`train` is the whole path. The functions below it make one part each; ``train.yaml`` of a bundle calls the same
ones, under the names that MONAI asks a configuration for.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from torch.nn.parallel import DistributedDataParallel

from mmfusion.errors import OptionError
from mmfusion.files import RunFolder
from mmfusion.networks.trained import freeze, learns
from mmfusion.options import OPTIONS, unknown
from mmfusion.predict import PrepareFusionBatch
from mmfusion.training.checkpoint import Checkpoints
from mmfusion.training.distributed import FollowFirst, is_first, joined, own_device, share_of_step
from mmfusion.training.engine import (
    EarlyStop,
    History,
    SettleStatistics,
    TrainingStep,
    ValidationScore,
    autocast,
    start,
    total_loss,
    update,
)
from mmfusion.training.results import finish
from mmfusion.training.run import Run
from mmfusion.training.study import Study, fold_numbers, open_study
from mmfusion.training.tracking import tracking_handlers
from mmfusion.transforms import LoadPreparedCased, training_augmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SETTLING_CASES = 128  # that running statistics are estimated from: more change nothing, and take their time


def train(
    cohort: str | Path, run: str | Path, *, device: Any = None, keep_finished: bool = False, **options: Any
) -> Run:
    """Train a network on a cohort, and write the finished model into a run folder.

    A training that was stopped is gone on with; a finished one in the folder is moved to its subfolder ``earlier``.
    Seeds of Python, NumPy and torch are set, and torch computes deterministically from then on.

    Args:
        cohort: a folder that ``mmfusion prepare`` wrote.
        run: the folder to write.
        device: to train on; a GPU if there is one, else the CPU, if None.
        keep_finished: a finished training with the same options is the result; nothing is trained, unless option
            ``resume`` is off.
        options: group ``train`` of :mod:`mmfusion.options`; None means not given. With ``folds`` and without ``fold``,
            all folds of a cross-validation are trained, see :func:`train_folds`.

    Returns:
        The run, which evaluates and predicts.

    Raises:
        OptionError, CohortError, OutputError, ManifestError, LeakageError: see :func:`open_study`.
        MmfusionError: a loss is not finite.
    """
    if options.get("folds") is not None and options.get("fold") is None:
        return train_folds(cohort, run, device=device, **options)
    device = own_device() if device is None else torch.device(device)
    seed = _given(options, "seed")
    start(seed, _given(options, "threads"))
    with joined(device, seed):
        study = open_study(run, cohort=cohort, device=device, keep_finished=keep_finished, **options)
        if study.finished:
            return Run(study.run)
        if is_first():
            print(study.summary(device), flush=True)
        network = study.model().build().to(device)
        loader = training_loader(study, training_dataset(study))
        validation = validation_loader(study, validation_dataset(study))
        optimizer = make_optimizer(study, network)
        scheduler = make_scheduler(study, optimizer, loader)
        evaluator = make_evaluator(study, network, validation, device)
        handlers = [ValidationHandler(1, evaluator), RunHandlers(study, network, evaluator, scheduler, loader)]
        trainer = make_trainer(study, network, loader, optimizer, handlers, device)
        trainer.run()
        finish(study, network, validation, device)
    return Run(study.run)


def train_folds(cohort: str | Path, run: str | Path, *, device: Any = None, **options: Any) -> Run:
    """Train every fold of a cross-validation into ``run``/fold_<number>, and evaluate all of them together.

    Folds that are finished are left as they are, so the same call goes on where it was stopped; with ``resume`` off
    all are trained anew.

    Args:
        cohort, run, device, options: see :func:`train`.

    Raises:
        CohortError: a fold was trained with other options; and see :func:`train`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    numbers = fold_numbers(cohort, *(given.get(name) for name in ("folds", "seed", "classes")))
    for done, fold in enumerate(numbers):
        print(f"fold {fold} ({done + 1} of {len(numbers)})", flush=True)
        train(cohort, run, device=device, keep_finished=True, **given, fold=fold)
    result = Run(Path(run))
    result.evaluate(device=device, seed=_given(options, "seed"))
    return result


def training_transform(study: Study) -> Compose:
    """Loads a training case, and changes it at random."""
    load = LoadPreparedCased(study.modalities, study.cohort.modalities)
    augmentation = training_augmentation(study.options["augment"], study.options["modality_drop"])
    return Compose([load, augmentation])


def validation_transform(study: Study) -> LoadPreparedCased:
    """Loads a case as it is."""
    return LoadPreparedCased(study.modalities, study.cohort.modalities)


def training_dataset(study: Study) -> Dataset:
    """The training cases, changed at random."""
    return Dataset(study.items("train"), training_transform(study))


def validation_dataset(study: Study) -> Dataset:
    """The validation cases."""
    return Dataset(study.items("validation"), validation_transform(study))


def training_loader(study: Study, dataset: Dataset) -> DataLoader:
    """Batches of the training cases, in an order and with changes that the seed decides.

    Of several processes each takes its share of a batch.
    """
    seed = study.options["seed"]
    sampler = DistributedSampler(dataset, seed=seed) if _several() else None
    return DataLoader(
        dataset,
        batch_size=share_of_step(study),
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=study.options["loaders"],
        generator=_generator(seed + 1000 * idist.get_rank()),  # seeds the augmentation, too
    )


def validation_loader(study: Study, dataset: Dataset) -> DataLoader:
    """Batches of all validation cases, in their order."""
    return DataLoader(dataset, batch_size=study.options["batch_size"], num_workers=study.options["loaders"])


def settling_loader(study: Study) -> DataLoader:
    """Training cases as they are, in random order, for the running statistics of the network."""
    return DataLoader(
        Dataset(study.items("train", sample=_SETTLING_CASES), validation_transform(study)),
        batch_size=study.options["batch_size"],
        num_workers=study.options["loaders"],
        generator=_generator(study.options["seed"]),  # leaves the numbers that training draws as they are
    )


def make_optimizer(study: Study, network: torch.nn.Module, **options: Any) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, ICLR 2019) with the study's options; ``options`` are further ones of the class.

    Raises:
        OptionError: the class has no such option.
    """
    usual = {"lr": study.options["learning_rate"], "weight_decay": study.options["weight_decay"]}
    _check_arguments(torch.optim.AdamW, options)
    return torch.optim.AdamW(network.parameters(), **{**usual, **options})


def make_scheduler(
    study: Study, optimizer: torch.optim.Optimizer, loader: DataLoader, **options: Any
) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle of the learning rate over all steps (Smith & Topin, 2019); ``options`` as for the optimizer.

    Raises:
        OptionError: the class has no such option.
    """
    usual = {"max_lr": study.options["learning_rate"], "total_steps": study.options["epochs"] * len(loader)}
    _check_arguments(torch.optim.lr_scheduler.OneCycleLR, options)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, **{**usual, **options})


def make_evaluator(
    study: Study,
    network: torch.nn.Module,
    loader: DataLoader,
    device: Any,
    *,
    inferer: Any = None,
    score: Any = None,
    handlers: Sequence[Any] | None = None,
) -> SupervisedEvaluator:
    """Scores the network on the validation cases; the best epoch is that of the smallest loss.

    Args:
        study: the study.
        network: the network itself, without any wrapper.
        loader: the validation cases.
        device: to run on.
        inferer: of MONAI; the plain one if None.
        score: what decides which epoch is best, by name; the loss if None.
        handlers: in place of :class:`SettleStatistics`.
    """
    usual: list[Any] = [SettleStatistics(settling_loader(study))] if handlers is None else list(handlers)
    if _several():  # each process takes some of the cases, by the buffers of the first
        share = DistributedSampler(loader.dataset, even_divisible=False, shuffle=False)
        loader = DataLoader(loader.dataset, loader.num_workers, batch_size=share_of_step(study), sampler=share)
        usual.append(FollowFirst(network))
    chosen = score or {"negative_loss": ValidationScore("negative_loss")}
    chosen = {one.kind if isinstance(one, ValidationScore) else name: one for name, one in chosen.items()}
    return SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=network,
        inferer=inferer or SimpleInferer(),
        prepare_batch=cast("Callable[..., Any]", PrepareFusionBatch()),
        key_val_metric=chosen,
        additional_metrics={kind: ValidationScore(kind) for kind in ValidationScore.KINDS if kind not in chosen},
        val_handlers=usual,
        decollate=False,
    )


def make_trainer(
    study: Study,
    network: torch.nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    handlers: Sequence[Any],
    device: Any,
    *,
    max_epochs: int | None = None,
    inferer: Any = None,
) -> SupervisedTrainer:
    """MONAI's trainer for :class:`TrainingStep`, the network with its losses; DDP wraps it in several processes.

    What is not to be trained loses its gradient here, see :func:`mmfusion.networks.trained.freeze`.

    Args:
        study: the study.
        network: to train.
        loader: the training cases.
        optimizer: of the network's parameters.
        handlers: what happens beside the steps.
        device: to train on.
        max_epochs: option ``epochs`` if None, and at most that, since the learning rate is planned over it.
        inferer: is kept for those who look at it; a training step calls the network itself.

    Raises:
        OptionError: ``max_epochs``, the interval of a ValidationHandler or the inferer cannot be used.
    """
    max_epochs = _check_epochs(study.options["epochs"], max_epochs, handlers)
    if inferer is not None and type(inferer) is not SimpleInferer:
        raise OptionError(
            f"train#inferer is {type(inferer).__name__}, which nothing would use: a training step calls the network "
            "itself, with its losses. Leave it as it is; validate#inferer may be another"
        )
    freeze(network, study.options["freeze_encoders"])
    step: torch.nn.Module = TrainingStep(cast("Any", network), study.class_weight).to(device)
    if _several() and learns(network):
        step = DistributedDataParallel(step, device_ids=[device] if torch.device(device).type == "cuda" else None)
    precision = study.options["precision"]
    return SupervisedTrainer(
        device=device,
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=step,
        optimizer=optimizer,
        loss_function=total_loss,
        inferer=inferer or SimpleInferer(),
        prepare_batch=cast("Callable[..., Any]", PrepareFusionBatch()),
        iteration_update=update,
        train_handlers=list(handlers),
        amp=precision == "float16",  # which makes the scaler of the loss
        amp_kwargs=autocast(precision, device),
        decollate=False,
    )


class RunHandlers:
    """What happens beside the steps, as one handler: schedule, history, checkpoints, early stop, trackers.

    A network of which nothing is trained by a gradient ends before its first epoch.

    Args:
        study: the study.
        network: without any wrapper.
        validator: the evaluator that knows the best epoch.
        scheduler: of the learning rate.
        loader: of the training cases.
    """

    def __init__(
        self,
        study: Study,
        network: torch.nn.Module,
        validator: Any,
        scheduler: Any,
        loader: DataLoader,
    ) -> None:
        run = RunFolder(study.run)
        self.network = network
        history = History(run.history, validator, study.options["epochs"])
        self.handlers = [
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            history,
            Checkpoints(run.checkpoints, network, validator, scheduler, history, loader),
            EarlyStop(validator, study.options["patience"]),
            *tracking_handlers(study),
        ]

    def attach(self, engine: Any) -> None:
        """Register all with a trainer, after its ValidationHandler (called by MONAI)."""
        if not learns(self.network):
            engine.add_event_handler(Events.STARTED, engine.terminate)
            return
        for handler in self.handlers:
            handler.attach(engine)


def _several() -> bool:
    """Whether several processes train together."""
    return idist.get_world_size() > 1


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _given(options: Mapping[str, Any], name: str) -> Any:
    value = OPTIONS[name].check(options.get(name))
    return OPTIONS[name].default if value is None else value


def _check_epochs(epochs: int, max_epochs: int | None, handlers: Sequence[Any]) -> int:
    """The epochs to train; refuses what would end in an error of torch or ignite."""
    last = epochs if max_epochs is None else OPTIONS["epochs"].check(max_epochs)
    if last > epochs:
        raise OptionError(
            f"train#trainer#max_epochs is {last}, and the learning rate is planned for {epochs}: give --epochs {last}"
        )
    for one in handlers:
        if isinstance(one, ValidationHandler) and not (type(one.interval) is int and one.interval > 0):
            raise OptionError(f"val_interval takes a whole number from 1, found {one.interval!r}")
    return last


def _check_arguments(maker: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what a class of torch does not take, by name."""
    known = inspect.signature(maker).parameters
    for name in options:
        if name not in known:
            raise OptionError(unknown(f"option of {getattr(maker, '__name__', maker)}", name, known))
