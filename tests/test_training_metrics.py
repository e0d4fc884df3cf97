"""``metrics.json`` of a cross-validation, on written predictions: what is a mean over folds, what counts all cases."""

import csv

import numpy as np
import pytest
from report_folders import draw_folds, write_csv, write_folds
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from mmfusion.errors import ReadError
from mmfusion.training import write_metrics

FAST = {"resamples": 100}


def folds_aucs(label, score, fold):
    return np.array([roc_auc_score(label[fold == k], score[fold == k]) for k in np.unique(fold)])


def variance(values):
    """Of the mean over J folds that share their training cases (Nadeau and Bengio)."""
    j = len(values)
    return np.var(values, ddof=1) * (1 / j + 1 / (j - 1))


def test_the_headline_is_the_mean_of_folds_that_differ_in_scale_alone(tmp_path):
    label, fold = np.tile([0, 0, 0, 1, 1, 1], 2), np.repeat([0, 1], 6)
    score = np.r_[0.1, 0.15, 0.2, 0.3, 0.35, 0.4, 0.6, 0.65, 0.7, 0.8, 0.85, 0.9]
    metrics = write_metrics(write_folds(tmp_path, label, {"fusion": score}, fold), **FAST)
    assert roc_auc_score(label, score) == 0.75 and metrics["metrics"]["auc"]["value"] == 1
    assert metrics["threshold"] is None and metrics["n"] == 12


