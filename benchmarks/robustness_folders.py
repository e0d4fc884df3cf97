"""What commands do to folders and files that are not theirs: docs/outputs.md, tried out.

Some hundred combinations of a command and a target, each in a copy of a small study. The content of every file
of the sandbox is compared before and after:

- `writes`: the command ends well; only files changed that it may write, none of a user's;
- `refuses`: status 1 with one sentence, and nothing at all was changed or made;
- `either`: one of the two;
- `keeps`: however it ends, it is no crash, and nothing changed but files that it may write.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robustness_files
from robustness_study import (
    GRID,
    PREPARING,
    TRAINING,
    Outcome,
    configured,
    make_study,
    quietly,
    small_demo,
    small_simulation,
    typed,
)
from robustness_targets import FOLDERS, Box, Make, linked, of_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_S = 120
OF_KIND = {"cohort": "cohort", "run": "run", "prediction": "prediction", "bundle": "bundle", "demo": "demo",
           "simulated cohort": "simulated"}  # fmt: skip
"""A folder of each kind in the study."""


@dataclass(frozen=True)
class Attempt:
    """A combination of a command and a target.

    Attributes:
        command, target: in words.
        expected: ``writes``, ``refuses``, ``either`` or ``keeps``.
        make: makes the target in a sandbox.
        run: the command, from (sandbox, target).
        may_change: patterns of files that it may write, relative to the sandbox; ``TARGET`` stands for the target.
        kind: of folder that it writes; empty if none.
        own: name of a finished folder of the same command.
        keeps_earlier: everything of a finished training must be somewhere in the target afterwards.
    """

    command: str
    target: str
    expected: str
    make: Make
    run: Callable[[Path, Path], Outcome]
    may_change: tuple[str, ...] = ("TARGET", "TARGET/*", "other disk/moved/*")
    kind: str = ""
    own: str = ""
    keeps_earlier: bool = False


@dataclass(frozen=True)
class Writer:
    """A command that writes a folder of its own."""

    name: str
    kind: str
    own: str
    run: Callable[[Path, Path], Outcome]
    inputs: tuple[str, ...] = ()  # files and folders that it reads, and folders that hold them
    series: tuple[str, ...] = ()  # folders inside the folder of a series that it reads


def writers() -> list[Writer]:
    """The commands that write one folder each."""
    scans = ("scans", "scans/two.csv", "scans/P00", "scans/P00/ct.nii.gz")
    tree = ("dicom", "dicom/P00", "dicom/P00/ct", "dicom/P00/ct/0001.dcm")
    inside = ("dicom/P00/ct/out", "dicom/P01/mr/a/b")

    def prepare(box: Path, out: Path, *more: str, manifest: str = "scans/two.csv") -> Outcome:
        return typed("prepare", box / manifest, "--out", out, *GRID, *more)

    def train(box: Path, out: Path, **given: Any) -> Outcome:
        return configured("train", run_dir=out, **(TRAINING | given))

    def predict(model: str, manifest: str) -> Callable[[Path, Path], Outcome]:
        return lambda box, out: typed("predict", box / model, box / manifest, "--out", out, "--workers", 1)

    def inference(name: str, model: str) -> Callable[[Path, Path], Outcome]:
        given = {"workers": 1, "device": "cpu"}
        return lambda box, out: configured(name, run_dir=box / model, manifest=box / "scans/two.csv", out=out, **given)

    return [
        Writer("prepare", "cohort", "small", prepare, scans),
        Writer("prepare --save-nifti", "cohort", "small_nifti", lambda b, o: prepare(b, o, "--save-nifti"), scans),
        Writer("prepare, no more --save-nifti", "cohort", "small_nifti", prepare),
        Writer("prepare, other options", "cohort", "small_nifti",
               lambda b, o: prepare(b, o, "--save-nifti", "--suv-max", "7", "--mr-normalize", "histogram")),
        Writer("prepare, a scan changed, another is damaged", "cohort", "small_nifti",
               lambda b, o: prepare(b, o, "--save-nifti")),
        Writer("prepare of DICOM", "cohort", "small",
               lambda b, o: prepare(b, o, manifest="dicom.csv"), (*tree, "dicom.csv"), inside),
        Writer("train --cohort", "run", "run", lambda b, o: train(b, o, cohort=b / "cohort"),
               ("cohort", "cohort/cases/P00", "cohort/cases.csv")),
        Writer("train --cohort, resume False", "run", "run",
               lambda b, o: train(b, o, cohort=b / "cohort", resume=False)),
        Writer("train --manifest", "run", "manifest_run",
               lambda b, o: train(b, o, manifest=b / "scans/manifest.csv", **PREPARING),
               (*scans, "scans/manifest.csv")),
        Writer("train --fold", "run", "folds", lambda b, o: train(b, o, cohort=b / "cohort", fold=0, folds=2),
               ("cohort",)),
        Writer("predict", "prediction", "prediction", predict("bundle", "scans/two.csv"),
               (*scans, "bundle", "bundle/models", "bundle/models/model.pt")),
        Writer("predict of DICOM", "prediction", "prediction", predict("run", "dicom"), (*tree, "run"), inside),
        Writer("predict by folds", "prediction", "prediction", predict("folds", "scans/two.csv"),
               ("folds", "folds/fold_0", "scans")),
        Writer("inference.yaml", "prediction", "prediction", inference("inference", "run"), ("run", "scans")),
        Writer("ensemble.yaml", "prediction", "prediction", inference("ensemble", "folds"),
               ("folds", "folds/fold_1", "scans")),
        Writer("bundle new", "bundle", "plain_bundle",
               lambda b, o: typed("bundle", "new", o, "--modalities", "ct", "mr", "--encoder", "cnn")),
        Writer("simulate", "simulated cohort", "simulated", lambda _, o: quietly(lambda: small_simulation(o))),
        Writer("demo", "demo", "demo", lambda _, o: _demo(o)),
    ]  # fmt: skip


def _damaged(make: Make) -> Make:
    """The first subject has another scan, and one of the second is cut off."""

    def made(box: Box, kind: str, own: str) -> Path:
        shutil.copy(box.path / "scans/P02/mr.nii.gz", box.path / "scans/P00/mr.nii.gz")
        scan = box.path / "scans/P01/mr.nii.gz"
        scan.write_bytes(scan.read_bytes()[:2000])
        return make(box, kind, own)

    return made


class _BegunError(Exception):
    """The demo began."""


def _demo(out: Path) -> Outcome:
    """The demo up to its first subject, which tells whether it takes the folder; the whole takes too long."""
    from unittest import mock

    def begin(*_: Any, **__: Any) -> None:
        raise _BegunError

    with mock.patch("mmfusion.demo.draw_subjects", begin):
        outcome = quietly(lambda: small_demo(out))
    return Outcome(0, "") if outcome.crashed and "_BegunError" in outcome.stderr else outcome


def attempts() -> Iterator[Attempt]:
    """All combinations."""
    for writer in writers():
        varied = "," in writer.name or writer.name in ("prepare, no more --save-nifti",)
        for target, (make, expected) in FOLDERS.items():
            is_own = "own" in target.replace(",", " ").split()
            if varied and not is_own:
                continue  # it differs from its sister in what it does to its own folder
            if writer.kind == "bundle" and is_own:
                expected = "refuses"
            elif writer.name.endswith("damaged"):
                make, expected = _damaged(make), "keeps"
            one = Attempt(writer.name, target, expected, make, writer.run, kind=writer.kind, own=writer.own)
            trains = writer.kind == "run" and "own" in target and "killed" not in target and "links" not in target
            yield replace(one, keeps_earlier=trains)
        if varied:
            continue
        one = Attempt(writer.name, "", "refuses", of_kind(""), writer.run, kind=writer.kind, own=writer.own)
        for kind, name in OF_KIND.items():
            if kind != writer.kind:
                yield replace(one, target=f"a {kind}", make=of_kind(name))
        for name in (*writer.inputs, *writer.series):
            yield replace(one, target=f"input {name}", make=of_kind(name))
        if writer.inputs:
            yield replace(one, target=f"link to input {writer.inputs[0]}", make=linked(writer.inputs[0]))
    for fields in robustness_files.attempts():
        yield Attempt(*fields)


def snapshot(folder: Path) -> dict[str, str]:
    """What is below a folder: the digest of each file, where each link leads, and which folders there are."""
    out = {}
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            if path.is_symlink():
                what = f"link to {path.readlink()}"
            elif path.is_file():
                what = hashlib.sha1(path.read_bytes()).hexdigest()
            else:
                what = "folder" if path.is_dir() else "special"
            out[str(path.relative_to(folder))] = what
    return out


def faults(one: Attempt, box: Box, target: Path, before: dict[str, str], outcome: Outcome) -> list[str]:
    """What a command did that it may not do, in words."""
    after = snapshot(box.path)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    words = []
    if outcome.crashed:
        words.append("ended with a trace: " + outcome.stderr.strip().splitlines()[-1])
    if one.expected == "refuses" or (one.expected == "either" and outcome.status):
        if not outcome.is_sentence and not outcome.crashed:
            words.append(f"is not refused in one sentence (status {outcome.status}: {outcome.stderr.strip()[-200:]!r})")
        return words + [_word(name, before, after) for name in changed]
    if one.expected != "keeps" and outcome.status and not outcome.crashed:
        words.append(f"does not write (status {outcome.status}: {outcome.stderr.strip()[-200:]})")
    places = {os.path.relpath(path, os.path.realpath(box.path)) for path in (os.path.realpath(target),)}
    places |= {os.path.relpath(target, box.path)}
    allowed = [pattern.replace("TARGET", place) for pattern in one.may_change for place in sorted(places)]
    for name in changed:
        is_above = after.get(name) == "folder" and name not in before and any(p.startswith(name + "/") for p in allowed)
        if name in box.strangers or not (is_above or any(fnmatch.fnmatchcase(name, p) for p in allowed)):
            words.append(_word(name, before, after))
    was_marked = any(f"{place}/.mmfusion.json" in before for place in places)  # else it may be anybody's
    words += [f"leaves {name}" for name in after if ".mmfusion-tmp-" in name and (was_marked or name not in before)]
    of_its_own = one.may_change[:1] == ("TARGET",) and one.kind not in ("", "bundle")
    if of_its_own and not outcome.status and not (target / ".mmfusion.json").is_file():
        words.append("leaves no mark")
    if one.keeps_earlier and not outcome.status:
        words += _missing(one, box, target, before, after)
    return words


def _word(name: str, before: dict[str, str], after: dict[str, str]) -> str:
    return f"{'removes' if name not in after else 'changes' if name in before else 'makes'} {name}"


def _missing(one: Attempt, box: Box, target: Path, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files of a finished training whose content is nowhere in its folder any more."""
    start = os.path.relpath(os.path.realpath(target), os.path.realpath(box.path)) + "/"
    trained = f"{start}fold_0/" if one.own == "folds" else start
    kept = {digest for name, digest in after.items() if name.startswith(start)}
    left_out = ("cohort/", ".mmfusion.json", ".mmfusion-tmp-")
    return [
        f"training again overwrites {name}"
        for name, digest in before.items()
        if name.startswith(trained)
        and not name[len(start) :].startswith(left_out)
        and digest not in kept
        and not name.endswith("/options.json")  # whose path to the cohort is put right
    ]


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Ends what never ends."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def restore(box: Path, study: Path, whole: dict[str, str]) -> None:
    """Make a sandbox the copy of the study again that it was, of which ``whole`` is the snapshot."""
    now = snapshot(box)
    for name in sorted(now, reverse=True):  # what is inside a folder before the folder
        path = box / name
        if whole.get(name) != now[name] and os.path.lexists(path):
            shutil.rmtree(path) if now[name] == "folder" and not path.is_symlink() else path.unlink()
    for name in sorted(whole):
        if not os.path.lexists(box / name):
            (box / name).mkdir() if whole[name] == "folder" else shutil.copy2(study / name, box / name)


