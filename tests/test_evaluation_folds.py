"""Of a cross-validation, cases are ranked within their fold; differences are of folds."""

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from mmfusion.errors import EvaluationError
from mmfusion.evaluation import classification_metrics, compare, roc_band
from mmfusion.evaluation.intervals import newcombe


def study(seed: int = 0, sizes: tuple[int, ...] = (13, 12, 12, 11, 10)) -> tuple[np.ndarray, ...]:
    """Labels, two scores and folds, each fold with a scale of its own."""
    generator = np.random.default_rng(seed)
    fold = np.repeat([f"fold{k}" for k in range(len(sizes))], sizes)
    label = np.concatenate([np.arange(size) % 3 == 0 for size in sizes]).astype(int)
    offset = np.repeat(np.linspace(0, 0.5, len(sizes)), sizes)
    scores = [np.clip(0.1 + offset + 0.1 * generator.random(len(label)) + gain * label, 0, 1) for gain in (0.06, 0.03)]
    return label, *scores, fold


def aucs(label, score, fold):
    return np.array([sk.roc_auc_score(label[fold == k], score[fold == k]) for k in np.unique(fold)])


def test_the_mean_of_the_folds_with_the_corrected_interval():
    label, score, _, fold = study()
    values = aucs(label, score, fold)
    estimate = classification_metrics(label, score, folds=fold, resamples=20)["auc"]
    mean, error = values.mean(), np.sqrt(values.var(ddof=1) * (1 / 5 + 1 / 4))
    half = stats.t.ppf(0.975, 4) * error / (mean * (1 - mean))
    assert estimate.value == pytest.approx(mean)
    assert (estimate.low, estimate.high) == pytest.approx(
        stats.logistic.cdf(np.log(mean / (1 - mean)) + np.r_[-half, half])
    )
    assert estimate.method == (
        "mean of 5 folds; 95 % corrected t interval on the logit scale, 4 degrees of freedom (Nadeau and Bengio 2003)"
    )
    assert estimate.n == 58 and sk.roc_auc_score(label, score) < mean - 0.1  # which ranks cases of different models


def test_another_scale_of_a_fold_changes_nothing_that_is_ranked():
    label, score, other, fold = study()
    scaled = np.where(fold == "fold2", score / 3, score)
    for name in ("auc", "pr_auc"):
        plain, again = (classification_metrics(label, s, folds=fold, resamples=20)[name] for s in (score, scaled))
        assert plain == again
        assert compare(label, score, other, folds=fold, metric=name) == compare(
            label, scaled, other, folds=fold, metric=name
        )


def test_what_is_of_single_cases_is_pooled():
    label, score, _, fold = study()
    folds, pooled = (
        classification_metrics(label, score, threshold=0.4, resamples=20, **given) for given in ({"folds": fold}, {})
    )
    assert {name for name in folds if folds[name] == pooled[name]} == set(folds) - {"auc", "pr_auc"}


def test_a_difference_is_of_paired_folds():
    label, a, b, fold = study()
    gap = aucs(label, a, fold) - aucs(label, b, fold)
    difference = compare(label, a, b, folds=fold)
    error = np.sqrt(gap.var(ddof=1) * (1 / 5 + 1 / 4))
    assert difference.value == pytest.approx(gap.mean())
    assert (difference.low, difference.high) == pytest.approx(gap.mean() + np.r_[-1, 1] * stats.t.ppf(0.975, 4) * error)
    assert difference.p_value == pytest.approx(2 * stats.t.sf(abs(gap.mean()) / error, 4))
    back = compare(label, b, a, folds=fold)
    assert (back.value, back.low, back.high) == pytest.approx((-difference.value, -difference.high, -difference.low))
    assert compare(label, a, a, folds=fold).p_value == 1
    assert "bootstrap" in compare(label, a, b, folds=fold, metric="brier", resamples=50).method


