"""The federated example: who counts for which weight, what the sites say in numbers, and a real simulation."""

import copy
import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from tiny_cohort import FAST, GRID, MODALITIES, OPTIONS, write_scans, write_tiny_cohort

from mmfusion.errors import MmfusionError, OptionError
from mmfusion.networks import build
from mmfusion.predict import infer, load_model, probabilities
from mmfusion.prepare import open_cohort, prepare_cohort
from mmfusion.training import ValidationScore, open_study
from mmfusion.transforms import LoadPreparedCased

FEDERATED = Path(__file__).parents[1] / "examples" / "federated"
sys.path.insert(0, str(FEDERATED))  # as a script of that folder sees its neighbors; so these imports come after it

from agreement import Agreement, read_agreement, write_agreement  # noqa: E402
from averaging import average, pooled, reach  # noqa: E402
from judging import NUMBERS, counted, judged, validation_loss  # noqa: E402

SMALL = {"encoder": "cnn", "width": 0.25}
SIZE = (17, 19, 18)
ALL = "ct pet mr"
AGREED = Agreement(MODALITIES, ("benign", "malignant"), 2, options={**SMALL, **GRID})


def small_network(seed=0, **options):
    torch.manual_seed(seed)
    return build(**{**SMALL, **options})


# who can change what


def test_a_case_without_pet_reaches_neither_its_encoder_nor_its_columns_of_the_classifier():
    reached = reach(small_network(), SIZE, ["ct mr"])["ct mr"]
    alone = {name for name, there in reached.items() if not there.any()}
    assert alone == {name for name in reached if name.split(".")[:2] in (["encoders", "1"], ["standardize", "1"])}
    weight = reached["classifier.1.weight"]  # [K, M F], the modalities side by side
    columns = weight.shape[1] // 3
    assert weight[:, :columns].all() and weight[:, -columns:].all() and not weight[:, columns:-columns].any()


@pytest.mark.parametrize("strategy", ["input", "single_level", "hierarchical", "attention", "decision", "hybrid"])
def test_a_case_with_all_modalities_reaches_every_layer(strategy):
    reached = reach(small_network(strategy=strategy), (32, 35, 33), [ALL])[ALL]
    assert [name for name, there in reached.items() if not there.any()] == []
    taps = "mixers.3.0.weight"  # at the coarsest level some taps of the convolution see padding only
    assert [name for name, there in reached.items() if not there.all() and name != taps] == []


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet10", "densenet121"])
def test_a_small_map_behind_rectifiers_hides_nothing(encoder):
    network = small_network(encoder=encoder, width=0.125)
    reached = reach(network, (34, 38, 36), ["ct", "ct mr", ALL])
    for name in (name for name in reached[ALL] if name.startswith("encoders.0.")):
        assert torch.equal(reached["ct"][name], reached[ALL][name]) and reached["ct"][name].any(), name
        assert torch.equal(reached["ct mr"][name], reached[ALL][name]), name


def test_a_learned_vector_for_an_absent_modality_is_reached_by_the_cases_that_lack_it():
    reached = reach(small_network(absent="learned"), SIZE, ["ct mr", ALL])
    assert reached["ct mr"]["place.0.absent"].any(1).tolist() == [False, True, False]
    assert not reached[ALL]["place.0.absent"].any()


