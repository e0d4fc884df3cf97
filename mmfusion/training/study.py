"""Who is in which part of a training, and what the run folder says of it.

::

    RUN/
      options.json     every option as it is used, the cohort's path and hash, versions; given: {option: {value, from}},
                       what was given and where (not in runs of earlier versions)
      split.csv        case, subject, part: train, validation, test; head, see mmfusion.training.heads
      history.csv      a row an epoch
      checkpoints/     best.pt (by validation), final.pt: weights of the network
      configuration.json     every other value of the configuration that the training ran with
      model.pt, model.json   the finished model: weights, classes, prior, threshold, how to prepare
      predictions.csv, metrics.json, report.html    of evaluate.yaml
      single/<modality>/     the same for each modality trained alone, where asked for
      fold_<number>/         the same for each fold, in cross-validation (mmfusion.training.cross_validation)
      earlier/<number>/      what an earlier finished training in this folder wrote
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmfusion.cohort import (
    doubtful_labels,
    fold_parts,
    folds,
    keep_for_head,
    read_manifest,
    refuse_leakage,
    split_cases,
)
from mmfusion.cohort.covariates import Covariate, count_inputs, fit_covariates
from mmfusion.cohort.files import inputs_of
from mmfusion.errors import CohortError, ManifestError, OptionError, OutputError, ReadError, printable
from mmfusion.files import (
    FolderLock,
    RunFolder,
    a_text,
    check_fields,
    check_folder,
    clear_if_free,
    optional_fields,
    or_null,
    read_rows,
    some_names,
    write_csv,
    write_json,
)
from mmfusion.networks.build import build, default_losses
from mmfusion.networks.trained import fitted_heads, freeze, learns
from mmfusion.options import GROUPS, resolve, settle, unknown
from mmfusion.predict import Model, dataset_items
from mmfusion.prepare import (
    Cohort,
    PreparedCase,
    check_pet,
    choose_covariates,
    covariates_hash,
    features_for,
    features_of,
    open_cohort,
    prepare_cohort,
    refuse_contradictions,
    versions,
)
from mmfusion.progress import progress_line
from mmfusion.training.checkpoint import keep_unfinished, refuse_other_options
from mmfusion.training.distributed import by_first
from mmfusion.training.engine import autocast
from mmfusion.training.tracking import check_trackers
from mmfusion.volume import check_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PARTS = ("train", "head", "validation", "test")
_LOG = logging.getLogger(__name__)
_FEWEST_TO_CHOOSE = 100  # validation cases for a threshold: with fewer, the prevalence was better in simulation


@dataclass(frozen=True, eq=False)
class Study:
    """A cohort with its parts and classes, ready to train on.

    Attributes:
        run: the run folder.
        cohort: the prepared cases.
        modalities: the network's channels, in order; some or all of the cohort's.
        classes: class labels, in the order of the outputs.
        parts: case id to train, validation or test; or head, for training subjects that a head is fitted on afterwards.
        options: every option of the run.
        lock: of the run folder, see :func:`mmfusion.files.lock_for_process`; given back when the model is written.
        finished: the run folder holds the finished model of this very training, and was left as it is.
    """

    run: Path
    cohort: Cohort
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    parts: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    lock: FolderLock = field(default_factory=FolderLock, repr=False)
    finished: bool = False

    def cases(self, part: str) -> list[PreparedCase]:
        """The cases of a part that have one of the modalities."""
        return [
            one
            for one in self.cohort.cases
            if self.parts.get(one.case.id) == part and set(one.modalities) & set(self.modalities)
        ]

    def items(self, part: str, sample: int | None = None) -> list[dict[str, Any]]:
        """The cases of a part for a MONAI data set, see :func:`mmfusion.predict.dataset_items`.

        With ``sample`` at most so many of them, drawn at random and in random order. The draw depends on the seed and
        the cases, not on the order of the manifest, and leaves all other random states as they are.
        """
        cases = self.cases(part)
        if sample is not None:
            cases.sort(key=lambda one: one.case.id)
            drawn = np.random.default_rng(self.options["seed"]).permutation(len(cases))[:sample]
            cases = [cases[number] for number in drawn]
        return dataset_items(self.cohort, cases, self.modalities, self.classes, self.covariates)

    @cached_property
    def covariates(self) -> tuple[Covariate, ...]:
        """What the columns of option ``covariates`` mean, fitted on the training cases.

        Raises:
            CohortError: the cohort has no such column.
            OptionError: a column tells nothing, or has too many different words.
        """
        names = self.options.get("covariates") or ()
        columns = choose_covariates(self.cohort, names) if names else {}
        return fit_covariates(columns, {one.case.id: one.case.subject for one in self.cases("train")})

    @cached_property
    def class_shares(self) -> list[float]:
        """``[K]`` share of each class among the training cases."""
        count = Counter(one.case.label for one in self.cases("train"))
        return [count[name] / sum(count.values()) for name in self.classes]

    @cached_property
    def class_weight(self) -> list[float] | None:
        """``[K]`` weights of the classes in the loss (mean 1 over the training cases), or None."""
        if not self.options["class_weights"]:
            return None
        return [1 / (len(self.classes) * share) for share in self.class_shares]

    def model(self) -> Model:
        """What inference needs to know beside the weights; temperature and threshold come with :func:`finish`."""
        weighted = [
            s * w for s, w in zip(self.class_shares, self.class_weight or [1.0] * len(self.classes), strict=True)
        ]
        return Model(
            modalities=self.modalities,
            classes=self.classes,
            network=network_options(self.options),
            case=self.cohort.options,
            training_prior=tuple(weighted),
            target_prior=tuple(self.class_shares),
            simulated=self.cohort.simulated,
            covariates=self.covariates,
            features=features_for(self.cohort, [one.name for one in self.covariates]),
        )

    def summary(self, device: Any = "cpu") -> str:
        """The first line that a person reads."""
        parts = []
        for part in _PARTS:
            count = Counter(one.case.label for one in self.cases(part))
            if part == "head" and not count:
                continue
            by_class = ", ".join(f"{name}: {count[name]}" for name in self.classes)
            parts.append(f"{part} {sum(count.values())} ({by_class})")
        fold = "" if self.options["fold"] is None else f"fold {self.options['fold']} of {self.options['folds']} | "
        return printable(
            f"device {device} | {fold}{', '.join(parts)} | modalities {', '.join(self.modalities)} | "
            f"cohort {self.cohort.folder} | run {self.run}"
        )


def network_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Group ``network`` of a run's options, as a model keeps it: ``conditioning`` only where it was given."""
    network = resolve({name: options.get(name) for name in GROUPS["network"]}, "network")
    return {name: value for name, value in network.items() if name != "conditioning" or value is not None}


