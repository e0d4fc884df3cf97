"""Registration against its peers, side by side: itk-elastix, ANTsPy, greedy, SimpleITK.

    python benchmarks/registration.py --peers PYTHON [--sets heads-rigid capture ...] [--pairs N] [--tools ours ...]

PYTHON is that of an environment with `requirements-registration.txt`; it is made in the work folder if not given.
Each tool runs in one process of its own; a pair is given to one tool after the other, in an order that rotates, and
never to two at once. Rows go to the work folder as they come: a run that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from registration_data import MR_OFF_AT_REST, Plan, Trial, open_ms_plans, sts_plans
from registration_goals import goals, lines
from registration_heads import bent_plans, capture_plans, head_plans
from registration_tables import ORDER, OURS, Row, describe, pooled_verdicts
from scipy.spatial.transform import Rotation

from mmfusion.files import write_text
from mmfusion.io import save_volume
from mmfusion.volume import Grid, Volume

HERE = Path(__file__).parent
KINDS = {"heads-affine": "affine", "open-ms-affine": "affine", "deformable": "deformable"}  # the others are rigid
TOOLS = {"affine": ORDER, "rigid": ORDER, "deformable": ("ours", "ants")}
SLOW = ("ants", "greedy")
SLOW_PAIRS = {"heads-rigid": 6, "heads-affine": 6, "open-ms": 12, "open-ms-affine": 6}  # of the others 60
# Where each peer starts (see registration_peers.py); ours has no setting. On the sarcoma sets the best of three ways on
# 10 pairs (ANTs: 6); elsewhere the tool's own default or, as CT has negative values, centers of the fields of view.
STARTS = {
    "heads-rigid": {"elastix": "geometry", "ants": "mass", "greedy": "geometry", "simpleitk": "geometry"},
    "heads-affine": {"elastix": "geometry", "ants": "mass", "greedy": "geometry", "simpleitk": "geometry"},
    "capture": {"elastix": "mass", "ants": "mass", "greedy": "mass", "simpleitk": "mass"},
    "sts-ct-pet": {"elastix": "header", "ants": "header", "greedy": "header", "simpleitk": "geometry"},
    "sts-ct-mr": {"elastix": "geometry", "ants": "header", "greedy": "header", "simpleitk": "geometry"},
    "open-ms": {"elastix": "geometry", "ants": "mass", "greedy": "geometry", "simpleitk": "geometry"},
    "open-ms-affine": {"elastix": "geometry", "ants": "mass", "greedy": "geometry", "simpleitk": "geometry"},
    "deformable": {"ants": "header"},
}


def plans(testdata: Path) -> dict[str, Callable[[], list[Plan]]]:
    """The sets by name."""
    return {
        "heads-rigid": lambda: head_plans("rigid", 40),
        "heads-affine": lambda: head_plans("affine", 12),
        "capture": lambda: capture_plans(50),
        "sts-ct-pet": lambda: sts_plans(testdata / "sts_dicom", "pet"),
        "sts-ct-mr": lambda: sts_plans(testdata / "sts_dicom", "mr"),
        "open-ms": lambda: open_ms_plans(testdata / "open_ms"),
        "open-ms-affine": lambda: open_ms_plans(testdata / "open_ms"),
        "deformable": lambda: bent_plans(12),
    }


class Worker:
    """The process of one tool."""

    def __init__(self, tool: str, python: str, scratch: Path) -> None:
        self.tool, self.python, self.scratch = tool, python, scratch
        self.warm: set[str] = set()
        self.start()

    def start(self) -> None:
        with (self.scratch.parent / f"{self.tool}.log").open("a") as log:
            self.process = subprocess.Popen(
                [self.python, str(HERE / "registration_worker.py"), self.tool],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "TMPDIR": str(self.scratch), "SCRATCH": str(self.scratch)},
            )
        hello = self.process.stdout.readline()
        if not hello:
            raise SystemExit(
                f"{self.tool} does not start with {self.python}; see {self.scratch.parent / self.tool}.log"
            )
        self.versions = json.loads(hello)["versions"]

    def ask(self, job: Row) -> Row:
        """The answer; a process that dies is an error of this job, and is started again."""
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        self.warm.clear()
        self.start()
        return {"error": f"the process ended with code {code}"}

    def align(self, job: Row, small: Row) -> Row:
        """As :meth:`ask`, after a small pair that loads what the tool loads late."""
        if job["kind"] not in self.warm:
            self.ask({**small, "kind": job["kind"], "start": job["start"]})
            self.warm.add(job["kind"])
        return self.ask(job)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def write_pair(trial: Trial, folder: Path) -> Row:
    """The files of a pair, and where they are."""
    job: Row = {"landmarks": str(folder / "landmarks.npy")}
    for role, volume in (("fixed", trial.fixed), ("moving", trial.moving)):
        job[role], job[f"{role}_is"] = str(folder / f"{role}.nii"), (volume.modality, volume.units)
        save_volume(volume, job[role])
    np.save(job["landmarks"], trial.landmarks)
    write_text(json.dumps(job), folder / "index.json")
    return job


def rigid_floor(points: np.ndarray, goal: np.ndarray) -> float:
    """What the best rigid motion leaves, mm: more than nothing where the truth is not rigid."""
    turn, _ = Rotation.align_vectors(goal - goal.mean(0), points - points.mean(0))
    return float(np.linalg.norm(turn.apply(points - points.mean(0)) - (goal - goal.mean(0)), axis=1).mean())


def small_pair(folder: Path) -> Row:
    """Two soft balls, to warm up."""
    folder.mkdir(exist_ok=True)
    grid = Grid.around((0, 0, 0), (4, 4, 4), (40, 44, 42))
    where = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    noise = np.random.default_rng(0).normal(0, 1, (2, *grid.shape))
    balls = [100 * np.exp(-(((where - c) / (50, 40, 30)) ** 2).sum(-1)) for c in ((0, 0, 0), (4, 3, -2))]
    fixed, moving = (Volume((b + n).astype(np.float32), grid.affine, "mr") for b, n in zip(balls, noise, strict=True))
    return write_pair(Trial("small", 0, fixed, moving, None, np.zeros((4, 3))), folder)


def run_pair(name: str, plan: Plan, tools: list[str], workers: dict[str, Worker], small: Row, given: Any) -> list[Row]:
    """One pair, one tool after the other."""
    trial, rows = plan.make(), []
    job = write_pair(trial, given.scratch) | {"kind": KINDS.get(name, "rigid")}
    goal = trial.truth.apply(trial.landmarks)
    for tool in tools:
        start = given.starts.get(tool) or STARTS[name].get(tool, "auto")
        answer = workers[tool].align(job | {"start": start}, small)
        row = {"set": name, "subject": plan.subject, "trial": plan.trial, "tool": tool, "start": start}
        row |= {"pair": plan.facts, "versions": workers[tool].versions, "run": given.run}
        if "points" in answer:
            apart = np.linalg.norm(np.array(answer.pop("points")) - goal, axis=1)
            row["tre_mm"] = round(float(apart.mean()), 4)
        if job["kind"] == "rigid":
            row["floor_mm"] = round(rigid_floor(trial.landmarks, goal), 4)
        rows.append(row | answer)
        with given.rows.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


class Clock:
    """Says how far the run is."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begin = total, 0, time.perf_counter()

    def tick(self, name: str, plan: Plan, rows: list[Row]) -> None:
        self.done += 1
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done)
        words = "  ".join(
            f"{r['tool']} {r.get('tre_mm', float('nan')):.2f} mm {r.get('seconds', 0):.2f} s" for r in rows
        )
        print(f"{name} {plan.name} ({self.done}/{self.total}, {left / 60:.0f} min left): {words}", flush=True)


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: Row) -> tuple:
    return row["set"], row["subject"], row["trial"], row["tool"], row["start"], json.dumps(row["versions"])


