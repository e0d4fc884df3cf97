"""Paired comparison against DeLong, DeLong against its definition."""

import numpy as np
import pytest
from scipy.stats import norm

from mmfusion.errors import EvaluationError, OptionError
from mmfusion.evaluation import Difference, compare, delong


def pair(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated scores of different strength, as probabilities."""
    generator = np.random.default_rng(seed)
    label = np.arange(n) % 2
    shared = generator.normal(size=n)
    scores = [0.7 * shared + 0.7 * generator.normal(size=n) + strength * label for strength in (1.6, 0.6)]
    return label, norm.cdf(scores[0]), norm.cdf(scores[1])


def test_identical_classifiers_do_not_differ():
    label, a, _ = pair()
    estimate = compare(label, a, a, resamples=200)
    assert (estimate.value, estimate.low, estimate.high, estimate.p_value) == (0, 0, 0, 1)


def test_difference_agrees_with_delong():
    label, a, b = pair()
    estimate, (difference, error, p_value) = compare(label, a, b, resamples=4000), delong(label, a, b)
    assert estimate.value == pytest.approx(difference)
    assert (estimate.low, estimate.high) == pytest.approx(
        (difference - 1.96 * error, difference + 1.96 * error), abs=0.015
    )
    assert estimate.p_value < 0.01 and p_value < 0.01
    assert estimate.method.startswith("paired 95 % percentile interval, 4000 bootstrap resamples of 120 subjects")


def test_the_smallest_p_value():
    label, a, b = pair(200)
    resamples = 400
    assert compare(label, a, 1 - a, resamples=resamples).p_value == 2 / (resamples + 1)
    difference = compare(label, a, b, metric="accuracy", resamples=resamples)
    times = difference.p_value * (resamples + 1) / 2
    assert times == pytest.approx(round(times)) and times >= 1


def test_order_turns_the_sign():
    label, a, b = pair(60)
    forth, back = (
        compare(label, a, b, metric="brier", resamples=100),
        compare(label, b, a, metric="brier", resamples=100),
    )
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_pairing_is_narrower_than_independence():
    label, a, b = pair(80)
    both = compare(label, a, b, resamples=1000)
    half = compare(label, a, np.full(80, 0.5), resamples=1000)
    other = compare(label, b, np.full(80, 0.5), resamples=1000)
    assert (both.high - both.low) ** 2 < (half.high - half.low) ** 2 + (other.high - other.low) ** 2


def test_each_classifier_may_have_its_threshold():
    label, a, _ = pair(60)
    estimate = compare(label, a, a, metric="sensitivity", threshold=(0.3, 0.9), resamples=100)
    assert estimate.value == np.mean(a[label == 1] >= 0.3) - np.mean(a[label == 1] >= 0.9)


def test_each_row_may_have_its_threshold():
    label, a, b = pair(60)
    own = np.where(np.arange(60) % 3, 0.3, 0.9)
    estimate = compare(label, a, b, metric="accuracy", threshold=own, resamples=100)
    assert estimate.value == pytest.approx(np.mean((a >= own) == label) - np.mean((b >= own) == label))
    assert compare(label, a, a, metric="accuracy", threshold=own, resamples=100).p_value == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_holds_the_difference(seed):
    label, a, b = pair(24, seed)
    estimate = compare(label, a, b, metric="pr_auc", resamples=2, seed=seed)
    assert estimate.low <= estimate.value <= estimate.high


def test_two_perfect_classifiers_have_no_interval():
    label = np.repeat([0, 1], 6)
    estimate = compare(label, np.linspace(0, 1, 12), label.astype(float), resamples=50)
    assert estimate.value == 0 and estimate.low is None and "no width" in estimate.reason


def test_reasons_instead_of_numbers():
    score = np.linspace(0.1, 0.9, 6)
    assert compare(np.zeros(6, int), score, score) == Difference(
        None, None, None, 6, reason="one class only: all 6 rows are of class 0"
    )
    few = compare(np.array([0, 0, 0, 0, 0, 1]), score, score[::-1])
    assert few.value == 1 and few.low is None and "needs 2 subjects" in few.reason


def test_what_cannot_be_compared():
    label, a, b = pair(20)
    with pytest.raises(OptionError, match="unknown metric 'aux'; did you mean 'auc'"):
        compare(label, a, b, metric="aux")
    with pytest.raises(EvaluationError, match="a has 2 classes and b has 3"):
        compare(label, a, np.full((20, 3), 1 / 3))


def test_delong_against_the_definition():
    label, a, b = pair(41, seed=4)
    a, b = np.round(a, 1), np.round(b, 1)  # ties

    def kernel(score):
        x, y = score[label == 1][:, None], score[label == 0][None]
        return (x > y) + 0.5 * (x == y)

    m, n = int(label.sum()), int((1 - label).sum())
    positive, negative = [np.cov(kernel(a).mean(k), kernel(b).mean(k)) for k in (1, 0)]
    covariance = positive / m + negative / n
    contrast = np.array([1, -1])
    difference, error, p_value = delong(label, a, b)
    assert difference == pytest.approx(kernel(a).mean() - kernel(b).mean())
    assert error == pytest.approx(np.sqrt(contrast @ covariance @ contrast))
    assert p_value == pytest.approx(2 * norm.sf(abs(difference) / error))


def test_delong_edges():
    label = np.array([0, 0, 1, 1])
    assert delong(label, label, label) == (0, 0, 1)
    assert delong(label, label, 1 - label) == (1, 0, 0)
    with pytest.raises(EvaluationError, match="2 rows of each class, found 1 positive"):
        delong(np.array([0, 0, 1]), np.arange(3), np.arange(3))
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        delong(label, label, np.array([0.1, 0.2, np.nan, 0.4]))
    with pytest.raises(EvaluationError, match="one length, found 4, 3 and 4"):
        delong(label, np.arange(3), label)
