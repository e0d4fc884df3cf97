"""Token operators and AGDAF's losses against slow, literal versions of their formulas, a case and a head at a time."""

import math
from itertools import combinations as pairs_of

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks import FusionOutput, build
from mmfusion.networks.blocks import MaskedAttention
from mmfusion.networks.losses import LOSSES, adaptive_weights
from mmfusion.networks.tokens import TOKEN_OPERATORS, CrossFusion

PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
COUNTS = (5, 3, 4)
EACH = [(name, learned) for name in TOKEN_OPERATORS for learned in (False, True)]
jit_is_old = pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated:DeprecationWarning")


def operator(name, learned=False, features=6, **options):
    """In double precision, with parameters far from zero, so that nothing in a formula cancels."""
    torch.manual_seed(1)
    made = TOKEN_OPERATORS[name](3, features, learned, heads=2, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.6)
    return made


def tokens(seed=0, features=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, n, features, generator=generator, dtype=torch.float64) for n in COUNTS]


def dense(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def layer_norm(layer, x):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def mlp(layer, x):
    hidden = dense(layer[0], x)
    gelu = hidden * np.vectorize(lambda h: (1 + math.erf(h / math.sqrt(2))) / 2)(hidden)
    return dense(layer[3], gelu)


def heads_of(q, k, v, heads):
    """Attention by the book, head by head: mixed values ``[Nq, dim]`` and mean weights ``[Nq, Nk]``."""
    columns = np.split(np.arange(q.shape[1]), heads)
    each = [softmax(q[:, c] @ k[:, c].T / math.sqrt(len(c)), axis=1) for c in columns]
    return np.concatenate([w @ v[:, c] for w, c in zip(each, columns, strict=True)], 1), np.mean(each, 0)


def attend(layer, query, context):
    key, value = np.split(dense(layer.key_value, context), 2, axis=1)
    mixed, weights = heads_of(dense(layer.query, query), key, value, layer.heads)
    return dense(layer.project, mixed), weights


def transformer(block, x):
    mixed, weights = heads_of(*np.split(dense(block.qkv, layer_norm(block.norm1, x)), 3, axis=1), block.heads)
    x = x + dense(block.project, mixed)
    return x + mlp(block.mlp, layer_norm(block.norm2, x)), weights


def literal_joint(op, x):
    sequence = np.concatenate([op.cls.detach().numpy()[0], *x.values()])
    for block in op.blocks:
        sequence, weights = transformer(block, sequence)
    sequence = layer_norm(op.norm, sequence)
    ends = np.cumsum([1] + [len(one) for one in x.values()])
    spans = {m: slice(a, b) for m, a, b in zip(x, ends[:-1], ends[1:], strict=True)}
    return sequence[0], {m: sequence[s] for m, s in spans.items()}, {m: {m: weights[0][s]} for m, s in spans.items()}


def literal_cross(op, x):
    for layer in op.layers:
        after, received = {}, {}
        for m, own in x.items():
            others = [n for n in range(3) if n != m]
            received[m] = {}
            for norm, attention, n in zip(layer[m].norms, layer[m].attentions, others, strict=True):
                if n in x:
                    mixed, weights = attend(attention, layer_norm(norm, own), layer_norm(norm, x[n]))
                    own, received[m][n] = own + mixed, weights.mean(0)
            after[m] = own + mlp(layer[m].mlp, layer_norm(layer[m].norm, own))
        x = after
    x = {m: layer_norm(op.norm, one) for m, one in x.items()}
    return side_by_side(op, x), x, received


def literal_intra_inter(op, x):
    for layer in op.layers:
        after, received = {}, {}
        for m, own in x.items():
            mixed, weights = attend(layer[m].intra, own, own)
            received[m] = {m: weights.mean(0)}
            others = [n for n in x if n != m]
            if others:
                inter, weights = attend(layer[m].inter, own, np.concatenate([x[n] for n in others]))
                mixed = mixed + inter
                for n in others:
                    received[m][n], weights = np.split(weights.mean(0, keepdims=True), [len(x[n])], axis=1)
            after[m] = layer_norm(layer[m].norm, own + mixed)
        x = after
    return side_by_side(op, x), x, received


def literal_bottleneck(op, x):
    streams = {m: np.concatenate([op.cls[m].detach().numpy(), one]) for m, one in x.items()}
    shared, received = op.bottleneck.detach().numpy(), {}
    for layer in op.layers:
        exchanged = []
        for m, stream in streams.items():
            after, weights = transformer(layer[m], np.concatenate([stream, shared]))
            streams[m], received[m] = after[: len(stream)], {m: weights[0, 1 : len(stream)]}
            exchanged.append(after[len(stream) :])
        shared = np.mean(exchanged, 0)
    streams = {m: layer_norm(op.norm, one) for m, one in streams.items()}
    return np.mean([one[0] for one in streams.values()], 0), {m: one[1:] for m, one in streams.items()}, received


LITERAL = {
    "joint": literal_joint,
    "cross": literal_cross,
    "intra_inter": literal_intra_inter,
    "bottleneck": literal_bottleneck,
}


def side_by_side(op, x):
    return np.concatenate([x[m].mean(0) if m in x else np.zeros(op.dim) for m in range(3)])


def sequences_of(op, given, b, row, learned):
    """The tokens that take part, by modality: those of present ones, and one learned for an absent one."""
    x = {}
    for m, there in enumerate(row):
        mark = op.mark[m].detach().numpy()
        if there:
            x[m] = dense(op.enter[m][1], layer_norm(op.enter[m][0], given[m][b].numpy())) + mark
        elif learned:
            x[m] = (op.absent[m].detach().numpy() + mark)[None]
    return x


def shares_of(received, row):
    """``received[m][n]``, what the tokens of n get from m, as shares over the present modalities ``[M, N]``."""
    table = np.zeros((3, max(COUNTS)))
    for m in np.flatnonzero(row):
        for n, weights in received[m].items():
            if row[n]:
                table[n, : COUNTS[n]] += np.ravel(weights)
    if table.sum() == 0:
        for n in np.flatnonzero(row):
            table[n, : COUNTS[n]] = 1
    return table / table.sum()


@pytest.mark.parametrize(("name", "learned"), EACH)
@pytest.mark.parametrize("layers", [1, 2])
def test_operators_are_their_formulas(name, learned, layers):
    op, given = operator(name, learned, layers=layers), tokens()
    made = op(given, PRESENT)
    for b, row in enumerate(PRESENT.numpy()):
        x = sequences_of(op, given, b, row, learned)
        if not x:
            continue
        fused, features, received = LITERAL[name](op, x)
        np.testing.assert_allclose(made.fused[b].detach(), fused, rtol=1e-9, atol=1e-9)
        for m, there in enumerate(row):
            expected = features[m].mean(0) if there else np.zeros(op.dim)
            np.testing.assert_allclose(made.modality_features[b, m].detach(), expected, rtol=1e-9, atol=1e-9)
        if row.any():
            np.testing.assert_allclose(made.attention[b].detach(), shares_of(received, row), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "learned"), EACH)