def run(given: argparse.Namespace, workers: dict[str, Worker]) -> list[Row]:
    """All pairs that have no row yet; returns the rows of this choice, old and new."""
    old = {key(row): row for row in read_rows(given.rows)}
    rows, todo = [], []
    for name in given.sets:
        slow = SLOW_PAIRS.get(name, 60) if given.slow_pairs is None else given.slow_pairs
        for position, plan in enumerate(plans(given.testdata)[name]()[: given.pairs]):
            tools = [
                tool
                for tool in workers
                if tool in TOOLS[KINDS.get(name, "rigid")] and (tool not in SLOW or position < slow)
            ]
            if name == "capture" and not given.capture_peers:
                tools = [tool for tool in tools if tool == OURS]
            turn = position % max(len(tools), 1)
            missing = []
            for tool in tools[turn:] + tools[:turn]:
                start = given.starts.get(tool) or STARTS[name].get(tool, "auto")
                versions = json.dumps(workers[tool].versions)
                found = old.get((name, plan.subject, plan.trial, tool, start, versions))
                rows.append(found) if found else missing.append(tool)
            if missing:
                todo.append((name, plan, missing))
    clock, small = Clock(len(todo)), small_pair(given.scratch / "small")
    for name, plan, tools in todo:
        new = run_pair(name, plan, tools, workers, small, given)
        rows += new
        clock.tick(name, plan, new)
    return rows


