"""Exported networks answer as the network itself does."""

import itertools
import json

import pytest
import torch

from mmfusion.errors import NetworkError
from mmfusion.networks import build, combinations
from mmfusion.networks import export as subject
from mmfusion.networks.encoders import ENCODERS
from mmfusion.networks.export import export_onnx, export_program

SIZE = (17, 21, 19)
MODALITIES = ("ct", "pet", "mr")
SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
PAIRS = [  # hybrid and hierarchical fusion have the operators of single-level fusion
    pytest.param(name, fusion, marks=[pytest.mark.slow] if i else [])
    for name, row in combinations().items()
    for i, fusion in enumerate(row["fusion"])
    if not i or name not in ("hierarchical", "hybrid")
]


def network(strategy="single_level", fusion=None, encoder="resnet10", **options):
    torch.manual_seed(0)
    return build(strategy, encoder, fusion, MODALITIES, width=0.06, **options).eval()


def cases(count):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def session(path):
    return pytest.importorskip("onnxruntime").InferenceSession(str(path))


@pytest.mark.parametrize("with_present", [True, False])
@pytest.mark.parametrize(("strategy", "fusion"), PAIRS)
def test_onnx_says_what_eager_says_for_every_subset(strategy, fusion, with_present, tmp_path):
    pytest.importorskip("onnx")
    net, image = network(strategy, fusion, "cnn"), cases(8)
    export_onnx(net, tmp_path / "net.onnx", SIZE, with_present=with_present)
    runtime = session(tmp_path / "net.onnx")
    image = image if with_present else image * SUBSETS[:, :, None, None, None]
    for rows in (slice(0, 1), slice(3, 5), slice(1, 6), slice(0, 8)):
        given = {"image": image[rows].numpy(), "present": SUBSETS[rows].numpy()}
        given = {one.name: given[one.name] for one in runtime.get_inputs()}
        found = torch.from_numpy(runtime.run(["pred"], given)[0])
        torch.testing.assert_close(found, net(image[rows], SUBSETS[rows]), rtol=0, atol=1e-4)


def test_a_file_is_written_whole_and_leaves_the_network_in_its_mode(tmp_path):
    pytest.importorskip("onnx")
    net = network(encoder="cnn").train()
    export_onnx(net, tmp_path / "net.onnx", SIZE)
    assert net.training and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_the_onnx_file_says_what_it_is(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(network("decision"), tmp_path / "net.onnx", SIZE)
    about = {p.key: p.value for p in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert json.loads(about.pop("modalities")) == list(MODALITIES)
    assert about == {"num_classes": "2", "strategy": "decision"}


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "TOLERANCE", -1.0)
    with pytest.raises(NetworkError, match="must answer as the network does, within -1, found a difference of"):
        export_onnx(network(encoder="cnn"), tmp_path / "net.onnx", SIZE)
    assert not list(tmp_path.iterdir())


def test_onnx_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NetworkError, match=r"needs the package onnx, .* pip install 'mmfusion\[onnx\]'"):
        export_onnx(network(), tmp_path / "net.onnx", SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "fusion"), PAIRS)
def test_a_program_takes_other_batch_sizes_and_subsets(strategy, fusion):
    net, image = network(strategy, fusion), cases(8)
    module = export_program(net, SIZE).module()
    torch.testing.assert_close(module(image=image, present=SUBSETS), net(image, SUBSETS), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", combinations())
def test_every_form_with_a_shared_encoder_learned_absence_and_covariates(strategy, tmp_path):
    pytest.importorskip("onnxruntime")
    net = network(strategy, shared=True, absent="learned", covariates=2)
    export_onnx(net, tmp_path / "net.onnx", SIZE)  # each compares itself with the network before it is kept
    export_program(net, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name not in ("m3t", "resnet10")])
def test_every_encoder_in_every_form(encoder, tmp_path):
    pytest.importorskip("onnxruntime")
    size = (33, 31, 30) if encoder == "densenet121" else SIZE
    strategy = "attention" if "tokens" in ENCODERS[encoder].views else "single_level"
    net = build(strategy, encoder, None, MODALITIES[:2], width=0.06).eval()
    export_onnx(net, tmp_path / "net.onnx", size)
    export_program(net, size)


@pytest.mark.slow
def test_batch_norm_in_every_form(tmp_path):
    pytest.importorskip("onnxruntime")
    net = network(norm="batch")
    net.train()(torch.randn(3, 3, 36, 33, 34))  # running statistics that are not 0 and 1
    export_onnx(net, tmp_path / "net.onnx", (36, 33, 34))
    export_program(net, (36, 33, 34))


@pytest.mark.parametrize("strategy", ["single_level", "attention"])
def test_onnx_encodes_only_the_rows_that_are_there(strategy, tmp_path):
    """Read at the input of each encoder's first convolution, which becomes an output of the graph."""
    onnx = pytest.importorskip("onnx")
    export_onnx(network(strategy), tmp_path / "net.onnx", SIZE)
    model = onnx.load(str(tmp_path / "net.onnx"))
    stems = {weight.name for weight in model.graph.initializer if weight.dims[1:] == [1, 7, 7, 7]}
    first = [node.input[0] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in stems]
    assert len(first) == 3, first
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in first)
    runtime = pytest.importorskip("onnxruntime").InferenceSession(model.SerializeToString())
    present = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    rows = runtime.run(first, {"image": cases(2).numpy(), "present": present.numpy()})
    assert [len(one) for one in rows] == [2, 0, 1]
