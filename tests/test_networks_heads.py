"""Heads that are fitted after training: known answers, and what they are to a network."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from mmfusion.errors import NetworkError
from mmfusion.networks import build, export_onnx
from mmfusion.networks.heads import HEADS

FITTED = ("logistic", "ridge")


def features(cases=41, count=7, classes=2, seed=0):
    """Of classes with different means; the last feature is constant, another one far from 0."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(cases) % classes
    values = torch.randn(cases, count, generator=draw) + label[:, None] * torch.rand(count, generator=draw)
    values[:, 2] = 40 + 5 * values[:, 2]
    values[:, -1] = 3.0
    return values, label, torch.rand(cases, generator=draw) + 0.2


def fitted(name, values, label, weight=None):
    head = HEADS[name](values.shape[1], int(label.max()) + 1)
    head.fit(values, label, weight)
    return head


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_is_where_the_penalized_likelihood_is_flat(classes, weighted):
    values, label, weight = features(classes=classes)
    weight = weight / weight.mean() if weighted else torch.ones(len(label))
    head = fitted("logistic", values, label, weight)
    scaler = StandardScaler().fit(values.double().numpy())
    standard, weights = torch.from_numpy(scaler.transform(values.double().numpy())), head.weight.detach().double()
    slope = (weights * torch.from_numpy(scaler.scale_)).requires_grad_()
    bias = (head.bias.detach() + weights @ torch.from_numpy(scaler.mean_)).requires_grad_()
    each = torch.nn.functional.cross_entropy(standard @ slope.T + bias, label, reduction="none")
    # of two classes scikit-learn penalizes their difference, whose square is twice that of both halves together
    penalty = slope.square().sum() * (1 if classes == 2 else 0.5)
    ((weight * each).sum() + penalty).backward()
    assert slope.grad[:, :-1].abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_is_scikit_learns(classes):
    values, label, weight = features(classes=classes)
    standard = StandardScaler().fit_transform(values.double().numpy())
    theirs = LogisticRegression(tol=1e-10, max_iter=10_000).fit(standard, label, weight / weight.mean())
    ours = fitted("logistic", values, label, weight)(values).softmax(1).detach()
    np.testing.assert_allclose(ours, theirs.predict_proba(standard), atol=1e-5)


@pytest.mark.parametrize(("cases", "count"), [(41, 7), (13, 30)])
def test_ridge_is_scikit_learns_scaled_by_the_error_of_leaving_one_out(cases, count):
    values, label, weight = features(cases, count, classes=3)
    standard = StandardScaler().fit_transform(values.double().numpy())
    target, share = np.eye(3)[label.numpy()], (weight / weight.mean()).numpy()
    model = Ridge(alpha=1.0).fit(standard, target, share)
    left_out = np.empty_like(target)
    for row in range(cases):
        others = np.arange(cases) != row
        one = Ridge(alpha=1.0).fit(standard[others], target[others], share[others])
        left_out[row] = target[row] - one.predict(standard[[row]])[0]
    scale = 1 / (2 * np.average((left_out**2).mean(1), weights=share))
    ours = fitted("ridge", values, label, weight)(values).detach().numpy()
    np.testing.assert_allclose(ours / scale, model.predict(standard), atol=1e-5)


def test_ridge_answers_as_a_discriminant_analysis_does():
    draw = torch.Generator().manual_seed(1)
    label = torch.arange(4000) % 2
    values = torch.randn(4000, 2, generator=draw) + label[:, None] * torch.tensor([1.0, 0.5])
    logits = fitted("ridge", values, label)(values)
    true = values @ torch.tensor([1.0, 0.5]) - 0.625  # log of the ratio of the two densities
    slope = np.polyfit(true.numpy(), (logits[:, 1] - logits[:, 0]).detach().numpy(), 1)
    np.testing.assert_allclose(slope, [1, 0], atol=0.06)


@pytest.mark.parametrize("name", FITTED)
def test_the_order_of_the_rows_and_of_the_units_does_not_matter(name):
    values, label, weight = features(classes=3)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(2))
    ours = fitted(name, values, label, weight)
    other = fitted(name, values[order] * 100 - 7, label[order], weight[order] * 3)
    torch.testing.assert_close(other(values * 100 - 7), ours(values), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FITTED)
def test_a_file_holds_it_as_tensors(name, tmp_path):
    values, label, _ = features()
    head = fitted(name, values, label)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    again = HEADS[name](7, 2)
    again.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    assert torch.equal(again(values), head(values))


def test_what_a_head_refuses():
    values, label, _ = features()
    with pytest.raises(NetworkError, match="a head is fitted on cases of every class; class 1 has none"):
        HEADS["ridge"](7, 2).fit(values, torch.zeros_like(label))
    values[3, 2] = float("nan")
    with pytest.raises(NetworkError, match="fitted on finite features"):
        HEADS["logistic"](7, 2).fit(values, label)


@pytest.mark.parametrize("name", FITTED)
def test_a_network_learns_through_it_and_is_exported(name, tmp_path):
    torch.manual_seed(0)
    network = build("single_level", "cnn", width=0.06, head=name)
    image, label = torch.randn(8, 3, 17, 19, 18), torch.arange(8) % 2
    sum(network.losses(network.outputs(image), label).values()).backward()
    assert all(any(p.grad.any() for p in encoder.parameters()) for encoder in network.encoders)
    with torch.no_grad():
        network.classifier[-1].fit(network.eval().outputs(image).features, label)
    export_onnx(network, tmp_path / "model.onnx", (17, 19, 18))  # compares the answers
