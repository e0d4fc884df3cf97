"""The checkpoints of a training: its best and its last weights, and all that it takes to go on after a kill.

::

    RUN/checkpoints/
      best.pt      weights of the network in its best epoch on validation
      final.pt     weights after the last epoch
      resume.pt    while a training is unfinished: the state after its last whole epoch

A training goes on exactly as it would have: weights, optimizer, schedule, scores and every random state are those of
the last whole epoch. Files hold tensors and plain values, are read with ``weights_only=True`` and written at once.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from ignite.engine import Events
from monai.transforms import Randomizable, Transform

from mmfusion.errors import CohortError, first_line, printable
from mmfusion.files import RunFolder, interpreting, optional_fields, read_fields, to_plain
from mmfusion.options import OPTIONS
from mmfusion.predict.model import load_tensors, save_tensors
from mmfusion.training.distributed import gather, is_first, refuse_together

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monai.data import Dataset

    from mmfusion.training.engine import History

_FORMAT = 1
_BEST, _FINAL, _RESUME = "best.pt", "final.pt", "resume.pt"  # as RunFolder has them
_ANEW = "begin anew without resuming (--no-resume; of a bundle --resume False)"


def keep_unfinished(run: RunFolder, options: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Keep the checkpoints of an unfinished training with these options; move any other training out of the way.

    Args:
        run: the run folder.
        options: all that will be written to its ``options.json``.
        configuration: all that will be written to its ``configuration.json``.

    Raises:
        CohortError: there is an unfinished training with other options.
    """
    if not (options["resume"] and run.resume.is_file()):
        if place := run.move_away():
            print(printable(f"the earlier training in {run.path} was moved to {place}"), file=sys.stderr, flush=True)
        return
    refuse_other_options(run, options, configuration, "an unfinished training")


def refuse_other_options(
    run: RunFolder, options: Mapping[str, Any], configuration: Mapping[str, Any], state: str
) -> None:
    """Refuse to go on where a training began with other options.

    Args:
        run: the run folder.
        options, configuration: see :func:`keep_unfinished`.
        state: what the folder holds, for the message.

    Raises:
        CohortError: they differ.
    """
    before = read_fields(run.options, f"the options of {state}")
    overrides = optional_fields(run.configuration)
    now: dict[str, Any] = json.loads(json.dumps(to_plain({**configuration, **options})))
    if "study#_target_" in overrides:  # of an earlier version, which kept all of train.yaml, not only what differs
        overrides = {name: value for name, value in overrides.items() if name in configuration}
    before |= overrides
    aside = ("resume", "given")  # the same value counts as the same, whoever gave it
    before = {name: OPTIONS[name].default for name in now if name in OPTIONS} | before  # not known to earlier versions
    names = [name for name in now | before if name not in aside and now.get(name) != before.get(name)]
    if names:
        changes = ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in names[:5])
        raise CohortError(
            f"{run.path} holds {state} with other options ({changes}); start it as before to go on with "
            f"it, choose another run folder, or {_ANEW}"
        )


