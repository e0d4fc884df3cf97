"""A trained model on disk: ``model.pt`` (tensors only) and ``model.json`` (everything else that inference needs)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmfusion.errors import CohortError
from mmfusion.io import atomic_path, write_json
from mmfusion.networks import build
from mmfusion.networks.decision import DecisionRule
from mmfusion.prepare import prepare_cohort
from mmfusion.progress import progress_line

if TYPE_CHECKING:
    from mmfusion.prepare import Cohort

_FORMAT = 1


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
    """

    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    network: dict[str, Any]
    case: dict[str, Any]
    training_prior: tuple[float, ...]
    target_prior: tuple[float, ...]
    threshold: float | None = None

    def build(self) -> torch.nn.Module:
        """The network, untrained; its decision rule, if it has one, knows the prior that the loss sees."""
        network = build(modalities=self.modalities, num_classes=len(self.classes), **self.network)
        if isinstance(rule := getattr(network, "rule", None), DecisionRule):
            rule.set_prior(self.training_prior)
        return network


def save_model(folder: str | Path, network: torch.nn.Module, model: Model) -> None:
    """Write ``model.pt`` and ``model.json`` into a run folder, each at once."""
    folder = Path(folder)
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    with atomic_path(folder / "model.pt") as temporary:
        torch.save(weights, temporary)
    write_json({"format": _FORMAT, **asdict(model)}, folder / "model.json")


def load_model(folder: str | Path | None) -> tuple[Model, torch.nn.Module]:
    """Read a run folder's model: its description and the network with its weights, in evaluation mode.

    Raises:
        CohortError: the folder has no finished model.
    """
    if folder is None:
        raise CohortError("no run is given: add --run RUN, a folder that train.yaml wrote")
    folder = Path(str(folder))  # MONAI's command line turns --run 7 into a number
    for name in ("model.json", "model.pt"):
        if not (folder / name).is_file():
            raise CohortError(f"{folder} has no {name}: it is not a finished run. Train first, or check --run")
    facts = json.loads((folder / "model.json").read_text())
    if facts.pop("format", None) != _FORMAT:
        raise CohortError(f"{folder / 'model.json'} was written by another version of mmfusion; train again")
    for name in ("modalities", "classes", "training_prior", "target_prior"):
        facts[name] = tuple(facts[name])
    model = Model(**facts)
    network = model.build()
    network.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    return model, network.eval()


def prepare_for(model: Model, manifest: str | Path | None, out: str | Path, workers: int = 0) -> Cohort:
    """Prepare the cases of a manifest as this model's training cases were, into the folder ``out``/cohort.

    Modalities that the manifest lacks altogether are missing in every case.

    Raises:
        CohortError: no manifest is given, or it has none of the network's modalities.
        ManifestError: the manifest has problems.
    """
    from mmfusion.cohort import read_manifest

    if manifest is None:
        raise CohortError("no manifest is given: add --manifest MANIFEST, a table of the cases to predict on")
    there = {name for case in read_manifest(manifest) for name in case.images}
    if not there & set(model.modalities):
        raise CohortError(
            f"{manifest} has none of the model's modalities {', '.join(model.modalities)}; "
            f"it has {', '.join(sorted(there))}"
        )
    usable = [name for name in model.case["modalities"] if name in there]
    reference = [name for name in model.case["reference"] if name in there] or None
    how = {**model.case, "modalities": usable, "reference": reference, "progress": progress_line("prepared")}
    return prepare_cohort(manifest, Path(out) / "cohort", workers=workers, **how)
