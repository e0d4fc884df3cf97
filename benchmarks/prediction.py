"""``mmfusion predict`` from a cold start to its first prediction, and the number formats of its network.

    python benchmarks/prediction.py [--testdata FOLDER] [--repeats 3]

Cold start: a new process each time, one case of CT, PET and MR of the soft-tissue sarcoma study as DICOM, on the CPU;
the median of several, with the files in the cache of the file system. Where it goes is measured in one more process.
Formats: one answer of the network for one prepared case, warm, the median of several: float32, bfloat16 (folded,
channels last) and ONNX Runtime, whose 8-bit form is quantized with its own tool; and how far probabilities move.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmfusion.files import write_json
from mmfusion.predict import export_model, load_engine, load_model, model_folder
from mmfusion.prepare import versions

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "prediction.json"
TESTDATA = Path(os.environ.get("MMFUSION_TESTDATA", ROOT.parent / "shared" / "testdata"))
GOALS = {"onnx": 6.0, "eager": 12.0}
WHERE = """
import sys, time
begin = float(sys.argv[1])
def tell(what): print(f"{time.time() - begin:.3f} {what}", flush=True)
model, manifest, out, engine = sys.argv[2:]
tell("interpreter")
import torch
tell("import torch")
from mmfusion.predict import load_engine, prepare_for
tell("import mmfusion.predict")
about, answer = load_engine(model, engine)
tell("load the network" + (", import MONAI" if engine == "eager" else ""))
cohort = prepare_for(about, manifest, out, workers=1)
tell("prepare: read, register, resample, write, qc.html")
from torch.utils.data import DataLoader
from mmfusion.predict import CaseImages, inference_items, predict_rows
cases = CaseImages(inference_items(about, cohort), about.modalities, cohort.modalities)
list(predict_rows([(about, answer)], about, DataLoader(cases, 1)))
tell("network")
"""


def main() -> None:
    """Time all, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testdata", type=Path, default=TESTDATA, help="folder of real scans")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    facts = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    bundles = sorted((ROOT / "bundles").glob("*_classification"))
    with tempfile.TemporaryDirectory() as scratch:
        copies = [Path(shutil.copytree(one, Path(scratch) / one.name)) for one in bundles]
        for one in copies:
            for engine in ("onnx",):
                export_model(one, engine)
        first = [cold(one, Path(scratch), given) for one in copies if given.testdata.is_dir()]
        shapes = [formats(one, Path(scratch)) for one in copies]
    write_json({**facts, "versions": versions(), "first_prediction": first, "formats": shapes}, RESULTS)
    for row in first:
        for engine, seconds in row["seconds"].items():
            goal = f"goal {GOALS[engine]:.0f} s" if engine in GOALS else ""
            print(f"{row['bundle']:32s} {engine:12s} {seconds:6.2f} s  {goal}")
            print("   " + ", ".join(f"{what} {took:.2f}" for what, took in row["where"][engine].items()))
    for row in shapes:
        print(
            f"{row['bundle']:32s}", ", ".join(f"{k} {v['ms']:.1f} ms ({v['moved']:.4f})" for k, v in row["of"].items())
        )


def cold(bundle: Path, scratch: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a new process to ``predictions.csv`` for each engine, and where they go."""
    manifest, out = scratch / "one.csv", scratch / "out"
    study = sorted((given.testdata / "sts_dicom").glob("STS_*"))[0]
    command = [sys.executable, "-m", "mmfusion"]
    subprocess.run([*command, "index", study, "--out", manifest, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    row: dict[str, Any] = {"bundle": bundle.name, "case": study.name, "seconds": {}, "where": {}}
    for engine in ("onnx", "eager"):
        took = []
        for _ in range(given.repeats):
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            predict = [
                *command,
                "predict",
                bundle,
                manifest,
                "--out",
                out,
                "--engine",
                engine,
                "--workers",
                "1",
            ]
            subprocess.run(predict, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            took.append(time.perf_counter() - start)
        row["seconds"][engine] = statistics.median(took)
        shutil.rmtree(out, ignore_errors=True)
        stages = [sys.executable, "-c", WHERE, str(time.time()), bundle, manifest, out, engine]
        said = subprocess.run(stages, check=True, capture_output=True, text=True).stdout
        reached = [line.split(" ", 1) for line in said.splitlines() if line[:1].isdigit()]
        ends = [0.0, *(float(at) for at, _ in reached)]
        row["where"][engine] = {what: b - a for (_, what), a, b in zip(reached, ends[:-1], ends[1:], strict=True)}
    return row


def formats(bundle: Path, scratch: Path) -> dict[str, Any]:
    """Milliseconds for one case in each number format, and the largest move of a probability from float32."""
    from onnxruntime.quantization import quantize_dynamic

    from mmfusion.networks import for_inference

    about, network = load_model(bundle)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, len(about.modalities), *about.case["size"], generator=generator)
    present = torch.ones(4, len(about.modalities)).bool()
    small = scratch / "int8"
    shutil.copytree(bundle, small, dirs_exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(model_folder(bundle) / "model.onnx", model_folder(small) / "model.onnx")
    folded, narrow = for_inference(network), for_inference(network, torch.bfloat16)
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "float32": network,
        "float32 folded": folded,
        "bfloat16": narrow,
        "onnx": load_engine(bundle, "onnx")[1],
        "onnx int8": load_engine(small, "onnx")[1],
    }
    out: dict[str, Any] = {}
    with torch.inference_mode():
        wanted = network(image, present).softmax(1).numpy()
        for name, way in ways.items():
            try:
                moved = float(np.abs(way(image, present).softmax(1).numpy() - wanted).max())
                took = []
                for _ in range(12):
                    start = time.perf_counter()
                    way(image[:1], present[:1])
                    took.append(1000 * (time.perf_counter() - start))
            except Exception as error:  # a runtime without kernels for this form
                out[name] = {"error": str(error).splitlines()[0][:200], "ms": float("nan"), "moved": float("nan")}
                continue
            out[name] = {"ms": statistics.median(took[2:]), "moved": moved}
    shutil.rmtree(small)
    return {"bundle": bundle.name, "size": about.case["size"], "of": out}


if __name__ == "__main__":
    main()
