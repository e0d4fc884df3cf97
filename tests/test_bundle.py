"""Writing bundles, packing models into them, and what a run begins with: overrides, seeds, one-sentence errors."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny_cohort import FAST

from mmfusion.bundle import TEMPLATE, begin, new_bundle, pack_model, run_config
from mmfusion.bundle.begin import _one_sentence, _restart_with_run_dir
from mmfusion.bundle.given import check_overrides, pairs, refuse_unknown
from mmfusion.cli import make_parser
from mmfusion.demo import GRID
from mmfusion.errors import CohortError, NetworkError, OptionError, OutputError
from mmfusion.files import read_rows, write_json
from mmfusion.options import OPTIONS, resolve
from mmfusion.predict import load_model

CONFIGS = TEMPLATE / "configs"
PROJECT = Path(__file__).parents[1]
PUBLISHED = {  # what each bundle was written with: mmfusion bundle new
    "input_fusion_classification": {"strategy": "input"},
    "feature_fusion_classification": {},
    "decision_fusion_classification": {"strategy": "decision", "fusion": "product"},
    "m3t_fusion_classification": {"encoder": "m3t"},
}


def options_of(name):
    """The plain data at the top of a configuration, in the order of the file."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    return yaml.safe_load(text[: text.index("# Pieces")])


# what is in the bundle


def test_train_lists_options_that_exist_and_its_networks_names_alone():
    listed = options_of("train")
    assert set(listed) - set(OPTIONS) == {"val_interval"} and listed.pop("device").startswith("$torch.device")
    given = {name: value for name, value in listed.items() if value is not None and name in OPTIONS}
    assert given == {"strategy": OPTIONS["strategy"].default, "encoder": OPTIONS["encoder"].default}
    text = (CONFIGS / "train.yaml").read_text()
    assert len(text.splitlines()) <= 110
    for name in ("epochs", "seed"):
        assert re.search(rf"^{name}: null +# {OPTIONS[name].default}$", text, flags=re.MULTILINE)


def test_options_that_a_configuration_does_not_list_count_too(tiny_cohort, tmp_path):
    given = FAST | {"encoder": "cnn", "width": 0.1, "epochs": 1, "weight_decay": 0.5, "system": "decision_fusion"}
    run_config("train", cohort=str(tiny_cohort), run_dir=str(tmp_path), **given, **{"train#optimizer#eps": 1e-7})
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["weight_decay"] == 0.5 and options["fusion"] == "product"
    assert options["given"]["weight_decay"] == {"value": 0.5, "from": "command line"}
    assert options["given"]["strategy"] == {"value": "decision", "from": "system decision_fusion"}
    assert json.loads((tmp_path / "configuration.json").read_text()) == {"train#optimizer#eps": 1e-7}


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_defaults_of_the_other_configurations(name):
    given = {key: value for key, value in options_of(name).items() if value is not None and key in OPTIONS}
    assert "torch.cuda.is_available()" in given.pop("device")  # networks take a GPU if there is one
    batch = {"batch_size": 8}  # needs less memory than in training
    assert given == {key: OPTIONS[key].default for key in given} | batch


def test_a_new_bundle_holds_the_options_of_its_study(tmp_path):
    given = {"modalities": ["pet", "t1"], "classes": ["0", "yes"], "strategy": "decision", "spacing": [3.0, 3.0, 4.0]}
    folder = new_bundle(tmp_path / "my_study", **given, losses={"unimodal": 0.5})
    text = (folder / "configs" / "train.yaml").read_text()
    options = yaml.safe_load(text[: text.index("# Pieces")])
    assert {name: options[name] for name in given} == given and options["losses"] == {"unimodal": 0.5}
    template = (CONFIGS / "train.yaml").read_text().splitlines()
    changed = [line for line in text.splitlines() if line not in template]
    assert len(changed) == 5 and "strategy: decision        # where the modalities are fused" in "\n".join(changed)
    network = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]
    assert network["inputs"]["image"]["channel_def"] == {"0": "pet", "1": "t1"}
    assert network["outputs"]["pred"]["channel_def"] == {"0": "0", "1": "yes"}
    page = (folder / "docs" / "README.md").read_text()
    assert (
        page.startswith("# My study\n")
        and "`image [B, 2, D, H, W]`" in page
        and "| modalities | pet, t1 |" in page
        and "{" not in page
    )
    assert (folder / "LICENSE").read_bytes() == (PROJECT / "LICENSE").read_bytes()


