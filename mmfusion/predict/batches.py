"""Where batches enter: the items of a data set, and the checks of values before any work is done on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.utils.data import Dataset

from mmfusion.cohort.covariates import encode_covariates
from mmfusion.errors import CohortError, VoxelError
from mmfusion.prepare import covariate_columns, load_image, open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mmfusion.cohort.covariates import Covariate
    from mmfusion.predict.model import Model
    from mmfusion.prepare import Cohort, PreparedCase

Answer = TypeVar("Answer")


class Inputs(NamedTuple):
    """What loaders give, networks take and engines run: ``network(*inputs)``.

    Attributes:
        image: ``[B, M, D, H, W]``, a channel for each modality.
        present: ``[B, M]`` bool, the modalities that each case has.
        covariates: ``[B, C]``, standardized, NaN where one is not known; None for a network that takes none.
    """

    image: torch.Tensor
    present: torch.Tensor
    covariates: torch.Tensor | None = None


def dataset_items(
    cohort: Cohort,
    cases: Iterable[PreparedCase],
    modalities: Sequence[str],
    classes: Sequence[str] = (),
    covariates: Sequence[Covariate] = (),
) -> list[dict[str, Any]]:
    """One dictionary a case for a MONAI data set; cases with none of the modalities are left out.

    Args:
        cohort: where the cases come from.
        cases: some of its cases.
        modalities: the network's channels, in order; each must be in the cohort or is missing in every case.
        classes: class labels in the order of the outputs; a case whose label is not among them gets none.
        covariates: what the network takes beside the images; a column that the cohort lacks is unknown in every case.

    Returns:
        ``{"case", "subject", "session", "modalities", "image": path, "present": bool [M], "covariates": [C],
        "label": int}``; without ``label`` where it is unknown, without ``covariates`` where there are none.

    Raises:
        CohortError: no case has any of the modalities, or a covariate cannot be used.
        ReadError: a tensor is damaged, or of another size than the cohort's (looked at here, before the work begins).
    """
    items, cases = [], list(cases)
    known = {}
    if covariates:
        known = encode_covariates(covariates, covariate_columns(cohort), [one.case.id for one in cases])
    for one in cases:
        present = [name in one.modalities for name in modalities]
        if any(present):
            open_image(one.file, cohort.modalities, cohort.options["size"])
            item = {
                "case": one.case.id,
                "subject": one.case.subject,
                "session": one.case.session,
                "modalities": " ".join(name for name in modalities if name in one.modalities),
                "image": str(one.file),
                "present": torch.tensor(present),
            }
            item |= {"covariates": torch.from_numpy(known[one.case.id])} if covariates else {}
            items.append(item | ({"label": classes.index(one.case.label)} if one.case.label in classes else {}))
    if not items:
        raise CohortError(f"no case of {cohort.folder} has any of the modalities {', '.join(modalities)} in this part")
    return items


def inference_items(model: Model, cohort: Cohort | None) -> list[dict[str, Any]]:
    """The items of all cases that a model can predict on; none where there is no cohort yet, or every case failed."""
    cases = cohort.cases if cohort else []
    usable = [one for one in cases if set(one.modalities) & set(model.modalities)]
    return dataset_items(cohort, usable, model.modalities, covariates=model.covariates) if cohort and usable else []


def check_batch(
    image: torch.Tensor, present: torch.Tensor, cases: Sequence[str] = (), covariates: torch.Tensor | None = None
) -> None:
    """Refuse values that would spoil a result silently.

    Args:
        image: ``[B, M, D, H, W]``.
        present: ``[B, M]`` bool.
        cases: names for the message.
        covariates: ``[B, C]``, NaN where one is not known; or None.

    Raises:
        VoxelError: a case has no modality, or voxels that are not finite.
        CohortError: covariates have another shape, or are infinite.
    """
    names = list(cases) or [f"row {row}" for row in range(len(image))]
    empty = [names[row] for row in (~present.any(1)).nonzero().flatten().tolist()]
    if empty:
        raise VoxelError(f"{', '.join(empty)}: all modalities are absent; a case needs at least one")
    broken = [names[row] for row in (~image.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()]
    if broken:
        raise VoxelError(f"{', '.join(broken)}: the image holds NaN or infinite values; prepare the case again")
    if covariates is None:
        return
    if covariates.ndim != 2 or len(covariates) != len(image):
        raise CohortError(f"covariates must have shape [{len(image)}, C], found {list(covariates.shape)}")
    endless = [names[row] for row in covariates.isinf().any(1).nonzero().flatten().tolist()]
    if endless:
        raise CohortError(f"{', '.join(endless)}: covariates hold infinite values; write NaN where one is not known")


def inputs_of(batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **to: Any) -> Inputs:
    """What a network takes of a batch, checked and on the device.

    Args:
        batch: of a loader: ``image``, ``present`` and, where the cases have them, ``covariates``.
        device, non_blocking, to: as for :meth:`torch.Tensor.to`.

    Raises:
        VoxelError, CohortError: see :func:`check_batch`.
    """
    image, present, covariates = batch["image"], batch["present"], batch.get("covariates")
    image = image.as_tensor() if hasattr(image, "as_tensor") else image
    check_batch(image, present, batch.get("case", ()), covariates)
    if covariates is not None:
        covariates = covariates.to(device, dtype=image.dtype, non_blocking=non_blocking)
    moved = image.to(device, non_blocking=non_blocking, **to)
    return Inputs(moved, present.to(device, non_blocking=non_blocking), covariates)


class PrepareFusionBatch:
    """MONAI's ``prepare_batch``: ``(image, label, (), {"present": ...})`` on the device, checked.

    ``label`` is None where the data has none; where a batch has ``covariates [B, C]``, they stand beside ``present``.
    """

    def __call__(
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **to: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[()], dict[str, torch.Tensor]]:
        image, present, covariates = inputs_of(batchdata, device, non_blocking, **to)
        label = batchdata.get("label")
        label = None if label is None else label.to(device, non_blocking=non_blocking)
        return image, label, (), {"present": present} | ({} if covariates is None else {"covariates": covariates})


class CaseImages(Dataset[dict[str, Any]]):
    """The items of prepared cases with their images, for torch; without MONAI, which takes seconds to import.

    Args:
        items: of :func:`dataset_items`.
        wanted: the network's modalities; one that is not stored becomes a zero channel.
        stored: the cohort's modalities, the channels of the files.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], wanted: Sequence[str], stored: Sequence[str]) -> None:
        self.items, self.wanted, self.stored = items, wanted, stored

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        item = self.items[number]
        return {**item, "image": torch.from_numpy(load_image(item["image"], self.wanted, self.stored))}


def run_cases(
    answer: Callable[[Inputs], Answer], batches: Iterable[Mapping[str, Any]], device: Any = "cpu"
) -> Iterator[tuple[Mapping[str, Any], Answer]]:
    """The one loop over cases: each batch, and what is answered to its checked inputs; no gradient is kept.

    Args:
        answer: from :class:`Inputs` on the device to anything: logits, all outputs of a network, probabilities.
        batches: of a loader.
        device: where the inputs go.

    Raises:
        VoxelError, CohortError: see :func:`check_batch`.
    """
    for batch in batches:
        with torch.no_grad():
            result = answer(inputs_of(batch, device))
        yield batch, result
