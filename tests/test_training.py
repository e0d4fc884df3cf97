"""From a cohort folder to a run folder: parts, losses, seeds, the best model, calibration, and what is refused."""

import copy
import csv
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_cohort import GRID, MODALITIES, evaluate, write_scans, write_tiny_cohort

from mmfusion.bundle import run_config
from mmfusion.errors import CohortError, LeakageError, ManifestError, MmfusionError, NetworkError, OptionError
from mmfusion.evaluation import choose_threshold
from mmfusion.files import Predictions, write_csv
from mmfusion.networks import build
from mmfusion.options import GROUPS, settle
from mmfusion.predict import PrepareFusionBatch, infer, load_model, probabilities
from mmfusion.training import (
    TrainingStep,
    ValidationScore,
    autocast,
    evaluation_items,
    finish,
    open_study,
    out_of_fold,
    single_runs,
    total_loss,
    update,
    voices,
    write_metrics,
)
from mmfusion.transforms import LoadPreparedCased


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(run):
    return torch.load(run / "model.pt", weights_only=True)


# what a run writes


def test_a_run_folder_holds_what_its_page_promises(tiny_run):
    promised = (
        "options.json split.csv history.csv checkpoints/best.pt checkpoints/final.pt model.pt model.json "
        "predictions.csv metrics.json report.html"
    )
    assert [name for name in promised.split() if not (tiny_run / name).is_file()] == []


def test_history_has_a_row_an_epoch(tiny_run):
    rows = rows_of(tiny_run / "history.csv")
    assert list(rows[0]) == ["epoch", "train_loss", "validation_loss", "validation_auc", "seconds"]
    assert [row["epoch"] for row in rows] == ["1", "2"] and all(float(row["train_loss"]) > 0 for row in rows)


def test_split_is_by_subject_and_stratified(tiny_run):
    rows = rows_of(tiny_run / "split.csv")
    count = {part: sum(row["part"] == part for row in rows) for part in ("train", "validation", "test")}
    assert count == {"train": 14, "validation": 5, "test": 5} and len({row["subject"] for row in rows}) == 24


def test_options_of_a_run_are_all_there(tiny_run, tiny_cohort):
    options = json.loads((tiny_run / "options.json").read_text())
    wanted = {name for group in ("case", "network", "training", "machine") for name in GROUPS[group]}
    assert wanted | {"classes", "cohort", "cohort_hash", "versions", "given"} == set(options)
    assert (tiny_run / options["cohort"]).resolve() == tiny_cohort.resolve()
    assert options["epochs"] == 2 and options["spacing"] == [4.0, 5.0, 6.0]


def test_predictions_of_the_test_part(tiny_run):
    rows = rows_of(tiny_run / "predictions.csv")
    columns = (
        "case subject session part label p_benign p_malignant predicted entropy epistemic modalities status reasons"
    )
    assert list(rows[0]) == [*columns.split(), "model"]
    part = {row["case"]: row["part"] for row in rows_of(tiny_run / "split.csv")}
    assert {row["case"] for row in rows} == {name for name in part if part[name] == "test"}
    assert {row["part"] for row in rows} == {"test"} and {row["status"] for row in rows} == {"done"}


def test_metrics_hold_values_with_intervals(tiny_run):
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    rows = Predictions.read(tiny_run / "predictions.csv")
    label = [row["label"] == "malignant" for row in rows]
    auc = metrics["metrics"]["auc"]
    assert auc["value"] == pytest.approx(roc_auc_score(label, [float(row["p_malignant"]) for row in rows]))
    assert auc["low"] <= auc["value"] <= auc["high"] and auc["n"] == metrics["n"] == 5
    assert metrics["classes"] == ["benign", "malignant"] and metrics["part"] == "test"
    page = (tiny_run / "report.html").read_text()
    assert "Research use only" in page and "The threshold is the share of malignant among the training cases" in page


def test_prior_of_the_loss_and_of_the_subjects(tiny_run):
    about, _ = load_model(tiny_run)
    labels = [row["case"] for row in rows_of(tiny_run / "split.csv") if row["part"] == "train"]
    malignant = sum(int(case[1:]) % 2 for case in labels) / len(labels)
    assert about.target_prior == pytest.approx((1 - malignant, malignant)) and about.training_prior == (0.5, 0.5)


# the kinds of network, and modalities that are missing