def tried(one: Attempt, box: Box, start: Path) -> dict[str, Any]:
    """Try one combination in a sandbox that is a copy of the study."""
    try:
        os.chdir(box.path)
        target = one.make(box, one.kind, one.own)
        (box.path / "here").mkdir()
        os.chdir(box.path / "here")  # what is written to the current folder shows up in the snapshot
        before = snapshot(box.path)
        with _alarm():
            outcome = one.run(box.path, target)
        words = faults(one, box, target, before, outcome)
    finally:
        os.chdir(start)
    return {"command": one.command, "target": one.target, "expected": one.expected, "status": outcome.status,
            "message": outcome.stderr.strip()[-300:], "faults": words}  # fmt: skip


def folders(work: Path, only: str = "") -> dict[str, Any]:
    """Try all combinations, or those whose words hold ``only``."""
    from robustness_study import add_variants

    work = work / "folders"
    made = make_study(work / "study")
    for name, outcome in made.items():
        if outcome.status:
            raise RuntimeError(f"the study cannot be made: {name} ended with {outcome}")
    add_variants(work / "study")
    shutil.copytree(work / "study", work / "box", symlinks=True)
    whole, tries = snapshot(work / "study"), []
    for one in attempts():
        if only in f"{one.command} | {one.target}":
            tries.append(tried(one, Box(work / "box"), Path.cwd()))
            restore(work / "box", work / "study", whole)
            for word in tries[-1]["faults"][:1]:
                more = f" and {len(tries[-1]['faults']) - 1} more" if len(tries[-1]["faults"]) > 1 else ""
                print(f"  {one.command} | {one.target} | {one.expected} | {word}{more}", flush=True)
    violations = [one for one in tries if one["faults"]]
    counts = Counter(one["expected"] for one in tries)
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{len(tries)} combinations ({words}): {len(violations)} with violations")
    return {
        "combinations": len(tries),
        "expected": dict(counts),
        "commands": dict(Counter(one["command"] for one in tries)),
        "violations": violations,
        "reached": not violations,
    }
