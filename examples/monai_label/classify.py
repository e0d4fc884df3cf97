"""The half of the app that runs in mmfusion's own environment: a request a line in, an answer a line out, as JSON.

::

    python classify.py MODEL STUDIES

A request is ``{"image": path, "device": name}``, an answer the result, or ``{"error": one sentence}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfusion.cohort import Case
from mmfusion.cohort.manifest import VOLUME_SUFFIXES
from mmfusion.errors import MmfusionError, ReadError
from mmfusion.predict import load_model, predict_case


def main(model_folder: str, studies: Path) -> None:
    """Answer until the input ends. The model is read once."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not get between the answers
    model, network = load_model(model_folder)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            subject, images = siblings(Path(request["image"]), studies, model.case["modalities"])
            said = predict_case(Case(subject, images=images), model, network, request["device"])
            scores = enumerate(said.probabilities.items())
            answer: dict[str, Any] = {
                "prediction": [{"idx": n, "label": name, "score": share} for n, (name, share) in scores],
                "predicted": said.predicted,
                "modalities": said.modalities,
                "status": said.status,
                "reasons": said.reasons,
            }
        except MmfusionError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers)


def siblings(image: Path, studies: Path, modalities: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """The subject of a scan, and its scans by modality: ``<subject>_<modality>``, a volume file or a DICOM folder.

    Raises:
        ReadError: the scan lies elsewhere, its name has no modality in it, or two scans have the same one.
    """
    if image.resolve().parent != studies.resolve():
        raise ReadError("the image is not in the folder of studies; give the id of an image that the server lists")
    subject, _, modality = stem(image).rpartition("_")
    if not subject or modality not in modalities:
        raise ReadError(
            f"{stem(image)}: its name must be <subject>_<modality>, with one of {', '.join(modalities)} at the end"
        )
    found: dict[str, Path] = {}
    for path in sorted(studies.iterdir()):
        owner, _, name = stem(path).rpartition("_")
        if owner != subject or name not in modalities:
            continue
        if name in found:
            raise ReadError(f"subject {subject} has two scans for {name}: {found[name].name}, {path.name}; keep one")
        found[name] = path
    return subject, found


def stem(path: Path) -> str:
    """The name of a volume file without its ending; the whole name of a folder, or of a file of another kind."""
    endings = () if path.is_dir() else VOLUME_SUFFIXES
    return next((path.name.removesuffix(ending) for ending in endings if path.name.endswith(ending)), path.name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
