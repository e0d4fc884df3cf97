"""The rules of MONAI's model zoo, held to each published bundle and to one written anew.

The zoo's own checks are its `ci/verify_bundle.py` and its CONTRIBUTING.md; they are called here with the arguments
that they are called with there.
"""

import inspect
import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import monai.bundle
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, create_workflow, verify_net_in_out
from monai.data import load_net_with_metadata
from tiny_cohort import FAST

import mmfusion
from mmfusion.bundle import new_bundle, pack_model, run_config
from mmfusion.bundle.given import check_overrides, config_files, pairs
from mmfusion.cli import make_parser
from mmfusion.predict import load_model

PROJECT = Path(__file__).parents[1]
BUNDLES = sorted(path.name for path in (PROJECT / "bundles").iterdir() if path.is_dir())
NEW = {"modalities": ["ct", "pet", "mr"], "classes": ["benign", "malignant"], "strategy": "attention"}
SMALL_M3T = {"cnn": "resnet10", "stem_channels": 4, "layers": 1, "hidden": 64, "positions": 16}


@pytest.fixture(scope="module", params=[*BUNDLES, "my_own_classification"])
def published(request, tmp_path_factory):
    """Each of the published bundles, and one written for a new study."""
    if request.param in BUNDLES:
        return PROJECT / "bundles" / request.param
    return new_bundle(tmp_path_factory.mktemp("new") / request.param, **NEW)


@pytest.fixture(scope="module")
def trained(published, tiny_cohort, tmp_path_factory):
    """A copy of a bundle, and a run trained with it in a second, whose weights it gets if it has none yet."""
    folder = tmp_path_factory.mktemp("model zoo")
    bundle = Path(shutil.copytree(published, folder / published.name))
    given = {name: value for name, value in FAST.items() if name != "encoder"} | {"epochs": 1}
    if "m3t" in bundle.name:
        given["encoder_options"] = SMALL_M3T
    run = folder / "run"
    run_config("train", bundle, cohort=str(tiny_cohort), run_dir=str(run), **given)
    if not (bundle / "models").exists():
        pack_model(bundle, run, dtype="float16")
    return bundle, run


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    """A bundle's logging.conf replaces the handlers of the root logger."""
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    yield
    root.setLevel(level)


def files_of(bundle):
    """As the zoo's scripts name them."""
    config, meta = bundle / "configs" / "inference.yaml", bundle / "configs" / "metadata.json"
    return {"config_file": str(config), "meta_file": str(meta), "bundle_root": str(bundle)}


# files


def test_layout(published):
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    configs = ("metadata.json", "logging.conf", "train.yaml", "multi_gpu_train.yaml", "evaluate.yaml", "inference.yaml")
    assert files >= {"LICENSE", "docs/README.md", *(f"configs/{name}" for name in configs)}
    assert {name.split("/")[0] for name in files} <= {"LICENSE", "docs", "configs", "models"}
    assert not [name for name in files if name.endswith(".py")]
    sizes = [path.stat().st_size for path in published.rglob("*") if path.is_file()]
    assert sum(sizes) < 10e6  # the zoo takes files of up to 25 MB; we promise 10 for all
    assert (published / "LICENSE").read_bytes() == (PROJECT / "LICENSE").read_bytes()


