"""Speed and memory of the networks against the usual forms, side by side in one run.

    python benchmarks/networks.py [--only m3t-eval m3t-train resnet-train subsets encoders]

M3T in its usual public form is a loop over slices, here with the same weights; answers are compared. The ways take
turns and the fastest of each counts, so that what else the machine does meets all of them. Memory is the peak of a
process of its own, less what it had before. FLOPs are counted by torch (a multiplication and an addition are two).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfusion.files import write_json
from mmfusion.networks import build, for_inference, m3t
from mmfusion.prepare import versions

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "networks.json"
Rows = list[dict[str, Any]]


def main() -> None:
    """Run the parts that are asked for, print their table, and keep the rows in the JSON beside those of others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        print(json.dumps(WAYS[given.memory[0]](int(given.memory[1]))))
        return
    kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    for part in given.only:
        rows = PARTS[part]()
        rows = [{"part": part, "threads": given.threads, **row} for row in rows]
        kept = [row for row in kept if row["part"] != part] + rows
        for row in rows:
            print(" | ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        machine = {"processor": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()}
        facts = {"machine": machine, "versions": versions()}
        write_json({"rows": sorted(kept, key=lambda row: list(PARTS).index(row["part"])), **facts}, RESULTS)
    print(f"written: {RESULTS}")


def fastest(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, Any]]:
    """Seconds of the fastest run of each way, which take turns after a run to warm up, and its last result."""
    out: dict[str, tuple[float, Any]] = {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            result = way()
            seconds = time.perf_counter() - start
            if turn:
                out[name] = (min(seconds, out.get(name, (seconds, None))[0]), result)
    return out


def in_own_process(way: str, size: int) -> dict[str, Any]:
    """What a way of ``WAYS`` measures when nothing else was in memory before."""
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--memory", way, str(size)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _peak(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and the most memory above what is there now (Linux; ru_maxrss would start at the parent's)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = _memory("VmRSS"), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start, "gib": _memory("VmHWM") - before}


def _memory(what: str) -> float:
    """A line of /proc/self/status, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20


def settled_m3t(**encoder_options: Any) -> torch.nn.Module:
    """M3T of the paper's size with running statistics that are not 0 and 1, in evaluation mode."""
    torch.manual_seed(0)
    network = m3t(("mr",), encoder_options=encoder_options).train()
    with torch.no_grad():
        network(torch.randn(1, 1, 40, 40, 40), torch.ones(1, 1))
    return network.eval()


def loop_over_slices(network: Any, image: torch.Tensor) -> torch.Tensor:
    """The usual public form: each slice by itself through the 2D CNN."""
    encoder = network.encoders[0]
    features = encoder.stem(image)
    planes = [torch.stack([encoder.slice_cnn(one) for one in features.unbind(axis)], 1) for axis in (3, 2, 4)]
    return network.classifier(encoder.transformer(encoder.sequence(planes))[:, 0])


def m3t_eval() -> Rows:
    """M3T, evaluation, batch 1: the loop, and ours in fp32 and bf16."""
    rows: Rows = []
    goals = {64: {"fp32": 3.0, "bf16": 6.0}, 128: {"fp32": 1.4, "bf16": 3.0}}
    network = settled_m3t()
    ready = {"fp32": for_inference(network), "bf16": for_inference(network, torch.bfloat16)}
    for size, goal in goals.items():
        image, present = torch.randn(1, 1, size, size, size), torch.ones(1, 1)
        ways = {"loop": lambda image=image: loop_over_slices(network, image)}
        ways |= {name: lambda one=one, image=image, there=present: one(image, there) for name, one in ready.items()}
        with torch.inference_mode():
            found = fastest(ways, 5 if size == 64 else 3)
            with FlopCounterMode(display=False) as counter:
                network(image, present)
        flops, (base, said) = counter.get_total_flops(), found["loop"]
        memory = {way: in_own_process(f"m3t-{way}", size)["gib"] for way in ("loop", "fp32", "bf16")}
        for name, (seconds, answer) in found.items():
            off = float((answer - said).abs().max() / said.abs().max())
            row = {"what": f"m3t {size}^3 {name}", "seconds": round(seconds, 3), "times": round(base / seconds, 2)}
            row |= {"difference": f"{off:.1e}", "gib": round(memory[name], 2), "gflop": round(flops / 1e9)}
            row["gflop_per_s"] = round(flops / 1e9 / seconds)
            if name in goal:
                near = off <= (1e-4 if name == "fp32" else 0.02)
                lean = name == "bf16" or size == 64 or memory[name] <= 1.01 * memory["loop"]
                row |= {"goal": f">= {goal[name]}", "reached": bool(base / seconds >= goal[name] and near and lean)}
            rows.append(row)
    return rows


def _m3t_answer(dtype: torch.dtype | None) -> Callable[[int], dict[str, float]]:
    def measure(size: int) -> dict[str, float]:
        network = settled_m3t()
        ready = network if dtype is None else for_inference(network, dtype)
        image = torch.randn(1, 1, size, size, size)
        with torch.inference_mode():
            way = (lambda: loop_over_slices(network, image)) if dtype is None else lambda: ready(image)
            return _peak(way)

    return measure


def m3t_train() -> Rows:
    """M3T, a training step of one case at 128^3 in fp32, with and without checkpoints."""
    plain, again = (in_own_process(f"m3t-train-{way}", 128) for way in ("plain", "checkpoint"))
    ratio, rows = again["seconds"] / plain["seconds"], []
    for name, one in (("plain", plain), ("checkpoint", again)):
        row = {"what": f"m3t 128^3 training step {name}", "seconds": round(one["seconds"], 1)}
        rows.append(row | {"gib": round(one["gib"], 2), "loss": round(one["loss"], 6)})
    rows[1] |= {"times": round(ratio, 2), "goal": "<= 4 GiB, <= 1.35 times the time"}
    rows[1]["reached"] = bool(again["gib"] <= 4 and ratio <= 1.35)
    return rows


def _m3t_step(checkpoint: bool) -> Callable[[int], dict[str, float]]:
    def measure(size: int) -> dict[str, float]:
        torch.manual_seed(0)
        network = m3t(("mr",), encoder_options={"checkpoint": checkpoint}).train()
        image, label, loss = torch.randn(1, 1, size, size, size), torch.tensor([1]), []

        def step() -> None:
            loss.append(torch.nn.functional.cross_entropy(network(image, torch.ones(1, 1)), label))
            loss[0].backward()

        return _peak(step) | {"loss": loss[0].item()}

    return measure


def resnet_train() -> Rows:
    """ResNet-18 of two modalities at 96^3, batch 2: a step in fp32 and in bf16, and 200 steps in bf16."""

    def stepper(enabled: bool) -> Callable[[], float]:
        torch.manual_seed(0)
        # of two cases, standardization makes -1 and 1 of any difference, rounding included
        network = build("single_level", "resnet18", modalities=("ct", "pet"), standardize=False).train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
        draw = torch.Generator().manual_seed(1)

        def step() -> float:
            image = torch.randn(2, 2, 96, 96, 96, generator=draw)
            label = torch.randint(2, (2,), generator=draw)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = sum(network.losses(network.outputs(image, torch.ones(2, 2)), label).values())
            loss.backward()
            norms = [p.grad.norm() for p in network.parameters()]
            broken.append(not bool(torch.isfinite(torch.stack(norms)).all()))
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            return float(loss.detach())

        return step

    broken: list[bool] = []
    start = {name: stepper(name == "bf16")() for name in ("fp32", "bf16")}  # the same weights and images
    found = fastest({"fp32": stepper(False), "bf16": stepper(True)}, 4)
    base = found["fp32"][0]
    rows: Rows = [{"what": f"resnet18 step {name}", "seconds": round(s, 3)} for name, (s, _) in found.items()]
    off = abs(start["bf16"] - start["fp32"]) / start["fp32"]
    reached = base / found["bf16"][0] >= 2 and off <= 0.01
    rows[1] |= {"times": round(base / found["bf16"][0], 2), "loss_difference": f"{off:.1e}", "goal": ">= 2"}
    rows[1]["reached"] = bool(reached)
    broken.clear()
    step = stepper(True)
    losses = [step() for _ in range(200)]
    finite = not any(broken) and all(torch.isfinite(torch.tensor(losses)).tolist())
    row = {"what": "resnet18 bf16, 200 steps", "steps_not_finite": sum(broken), "goal": "all finite"}
    return [*rows, {**row, "reached": finite}]


def subsets() -> Rows:
    """Inference with one of three modalities present against all three."""
    rows: Rows = []
    image = torch.randn(2, 3, 96, 96, 96)
    one, all_there = torch.tensor([[1, 0, 0]] * 2), torch.ones(2, 3)
    for strategy in ("single_level", "hierarchical", "attention", "decision"):
        network = build(strategy, "resnet18").eval()
        with torch.inference_mode():
            found = fastest({"one": lambda n=network: n(image, one), "all": lambda n=network: n(image, all_there)}, 5)
        share = found["one"][0] / found["all"][0]
        row = {"what": f"{strategy}, 1 of 3 present", "seconds": round(found["one"][0], 3), "share": round(share, 3)}
        rows.append({**row, "goal": "<= 0.45", "reached": bool(share <= 0.45)})
    return rows


def encoders() -> Rows:
    """Three modalities through encoders of their own against three networks, and through one that is shared."""
    image = torch.randn(2, 3, 96, 96, 96)
    ours, shared = (build("single_level", "resnet18", shared=one).eval() for one in (False, True))
    alone = [build("single_level", "resnet18", modalities=("ct",)).eval() for _ in range(3)]
    with torch.inference_mode():
        ways = {
            "three networks": lambda: [net(image[:, m : m + 1]) for m, net in enumerate(alone)],
            "an encoder a modality": lambda: ours(image),
            "one shared encoder": lambda: shared(image),
        }
        found = fastest(ways, 5)
    base = found["three networks"][0]
    rows: Rows = []
    for name, (seconds, _) in found.items():
        rows.append({"what": name, "seconds": round(seconds, 3), "share": round(seconds / base, 3)})
    rows[1] |= {"goal": "<= 1.05", "reached": bool(found["an encoder a modality"][0] <= 1.05 * base)}
    return rows


WAYS = {
    "m3t-loop": _m3t_answer(None),
    "m3t-fp32": _m3t_answer(torch.float32),
    "m3t-bf16": _m3t_answer(torch.bfloat16),
    "m3t-train-plain": _m3t_step(False),
    "m3t-train-checkpoint": _m3t_step(True),
}
PARTS: dict[str, Callable[[], Rows]] = {
    "m3t-eval": m3t_eval,
    "m3t-train": m3t_train,
    "resnet-train": resnet_train,
    "subsets": subsets,
    "encoders": encoders,
}

if __name__ == "__main__":
    main()
