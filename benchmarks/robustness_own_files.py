"""What damaged, edited and foreign files of mmfusion's own do to its commands: one sentence, or the work is done.

The part `own_files` of `robustness.py`. A small study is made once: a cohort, runs, folds, a bundle with exports. Each
mutation changes one file in a copy of it, in a way that its number decides, and runs a command that reads that file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from small_scans import write_study
from tiny_cohort import FAST, write_tiny_cohort

from mmfusion.bundle import TEMPLATE, new_bundle, run_config
from mmfusion.bundle.model_card import write_model_card
from mmfusion.cli import main
from mmfusion.cohort.simulate import draw_subjects
from mmfusion.cohort.simulate.study import read_truth
from mmfusion.cohort.simulate.subjects import to_plain
from mmfusion.demo import _refuse_another
from mmfusion.errors import LostError, MmfusionError
from mmfusion.files import write_json
from mmfusion.prepare.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_S = 120.0
SMALL = FAST | {"encoder": "cnn", "width": 0.125, "epochs": 1, "batch_size": 16}
GRID = ["--spacing", "12", "13", "14", "--size", "17", "19", "18", "--register", "none"]
EVALUATION = {"resamples": 100, "device": "cpu"}


class Stop(Exception):
    """Ends a training before it is finished."""


def make(study: Path) -> None:
    """Everything that is mutated, by the commands that users type."""
    manifest = write_study(study / "scans", split=["train", "train", "test"])
    assert prepare(study) == 0
    write_tiny_cohort(study / "cohort", ["benign", "malignant"] * 8)
    cohort = str(study / "cohort")
    for fold in (0, 1):
        run_config("train", cohort=cohort, run_dir=str(study / "folds"), fold=fold, folds=2, **SMALL)
    run_config("evaluate_folds", run_dir=str(study / "folds"), **EVALUATION)
    run_config("train", cohort=cohort, run_dir=str(study / "run"), **SMALL)
    run_config("evaluate", run_dir=str(study / "run"), **EVALUATION)
    unfinished(study)
    new_bundle(study / "bundle", modalities=["ct", "pet", "mr"], classes=["benign", "malignant"])
    assert main(["bundle", "pack", str(study / "bundle"), str(study / "run")]) == 0
    for engine in ("onnx",):
        assert main(["export", str(study / "bundle"), "--engine", engine]) == 0
    lines = manifest.read_text().splitlines()
    (study / "scans" / "one.csv").write_text("\n".join(lines[:2]) + "\n")
    assert predict(study) == 0
    write_json({"subjects": 40, "seed": 0}, study / "demo" / "demo.json")
    write_json({"note": "", "subjects": [to_plain(one) for one in draw_subjects(3, 0)]}, study / "raw" / "truth.json")


def prepare(study: Path) -> int:
    """The scans again, with landmarks that are kept."""
    manifest, out = str(study / "scans" / "manifest.csv"), str(study / "prepared")
    return main(["prepare", manifest, "--out", out, *GRID, "--workers", "1", "--mr-normalize", "histogram"])


def predict(study: Path, engine: str = "eager") -> int:
    """One case by the bundle."""
    manifest, out = str(study / "scans" / "one.csv"), str(study / "predicted")
    return main(["predict", str(study / "bundle"), manifest, "--out", out, "--workers", "1", "--engine", engine])


def unfinished(study: Path) -> None:
    """A training that was ended after its first epoch."""
    given = SMALL | {"epochs": 2, "cohort": str(study / "cohort"), "run_dir": str(study / "unfinished")}
    train = str(TEMPLATE / "configs" / "train.yaml")
    workflow = ConfigWorkflow(train, logging_file=False, workflow_type="train", **given)
    workflow.initialize()

    def stop(engine: Any) -> None:
        if engine.state.epoch == 2:
            raise Stop

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, stop)  # the state is kept as the loader ends
    with contextlib.suppress(RuntimeError):
        workflow.run()
    assert (study / "unfinished" / "checkpoints" / "resume.pt").is_file()


def ensemble(study: Path) -> None:
    """The folds together, on one case."""
    manifest, out = str(study / "scans" / "one.csv"), str(study / "together")
    run_config("ensemble", run_dir=str(study / "folds"), manifest=manifest, out=out, workers=1, device="cpu")


def resume(study: Path) -> None:
    """The second epoch of the unfinished training."""
    given = SMALL | {"epochs": 2, "cohort": str(study / "cohort"), "run_dir": str(study / "unfinished")}
    run_config("train", **given)


def inference(study: Path) -> None:
    """One case by the bundle's configuration."""
    manifest, out = str(study / "scans" / "one.csv"), str(study / "predicted")
    run_config("inference", study / "bundle", manifest=manifest, out=out, workers=1, device="cpu")


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "check": lambda study: main(["check", str(study / "cohort")]),
    "report of a cohort": lambda study: main(["report", str(study / "prepared")]),
    "report": lambda study: main(["report", str(study / "run")]),
    "report of folds": lambda study: main(["report", str(study / "folds")]),
    "prepare": prepare,
    "predict": predict,
    "predict by onnx": lambda study: predict(study, "onnx"),
    "export": lambda study: main(["export", str(study / "bundle"), "--engine", "onnx"]),
    "pack": lambda study: main(["bundle", "pack", str(study / "bundle"), str(study / "run")]),
    "model card": lambda study: write_model_card(study / "bundle"),
    "evaluate": lambda study: run_config("evaluate", run_dir=str(study / "run"), **EVALUATION),
    "evaluate with loaders": lambda study: run_config("evaluate", run_dir=str(study / "run"), loaders=2, **EVALUATION),
    "evaluate_folds": lambda study: run_config("evaluate_folds", run_dir=str(study / "folds"), **EVALUATION),
    "ensemble": ensemble,
    "inference": inference,
    "train": lambda study: run_config("train", cohort=str(study / "cohort"), run_dir=str(study / "again"), **SMALL),
    "resume": resume,
    "demo": lambda study: _refuse_another(study / "demo", {"subjects": 40, "seed": 0}),
    "truth": lambda study: read_truth(study / "raw"),
}

