"""A trained model on disk: ``model.pt`` (tensors only) and ``model.json`` (everything else that inference needs)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmfusion.cohort import misplaced
from mmfusion.cohort.covariates import Covariate, as_layout, count_inputs
from mmfusion.errors import CohortError, OptionError, ReadError, first_line
from mmfusion.files import (
    EXPORTS,
    Check,
    a_flag,
    a_number,
    a_positive_number,
    a_table,
    a_text,
    atomic_path,
    check_fields,
    interpreting,
    json_text,
    or_null,
    read_fields,
    some_names,
    some_positive_numbers,
    to_disk,
    write_bytes,
)
from mmfusion.options import GROUPS, LATER, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.networks import FusionNetwork

_FORMAT = 1
_FIELDS: dict[str, Check] = {
    "modalities": some_names,
    "classes": some_names,
    "network": a_table,
    "case": a_table,
    "training_prior": some_positive_numbers,
    "target_prior": some_positive_numbers,
    "threshold": or_null(a_number),
    "temperature": a_positive_number,
    "simulated": a_flag,
    "weights": a_text,
    "covariates": as_layout,
    "features": lambda value: some_names(value) if value else (),
}
"""What ``model.json`` holds beside its format: the fields of :class:`Model`, and what each must be."""
_OPTIONAL: dict[str, Any] = {"covariates": [], "features": []}  # where there are none, the file does not name them
_REMEDY = "train again, or copy the model again"


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
        threshold: of the last class's probability: its target prior, or chosen on validation, as ``threshold_rule`` of
            the training said; None for more than two classes.
        temperature: the logits are divided by it; fitted on validation, see
            :func:`mmfusion.evaluation.fit_temperature`.
        simulated: whether the cohort that it was trained on was; then whoever predicts is told.
        weights: hash of the network's tensors, see :func:`weights_hash`, which results carry; empty if not known.
        covariates: what the network takes beside the images, see :func:`mmfusion.cohort.covariates.encode_covariates`.
        features: values of the option ``features`` with which new cases are prepared, as covariates are among them.
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
    covariates: tuple[Covariate, ...] = ()
    features: tuple[str, ...] = ()

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

        sizes: dict[str, Any] = {"num_classes": len(self.classes), "covariates": count_inputs(self.covariates)}
        network = build(modalities=self.modalities, **sizes, **self.network)
        if isinstance(rule := getattr(network, "rule", None), DecisionRule):
            rule.set_prior(self.training_prior)
        network.image_size = tuple(self.case["size"])
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
    facts = asdict(replace(model, weights=weights_hash(weights)))
    about = {"format": _FORMAT, **{name: value for name, value in facts.items() if value or name not in _OPTIONAL}}
    # both are on the disk before anything is replaced: if they do not fit, the earlier model stays as it is
    with atomic_path(folder / "model.json") as description, atomic_path(folder / "model.pt") as tensors:
        tensors.write_bytes(_saved(weights))
        description.write_text(json_text(about), encoding="utf-8")
        for file in (tensors, description):
            to_disk(file)
        for name in ("model.json", *EXPORTS):  # weights never lie beside what was said of others
            (folder / name).unlink(missing_ok=True)


def save_tensors(state: Any, path: Path) -> None:
    """Write what ``torch.save`` writes, atomically; a full disk is named.

    Raises:
        OutputError: it cannot be written.
    """
    write_bytes(_saved(state), path)


def _saved(state: Any) -> bytes:
    content = io.BytesIO()  # writing itself, torch would end with an error of its own
    torch.save(state, content)
    return content.getvalue()


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
    if words := misplaced(folder, "model"):
        raise CohortError(words)
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
        ReadError: ``model.json`` is damaged, or has fields of a newer version.
    """
    file = model_folder(folder) / "model.json"
    facts = read_fields(file, "the description of a model")
    if (version := facts.pop("format", None)) != _FORMAT:
        raise CohortError(
            f"{file} was written by another version of mmfusion (format {version!r:.20}, {_FORMAT} is expected); "
            f"update mmfusion, or {_REMEDY}"
        )
    facts = check_fields(file, {"weights": "", **_OPTIONAL, **facts}, _FIELDS, _REMEDY)  # earlier ones knew no hash
    # what a network is built from has defaults; how cases are prepared must all be said, but for what came later
    facts["case"] = LATER | facts["case"]
    for group, fields in {"network": resolve({}, "network") | facts["network"], "case": facts["case"]}.items():
        check_fields(f"{file}: {group}", fields, dict.fromkeys(GROUPS[group], lambda value: value), _REMEDY)
        try:
            resolve(fields, group)
        except OptionError as error:
            raise ReadError(
                f"{file}: {error}; it is damaged, or was written by a newer version of mmfusion: update mmfusion, or "
                f"{_REMEDY}"
            ) from None
    model = Model(**facts)
    for name in ("training_prior", "target_prior"):
        if len(getattr(model, name)) != len(model.classes):
            raise ReadError(
                f"{file} is damaged: {name} has {len(getattr(model, name))} numbers for {len(model.classes)} classes; "
                f"{_REMEDY}"
            )
    prepared = model.case["modalities"] or []
    if len(model.classes) < 2 or (alone := [name for name in model.modalities if name not in prepared]):
        problem = "there is one class" if len(model.classes) < 2 else f"no case is prepared with {alone[0]}"
        raise ReadError(f"{file} is damaged: {problem}; {_REMEDY}")
    return model


