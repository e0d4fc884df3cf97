"""Known places inside folders, and single files: combinations of a command and a target for `robustness_folders.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from robustness_study import PREPARING, TRAINING, Outcome, configured, scan, typed
from robustness_targets import (
    ADDED,
    FOLDERS,
    Box,
    Make,
    a_file,
    dangling_link,
    foreign_bundle,
    linked,
    new,
    of_kind,
    own_backed_up,
    own_unmarked,
    own_with_links,
    strangers_folder,
    strangers_like_ours,
    strangers_our_names,
)

from mmfusion.io import save_volume

Run = Callable[[Path, Path], Outcome]
Fields = tuple[str, str, str, Make, Run, tuple[str, ...], str, str]
"""Command, target, expected, make, run, may_change, kind and own of an attempt."""

KINDS = ("cohort", "run", "folds", "prediction", "bundle", "simulated", "demo")
STRANGERS: dict[str, Make] = {
    "stranger's": strangers_folder, "stranger's of our names": strangers_our_names,
    "stranger's like ours": strangers_like_ours, "foreign bundle": foreign_bundle, "a file": a_file,
    "nothing": new, "dangling link": dangling_link,
}  # fmt: skip
"""Folders in which a command that writes into a folder of ours has nothing to write."""


def attempts() -> Iterator[Fields]:
    """All of them."""
    yield from _known_places()
    yield from _into_folders()
    yield from _single_files()
    yield from _keys()
    yield from _nothing_begun()
    yield from _checks()


def within(folder: str, part: str, make: Make) -> Make:
    """What ``make`` gives, as the part of a folder, in place of what was there; the target is the folder."""

    def made(box: Box, kind: str, own: str) -> Path:
        place, target = box.path / folder / part, make(box, kind, own)
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            strangers = {name for name in box.strangers if (box.path / name).is_relative_to(target)}
            target.rename(place)
            box.strangers -= strangers
            box.strangers |= {os.path.relpath(place / (box.path / n).relative_to(target), box.path) for n in strangers}
        return box.path / folder

    return made


def _known_places() -> Iterator[Fields]:
    """Folders of a fixed name inside a folder of ours."""

    def train(box: Path, run: Path, **given: Any) -> Outcome:
        return configured("train", run_dir=run, **(TRAINING | given))

    def predict(box: Path, run: Path, name: str = "inference") -> Outcome:
        return configured(name, run_dir=run, manifest=box / "scans/two.csv", workers=1, device="cpu")

    def ensemble(box: Path, run: Path) -> Outcome:
        return predict(box, run, "ensemble")

    manifest_run: Run = lambda box, run: train(box, run, manifest=box / "scans/manifest.csv", **PREPARING)
    again: Run = lambda box, out: typed("predict", box / "bundle", box / "scans/two.csv", "--out", out, "--workers", 1)
    fold: Run = lambda box, run: train(box, run, cohort=box / "cohort", fold=0, folds=2)
    single: Run = lambda box, run: train(box, run / "single/ct", cohort=box / "cohort", modalities=["ct"])
    places = (
        ("train --manifest, RUN/cohort", "manifest_run", "cohort", manifest_run, "cohort"),
        ("inference.yaml, RUN/inference", "run", "inference", predict, "prediction"),
        ("ensemble.yaml, RUN/ensemble", "folds", "ensemble", ensemble, "prediction"),
        ("predict, OUT/cohort", "prediction", "cohort", again, "cohort"),
        ("train --fold, RUN/fold_0", "folds", "fold_0", fold, "run"),
        ("train, RUN/single/ct", "run", "single/ct", single, "run"),
    )
    for command, folder, part, run, kind in places:
        linked_to = ("empty", "empty/*")
        allowed = (f"{folder}/{part}", f"{folder}/{part}/*", f"{folder}/.mmfusion.json", *linked_to)
        if folder == "manifest_run":
            allowed = (folder, f"{folder}/*", *linked_to)
        if folder == "prediction":
            allowed = (
                folder,
                f"{folder}/predictions*",
                f"{folder}/cohort",
                f"{folder}/cohort/*",
                f"{folder}/.mm*",
                *linked_to,
            )
        if folder == "folds":
            allowed = (*allowed, f"{folder}/options.json", f"{folder}/split.csv", f"{folder}/earlier*")
        for target in ("new", "empty", "stranger's", "stranger's repository", "stranger's of our names",
                       "stranger's like ours", "foreign bundle", "a file", "mark of another version",
                       "link to a stranger's", "link to a file", "link to an empty folder"):  # fmt: skip
            make, expected = FOLDERS[target]
            yield command, target, expected, within(folder, part, make), run, allowed, "", folder
        for name in ("cohort", "run", "prediction", "bundle", "simulated"):
            if (name if name != "simulated" else "") != kind:
                made = within(folder, part, _copied(name))
                yield command, f"a {name}", "refuses", made, run, allowed, "", folder

    def manifest_inside(box: Box, _kind: str, _own: str) -> Path:
        place = box.path / "run/inference/scans"
        shutil.copytree(box.path / "scans", place)
        return box.path / "run"

    inside: Run = lambda box, run: configured(
        "inference", run_dir=run, manifest=run / "inference/scans/two.csv", workers=1, device="cpu"
    )
    yield "inference.yaml, RUN/inference", "holds the scans", "refuses", manifest_inside, inside, (), "", "run"
    for name in ("predictions", "predictions.csv"):
        swap: Make = strangers_folder if name == "predictions.csv" else a_file
        yield "predict, OUT own", f"{name} is a user's", "keeps", within("prediction", name, swap), again, (
            "prediction/*",), "", "prediction"  # fmt: skip


def _copied(name: str) -> Make:
    """A copy of a folder of the study."""

    def make(box: Box, _kind: str, _own: str) -> Path:
        return Path(shutil.copytree(box.path / name, box.path / "copied"))

    return make


def _own_and_mine(kind: str) -> Make:
    def make(box: Box, _kind: str, name: str) -> Path:
        box.put(*ADDED[kind], below=box.path / name)
        return box.path / name

    return make


def _without(name: str, *files: str) -> Make:
    """A folder of the study without some of its files."""

    def make(box: Box, _kind: str, _own: str) -> Path:
        for file in files:
            (box.path / name / file).unlink(missing_ok=True)
        return box.path / name

    return make


def _into_folders() -> Iterator[Fields]:
    """Commands that write files of known names into a folder that is given."""
    evaluate: Run = lambda _, run: configured("evaluate", run_dir=run, resamples=100, device="cpu")
    folds: Run = lambda _, run: configured("evaluate_folds", run_dir=run, resamples=100, device="cpu")
    report: Run = lambda _, run: typed("report", run)
    export: Run = lambda _, model: typed("export", model, "--engine", "onnx")
    onnx: Run = lambda _, model: typed("export", model, "--engine", "onnx")
    pack: Run = lambda box, bundle: typed("bundle", "pack", bundle, box / "run")
    pages = ("predictions.csv", "metrics.json", "report.html", ".mmfusion.json")
    of_run, of_cohort = tuple(f"TARGET/{name}" for name in pages), ("TARGET/qc.html", "TARGET/qc", "TARGET/qc/*")
    of_bundle = ("TARGET/models", "TARGET/configs/metadata.json", "TARGET/.mmfusion.json", *(
        f"TARGET/models/model.{name}" for name in ("pt", "json", "ts", "onnx")))  # fmt: skip
    exports = ("TARGET/model.ts", "TARGET/model.onnx", "TARGET/models/model.ts", "TARGET/models/model.onnx")
    of_folds = (
        *of_run,
        "TARGET/options.json",
        "TARGET/split.csv",
        *(f"TARGET/fold_{number}/{name}" for number in (0, 1) for name in pages),
    )
    table: tuple[tuple[str, Run, tuple[str, ...], dict[str, str]], ...] = (
        ("evaluate", evaluate, of_run, {"run": "run"}),
        ("evaluate_folds", folds, of_folds, {"folds": "run"}),
        ("report", report, (*of_run, *of_cohort), {"run": "run", "cohort": "cohort", "simulated": "simulated cohort"}),
        ("export", export, exports, {"run": "run", "bundle": "bundle"}),
        ("export --engine onnx", onnx, exports, {"run": "run", "bundle": "bundle"}),
        ("bundle pack", pack, of_bundle, {"bundle": "bundle", "plain_bundle": "bundle"}),
    )
    for command, run, allowed, own in table:
        allowed = (*allowed, "other disk/moved/model.*")
        for name, kind in own.items():
            if command == "report" and kind == "simulated cohort":
                yield command, "a simulated cohort", "either", of_kind(name), run, allowed, "", name
                continue
            yield command, f"{name}, own", "writes", of_kind(name), run, allowed, "", name
            yield command, f"{name}, own unmarked", "writes", own_unmarked, run, allowed, kind, name
            yield command, f"{name}, own and mine", "writes", _own_and_mine(kind), run, allowed, "", name
            yield command, f"{name}, backed up", "writes", own_backed_up, run, allowed, kind, name
            yield command, f"{name}, parts are links", "keeps", own_with_links, run, allowed, kind, name
        for target, make in STRANGERS.items():
            yield command, target, "refuses", make, run, allowed, "", "run"
        for name in KINDS:
            if name not in own:
                expected = "either" if command == "report" else "refuses"
                yield command, f"a {name}", expected, of_kind(name), run, allowed, "", name
                yield command, f"link to a {name}", expected, linked(name), run, allowed, "", name
    for command, run, part, expected in (
        ("evaluate", evaluate, "model.json", "refuses"), ("export", export, "model.pt", "refuses"),
        ("report", report, "metrics.json", "refuses"), ("evaluate", evaluate, "split.csv", "refuses"),
        ("bundle pack", pack, "model.pt", "refuses"), ("evaluate", evaluate, "predictions.csv", "writes"),
    ):  # fmt: skip
        name = "run"
        target = (
            run if command != "bundle pack" else lambda box, _: typed("bundle", "pack", box / "bundle", box / "run")
        )
        yield command, f"run without {part}", expected, _without(name, part), target, of_run, "", name
    same: Run = lambda _, bundle: typed("bundle", "pack", bundle, bundle)
    yield "bundle pack", "the bundle as its run", "refuses", of_kind("bundle"), same, of_bundle, "", "bundle"

    def run_inside(box: Box, _kind: str, _own: str) -> Path:
        (box.path / "run").rename(box.path / "bundle/models/run")
        return box.path / "bundle"

    nested: Run = lambda _, bundle: typed("bundle", "pack", bundle, bundle / "models/run")
    yield "bundle pack", "a run inside the bundle", "either", run_inside, nested, of_bundle, "", "bundle"

    def borrowed(box: Box, kind: str, name: str) -> Path:
        folder = foreign_bundle(box, kind, name)
        for file in ("model.json", "model.pt"):
            shutil.copy(box.path / "bundle/models" / file, folder / "models" / file)
        return folder

    for command, run in (("export", export), ("export --engine onnx", onnx)):
        yield command, "foreign bundle with a model of ours", "refuses", borrowed, run, exports, "", "run"


def file_targets(read: tuple[str, ...], ending: str) -> Iterator[tuple[str, Make, bool, str]]:
    """Targets of a single file: words, how to make it, whether with --overwrite, what is to come of it."""

    def at(name: str, *, text: bool = False, mine: bool = True) -> Make:
        def make(box: Box, _kind: str, _own: str) -> Path:
            if text:
                box.put(name)
                box.strangers -= set() if mine else {name}
            return box.path / name

        return make

    def link(name: str, *, hard: bool = False) -> Make:
        def make(box: Box, _kind: str, _own: str) -> Path:
            path = box.path / f"link{ending}"
            os.link(box.path / name, path) if hard else path.symlink_to(box.path / name)
            return path

        return make

    def to_stranger(box: Box, _kind: str, _own: str) -> Path:
        box.put(f"mine/thesis{ending}")
        (box.path / f"link{ending}").symlink_to(box.path / f"mine/thesis{ending}")
        return box.path / f"link{ending}"

    def folder(box: Box, _kind: str, _own: str) -> Path:
        box.put(f"folder{ending}/thesis.txt")
        return box.path / f"folder{ending}"

    def pipe(box: Box, _kind: str, _own: str) -> Path:
        os.mkfifo(box.path / f"pipe{ending}")
        return box.path / f"pipe{ending}"

    def below(box: Box, _kind: str, _own: str) -> Path:
        box.put("thesis")
        return box.path / f"thesis/out{ending}"

    yield "new", at(f"out{ending}"), False, "writes"
    yield "new", at(f"out{ending}"), True, "writes"
    yield "new, in new folders", at(f"one/two/out{ending}"), False, "writes"
    yield "existing", at(f"out{ending}", text=True), False, "refuses"
    yield "existing", at(f"out{ending}", text=True, mine=False), True, "writes"
    for overwrite in (False, True):
        yield "a folder", folder, overwrite, "refuses"
        yield "below a file", below, overwrite, "refuses"
        yield "a pipe", pipe, overwrite, "refuses"
        yield "name too long", at("t" * 300 + ending), overwrite, "refuses"
        yield "dangling link", lambda b, k, o: _dangling(b, ending), overwrite, "either"
        yield "link to a stranger's", to_stranger, overwrite, "either" if overwrite else "refuses"
        for name in KINDS[:5]:
            yield f"a {name}", of_kind(name), overwrite, "refuses"
        for name in read:
            yield f"input {name}", of_kind(name), overwrite, "refuses"
            if name.endswith(ending):
                yield f"link to input {name}", link(name), overwrite, "refuses"
                yield f"hard link to input {name}", link(name, hard=True), overwrite, "refuses"


def _dangling(box: Box, ending: str) -> Path:
    (box.path / f"link{ending}").symlink_to(box.path / f"nothing{ending}")
    return box.path / f"link{ending}"


def _single_files() -> Iterator[Fields]:
    """``index --out``, ``register --out`` and ``--transform-out``."""
    scans = ("scans/P00/ct.nii.gz", "scans/P01/ct.nii.gz")

    def register(box: Path, out: Path, *more: object, option: str = "--out", ending: str = "") -> Outcome:
        other = ("--out", box / "moved.nii.gz") if option == "--transform-out" else ()
        how = ("--kind", "none", "--fixed-modality", "ct", "--moving-modality", "ct")
        return typed("register", *(box / one for one in scans), option, out, *other, *how, *more)

    def index(box: Path, out: Path, *more: object, tree: str = "dicom") -> Outcome:
        return typed("index", box / tree, "--out", out, *more)

    def labelled(box: Path, out: Path, *more: object) -> Outcome:
        return index(box, out, "--labels", box / "labels.csv", "--label", "diagnosis", *more)

    def keyed(box: Path, out: Path, *more: object) -> Outcome:
        return index(box, out, "--pseudonymize", box / "key", *more)

    def bids(box: Path, out: Path, *more: object) -> Outcome:
        return index(box, out, *more, tree="bids")

    def to_transform(box: Path, out: Path, *more: object) -> Outcome:
        return register(box, out, *more, option="--transform-out")

    def masked(box: Path, out: Path, *more: object) -> Outcome:
        return register(box, out, "--fixed-mask", box / "mask.nii.gz", "--transform-in", box / "start.tfm", *more)

    def with_mask(make: Make) -> Make:
        def made(box: Box, kind: str, own: str) -> Path:
            start = box.path / "start.tfm"
            still = scan(0, "ct")
            mask = still.replace(array=(still.array > -500).astype(np.uint8), units="label")
            save_volume(mask, box.path / "mask.nii.gz")
            typed("register", *(box.path / one for one in scans), "--out", box.path / "first.nii.gz", "--kind", "none",
                  "--transform-out", start, "--fixed-modality", "ct", "--moving-modality", "ct")  # fmt: skip
            (box.path / "first.nii.gz").unlink(missing_ok=True)
            return make(box, kind, own)

        return made

    tree = ("dicom", "dicom/P00/ct", "dicom/P00/ct/0001.dcm")
    bids_files = ("bids", "bids/dataset_description.json", "bids/participants.tsv",
                  "bids/sub-1/anat/sub-1_T1w.nii.gz")  # fmt: skip
    table: tuple[tuple[str, Callable[..., Outcome], str, tuple[str, ...]], ...] = (
        ("index", index, ".csv", tree),
        ("index --labels", labelled, ".csv", (*tree[1:], "labels.csv")),
        ("index --pseudonymize", keyed, ".csv", ("key",)),
        ("index of BIDS", bids, ".csv", bids_files),
        ("register --out", register, ".nii.gz", scans),
        ("register --transform-out", to_transform, ".tfm", scans),
        ("register --out, with mask and start", masked, ".nii.gz", (*scans, "mask.nii.gz", "start.tfm")),
    )
    for command, run, ending, read in table:
        for target, make, overwrite, expected in file_targets(read, ending):
            words = f"{target}, --overwrite" if overwrite else target
            more = ("--overwrite",) if overwrite else ()
            made = with_mask(make) if "mask" in command else make
            allowed = ("TARGET", "moved.nii.gz")
            yield command, words, expected, made, _with(run, more), allowed, "", ""
    both: Run = lambda box, out: register(box, out, "--transform-out", out)
    yield "register", "one file for both", "refuses", lambda b, k, o: b.path / "out.tfm", both, (), "", ""
    yield "register", "one file for both", "refuses", lambda b, k, o: b.path / "out.nii.gz", both, (), "", ""

    def existing_transform(box: Box, _kind: str, _own: str) -> Path:
        box.put("mine.tfm")
        return box.path / "mine.tfm"

    yield "register --transform-out", "existing, while --out is new", "refuses", existing_transform, to_transform, (
        ), "", ""  # fmt: skip
    for ending in (".txt", ".nii.gz/", "", ".mha"):
        odd: Make = lambda b, k, o, e=ending: b.path / f"out{e}"  # type: ignore[misc]
        yield "register --out", f"ending {ending!r}", "either", odd, register, ("TARGET", "moved.nii.gz"), "", ""


def _with(run: Callable[..., Outcome], more: tuple[str, ...]) -> Run:
    return lambda box, out: run(box, out, *more)


def _keys() -> Iterator[Fields]:
    """``index --pseudonymize``: a key is made where there is none, and is read where there is one."""

    def run(box: Path, key: Path, *more: object) -> Outcome:
        return typed("index", box / "dicom", "--out", box / "out.csv", "--pseudonymize", key, *more)

    def labelled(box: Path, key: Path) -> Outcome:
        return run(box, key, "--labels", box / "labels.csv", "--label", "diagnosis")

    def same(box: Path, key: Path) -> Outcome:
        return typed("index", box / "dicom", "--out", key, "--pseudonymize", key)

    def text(content: str) -> Make:
        def make(box: Box, _kind: str, _own: str) -> Path:
            box.put("some.key")
            (box.path / "some.key").write_text(content)
            return box.path / "some.key"

        return make

    letter = "Dear editor,\nplease find enclosed the only copy of the only letter that I wrote.\n" * 9
    allowed, command = ("out.csv", "TARGET"), "index --pseudonymize KEY"
    table: tuple[tuple[str, Make, Run, str], ...] = (
        ("new", lambda b, k, o: b.path / "new.key", run, "writes"),
        ("new, in new folders", lambda b, k, o: b.path / "one/new.key", run, "either"),
        ("own", text("0123456789abcdef" * 4 + "\n"), run, "writes"),
        ("a short text", text("mine\n"), run, "refuses"), ("an empty file", text(""), run, "refuses"),
        ("a letter", text(letter), run, "either"),
        ("the labels", of_kind("labels.csv"), labelled, "refuses"),
        ("a scan", of_kind("dicom/P00/ct/0001.dcm"), run, "refuses"),
        ("in the tree", lambda b, k, o: b.path / "dicom/key", run, "refuses"),
        ("a folder", of_kind("run"), run, "refuses"),
        ("below a file", lambda b, k, o: b.path / "key/k", run, "refuses"),
        ("the same file as --out, new", lambda b, k, o: b.path / "new.csv", same, "refuses"),
        ("the same file as --out", text("0123456789abcdef" * 4 + "\n"), same, "refuses"),
    )  # fmt: skip
    for target, make, how, expected in table:
        yield command, target, expected, make, how, allowed, "", ""

    def existing_out(box: Box, _kind: str, _own: str) -> Path:
        box.put("out.csv")
        return box.path / "new.key"

    yield command, "new, while --out exists", "refuses", existing_out, run, (), "", ""


def _nothing_begun() -> Iterator[Fields]:
    """Commands that are refused for another reason make nothing, either: no folder, no mark."""
    cases: dict[str, Run] = {
        "prepare, no manifest": lambda b, o: typed("prepare", b / "nothing.csv", "--out", o),
        "prepare, a bad option": lambda b, o: typed("prepare", b / "scans/two.csv", "--out", o, "--reference", "xy"),
        "train, no cohort": lambda b, o: configured("train", run_dir=o, cohort=b / "nothing"),
        "train, a bad network": lambda b, o: configured("train", run_dir=o, cohort=b / "cohort", fusion="xy"),
        "train, a class that is not": lambda b, o: configured("train", run_dir=o, cohort=b / "cohort", classes=["x"]),
        "train, a bad option with a manifest": lambda b, o: configured(
            "train", run_dir=o, manifest=b / "scans/two.csv", register="xy"),
        "predict, no model": lambda b, o: typed("predict", b / "nothing", b / "scans/two.csv", "--out", o),
        "predict, an empty tree": lambda b, o: typed("predict", b / "bundle", b / "here", "--out", o),
        "predict, no manifest": lambda b, o: typed("predict", b / "bundle", b / "nothing.csv", "--out", o),
        "bundle new, a bad network": lambda _, o: typed("bundle", "new", o, "--fusion", "xy"),
        "bundle new, one class": lambda _, o: typed("bundle", "new", o, "--classes", "x"),
        "simulate, too few subjects": lambda _, o: typed("simulate", "--out", o, "--train-subjects", 1),
        "demo, too few subjects": lambda _, o: typed("demo", "--out", o, "--subjects", 1),
        "index, no tree": lambda b, o: typed("index", b / "nothing", "--out", o),
        "register, no scan": lambda b, o: typed("register", b / "nothing", b / "scans/P00/ct.nii.gz", "--out", o),
    }  # fmt: skip
    for command, run in cases.items():
        yield command, "new", "refuses", new, run, (), "", ""


def _checks() -> Iterator[Fields]:
    """``check`` writes nothing, whatever it is given."""
    for target in (
        "scans/manifest.csv",
        "cohort",
        "run",
        "prediction",
        "bundle",
        "simulated",
        "dicom.csv",
        "labels.csv",
    ):
        for more in ((), ("--deep",)):
            run: Run = lambda _, path, more=more: typed("check", path, *more)  # type: ignore[misc]
            words = f"{target} {' '.join(more)}".strip()
            yield "check", words, "keeps", of_kind(target), run, (), "", ""
    for target, make in STRANGERS.items():
        yield "check", target, "keeps", make, lambda _, path: typed("check", path), (), "", ""
