"""The models of a cross-validation as an ensemble: which runs belong together, and what they have in common."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from mmfusion.cohort.covariates import count_inputs
from mmfusion.errors import CohortError
from mmfusion.files import RunFolder, interpreting, optional_fields, read_rows
from mmfusion.options import GROUPS
from mmfusion.predict.model import Model, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

_OWN = ("fold", "cohort", "versions", "given", *GROUPS["machine"])
"""In what folds may differ; of the cohort its hash counts, not the path; of options the value, not who gave it."""


def member_folders(folder: str | Path) -> list[Path]:
    """The runs of all folds of a cross-validation, in their order; or the folder itself, if it has none.

    Raises:
        CohortError: see :func:`fold_runs`.
    """
    return list(fold_runs(folder).values()) if _numbers(Path(folder)) else [Path(folder)]


def load_members(folder: str | Path | None) -> list[tuple[Model, torch.nn.Module]]:
    """What :func:`mmfusion.predict.load_model` gives of each fold of a cross-validation; each network takes its own
    among the covariates of :func:`joint_model`.

    Raises:
        CohortError: see :func:`fold_runs`.
    """
    if folder is None:
        raise CohortError("no run is given: add --run RUN, a folder with the runs of all folds")
    members = [load_model(run) for run in fold_runs(folder).values()]
    spans = own_covariates([model for model, _ in members])
    return [
        (model, _Member(network, span) if model.covariates else network)
        for (model, network), span in zip(members, spans, strict=True)
    ]


def own_covariates(models: Sequence[Model]) -> list[slice]:
    """Where the inputs of each member are among the covariates of :func:`joint_model`."""
    ends = list(accumulate((count_inputs(model.covariates) for model in models), initial=0))
    return [slice(first, end) for first, end in pairwise(ends)]


class _Member(torch.nn.Module):
    """A network that is given the covariates of all members of an ensemble, and takes its own."""

    def __init__(self, network: torch.nn.Module, span: slice) -> None:
        super().__init__()
        self.network, self.span = network, span
        self.eval()

    def forward(self, image: torch.Tensor, present: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """``image [B, M, *spatial]``, ``present [B, M]``, ``covariates [B, C of all]`` to logits ``[B, K]``."""
        return cast("torch.Tensor", self.network(image, present, covariates[:, self.span]))


def joint_model(models: Sequence[Model]) -> Model:
    """What the members of an ensemble have in common; their thresholds are averaged.

    Their covariates stand one behind the other: each was fitted on subjects of its own, see :func:`own_covariates`.
    A case is then called positive where the members' probabilities exceed their own thresholds on average.

    Raises:
        CohortError: they differ in modalities, classes, or how cases are prepared.
    """
    first = models[0]
    for model in models[1:]:
        for name in ("modalities", "classes", "case"):
            if getattr(model, name) != getattr(first, name):
                raise CohortError(
                    f"the members of an ensemble must have the same {name}, found {getattr(first, name)} and "
                    f"{getattr(model, name)}; train the folds with the same options"
                )
    thresholds = [one.threshold for one in models if one.threshold is not None]
    known = all(one.weights for one in models)
    joint = sha256(" ".join(one.weights for one in models).encode()).hexdigest()[:16] if known else ""
    return replace(
        first,
        threshold=float(np.mean(thresholds)) if thresholds else None,
        covariates=tuple(one for model in models for one in model.covariates),
        weights=first.weights if len(models) == 1 else joint,
    )


def fold_runs(folder: str | Path) -> dict[int, Path]:
    """Fold to its run, ``folder/fold_<number>``: all folds of a cross-validation, in order.

    Raises:
        CohortError: there are none, one is missing or not finished, or they differ in cohort, folds or options.
    """
    folder = Path(str(folder))  # MONAI's command line turns --run 7 into a number
    there = _numbers(folder)
    runs = {fold: RunFolder(folder).fold(fold).path for fold in there}
    facts = {fold: _facts(runs[fold]) for fold in there if (runs[fold] / "model.json").is_file()}
    wanted = {*there, *(int(fold) for fact in facts.values() for fold in fact.get("folds of the cases", {}).values())}
    train = f"mmfusion train COHORT --out {folder} --fold"
    if not facts:
        raise CohortError(f"{folder} has no finished run of a fold (fold_0, fold_1, ...): {train} 0, and so on")
    if missing := sorted(wanted - set(facts)):
        names = ", ".join(map(str, missing))
        raise CohortError(
            f"{folder} has no finished run of fold {names} (there are to be {len(wanted)}): {train} {missing[0]}"
        )
    first = facts[there[0]]
    for fold, fact in facts.items():
        if differ := [name for name in first | fact if fact.get(name) != first.get(name)]:
            raise CohortError(
                f"{runs[fold]} differs from {runs[there[0]]} in {', '.join(differ[:5])}; the folds of a "
                "cross-validation have one cohort and the same options: train one of them again"
            )
    return runs


def _numbers(folder: Path) -> list[int]:
    """The folds that have a folder of their own."""
    return list(RunFolder(folder).folds())


def _facts(run: Path) -> dict[str, Any]:
    """In what the folds of a cross-validation must agree; empty where only the model was kept of a run.

    Raises:
        CohortError: the run was not trained as a fold.
    """
    options = optional_fields(run / "options.json")
    if not options:
        return {}
    if f"fold_{options.get('fold')}" != run.name:
        raise CohortError(f"{run} was not trained as a fold of that number; train it with --fold, or move it away")
    rows = read_rows(run / "split.csv", "train it again", ("case", "fold"))
    with interpreting(run / "split.csv", "train it again"):
        folds = {row["case"]: str(int(row["fold"])) for row in rows}
    with interpreting(run / "options.json", "train it again"):
        losses = {name: weight for name, weight in (options["losses"] or {}).items() if name != "kl"}
    shared = {name: value for name, value in options.items() if name not in _OWN}
    return {**shared, "losses": losses, "folds of the cases": folds}  # kl is by default 1 / training cases
