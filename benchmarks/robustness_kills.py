"""kill -9 at random moments: train, predict, bundle pack and report, each begun again by the same command.

A command is a process of its own, forked from one that has imported everything, so that moments fall into its work.
Half of the moments are times; the other half are places: before the n-th time that it opens a file to write, renames
or removes one.
"""

from __future__ import annotations

import difflib
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from robustness_study import PRELOADED, TRAINING, make_study

from mmfusion.bundle import TEMPLATE
from mmfusion.cli import main

SHARES = {"train": 12, "predict": 8, "bundle pack": 5, "report": 5}
"""Of 30 kills."""

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")


@dataclass(frozen=True)
class Killed:
    """A command that is killed.

    Attributes:
        words: of the command line, in which ``OUT`` stands for the folder that it writes.
        start: a folder of the study that OUT is a copy of; empty if it is new.
        result: what must be the same, from the folder: names to values.
    """

    words: tuple[str, ...]
    start: str
    result: Callable[[Path], dict[str, Any]]


def tensors(path: Path) -> dict[str, Any]:
    """Name to shape, type and values of each tensor of a file."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return {name: (value.dtype, value.tolist()) for name, value in loaded.items()}


def of_run(folder: Path) -> dict[str, Any]:
    """The model of a run."""
    facts = {"model.pt": tensors(folder / "model.pt"), "model.json": json.loads((folder / "model.json").read_text())}
    return facts | {
        "best.pt": tensors(folder / "checkpoints/best.pt"),
        "split.csv": (folder / "split.csv").read_bytes(),
    }


def of_prediction(folder: Path) -> dict[str, Any]:
    """All predictions."""
    files = [folder / "predictions.csv", *sorted((folder / "predictions").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def of_bundle(folder: Path) -> dict[str, Any]:
    """What is packed."""
    facts = {name: json.loads((folder / name).read_text()) for name in ("models/model.json", "configs/metadata.json")}
    return {"models/model.pt": tensors(folder / "models/model.pt")} | facts


def of_page(folder: Path) -> dict[str, Any]:
    """The page of a run."""
    return {"report.html": (folder / "report.html").read_text()}


def commands(study: Path) -> dict[str, Killed]:
    """The commands by name."""
    template = TEMPLATE / "configs" / "train.yaml"
    given = TRAINING | {"epochs": 12, "augment": True, "modality_drop": 0.3, "patience": 12}
    training = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    train = ("monai", "--config_file", str(template), "--cohort", str(study / "cohort"), "--run_dir", "OUT", *training)
    two = str(study / "scans" / "two.csv")
    return {
        "train": Killed(train, "", of_run),
        "predict": Killed(("predict", str(study / "bundle"), two, "--out", "OUT", "--workers", "1"), "", of_prediction),
        "bundle pack": Killed(("bundle", "pack", "OUT", str(study / "run")), "plain_bundle", of_bundle),
        "report": Killed(("report", "OUT"), "run", of_page),
    }


def execute(words: list[str], log: str, kill_at: int, count: Any) -> None:
    """Run the command in this process, a fresh one, which ends itself before its change number ``kill_at``."""
    torch.set_num_threads(1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+"))
        if changes and os.path.basename(str(args[0])) != os.path.basename(log):  # noqa: PTH119
            count.value += 1
            if count.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with Path(log).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.addaudithook(hook)
    if words[0] == "monai":
        program = Path(monai.bundle.__file__).parent / "__main__.py"
        sys.argv = [str(program), "run", *words[1:]]
        runpy.run_path(str(program), run_name="__main__")
    else:
        sys.exit(main(words))


def run(words: tuple[str, ...], out: Path, *, after_s: float | None = None, kill_at: int = 0) -> tuple[int, float, int]:
    """Start the command, and kill it after some seconds, or before its n-th change; returns its exit status, how long
    it ran, and how many files it changed."""
    context = multiprocessing.get_context("forkserver")
    count = context.Value("i", 0, lock=False)
    log = out.with_name(f"{out.name}.log")
    given = [word.replace("OUT", str(out)) for word in words]
    process = context.Process(target=execute, args=(given, str(log), kill_at, count))
    start = time.perf_counter()
    process.start()
    process.join(after_s)
    if process.exitcode is None and process.pid:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return int(process.exitcode or 0), time.perf_counter() - start, count.value


def differences(one: dict[str, Any], other: dict[str, Any], folders: tuple[Path, Path]) -> list[str]:
    """Names of what differs; of a page, the lines that do."""
    words = []
    for name in one.keys() | other.keys():
        left, right = one.get(name), other.get(name)
        if name == "report.html" and isinstance(left, str) and isinstance(right, str):
            left, right = (text.replace(path.name, "RUN") for text, path in zip((left, right), folders, strict=True))
            lines = difflib.unified_diff(*(re.sub("><", ">\n<", text).splitlines() for text in (left, right)), n=0)
            words += [f"{name}: {line[:120]}" for line in list(lines)[2:] if line[:1] in "+-"]
        elif left != right:
            words.append(name)
    return words


def kills(work: Path, moments: int = 30, seed: int = 0) -> dict[str, Any]:
    """Kill the commands at so many moments in all, run them again, and compare with an undisturbed run."""
    work, rng = work / "kills", random.Random(seed)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    study = work / "study"
    bad = {name: outcome for name, outcome in make_study(study).items() if outcome.status}
    if bad:
        raise RuntimeError(f"the study cannot be made: {bad}")
    facts, runs = {}, []
    for name, command in commands(study).items():
        whole, (status, whole_s, changes) = _begin(work / "whole", command, study)
        if status:
            raise RuntimeError(f"{name} ended with {status}: {whole.with_name(whole.name + '.log').read_text()[-500:]}")
        expected = command.result(whole)
        facts[name] = {"undisturbed_s": round(whole_s, 2), "changes": changes}
        for number in range(max(1, round(moments * SHARES[name] / sum(SHARES.values())))):
            out = work / f"run{number}"
            by_time = number % 2 == 0
            how: dict[str, Any] = {"after_s": rng.uniform(0, whole_s)} if by_time else {
                "kill_at": rng.randint(1, changes)}  # fmt: skip
            _, (first, _, _) = _begin(out, command, study, **how)
            if number % 3 == 2:  # and killed again
                run(command.words, out, after_s=rng.uniform(0, whole_s))
            status, _, _ = run(command.words, out)
            log = out.with_name(f"{out.name}.log").read_text().strip()
            differ = differences(expected, command.result(out), (whole, out)) if not status else ["it does not go on"]
            marked = (out / ".mmfusion.json").is_file()
            left = [str(path.relative_to(out)) for path in out.rglob(".mmfusion-tmp-*")] if marked else []
            one = {"command": name, **{key: round(value, 3) for key, value in how.items()}, "killed": first == -9,
                   "status": status, "differs": differ, "left_over": left}  # fmt: skip
            if status:
                one["message"] = log.splitlines()[-1] if log else ""
            runs.append(one)
            print(f"  kill {len(runs)}: {one}", flush=True)
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(whole, ignore_errors=True)
    bad_runs = [one for one in runs if one["status"] or one["differs"] or one["left_over"]]
    killed = sum(one["killed"] for one in runs)
    print(f"{len(runs)} moments, {killed} of them before the end: {len(bad_runs)} did not end as undisturbed")
    return {"commands": facts, "moments": len(runs), "killed": killed, "runs": runs, "failures": bad_runs,
            "reached": not bad_runs}  # fmt: skip


def _begin(out: Path, command: Killed, study: Path, **how: Any) -> tuple[Path, tuple[int, float, int]]:
    """A fresh folder, and the command run in it."""
    shutil.rmtree(out, ignore_errors=True)
    if command.start:
        shutil.copytree(study / command.start, out)
        (out / "report.html").unlink(missing_ok=True)
    return out, run(command.words, out, **how)