class Checkpoints:
    """Writes the checkpoints of a training, and takes up the one that was left unfinished.

    Args:
        folder: where they are.
        network: whose weights they hold, without any wrapper.
        validator: the evaluator that knows the best epoch.
        scheduler: of the learning rate.
        history: the rows of ``history.csv``.
        loader: of the training cases; its generator and the random states of its transforms belong to the state.
    """

    def __init__(
        self,
        folder: str | Path,
        network: torch.nn.Module,
        validator: Any,
        scheduler: Any,
        history: History,
        loader: torch.utils.data.DataLoader[Any],
    ) -> None:
        self.folder, self.network, self.validator = Path(folder), network, validator
        self.scheduler, self.history, self.loader = scheduler, history, loader

    def attach(self, engine: Any) -> None:
        """Register with a trainer, after its ValidationHandler (called by MONAI)."""
        engine.add_event_handler(Events.STARTED, self._resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep_best)
        # when the loader has no more batches, and not when the last one is done: asking it draws a random number
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, self._keep_all)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._write(self.network.state_dict(), _FINAL))

    def _write(self, state: Mapping[str, Any], name: str) -> None:
        if is_first():
            save_tensors(state, self.folder / name)

    def _keep_best(self, engine: Any) -> None:
        if self.validator.state.best_metric_epoch == engine.state.epoch:
            self._write(self.network.state_dict(), _BEST)

    def _keep_all(self, engine: Any) -> None:
        if engine.state.iteration % engine.state.epoch_length:
            return  # in the midst of an epoch that is longer than the data
        state = {
            "format": _FORMAT,
            "epoch": engine.state.iteration // engine.state.epoch_length,
            "network": self.network.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": engine.scaler.state_dict() if engine.scaler else {},
            "best": [self.validator.state.best_metric, self.validator.state.best_metric_epoch],
            "history": self.history.rows,
            "random": gather(random_state(self.loader)),  # of each process
        }
        self._write(state, _RESUME)

    def _resume(self, engine: Any) -> None:
        file = self.folder / _RESUME
        if not file.is_file():
            return
        state, problem = _read(file)
        if not problem and len(state["random"]) != len(gather(None)):
            problem = (
                f"{file} was left by {len(state['random'])} processes, and this is a training by {len(gather(None))}; "
                f"start as many, choose another run folder, or {_ANEW}"
            )
        refuse_together(problem)
        with interpreting(file, _ANEW):  # each process reads the same file, and finds the same
            self._take_up(engine, state)
        if is_first():
            print(f"goes on after epoch {state['epoch']} of an unfinished training", file=sys.stderr, flush=True)

    def _take_up(self, engine: Any, state: Mapping[str, Any]) -> None:
        """Put back all that :meth:`_keep_all` kept."""
        self.network.load_state_dict(state["network"])
        engine.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if engine.scaler:
            engine.scaler.load_state_dict(state["scaler"])
        self.validator.state.best_metric, self.validator.state.best_metric_epoch = state["best"]
        self.history.rows = state["history"]
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        set_random_state(self.loader, state["random"][engine.state.rank])


def _read(file: Path) -> tuple[dict[str, Any], str | None]:
    """What a file for resuming holds, or what is wrong with it."""
    try:
        state = load_tensors(file)
    except Exception as error:  # of pickle, zip and torch alike
        state = {"format": first_line(error)[:150]}
    if state.get("format") == _FORMAT and isinstance(state.get("random"), list):
        return state, None
    return {}, (
        f"{file} is damaged, or was written by another version of mmfusion (format {state.get('format')}); {_ANEW}"
    )


def random_state(loader: torch.utils.data.DataLoader[Any]) -> dict[str, Any]:
    """Every random state that a training draws from, as tensors and plain values.

    Args:
        loader: of the training cases.

    Returns:
        ``torch``, ``cuda`` (each GPU), ``numpy``, ``python``, ``generator`` (of the loader, None if it has none) and
        ``transforms`` (each state below the transform of its data set).
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": _plain(np.random.get_state()),
        "python": random.getstate(),
        "generator": loader.generator.get_state() if loader.generator else None,
        "transforms": [_plain(one.get_state()) for one in _states(_transform(loader))],
    }


def set_random_state(loader: torch.utils.data.DataLoader[Any], state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    np.random.set_state(_numpy(state["numpy"]))
    random.setstate(state["python"])
    if loader.generator:
        loader.generator.set_state(state["generator"])
    for one, its in zip(_states(_transform(loader)), state["transforms"], strict=True):
        one.set_state(_numpy(its))


def _transform(loader: torch.utils.data.DataLoader[Any]) -> Any:
    """The transform of MONAI's data set, of which torch's type for it knows nothing."""
    return cast("Dataset", loader.dataset).transform


def _states(part: Any) -> list[np.random.RandomState]:
    """The random states of a MONAI transform and of all transforms inside it, in a fixed order."""
    if isinstance(part, np.random.RandomState):
        return [part]
    inside: Any = ()
    if isinstance(part, (list, tuple)):
        inside = part
    elif isinstance(part, (Transform, Randomizable)):
        inside = vars(part).values()
    return [state for one in inside for state in _states(one)]


def _plain(state: Any) -> list[Any]:
    """A state of numpy's Mersenne twister, which files of weights alone may not hold, as a tensor and numbers."""
    return [torch.from_numpy(state[1].astype(np.int64)), *state[2:]]


def _numpy(state: list[Any]) -> tuple[Any, ...]:
    return ("MT19937", state[0].numpy().astype(np.uint32), *state[1:])
