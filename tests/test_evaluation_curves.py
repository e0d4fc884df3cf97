"""Curves against scikit-learn, thresholds and priors against known answers."""

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.special import expit, log_expit
from scipy.stats import norm

from mmfusion.errors import EvaluationError
from mmfusion.evaluation import (
    calibration_bins,
    choose_threshold,
    confusion,
    fit_temperature,
    precision_recall_curve,
    prior_correction,
    roc_band,
)


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    label = np.arange(53) % 2
    return label, np.clip(np.round(0.35 + 0.3 * label + 0.2 * generator.normal(size=53), 2), 0, 1)


def test_roc_curve_agrees_with_scikit_learn(scored):
    band = roc_band(*scored, resamples=200)
    fpr, tpr, _ = sk.roc_curve(*scored, drop_intermediate=False)
    assert band.fpr == pytest.approx(fpr) and band.tpr == pytest.approx(tpr)


def test_band_holds_the_curve_and_ends_at_one(scored):
    band = roc_band(*scored, resamples=300)
    curve = np.interp(band.grid, band.fpr, band.tpr)
    assert np.mean((band.low <= curve) & (curve <= band.high)) > 0.95
    assert band.low[-1] == band.high[-1] == 1 and (np.diff(band.low) >= -1e-12).all()


def test_no_band_without_subjects():
    band = roc_band(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]), np.array([1, 2, 3, 3]))
    assert band.low is None and band.high is None and band.tpr[-1] == 1


def test_curves_need_two_classes():
    with pytest.raises(EvaluationError, match="both classes, all 3 rows are of class 1"):
        roc_band(np.ones(3, int), np.linspace(0, 1, 3))
    with pytest.raises(EvaluationError, match="one class against the rest, found 3"):
        precision_recall_curve(np.arange(3), np.full((3, 3), 1 / 3))


def test_precision_and_recall_agree_with_scikit_learn(scored):
    recall, precision = precision_recall_curve(*scored)
    expected = sk.precision_recall_curve(*scored)
    assert precision[::-1] == pytest.approx(expected[0][:-1]) and recall[::-1] == pytest.approx(expected[1][:-1])


def test_calibration_bins_hold_all_rows(scored):
    label, probability = scored
    bins = calibration_bins(label, probability, bins=4)
    assert bins.n.sum() == 53 and bins.n.min() >= 8 and len(bins.n) == 4
    assert np.sum(bins.observed * bins.n) == pytest.approx(label.sum())
    assert np.sum(bins.predicted * bins.n) == pytest.approx(probability.sum())
    assert (bins.low <= bins.observed).all() and (bins.observed < bins.high).all()


def test_equal_probabilities_share_a_bin():
    bins = calibration_bins(np.array([0, 1, 1, 1]), np.full(4, 0.7), bins=3)
    assert bins.n.tolist() == [4] and bins.observed.tolist() == [0.75]
    with pytest.raises(EvaluationError, match="1 bin or more, found 0"):
        calibration_bins(np.array([0, 1]), np.array([0.1, 0.9]), bins=0)


def test_confusion_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    label, predicted = generator.integers(0, 3, (2, 40))
    assert np.array_equal(confusion(label, predicted), sk.confusion_matrix(label, predicted))
    assert confusion(np.array([0, 0]), np.array([0, 0]), classes=3).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(EvaluationError, match="2 labels and 1 predictions"):
        confusion(np.array([0, 1]), np.array([0]))
    with pytest.raises(EvaluationError, match="classes must be 0 to 1, found up to 2"):
        confusion(np.array([0, 2]), np.array([0, 1]), classes=2)


def test_threshold_is_the_middle_of_the_gap():
    assert choose_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9])) == pytest.approx(0.25)


def test_threshold_has_the_best_youden_index(scored):
    label, probability = scored
    fpr, tpr, _ = sk.roc_curve(label, probability)
    called = probability >= choose_threshold(label, probability)
    assert called[label == 1].mean() - called[label == 0].mean() == pytest.approx(np.max(tpr - fpr))


def test_of_equal_thresholds_the_one_nearest_to_half_is_taken():
    label, probability = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.6, 0.9])  # 0.2 and 0.75: J = 0.5
    assert choose_threshold(label, probability) == pytest.approx(0.75)


def test_half_where_nothing_is_better_than_chance():
    assert choose_threshold(np.array([0, 1, 0, 1]), np.full(4, 0.3)) == 0.5
    assert choose_threshold(np.array([1, 1, 0, 0]), np.array([0.1, 0.2, 0.8, 0.9])) == 0.5


def test_threshold_refuses_one_class():
    with pytest.raises(EvaluationError, match="both classes, found 3 rows, all of class 0"):
        choose_threshold(np.zeros(3, int), np.linspace(0, 1, 3))


def gaussian_scores(generator, n, prevalence, distance):
    """Labels, and the log likelihood ratios of normal scores whose means lie ``distance`` deviations apart."""
    label = np.arange(n) < max(2, round(prevalence * n))
    score = generator.normal(size=n) + distance * label
    return label.astype(int), distance * score - distance**2 / 2


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("distance", [0.74, 1.19, 1.81])  # AUC 0.7, 0.8, 0.9
def test_the_prevalence_is_a_better_threshold_than_one_that_few_cases_choose(prevalence, distance):
    generator, odds = np.random.default_rng(0), prevalence / (1 - prevalence)

    def balanced_accuracy(threshold):
        score = (np.log(threshold / (1 - threshold) / odds) + distance**2 / 2) / distance
        return (norm.sf(score - distance) + norm.cdf(score)) / 2

    def youden(n):
        draws = [gaussian_scores(generator, n, prevalence, distance) for _ in range(300)]
        chosen = [choose_threshold(label, expit(ratio + np.log(odds))) for label, ratio in draws]
        return np.mean([balanced_accuracy(threshold) for threshold in chosen])

    best, few, many = balanced_accuracy(prevalence), youden(8), youden(100)
    assert few < best - 0.012 and few < many < best - 0.002