def peers_python(given: argparse.Namespace) -> str:
    """The python of the peers' environment, which is made if there is none."""
    python = given.peers or given.work / ".venv-peers" / "bin" / "python"
    if not python.exists():
        print(f"making {python.parent.parent} (1.6 GB)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        needs = str(HERE / "requirements-registration.txt")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", needs], check=True)
    return str(python)


def machine() -> Row:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def results(rows: list[Row], given: argparse.Namespace, workers: dict[str, Worker]) -> str:
    """The JSON: one line for each row."""
    sets, verdict = describe(rows, MR_OFF_AT_REST), pooled_verdicts(rows, MR_OFF_AT_REST)
    print("\n".join(lines(sets, verdict)))
    runs = len({row["run"] for row in rows})
    if runs > 1:
        print(f"\nrows of {runs} runs: their times are only comparable if the machine was equally busy")
    used = defaultdict(dict)
    for row in rows:
        used[row["set"]][row["tool"]] = row["start"]
    facts = {
        "machine": machine(),
        "versions": {tool: worker.versions for tool, worker in workers.items()},
        "runs": runs,  # 1: all tools ran in the same hours
        "starts": used,
        "goals": goals(sets, verdict),
        "sets": sets,
        "verdicts": verdict,
    }
    keep = ("set", "subject", "trial", "tool", "tre_mm", "seconds", "cpu_seconds", "peak_mib", "held_mib", "verdict")
    table = [
        json.dumps([round(v, 4) if isinstance(v, float) else v for v in map(row.get, (*keep, "score", "error"))])
        for row in rows
    ]
    head = json.dumps(finite(facts) | {"columns": [*keep, "score", "error"], "rows": []}, indent=1)
    return head.removesuffix("[]\n}") + "[\n" + ",\n".join(table) + "\n]\n}\n"


def finite(value: Any) -> Any:
    """For JSON, which knows no infinity: what is infinite (the error of a tool that gave up) becomes null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    """Run what is missing; print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--tools", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--pairs", type=int, help="at most this many of each set")
    parser.add_argument("--slow-pairs", type=int, help=f"at most this many for {' and '.join(SLOW)}")
    parser.add_argument("--capture-peers", action="store_true", help="let the peers try the capture set too")
    parser.add_argument("--starts", nargs="+", default=[], metavar="TOOL=START", help="instead of the table STARTS")
    parser.add_argument("--peers", type=Path, help="python of the peers' environment")
    parser.add_argument("--testdata", type=Path, default=HERE.parent.parent / "shared" / "testdata")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mmfusion-registration")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "registration.json")
    given = parser.parse_args()
    given.starts = dict(word.split("=") for word in given.starts)
    given.rows, given.run = given.work / "rows.jsonl", time.strftime("%Y-%m-%dT%H:%M:%S")
    given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as scratch:
        given.scratch = Path(scratch)
        python = {OURS: sys.executable}
        workers = {t: Worker(t, python.get(t) or peers_python(given), given.scratch) for t in ORDER if t in given.tools}
        try:
            rows = run(given, workers)
        finally:
            for worker in workers.values():
                worker.stop()
    write_text(results(rows, given, workers), given.results)
    print(f"wrote {given.results}")


if __name__ == "__main__":
    main()