def load_model(folder: str | Path | None) -> tuple[Model, FusionNetwork]:
    """Read a run's or bundle's model: its description and the network with its weights, in evaluation mode.

    Raises:
        CohortError: the folder has no finished model, or weights that are not this network's.
        ReadError: see :func:`read_model`.
    """
    model, file = read_model(folder), model_folder(folder) / "model.pt"
    if not file.is_file():
        raise CohortError(f"{file.parent} has no {file.name}: it is not a finished run or bundle. Train first")
    with interpreting(file.with_name("model.json"), _REMEDY):
        network = model.build()
    weights = load_weights(file, network)
    network.load_state_dict(weights)
    return replace(model, weights=weights_hash(weights)), network.eval()


def load_weights(file: str | Path, network: FusionNetwork) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, known to fit the network.

    Raises:
        CohortError: the file is damaged, holds more than tensors, or the weights of another network.
    """
    try:
        weights = load_tensors(file)
        if strange := [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]:
            raise TypeError(f"{strange[0]!r:.40} is no tensor")
    except Exception as error:  # of pickle, zip and torch alike
        raise CohortError(
            f"{file} is not a file of weights alone, as mmfusion writes it: {first_line(error)[:150]}; {_REMEDY}"
        ) from error
    own = network.state_dict()
    fits = {name: value.shape for name, value in own.items()} == {n: v.shape for n, v in weights.items()}
    if not fits:
        other = sorted(name for name in own.keys() | weights.keys() if name not in own or name not in weights)
        other = other or sorted(name for name in own if own[name].shape != weights[name].shape)
        raise CohortError(
            f"{file} holds the weights of another network than strategy {network.strategy} with "
            f"{', '.join(network.modalities)} and {network.num_classes} classes: {len(other)} of {len(own)} differ, "
            f"as {other[0]}. Give the checkpoint of this model, or the options that it was trained with"
        )
    return weights


def load_tensors(file: str | Path) -> dict[str, Any]:
    """What a ``.pt`` file of ours holds, unchanged since it was written: tensors and plain values by name.

    Raises:
        Exception: of pickle, zip and torch alike; the file is damaged, or holds more than that.
    """
    refuse_changed_parts(file)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise TypeError(f"it holds {type(content).__name__}")
    return content


def refuse_changed_parts(file: str | Path) -> None:
    """Compare the checksums in a file that torch wrote, at which torch does not look when it reads.

    Raises:
        ValueError: a part is not as it was written.
        BadZipFile: it cannot be read at all.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if bad := parts.testzip():
                raise ValueError(f"its part {bad} does not have the content that was written")
