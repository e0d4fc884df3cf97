"""Metrics against scikit-learn, and their intervals against what is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.special import expit, logit
from scipy.stats import kurtosis, t

from mmfusion.errors import EvaluationError, OptionError
from mmfusion.evaluation import Estimate, classification_metrics, compare
from mmfusion.evaluation.intervals import delong_interval, newcombe, wilson
from mmfusion.evaluation.rows import bootstrap_weights, check_rows
from mmfusion.evaluation.scores import METRICS


def draw(n: int, classes: int = 2, seed: int = 0, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, rounded so that there are ties."""
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(n) % classes)
    logits = generator.normal(size=(n, classes)) + 1.2 * np.eye(classes)[label]
    probability = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), digits)
    probability[:, -1] = 1 - probability[:, :-1].sum(axis=1)
    return label, np.clip(probability, 0, 1)


def test_two_classes_agree_with_scikit_learn():
    label, probability = draw(53)
    result = {
        name: e.value for name, e in classification_metrics(label, probability, threshold=0.4, resamples=50).items()
    }
    score, predicted = probability[:, 1], probability[:, 1] >= 0.4
    assert result["auc"] == pytest.approx(sk.roc_auc_score(label, score))
    assert result["pr_auc"] == pytest.approx(sk.average_precision_score(label, score))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(label, predicted))
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(label, predicted))
    assert result["sensitivity"] == pytest.approx(sk.recall_score(label, predicted))
    assert result["specificity"] == pytest.approx(sk.recall_score(label, predicted, pos_label=0))
    assert result["brier"] == pytest.approx(sk.brier_score_loss(label, score))
    assert result["log_loss"] == pytest.approx(sk.log_loss(label, probability))


def test_each_row_may_have_its_own_threshold():
    label, probability = draw(53)
    threshold = np.where(np.arange(53) % 3, 0.4, 0.7)
    result = classification_metrics(label, probability, threshold=threshold, resamples=50)
    predicted = probability[:, 1] >= threshold
    assert result["sensitivity"].value == pytest.approx(sk.recall_score(label, predicted))
    assert result["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(label, predicted))
    assert result["auc"].value == pytest.approx(sk.roc_auc_score(label, probability[:, 1]))


def test_three_classes_agree_with_scikit_learn():
    label, probability = draw(61, 3)
    result = {name: e.value for name, e in classification_metrics(label, probability, resamples=50).items()}
    one_hot = np.eye(3)[label]
    assert "sensitivity" not in result
    assert result["auc"] == pytest.approx(sk.roc_auc_score(label, probability, multi_class="ovr"))
    assert result["pr_auc"] == pytest.approx(sk.average_precision_score(one_hot, probability))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(label, probability.argmax(1)))
    assert result["brier"] == pytest.approx(np.mean(np.sum((probability - one_hot) ** 2, axis=1)))


@pytest.mark.parametrize(("name", "oracle"), [("auc", sk.roc_auc_score), ("pr_auc", sk.average_precision_score),
                                              ("brier", sk.brier_score_loss)])  # fmt: skip