def test_finding_out_changes_neither_the_network_nor_the_random_numbers():
    network = small_network()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    reach(network, SIZE, ["ct"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and network.training


# the average


def test_each_value_is_averaged_over_the_cases_that_could_change_it():
    reached = {"ct": {"w": torch.tensor([True, False, False])}, "ct pet": {"w": torch.tensor([True, True, False])}}
    sent = {"a": {"w": torch.tensor([1.0, 2.0, 3.0])}, "b": {"w": torch.tensor([5.0, 6.0, 7.0])}}
    cases = {"a": {"ct": 3}, "b": {"ct": 1, "ct pet": 4}}
    expected = [(3 * 1 + 5 * 5) / 8, 6, (3 * 3 + 5 * 7) / 8]  # the last one: no case can, so all cases count
    assert average(sent, cases, reached)["w"].tolist() == expected


def test_a_site_without_pet_does_not_hold_the_pet_encoder_back():
    network = small_network()
    here, there = network.state_dict(), small_network(1).state_dict()
    reached = reach(network, SIZE, ["ct mr", ALL])
    out = average({"with": there, "without": here}, {"with": {ALL: 2}, "without": {"ct mr": 6}}, reached)
    for name in (name for name in here if name.startswith("encoders.")):
        expected = there[name] if name.startswith("encoders.1.") else 0.25 * there[name] + 0.75 * here[name]
        assert torch.allclose(out[name], expected, atol=1e-6), name


def test_running_variances_become_that_of_all_cases_together():
    values = {"a": np.random.default_rng(0).normal(0, 1, (40, 5)), "b": np.random.default_rng(1).normal(3, 2, (10, 5))}
    sent = {
        site: {
            "n.running_mean": torch.tensor(x.mean(0)),
            "n.running_var": torch.tensor(x.var(0)),
            "n.num_batches_tracked": torch.tensor(len(x)),
        }
        for site, x in values.items()
    }
    reached = {ALL: {name: torch.ones(value.shape, dtype=torch.bool) for name, value in sent["a"].items()}}
    out = average(sent, {"a": {ALL: 40}, "b": {ALL: 10}}, reached)
    together = np.concatenate(list(values.values()))
    assert np.allclose(out["n.running_mean"], together.mean(0)) and np.allclose(out["n.running_var"], together.var(0))
    assert out["n.num_batches_tracked"].item() == 40


def test_the_order_in_which_sites_answer_does_not_matter():
    sites = {name: small_network(number).state_dict() for number, name in enumerate("abc")}
    cases = {name: {ALL: 3 + number} for number, name in enumerate("abc")}
    reached = reach(small_network(), SIZE, [ALL])
    one, other = (average({name: sites[name] for name in order}, cases, reached) for order in ("abc", "cab"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_priors_of_the_sites_together_are_the_shares_of_all_cases():
    numbers = {
        "a": {"cases": {ALL: 6, "ct": 2}, "target_prior": [0.25, 0.75]},
        "b": {"cases": {"ct": 2}, "target_prior": [1.0, 0.0]},
    }
    assert pooled(numbers, "target_prior") == pytest.approx([0.4, 0.6])


# what a site says


@pytest.fixture(scope="module")
def study(tiny_cohort, tmp_path_factory):
    return open_study(tmp_path_factory.mktemp("federated") / "run", cohort=tiny_cohort, validation_share=0.4, **SMALL)


@pytest.fixture(scope="module")
def said(study):
    """The network's logits and labels of the validation cases, and what the site makes of them."""
    network, load = small_network(), LoadPreparedCased(study.modalities, study.cohort.modalities)
    loader = DataLoader(Dataset(study.items("validation"), load), batch_size=4)
    label = torch.tensor([item["label"] for item in study.items("validation")])
    return infer(network, loader), label, judged(network, study, loader, "cpu")


def test_a_site_counts_its_training_cases_by_their_modalities(study):
    numbers = counted(study)
    assert sum(numbers["cases"].values()) == len(study.cases("train")) and numbers["cases"][ALL] > 0
    assert numbers["target_prior"] == study.class_shares and numbers["training_prior"] == pytest.approx([0.5, 0.5])


def test_sites_add_up_to_the_validation_loss_of_all_cases(said):
    logits, label, numbers = said
    half = {"a": numbers, "b": {name: (2 * np.array(value)).tolist() for name, value in numbers.items()}}
    score = ValidationScore()
    for _ in range(3):
        score.update((logits, label))
    assert validation_loss(half) == pytest.approx(-score.compute(), rel=1e-5)


def test_the_threshold_is_the_prevalence_at_all_sites():
    assert AGREED.model((0.5, 0.5), (0.7, 0.3)).threshold == 0.3
    assert Agreement(MODALITIES, ("a", "b", "c"), 1, options=SMALL).model().threshold is None
    with pytest.raises(OptionError, match="the threshold of a federation is the prevalence"):
        Agreement(MODALITIES, ("a", "b"), 1, options={**SMALL, "threshold_rule": "youden"})


def test_a_site_without_pet_prepares_with_an_empty_column(tmp_path):
    manifest = write_scans(tmp_path, {"A": ["ct", "mr"], "B": ["ct"]})
    head, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{head},pet", *(f"{row}," for row in rows)]))
    cohort = prepare_cohort(manifest, tmp_path / "cohort", modalities=list(MODALITIES), workers=1, **GRID)
    assert cohort.modalities == MODALITIES and cohort.count("failed") == 0
    assert [one.modalities for one in cohort.cases] == [("ct", "mr"), ("ct",)]


# the agreement


def test_an_agreement_is_read_as_it_was_written(tmp_path):
    assert read_agreement(write_agreement(AGREED, tmp_path / "agreement.yaml")) == AGREED


def test_the_example_is_an_agreement_that_the_bundle_understands():
    given = read_agreement(FEDERATED / "agreement.yaml").overrides()
    assert given["size"] == [40, 48, 40] and given["epochs"] == given["patience"] == 24
    assert given["ct_window"] == OPTIONS["ct_window"]  # defaults too, so that no site prepares otherwise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": None}, "agreement.yaml has no rounds; the sites must agree on modalities, classes and rounds"),
        ({"rounds": -1}, "rounds and local_epochs start at 1, found -1 and 1"),
        ({"widht": 1.0}, "unknown option 'widht'; did you mean 'width'?"),
        ({"head": "ridge"}, "the head RidgeHead is fitted on cases of all sites at once"),
        ({"strategy": "decision", "fusion": "stacking"}, "StackingRule is fitted on all validation cases at once"),
    ],
)
def test_an_agreement_that_cannot_be_kept_is_refused(tmp_path, change, message):
    path = write_agreement(AGREED, tmp_path / "agreement.yaml")
    path.write_text(path.read_text() + "".join(f"{name}: {value or ''}\n" for name, value in change.items()))
    with pytest.raises(OptionError, match=message):
        read_agreement(path).overrides()


# NVFLARE


@pytest.fixture(scope="module")
def nvflare():
    """NVFLARE, which the extra ``federated`` installs."""
    reason = "NVFLARE is not installed: pip install -c examples/federated/constraints.txt '.[federated]'"
    return pytest.importorskip("nvflare.recipe", reason=reason)


def message(data, numbers):
    from nvflare.apis.dxo import DXO, DataKind

    return DXO(DataKind.WEIGHTS, data=data, meta={"numbers": numbers}).to_shareable()


def test_the_guard_lets_nothing_but_weights_and_numbers_out(nvflare, tmp_path):
    from nvflare.apis.filter import ContentBlockedException
    from server import OnlyNumbers

    guard = OnlyNumbers(str(write_agreement(AGREED, tmp_path / "a.yaml")), str(tmp_path / "site" / "sent.jsonl"))
    weights, numbers = AGREED.initial().state_dict(), {name: {"ct": 3} for name in NUMBERS}
    for data, also, text in (
        ({**weights, "image": torch.zeros(17, 19, 18)}, numbers, "not the weights of the agreed network: image"),
        ({**weights, "classifier.1.bias": torch.zeros(5)}, numbers, "agreed network: classifier.1.bias"),
        (weights, {**numbers, "cases": {"ct": "S01"}}, "numbers must be cases, training_prior, "),
        (weights, {**numbers, "subjects": 3}, "found cases, .* subjects"),
    ):
        with pytest.raises(ContentBlockedException, match=text):
            guard.process(message(data, also), None)
    assert not (tmp_path / "site").exists()
    guard.process(message(weights, numbers), None)
    line = json.loads((tmp_path / "site" / "sent.jsonl").read_text())
    assert set(line["weights"]) == set(weights) and line["meta"]["numbers"] == numbers


def test_a_path_with_a_space_is_refused(nvflare, tmp_path):
    from federate import federation

    with pytest.raises(OptionError, match="NVFLARE cannot take paths with spaces, found '.*my run'"):
        federation(AGREED, {"north": tmp_path}, tmp_path / "my run")


@pytest.fixture(scope="module")
def simulation(nvflare, tmp_path_factory):
    """A real run in the simulator: three sites, of which ``south`` has no PET at all; and what each of them sent."""
    from federate import federation, simulate
    from federated_recorder import Recorder

    root = tmp_path_factory.mktemp("federation")
    missing = {"north": {}, "south": {number: ["pet"] for number in range(12)}, "west": {0: ["mr"], 2: ["ct", "pet"]}}
    cohorts = {
        site: write_tiny_cohort(root / site, ["benign", "malignant"] * pairs, missing[site]).folder
        for site, pairs in (("north", 8), ("south", 6), ("west", 7))
    }
    options = {**FAST, **GRID, "test_share": 0.0, "threads": 1}
    agreement = Agreement(MODALITIES, ("benign", "malignant"), 2, 1, {k: options[k] for k in options if k != "epochs"})
    recipe = federation(agreement, cohorts, root / "run")
    (root / "sent").mkdir()
    for site in cohorts:
        recipe.add_client_output_filter(Recorder(str(root / "sent")), tasks=["train"], clients=[site])
    simulate(recipe, list(cohorts), root / "run")
    return root


@pytest.mark.slow
def test_the_global_weights_are_the_mean_over_the_cases_that_count(simulation):
    facts = json.loads((simulation / "run" / "federation.json").read_text())
    sent = {
        site: torch.load(simulation / "sent" / f"{site}_{facts['best_round'] - 1}.pt", weights_only=True)
        for site in facts["cases"]
    }
    assert set(facts["cases"]["south"]) == {"ct mr"} and len(facts["validation_loss"]) == 3
    model, network = load_model(simulation / "run")
    for name, value in network.state_dict().items():
        wanted = MODALITIES[int(name.split(".")[1])] if name.startswith("encoders.") else ""
        count = {site: sum(n for there, n in one.items() if wanted in there) for site, one in facts["cases"].items()}
        if name.startswith("encoders.") or name == "classifier.1.bias":
            expected = sum(count[site] * sent[site][name].double() for site in sent) / sum(count.values())
            assert torch.allclose(value.double(), expected, atol=1e-6), name
    assert not torch.allclose(sent["south"]["encoders.1.conv1.weight"], network.state_dict()["encoders.1.conv1.weight"])
    assert model.training_prior == pytest.approx((0.5, 0.5)) and 0 < model.threshold < 1


@pytest.mark.slow
def test_the_model_answers_for_cases_with_and_without_pet(simulation):
    model, network = load_model(simulation / "run")
    study = open_study(simulation / "again", cohort=simulation / "west", test_share=0.0, validation_share=0.4)
    loader = DataLoader(Dataset(study.items("validation"), LoadPreparedCased(MODALITIES, MODALITIES)), batch_size=3)
    assert np.isfinite(probabilities(infer(network, loader), model)).all()


@pytest.mark.slow
def test_nothing_of_the_data_travels(simulation):
    shapes = {name: value.shape for name, value in load_model(simulation / "run")[1].state_dict().items()}
    for site in ("north", "south", "west"):
        subjects = {one.case.subject for one in open_cohort(simulation / site).cases}
        for number in range(3):
            tensors = torch.load(simulation / "sent" / f"{site}_{number}.pt", weights_only=True)
            assert {name: value.shape for name, value in tensors.items()} == shapes
            text = (simulation / "sent" / f"{site}_{number}.json").read_text()
            assert not any(subject in text for subject in subjects) and str(simulation / site) not in text
            numbers = json.loads(text)["DXO"]["meta"]["numbers"]
            assert tuple(numbers) == NUMBERS and max(map(len, numbers.values())) == 2  # nothing a case
        kept = (simulation / "run" / "sites" / site / "sent.jsonl").read_text().splitlines()
        assert [json.loads(line)["meta"]["numbers"] for line in kept][-1] == numbers


@pytest.mark.slow
def test_each_site_trained_in_its_own_folder_and_kept_it(simulation):
    for site in ("north", "south", "west"):
        with (simulation / "run" / "sites" / site / "history.csv").open(newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.slow
def test_a_site_that_prepared_otherwise_stops_the_federation_with_one_sentence(simulation, tmp_path):
    from federate import federation, simulate

    agreement = read_agreement(simulation / "run" / "agreement.yaml")
    other = Agreement(MODALITIES, agreement.classes, 1, 1, {**agreement.options, "spacing": [3.0, 3.0, 3.0]})
    cohorts = {site: simulation / site for site in ("north", "west")}
    with pytest.raises(MmfusionError, match=r"without a model\. (north|west): option spacing is \[3.0, 3.0, 3.0\]"):
        simulate(federation(other, cohorts, tmp_path / "run"), list(cohorts), tmp_path / "run")