def test_prior_correction_undoes_class_weights():
    # Bayes: likelihoods of three findings under two classes, once with the true prior, once with weights 1 and 9
    likelihood, prior, weight = np.array([[0.7, 0.2], [0.2, 0.3], [0.1, 0.5]]), np.array([0.9, 0.1]), np.array([1, 9])

    def posterior(given):
        joint = likelihood * given
        return joint / joint.sum(axis=1, keepdims=True)

    corrected = prior_correction(posterior(prior * weight), prior * weight, prior)
    assert corrected == pytest.approx(posterior(prior))
    assert corrected[:, 1].mean() < posterior(prior * weight)[:, 1].mean()


def test_equal_priors_change_nothing():
    probability = np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    assert prior_correction(probability, np.ones(3), np.full(3, 5.0)) == pytest.approx(probability)


@pytest.mark.parametrize(("prior", "message"), [([1.0, 0.0], "training prior must be positive"),
                                                ([1.0, 1.0, 1.0], r"training prior has shape \(3,\)")])  # fmt: skip
def test_prior_correction_refuses_impossible_priors(prior, message):
    with pytest.raises(EvaluationError, match=message):
        prior_correction(np.full((4, 2), 0.5), np.array(prior), np.array([0.5, 0.5]))


def calibrated(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that mean what they say, and labels drawn by them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (generator.random((n, 1)) > shares.cumsum(1)).sum(1), logits


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_temperature_finds_the_factor_that_spoilt_the_logits(classes, factor):
    label, logits = calibrated(4000, classes)
    assert fit_temperature(label, factor * logits) == pytest.approx(factor, rel=0.1)


def test_temperature_against_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    label, logits = calibrated(500, 2)
    margin = (logits[:, 1] - logits[:, 0])[:, None] * 2.5
    slope = LogisticRegression(C=1e6, fit_intercept=False).fit(margin, label).coef_.item()
    both = np.column_stack([np.zeros(500), margin])
    assert fit_temperature(label, both) == pytest.approx(1 / slope, rel=0.03)  # the prior and the targets pull a little


def test_temperature_leaves_the_prior_as_it_is():
    label, logits = calibrated(4000, 2)
    shift = np.array([0.0, 1.5])
    assert fit_temperature(label, 2 * (logits - shift), shift) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("margin", [0.2, 5.0])
def test_few_rows_hardly_move_the_temperature(margin):
    label, logits = np.array([0, 0, 1, 1]), margin * np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    at = np.exp(np.linspace(-2, 2, 40001))  # each of the four has the target 3/4
    posterior = 4 * (0.75 * log_expit(margin / at) + 0.25 * log_expit(-margin / at)) - np.log(at) ** 2 / (2 * 0.5**2)
    expected = at[posterior.argmax()]
    assert 0.6 < expected < 2.4 and fit_temperature(label, logits) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "share"), [(8, 0.6), (20, 0.5), (100, 0.25)])
@pytest.mark.parametrize("prevalence", [0.2, 0.5])
def test_a_fitted_temperature_is_better_than_none(n, share, prevalence):
    """Logits of a wrong scale, drawn from the prior; what is excess in log loss, beside the loss at the right scale."""
    generator, prior, excess = np.random.default_rng(1), np.log(prevalence / (1 - prevalence)), []
    fresh, ratio = gaussian_scores(generator, 4000, prevalence, 1.47)

    def loss(scale):
        return -log_expit(np.where(fresh == 1, 1, -1) * (scale * ratio + prior)).mean()

    for _ in range(300):
        scale, (label, own) = np.exp(generator.normal(0, 0.5)), gaussian_scores(generator, n, prevalence, 1.47)
        logits = np.column_stack([np.zeros(n), scale * own])
        temperature = fit_temperature(label, logits, np.array([0.0, prior]))
        assert 0.2 < temperature < 5
        excess.append([loss(scale / temperature) - loss(1), loss(scale) - loss(1)])
    fitted, untouched = np.mean(excess, axis=0)
    assert fitted < share * untouched


def test_temperature_refuses_what_it_cannot_fit():
    with pytest.raises(EvaluationError, match="labels must be 0 to 1, found 0 to 2"):
        fit_temperature(np.array([0, 2]), np.zeros((2, 2)))
    with pytest.raises(EvaluationError, match="prior shift must be finite for each of 2 classes"):
        fit_temperature(np.array([0.0, 1.0]), np.zeros((2, 2)), np.array([0, -np.inf]))
    with pytest.raises(EvaluationError, match="hold NaN or infinite"):
        fit_temperature(np.array([0, 1]), np.full((2, 2), np.nan))
    with pytest.raises(EvaluationError, match="logits .N, K. and labels .N., found .0, 2. and .0,."):
        fit_temperature(np.zeros(0, int), np.zeros((0, 2)))