def test_weighted_metrics_agree_with_scikit_learn(name, oracle):
    label, probability = draw(47, seed=3)
    rows = check_rows(label, probability, np.arange(47) // 2)
    for weights in next(iter(bootstrap_weights(rows, 20, seed=0))):
        expected = oracle(label, probability[:, 1], sample_weight=weights)
        assert METRICS[name](rows, weights[None], 0.5)[0] == pytest.approx(expected)


def test_one_number_for_the_positive_class_is_enough():
    label, probability = draw(31)
    one = classification_metrics(label, probability[:, 1], resamples=20)
    two = classification_metrics(label, probability, resamples=20)
    assert one.keys() == two.keys()
    for name, estimate in one.items():  # versions of numpy round the last digit otherwise
        other = two[name]
        numbers = (estimate.value, estimate.low, estimate.high)
        assert numbers == pytest.approx((other.value, other.low, other.high), rel=1e-12)
        assert replace(estimate, value=0, low=0, high=0) == replace(other, value=0, low=0, high=0)


def test_value_lies_in_its_interval_and_the_seed_decides():
    label, probability = draw(60, digits=6)
    first = classification_metrics(label, probability, resamples=300)
    again = classification_metrics(label, probability, resamples=300)
    other = classification_metrics(label, probability, resamples=300, seed=1)
    assert first == again != other
    assert all(e.low < e.value < e.high for e in first.values())
    assert first["pr_auc"].method == "95 % interval on the logit scale from 300 bootstrap resamples of 60 subjects"
    assert (first["auc"].n, first["sensitivity"].n) == (60, 30)


def test_visits_of_a_subject_are_drawn_together():
    label, probability = draw(40, digits=6)
    alone = classification_metrics(label, probability, resamples=500)["auc"]
    six = [np.repeat(array, 6, axis=0) for array in (label, probability)]
    groups = np.repeat([f"s{i}" for i in range(40)], 6)
    visits = classification_metrics(*six, groups=groups, resamples=500)["auc"]
    assert visits.value == pytest.approx(alone.value)
    assert (visits.low, visits.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    assert "of 40 subjects" in visits.method


def test_every_resample_has_every_class_and_whole_subjects():
    label = np.array([0, 0, 0, 0, 1, 1, 1, 0, 1, 1])
    groups = np.array([5, 5, 2, 3, 7, 7, 8, 9, 9, 4])  # subject 9 has both classes
    rows = check_rows(label, np.full(10, 0.5), groups)
    weights = np.concatenate(list(bootstrap_weights(rows, 200, seed=0)))
    assert weights.shape == (200, 10)
    assert (weights[:, label == 0].sum(1) > 0).all() and (weights[:, label == 1].sum(1) > 0).all()
    assert np.array_equal(weights[:, 0], weights[:, 1]) and np.array_equal(weights[:, 7], weights[:, 8])


def test_a_cohort_is_resampled_as_it_was_drawn():
    label = np.repeat([0, 1], [45, 5])
    rows = check_rows(label, np.full(50, 0.5))
    (weights,) = bootstrap_weights(rows, 4000, seed=0)
    positives = weights[:, label == 1].sum(1)
    assert positives.min() == 1 and (weights.sum(1) == 50).all()  # a draw without any is drawn again
    assert positives.std() == pytest.approx(np.sqrt(50 * 0.1 * 0.9), rel=0.05)
    (fixed,) = bootstrap_weights(rows, 100, seed=0, case_control=True)
    assert (fixed[:, label == 1].sum(1) == 5).all()
    cohort, chosen = (classification_metrics(label, np.where(label, 0.6, 0.1), case_control=c)["brier"] for c in (0, 1))
    assert cohort.low < chosen.value < cohort.high  # which is uncertain by the number of positives alone
    assert chosen.low is None and "no width" in chosen.reason


def test_the_order_of_rows_does_not_matter():
    label, probability = draw(40, digits=6)
    groups = np.array([f"s{i // 2}" for i in range(40)])
    order = np.random.default_rng(0).permutation(40)
    first = classification_metrics(label, probability, groups=groups, resamples=100)
    again = classification_metrics(label[order], probability[order], groups=groups[order], resamples=100)
    for name, estimate in first.items():
        assert again[name].method == estimate.method
        assert (again[name].low, again[name].high) == pytest.approx((estimate.low, estimate.high))


def test_auc_interval_by_the_definition():
    label, probability = draw(53)  # with ties
    x, y = probability[label == 1, 1][:, None], probability[label == 0, 1][None]
    kernel = (x > y) + 0.5 * (x == y)
    parts = [(kernel.mean(axis).var(ddof=1) / kernel.shape[1 - axis], kernel.shape[1 - axis] - 1) for axis in (1, 0)]
    variance = sum(one for one, _ in parts)
    freedom = variance**2 / sum(one**2 / n for one, n in parts)
    auc = kernel.mean()
    half = t.ppf(0.975, freedom) * np.sqrt(variance) / (auc * (1 - auc))
    estimate = classification_metrics(label, probability, resamples=20)["auc"]
    assert (estimate.low, estimate.high) == pytest.approx(expit(logit(auc) + np.r_[-half, half]))


def test_a_share_of_visits_is_worth_as_many_rows_as_vary_so_much():
    generator = np.random.default_rng(0)
    label, right = np.arange(30) % 2, generator.random(30) < 0.7
    score = np.where(right == label, 0.8, 0.2)
    alone = classification_metrics(label, score)
    same = classification_metrics(np.repeat(label, 4), np.repeat(score, 4), groups=np.repeat(np.arange(30), 4))
    mixed = classification_metrics(np.repeat(label, 4), np.tile(score, 4), groups=np.repeat(np.arange(30), 4))
    for name in ("sensitivity", "specificity", "accuracy", "balanced_accuracy"):
        one, four, other = (estimate[name].high - estimate[name].low for estimate in (alone, same, mixed))
        assert four == pytest.approx(one, rel=0.15)  # four visits that agree are worth one
        assert other < four and "effective subjects" in same[name].method
    perfect = classification_metrics(np.repeat([0, 1], 8), np.repeat([0.1, 0.9], 8), groups=np.repeat(np.arange(8), 2))
    assert perfect["sensitivity"].low == pytest.approx(wilson(1.0, 4)[0])


def test_equal_scores_and_a_single_positive_have_newcombes_interval():
    for label, score in ((np.arange(40) % 2, np.full(40, 0.3)), (np.arange(40) == 31, np.linspace(0, 1, 40))):
        estimate, count = classification_metrics(label, score)["auc"], int(label.sum())
        assert (estimate.low, estimate.high) == newcombe(estimate.value, count, 40 - count)
        assert estimate.method == f"95 % Newcombe interval; {count} and {40 - count} subjects"


@pytest.mark.parametrize("visits", [1, 3])
@pytest.mark.parametrize(("positive", "longer"), [([0.9] * 5 + [0.2] * 4, "other"), ([0.66] * 9, "newcombe")])
def test_few_subjects_have_the_longer_of_two_intervals(positive, longer, visits):
    label = np.repeat([0, 1], [31, 9])
    score, groups = np.r_[np.linspace(0.1, 0.7, 31), positive], np.repeat(np.arange(40), visits)
    estimate = classification_metrics(np.repeat(label, visits), np.repeat(score, visits), groups=groups)["auc"]
    low, high = newcombe(estimate.value, 9, 31)
    other = delong_interval(label == 1, score, 0.95)
    assert (estimate.low < low - 0.05) if longer == "other" else (estimate.low == low < other[0])
    assert estimate.high >= max(high, other[1]) - 0.02
    assert "or Newcombe's where it reaches further; 9 and 31 subjects" in estimate.method


@pytest.mark.parametrize(("positives", "fewer"), [(20, "by moments"), (4, "by class")])
def test_interval_of_a_loss_is_that_of_its_mean(positives, fewer):
    label = (np.arange(40) < positives).astype(int)
    score = np.random.default_rng(0).beta(0.5, 4, 40)  # all are called negative
    probability = np.where(label == 1, 1 - score, score) if fewer == "by moments" else score
    loss = (probability - label) ** 2
    estimate = classification_metrics(label, probability, resamples=20)["brier"]
    error, parts = loss.std(ddof=1) / np.sqrt(40), [np.sum((loss - loss.mean())[label == k] ** 2) for k in (0, 1)]
    count = np.array([39 - positives, positives - 1])
    freedom = {"by class": sum(parts) ** 2 / np.sum(np.square(parts) / count)}
    freedom["by moments"] = 2 * 40 / (kurtosis(loss, fisher=False) - 1)
    assert min(freedom, key=freedom.get) == fewer
    reach = np.exp(t.ppf(0.975, freedom[fewer]) * error / loss.mean())
    assert (estimate.low, estimate.high) == pytest.approx((loss.mean() / reach, loss.mean() * reach))
    three = [np.repeat(array, 3, axis=0) for array in (label, probability)]
    visits = classification_metrics(*three, groups=np.repeat(np.arange(40), 3), resamples=20)["brier"]
    assert (visits.low, visits.high) == pytest.approx((estimate.low, estimate.high))


@pytest.mark.parametrize(("classes", "most"), [(2, 1), (3, 2)])
def test_interval_of_a_loss_ends_at_the_largest_loss(classes, most):
    label, wrong = np.zeros(6, int), np.eye(classes)[[1, 1, 1, 1, 0, 0]]
    estimate = classification_metrics(label, wrong, confidence=0.99, resamples=20)
    assert estimate["brier"].high == pytest.approx(most)
    assert estimate["log_loss"].high == pytest.approx(-np.log(np.finfo(float).eps))


def test_losses_of_one_subject_have_no_interval():
    label, probability = draw(12)
    estimate = classification_metrics(label, probability, groups=np.zeros(12), resamples=20)["log_loss"]
    assert estimate.low is None and estimate.reason == "an interval needs 2 subjects, found 1"


@pytest.mark.parametrize("value", [0.25, 0.0])
def test_equal_losses_have_no_interval(value):
    result = classification_metrics(np.arange(20) % 2, np.abs(np.arange(20) % 2 - np.sqrt(value)), resamples=20)
    assert result["brier"].value == pytest.approx(value) and result["brier"].low is None
    assert "all rows have the same loss" in result["brier"].reason


def test_some_metrics_are_as_they_are_among_all():
    label, probability = draw(40)
    whole = classification_metrics(label, probability, resamples=50)
    some = classification_metrics(label, probability, metrics=("pr_auc", "auc"), resamples=50)
    assert some == {name: whole[name] for name in ("auc", "pr_auc")}
    with pytest.raises(OptionError, match="unknown metric 'aucc'; did you mean 'auc'"):
        classification_metrics(label, probability, metrics=("aucc",))


def test_one_class_only_has_a_reason_and_what_can_be_known():
    result = classification_metrics(np.ones(9, int), np.linspace(0.2, 0.9, 9), resamples=50)
    assert result["auc"] == Estimate(None, None, None, 9, reason="one class only: all 9 rows are of class 1")
    assert result["specificity"].value is None and result["specificity"].n == 0
    assert result["sensitivity"].value == pytest.approx(5 / 9) and result["sensitivity"].low is not None


def test_an_absent_third_class_is_named():
    label, probability = draw(30, 3)
    result = classification_metrics(np.minimum(label, 1), probability, resamples=20)
    assert result["auc"].reason == "no rows of class 2" and result["accuracy"].value is not None


def test_fewer_than_two_subjects_of_a_class_are_not_resampled():
    label = np.array([0, 0, 0, 1, 1])
    result = classification_metrics(label, np.linspace(0.1, 0.9, 5), groups=np.array([1, 2, 3, 4, 4]))
    assert result["pr_auc"].value == 1 and result["pr_auc"].low is None
    assert result["pr_auc"].reason == "an interval needs 2 subjects of each class, found 1 of class 1"


def test_a_perfect_test_set_is_not_certain():
    label = np.repeat([0, 1], [12, 9])
    result = classification_metrics(label, np.r_[np.linspace(0, 0.3, 12), np.linspace(0.6, 0.9, 9)], resamples=50)
    low, high = wilson(1.0, 9)
    assert (result["auc"].value, result["auc"].high) == (1, 1) and 0.7 < result["auc"].low < 0.9
    assert (result["sensitivity"].low, result["sensitivity"].high) == (low, high)
    assert 0.75 < result["balanced_accuracy"].low < 0.9 and result["balanced_accuracy"].high == 1
    assert result["pr_auc"].low is None and "no width" in result["pr_auc"].reason
    assert result["brier"].method == "95 % t interval on the log scale, 21 subjects"


def test_wilson_and_newcombe_against_published_values():
    low, high = wilson(81 / 263, 263)  # Newcombe 1998, table I
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    low, high = newcombe(0.5, 10, 10)
    assert low + high == pytest.approx(1)
    assert newcombe(0.0, 8, 9) == pytest.approx((0, 1 - newcombe(1.0, 8, 9)[0]))


def test_estimates_are_plain_values_for_json():
    label, probability = draw(20)
    for estimate in classification_metrics(label, probability, resamples=20).values():
        assert json.loads(json.dumps(estimate.as_dict())) == estimate.as_dict()


@pytest.mark.parametrize(("label", "probability", "groups", "message"), [
    ([], [], None, "no rows to evaluate"),
    ([0, 1], [0.5], None, "one entry per row"),
    ([0, 1], [0.5, 0.5], [1], "one entry per row"),
    ([0, 1], [0.5, 1.7], None, "1 of 2 rows are no probabilities .* first is row 1"),
    ([0, 1], [0.5, np.nan], None, "no probabilities"),
    ([0, 1], [[0.5, 0.2], [0.5, 0.5]], None, "softmax"),
    ([0, 1], [[1.0], [1.0]], None, "K >= 2"),
    ([0, 2], [0.5, 0.5], None, r"class indices 0 to 1, found \[2\]"),
    ([0, 1], [0.5, 0.5], [1, np.nan], "1 of 2 rows have no subject, the first is row 1"),
    ([0, 1], [0.5, 0.5], np.array([None, "a"], object), "1 of 2 rows have no subject, the first is row 0"),
    ([0, 1], [0.5, 0.5], np.array([1, "1"], object), "a subject of one type, found text and numbers"),
])  # fmt: skip
def test_wrong_input_is_refused_in_words(label, probability, groups, message):
    with pytest.raises(EvaluationError, match=message):
        classification_metrics(np.array(label), np.array(probability), groups=groups)


@pytest.mark.parametrize(("given", "message"), [
    ({"threshold": np.zeros(3)}, r"one for each of 20 rows, found shape \(3,\)"),
    ({"threshold": np.nan}, "one finite number, .* found nan"),
    ({"threshold": None}, "one finite number, .* found None"),
    ({"confidence": 95}, "confidence must lie between 0 and 1, found 95"),
    ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
])  # fmt: skip
def test_wrong_options_are_refused_in_words(given, message):
    label, probability = draw(20)
    with pytest.raises(EvaluationError, match=message):
        classification_metrics(label, probability, **given)
    with pytest.raises(EvaluationError, match=message):
        compare(label, probability, probability[::-1], **given)


def test_resamples_must_be_positive():
    with pytest.raises(EvaluationError, match="resamples must be 1 or more, found 0"):
        classification_metrics(*draw(20), resamples=0)


def test_large_sets_are_resampled_in_chunks(monkeypatch):
    rows = check_rows(*draw(30))
    monkeypatch.setattr("mmfusion.evaluation.rows.CHUNK", 90)
    assert [len(chunk) for chunk in bootstrap_weights(rows, 8, seed=0)] == [3, 3, 2]
