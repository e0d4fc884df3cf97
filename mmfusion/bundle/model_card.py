"""The card of a bundle on the Hugging Face Hub: front matter, the bundle's own page, the facts of its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmfusion.errors import CohortError
from mmfusion.files import interpreting, read_fields, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_TASK = "image-classification"  # the Hub's list of tasks has none for volumes; this is the nearest


def write_model_card(bundle: str | Path) -> Path:
    """Write ``README.md`` of a bundle, as the Hugging Face Hub expects it, from what the bundle says of itself.

    The front matter follows the Hub's model card specification (``license``, ``library_name``, ``pipeline_tag``,
    ``tags``). Nothing is fetched or sent.

    Args:
        bundle: its folder, with ``configs/metadata.json``, ``docs/README.md`` and ``LICENSE``.

    Returns:
        The file, at the root of the bundle, where ``monai.bundle push_to_hf_hub`` puts its own.

    Raises:
        CohortError: the folder lacks one of the three files, or the metadata an entry.
        ReadError: the metadata is not JSON, or damaged.
    """
    bundle = Path(bundle)
    for name in ("configs/metadata.json", "docs/README.md", "LICENSE"):
        if not (bundle / name).is_file():
            raise CohortError(f"{bundle} has no {name}: a model card needs it. Add it, or check the path of the bundle")
    path = bundle / "configs" / "metadata.json"
    metadata = read_fields(path, "the metadata of a bundle")
    with interpreting(path, "put back the metadata as mmfusion bundle new wrote them"):
        try:
            front = yaml.safe_dump(_front_matter(metadata, (bundle / "LICENSE").read_text()), sort_keys=False)
            facts = _facts(metadata)
        except KeyError as error:
            raise CohortError(f"{path} has no entry {error}: a model card needs it. Add it") from None
    page = (bundle / "docs" / "README.md").read_text().strip()
    write_text(f"---\n{front}---\n\n{page}\n\n{facts}\n", bundle / "README.md")
    return bundle / "README.md"


def _front_matter(metadata: Mapping[str, Any], license_text: str) -> dict[str, Any]:
    if "Apache License" in license_text and "Version 2.0" in license_text:
        license = {"license": "apache-2.0"}
    else:  # the Hub's form for all that is not in its list
        license = {"license": "other", "license_name": "see-license", "license_link": "LICENSE"}
    channels = [name.lower() for name in _channels(metadata, "inputs", "image")]
    tags = ["monai", "medical", "mmfusion", "multimodal", "3d", *channels]
    return {**license, "library_name": "monai", "pipeline_tag": _TASK, "tags": tags}


def _channels(metadata: Mapping[str, Any], side: str, name: str) -> list[str]:
    """Names of the channels of an input or output, in order."""
    return list(metadata["network_data_format"][side][name]["channel_def"].values())


def _facts(metadata: Mapping[str, Any]) -> str:
    needs = {name: metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")}
    needs |= metadata["required_packages_version"]
    rows = {
        "version": metadata["version"],
        "task": metadata["task"],
        "modalities": ", ".join(_channels(metadata, "inputs", "image")),
        "classes": ", ".join(_channels(metadata, "outputs", "pred")),
        "intended use": metadata["intended_use"],
        "made with": ", ".join(f"{name} {version}" for name, version in needs.items()),
        "authors": metadata["authors"],
    }
    return "\n".join(["## Facts", "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())])
