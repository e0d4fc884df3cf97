"""What hostile surroundings do to the product: a long run of what tests/test_robustness.py does for seconds.

    python benchmarks/robustness.py [--files 1000] [--mutations 1000] [--part NAME ...]

Each part is a function that does its harm, prints what came of it and returns facts for the JSON; `PARTS` lists them.

corrupt_files: sound files of every format that is read, changed by flipped bits, missing ends and lying headers, as
    tests/corrupt_files.py makes them (file number N is always the same), read one by one in a process of its own.
    Allowed is an error with a name (`MmfusionError`) or the reading of what the file really says, compared with
    nibabel, pydicom or SimpleITK where they read it. Not allowed: any other error, other voxels, a crash, more than
    10 s, more than 2 GiB, a file written.

killed: `mmfusion prepare` of 12 cases is killed (kill -9) at random moments and started again, with other numbers of
    workers; tensors and transforms must be the bytes of an undisturbed run.

hindered: the disk is full, or read-only (needs the right to mount one), or a scan disappears while others are prepared.

folders: more than 1,000 combinations of a command and a target that a user may name, by docs/outputs.md: nothing of
    the user's is changed or removed, and what is refused leaves everything as it was.

kills: train, predict, bundle pack and report, killed at random moments and begun again, end as undisturbed.

disks: every command on disks that are too small for it and on a read-only one (needs the right to mount one) ends in
    one sentence, with nothing half written, and ends well when there is space.

own_files: files that mmfusion wrote (a cohort, runs, a bundle with exports), each mutated in a way that its number
    decides, and read by a command: allowed is its work, or one sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before the workers start, which look there, too

import robustness_disks
import robustness_folders
import robustness_kills
import robustness_own_files
import robustness_prepare
from corrupt_files import MEMORY_LIMIT, READERS, attempt, corrupt, make_seeds

from mmfusion.errors import LostError
from mmfusion.files import write_json
from mmfusion.prepare import versions
from mmfusion.prepare.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "robustness.json"
LONGEST_S = 10.0


def main() -> None:
    """Run the parts one after the other and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="corrupted files")
    parser.add_argument("--mutations", type=int, default=1000, help="of files that mmfusion wrote")
    parser.add_argument("--moments", type=int, default=30, help="at which commands are killed")
    parser.add_argument("--part", nargs="+", choices=[part.__name__ for part in PARTS], help="all if absent")
    given = parser.parse_args()
    facts: dict[str, Any] = {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
    }
    for part in PARTS:
        if given.part is None or part.__name__ in given.part:
            start = time.perf_counter()
            facts[part.__name__] = part(given) | {"seconds": time.perf_counter() - start}
    if given.part and RESULTS.exists():  # the parts that were left out stay as they are
        facts = json.loads(RESULTS.read_text()) | facts
    write_json(facts, RESULTS)
    print(f"wrote {RESULTS}")


def corrupt_files(given: argparse.Namespace) -> dict[str, Any]:
    """Read corrupted files; see above."""
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in READERS}
    failures, slowest, largest = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, Processes(1, limit_s=LONGEST_S) as pool:
        seeds = make_seeds(Path(folder) / "seeds")
        pool.submit(attempt, READERS["a.nii"], seeds["a.nii"]).result()  # what it imports takes its time
        for number in range(given.files):
            work = Path(folder) / str(number)
            name, what, path = corrupt(seeds, number, work)
            try:
                found = pool.submit(attempt, READERS[name], path).result()
            except LostError as error:
                found = {"outcome": "lost", "message": str(error), "seconds": 0.0, "peak_mib": 0.0}
            shutil.rmtree(work)
            outcomes[name][found["outcome"]] += 1
            slowest, largest = max(slowest, found["seconds"]), max(largest, found["peak_mib"])
            if found["outcome"] not in ("read", "refused") or found["peak_mib"] * 2**20 > MEMORY_LIMIT:
                failures.append({"number": number, "seed": name, "what": what} | found)
                print(f"  {number} {name}, {what}: {found['outcome']} {found['message']}", flush=True)
    for name, counted in outcomes.items():
        print(f"  {name:14s} " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counted.items())))
    print(f"{given.files} corrupted files: {len(failures)} failures; at most {slowest:.2f} s and {largest:.0f} MiB")
    return {
        "files": given.files,
        "outcomes": outcomes,
        "failures": failures,
        "longest_seconds": slowest,
        "largest_mib": largest,
        "reached": not failures,
    }


def killed(given: argparse.Namespace) -> dict[str, Any]:
    """Kill preparing; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_prepare.killed(Path(folder), given.moments)


def hindered(_: argparse.Namespace) -> dict[str, Any]:
    """Hinder preparing; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_prepare.hindered(Path(folder))


def folders(_: argparse.Namespace) -> dict[str, Any]:
    """Commands told to write where they must not; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_folders.folders(Path(folder))


def kills(given: argparse.Namespace) -> dict[str, Any]:
    """Kill the other commands; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_kills.kills(Path(folder), given.moments)


def disks(_: argparse.Namespace) -> dict[str, Any]:
    """Small disks; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_disks.disks(Path(folder))


def own_files(given: argparse.Namespace) -> dict[str, Any]:
    """Mutate files that mmfusion wrote; see above."""
    with tempfile.TemporaryDirectory() as folder:
        return robustness_own_files.own_files(Path(folder), given.mutations)


PARTS: list[Callable[[argparse.Namespace], dict[str, Any]]] = [
    *(corrupt_files, killed, hindered),
    *(own_files, folders, kills, disks),
]


if __name__ == "__main__":
    main()