def test_new_bundle_refuses_what_cannot_be(tmp_path):
    with pytest.raises(OptionError, match="unknown option 'strategi'; did you mean 'strategy'"):
        new_bundle(tmp_path / "a", strategi="input")
    with pytest.raises(NetworkError, match="strategy 'single_level' takes fusion concat or .*, found 'joint'"):
        new_bundle(tmp_path / "a", fusion="joint")
    with pytest.raises(OptionError, match="classes takes at least two class labels, found yes"):
        new_bundle(tmp_path / "a", classes=["yes"])
    assert not (tmp_path / "a").exists()
    new_bundle(tmp_path / "a")
    with pytest.raises(OutputError, match="a is a bundle already, which may have been edited; choose a new folder"):
        new_bundle(tmp_path / "a")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bundles_are_what_is_written_anew(name, tmp_path):
    written, there = new_bundle(tmp_path / name, **PUBLISHED[name]), PROJECT / "bundles" / name
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    published = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert published - files <= {"models/model.pt", "models/model.json", "docs/embedded_study.yaml"}
    for path in files - {"docs/README.md", "configs/metadata.json"}:
        assert (written / path).read_bytes() == (there / path).read_bytes(), path


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_a_published_bundle_again_prepares_as_its_weights_were(name):
    """Whatever the defaults are by now: its options name what differs from them, and its page simulates by that."""
    folder = PROJECT / "bundles" / name
    trained = json.loads((folder / "models" / "model.json").read_text())["case"]
    given = yaml.safe_load((folder / "docs" / "embedded_study.yaml").read_text())
    usual = resolve({**GRID, "modalities": trained["modalities"]}, "case")
    differing = {key: value for key, value in trained.items() if value != usual[key]}
    assert {key: value for key, value in given.items() if key in trained} == differing
    page = (folder / "docs" / "README.md").read_text()
    (command,) = re.findall(r"^mmfusion (simulate .*)$", page, flags=re.MULTILINE)
    simulated = make_parser().parse_args(command.split()).suv_max or usual["suv_max"]
    assert simulated == trained["suv_max"]


def test_packing_a_run_makes_the_bundle_answer_as_the_run(tiny_run, tmp_path):
    bundle = new_bundle(tmp_path / "b")
    with pytest.raises(
        CohortError, match="the bundle .*b has no weights yet: train, then mmfusion bundle pack .*b RUN"
    ):
        load_model(bundle)
    (bundle / "models").mkdir()
    (bundle / "models" / "model.onnx").write_bytes(b"of earlier weights")
    weights = pack_model(bundle, tiny_run, dtype="float16")
    assert weights == bundle / "models" / "model.pt" and not (bundle / "models" / "model.onnx").exists()
    assert {value.dtype for value in torch.load(weights).values() if value.is_floating_point()} == {torch.float16}
    (about, packed), (same, network) = load_model(bundle), load_model(tiny_run)
    image, present = torch.rand(2, 3, 17, 19, 18), torch.tensor([[1, 1, 1], [0, 1, 1]]).bool()
    with torch.no_grad():
        torch.testing.assert_close(packed(image, present), network(image, present), atol=0.02, rtol=0)
    facts = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert replace(about, weights=same.weights) == same and about.weights != same.weights  # half precision
    assert facts["channel_def"] == {"0": "benign", "1": "malignant"}
    with pytest.raises(CohortError, match="has no configs/metadata.json: it is not a bundle"):
        pack_model(tmp_path, tiny_run)
    with pytest.raises(OutputError, match="models is read, and is the model of .*b itself; give the run folder"):
        pack_model(bundle, bundle / "models", dtype="float16")
    write_json({"required_packages_version": {"nibabel": "5.2"}}, bundle / "configs" / "metadata.json")
    before = weights.read_bytes()
    with pytest.raises(OutputError, match="b is a bundle of another program .* whose model is not replaced"):
        pack_model(bundle, tiny_run)
    assert weights.read_bytes() == before


# overrides


def test_pairs_are_read_as_fire_does():
    given = ["--config_file", "a.yaml", "--epochs=3", "--run-dir", "r", "--train#trainer#max_epochs", "1", "--amp"]
    assert pairs(given) == {
        "config_file": "a.yaml",
        "epochs": "3",
        "run_dir": "r",
        "train#trainer#max_epochs": "1",
        "amp": "",
    }
    assert pairs(["train", "--learning_rate", "-1"]) == {"learning_rate": "-1"}


