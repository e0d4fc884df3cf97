"""Writes what tests/test_golden.py compares with: files of one version, which later versions must still understand.

    OMP_NUM_THREADS=1 python tests/golden/make.py

Written once, with the version before `mmfusion.train`; written again, the promise would be to files of that day.

cohort/   22 cases of noise with a label in PET, some modalities missing
run/      a training of two epochs on it, evaluated
stopped/  the same training, broken off in its second epoch
bundle/   a bundle with the model of run/
golden.json   four strategies trained for two epochs: hash of the weights; model.json, predictions.csv, metrics.json
"""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

HERE = Path(__file__).parent
SMALL = {"encoder": "cnn", "width": 0.1}
FAST = {"epochs": 2, "batch_size": 4, "learning_rate": 0.003, "device": "cpu", "threads": 1}
SYSTEMS = {
    "input": {"strategy": "input", **SMALL},
    "feature": {"strategy": "single_level", "dropout": 0.2, **SMALL},
    "decision": {"strategy": "decision", "fusion": "product", **SMALL},
    "m3t": {"strategy": "attention", "fusion": "joint", "encoder": "m3t_small", "width": 0.1},
}
"""The four ways to fuse, by the names of the bundles that have them."""
OPTIONS = SYSTEMS["feature"]


def machine():
    """What the last bits of a result depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    model = next((value.strip() for name, value in facts.items() if name.strip() == "model name"), platform.processor())
    flags = next((value.split() for name, value in facts.items() if name.strip() == "flags"), [])
    wide = sorted(flag for flag in flags if flag.startswith(("avx", "amx")))
    return {"cpu": model, "instructions": wide, "torch": torch.__version__, "threads": torch.get_num_threads()}


def results(run):
    """What a training and its evaluation came to."""
    weights = torch.load(run / "model.pt", weights_only=True)
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    files = {name: (run / name).read_text() for name in ("model.json", "predictions.csv", "metrics.json")}
    return {"weights": digest.hexdigest(), **files}


def main():
    sys.path.insert(0, str(HERE.parent))
    import tiny_cohort

    from mmfusion.bundle import TEMPLATE, new_bundle, pack_model, run_config

    torch.set_num_threads(1)
    for name in ("cohort", "run", "stopped", "bundle"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    missing = {0: ["ct"], 1: ["pet"], 2: ["mr"], 9: ["ct", "mr"]}
    tiny_cohort.GRID["size"] = tiny_cohort.OPTIONS["size"] = [11, 13, 12]  # half a megabyte in all
    tiny_cohort.write_tiny_cohort(HERE / "cohort", ["benign", "malignant"] * 11, missing)
    golden = {}
    for name, options in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as temporary:
            run = HERE / "run" if name == "feature" else Path(temporary) / "run"
            run_config("train", cohort=str(HERE / "cohort"), run_dir=str(run), **FAST, **options)
            run_config("evaluate", run_dir=str(run), resamples=100, device="cpu", threads=1)
            (run / "report.html").unlink()
            golden[name] = results(run)
    given = FAST | OPTIONS | {"cohort": str(HERE / "cohort"), "run_dir": str(HERE / "stopped")}
    given |= {"bundle_root": str(TEMPLATE)}
    train = str(TEMPLATE / "configs" / "train.yaml")
    workflow = ConfigWorkflow(train, logging_file=False, workflow_type="train", **given)
    workflow.initialize()

    def stop(engine):
        if engine.state.epoch == 2:
            raise InterruptedError("broken off on purpose")

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED, stop)
    with suppress(RuntimeError):
        workflow.run()
    new_bundle(HERE / "bundle", modalities=["ct", "pet", "mr"], classes=["benign", "malignant"], **OPTIONS)
    pack_model(HERE / "bundle", HERE / "run")
    (HERE / "golden.json").write_text(json.dumps({"machine": machine(), "systems": golden}, indent=1) + "\n")


if __name__ == "__main__":
    main()