def test_attention_is_a_share_and_no_modality_is_finite(name, learned):
    made = operator(name, learned)(tokens(), PRESENT)
    assert made.attention.shape == (4, 3, 5) and (made.attention >= 0).all()
    torch.testing.assert_close(made.attention.sum((1, 2)), torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    assert not made.attention[~PRESENT].any() and not made.modality_features[~PRESENT].any()
    assert made.fused.isfinite().all() and made.fused.shape == (4, operator(name).out_features)


@pytest.mark.parametrize(("name", "learned"), EACH)
def test_absent_tokens_are_never_attended_to(name, learned):
    op, given = operator(name, learned), tokens()
    junk = [torch.where(PRESENT[:, m, None, None], one, 1e3) for m, one in enumerate(given)]
    for one, other in zip(op(given, PRESENT), op(junk, PRESENT), strict=True):
        assert torch.equal(one, other)
    changed = op([one + 0.1 * torch.arange(6) for one in given], PRESENT)
    assert not torch.allclose(changed.fused[:3], op(given, PRESENT).fused[:3])


@pytest.mark.parametrize("name", TOKEN_OPERATORS)
def test_the_order_of_tokens_does_not_matter(name):
    op, given = operator(name), tokens()
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in COUNTS]
    one, other = op(given, PRESENT), op([x[:, o] for x, o in zip(given, order, strict=True)], PRESENT)
    torch.testing.assert_close(other.fused, one.fused)
    for m, o in enumerate(order):
        torch.testing.assert_close(other.attention[:, m, : COUNTS[m]], one.attention[:, m, o])


@pytest.mark.parametrize(("name", "learned"), EACH)
def test_every_parameter_and_token_has_a_finite_gradient(name, learned):
    op, given = operator(name, learned, dropout=0.1), [one.requires_grad_() for one in tokens()]
    made = op(given, PRESENT)
    (made.fused.square().sum() + made.modality_features.square().sum()).backward()
    for parameter in op.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
    for m, one in enumerate(given):
        assert one.grad.isfinite().all() and torch.equal(one.grad.flatten(1).any(1), PRESENT[:, m])