def test_auc_is_of_the_folds_and_the_rest_of_all_cases(tmp_path):
    label, fold, score = draw_folds()
    thresholds = {k: 0.3 + 0.1 * k for k in range(5)}
    run = write_folds(tmp_path, label, {"fusion": score["fusion"]}, fold, thresholds=thresholds)
    metrics = write_metrics(run, **FAST)
    auc, aucs = metrics["metrics"]["auc"], folds_aucs(label, score["fusion"], fold)
    m, v = aucs.mean(), variance(aucs)
    assert auc["value"] == pytest.approx(m)
    reach = student.ppf(0.975, 4) * np.sqrt(v) / (m * (1 - m))
    assert [auc["low"], auc["high"]] == pytest.approx(expit([logit(m) - reach, logit(m) + reach]), abs=1e-6)
    called = score["fusion"] >= np.array([thresholds[k] for k in fold])
    assert metrics["metrics"]["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(label, called))
    assert metrics["metrics"]["log_loss"]["value"] == pytest.approx(log_loss(label, score["fusion"]), abs=1e-5)
    assert "means over the folds" in metrics["notes"][0] and "one of 5 models" in metrics["notes"][0]


def test_the_table_has_what_each_fold_is_by_itself(tmp_path):
    label, fold, score = draw_folds()
    run = write_folds(tmp_path, label, score, fold, thresholds={3: 0.25})
    table = write_metrics(run, **FAST)["folds"]
    assert list(table) == ["0", "1", "2", "3", "4"] and table["3"]["threshold"] == 0.25
    for number, facts in table.items():
        rows = fold == int(number)
        aucs = {name: roc_auc_score(label[rows], one[rows]) for name, one in score.items()}
        assert facts["auc"]["value"] == pytest.approx(aucs["fusion"])
        assert facts["log_loss"]["value"] == pytest.approx(log_loss(label[rows], score["fusion"][rows]), abs=1e-5)
        assert facts["count"] == {"class0": 6, "class1": 6} and (facts["n"], facts["subjects"]) == (12, 12)
        for name in ("ct", "pet"):
            single = facts["single"][name]
            assert single["auc"]["value"] == pytest.approx(aucs[name])
            assert single["difference"]["value"] == pytest.approx(aucs["fusion"] - aucs[name])


def test_a_modality_alone_is_compared_fold_by_fold_on_the_cases_of_both(tmp_path):
    label, fold, score = draw_folds()
    lacking = [0, 6, 7, 33]
    metrics = write_metrics(write_folds(tmp_path, label, score, fold, missing={"pet": lacking}), **FAST)
    both = np.delete(np.arange(60), lacking)
    aucs = {name: folds_aucs(label[both], score[name][both], fold[both]) for name in ("fusion", "pet")}
    pet, gaps = metrics["comparison"]["pet"], aucs["fusion"] - aucs["pet"]
    assert pet["auc"]["value"] == pytest.approx(aucs["pet"].mean()) and pet["auc"]["n"] == 56
    assert pet["fusion_auc"]["value"] == pytest.approx(aucs["fusion"].mean())
    m, error = gaps.mean(), np.sqrt(variance(gaps))
    assert pet["difference"]["value"] == pytest.approx(m)
    reach = student.ppf(0.975, 4) * error
    assert [pet["difference"]["low"], pet["difference"]["high"]] == pytest.approx([m - reach, m + reach])
    assert pet["difference"]["p_value"] == pytest.approx(2 * student.sf(abs(m) / error, 4))


@pytest.mark.parametrize("other", ["1", ""])
def test_other_folds_alone_are_a_reason_and_no_difference(tmp_path, other):
    label, fold, score = draw_folds()
    run = write_folds(tmp_path, label, score, fold)
    (run / "single" / "pet" / "model.json").write_bytes((run / "fold_0" / "model.json").read_bytes())
    path = run / "single" / "pet" / "predictions.csv"
    with path.open(newline="") as file:
        rows = [row | {"fold": other if row["fold"] in ("0", other or row["fold"]) else row["fold"]}
                for row in csv.DictReader(file)]  # fmt: skip
    write_csv(path, rows)
    metrics = write_metrics(run, **FAST)
    difference, count = metrics["comparison"]["pet"]["difference"], 12 if other else 60
    assert difference["value"] is None and difference["n"] == 60
    assert difference["reason"] == (
        f"{count} of 60 cases were tested in another fold in single/pet, or in none; train both with the same folds"
    )
    assert list(metrics["folds"]["0"]["single"]) == ["ct"] and metrics["comparison"]["ct"]["difference"]["reason"] == ""


def test_a_fold_of_one_class_has_a_row_and_no_part_in_the_mean(tmp_path):
    label, fold, score = draw_folds()
    label[fold == 2] = 0
    metrics = write_metrics(write_folds(tmp_path, label, {"fusion": score["fusion"]}, fold), **FAST)
    two = fold != 2
    aucs = folds_aucs(label[two], score["fusion"][two], fold[two])
    assert metrics["metrics"]["auc"]["value"] == pytest.approx(aucs.mean())
    assert metrics["metrics"]["auc"]["reason"] and metrics["folds"]["2"]["count"] == {"class0": 12, "class1": 0}
    assert metrics["folds"]["2"]["auc"]["value"] is None


def test_doubtful_cases_are_left_out_within_their_folds(tmp_path):
    label, fold, score = draw_folds()
    run = write_folds(tmp_path, label, {"fusion": score["fusion"]}, fold)
    with (run / "predictions.csv").open(newline="") as file:
        rows = [row | {"status": "doubtful" if n in (3, 44) else "done"} for n, row in enumerate(csv.DictReader(file))]
    write_csv(run / "predictions.csv", rows)
    sure = np.delete(np.arange(60), [3, 44])
    auc = write_metrics(run, **FAST)["without_doubtful"]["auc"]
    assert auc["value"] == pytest.approx(folds_aucs(label[sure], score["fusion"][sure], fold[sure]).mean())
    assert auc["n"] == 58


def test_a_case_control_design_is_kept_and_fixes_the_number_of_each_class(tmp_path):
    label, _, score = draw_folds(n=40)
    label[:] = np.arange(40) < 6
    run = write_folds(tmp_path, label, {"fusion": score["fusion"]}, np.arange(40) // 2 % 2)
    cohort, declared = write_metrics(run, **FAST), write_metrics(run, **FAST, case_control=True)
    assert (cohort["case_control"], declared["case_control"]) == (False, True)
    wide, narrow = ([one["metrics"]["brier"][end] for end in ("low", "high")] for one in (cohort, declared))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("place", "change", "reason"), [
    ("single/pet", {"label": "class1"}, "15 of 60 cases have another label in single/pet"),
    ("", {"fold": ""}, "some cases have a fold and others none"),
    ("", {"case": "c000_1"}, "1 cases have several rows, as c000_1"),
])  # fmt: skip
def test_predictions_that_contradict_each_other_are_not_measured(tmp_path, place, change, reason):
    label, fold, score = draw_folds()
    run = write_folds(tmp_path, label, score, fold)
    (run / "model.json").write_bytes((run / "fold_0" / "model.json").read_bytes())
    with (run / place / "predictions.csv").open(newline="") as file:
        rows = [row | change if n < 30 else row for n, row in enumerate(csv.DictReader(file))]
    write_csv(run / place / "predictions.csv", rows)
    if place:
        assert reason in write_metrics(run, **FAST)["comparison"]["pet"]["difference"]["reason"]
        return
    with pytest.raises(ReadError, match=reason):
        write_metrics(run, **FAST)


@pytest.mark.slow
def test_pooling_lowers_the_auc_of_fitted_methods_and_the_headline_is_not_lowered(tmp_path):
    """Nothing is to be learned: a ridge regression fitted in each fold leans to the prevalence of its training cases.

    It is the higher the fewer positive cases are in the test fold, so pooled cases seem to be worse than chance.
    """
    pooled, headline, fixed = [], [], []
    for number in range(60):
        noise = np.random.default_rng(number)
        label, fold = noise.permutation(np.arange(50) < 20).astype(int), np.arange(50) % 5
        image, score = noise.normal(size=(50, 8)), np.zeros(50)
        for k in range(5):
            train, test = fold != k, fold == k
            prevalence, middle = label[train].mean(), image[train].mean(axis=0)
            centered = image[train] - middle
            weight = np.linalg.solve(centered.T @ centered + 300 * np.eye(8), centered.T @ (label[train] - prevalence))
            score[test] = prevalence + (image[test] - middle) @ weight
        given = expit(image[:, 0])  # of no training, so all folds have one scale
        run = write_folds(tmp_path / str(number), label, {"fusion": score, "ct": given}, fold)
        metrics = write_metrics(run, **FAST)
        pooled.append(roc_auc_score(label, score))
        headline.append(metrics["metrics"]["auc"]["value"])
        fixed.append(metrics["comparison"]["ct"]["auc"]["value"] - roc_auc_score(label, given))
    assert np.mean(pooled) < 0.42 and abs(np.mean(headline) - 0.5) < 0.03 and abs(np.mean(fixed)) < 0.02