READERS: dict[str, tuple[str, ...]] = {
    "cohort/options.json": ("check", "evaluate", "train"),
    "cohort/cases.csv": ("check", "evaluate", "train"),
    "cohort/cases/S03/case.json": ("check",),
    "cohort/cases/S0*/image.npy": ("check", "evaluate", "evaluate with loaders", "train", "evaluate_folds"),
    "prepared/options.json": ("report of a cohort", "prepare"),
    "prepared/cases.csv": ("report of a cohort", "prepare"),
    "prepared/cases/001/qc.npz": ("report of a cohort",),
    "prepared/cases/002/case.json": ("prepare",),
    "prepared/landmarks/001.json": ("prepare",),
    "run/options.json": ("report", "evaluate"),
    "run/split.csv": ("report", "evaluate"),
    "run/model.json": ("evaluate", "pack"),
    "run/model.pt": ("evaluate", "pack"),
    "run/predictions.csv": ("report",),
    "run/metrics.json": ("report",),
    "run/history.csv": ("report",),
    "folds/options.json": ("report of folds",),
    "folds/predictions.csv": ("report of folds",),
    "folds/metrics.json": ("report of folds",),
    "folds/fold_1/options.json": ("evaluate_folds", "ensemble"),
    "folds/fold_1/split.csv": ("evaluate_folds", "ensemble"),
    "folds/fold_1/model.json": ("evaluate_folds", "ensemble"),
    "bundle/models/model.json": ("predict", "inference", "export"),
    "bundle/models/model.pt": ("predict", "inference"),
    "bundle/models/model.onnx": ("predict by onnx",),
    "bundle/configs/metadata.json": ("pack", "model card"),
    "unfinished/options.json": ("resume",),
    "unfinished/checkpoints/resume.pt": ("resume",),
    "unfinished/checkpoints/best.pt": ("resume",),
    "predicted/cohort/cases/*/image.npy": ("predict",),
    "predicted/cohort/cases/*/case.json": ("predict",),
    "demo/demo.json": ("demo",),
    "raw/truth.json": ("truth",),
}
"""Files of the study, and the commands that read them."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    "",
    "../../x",
    "a" * 300,
    "\ud800",
    "0",
    [],
    [1],
    {},
    {"a": 1},
)


def mutate(path: Path, rng: random.Random) -> str:
    """Change a file, and say how."""
    kinds = dict(ANY)
    kinds |= JSON if path.suffix == ".json" else CSV if path.suffix == ".csv" else {}
    kinds |= NPY if path.suffix == ".npy" else {}
    name = rng.choice(list(kinds))
    content = kinds[name](path.read_bytes(), rng)
    path.unlink()  # a link to the file of the study
    path.write_bytes(content)
    return name


def _flip(raw: bytes, rng: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 3, 30))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _zeros(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(raw))
    length = min(rng.choice((1, 10, 4096)), len(raw) - start)
    return raw[:start] + bytes(length) + raw[start + length :]


def _twice(raw: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(raw))
    return raw[:start] + raw[max(0, start - 100) :]


ANY: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda raw, rng: raw[: rng.randrange(len(raw))],
    "emptied": lambda raw, rng: b"",
    "bits": _flip,
    "zeros": _zeros,
    "random": lambda raw, rng: rng.randbytes(len(raw)),
    "twice": _twice,
}


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys, at any depth."""
    keys = (
        list(content) if isinstance(content, dict) else list(range(len(content))) if isinstance(content, list) else []
    )
    return [(content, key) for key in keys] + [place for key in keys for place in _places(content[key])]