@by_first
def open_study(
    run: str | Path | None,
    *,
    cohort: str | Path | None = None,
    manifest: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    workers: int = 0,
    configuration: Mapping[str, Any] | None = None,
    device: Any = "cpu",
    keep_finished: bool = False,
    given: Mapping[str, Any] | None = None,
    **options: Any,
) -> Study:
    """Open (or prepare) the cohort, split it by subject, and write ``options.json`` and ``split.csv`` of the run.

    A finished training in the run folder is moved to its subfolder ``earlier``; one that was ended is gone on with.

    Args:
        run: the folder to write; a fold of a cross-validation goes into its subfolder ``fold_<number>``.
        cohort: a prepared cohort; or
        manifest: to be prepared first, into ``run``/cohort.
        modalities: the network's channels; all of the cohort's if None.
        classes: class labels in the order of the outputs; the sorted labels if None. Cases with other labels, and
            those without, take no part.
        workers: processes for preparing.
        configuration: what else decides the result, by path, see :func:`mmfusion.training.configuration`; a training
            that was ended is gone on with under the same configuration only.
        device: what the training will run on; one that is not there is refused before anything is touched.
        keep_finished: a finished training with the same options is not moved away, but left as the result, unless
            option ``resume`` is off.
        given: who gave the options, as :class:`mmfusion.options.Settings` has it, if that was not this call; kept in
            ``options.json``, and nothing depends on it.
        options: group ``study`` of :mod:`mmfusion.options`; None means not given.

    Raises:
        OptionError: an unknown option, or one that contradicts the cohort or needs more validation cases.
        CohortError: no cohort, or a part without cases; or another program trains in this folder.
        OutputError: ``run`` is not a run folder, holds the manifest or a scan, or cannot be written.
        ManifestError, LeakageError: labels or column ``split`` cannot be used.
    """
    if isinstance(classes, (list, tuple)):  # MONAI's command line reads 0,1 as numbers
        classes = [str(name) for name in classes]
    options |= {"modalities": modalities, "classes": classes}
    settings = settle("study", ("call", options))
    modalities, classes = settings.used["modalities"], settings.used["classes"]
    if run is None:
        raise CohortError("no run folder is given: add --run RUN, the folder to write")
    if (cohort is None) == (manifest is None):
        raise CohortError("give either --cohort COHORT (prepared before) or --manifest MANIFEST (prepared first)")
    run = Path(str(run))
    cases = read_manifest(manifest) if manifest is not None else []
    reads, series = inputs_of(cases)
    check_folder(run, "run", reads=[*([Path(manifest)] if manifest is not None else []), *reads], series=series)
    of_case = {name: settings.given[name]["value"] for name in settings.chosen if name in GROUPS["case"]}
    chosen = {name: settings.used[name] for group in ("network", "training", "machine") for name in GROUPS[group]}
    if chosen["conditioning"] and not chosen["covariates"]:
        raise OptionError(f"option conditioning is {chosen['conditioning']}, and there are no covariates: name them")
    check_trackers(chosen["track"] or [])
    check_device(str(device))
    autocast(chosen["precision"], device)
    if cohort is not None:
        opened = open_cohort(cohort)
        refuse_contradictions(opened, {**of_case, "modalities": modalities})
    else:
        check_pet(of_case, given=True)
        of_case |= {"modalities": modalities, "progress": progress_line("prepared")}
        columns = {name for case in cases for name in case.covariates}
        of_case["features"] = features_of(set(chosen["covariates"] or ()) - columns) or None
        RunFolder(run).claim()
        opened = prepare_cohort(str(manifest), RunFolder(run).cohort, workers=workers, **of_case)
    names = tuple(modalities or opened.modalities)
    study_classes, parts, number = _parts(opened, classes, chosen)
    files = RunFolder(run)
    _refuse_mixing(files, bool(number))
    if number:
        whole, run, chosen["folds"] = files, files.fold(chosen["fold"]).path, len(set(number.values()))
        check_folder(run, "run")
    study = Study(run, opened, names, study_classes, parts, chosen)
    if chosen["head"] == "bayesian" and chosen["losses"] is None:
        chosen["losses"] = {**default_losses(chosen["strategy"]), "kl": 1 / max(len(study.cases("train")), 1)}
    with torch.device("meta"):  # a network that cannot be is refused before an earlier run is touched
        sizes: dict[str, Any] = {"num_classes": len(study_classes), "covariates": count_inputs(study.covariates)}
        network = build(modalities=names, **sizes, **network_options(chosen))
    freeze(network, chosen["freeze_encoders"])
    if fitted_heads(network) and learns(network):
        parts = keep_for_head([one.case for one in opened.cases], parts, chosen["head_share"], chosen["seed"])
        study = replace(study, parts=parts)
    for part in [one for one in _PARTS if one != "test" and one in (*parts.values(), "train", "validation")]:
        found = {one.case.label for one in study.cases(part)}
        if lost := [name for name in study_classes if name not in found]:
            raise CohortError(
                f"{opened.folder} has no case of class {', '.join(lost)} with {' or '.join(names)} for {part}; "
                "check labels, split and modalities"
            )
    _check_threshold_rule(study)
    written = {
        "modalities": list(names),
        "classes": list(study_classes),
        "cohort": RunFolder(run).way_to(opened.folder),
        "cohort_hash": covariates_hash(opened, chosen["covariates"] or ()),
        **chosen,
        **{name: value for name, value in opened.options.items() if name != "modalities"},
        "versions": versions(),
        "given": {k: v for k, v in (given or settings.given).items() if k in GROUPS["study"]},
    }
    files = RunFolder(run)
    if keep_finished and chosen["resume"] and files.model.is_file():
        refuse_other_options(files, written, configuration or {}, "a finished training")
        return replace(study, finished=True)
    if number:
        clear_if_free(whole.claim().path)
    files.claim()
    study = replace(study, lock=files.lock())
    files.clear()
    keep_unfinished(files, written, configuration or {})
    write_json(written, files.options)
    write_json(configuration or {}, files.configuration)
    rows = [
        {"case": one.case.id, "subject": one.case.subject, "part": parts[one.case.id], "fold": number.get(one.case.id)}
        for one in opened.cases
        if one.case.id in parts
    ]
    write_csv(rows, files.split, ["case", "subject", "part", *(["fold"] if number else [])])
    return study


