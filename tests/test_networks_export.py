"""Exported networks answer as the network itself does."""

import itertools
import json

import pytest
import torch

from mmfusion.errors import NetworkError
from mmfusion.networks import build, combinations
from mmfusion.networks import export as subject
from mmfusion.networks.export import export_onnx, export_program, export_torchscript

SIZE = (17, 21, 19)
MODALITIES = ("ct", "pet", "mr")
SUBSETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
PAIRS = [
    pytest.param(name, fusion, marks=[pytest.mark.slow] if name in ("hierarchical", "hybrid") and i else [])
    for name, row in combinations().items()
    for i, fusion in enumerate(row["fusion"])
]


def network(strategy="single_level", fusion=None, **options):
    torch.manual_seed(0)
    return build(strategy, "resnet10", fusion, MODALITIES, width=0.06, **options).eval()


def cases(count):
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def session(path):
    return pytest.importorskip("onnxruntime").InferenceSession(str(path))


@pytest.mark.parametrize("with_present", [True, False])
@pytest.mark.parametrize(("strategy", "fusion"), PAIRS)
def test_onnx_says_what_eager_says_for_every_subset(strategy, fusion, with_present, tmp_path):
    pytest.importorskip("onnx")
    net, image = network(strategy, fusion), cases(8)
    export_onnx(net, tmp_path / "net.onnx", SIZE, with_present=with_present)
    runtime = session(tmp_path / "net.onnx")
    image = image if with_present else image * SUBSETS[:, :, None, None, None]
    for rows in (slice(0, 1), slice(3, 5), slice(1, 6), slice(0, 8)):
        given = {"image": image[rows].numpy(), "present": SUBSETS[rows].numpy()}
        given = {one.name: given[one.name] for one in runtime.get_inputs()}
        found = torch.from_numpy(runtime.run(["pred"], given)[0])
        torch.testing.assert_close(found, net(image[rows], SUBSETS[rows]), rtol=0, atol=1e-4)


def test_torchscript_is_written_whole_and_leaves_the_network_in_its_mode(tmp_path):
    net = network().train()
    export_torchscript(net, tmp_path / "net.ts", SIZE)
    assert net.training and [p.name for p in tmp_path.iterdir()] == ["net.ts"]


def test_the_onnx_file_says_what_it_is(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(network("decision"), tmp_path / "net.onnx", SIZE)
    about = {p.key: p.value for p in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert json.loads(about.pop("modalities")) == list(MODALITIES)
    assert about == {"num_classes": "2", "strategy": "decision"}


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "TOLERANCE", -1.0)
    with pytest.raises(NetworkError, match="must answer as the network does, within -1, found a difference of"):
        export_torchscript(network(), tmp_path / "net.ts", SIZE)
    assert not list(tmp_path.iterdir())


def test_onnx_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NetworkError, match=r"needs the package onnx, .* pip install 'mmfusion\[onnx\]'"):
        export_onnx(network(), tmp_path / "net.onnx", SIZE)


def test_a_program_takes_other_batch_sizes_and_subsets():
    net, image = network(), cases(8)
    module = export_program(net, SIZE).module()
    torch.testing.assert_close(module(image=image, present=SUBSETS), net(image, SUBSETS), rtol=0, atol=1e-4)
