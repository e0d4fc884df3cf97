"""The folds of a cross-validation on the page of all of them: a table, one row per fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmfusion.report import page
from mmfusion.report.page import Html
from mmfusion.report.result import Result
from mmfusion.report.words import interval, value


def folds_section(result: Result) -> list[Html]:
    """The numbers of each fold and their means; empty without a cross-validation."""
    folds = result.folds
    if not folds:
        return []
    classes = result.predictions.classes
    singles = [name for name in result.comparison if any(name in (one.get("single") or {}) for one in folds.values())]
    headers = ["fold", "cases", "subjects", *(f"of class {name}" for name in classes), "AUC", "interval"]
    headers += ["threshold"] * (len(classes) == 2) + ["log loss"]
    headers += [words for name in singles for words in (f"{name} alone", f"fusion minus {name}")]
    rows: list[list[Any]] = []
    for name, fold in folds.items():
        auc, count, alone = (fold.get(key) or {} for key in ("auc", "count", "single"))
        row = [name, fold.get("n"), fold.get("subjects"), *(count.get(one) for one in classes)]
        row += [value(auc), interval(auc)] + [fold.get("threshold")] * (len(classes) == 2)
        row.append(value(fold.get("log_loss") or {}))
        rows.append(row + _alone(alone, singles))
    predictions = result.predictions
    auc, subjects = result.estimate("auc"), set(predictions.subject.tolist())
    counts = [int((predictions.label == k).sum()) for k in range(len(classes))]
    row = ["all", len(predictions.label), len(subjects), *counts, value(auc), interval(auc)]
    row += [None] * (len(classes) == 2) + [value(result.estimate("log_loss"))]
    rows.append(row + _alone(result.comparison, singles))
    caption = (
        "Last row: AUCs and their differences are means over the folds; the log loss is of the cases of all folds "
        "together. The spread of the folds is that of small test parts and of models trained on different cases."
    )
    return [page.table(headers, rows, caption)]


def _alone(entries: Mapping[str, Mapping[str, Any]], singles: list[str]) -> list[str]:
    """The AUC of each modality alone, and that of the fusion minus it."""
    pairs = [entries.get(name) or {} for name in singles]
    return [value(pair.get(key) or {}) for pair in pairs for key in ("auc", "difference")]