@pytest.mark.parametrize("given", ["--epochs 3", "--train#trainer#max_epochs 1", "--imports#0 x", "--device=cpu"])
def test_overrides_that_name_something_pass(given):
    check_overrides(["--config_file", str(CONFIGS / "train.yaml"), "--meta_file", "m.json", *given.split()])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--learning_rte 5", "unknown option '--learning_rte'; did you mean '--learning_rate'"),
        ("--batch-sise=5", "unknown option '--batch_sise'; did you mean '--batch_size'"),
        ("--train#trainer#max_epoch 1", "unknown option '--train#trainer#max_epoch'. Known: --cohort"),
        ("--train#handlers#99 1", "unknown option '--train#handlers#99'"),
        ("--dataset_dir d", "option --dataset_dir follows from other options: give --cohort or --manifest instead"),
        ("--output_dir=d", "option --output_dir follows from other options: give --run_dir instead"),
    ],
)
def test_overrides_that_name_nothing_are_refused(given, words):
    with pytest.raises(OptionError) as error:
        check_overrides(["--config_file", str(CONFIGS / "train.yaml"), *given.split()])
    assert words in str(error.value)


def test_overrides_of_several_files_and_of_an_arguments_file(tmp_path):
    (tmp_path / "more.yaml").write_text("gradient_clip: 1.0\n")
    files = [str(CONFIGS / "train.yaml"), str(tmp_path / "more.yaml")]
    check_overrides(["--config_file", str(files), "--gradient_clip", "2", "--epochs", "1"])
    check_overrides(["--config_file", ",".join(files), "--gradient_clip", "2"])
    (tmp_path / "arguments.json").write_text(json.dumps({"config_file": files, "gradient_clip": 3, "epochz": 1}))
    with pytest.raises(OptionError, match="unknown option '--epochz'; did you mean '--epochs'"):
        check_overrides(["--args_file", str(tmp_path / "arguments.json"), "--gradient_clip", "2"])
    (tmp_path / "arguments.json").write_text(json.dumps({"config_file": files, "run": "runs/a"}))
    with pytest.raises(OptionError, match="MONAI keeps the name run .*: write run_dir in the args_file"):
        check_overrides(["--args_file", str(tmp_path / "arguments.json")])


def test_run_config_refuses_the_same(tmp_path):
    with pytest.raises(OptionError, match="unknown option 'learning_rte'; did you mean 'learning_rate'"):
        run_config("train", learning_rte=5)
    with pytest.raises(CohortError, match="no run folder is given"):
        run_config("train", **{"train#trainer#max_epochs": 1})
    refuse_unknown({"out": "o", "evaluator#amp": True}, {"out": None, "evaluator": {"amp": False}})


def test_errors_of_components_keep_their_one_sentence(tmp_path):
    with pytest.raises(CohortError, match="^give either --cohort COHORT") as error:
        run_config("train", run_dir=str(tmp_path))
    assert error.value.__cause__ is None


def test_other_errors_are_not_hidden(train, tmp_path):
    with pytest.raises(RuntimeError, match="max_lr"):
        train(tmp_path, **{"train#scheduler#max_lr": "much"})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"train#trainer#max_epochs": 3}, "max_epochs is 3, and the learning rate is planned for 2: give --epochs 3"),
        ({"val_interval": 0}, "val_interval takes a whole number from 1, found 0"),
        ({"train#inferer#_target_": "SlidingWindowInferer", "train#inferer#roi_size": 8}, "train#inferer is Sliding"),
        ({"validate#key_metric#negative_loss#kind": "auk"}, "unknown validation score 'auk'; did you mean 'auc'"),
        ({"settings#seed": 5}, "give --seed, --threads"),
        ({"folds": 2}, "add --fold N, or train all by mmfusion train"),
    ],
)
def test_overrides_without_their_effect_are_refused(train, tmp_path, override, words):
    with pytest.raises(OptionError, match=words):
        train(tmp_path, **override)