def fold_numbers(cohort: str | Path, folds: int | None, seed: int | None, classes: Sequence[str] | None) -> list[int]:
    """The folds of a cross-validation, in order: those of the manifest's column ``fold``, or ``folds`` from 0.

    Raises:
        CohortError: no cohort.
        ManifestError: see :func:`open_study`.
    """
    options = resolve({"folds": folds, "seed": seed}, "training") | {"fold": 0}
    _, _, number = _parts(open_cohort(cohort), classes, options)
    return sorted(set(number.values()))


def _check_threshold_rule(study: Study) -> None:
    """Refuse a threshold that the validation cases cannot choose: now, not after the training."""
    if study.options["threshold_rule"] == "prevalence":
        return
    if len(study.classes) > 2:
        raise OptionError(
            f"threshold_rule youden is for two classes, found {len(study.classes)} ({', '.join(study.classes)}), of "
            "which the most probable one is predicted; leave threshold_rule out"
        )
    if (cases := len(study.cases("validation"))) < _FEWEST_TO_CHOOSE:
        raise OptionError(
            f"threshold_rule youden needs {_FEWEST_TO_CHOOSE} validation cases or more, found {cases} in "
            f"{study.cohort.folder}: fewer choose by chance. Leave threshold_rule out, or raise --validation_share"
        )


