"""Charts of a run: ROC and precision-recall, calibration, confusion, forest, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.evaluation import calibration_bins, confusion, precision_recall_curve, roc_band
from mmfusion.report.files import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmfusion.report.result import Curve

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, for all eyes


def chart_roc(curves: Mapping[str, Curve], main: int, case_control: bool = False) -> Figure:
    """ROC curves, of a cross-validation the mean of its folds.

    Args:
        curves: name to curve.
        main: the first so many have a bootstrap band, or a thin curve per fold in its place.
        case_control: as in :func:`mmfusion.evaluation.roc_band`.
    """
    figure, axis = _canvas(4.6, 4.3)
    for index, (name, curve) in enumerate(curves.items()):
        band = roc_band(curve.label, curve.probability, curve.subject, folds=curve.fold, case_control=case_control)
        color = COLORS[index % len(COLORS)]
        axis.plot(band.fpr, band.tpr, color=color, label=name, linewidth=2.0 if index < main else 1.0)
        if index >= main:
            continue
        if band.low is not None and band.high is not None:
            axis.fill_between(band.grid, band.low, band.high, color=color, alpha=0.15, linewidth=0)
        for fold in curve.by_fold():
            one = roc_band(fold.label, fold.probability, resamples=1)
            axis.plot(one.fpr, one.tpr, color=color, alpha=0.5, linewidth=0.7)
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    return _square(figure, axis)


def chart_precision_recall(curves: Mapping[str, Curve]) -> Figure:
    """Precision-recall curves, one per fold of a cross-validation; the first one's share of positives is chance."""
    figure, axis = _canvas(4.6, 4.3)
    for index, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "where": "pre"}
        if curve.fold is not None:
            style |= {"alpha": 0.7, "linewidth": 0.9}
        for position, one in enumerate(curve.by_fold() or [curve]):
            recall, precision = precision_recall_curve(one.label, one.probability)
            label = None if position else name
            axis.step(np.r_[0, recall], np.r_[precision[:1], precision], label=label, **style)
        if index == 0:
            axis.axhline(np.mean(curve.label), color="0.6", linewidth=0.8, linestyle="--")
    axis.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision and recall")
    return _square(figure, axis)


def chart_calibration(curves: Mapping[str, Curve]) -> Figure:
    """Observed against predicted shares, with Wilson intervals and the number of cases at each point."""
    figure, axis = _canvas(4.6, 4.3)
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    for index, (name, curve) in enumerate(curves.items()):
        bins = calibration_bins(curve.label, curve.probability, bins=max(2, min(10, len(curve.label) // 8)))
        reach = np.maximum([bins.observed - bins.low, bins.high - bins.observed], 0)
        color = COLORS[index % len(COLORS)]
        axis.errorbar(bins.predicted, bins.observed, yerr=reach, color=color, marker="o", capsize=3, label=name)
        if len(curves) == 1:
            for x, y, n in zip(bins.predicted, bins.observed, bins.n, strict=True):
                axis.annotate(f"n={n}", (x, y), xytext=(5, -11), textcoords="offset points", fontsize=7)
    axis.set(xlabel="mean predicted probability", ylabel="observed share", title="Calibration")
    return _square(figure, axis)


def chart_confusion(label: np.ndarray, predicted: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Counts of true against predicted class, shaded by their share of the true class."""
    counts = confusion(label, predicted, len(classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = _canvas(4.6, 4.0)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=14)
    ticks = range(len(classes))
    axis.set(xlabel="predicted class", ylabel="true class", title=title, xticks=ticks, yticks=ticks)
    axis.set_xticklabels(classes)
    axis.set_yticklabels(classes)
    return figure


def chart_forest(
    values: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Any]],
    ceilings: Mapping[str, float],
) -> Figure:
    """AUCs with intervals on the left, differences with paired intervals on the right, a row a name.

    Args:
        values: row name to an Estimate as a dict.
        differences: row name to an Estimate as a dict; names without one stay empty.
        ceilings: row name to the best AUC that the simulation allows.
    """
    from matplotlib.figure import Figure

    names = list(values)
    figure = Figure(figsize=(9, 1.3 + 0.45 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, name in enumerate(names):
        _whisker(left, values[name], row, COLORS[0])
        _whisker(right, differences.get(name, {}), row, COLORS[1])
    known = [(ceiling, row) for row, name in enumerate(names) if (ceiling := ceilings.get(name)) is not None]
    if known:
        left.plot(*zip(*known, strict=True), "D", color="0.3", markerfacecolor="none", label="ceiling")
        left.legend(fontsize=8, frameon=False, loc="lower left")
    left.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    right.axvline(0, color="0.6", linewidth=0.8, linestyle="--")
    left.set(xlabel="AUC", title="AUC (dashed: chance)", yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    left.set_yticklabels(names)
    right.set(xlabel="difference of AUCs", title="fusion minus this modality alone")
    for axis in (left, right):
        _bare(axis)
    return figure


def chart_training(history: Sequence[Mapping[str, str]]) -> Figure:
    """Losses and validation AUC over the epochs."""
    from matplotlib.figure import Figure

    columns = [name for name in ("train_loss", "validation_loss") if any(number(row.get(name)) for row in history)]
    scores = any(number(row.get("validation_auc")) is not None for row in history)
    figure = Figure(figsize=(9, 3.2) if scores else (4.6, 3.2), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]

    def draw(axis: Any, name: str, color: str) -> None:
        points = [(number(row.get("epoch")), number(row.get(name))) for row in history]
        kept = [(x, y) for x, y in points if x is not None and y is not None]
        if kept:
            marker = "." if len(kept) < 40 else None
            axis.plot(*zip(*kept, strict=True), color=color, label=name.replace("_", " "), marker=marker)

    for name, color in zip(columns, COLORS, strict=False):
        draw(axes[0], name, color)
    axes[0].set(xlabel="epoch", ylabel="loss", title="Loss")
    if columns:
        axes[0].legend(fontsize=8, frameon=False)
    if scores:
        draw(axes[1], "validation_auc", COLORS[2])
        axes[1].set(xlabel="epoch", ylabel="AUC", title="Validation AUC", ylim=(0, 1.02))
    for axis in axes:
        _bare(axis)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    _bare(axis)
    return figure, axis


def _bare(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _square(figure: Figure, axis: Any) -> Figure:
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(fontsize=8, frameon=False)
    return figure


def _whisker(axis: Any, estimate: Mapping[str, Any], row: int, color: str) -> None:
    value, low, high = (number(estimate.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return
    if low is not None and high is not None:
        axis.plot([low, high], [row, row], color=color, linewidth=1.5)
    axis.plot([value], [row], "o", color=color)
