"""Numbers in words: the summary of a report, its warnings, and how an estimate is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmfusion.report.files import number, reasons_of, status_of
from mmfusion.report.result import Result

METRIC_NAMES = {
    "auc": "AUC (ROC)",
    "pr_auc": "PR-AUC (average precision)",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss (lower is better)",
    "brier": "Brier score (lower is better)",
}


def interval(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """``0.712 to 0.981``, or a dash."""
    low, high = number(estimate.get("low")), number(estimate.get("high"))
    return "–" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def value(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """``0.874``, or a dash."""
    found = number(estimate.get("value"))
    return "–" if found is None else f"{found:.{digits}f}"


def p_value(difference: Mapping[str, Any]) -> str | None:
    """``0.012``, ``< 0.001``, or None where there is none."""
    p = number(difference.get("p_value"))
    return None if p is None else "< 0.001" if p < 0.0005 else f"{p:.3f}"


def summary(result: Result) -> str:
    """What the run found, in two or three sentences."""
    auc, part, predictions = result.estimate("auc"), result.metrics.get("part", "test"), result.predictions
    names = _and(result.modalities)
    strategy = str(result.options.get("strategy") or "network").replace("_", "-")
    who = f"{strategy} fusion of {names}" if len(result.modalities) > 1 else f"the network on {names or 'the images'}"
    sizes = {name: np.sum(predictions.label == k) for k, name in enumerate(predictions.classes)}
    counts = ", ".join(f"{size} of class {name}" for name, size in sizes.items())
    cases, subjects = len(predictions.label), len(set(predictions.subject.tolist()))
    where = f"{cases} {part} cases of {subjects} subjects ({counts})"
    if number(auc.get("value")) is None:
        sentences = [f"On {where}, no AUC can be given for {who}: {auc.get('reason') or 'not computed'}."]
    else:
        sentences = [f"On {where}, {who} reached {_measured(result)}."]
    return " ".join([*sentences, *_best_single(result)])


def _measured(result: Result) -> str:
    """The AUC with its interval, and what both are in a cross-validation."""
    auc = result.estimate("auc")
    between = f"95 % interval {interval(auc)}"
    if result.pools_folds:
        return f"AUC {value(auc)} over the pooled cases of all folds ({between})"
    if not result.folds:
        return f"AUC {value(auc)} ({between})"
    measured = sum(number((fold.get("auc") or {}).get("value")) is not None for fold in result.folds.values())
    if number(auc.get("low")) is not None and "degrees of freedom" in str(auc.get("method")):
        between += f"; rough, as one run of {measured} folds leaves {measured - 1} degrees of freedom"
    return f"a mean AUC of {value(auc)} over {measured} fold{'s' * (measured > 1)} ({between})"


def _best_single(result: Result) -> list[str]:
    """The fusion beside the modality alone that scored highest, which is picked by its score on these very cases."""
    scored = {name: auc for name, entry in result.comparison.items()
              if (auc := number((entry.get("auc") or {}).get("value"))) is not None}  # fmt: skip
    if not scored:
        return []
    name = max(scored, key=lambda one: (scored[one], one))
    text = f"{name} alone reached {scored[name]:.3f}"
    if len(scored) > 1:
        text = (
            f"Of the {len(scored)} modalities alone, {name} reached the highest AUC on these same cases, "
            f"{scored[name]:.3f}, which flatters it a little"
        )
    difference = result.comparison[name].get("difference") or {}
    low, high = number(difference.get("low")), number(difference.get("high"))
    if low is None or high is None:
        return [f"{text}."]
    if low > 0:
        verdict = "the interval lies above zero"
    elif high < 0:
        verdict = "fusion was worse here"
    else:
        verdict = "the interval includes zero, so these subjects do not show which of the two is better"
    return [f"{text}; fusion minus {name} is {value(difference)} ({interval(difference)}): {verdict}."]


def warnings(result: Result) -> list[str]:
    """What a reader should know before believing the numbers."""
    found = [str(note) for note in result.metrics.get("notes") or []]
    if result.pools_folds:
        found.append(
            "These metrics are of an earlier version, whose AUC compares cases of different folds. Evaluate again: "
            "the AUC is then the mean over the folds."
        )
    if result.case_control:
        found.append(
            "Case-control design: subjects were chosen by their label, so the intervals take the number of each class "
            "as fixed. PR-AUC, accuracy, Brier score and log loss hold for these shares of the classes, not for others."
        )
    part, predictions = result.metrics.get("part", "test"), result.predictions
    if part != "test":
        found.append(f"These are {part} cases: the network was trained or chosen on them.")
    small = {name: len(set(predictions.subject[predictions.label == k].tolist()))
             for k, name in enumerate(predictions.classes)}  # fmt: skip
    few = ", ".join(f"{count} of class {name}" for name, count in small.items() if count < 20)
    if few:
        found.append(f"Few subjects ({few}): with fewer than 20 of a class the intervals are wide.")
    if not result.cases:
        found.append("The cohort folder was not found, so its failed and doubtful cases are not shown.")
    split = {row.get("case"): row.get("part") for row in result.split}
    doubtful = [row for row in result.cases if status_of(row) == "doubtful" and row.get("case") in split]
    if doubtful:
        names = ", ".join(f"{row.get('case')} ({'; '.join(reasons_of(row)) or 'no reason'})" for row in doubtful[:5])
        more = f" and {len(doubtful) - 5} more" if len(doubtful) > 5 else ""
        found.append(f"{len(doubtful)} doubtful cases were used: {names}{more}. See qc.html of the cohort.")
    shared = _in_several_parts(result)
    if shared:
        found.append(f"Leakage: subjects in more than one part of the split: {', '.join(shared[:5])}.")
    return found


def _in_several_parts(result: Result) -> list[str]:
    parts: dict[str, set[str]] = {}
    for row in result.split:
        parts.setdefault(row.get("subject", ""), set()).add(row.get("part", ""))
    return sorted(subject for subject, where in parts.items() if subject and len(where) > 1)


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