def _refuse_mixing(run: RunFolder, as_fold: bool) -> None:
    """A folder holds one training, or the folds of one cross-validation: their results have the same names."""
    if as_fold and run.holds_training():
        raise OutputError(f"{run.path} holds a training without folds; choose another folder for the folds")
    if not as_fold and any(fold.options.is_file() for fold in run.folds().values()):
        raise OutputError(f"{run.path} holds the folds of a cross-validation; choose another run folder, or add --fold")


def _parts(
    cohort: Cohort, classes: Sequence[str] | None, options: dict[str, Any]
) -> tuple[tuple[str, ...], dict[str, str], dict[str, int]]:
    """Class labels, the part of each case, and its fold in cross-validation. The split is drawn over all modalities,
    so that a run on some of them has the same subjects in each part and can be compared."""
    labels = sorted({one.case.label for one in cohort.cases if one.case.label is not None})
    if classes is not None and (lost := [name for name in classes if name not in labels]):
        raise OptionError(unknown("class", lost[0], labels))
    chosen = tuple(classes or labels)
    if len(chosen) < 2:
        raise ManifestError(
            f"{cohort.folder} has {len(chosen)} class{'es' * (len(chosen) != 1)} in column label "
            f"({', '.join(chosen) or 'all cells are empty'}); at least 2 are needed to train. "
            "Fill column label of the manifest (mmfusion index ... --labels FILE --label COLUMN) and prepare again"
        )
    if doubts := doubtful_labels((one.case.label for one in cohort.cases), classes):
        head = f"{cohort.folder} has labels in doubt (prepare again after a change of them: all tensors stay)"
        raise ManifestError("\n  ".join([f"{head}:", *(one.sentence() for one in doubts)]))
    cases = [one.case for one in cohort.cases if one.case.label in chosen]
    how: dict[str, Any] = {"validation": options["validation_share"], "seed": options["seed"]}
    number: dict[str, int] = {}
    if options["fold"] is None:
        parts = split_cases(cases, test=options["test_share"], **how)
    else:
        number = folds(cases, options["folds"], options["seed"])
        parts = fold_parts(cases, number, options["fold"], **how)
        if cohort.options["mr_normalize"] == "histogram":
            _LOG.warning(
                "mr_normalize histogram: the standard scale in %s may rest on subjects that are the test of some folds "
                "(not on their labels); with percentile or zscore each scan is scaled by itself",
                printable(cohort.folder),
            )
    refuse_leakage(cases, parts)
    return chosen, parts, number


