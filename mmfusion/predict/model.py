"""A trained model on disk: ``model.pt`` (tensors only) and ``model.json`` (everything else that inference needs)."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmfusion.errors import CohortError, first_line
from mmfusion.files import write_bytes, write_json, writing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.networks import FusionNetwork

_FORMAT = 1
EXPORTS = {"torchscript": "model.ts", "onnx": "model.onnx"}
"""Files beside ``model.pt`` that answer without this package, by the engine that runs them."""


@dataclass(frozen=True)
class Model:
    """What a trained network needs beside its weights.

    Attributes:
        modalities: the channels, in order.
        classes: class labels, in the order of the outputs.
        network: arguments of :func:`mmfusion.networks.build` (group ``network`` of the options).
        case: how its cases were prepared (group ``case`` of the options); inference prepares the same way. Its
            ``modalities`` are the cohort's: one that the network does not use may still be the reference.
        training_prior: class shares that the loss saw (weights included), ``[K]``.
        target_prior: class shares of the training subjects, ``[K]``; probabilities are corrected to these.
        threshold: of the last class's probability, chosen on validation; None for more than two classes.
        temperature: the logits are divided by it; fitted on validation, see
            :func:`mmfusion.evaluation.fit_temperature`.
        simulated: whether the cohort that it was trained on was; then whoever predicts is told.
        weights: hash of the network's tensors, see :func:`weights_hash`, which results carry; empty if not known.
    """

    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    network: dict[str, Any]
    case: dict[str, Any]
    training_prior: tuple[float, ...]
    target_prior: tuple[float, ...]
    threshold: float | None = None
    temperature: float = 1.0
    simulated: bool = False
    weights: str = ""

    @property
    def notice(self) -> str:
        """What stands beside every prediction."""
        note = "Research use only; not a medical device."
        if self.simulated:
            note += " The model was trained on SIMULATED data: its probabilities say nothing about any patient."
        return note

    def build(self) -> FusionNetwork:
        """The network, untrained; its decision rule, if it has one, knows the prior that the loss sees."""
        from mmfusion.networks import build  # late: MONAI takes seconds, and exported networks do without
        from mmfusion.networks.decision import DecisionRule

        network = build(modalities=self.modalities, num_classes=len(self.classes), **self.network)
        if isinstance(rule := getattr(network, "rule", None), DecisionRule):
            rule.set_prior(self.training_prior)
        return network


def save_model(folder: str | Path, network: torch.nn.Module, model: Model, *, dtype: str = "float32") -> None:
    """Write ``model.pt`` and ``model.json``, each at once; exports of earlier weights in the folder are removed.

    Args:
        folder: a run folder, or the folder ``models`` of a bundle.
        network: its weights are written, those of the network alone.
        model: what else is needed.
        dtype: ``float32``, or ``float16`` for half the size.

    Raises:
        CohortError: a weight does not fit ``dtype``.
    """
    folder = Path(folder)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    if dtype == "float16":
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        if large := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise CohortError(f"{large[0]} has a value that does not fit float16; use --dtype float32")
    with writing(folder):
        for name in ("model.json", *EXPORTS.values()):  # a model is whole or not there
            (folder / name).unlink(missing_ok=True)
    save_tensors(weights, folder / "model.pt")
    write_json({"format": _FORMAT, **asdict(replace(model, weights=weights_hash(weights)))}, folder / "model.json")


def save_tensors(state: Any, path: Path) -> None:
    """Write what ``torch.save`` writes, atomically; a full disk is named.

    Raises:
        OutputError: it cannot be written.
    """
    content = io.BytesIO()  # writing itself, torch would end with an error of its own, or the process
    torch.save(state, content)
    write_bytes(content.getvalue(), path)


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """16 digits that change with any tensor of a network: names, types, shapes and values (files also hold times)."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_folder(folder: str | Path | None) -> Path:
    """Where ``model.json`` lies: in a run folder itself, in a bundle in its folder ``models``.

    Raises:
        CohortError: it is in neither.
    """
    if folder is None:
        raise CohortError("no run is given: add --run RUN, a folder that train.yaml wrote")
    folder = Path(str(folder))  # MONAI's command line turns --run 7 into a number
    for place in (folder, folder / "models"):
        if (place / "model.json").is_file():
            return place
    if any(folder.glob("fold_*")):
        raise CohortError(
            f"{folder} holds the runs of several folds: use evaluate_folds.yaml or ensemble.yaml, or one fold"
        )
    if (folder / "configs" / "metadata.json").is_file():
        raise CohortError(f"the bundle {folder} has no weights yet: train, then mmfusion bundle pack {folder} RUN")
    raise CohortError(f"{folder} has no model.json: it is not a finished run or bundle. Train first, or check --run")


def read_model(folder: str | Path | None) -> Model:
    """The description of a run's or bundle's model, without its weights.

    Raises:
        CohortError: the folder has no finished model, or one of another version.
    """
    file = model_folder(folder) / "model.json"
    facts = json.loads(file.read_text())
    if facts.pop("format", None) != _FORMAT:
        raise CohortError(f"{file} was written by another version of mmfusion; train again")
    for name in ("modalities", "classes", "training_prior", "target_prior"):
        facts[name] = tuple(facts[name])
    return Model(**facts)


def load_model(folder: str | Path | None) -> tuple[Model, FusionNetwork]:
    """Read a run's or bundle's model: its description and the network with its weights, in evaluation mode.

    Raises:
        CohortError: the folder has no finished model, or weights that are not this network's.
    """
    model, file = read_model(folder), model_folder(folder) / "model.pt"
    if not file.is_file():
        raise CohortError(f"{file.parent} has no {file.name}: it is not a finished run or bundle. Train first")
    network = model.build()
    weights = load_weights(file, network)
    network.load_state_dict(weights)
    return replace(model, weights=weights_hash(weights)), network.eval()


def load_weights(file: str | Path, network: FusionNetwork) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, known to fit the network.

    Raises:
        CohortError: the file holds more than tensors, or the weights of another network.
    """
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        own = network.state_dict()
        fits = {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in weights.items()}
    except Exception as error:  # of pickle, zip and torch alike
        raise CohortError(
            f"{file} is not a file of weights alone, as mmfusion writes it: {first_line(error)}"
        ) from error
    if not fits:
        other = sorted(name for name in own.keys() | weights.keys() if name not in own or name not in weights)
        other = other or sorted(name for name in own if own[name].shape != weights[name].shape)
        raise CohortError(
            f"{file} holds the weights of another network than strategy {network.strategy} with "
            f"{', '.join(network.modalities)} and {network.num_classes} classes: {len(other)} of {len(own)} differ, "
            f"as {other[0]}. Give the checkpoint of this model, or the options that it was trained with"
        )
    return weights
