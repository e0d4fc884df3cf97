"""Bundles as folders: written for a study from the template, and given the weights that were trained with them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmfusion.bundle.given import CODE, TEMPLATE
from mmfusion.errors import CohortError, OptionError, OutputError
from mmfusion.files import (
    atomic_path,
    check_folder,
    clear_if_free,
    folder_kind,
    interpreting,
    is_bundle,
    json_text,
    optional_fields,
    temporary_path,
    write_json,
    write_text,
    writing,
)
from mmfusion.networks import build
from mmfusion.options import GROUPS, settle
from mmfusion.predict import load_model, model_folder, save_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MODALITIES, _CLASSES = ("ct", "pet", "mr"), ("negative", "positive")


def new_bundle(folder: str | Path, **options: Any) -> Path:
    """Write a bundle for a study: the template, with these options in its ``train.yaml``, metadata and docs.

    Args:
        folder: the bundle, of which the last part is its name; made here.
        options: group ``bundle new`` of :mod:`mmfusion.options`; those that are None stay as they are. Without
            ``modalities`` and ``classes``, training takes those of its cohort.

    Raises:
        OutputError: the folder is there and not empty, or cannot be written.
        OptionError, NetworkError: an option does not fit, or is text that MONAI would execute; or the network cannot
            be.
    """
    folder, settings = Path(folder), settle("bundle new", ("call", options))
    chosen, given = settings.used, settings.chosen
    name = folder.resolve().name
    _refuse_code({"the name of the bundle": name} | {f"option {key}": value for key, value in chosen.items()})
    modalities, classes = chosen["modalities"] or list(_MODALITIES), chosen["classes"] or list(_CLASSES)
    if len(classes) < 2:
        raise OptionError(f"option classes takes at least two class labels, found {' '.join(classes)}")
    sizes: dict[str, Any] = {"num_classes": len(classes), "covariates": len(chosen["covariates"] or ())}
    build(modalities=modalities, **sizes, **{name: chosen[name] for name in GROUPS["network"]})
    check_folder(folder, "bundle")
    if folder_kind(folder):
        raise OutputError(f"{folder} is a bundle already, which may have been edited; choose a new folder")
    place = folder.resolve()
    draft = temporary_path(place)
    with writing(folder):
        try:
            for source in TEMPLATE.rglob("*"):
                if source.is_file() and "__pycache__" not in source.parts:
                    copy = draft / source.relative_to(TEMPLATE)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(source.read_bytes())
            _fill_template(draft, name, modalities, classes, chosen, given)
            if place.is_dir():  # empty, but for what file managers and killed commands leave
                for part in sorted(draft.iterdir()):
                    part.rename(place / part.name)
            else:
                draft.rename(place)  # whatever ends this, no half bundle is left
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _fill_template(
    folder: Path,
    name: str,
    modalities: Sequence[str],
    classes: Sequence[str],
    chosen: dict[str, Any],
    given: Iterable[str],
) -> None:
    """Write what is special to one bundle into a copy of the template."""
    train = folder / "configs" / "train.yaml"
    write_text(_with_options(train.read_text(), {option: chosen[option] for option in given}), train)
    facts = _described(folder, modalities, classes, chosen["strategy"], name=name)
    write_json(facts, folder / "configs" / "metadata.json")
    readme = folder / "docs" / "README.md"
    words = {"NAME": name, "TITLE": _title(name), "MODALITIES": ", ".join(modalities), "CLASSES": ", ".join(classes)}
    words |= {"STRATEGY": chosen["strategy"], "ENCODER": str(chosen["encoder"]), "CHANNELS": str(len(modalities))}
    text = readme.read_text()
    for word, value in words.items():
        text = text.replace("{" + word + "}", value)
    write_text(text, readme)


def pack_model(bundle: str | Path, run: str | Path, *, dtype: str = "float32") -> Path:
    """Put the finished model of a run into a bundle, whose metadata then say what it takes and gives.

    Args:
        bundle: a bundle's folder.
        run: a run folder that ``train.yaml`` wrote.
        dtype: of the weights, ``float32`` or ``float16``.

    Returns:
        The bundle's ``models/model.pt``.

    Raises:
        CohortError: ``bundle`` is no bundle, the run has no finished model, or a weight does not fit ``dtype``.
        OutputError: it is the bundle of another program, the model is its own, or it cannot be written.
        OptionError: the name of a class or modality is text that MONAI would execute.
    """
    bundle = Path(bundle)
    if not (bundle / "configs" / "metadata.json").is_file():
        raise CohortError(f"{bundle} has no configs/metadata.json: it is not a bundle. Make one: mmfusion bundle new")
    if not is_bundle(bundle):
        raise OutputError(
            f"{bundle} is a bundle of another program (its metadata do not require mmfusion), whose model is not "
            "replaced. Make one: mmfusion bundle new"
        )
    if model_folder(run).resolve() == (bundle / "models").resolve():
        raise OutputError(f"{run} is read, and is the model of {bundle} itself; give the run folder of a training")
    model, network = load_model(run)
    remedy = f"{run} itself predicts; to put it into a bundle, rename this in the manifest, prepare and train again"
    _refuse_code({"class": model.classes, "modality": model.modalities, "strategy": model.network["strategy"]}, remedy)
    facts = _described(bundle, model.modalities, model.classes, model.network["strategy"])  # or refused, with no change
    clear_if_free(bundle, "configs", "models")
    with atomic_path(bundle / "configs" / "metadata.json") as metadata:  # in place when the model is
        metadata.write_text(json_text(facts), encoding="utf-8")
        save_model(bundle / "models", network, model, dtype=dtype)
    return bundle / "models" / "model.pt"


def _refuse_code(values: Mapping[str, Any], remedy: str = "choose another name") -> None:
    """Refuse text, at any depth, that MONAI does not take for text when it reads a configuration or metadata.

    Raises:
        OptionError: a text begins with ``$`` (an expression), ``@`` (a reference) or ``%`` (a macro), or a name in a
            table with ``_`` (as ``_target_``, what to call).
    """

    def refuse(what: str, text: Any, signs: tuple[str, ...] = CODE) -> None:
        if isinstance(text, str) and text.startswith(signs):
            raise OptionError(
                f"{what} has {text!r}, which begins with {text[0]}: in a bundle MONAI would execute it; {remedy}"
            )
        if isinstance(text, Mapping):
            for name, value in text.items():
                refuse(what, name, (*CODE, "_"))
                refuse(what, value)
        elif isinstance(text, list | tuple):
            for value in text:
                refuse(what, value)

    for what, value in values.items():
        refuse(what, value)


def _with_options(text: str, options: dict[str, Any]) -> str:
    """A ``train.yaml`` with these values among its options: in place of those listed, else behind them.

    Comments stay in their column.
    """
    for name, value in options.items():
        written = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
        listed = re.search(rf"^{name}: .*?(?P<comment> *(?:#.*)?)$", text, flags=re.MULTILINE)
        if listed is None:
            text = text.replace("\nval_interval: ", f"\n{name}: {written}\nval_interval: ", 1)
            continue
        comment = listed["comment"].strip()
        column = listed.end() - len(comment) - listed.start()
        line = f"{name}: {written} ".ljust(column) + comment if comment else f"{name}: {written}"
        text = text[: listed.start()] + line + text[listed.end() :]
    return text


def _described(
    bundle: Path, modalities: Sequence[str], classes: Sequence[str], strategy: str, *, name: str | None = None
) -> dict[str, Any]:
    """The bundle's metadata, which say what the network takes and gives."""
    file = bundle / "configs" / "metadata.json"
    facts = optional_fields(file, "make a bundle by: mmfusion bundle new")
    if name:
        facts["name"] = _title(name)
    facts["task"] = f"Classification of a subject from {', '.join(modalities)}, any of which may be missing"
    facts["description"] = (
        f"Fuses {', '.join(modalities)} by strategy {strategy} and tells {', '.join(classes)} apart. Research use only."
    )
    facts["image_classes"] = f"{len(modalities)} channels, {', '.join(modalities)}, each about 0..1; absent ones are 0"
    with interpreting(file, "put back the metadata as mmfusion bundle new wrote them"):
        image, pred = facts["network_data_format"]["inputs"]["image"], facts["network_data_format"]["outputs"]["pred"]
        image["modality"] = ", ".join(one.upper() for one in modalities)
        image["num_channels"] = len(modalities)
        image["channel_def"] = {str(number): one for number, one in enumerate(modalities)}
        pred["num_channels"], pred["spatial_shape"] = len(classes), [1, len(classes)]
        pred["channel_def"] = {str(number): one for number, one in enumerate(classes)}
    return facts


def _title(name: str) -> str:
    """``m3t_fusion`` as a heading: M3T fusion."""
    words = " ".join(word.upper() if any(map(str.isdigit, word)) else word for word in name.split("_"))
    return words[:1].upper() + words[1:]