@pytest.mark.parametrize(
    ("strategy", "fusion"), [("input", None), ("single_level", "concat"), ("single_level", "gated"), ("decision", None)]
)
def test_every_strategy_trains(train, tmp_path, strategy, fusion):
    run = train(tmp_path, strategy=strategy, fusion=fusion, epochs=1)
    about, network = load_model(run)
    assert about.network["strategy"] == network.strategy == strategy and about.network["fusion"] == fusion


def test_three_classes_train_without_a_threshold(train, tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["a", "b", "c"] * 6)
    run = train(tmp_path / "run", cohort=str(cohort.folder), epochs=1, class_weights=False)
    evaluate(run)
    about, _ = load_model(run)
    assert about.threshold is None and about.classes == ("a", "b", "c")
    assert about.training_prior == pytest.approx(about.target_prior)
    assert {"p_a", "p_b", "p_c"} <= set(rows_of(run / "predictions.csv")[0])


def test_one_modality_alone_keeps_the_split_of_all(train, tiny_run, tmp_path):
    run = train(tmp_path, modalities=["pet"], epochs=1)
    evaluate(run)
    about, network = load_model(run)
    assert about.modalities == network.modalities == ("pet",) and about.case["modalities"] == list(MODALITIES)
    assert rows_of(run / "split.csv") == rows_of(tiny_run / "split.csv")
    assert {row["modalities"] for row in rows_of(run / "predictions.csv")} == {"pet"}


def test_a_modality_that_nobody_has(train, tmp_path):
    everyone = {number: ["ct"] for number in range(24)}
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 12, everyone)
    run = train(tmp_path / "run", cohort=str(cohort.folder), epochs=1)
    evaluate(run)
    assert {row["modalities"] for row in rows_of(run / "predictions.csv")} == {"pet mr"}


def test_missing_modalities_are_evaluated(tiny_cohort, train, tmp_path):
    run = train(tmp_path, epochs=1)
    evaluate(run, part="train")
    found = {row["case"]: row["modalities"] for row in rows_of(run / "predictions.csv")}
    expected = {"S00": "pet mr", "S01": "ct mr", "S09": "pet"}
    assert expected.items() <= found.items() and len(found) == 14


# seeds


def test_the_same_seed_gives_the_same_model(train, tiny_run, tmp_path):
    run = train(tmp_path)
    evaluate(run)
    again = weights_of(run)
    for name, value in weights_of(tiny_run).items():
        assert torch.equal(value, again[name]), name
    assert (run / "predictions.csv").read_bytes() == (tiny_run / "predictions.csv").read_bytes()


def test_another_seed_gives_another_model_and_split(train, tiny_run, tmp_path):
    run = train(tmp_path, seed=1)
    first, second = weights_of(tiny_run), weights_of(run)
    assert not all(torch.equal(first[name], second[name]) for name in first)
    assert rows_of(run / "split.csv") != rows_of(tiny_run / "split.csv")


# losses


def batch():
    torch.manual_seed(3)
    image, label = torch.rand(6, 3, 9, 8, 7), torch.tensor([0, 1, 0, 0, 1, 0])
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]).bool()
    return image * present[:, :, None, None, None], present, label


@pytest.mark.parametrize("weight", [None, [0.75, 1.5]])
def test_loss_is_weighted_cross_entropy(weight):
    image, present, label = batch()
    network = build("single_level", width=0.125).eval()
    with torch.no_grad():
        logits, losses = TrainingStep(network, weight)(image, present, None, label)
    each = -logits.log_softmax(1)[torch.arange(6), label]
    per_case = torch.tensor(weight or [1.0, 1.0])[label]
    torch.testing.assert_close(losses["classification"], (each * per_case).mean())


def test_decision_fusion_adds_the_loss_of_each_present_modality():
    image, present, label = batch()
    network, weight = build("decision", width=0.125).eval(), torch.tensor([0.75, 1.5])
    with torch.no_grad():
        _, losses = TrainingStep(network, weight.tolist())(image, present, None, label)
        each = network.outputs(image, present).modality_logits.log_softmax(-1)
    picked = [-each[b, m, label[b]] * weight[label[b]] for b, m in present.nonzero().tolist()]
    torch.testing.assert_close(losses["unimodal"], torch.stack(picked).mean())
    torch.testing.assert_close(total_loss(losses), losses["classification"] + losses["unimodal"])