def _other_value(raw: bytes, rng: random.Random) -> bytes:
    content = json.loads(raw)
    where, key = rng.choice(_places(content))
    where[key] = rng.choice(VALUES)
    return json.dumps(content).encode()


def _without(raw: bytes, rng: random.Random) -> bytes:
    content = json.loads(raw)
    where, key = rng.choice(_places(content))
    del where[key]
    return json.dumps(content).encode()


def _more(raw: bytes, rng: random.Random) -> bytes:
    content = json.loads(raw)
    tables = [content, *(where[key] for where, key in _places(content) if isinstance(where[key], dict))]
    rng.choice(tables)["of_a_later_version"] = rng.choice(VALUES)
    return json.dumps(content).encode()


JSON: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "another value": _other_value,
    "another value, too": _other_value,  # the most ways are here
    "no key": _without,
    "one key more": _more,
    "no fields": lambda raw, rng: rng.choice((b"null", b"[]", b"5", b'"text"', b"{}", b"NaN")),
    "nested": lambda raw, rng: b'{"a":' * 100_000,
    "byte order mark": lambda raw, rng: b"\xef\xbb\xbf" + raw,
    "latin-1": lambda raw, rng: raw.decode().replace("e", "\xe9").encode("latin-1"),
    "line ends": lambda raw, rng: raw.replace(b"\n", b"\r\n"),
}


def _table(raw: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(raw.decode(), newline="")))


def _written(rows: list[list[str]], delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def _no_column(raw: bytes, rng: random.Random) -> bytes:
    rows = _table(raw)
    column = rng.randrange(len(rows[0]))
    return _written([row[:column] + row[column + 1 :] for row in rows])


def _shuffled(raw: bytes, rng: random.Random) -> bytes:
    rows = _table(raw)
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    return _written([[row[column] for column in order] for row in rows])


def _other_cell(raw: bytes, rng: random.Random) -> bytes:
    rows = _table(raw)
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(
        ("", "x", "-1", "nan", "1e999", "../../x", "a" * 300, "\u00e9 \u4e00", "0,5")
    )
    return _written(rows)


CSV: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "another cell": _other_cell,
    "another cell, too": _other_cell,
    "semicolons": lambda raw, rng: b"\xef\xbb\xbf" + _written(_table(raw), ";"),
    "tabs": lambda raw, rng: _written(_table(raw), "\t"),
    "latin-1": lambda raw, rng: raw.decode().replace("e", "\xe9").encode("latin-1"),
    "line ends": lambda raw, rng: raw.replace(b"\n", b"\r\n"),
    "no column": _no_column,
    "shuffled columns": _shuffled,
    "a huge cell": lambda raw, rng: raw.replace(b",", b"," + b"a" * 200_000, 1),
    "no rows": lambda raw, rng: raw.split(b"\n")[0] + b"\n",
}


