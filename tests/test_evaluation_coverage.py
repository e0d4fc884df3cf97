"""Intervals hold the truth as often as they say: the hardest cells of benchmarks/coverage.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from mmfusion.evaluation import classification_metrics

FILE = Path(__file__).parents[1] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(coverage, part, simulations=200, **cell):
    """The coverage of our interval of each metric, and the summaries of all intervals of the cell."""
    summaries = coverage.simulate({"part": part, **cell}, simulations)["coverage"]
    ours = {name.removesuffix(" | ours"): one["coverage"] for name, one in summaries.items() if name.endswith("ours")}
    return ours, summaries


def test_the_truth_of_a_cell_is_that_of_its_population(coverage):
    truth = coverage.truth_of(0.3, 0.8, 1.0)
    assert truth["auc"] == pytest.approx(0.8, abs=1e-4)
    assert truth["accuracy"] == pytest.approx(0.3 * truth["sensitivity"] + 0.7 * truth["specificity"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [
    {"n": 50, "prevalence": 0.1, "auc": 0.95, "sureness": 2.0},
    {"n": 400, "prevalence": 0.1, "auc": 0.7, "sureness": 1.0},
    {"n": 40, "prevalence": 0.5, "auc": 0.9, "sureness": 1.0},
])  # fmt: skip
def test_every_metric_of_a_cohort(coverage, cell):
    ours, everything = simulated(coverage, "cohort", **cell)
    assert len(ours) == 8 and min(ours.values()) >= 0.9
    assert min(one["coverage"] for name, one in everything.items() if "stratified" in name) < 0.85


def mixed(label, noise):
    """Two of five positives look as negatives do: Newcombe's interval alone is too short."""
    return expit(noise.normal(size=label.size) + 4 * label * (noise.random(label.size) < 0.6) - 2)


def rated(label, noise):
    """Three ratings: DeLong's interval alone is too short."""
    return np.array([0.05, 0.4, 0.9])[np.digitize(noise.normal(size=label.size) + 2.5 * label, [1.2, 2.4])]


@pytest.mark.slow
@pytest.mark.parametrize(("scores", "positives"), [(mixed, 6), (rated, 12)])
def test_the_auc_of_few_positives_whose_scores_are_not_normal(scores, positives):
    noise = np.random.default_rng(0)
    many = np.arange(200_000) % 2
    truth = classification_metrics(many, scores(many, noise), resamples=1)["auc"].value
    label = (np.arange(120) < positives).astype(int)
    estimate = [classification_metrics(label, scores(label, noise), resamples=1)["auc"] for _ in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in estimate]) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("part", ["visits", "case-control"])
def test_every_metric_of_another_design(coverage, part):
    ours, _ = simulated(coverage, part, n=100, prevalence=0.1, auc=0.9, sureness=1.0)
    assert len(ours) == 8 and min(ours.values()) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [{"n": 50, "prevalence": 0.2, "signal": 1.6}, {"n": 100, "prevalence": 0.5, "signal": 0.8}]
)
def test_the_mean_of_folds_and_the_difference(coverage, cell):
    ours, everything = simulated(coverage, "folds", **cell)
    assert set(ours) == {"both", "single", "difference"} and min(ours.values()) >= 0.9
    assert everything["both | pooled rows"]["coverage"] < min(ours["both"], 0.95)


@pytest.mark.slow
def test_the_difference_of_fixed_scores_and_its_p_value(coverage):
    ours, _ = simulated(coverage, "difference", n=100, prevalence=0.3, auc=0.8, sureness=1.0)
    assert set(ours) == {"auc difference", "no difference, p >= 0.05"} and min(ours.values()) >= 0.9