def test_weights_count_in_a_batch_of_one_class_too():
    image, present, label = batch()
    step = TrainingStep(build("input", width=0.125).eval(), [0.75, 1.5])
    with torch.no_grad():
        whole = step(image, present, None, label)[1]["classification"]
        single = [step(image[n : n + 1], present[n : n + 1], None, label[n : n + 1])[1] for n in range(6)]
    torch.testing.assert_close(whole, torch.stack([one["classification"] for one in single]).mean())


def test_checkpoints_hold_the_network_alone():
    network = build("input", width=0.125)
    step = TrainingStep(network, [0.5, 1.5])
    assert {name.removeprefix("network.") for name in step.state_dict()} == set(network.state_dict())
    assert step.class_weight.tolist() == [0.5, 1.5]


def engine(network, **given):
    """What ``update`` needs of a trainer, around a real network and optimizer."""
    from monai.engines import SupervisedTrainer

    from mmfusion.predict import PrepareFusionBatch

    image, present, label = batch()
    data = [{"image": image, "present": present, "label": label, "case": [f"S{n}" for n in range(6)]}]
    optimizer = torch.optim.SGD(network.parameters(), lr=given.pop("lr", 0.1))
    return SupervisedTrainer(
        torch.device("cpu"), 1, data, TrainingStep(network), optimizer, total_loss,
        prepare_batch=PrepareFusionBatch(), iteration_update=update, decollate=False, **given,
    )  # fmt: skip


def test_update_is_one_step_of_the_optimizer():
    torch.manual_seed(0)
    network, again = build("input", width=0.125), build("input", width=0.125)
    again.load_state_dict(network.state_dict())
    engine(network).run()
    image, present, label = batch()
    torch.nn.functional.cross_entropy(again.train()(image, present), label).backward()
    norm = torch.nn.utils.clip_grad_norm_(again.parameters(), 1.0)  # an independent step has to bound its gradient too
    assert norm > 1
    for mine, theirs in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - 0.1 * theirs.grad)


def test_a_loss_that_is_not_finite_stops_the_training():
    network = build("input", width=0.125)
    with torch.no_grad():
        network.classifier[-1].bias[0] = torch.nan
    with pytest.raises(MmfusionError, match=r"loss is not finite in epoch 1 \(classification nan; cases S0, S1"):
        engine(network).run()


def test_a_gradient_that_is_not_finite_stops_the_training_before_the_weights_are_touched():
    network = build("input", width=0.125)
    before = {name: value.clone() for name, value in network.named_parameters()}
    network.classifier[-1].bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(MmfusionError, match="a gradient is not finite in epoch 1 .cases S0, S1.*--learning_rate"):
        engine(network).run()
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_validation_scores_against_scikit_learn():
    noise = np.random.default_rng(0)
    for classes in (2, 3):
        logits = torch.from_numpy(noise.normal(size=(40, classes)))
        label = torch.from_numpy(noise.integers(classes, size=40))
        score = ValidationScore("auc")
        score.update((logits[:25], label[:25]))
        score.update((logits[25:], label[25:]))
        shares = logits.softmax(1).numpy()
        wanted = roc_auc_score(label, shares[:, 1] if classes == 2 else shares, multi_class="ovr")
        assert score.compute() == pytest.approx(wanted, abs=1e-6)


def test_negative_loss_counts_each_class_the_same():
    shares, label = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.5, 0.5], [0.3, 0.7]]), torch.tensor([0, 0, 0, 1])
    logits = shares.log()
    score = ValidationScore()
    score.update((logits, label))
    each = -np.log([0.8, 0.6, 0.5, 0.7])
    assert score.compute() == pytest.approx(-(each[:3].mean() + each[3]) / 2, abs=1e-6)
    score.reset()
    score.update((logits[3:], label[3:]))
    assert score.compute() == pytest.approx(-each[3], abs=1e-6)


def test_auc_of_one_class_is_chance():
    score = ValidationScore("auc")
    score.update((torch.randn(4, 2), torch.zeros(4).long()))
    assert score.compute() == 0.5


# calibration


