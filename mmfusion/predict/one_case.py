"""One case in memory, from its scans to its probabilities: what servers and pipelines call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmfusion.cohort.covariates import encode_covariates
from mmfusion.predict.predictions import decide, infer, probabilities
from mmfusion.prepare import case_covariates, prepare_case

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmfusion.cohort import Case
    from mmfusion.predict.model import Model


@dataclass(frozen=True)
class CasePrediction:
    """What a model says of one case.

    Attributes:
        probabilities: by class, at the prior of the training subjects.
        predicted: the class, by the threshold of the model if it has one, else the most probable.
        modalities: those that the network saw.
        status: of the preparation, ``done`` or ``doubtful``.
        reasons: why it is doubtful, one sentence each.
    """

    probabilities: Mapping[str, float]
    predicted: str
    modalities: tuple[str, ...]
    status: str
    reasons: tuple[str, ...]


def predict_case(case: Case, model: Model, network: torch.nn.Module, device: str = "cpu") -> CasePrediction:
    """Prepare one case as the training cases were, and classify it; nothing is written.

    Args:
        case: its scans and covariates; those that it lacks are missing, further ones are not read.
        model, network: from :func:`mmfusion.predict.load_model`.
        device: where the network runs; it is moved there. Preparing stays on the CPU.

    Raises:
        ReadError, VoxelError, GeometryError, OptionError: see :func:`mmfusion.prepare.prepare_case`.
        VoxelError: the case has none of the network's modalities.
        CohortError, ManifestError: a table among its covariates cannot be used.
    """
    prepared = prepare_case(case, pictures=False, features=model.features, **model.case)
    channels = [prepared.modalities.index(name) for name in model.modalities]
    present = prepared.present[channels]
    batch: dict[str, Any] = {
        "image": torch.from_numpy(prepared.image[channels])[None],
        "present": torch.from_numpy(present)[None],
        "case": [case.id],
    }
    if model.covariates:
        known = encode_covariates(model.covariates, case_covariates(case, prepared.facts), [case.id])
        batch["covariates"] = torch.from_numpy(known[case.id])[None]
    shares = probabilities(infer(network.to(device), [batch], device), model)[0]
    return CasePrediction(
        probabilities=dict(zip(model.classes, shares.tolist(), strict=True)),
        predicted=decide(shares, model),
        modalities=tuple(name for name, there in zip(model.modalities, present, strict=True) if there),
        status=prepared.status,
        reasons=prepared.reasons,
    )