def test_metadata_have_what_the_schema_requires(published):
    text, versions = {"type": "string", "minLength": 1}, {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
    tensor = {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
    }
    formats = {
        name: {"type": "object", "required": [entry], "properties": {entry: tensor}}
        for name, entry in (("inputs", "image"), ("outputs", "pred"))
    }
    schema = {
        "type": "object",
        "properties": {
            **dict.fromkeys(("schema", "name", "task", "description", "authors", "copyright"), text),
            **dict.fromkeys(("version", "monai_version", "pytorch_version", "numpy_version"), versions),
            "changelog": {"type": "object", "additionalProperties": text},
            "required_packages_version": {"type": "object", "additionalProperties": versions, "minProperties": 1},
            "network_data_format": {"type": "object", "required": ["inputs", "outputs"], "properties": formats},
        },
    }
    schema["required"] = list(schema["properties"])
    metadata = json.loads((published / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, schema)
    assert metadata["version"] in metadata["changelog"] and "optional_packages_version" not in metadata
    assert metadata["required_packages_version"]["mmfusion"] == mmfusion.__version__


def test_configurations_have_the_keys_that_the_zoo_asks_for(published):
    inference, train = (
        yaml.safe_load((published / "configs" / f"{n}.yaml").read_text()) for n in ("inference", "train")
    )
    assert inference.keys() >= {"bundle_root", "device", "network_def", "inferer", "output_dir"}
    assert train.keys() >= {"bundle_root", "device", "dataset_dir", "output_dir", "val_interval"}
    assert train["train"].keys() >= {"trainer", "dataset", "handlers", "preprocessing", "inferer"}
    assert train["validate"].keys() >= {"evaluator", "dataset", "handlers", "preprocessing", "inferer", "key_metric"}
    assert "max_epochs" in train["train"]["trainer"] and "data" in train["train"]["dataset"]
    (validation,) = (one for one in train["train"]["handlers"] if one["_target_"] == "ValidationHandler")
    assert validation["interval"] == "@val_interval" and "data" in train["validate"]["dataset"]


def test_inference_stands_alone(published):
    assert "%" not in (published / "configs" / "inference.yaml").read_text()


# the network


@pytest.mark.parametrize(("n", "p"), [(1, 1), (2, 1), (1, 2)])
def test_network_takes_and_gives_what_the_metadata_say(trained, n, p):
    bundle, _ = trained
    verify_net_in_out(net_id="network_def", device="cpu", n=n, p=p, **files_of(bundle))


def test_checkpoint_becomes_torchscript_with_the_same_logits(trained):
    bundle, _ = trained
    weights, script = bundle / "models" / "model.pt", bundle / "models" / "verify_model.ts"
    with torch.jit.optimized_execution(False):
        ckpt_export(net_id="network_def", filepath=str(script), ckpt_file=str(weights), **files_of(bundle))
    scripted, metadata, others = load_net_with_metadata(str(script), more_extra_files=("inference.json",))
    assert "network_data_format" in metadata and "bundle_root" in json.loads(others["inference.json"])
    model, eager = load_model(bundle)
    image = torch.rand(3, len(model.modalities), *model.case["size"], generator=torch.Generator().manual_seed(2))
    image[1, 0] = 0  # without presence a channel of zeros is absent
    present = (image != 0).flatten(2).any(2)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # for two answers that takes longer than all else
        wanted = eager(image, present)
        torch.testing.assert_close(scripted(image, present), wanted)
        torch.testing.assert_close(scripted(image), wanted)


# workflows


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_workflows_have_all_properties(trained, tiny_cohort, tmp_path, name):
    bundle, run = trained
    if name == "train":
        given = {"cohort": str(tiny_cohort), "run_dir": str(tmp_path), "device": "cpu", "width": 0.125}
    else:
        given = {"run_dir": str(run), "device": "cpu"}
    kind = "train" if name == "train" else "inference"
    files = {**files_of(bundle), "config_file": str(bundle / "configs" / f"{name}.yaml")}
    workflow = ConfigWorkflow(logging_file=False, workflow_type=kind, **files, **given)
    workflow.initialize()
    assert workflow.check_properties() == [] and workflow.version == "0.1.0"
    assert isinstance(workflow.network_def, torch.nn.Module) and Path(workflow.dataset_dir).is_dir()


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_inference_has_all_properties_before_it_is_given_any_data(trained):
    bundle, _ = trained
    logs = str(bundle / "configs" / "logging.conf")
    workflow = create_workflow(workflow_type="inference", logging_file=logs, **files_of(bundle))
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, torch.nn.Module) and len(workflow.dataset) == 0
    assert logging.getLogger().handlers[0].level == logging.WARNING


# the page


def test_the_page_has_the_sections_of_the_zoo(published):
    page = (published / "docs" / "README.md").read_text()
    asked = ("Model description", "Data", "Preprocessing", "Performance", "Commands", "Limitations", "Citation")
    for heading in (*asked, "Intended use", "License"):
        assert f"\n## {heading}\n" in page
    assert re.match(r"# [A-Z].* classification\n", page) and "{" not in page


def commands_of(page, bundle):
    """The lines of the code blocks of a page, as lists of words, with BUNDLE being a bundle."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        [word.replace("BUNDLE", str(bundle)) for word in shlex.split(line, comments=True)] for line in lines if line
    ]


def check_command(words):
    """Whether a command could be typed so: its options exist, and the configurations that it names."""
    if words[0] == "mmfusion":
        _, unknown = make_parser().parse_known_args(words[1:])
        assert not unknown, words
        return
    assert "monai.bundle" in words, words
    command, *given = words[words.index("monai.bundle") + 1 :]
    if command == "run":
        check_overrides([("--run_dir" if one == "--run" else one) for one in given if one != "options.yaml"])
        return
    options, config = inspect.signature(getattr(monai.bundle, command)).parameters, {"bundle_root"}
    assert pairs(given).keys() <= options.keys() | config, words
    assert all(Path(name).is_file() for name in config_files(pairs(given)))


def test_the_commands_of_the_page_exist(published):
    commands = commands_of(published / "docs" / "README.md", published)
    assert len(commands) > 6
    for words in commands:
        check_command(words)