@pytest.mark.slow
def test_rare_class_keeps_its_share_of_the_probability(train, tmp_path):
    labels = ["no", "no", "no", "no", "yes"] * 8
    cohort = write_tiny_cohort(tmp_path / "cohort", labels)
    slow = {"epochs": 8, "batch_size": 2, "learning_rate": 0.001}
    run = train(tmp_path / "run", cohort=str(cohort.folder), modalities=["ct", "mr"], **slow)  # that tell nothing
    about, network = load_model(run)
    _, items = evaluation_items(run, about, "test")
    logits = infer(network, loader(items, about.modalities))
    assert about.target_prior[1] == pytest.approx(1 / 6) and about.training_prior[1] == pytest.approx(0.5)
    assert logits.softmax(1)[:, 1].mean() == pytest.approx(0.5, abs=0.08)  # what the weighted loss teaches
    assert probabilities(logits, about)[:, 1].mean() == pytest.approx(1 / 6, abs=0.1)


def loader(items, modalities):
    load = LoadPreparedCased(modalities, MODALITIES)
    return torch.utils.data.DataLoader([load(item) for item in items], batch_size=4)


# the best model


@pytest.mark.parametrize("rule", ["prevalence", "youden"])
def test_finish_takes_the_best_weights_and_the_threshold_of_the_rule(tiny_cohort, tmp_path, rule):
    study = open_study(tmp_path, cohort=tiny_cohort, encoder="resnet10", width=0.125)
    study.options["threshold_rule"] = rule  # with so few cases only here
    torch.manual_seed(5)
    best, last = study.model().build(), study.model().build()
    (tmp_path / "checkpoints").mkdir()
    torch.save(best.state_dict(), tmp_path / "checkpoints" / "best.pt")
    torch.save(last.state_dict(), tmp_path / "checkpoints" / "final.pt")
    items = study.items("validation")
    assert finish(study, last, loader(items, study.modalities)) == tmp_path
    about, network = load_model(tmp_path)
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in network.state_dict().items())
    shares = probabilities(infer(best, loader(items, study.modalities)), about)[:, 1]
    chosen = choose_threshold(np.array([item["label"] for item in items]), shares)
    assert chosen != study.class_shares[1]
    assert about.threshold == (chosen if rule == "youden" else study.class_shares[1])


def test_youden_is_refused_before_the_training_where_cases_are_few(tiny_cohort, tmp_path):
    with pytest.raises(OptionError, match="youden needs 100 validation cases or more, found 5 in .* Leave"):
        open_study(tmp_path / "run", cohort=tiny_cohort, threshold_rule="youden", width=0.125)
    more = write_tiny_cohort(tmp_path / "more", ["a", "b", "c"] * 8)
    with pytest.raises(OptionError, match=r"youden is for two classes, found 3 \(a, b, c\)"):
        open_study(tmp_path / "run", cohort=more.folder, threshold_rule="youden", width=0.125)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("validation", [99, 100])
def test_youden_takes_a_hundred_validation_cases(tmp_path, validation):
    split = ["train"] * 4 + ["validation"] * validation
    cohort = write_tiny_cohort(tmp_path / "cohort", (["a", "b"] * 52)[: len(split)], split=split)
    few = pytest.raises(OptionError, match="found 99") if validation < 100 else nullcontext()
    with few:
        open_study(tmp_path / "run", cohort=cohort.folder, threshold_rule="youden", width=0.125)


def test_the_product_rule_starts_at_the_prior_that_the_loss_sees(tiny_cohort, tmp_path):
    study = open_study(tmp_path, cohort=tiny_cohort, strategy="decision", fusion="product", class_weights=False)
    prior = study.model().build().rule.log_prior.exp()
    torch.testing.assert_close(prior, torch.tensor(study.class_shares))


def test_a_network_that_cannot_be_is_refused_before_an_earlier_run_is_touched(tiny_cohort, tmp_path):
    open_study(tmp_path, cohort=tiny_cohort)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").touch()
    before = (tmp_path / "options.json").read_text()
    with pytest.raises(NetworkError, match="strategy 'single_level' takes fusion concat or .*, found 'joint'"):
        open_study(tmp_path, cohort=tiny_cohort, fusion="joint")
    assert (tmp_path / "checkpoints" / "best.pt").is_file() and (tmp_path / "options.json").read_text() == before