def run_cohort(run: str | Path) -> Cohort:
    """The cohort that a run was trained on.

    Raises:
        CohortError: the run, or its cohort, is not there, or the cohort has changed since.
        ReadError: the options of the run, or a file of the cohort, are damaged.
    """
    run = Path(run)
    options = optional_fields(run / "options.json", "it is not a run folder. Train first, or check --run")
    needed = {"cohort": a_text, "cohort_hash": a_text, "covariates": or_null(some_names)}
    known = {"covariates": None} | {name: value for name, value in options.items() if name in needed}
    options = check_fields(run / "options.json", known, needed, "train again")
    cohort = open_cohort(run / options["cohort"])
    if covariates_hash(cohort, options["covariates"] or ()) != options["cohort_hash"]:
        raise CohortError(
            f"the cohort {cohort.folder} has changed since {run} was trained on it; train again, or evaluate on the "
            "cohort as it was"
        )
    return cohort


def evaluation_items(run: str | Path, model: Model, part: str) -> tuple[Cohort, list[dict[str, Any]]]:
    """The items of one part of a run's split, and the cohort with these cases alone.

    Raises:
        CohortError: see :func:`run_cohort`; or the part has no cases.
        ReadError: as there; or ``split.csv`` or the model does not fit the cohort.
    """
    cohort, run = run_cohort(run), Path(run)
    parts = {
        row["case"]: row["part"] for row in read_rows(run / "split.csv", "train again", ("case", "subject", "part"))
    }
    known = {one.case.id for one in cohort.cases}
    if strange := [case for case, where in parts.items() if case not in known or where not in _PARTS]:
        raise ReadError(
            f"{run / 'split.csv'} is damaged: case {strange[0]!r:.60} is not in the cohort, or its part "
            f"{parts[strange[0]]!r:.20} not one of {', '.join(_PARTS)}; put back the file as it was, or train again"
        )
    cases = [one for one in cohort.cases if parts.get(one.case.id) == part]
    if others := [one.case for one in cases if one.case.label not in model.classes]:
        raise ReadError(
            f"{run / 'model.json'} or {run / 'split.csv'} is damaged: case {others[0].id} has label "
            f"{others[0].label!r:.20}, and the classes are {', '.join(model.classes)}; put them back, or train again"
        )
    if not cases:
        raise CohortError(
            f"the split of {run} has no case in part {part}; it has {', '.join(sorted(set(parts.values())))}"
        )
    items = dataset_items(cohort, cases, model.modalities, model.classes, model.covariates)
    used = {item["case"] for item in items}
    return replace(cohort, rows=[row for row in cohort.rows if row["case"] in used]), items
