"""The page of a cross-validation: means in words, a table of the folds, curves per fold; and pages of older metrics."""

import json

import numpy as np
import pytest
from report_folders import draw_folds, write_folds
from report_reader import Page

from mmfusion.report import charts, write_report
from mmfusion.report.folds import folds_section
from mmfusion.report.result import Curve, read_result
from mmfusion.report.words import p_value, summary, warnings
from mmfusion.training import write_metrics

FAST = {"resamples": 100}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    label, fold, score = draw_folds(n=100)
    folder = write_folds(tmp_path_factory.mktemp("cv") / "cv", label, score, fold, thresholds={1: 0.35})
    write_metrics(folder, **FAST)
    return folder


@pytest.fixture(scope="module")
def written(run):
    return Page(write_report(run))


def test_the_first_sentence_has_the_mean_and_how_rough_its_interval_is(run, written):
    auc = json.loads((run / "metrics.json").read_text())["metrics"]["auc"]
    assert (
        f"reached a mean AUC of {auc['value']:.3f} over 5 folds (95 % interval {auc['low']:.3f} to {auc['high']:.3f}; "
        "rough, as one run of 5 folds leaves 4 degrees of freedom)"
    ) in written.text
    assert "On 100 test cases of 100 subjects" in written.text


def test_folds_are_a_table(run, written):
    metrics = json.loads((run / "metrics.json").read_text())
    assert "fold cases subjects of class class0 of class class1 AUC interval threshold log loss" in written.text
    for name, one in [*metrics["folds"].items(), ("all", None)]:
        auc = (one or metrics["metrics"])["auc"]
        cells = [name, *(("20", "20", "10", "10") if one else ("100", "100", "50", "50")), f"{auc['value']:.3f}"]
        cells += [f"{auc['low']:.3f} to {auc['high']:.3f}"]
        cells += [("0.35" if name == "1" else "0.5") if one else "–"]
        cells += [f"{(one or metrics['metrics'])['log_loss']['value']:.3f}"]
        for modality in ("ct", "pet"):
            pair = (one["single"] if one else metrics["comparison"])[modality]
            cells += [f"{pair['auc']['value']:.3f}", f"{pair['difference']['value']:.3f}"]
        assert " ".join(cells) in written.text
    assert written.headings.index("Folds") < written.headings.index("Each modality alone")


def test_what_is_pooled_and_what_is_a_mean_stands_beside_the_figures(written):
    assert "Thin: one curve per fold. The others: means over the folds." in written.text
    assert "One curve per fold. Dashed: precision of chance" in written.text
    assert written.text.count("Cases of all folds together. ") == 2
    assert "AUCs and differences are means over the folds." in written.text


def test_no_curve_compares_cases_of_different_folds():
    label = np.tile([0, 0, 1, 1], 2)
    score = np.r_[0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
    curve = Curve(label, score, np.arange(8), np.repeat(["0", "1"], 4))
    for figure in (charts.chart_roc({"fusion": curve}, 1), charts.chart_precision_recall({"fusion": curve})):
        lines = [line.get_xydata() for line in figure.axes[0].lines if line.get_linestyle() == "-"]
        assert len(lines) >= 2 and all(points[:, 1].max() == 1 for points in lines)
        assert all(points[points[:, 0] > 0, 1].min() >= 0.5 for points in lines)  # each fold is separated
    assert [len(one.label) for one in curve.by_fold()] == [4, 4]


@pytest.mark.slow
def test_three_classes_by_fold(tmp_path):
    noise = np.random.default_rng(0)
    label, fold = np.arange(45) % 3, np.arange(45) // 3 % 5
    share = np.exp(noise.normal(size=(45, 3)) + np.eye(3)[label])
    run = write_folds(tmp_path / "cv", label, {"fusion": share / share.sum(1, keepdims=True)}, fold)
    metrics = write_metrics(run, **FAST)
    page = Page(write_report(run))
    assert "of class class2 AUC interval log loss" in page.text and "threshold" not in page.text
    assert metrics["folds"]["0"]["threshold"] is None and "a mean AUC of" in page.text
    assert any("ROC curves of class0, class1, class2" in image["alt"] for image in page.images)


@pytest.fixture
def earlier(run, tmp_path):
    """A run whose metrics an earlier version wrote, by pooling the cases of all folds."""
    label, fold, score = draw_folds(n=100)
    folder = write_folds(tmp_path / "cv", label, score, fold)
    metrics = json.loads((run / "metrics.json").read_text())
    each = {number: one["auc"] for number, one in metrics["folds"].items()}
    metrics["folds"] = {"auc": each, "mean": 0.8, "standard_deviation": 0.1}
    metrics["metrics"]["auc"] |= {"value": 0.713, "low": 0.601, "high": 0.792}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"notes": ["The AUCs of the folds are 0.8, ..."]}))
    return folder


def test_metrics_of_an_earlier_version_are_called_pooled(earlier):
    result = read_result(earlier)
    assert "reached AUC 0.713 over the pooled cases of all folds (95 % interval 0.601 to 0.792)." in summary(result)
    assert warnings(result)[0] == "The AUCs of the folds are 0.8, ..."
    assert warnings(result)[1].startswith("These metrics are of an earlier version, whose AUC compares cases of")
    assert folds_section(result) == []


@pytest.mark.slow
def test_metrics_of_an_earlier_version_have_a_page(earlier):
    page = Page(write_report(earlier))
    assert "Folds" not in page.headings and "a mean AUC" not in page.text and len(page.images) == 5


def test_a_declared_case_control_design_is_a_warning(tmp_path):
    label, fold, score = draw_folds()
    folder = write_folds(tmp_path / "cv", label, {"fusion": score["fusion"]}, fold)
    for declared in (True, False):
        write_metrics(folder, **FAST, case_control=declared)
        assert any(one.startswith("Case-control design") for one in warnings(read_result(folder))) == declared


def test_a_fold_that_is_left_out_does_not_count_as_a_degree_of_freedom(tmp_path):
    label, fold, score = draw_folds()
    label[fold == 2] = 0
    folder = write_folds(tmp_path / "cv", label, {"fusion": score["fusion"]}, fold)
    write_metrics(folder, **FAST)
    words = summary(read_result(folder))
    assert "over 4 folds" in words and "3 degrees of freedom" in words


def test_an_interval_of_no_degrees_of_freedom_is_not_called_rough(tmp_path):
    label, fold, _ = draw_folds()
    folder = write_folds(tmp_path / "cv", label, {"fusion": 0.1 + 0.8 * label}, fold)
    write_metrics(folder, **FAST)
    words = summary(read_result(folder))
    assert "reached a mean AUC of 1.000 over 5 folds (95 % interval 0." in words and "degrees" not in words


def test_picking_the_highest_modality_by_its_test_score_is_said(run, tmp_path):
    words = summary(read_result(run))
    assert "Of the 2 modalities alone, pet reached the highest AUC on these same cases," in words
    assert "which flatters it a little; fusion minus pet is" in words
    label, fold, score = draw_folds()
    folder = write_folds(tmp_path / "cv", label, {name: score[name] for name in ("fusion", "pet")}, fold)
    write_metrics(folder, **FAST)
    assert "pet alone reached" in summary(read_result(folder)) and "flatters" not in summary(read_result(folder))


@pytest.mark.parametrize(("p", "shown"), [
    (2 / 2001, "0.001"), (2 / 10001, "< 0.001"), (1e-9, "< 0.001"), (0.0312, "0.031"), (1, "1.000"), (None, None),
])  # fmt: skip
def test_p_values(p, shown):
    assert p_value({"p_value": p}) == shown