def test_a_bayesian_head_is_trained_with_its_divergence(tiny_cohort, tmp_path):
    study = open_study(tmp_path, cohort=tiny_cohort, strategy="decision", head="bayesian", width=0.125)
    cases = len(study.cases("train"))
    assert study.options["losses"] == {"unimodal": 1.0, "kl": 1 / cases}
    assert study.model().build().loss_weights["kl"] == 1 / cases
    assert json.loads((tmp_path / "options.json").read_text())["losses"]["kl"] == 1 / cases


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("decision", {"fusion": "product"}), ("decision", {"fusion": "stacking"}), ("hybrid", {"decision": "weighted"})],
)
def test_finish_fits_the_decision_rule_and_the_weights_hold_it(tiny_cohort, tmp_path, strategy, options):
    study = open_study(tmp_path, cohort=tiny_cohort, encoder="resnet10", width=0.125, strategy=strategy, **options)
    network = study.model().build()  # a product's prior is set here
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "best.pt")
    before = {name: value.clone() for name, value in network.rule.state_dict().items()}
    load = loader(study.items("validation"), study.modalities)
    finish(study, network, load)
    logits, present, label = voices(network, load)
    assert logits.shape[1] == present.shape[1] == len(study.modalities) + (strategy == "hybrid")
    again = copy.deepcopy(network.rule)
    again.load_state_dict(before)
    again.fit(logits, present, label, study.class_weight)
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(saved[f"rule.{name}"], value)


def test_best_checkpoint_belongs_to_the_best_epoch(train, tmp_path):
    run = train(tmp_path, epochs=3, learning_rate=0.1)  # jumps about
    history = [float(row["validation_loss"]) for row in rows_of(run / "history.csv")]
    about, network = load_model(run)
    _, items = evaluation_items(run, about, "validation")
    score = ValidationScore()
    score.update((infer(network, loader(items, about.modalities)), torch.tensor([item["label"] for item in items])))
    assert -score.compute() == pytest.approx(min(history), abs=1e-4) and len(set(history)) == 3


def test_the_best_weights_stand_beside_their_own_statistics(tiny_cohort, train, tmp_path):
    run = train(tmp_path, modalities=["pet"], epochs=1, learning_rate=0.1)  # the moving average is far behind
    study = open_study(tmp_path / "again", cohort=tiny_cohort, modalities=["pet"], encoder="resnet10", width=0.125)
    about, network = load_model(run)
    image = torch.cat([batch["image"] for batch in loader(study.items("train"), about.modalities)])
    with torch.no_grad():
        seen = network.encoders[0](image)
    torch.testing.assert_close(network.standardize[0].norm.running_mean, seen.mean(0), rtol=1e-3, atol=1e-4)


def test_the_statistics_are_settled_on_cases_drawn_whatever_the_order_of_the_manifest(tiny_cohort, tmp_path):
    study = open_study(tmp_path, cohort=tiny_cohort, encoder="resnet10", width=0.125)
    by_label = replace(study.cohort, rows=sorted(study.cohort.rows, key=lambda row: row["label"]))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    cases, drawn, sorted_first = (
        [item["case"] for item in one.items("train", sample)]
        for one, sample in ((study, None), (study, 128), (replace(study, cohort=by_label), 128))
    )
    assert drawn == sorted_first != cases and sorted(drawn) == sorted(cases)
    assert [item["case"] for item in study.items("train", sample=5)] == drawn[:5]
    other = replace(study, options={**study.options, "seed": 1})
    assert sorted(item["case"] for item in other.items("train", sample=5)) != sorted(drawn[:5])
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_finish_needs_a_validated_epoch(train, tmp_path):
    train(tmp_path, epochs=1)  # whose best.pt is not that of the next training
    with pytest.raises(CohortError, match="has no checkpoints/best.pt: no epoch was validated"):
        train(tmp_path, epochs=1, val_interval=2)


def test_training_stops_when_validation_gets_no_better(train, tmp_path):
    run = train(tmp_path, epochs=6, patience=1, learning_rate=0.0)
    assert [row["epoch"] for row in rows_of(run / "history.csv")] == ["1", "2"]


def test_history_leaves_empty_what_was_not_validated(train, tmp_path):
    run = train(tmp_path, epochs=2, val_interval=2)
    assert [row["validation_loss"] != "" for row in rows_of(run / "history.csv")] == [False, True]


# metrics beside those of single modalities