def test_a_fold_without_a_class_is_left_out_and_named():
    label, score, other, fold = study()
    label[fold == "fold3"] = 0
    estimate = classification_metrics(label, score, folds=fold, resamples=20)["auc"]
    kept = fold != "fold3"
    assert estimate.value == pytest.approx(aucs(label[kept], score[kept], fold[kept]).mean())
    assert estimate.n == 47 and estimate.reason == "left out for lack of a class: fold fold3"
    assert compare(label, score, other, folds=fold).reason == estimate.reason


def test_perfect_folds_have_newcombes_interval_and_equal_ones_none():
    label, _, _, fold = study()
    perfect = classification_metrics(label, 0.2 + 0.6 * label, folds=fold, resamples=20)
    positives = int(label.sum())
    assert perfect["auc"].value == 1
    assert (perfect["auc"].low, perfect["auc"].high) == newcombe(1.0, positives, 58 - positives)
    assert perfect["pr_auc"].low is None
    same = classification_metrics(label, np.full(58, 0.3), folds=fold, resamples=20)["auc"]
    assert same.value == 0.5 and same.low is None and "all folds give the same value" in same.reason


def test_reasons_instead_of_numbers():
    label, score, _, fold = study()
    label[fold != "fold0"] = 0
    one = classification_metrics(label, score, folds=fold, resamples=20)["auc"]
    assert one.value is not None and one.low is None and "needs 2 of them with all classes" in one.reason
    alone = np.where(fold == "fold0", 1, 0)
    assert classification_metrics(alone, score, folds=fold, resamples=20)["auc"].reason == "no fold has all classes"
    assert compare(alone, score, score, folds=fold).reason == "no fold has all classes"
    with pytest.raises(EvaluationError, match="no fold has both"):
        roc_band(alone, score, folds=fold)
    single = classification_metrics(label, score, folds=np.full(58, "a"), resamples=20)["auc"]
    assert single.value == pytest.approx(sk.roc_auc_score(label, score)) and "needs 2 of them" in single.reason
    with pytest.raises(EvaluationError, match="one entry per row, found .3,. for 58 rows"):
        classification_metrics(label, score, folds=np.arange(3))


def test_every_row_has_a_fold():
    label, score, other, _ = study()
    unknown = np.where(np.arange(58) < 2, np.nan, np.arange(58) % 3)
    for mistaken in (lambda: classification_metrics(label, score, folds=unknown),
                     lambda: compare(label, score, other, folds=unknown)):  # fmt: skip
        with pytest.raises(EvaluationError, match="2 of 58 rows have no fold, the first is row 0"):
            mistaken()


def test_a_difference_of_two_folds_is_at_most_one():
    label, fold = np.tile([0, 0, 1, 1], 2), np.repeat([0, 1], 4)
    better, worse = np.array([0.1, 0.2, 0.8, 0.9, 0.1, 0.4, 0.3, 0.9]), np.linspace(0.9, 0.1, 8)
    result = compare(label, better, worse, folds=fold)
    assert (result.low, result.high) == (-1, 1) and result.p_value > 0.05


def test_the_curve_is_the_mean_of_the_folds():
    label, score, _, fold = study()
    band = roc_band(label, score, folds=fold, points=2001)
    area = np.trapezoid(band.tpr, band.fpr)
    assert area == pytest.approx(aucs(label, score, fold).mean(), abs=1e-3)
    assert band.low is None and (band.fpr[0], band.tpr[0], band.fpr[-1], band.tpr[-1]) == (0, 0, 1, 1)


def test_three_classes():
    generator = np.random.default_rng(0)
    label, fold = np.arange(60) % 3, np.arange(60) // 20
    logits = generator.normal(size=(60, 3)) + 1.2 * np.eye(3)[label]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    estimate = classification_metrics(label, shares, folds=fold, resamples=20)["auc"]
    values = [sk.roc_auc_score(label[fold == k], shares[fold == k], multi_class="ovr") for k in range(3)]
    assert estimate.value == pytest.approx(np.mean(values)) and estimate.low < estimate.value < estimate.high