def _other_array(raw: bytes, rng: random.Random) -> bytes:
    array = np.load(io.BytesIO(raw))
    other = rng.choice(
        (
            lambda: array[0],
            lambda: array[:-1],
            lambda: array[..., :-1],
            lambda: array[:, :0],
            lambda: array.astype(complex),
            lambda: array.astype("U3"),
            lambda: array.astype(object),
            lambda: np.asfortranarray(array),
            lambda: array.astype(">f4"),
            lambda: array * np.float32(np.nan),
        )
    )()
    stream = io.BytesIO()
    np.save(stream, other, allow_pickle=True)
    return stream.getvalue()


NPY: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "another array": _other_array,
    "another array, too": _other_array,
    "a pickle": lambda raw, rng: pickle.dumps([1, 2]),
}


def attempt(study: Path, number: int) -> dict[str, Any]:
    """Mutation ``number`` in a copy of the study, and what comes of it."""
    rng, copy = random.Random(number), study.with_name(f"copy{number}")
    shutil.copytree(study, copy, copy_function=os.link)
    try:
        pattern = rng.choice(list(READERS))
        file = rng.choice(sorted(copy.glob(pattern)))
        command = rng.choice(READERS[pattern])
        result = {"file": str(file.relative_to(copy)), "mutation": mutate(file, rng), "command": command}
        before = _listing(study.parent, copy)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            result |= _outcome(COMMANDS[command], copy)
        message = result["message"] or said.getvalue().strip()[-300:]
        if _listing(study.parent, copy) != before:
            result["outcome"] = "outside"
        return result | {"message": message.replace(str(copy), "")}
    finally:
        shutil.rmtree(copy)


def _outcome(command: Callable[[Path], Any], copy: Path) -> dict[str, str]:
    try:
        return {"outcome": "refused" if command(copy) == 1 else "done", "message": ""}
    except MmfusionError as error:
        return {"outcome": "refused", "message": str(error)}
    except BaseException as error:  # what is asked for here
        import traceback

        last = "".join(traceback.format_exception(error)).strip()[-1500:]
        return {"outcome": "trace", "message": f"{type(error).__name__}: {error}"[:300], "trace": last}


def _listing(folder: Path, without: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, but those in one of its folders."""
    out = {}
    for where, names, files in os.walk(folder):
        if Path(where) == folder and without.name in names:
            names.remove(without.name)
        for name in files:
            stat = Path(where, name).stat()
            out[str(Path(where, name))] = (stat.st_size, stat.st_mtime_ns)
    return out


def own_files(work: Path, mutations: int = 1000, first: int = 0) -> dict[str, Any]:
    """Mutate files; see above."""
    study = work / "study"
    with contextlib.redirect_stdout(sys.stderr):
        make(study)
    outcomes: dict[str, Counter[str]] = {}
    failures = []
    with Processes(1, limit_s=LONGEST_S) as pool:
        for number in range(first, first + mutations):
            try:
                result = pool.submit(attempt, study, number).result()
            except LostError as error:
                result = {"file": "", "outcome": "lost", "message": str(error)}
            outcomes.setdefault(result["file"], Counter())[result["outcome"]] += 1
            if result["outcome"] not in ("done", "refused"):
                failures.append({"number": number} | result)
                print(f"  {number} {result}", flush=True)
    for name in sorted(outcomes):
        print(f"  {name:40s} " + ", ".join(f"{count} {one}" for one, count in sorted(outcomes[name].items())))
    counts = sum(outcomes.values(), Counter())
    print(f"{mutations} mutations of own files: {dict(counts)}; {len(failures)} failures")
    return {
        "mutations": mutations,
        "outcomes": outcomes,
        "counts": counts,
        "failures": failures,
        "reached": not failures,
    }
