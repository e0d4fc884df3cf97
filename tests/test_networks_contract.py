"""What every network promises, for every strategy with every fusion operator and every encoder."""

import io

import pytest
import torch
from pairwise import pairwise
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks import FusionOutput, build, combinations
from mmfusion.networks.build import default_losses

MODALITIES = ("ct", "pet", "mr")
# hybrid and hierarchical fusion have the operators of single-level fusion: one of them is enough
PAIRS = [
    (name, fusion)
    for name, row in combinations().items()
    for i, fusion in enumerate(row["fusion"])
    if not i or name not in ("hierarchical", "hybrid")
]
FIRST = [(name, row["fusion"][0]) for name, row in combinations().items()]
ENCODERS = sorted({encoder for row in combinations().values() for encoder in row["encoders"]})
OPTIONS = {
    "plain": {},
    "shared": {"shared": True, "covariates": 2},
    "learned": {"absent": "learned", "dropout": 0.1},
    "bayesian": {"head": "bayesian"},
}
SAMPLE = pairwise(
    {
        "strategy": list(combinations()),
        "fusion": sorted({fusion for row in combinations().values() for fusion in row["fusion"]}),
        "encoder": ENCODERS,
        "option": list(OPTIONS),
    },
    lambda chosen: all(
        chosen[part] in combinations()[chosen["strategy"]][names]
        for part, names in (("fusion", "fusion"), ("encoder", "encoders"))
    ),
    apart=[("fusion", "encoder")],  # they meet in vectors, tokens and maps, which are the same for all
)
"""Every pair of strategy, operator, encoder and option that goes together, but for operator and encoder."""
LARGE = ("densenet121", "m3t", "resnet50", "se_resnet50", "efficientnet_b0", "swin", "resnet34")
SLOW_OR_NOT = [pytest.param(one, marks=[pytest.mark.slow] if one["encoder"] in LARGE else []) for one in SAMPLE]
jit_is_old = pytest.mark.filterwarnings(r"ignore:`torch.jit.\w+` is deprecated:DeprecationWarning")


def network(strategy="single_level", fusion=None, encoder="resnet10", **options):
    torch.manual_seed(0)
    return build(strategy, encoder, fusion, MODALITIES, width=0.06, **options)


