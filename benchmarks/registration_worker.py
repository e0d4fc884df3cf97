"""One tool in one process, for `registration.py`: jobs as lines of JSON on stdin, answers as lines of JSON on stdout.

    python registration_worker.py TOOL    (elastix, ants, greedy, simpleitk; ours runs in the project's environment)

The clock, the processor time and the peak of memory cover the registration alone; files are read before. Peak memory
is that of the process, with the libraries and the two volumes that it holds. What a tool prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

SOURCES = (".py", ".c", ".cpp", ".h")  # of the code that registers


def plain(error: Exception) -> str:
    """The last line of what an error says, without where the library was built and where its objects lay in memory."""
    last = (str(error).strip() or "no message").splitlines()[-1]
    return re.sub(r"\(0x[0-9a-f]+\)", "", last)[-300:]


class Ours:
    """`mmfusion.registration.register` with its defaults: one thread, ``init="auto"``."""

    def __init__(self) -> None:
        from mmfusion.registration import register

        self.register, self.last = register, None

    def read(self, job: dict[str, Any], role: str) -> Any:
        from mmfusion.io import load_volume

        modality, units = job[f"{role}_is"]
        return load_volume(job[role], modality=modality).replace(units=units, meta={})

    def align(self, fixed: Any, moving: Any, kind: str, start: str) -> Any:
        found = self.register(fixed, moving, kind)
        self.last = found, fixed.grid, kind
        return found.fixed_to_moving.apply

    def facts(self) -> dict[str, Any]:
        """What else is known of the last result."""
        found, grid, kind = self.last
        facts = {"verdict": found.verdict, "score": found.score, "facts": small(found.as_dict())}
        if kind == "deformable":
            facts["negative_jacobians"] = folded(found.fixed_to_moving.apply, grid)
        return facts


def small(facts: dict[str, Any]) -> dict[str, Any]:
    """What fits in a row."""
    return {key: value for key, value in facts.items() if len(json.dumps(value, default=str)) < 1000}


def folded(apply: Any, grid: Any) -> float:
    """Share of the voxels of ``grid`` where the map turns space inside out (differences of neighbors)."""
    points = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    there = apply(points.reshape(-1, 3)).reshape(*grid.shape, 3)
    inner = tuple(slice(0, n - 1) for n in grid.shape)
    steps = np.stack([np.diff(there, axis=axis)[inner] for axis in range(3)], axis=-1)
    return float((np.linalg.det(steps) * np.linalg.det(grid.affine[:3, :3]) <= 0).mean())


def peak_mib(reset: bool = False) -> float:
    """The most memory that this process held since the last ``reset``, MiB (Linux)."""
    if reset:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that earlier jobs freed does not count
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cpu_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def work(tool: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Read, register on the clock, and say where the landmarks go (and the matrix, if there is one)."""
    fixed, moving = tool.read(job, "fixed"), tool.read(job, "moving")
    held = peak_mib(reset=True)
    cpu, wall = cpu_seconds(), time.perf_counter()
    apply = tool.align(fixed, moving, job["kind"], job["start"])
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    answer = {"seconds": wall, "cpu_seconds": cpu, "peak_mib": peak_mib(), "held_mib": held}
    corners = np.concatenate([np.zeros((1, 3)), 100 * np.eye(3)])
    points = np.concatenate([corners, np.load(job["landmarks"])])
    there = np.asarray(apply(points))
    if job["kind"] != "deformable":
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = (there[1:4] - there[0]).T / 100, there[0]
        answer["matrix"] = matrix.tolist()
    return answer | {"points": there[4:].tolist()} | (tool.facts() if isinstance(tool, Ours) else {})


def versions(name: str) -> dict[str, str]:
    """Of ours with a digest of the code that registers: rows of another state are not taken up again."""
    if name != "ours":
        import registration_peers

        return registration_peers.versions(name)
    import mmfusion

    root = Path(mmfusion.__file__).parent
    files = sorted(f for room in ("registration", "volume") for f in (root / room).rglob("*") if f.suffix in SOURCES)
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    return {"mmfusion": mmfusion.__version__, "code": digest[:12]}


def main() -> None:
    name = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print does not come between the answers
    if name == "ours":
        tool = Ours()
    else:
        import registration_peers

        tool = registration_peers.TOOLS[name]()
    print(json.dumps({"versions": versions(name)}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = work(tool, json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {plain(error)}"}
        print(json.dumps(answer, default=float), file=answers, flush=True)


if __name__ == "__main__":
    main()
