"""Names to networks: what goes together, what does not, and what is said then."""

import inspect
import subprocess
import sys

import pytest
import torch

import mmfusion.networks as networks
from mmfusion.errors import NetworkError
from mmfusion.networks import build, combinations
from mmfusion.options import OPTIONS


def test_the_table_of_combinations():
    table = combinations()
    assert {name: row["fusion"][0] for name, row in table.items()} == {
        "input": "concat",
        "single_level": "concat",
        "hierarchical": "concat",
        "attention": "joint",
        "decision": "mean",
        "hybrid": "concat",
    }
    assert table["hierarchical"]["fusion"] == table["single_level"]["fusion"] == table["hybrid"]["fusion"]
    assert all(set(row["encoders"]) <= set(OPTIONS["encoder"].choices) for row in table.values())
    assert table["single_level"]["encoders"] == OPTIONS["encoder"].choices  # every encoder gives a vector
    assert (*table, "covariates") == OPTIONS["strategy"].choices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder": "densenet122"},
            "unknown encoder 'densenet122'; did you mean 'densenet121'? Known: resnet10, ",
        ),
        ({"strategy": "decison"}, "unknown strategy 'decison'; did you mean 'decision'?"),
        ({"fusion": "gatd"}, "unknown fusion 'gatd'; did you mean 'gated'? Known: concat, "),
        ({"norm": "grup"}, "unknown norm 'grup'; did you mean 'group'? Known: group, batch, instance"),
        ({"strategy": "input", "fusion": "gated"}, "strategy 'input' takes fusion concat, found 'gated'"),
        (
            {"strategy": "decision", "fusion": "concat"},
            "strategy 'decision' takes fusion mean",
        ),
        ({"fusion": "mean"}, "strategy 'single_level' takes fusion concat or add or "),
        (
            {"encoder": {"ct": "cnn", "pet": "cnn"}},
            "encoder must name one for each of ct, pet, mr, found {'ct': 'cnn', 'pet': 'cnn'}",
        ),
        (
            {"encoder": {"ct": "cnn", "pet": "cnn", "mr": "cnn"}, "shared": True},
            "one encoder is shared: give one encoder name, found one for each modality",
        ),
        ({"strategy": "hierarchical", "encoder": "vit"}, "takes an encoder that gives a pyramid of maps (resnet10 or "),
        (
            {"encoder": "slices", "spatial_dims": 2},
            "encoder 'slices' takes volumes (spatial_dims 3), found spatial",
        ),
        (
            {"strategy": "hierarchical", "encoder": {"ct": "resnet10", "pet": "resnet18", "mr": "cnn"}},
            "strategy 'hierarchical' needs encoders with the same channels at each level, found ",
        ),
        (
            {"strategy": "hybrid", "losses": {}},
            "nothing trains the classifiers of the modalities that hybrid fusion hears: add the loss 'unimodal' or",
        ),
        ({"strategy": "decision", "fusion": "majority", "losses": {}}, "that decision fusion hears"),
        (
            {"encoder": {"ct": "cnn", "pet": "cnn", "mr": "cnn"}, "encoder_options": {"kernel": 5}},
            "encoder_options are a table for each of ct, pet, mr, found 'kernel'",
        ),
        (
            {"strategy": "hierarchical", "fusion": "tensor", "modalities": ("ct", "pet"), "width": 0.5},
            "the convolution behind it would have ",
        ),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, found 4"),
        ({"covariates": -1}, "covariates must be a count, found -1"),
        ({"absent": "learnt"}, "unknown absent 'learnt'; did you mean 'learned'?"),
        ({"decision": "meen"}, "unknown decision 'meen'; did you mean 'mean'?"),
        ({"conditioning": "films"}, "unknown conditioning 'films'; did you mean 'film'?"),
        ({"losses": {"unimodel": 1}}, "unknown loss 'unimodel'; did you mean 'unimodal'?"),
        ({"losses": {"unimodal": -1}}, "the weight of loss 'unimodal' must be at least 0, found -1"),
        ({"strategy": "input", "losses": {"similarity": 1}}, "loss 'similarity' needs strategy single_level or "),
        ({"losses": {"shared_specific": 1}}, "loss 'shared_specific' needs fusion 'shared_specific', found 'concat'"),
        ({"losses": {"kl": 1}}, "loss 'kl' needs head 'bayesian', found 'linear'"),
        ({"fusion": "low_rank", "fusion_options": {"rnk": 2}}, "unknown low_rank option 'rnk'; did you mean 'rank'?"),
        ({"fusion_options": {"rank": 2}}, "fusion 'concat' has no options, found 'rank'"),
        ({"modalities": "ct"}, "modalities must be a list of at least one name, each once, found 'ct'"),
        ({"modalities": ()}, "found ()"),
        ({"modalities": ("ct", "ct")}, "found ('ct', 'ct')"),
        ({"num_classes": 1}, "num_classes must be at least 2, found 1"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), found 1.0"),
        ({"width": 0}, "width must be positive, found 0"),
        (
            {"encoder_options": {"stem_strid": 1}},
            "unknown resnet10 option 'stem_strid'; did you mean 'stem_stride'?",
        ),
        (
            {"encoder": "densenet121", "encoder_options": {"x": 1}},
            "encoder 'densenet121' has no options, found 'x'",
        ),
        (
            {"encoder": "m3t", "encoder_options": {"cnn": "resnet5"}},
            "unknown m3t option cnn 'resnet5'; did you mean ",
        ),
        (
            {"encoder": "m3t", "encoder_options": {"layers": -1}},
            "m3t option layers must be at least 0, found -1",
        ),
        (
            {"encoder": "m3t", "encoder_options": {"stem_kernel": 4}},
            "m3t option stem_kernel must be odd, found 4",
        ),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(NetworkError) as error:
        build(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_modalities_and_classes(count):
    net = build(modalities=[f"m{i}" for i in range(count)], num_classes=4, width=0.06)
    assert net(torch.randn(2, count, 9, 8, 7)).shape == (2, 4)


def test_width_scales_the_parameters():
    counts = [sum(p.numel() for p in build(width=w).parameters()) for w in (0.125, 0.25, 1.0)]
    assert counts[0] < 0.3 * counts[1] < 0.03 * counts[2]


def test_encoder_options_reach_the_encoder():
    net = build(width=0.06, encoder_options={"stem_stride": 1})
    assert all(encoder.conv1.stride == (1, 1, 1) for encoder in net.encoders)


def test_public_surface():
    assert networks.__all__ == [
        "build",
        "combinations",
        "FusionNetwork",
        "FusionOutput",
        "MultiPlaneSliceEncoder",
        "Uncertainty",
        "export_onnx",
        "export_program",
        "for_inference",
        "load_medicalnet",
        "m3t",
        "predict_with_uncertainty",
    ]
    assert all(inspect.getdoc(getattr(networks, name)) for name in networks.__all__)


@pytest.mark.slow
def test_import_warns_of_nothing():
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import mmfusion.networks"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