def batch(size=(17, 21, 19), cases=2, seed=0):
    return torch.randn(cases, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chosen", SLOW_OR_NOT, ids=lambda chosen: "-".join(chosen.values()))
def test_a_network_keeps_every_promise(chosen):
    encoder, options = chosen["encoder"], {**OPTIONS[chosen["option"]]}
    if "head" in options:
        options["losses"] = {**default_losses(chosen["strategy"]), "kl": 0.01}
    if chosen["fusion"] == "tensor":
        options["fusion_options"] = {"out": 4}  # the products of wide encoders would be too many

    def make(seed):
        torch.manual_seed(seed)
        return build(chosen["strategy"], encoder, chosen["fusion"], MODALITIES, num_classes=3, width=0.06, **options)

    net, label = make(0), torch.tensor([0, 2, 1, 1])
    image = batch((29, 31, 30) if encoder == "densenet121" else (17, 21, 19), cases=4)
    present = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]])
    known = torch.tensor([[0.5, float("nan")], [1.0, -1.0], [0.0, 0.0], [2.0, 1.0]])
    known = known if options.get("covariates") else None
    seen = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 1, 1]])
    for given in (seen, seen * torch.tensor([1, 1, 0])):  # then mr of no case
        net.zero_grad()
        output = net.outputs(image, given, known)
        assert output.logits.shape == (4, 3)
        sum(net.losses(output, label).values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    net.eval()
    with torch.no_grad():
        logits = net(image, present, known)
        assert logits.isfinite().all()
        shown = present.bool()[:, :, None, None, None]
        for junk in (1e6, float("nan")):  # blind to what is absent, and not to what is present
            changed = torch.where(shown, image, torch.tensor(junk))
            torch.testing.assert_close(net(changed, present, known), logits, rtol=0, atol=0)
        before, after = (net.outputs(one, present, known) for one in (image, image + 1))
        pairs = [
            pair for pair in zip(before, after, strict=True) if pair[0] is not None and pair[0].is_floating_point()
        ]
        assert any(not torch.allclose(*pair) for pair in pairs)  # votes may stay
        zeroed = torch.where(shown, image, torch.tensor(0.0))
        assert torch.equal(net(zeroed, None, known), net(zeroed, present, known))
        rows = [(image[n : n + 1], present[n : n + 1], known if known is None else known[n : n + 1]) for n in range(4)]
        alone = torch.cat([net(*row) for row in rows])  # one answer, whatever the company in the batch
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
        if encoder == "resnet10":  # the deeper, the less exact
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(net(image, present, known).float(), logits, atol=0.05, rtol=0)
        file = io.BytesIO()
        torch.save(net.state_dict(), file)
        file.seek(0)
        again = make(1).eval()
        assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
        again.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(again(image, present, known), logits)


def test_a_shared_encoder_tells_the_modalities_apart_by_a_mark():
    net, image = network("single_level", "add", shared=True).eval(), batch(cases=1)
    assert len(net.encoders) == 1
    one = torch.tensor([[1, 0, 0]])
    moved = image.clone()
    moved[:, 1] = image[:, 0]
    first = net.outputs(image, one).modality_features[:, 0]
    second = net.outputs(moved, torch.tensor([[0, 1, 0]])).modality_features[:, 1]
    mark = net.place[0].mark
    torch.testing.assert_close(first - mark[0], second - mark[1])
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("strategy", ["single_level", "attention", "decision", "hybrid"])
def test_each_modality_may_have_an_encoder_of_its_own(strategy):
    names = {"ct": "resnet10", "pet": "m3t_small", "mr": "cnn"}
    net = network(strategy, encoder=names, num_classes=3)
    output = net.outputs(batch(), torch.tensor([[1, 1, 1], [0, 1, 0]]))
    sum(net.losses(output, torch.tensor([0, 2])).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert len({encoder.out_features for encoder in net.encoders}) > 1
    assert [type(encoder).__name__ for encoder in net.encoders][1] == "MultiPlaneSliceEncoder"


@pytest.mark.parametrize("strategy", combinations())
def test_images_of_two_dimensions(strategy):
    net = network(strategy, encoder="cnn", spatial_dims=2, covariates=1).eval()
    image, present = torch.randn(2, 3, 33, 29), torch.tensor([[1, 1, 1], [0, 1, 0]])
    logits = net(image, present, torch.zeros(2, 1))
    assert logits.shape == (2, 2) and logits.isfinite().all()
    with pytest.raises(NetworkError, match=r"image \[B, 3, H, W\] with .* found shape \[2, 3, 9, 9, 9"):
        net(torch.zeros(2, 3, 9, 9, 9), present, torch.zeros(2, 1))


@pytest.mark.parametrize(("strategy", "fusion"), [*FIRST, ("single_level", "gated"), ("hybrid", "gated")])
def test_a_case_without_any_modality_gets_the_same_answer_whatever_its_voxels(strategy, fusion):
    net = network(strategy, fusion).eval()
    logits = net(batch(), torch.zeros(2, 3))
    assert torch.equal(logits[0], logits[1])
    if strategy == "decision":
        torch.testing.assert_close(logits[0], torch.zeros(2).log_softmax(0))
    elif strategy in ("input", "single_level", "hybrid") and fusion in ("concat", "gated"):
        torch.testing.assert_close(logits[0].log_softmax(0), net.classifier[1].bias.log_softmax(0))


@pytest.mark.parametrize(("strategy", "fusion"), FIRST)
def test_gradients_stay_finite_where_a_case_has_nothing(strategy, fusion):
    net = network(strategy, fusion)
    output = net.outputs(batch(cases=3), torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]))
    sum(net.losses(output, torch.tensor([0, 1, 1])).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("strategy", ["single_level", "decision"])
def test_only_present_rows_are_encoded(strategy):
    net, rows = network(strategy), []
    for encoder in net.encoders:
        encoder.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    net(batch(cases=3), torch.tensor([[1, 0, 0], [1, 0, 1], [1, 0, 0]]))
    assert rows == [3, 0, 1]


@jit_is_old
@pytest.mark.parametrize("strategy", combinations())
def test_what_monai_scripts_says_what_eager_says(strategy):
    net, image = network(strategy, encoder="cnn", covariates=2).eval(), batch(cases=3)
    net.image_size = (17, 21, 19)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    known = torch.tensor([[0.5, float("nan")], [1.0, -1.0], [0.0, 2.0]])
    with torch.jit.optimized_execution(False):  # for few answers that takes longer than all else
        for present in ([[1, 1, 1]] * 3, [[1, 0, 0], [0, 0, 1], [0, 0, 0]]):
            present = torch.tensor(present)
            torch.testing.assert_close(
                scripted(image, present, known), net(image, present, known), atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(scripted(image), net(image, None, torch.full((3, 2), float("nan"))))


def test_a_network_is_scripted_for_a_size():
    with pytest.raises(NetworkError, match="set its image_size to the voxels along each axis"):
        torch.jit.script(network())


@jit_is_old
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own GroupNorm
@pytest.mark.parametrize(("strategy", "fusion"), PAIRS)
def test_a_trace_holds_for_other_missing_modalities(strategy, fusion):
    net, image = network(strategy, fusion, "cnn").eval(), batch()
    present = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    with torch.jit.optimized_execution(False):
        traced = torch.jit.trace(net, (image, torch.ones(2, 3)), check_trace=False)  # it is checked by other inputs
        torch.testing.assert_close(traced(image, present), net(image, present))


@jit_is_old
def test_monai_exports_it(tmp_path):
    from monai.networks.utils import convert_to_torchscript

    net = network().eval()
    net.image_size = (17, 21, 19)
    convert_to_torchscript(net, filename_or_obj=str(tmp_path / "model.ts"), verify=True, inputs=[batch()])
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.ts"))(batch()), net(batch()))


def lesions():
    """8 cases: pet shows a bright cube in class 1; ct and mr are the same in every case."""
    label = torch.tensor([0, 1] * 4)
    image = batch(cases=1).repeat(8, 1, 1, 1, 1)
    image[:, 1] = batch(cases=8, seed=1)[:, 1]
    image[label == 1, 1, 6:12, 6:12, 6:12] += 4
    return image, label


def accuracy_after_training(net, image, present, label, steps=25, lr=1e-2):
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(net.losses(net.outputs(image, present), label).values()).backward()
        optimizer.step()
    with torch.no_grad():  # ct and mr are constant here: running statistics that lag would look like a signal
        for _ in range(40):
            net(image, present)
    return (net.eval()(image, present).argmax(1) == label).float().mean().item()


@pytest.mark.parametrize(
    ("strategy", "fusion"),
    FIRST + [pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS if pair not in FIRST],
)
def test_learns_what_one_modality_shows(strategy, fusion):
    image, label = lesions()
    learned = accuracy_after_training(network(strategy, fusion), image, torch.ones(8, 3), label)
    assert learned == (0.5 if fusion == "majority" else 1)  # two that know nothing outvote the one that does
    without_pet = torch.tensor([[1, 0, 1]] * 8)  # the same pixels are there, but said to be absent
    assert accuracy_after_training(network(strategy, fusion), image, without_pet, label) == 0.5


@pytest.mark.slow
def test_m3t_learns_it_too():
    image, label = lesions()
    torch.manual_seed(0)
    net = build("single_level", "m3t_small", modalities=MODALITIES, width=0.25)
    assert accuracy_after_training(net, image, torch.ones(8, 3), label, steps=40, lr=1e-3) == 1


@pytest.mark.parametrize(
    ("image", "present", "message"),
    [
        (
            torch.zeros(2, 2, 9, 9, 9),
            None,
            r"image \[B, 3, D, H, W\] with the channels ct, pet, mr, found shape \[2, 2, 9",
        ),
        (torch.zeros(2, 3, 9, 9, 9, dtype=torch.int16), None, "must hold floating point numbers, found torch.int16"),
        (torch.zeros(3, 9, 9, 9), None, r"found shape \[3, 9, 9, 9\]"),
        (torch.zeros(2, 3, 9, 9, 9), torch.ones(2), r"present must have shape \[2, 3\].*found \[2\]"),
    ],
)
def test_tensors_that_do_not_fit(image, present, message):
    with pytest.raises(NetworkError, match=message):
        network()(image, present)


@pytest.mark.parametrize(("covariates", "found"), [(None, "none"), (torch.zeros(2, 3), r"\[2, 3\]")])
def test_covariates_that_do_not_fit(covariates, found):
    with pytest.raises(NetworkError, match=rf"covariates must have shape \[2, 2\], NaN .* found {found}"):
        network(covariates=2)(batch(), None, covariates)


def test_maps_of_different_sizes_are_refused():
    names = dict.fromkeys(MODALITIES, "resnet10")
    net = network("hierarchical", encoder=names, encoder_options={"pet": {"stem_stride": 1}})
    with pytest.raises(NetworkError, match="needs maps of the same size at each level, found ct .*; pet .*; mr "):
        net(batch())


def test_covariates_are_refused():
    with pytest.raises(NetworkError, match=r"this network takes no covariates, found \[2, 4\]"):
        network()(batch(), None, torch.zeros(2, 4))


def test_output_is_a_plain_tuple_with_names():
    output = network("decision").outputs(batch())
    assert isinstance(output, FusionOutput) and isinstance(output, tuple)
    assert FusionOutput._fields == (
        *("logits", "present", "modality_logits", "modality_features", "fused_logits"),
        *("features", "weights", "attention"),
    )
    assert output.modality_logits.shape == (2, 3, 2) and output.features is None


def test_what_a_network_says_of_itself():
    net = network("decision")
    assert (net.modalities, net.num_classes, net.strategy) == (MODALITIES, 2, "decision")
    assert isinstance(net, nn.Module) and all(torch.is_tensor(v) for v in net.state_dict().values())
