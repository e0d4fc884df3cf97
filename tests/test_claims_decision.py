"""What is said of the decision rules, on generated data with a negative control each: ten seeds, paired."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from sklearn.linear_model import LogisticRegression
from test_networks_decision import independent

from mmfusion.networks.decision import DECISION_RULES
from mmfusion.training import out_of_fold


def nll(name, given, fit=None):
    logits, present, label = given
    rule = DECISION_RULES[name](logits.shape[1], 2)
    rule.set_prior([0.5, 0.5])
    if fit is not None:
        rule.fit(*fit)
    return float(torch.nn.functional.nll_loss(rule(logits, present)[0], label))


def lower(one, other):
    return ttest_rel(one, other, alternative="less").pvalue < 0.01


@pytest.mark.parametrize("other", ["mean", "max", "majority"])
def test_product_is_best_for_independent_modalities_and_worse_for_one_repeated(other):
    apart = [independent(1000, seed, frequent=0.5) for seed in range(10)]
    assert lower([nll("product", one) for one in apart], [nll(other, one) for one in apart])
    if other == "mean":
        again = [(one[0][:, :1].repeat(1, 5, 1), one[1][:, :1].repeat(1, 5), one[2]) for one in apart]
        assert lower([nll("mean", one) for one in again], [nll("product", one) for one in again])


def test_majority_loses_where_one_modality_dominates_and_weights_do_not():
    data = [independent(1000, seed, (1.2, 0.2, 0.2), 0.5) for seed in range(20)]
    test, held = data[:10], data[10:]
    majority = [(DECISION_RULES["majority"](3, 2)(*one[:2])[0].argmax(1) == one[2]).float().mean() for one in test]
    best = [(one[0][:, 0].argmax(1) == one[2]).float().mean() for one in test]
    assert lower(np.array(majority), np.array(best))
    weighted = [nll("weighted", one, fit) for one, fit in zip(test, held, strict=True)]
    assert lower(weighted, [nll("mean", one) for one in test])


def stacked(seed, leaking):
    """NLL of stacking on the cases it learned from and on new ones; one modality is wide noise, one is informative."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 600)
    features = [rng.normal(size=(600, 60)), rng.normal(size=(600, 1)) + 1.5 * label[:, None]]

    def fit(rows):
        return [LogisticRegression(C=100, max_iter=5000).fit(one[rows], label[rows]) for one in features]

    def predict(models, rows):
        each = [np.log(model.predict_proba(one[rows]).clip(1e-9)) for model, one in zip(models, features, strict=True)]
        return np.stack(each, 1)

    train, test = np.arange(100), np.arange(100, 600)
    whole = fit(train)
    seen = predict(whole, train) if leaking else out_of_fold(fit, predict, [str(n) for n in train], 5, seed)
    rule, present = DECISION_RULES["stacking"](2, 2), torch.ones(600, 2).bool()
    given = [(torch.from_numpy(one).float(), rows) for one, rows in ((seen, train), (predict(whole, test), test))]
    rule.fit(given[0][0], present[train], torch.from_numpy(label[train]))
    said = [rule(logits, present[rows])[0] for logits, rows in given]
    return [
        float(torch.nn.functional.nll_loss(one, torch.from_numpy(label[rows])))
        for one, (_, rows) in zip(said, given, strict=True)
    ]


def test_stacking_in_fold_leaks_and_out_of_fold_does_not():
    leaking, clean = (np.array([stacked(seed, leak) for seed in range(10)]) for leak in (True, False))
    assert lower(leaking[:, 0], clean[:, 0])  # looks better on what it learned from
    assert lower(clean[:, 1], leaking[:, 1])  # and is worse on new cases
    assert abs(clean[:, 0] - clean[:, 1]).mean() < 0.5 * abs(leaking[:, 0] - leaking[:, 1]).mean()