def test_metrics_compare_with_single_modalities(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(tiny_run, run / "single" / "pet")
    other = run / "single" / "ct"
    other.mkdir()
    text = (tiny_run / "predictions.csv").read_text().splitlines()
    (other / "predictions.csv").write_text("\n".join([text[0], *(f"X{line}" for line in text[1:])]))
    assert sorted(single_runs(run)) == ["ct", "pet"]
    found = write_metrics(run, resamples=100, simulated=True)
    assert list(found["comparison"]) == ["pet"]  # ct was evaluated on other cases
    pet = found["comparison"]["pet"]
    assert pet["difference"]["value"] == 0 and pet["auc"] == pet["fusion_auc"]
    assert json.loads((run / "metrics.json").read_text())["simulated"] is True


def test_metrics_with_and_without_the_doubtful_cases(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    rows = Predictions.read(run / "predictions.csv")

    def measured(statuses):
        write_csv([row | {"status": one} for row, one in zip(rows, statuses, strict=True)], run / "predictions.csv")
        return write_metrics(run, resamples=100)

    assert "without_doubtful" not in measured(["done", "accepted", "done", "accepted", "done"])
    found = measured(["doubtful", "done", "done", "accepted", "done"])
    label = [row["label"] == "malignant" for row in rows[1:]]
    auc = found["without_doubtful"]["auc"]
    assert found["without_doubtful"]["doubtful"] == [rows[0]["case"]] and (auc["n"], found["n"]) == (4, 5)
    assert auc["value"] == pytest.approx(roc_auc_score(label, [float(row["p_malignant"]) for row in rows[1:]]))
    one_class = ["done" if row["label"] == "benign" else "doubtful" for row in rows]
    few = measured(one_class)["without_doubtful"]["auc"]
    assert few["value"] is None and few["reason"].startswith("one class only")
    assert measured(["doubtful"] * 5)["without_doubtful"]["auc"]["reason"] == "every case is doubtful"


def test_metrics_need_labels(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    text = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(re.sub(r",test,\w+,", ",test,,", text))
    with pytest.raises(CohortError, match="predictions.csv has no labels; metrics need them"):
        write_metrics(run)


def test_options_say_what_was_given_and_where(tiny_cohort, tmp_path):
    settings = settle(
        "study", ("file", {"width": 0.06, "epochs": 9}), ("command line", {"epochs": 2, "fusion": "none"})
    )
    open_study(tmp_path / "run", cohort=tiny_cohort, given=settings.given, **settings.chosen)
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (options["epochs"], options["width"], options["fusion"], options["seed"]) == (2, 0.06, None, 0)
    assert options["given"] == {
        "fusion": {"value": "none", "from": "command line"},
        "width": {"value": 0.06, "from": "file"},
        "epochs": {"value": 2, "from": "command line"},
    }


def test_a_study_takes_a_system(tiny_cohort, tmp_path):
    study = open_study(tmp_path / "run", cohort=tiny_cohort, system="decision_fusion", width=0.06)
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert study.options["fusion"] == options["fusion"] == "product" and study.model().network["width"] == 0.06
    assert options["given"]["fusion"] == {"value": "product", "from": "system decision_fusion"}
    assert options["given"]["width"] == {"value": 0.06, "from": "call"}


# what is refused


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"spacing": [2, 2, 2]}, OptionError, r"spacing is \[2, 2, 2\], but the cohort .* was prepared with \[4.0"),
        ({"modalities": ["pet", "spect"]}, OptionError, "modality spect is not in the cohort .*; it has ct, pet, mr"),
        ({"classes": ["benign", "malign"]}, OptionError, "unknown class 'malign'; did you mean 'malignant'"),
        ({"classes": ["benign"]}, ManifestError, r"has 1 class in column label \(benign\); at least 2 are needed"),
        ({"encoder": "resnet11"}, OptionError, "unknown encoder 'resnet11'; did you mean 'resnet18'"),
        ({"epochs": 0}, OptionError, "epochs must be 1 or more"),
        ({"epoch": 3}, OptionError, "unknown option 'epoch'; did you mean 'epochs'"),
        ({"cohort": None}, CohortError, "give either --cohort COHORT"),
        ({"manifest": "m.csv"}, CohortError, "give either --cohort COHORT"),
        ({"cohort": "nowhere"}, CohortError, "nowhere has no options.json: it is not a finished cohort folder"),
    ],
)
def test_contradictions_are_refused_before_any_work(tiny_cohort, tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        open_study(tmp_path / "run", **({"cohort": tiny_cohort} | given))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_needed(tiny_cohort):
    with pytest.raises(CohortError, match="no run folder is given: add --run RUN"):
        open_study(None, cohort=tiny_cohort)


def test_options_that_agree_with_the_cohort_are_welcome(tiny_cohort, tmp_path):
    study = open_study(tmp_path, cohort=tiny_cohort, spacing=[4, 5, 6], classes=["malignant", "benign"])
    assert study.classes == ("malignant", "benign") and study.items("train")[0]["label"] == 1


def test_lists_are_taken_as_a_command_line_reads_them(tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["0", "1"] * 12)
    study = open_study(tmp_path / "run", cohort=cohort.folder, modalities="pet", classes=(1, 0))
    assert study.modalities == ("pet",) and study.classes == ("1", "0")


def test_every_class_is_needed_in_train_and_validation(tmp_path):
    lost = {number: ["pet"] for number in range(0, 24, 2)}
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes"] * 12, lost)
    with pytest.raises(CohortError, match="has no case of class no with pet for train; check labels, split"):
        open_study(tmp_path / "run", cohort=cohort.folder, modalities=["pet"])


def test_a_subject_on_both_sides_is_a_leak(tmp_path):
    split = ["train", "train", "train", "train", "test", "test", "test", "test"]
    subject = ["A", "B", "C", "D", "E", "F", "G", "A"]
    cohort = write_tiny_cohort(
        tmp_path / "c", ["no", "yes"] * 4, split=split, subject=subject, session=["1"] * 7 + ["2"]
    )
    with pytest.raises(LeakageError, match="1 subject is in both train and test: A.*Splits are by subject"):
        open_study(tmp_path / "run", cohort=cohort.folder)


def test_column_split_decides(tmp_path):
    split = ["train", "train", "validation", "test"] * 4
    cohort = write_tiny_cohort(tmp_path / "cohort", [*["no"] * 8, *["yes"] * 8], split=split)
    study = open_study(tmp_path / "run", cohort=cohort.folder)
    assert [row["part"] for row in rows_of(tmp_path / "run" / "split.csv")] == split
    assert study.class_shares == [0.5, 0.5] and "test 4 (no: 2, yes: 2)" in study.summary()


def test_cases_without_label_take_no_part(tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes", ""] * 8)
    study = open_study(tmp_path / "run", cohort=cohort.folder)
    assert len(study.parts) == 16 and study.classes == ("no", "yes")


def test_labels_in_doubt_are_refused_unless_they_are_named(tmp_path):
    cohort = write_tiny_cohort(tmp_path / "cohort", ["no", "yes", "NA", "No"] * 6).folder
    words = r"cohort has labels in doubt .*\n  label 'NA' \(6 rows\) .*\n  labels 'No' \(6 rows\) and 'no' "
    with pytest.raises(ManifestError, match=words):
        open_study(tmp_path / "run", cohort=cohort)
    with pytest.raises(ManifestError, match="'No' .* and 'no' .* differ only in spelling"):
        open_study(tmp_path / "run", cohort=cohort, classes=["no", "yes"])
    assert not (tmp_path / "run").exists()
    named = ["yes", "no", "No", "NA"]
    assert list(open_study(tmp_path / "run", cohort=cohort, classes=named).classes) == named


def test_a_manifest_is_prepared_first(tmp_path):
    manifest = write_scans(tmp_path, {f"S{n}": ("ct", "pet") for n in range(12)})
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},label", *(f"{row},{n % 2}" for n, row in enumerate(rows))]))
    study = open_study(tmp_path / "run", manifest=manifest, workers=1, **GRID)
    assert study.cohort.folder == tmp_path / "run" / "cohort" and study.modalities == ("ct", "pet")
    assert [len(study.cases(part)) for part in ("train", "validation", "test")] == [4, 4, 4]


def test_evaluation_says_what_is_wrong(tiny_run, tmp_path):
    about, _ = load_model(tiny_run)
    with pytest.raises(CohortError, match="has no case in part tset; it has test, train, validation"):
        evaluation_items(tiny_run, about, "tset")
    with pytest.raises(CohortError, match="has no options.json: it is not a run folder"):
        evaluation_items(tmp_path, about, "test")


def test_a_changed_cohort_is_noticed(tiny_cohort, tmp_path):
    cohort = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    study = open_study(tmp_path / "run", cohort=cohort)
    assert evaluation_items(study.run, study.model(), "test")[1]
    text = (cohort / "cases.csv").read_text()
    (cohort / "cases.csv").write_text(text.replace("S05,,malignant", "S05,,benign"))
    with pytest.raises(CohortError, match="cohort .* has changed since .* was trained on it; train again"):
        evaluation_items(study.run, study.model(), "test")


def test_steps_in_bfloat16_are_near_those_in_float32(train, tiny_run, tmp_path):
    run = train(tmp_path, precision="bfloat16")
    (one, two), weights = (rows_of(folder / "history.csv") for folder in (run, tiny_run)), weights_of(run)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert not all(torch.equal(value, weights[name]) for name, value in weights_of(tiny_run).items())
    for rounded, whole in zip(one, two, strict=True):
        assert float(rounded["train_loss"]) == pytest.approx(float(whole["train_loss"]), rel=0.1)


def test_float16_needs_a_gpu(train, tmp_path):
    words = "precision float16 needs a GPU, and the device is cpu; use --precision bfloat16"
    with pytest.raises(OptionError, match=words):
        train(tmp_path / "run", precision="float16")
    assert not (tmp_path / "run").exists()


def test_gradients_in_bfloat16_are_those_of_float32_rounded():
    for seed in range(4):  # oneDNN's, of maps of depth 2, were at times anything
        found = {}
        for precision in ("float32", "bfloat16"):
            torch.manual_seed(seed)
            network = build("input", width=0.125, standardize=False)
            trainer = engine(network, lr=0.0, amp_kwargs=autocast(precision, "cpu"))
            trainer.data_loader[0]["image"] = torch.rand(6, 3, 31, 18, 17)  # of depth 2 in the third stage
            trainer.run()
            found[precision] = torch.cat([one.grad.flatten() for one in network.parameters()])
        apart = (found["float32"] - found["bfloat16"]).norm() / found["float32"].norm()
        assert 0 < apart < 0.2 and torch.backends.mkldnn.enabled


def test_validation_is_in_float32(train, tmp_path):
    run = train(tmp_path, precision="bfloat16", epochs=1)
    about, network = load_model(run)
    _, items = evaluation_items(run, about, "validation")
    score = ValidationScore()
    score.update((infer(network, loader(items, about.modalities)), torch.tensor([item["label"] for item in items])))
    assert -score.compute() == pytest.approx(float(rows_of(run / "history.csv")[0]["validation_loss"]), abs=1e-5)


def test_evaluate_names_a_run_without_model(tmp_path):
    with pytest.raises(CohortError, match="has no model.json: it is not a finished run"):
        run_config("evaluate", run_dir=str(tmp_path))


# covariates and folds


def test_covariates_of_a_batch_reach_the_network():
    network = build("single_level", width=0.06, covariates=2)
    trainer, seen = engine(network), []
    trainer.data_loader[0]["covariates"] = given = torch.tensor([[0.5, torch.nan]] * 6, dtype=torch.float64)
    whole = network.outputs
    network.outputs = lambda image, present, covariates: seen.append(covariates) or whole(image, present, covariates)
    trainer.run()
    torch.testing.assert_close(seen[0], given.float(), equal_nan=True)


@pytest.mark.parametrize(
    ("covariates", "words"),
    [
        (torch.zeros(5, 2), r"covariates must have shape \[6, C\], found \[5, 2\]"),
        (torch.tensor([[0.0], [torch.inf], [torch.nan], [0.0], [0.0], [0.0]]), "^row 1: covariates hold infinite"),
    ],
)
def test_covariates_that_cannot_be_used_are_refused(covariates, words):
    image, present, _ = batch()
    with pytest.raises(CohortError, match=words):
        PrepareFusionBatch()({"image": image, "present": present, "covariates": covariates}, "cpu")


def test_out_of_fold_shows_no_model_a_subject_that_it_trained_on():
    subjects, predicted = np.array(list("abcaddefcbgga")), []

    def predict(trained, rows):
        assert not set(subjects[trained]) & set(subjects[rows])
        assert len(trained) + len(rows) == len(subjects)
        predicted.extend(rows)
        return rows[:, None] * 10.0

    said = out_of_fold(lambda rows: rows, predict, subjects, folds=3, seed=1)
    assert sorted(predicted) == list(range(13))
    np.testing.assert_array_equal(said[:, 0], np.arange(13) * 10.0)


@pytest.mark.parametrize("folds", [1, 4])
def test_out_of_fold_needs_subjects_for_its_folds(folds):
    with pytest.raises(CohortError, match=rf"from 2 to the number of subjects \(3\), found {folds}"):
        out_of_fold(len, len, ["a", "b", "c", "c"], folds)