def test_another_score_and_another_beginning_are_used_and_recorded(train, tmp_path):
    score = {"auc": {"_target_": "mmfusion.training.ValidationScore", "kind": "auc"}}
    train(tmp_path, **{"epochs": 1, "encoder": "cnn", "validate#key_metric": score, "initialize": ["$print('begins')"]})
    (row,) = read_rows(tmp_path / "history.csv")
    assert float(row["validation_loss"]) > 0 and 0 <= float(row["validation_auc"]) <= 1
    recorded = json.loads((tmp_path / "configuration.json").read_text())
    assert recorded["validate#key_metric#auc#kind"] == "auc" and recorded["initialize#0"] == "$print('begins')"


def test_begin_sets_seed_and_threads_elsewhere():
    begin(seed=7, threads=1)
    first = torch.rand(3)
    begin(seed=7)
    assert torch.equal(first, torch.rand(3)) and torch.get_num_threads() == 1
    begin()
    assert not torch.equal(first, torch.rand(3))


def test_trace_is_one_sentence_where_the_cause_is_known(capsys):
    try:
        try:
            raise CohortError("runs/a has no model.json")
        except CohortError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error
    except RuntimeError as error:
        _one_sentence(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: runs/a has no model.json\n"
    _one_sentence(ValueError, ValueError("a bug"), None)
    assert capsys.readouterr().err == "ValueError: a bug\n"


def test_run_is_another_word_for_run_dir(monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda program, command: started.append(command))
    command = ["python", "-m", "monai.bundle", "run", "--run", "runs/a", "--run_dir=b", "--run=c", "--run_id", "run"]
    _restart_with_run_dir(command)
    assert started == [[*command[:4], "--run_dir", "runs/a", "--run_dir=b", "--run_dir=c", "--run_id", "run"]]
    _restart_with_run_dir(started[0])
    assert len(started) == 1


# text that MONAI would execute


@pytest.mark.parametrize("sign", ["$", "@", "%"])
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"classes": ["no", "{}yes"]}, "option classes"),
        ({"modalities": ["ct", "{}mr"]}, "option modalities"),
        ({"encoder_options": {"plane": ["{}axial"]}}, "option encoder_options"),
        ({"fusion_options": {"{}rank": 2}}, "option fusion_options"),
        ({"encoder": {"{}ct": "cnn"}}, "option encoder"),
    ],
)
def test_text_that_monai_would_execute_is_refused(options, what, sign, tmp_path):
    def signed(value):
        if isinstance(value, dict):
            return {signed(name): signed(one) for name, one in value.items()}
        return [signed(one) for one in value] if isinstance(value, list) else str(value).replace("{}", sign)

    with pytest.raises(OptionError, match=rf"^{what} has '[{sign}]\w+', which begins with [{sign}]: .* choose another"):
        new_bundle(tmp_path / "b", **{name: signed(value) for name, value in options.items()})
    with pytest.raises(OptionError, match="the name of the bundle has"):
        new_bundle(tmp_path / f"{sign}b")
    assert not list(tmp_path.iterdir())


def test_a_name_that_says_what_to_call_is_refused(tmp_path):
    with pytest.raises(OptionError, match="'_target_', which begins with _"):
        new_bundle(tmp_path / "b", encoder_options={"depth": {"_target_": "os.getcwd"}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["classes", "modalities"])
def test_a_run_with_names_that_monai_would_execute_is_not_packed(name, tiny_run, tmp_path):
    run, bundle = shutil.copytree(tiny_run, tmp_path / "run"), new_bundle(tmp_path / "b")
    facts = json.loads((run / "model.json").read_text())
    facts[name][0] = "$__import__('os')"
    if name == "modalities":
        facts["case"]["modalities"][0] = facts[name][0]
    (run / "model.json").write_text(json.dumps(facts))
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(OptionError, match="begins with [$]: .* itself predicts; .* rename this in the manifest"):
        pack_model(bundle, run)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MONAI's own client
def test_monais_federated_client_starts_twice_in_one_process(tiny_cohort, tmp_path):
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems

    given = FAST | {"encoder": "cnn", "width": 0.1, "cohort": str(tiny_cohort)}
    for site in ("a", "a", "b"):
        client = MonaiAlgo(
            bundle_root=str(TEMPLATE),
            config_train_filename="configs/train.yaml",
            config_evaluate_filename=None,
            local_epochs=1,
            send_weight_diff=False,
            train_kwargs=given | {"run_dir": str(tmp_path / site)},
        )
        client.initialize(extra={ExtraItems.CLIENT_NAME: site})
        client.train(data=client.get_weights())
        assert client.get_weights().weights
        client.finalize()