@jit_is_old
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the width of a head, a constant of the network
@pytest.mark.parametrize(("name", "learned"), EACH)
def test_traced_and_of_no_case(name, learned):
    op, given = operator(name, learned).eval(), tokens()
    example = ([one[:2] + 1 for one in given], torch.ones_like(PRESENT[:2]))
    traced = torch.jit.trace(op, example, check_trace=False)  # it is checked by other inputs
    for a, b in zip(op(given, PRESENT), traced(given, PRESENT), strict=True):
        assert torch.equal(a, b)
    assert [len(one) for one in op([one[:0] for one in given], PRESENT[:0])] == [0, 0, 0]


@pytest.mark.parametrize("name", TOKEN_OPERATORS)
def test_one_modality_is_enough(name):
    made = TOKEN_OPERATORS[name](1, 5)([torch.randn(2, 7, 5)], torch.ones(2, 1).bool())
    assert made.modality_features.shape == (2, 1, 8)  # 5 rounded up to a multiple of 4 heads
    torch.testing.assert_close(made.attention.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross", {"layers": 0}, "option layers of a token operator must be at least 1, found 0"),
        ("bottleneck", {"bottlenecks": 0}, "option bottlenecks of a token operator must be at least 1, found 0"),
        ("intra_inter", {"dim": 6}, "must be a multiple of the heads, found dim 6 and heads 4"),
        ("joint", {"dim": 0}, "must be a multiple of the heads, found dim 0 and heads 4"),
        ("cross", {"heads": 0}, "found dim None and heads 0"),
        ("intra_inter", {"mlp_dim": 8}, "unknown intra_inter option 'mlp_dim'; "),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(NetworkError) as error:
        build("attention", "resnet10", name, width=0.06, fusion_options=options)
    assert message in str(error.value)


def twins(dim=8, heads=2, dropout=0.0):
    """MaskedAttention and torch's own, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = MaskedAttention(dim, heads, dropout), nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
    for layer in (ours.query, ours.key_value, ours.project):
        nn.init.normal_(layer.bias)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.query.weight, ours.key_value.weight]),
            "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
            "out_proj.weight": ours.project.weight,
            "out_proj.bias": ours.project.bias,
        }
    )
    return ours, theirs


def test_masked_attention_is_torchs_own():
    ours, theirs = twins()
    query, context = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    visible = torch.tensor([[1] * 7, [1, 0, 1, 1, 0, 0, 1], [0] * 6 + [1]]).bool()
    mixed, weights = theirs(query, context, context, key_padding_mask=~visible)
    torch.testing.assert_close(ours(query, context, visible), mixed)
    torch.testing.assert_close(ours.weights(query, context, visible), weights)


def test_attention_to_nothing_is_zero_and_its_gradient_finite():
    attention = MaskedAttention(8, 2)
    query, context = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 7, 8, requires_grad=True)
    visible = torch.tensor([[True] * 7, [False] * 7])
    mixed, weights = attention(query, context, visible), attention.weights(query, context, visible)
    assert mixed[0].any() and not mixed[1].any() and not weights[1].any()
    (mixed.square().sum() + weights.square().sum()).backward()
    assert query.grad.isfinite().all() and not query.grad[1].any() and not context.grad[1].any()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_dropout_of_attention_follows_its_own_flag():
    attention = MaskedAttention(8, 2, 0.5).eval()
    x, visible = torch.randn(2, 5, 8), torch.ones(2, 5).bool()
    assert torch.equal(attention(x, x, visible), attention(x, x, visible))
    attention.drop.train()
    assert not torch.equal(attention(x, x, visible), attention(x, x, visible))


def test_attention_of_each_query_can_be_read_by_a_hook():
    op, given, seen = CrossFusion(2, 6, heads=2, layers=1), [one.float() for one in tokens()[:2]], []
    attention = op.layers[0][0].attentions[0]  # the first modality's to the second
    attention.register_forward_hook(lambda module, args, out: seen.append(module.weights(*args)))
    made = op(given, torch.tensor([[1, 1]] * 4).bool())
    assert seen[0].shape == (4, 5, 3)
    torch.testing.assert_close(made.attention[:, 1, :3], seen[0].mean(1) / 2)  # the other half is the first's own


def random_output(labels=(0, 2, 1, 0, 2, 2), classes=3, features=5):
    generator = torch.Generator().manual_seed(4)
    present = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    logits = 2 * torch.randn(6, 3, classes, generator=generator, dtype=torch.float64)
    vectors = torch.randn(6, 3, features, generator=generator, dtype=torch.float64)
    output = FusionOutput(logits[:, 0], present, logits.requires_grad_(), vectors.requires_grad_())
    return output, torch.tensor(labels)


@pytest.mark.parametrize("class_weight", [None, [0.5, 2.0, 1.0]])
def test_adaptive_weights_are_a_softmax_of_the_losses(class_weight):
    output, label = random_output()
    given = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64)
    scale = class_weight or [1, 1, 1]
    losses = {}
    for m in (0, 1):  # no case has the third
        cases = [b for b in range(6) if output.present[b, m]]
        each = [log_softmax(output.modality_logits[b, m].detach().numpy())[label[b]] * scale[label[b]] for b in cases]
        losses[m] = -sum(each) / len(cases)
    total = sum(math.exp(-one / 0.5) for one in losses.values())
    expected = [math.exp(-losses[m] / 0.5) / total for m in (0, 1)]
    weights = adaptive_weights(output, label, given)
    np.testing.assert_allclose(weights, [*expected, 0])
    loss = LOSSES["adaptive"].term(output, label, given, None)
    assert loss.item() == pytest.approx(sum(w * losses[m] for m, w in enumerate(expected)))
    loss.backward()
    whole = output.modality_logits.grad.clone()
    assert not weights.requires_grad and whole.isfinite().all() and not whole[~output.present].any()


def test_adaptive_weights_are_constants_for_the_gradient():
    output, label = random_output()
    weights = adaptive_weights(output, label)
    LOSSES["adaptive"].term(output, label, None, None).backward()
    case = 3  # label 0, both modalities: d CE / d logits = p - y, over the number of cases that have the modality
    for m, count in ((0, 4), (1, 3)):
        expected = softmax(output.modality_logits[case, m].detach().numpy()) - [1, 0, 0]
        np.testing.assert_allclose(output.modality_logits.grad[case, m], weights[m].item() * expected / count)


def test_discriminative_loss_is_its_formula():
    output, label = random_output()
    each = []
    for m in (0, 1):
        cases = [b for b in range(6) if output.present[b, m]]
        f = {b: (v := output.modality_features[b, m].detach().numpy()) / np.linalg.norm(v) for b in cases}
        classes = {int(label[b]) for b in cases}
        c = {k: np.mean([f[b] for b in cases if label[b] == k], 0) for k in classes}
        within = np.mean([np.sum((f[b] - c[int(label[b])]) ** 2) for b in cases])
        apart = [max(0, 1 - np.linalg.norm(c[j] - c[k])) ** 2 for j, k in pairs_of(classes, 2)]
        each.append(within + sum(apart))
    loss = LOSSES["discriminative"].term(output, label, None, None)
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-9)
    loss.backward()
    assert output.modality_features.grad.isfinite().all()


def test_discriminative_loss_at_its_ends():
    present, label = torch.ones(4, 1).bool(), torch.tensor([0, 0, 1, 1])
    x, y = [3.0, 0.0], [0.0, 0.5]
    for rows, expected in (([x, x, y, y], 0.0), ([x, x, x, x], 1.0), ([x, y, x, y], 0.5 + 1.0)):
        features = torch.tensor(rows).unsqueeze(1).requires_grad_()
        loss = LOSSES["discriminative"].term(FusionOutput(None, present, None, features), label, None, None)
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-5) and features.grad.isfinite().all()


@pytest.mark.parametrize("name", ["adaptive", "discriminative"])
def test_losses_of_a_batch_without_any_modality_are_zero(name):
    net = build("decision", width=0.06, losses={name: 1.0})
    losses = net.losses(net.outputs(torch.ones(2, 3, 9, 9, 9), torch.zeros(2, 3)), torch.tensor([0, 1]))
    assert losses[name] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("strategy", ["single_level", "hierarchical", "attention", "decision", "hybrid"])
def test_every_strategy_but_input_has_these_losses(strategy):
    net = build(strategy, width=0.06, losses={"adaptive": 1.0, "discriminative": 0.01})
    output = net.outputs(torch.randn(3, 3, 11, 9, 10), PRESENT[:3])
    losses = net.losses(output, torch.tensor([0, 1, 1]))
    assert sorted(losses) == ["adaptive", "classification", "discriminative"]
    assert losses["discriminative"].item() == pytest.approx(
        0.01 * LOSSES["discriminative"].term(output, torch.tensor([0, 1, 1]), None, net).item()
    )
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with pytest.raises(NetworkError, match="loss 'adaptive' needs strategy single_level or"):
        build("input", width=0.06, losses={"adaptive": 1.0})
