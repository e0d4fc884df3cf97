"""Small cohort and run folders with known content, in the formats that prepare and training write."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import ndimage

from mmfusion.evaluation import classification_metrics, compare
from mmfusion.files import claim
from mmfusion.options import resolve
from mmfusion.predict import Model

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
STATES = [
    ("done", "0.91", ""),
    ("doubtful", "0.35", "translation of 61 mm is large | similarity did not rise"),
    ("done", "0.62", ""),
    ("failed", "", "subject <b>017</b>: ct file scans/017_ct.nii.gz does not exist"),
]


def write_csv(path: Path, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def body(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like and a PET-like volume of one body, both 0..1."""
    noise = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.6) ** 2 + (z / 0.95) ** 2 < 1
    lungs = ((np.abs(x) - 0.35) / 0.2) ** 2 + (y / 0.3) ** 2 + ((z - 0.2) / 0.4) ** 2 < 1
    spine = (x / 0.1) ** 2 + ((y + 0.4) / 0.1) ** 2 < 1
    ct = np.where(inside, 0.55, 0.0) - 0.5 * (lungs & inside) + 0.4 * (spine & inside)
    lesion = (x - 0.2) ** 2 + (y - 0.2) ** 2 + (z + 0.4) ** 2 < 0.02
    pet = ndimage.gaussian_filter(np.where(inside, 0.12, 0.01) - 0.08 * lungs * inside + 0.7 * lesion, 1)
    ct = np.clip(ct + 0.02 * noise.normal(size=shape) * inside, 0, 1)
    pet = np.clip(pet * (1 + 0.15 * noise.normal(size=shape)), 0, 1)
    return ct.astype(np.float32), pet.astype(np.float32)


def qc_arrays(shape: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """What qc.npz holds for a ct reference and a pet that was ``seed + 3`` voxels off."""
    ct, pet = body(shape, seed)
    arrays: dict[str, np.ndarray] = {}
    stages = {"before_pet": np.roll(pet, seed % 5 + 3, axis=(0, 1)), "after_pet": pet}
    for key, volume in {"reference": ct, **stages}.items():
        for plane, axis in PLANES.items():
            arrays[f"{key}_{plane}"] = np.take(volume, volume.shape[axis] // 2, axis=axis)
    for key, volume in stages.items():
        arrays[f"histogram_{key}"] = np.histogram2d(ct.ravel(), volume.ravel(), bins=32)[0]
    return arrays


def write_cohort(folder: Path, cases: int = 4, shape: tuple[int, int, int] = (23, 19, 29)) -> Path:
    """A cohort of ct and pet; every fourth case failed, every fourth is doubtful."""
    claim(folder, "cohort")
    rows = []
    for index in range(cases):
        case, (status, score, reasons) = f"c{index:03d}_1", STATES[index % 4]
        row = {"case": case, "subject": f"c{index:03d}", "session": "1", "label": str(index % 2), "split": ""}
        row |= {"site": "A&B", "status": status, "reasons": reasons, "reference": "ct", "modalities": "ct pet"}
        if status != "failed":
            row |= {"pet_verdict": "ok", "pet_score": score, "pet_similarity_before": "0.213"}
            row |= {"pet_similarity_after": "0.874", "pet_overlap": "0.97", "pet_translation_mm": "12.34"}
            row |= {"pet_rotation_deg": "2.5", "pet_motion_mm": "13.1", "ct_spacing": "0.98 0.98 3.27"}
            row |= {"ct_orientation": "LPS", "ct_units": "HU", "pet_spacing": "4.07 4.07 3.0", "pet_units": "SUVbw"}
            place = folder / "cases" / case
            place.mkdir(parents=True)
            np.savez_compressed(place / "qc.npz", **qc_arrays(shape, index))
        rows.append(row)
    folder.mkdir(exist_ok=True)
    write_csv(folder / "cases.csv", rows)
    options = {"spacing": [2.0, 2.0, 2.0], "register": "rigid", "versions": {"mmfusion": "0.1.0"}}
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
    return folder


def write_large_cohort(folder: Path, cases: int = 1000, pixels: int = 128) -> Path:
    """A cohort of ct, pet and mr with pictures as large as real ones, no two alike; every 40th case failed."""
    claim(folder, "cohort")
    noise, ct_pet = np.random.default_rng(0), body((pixels,) * 3, 0)
    slices = {plane: [np.take(v, pixels // 2, axis) for v in ct_pet] for plane, axis in PLANES.items()}
    counts = np.histogram2d(*(v.ravel() for v in ct_pet), bins=32)[0].astype(np.float32)
    rows = []
    for index in range(cases):
        row = {"case": f"c{index:04d}", "subject": f"c{index:04d}", "reference": "ct", "modalities": "ct pet mr"}
        row |= {"status": "failed", "reasons": "ct: no such file"} if index % 40 == 7 else {"status": "done"}
        row |= {f"{name}_motion_mm": f"{index * 7919 % 1000 / 50:.2f}" for name in ("pet", "mr")}
        rows.append(row)
        if row["status"] == "failed":
            continue
        arrays = {}
        for plane, (ct, pet) in slices.items():
            keys = {"reference": ct, "before_pet": np.roll(pet, 9, 0), "after_pet": pet}
            keys |= {"before_mr": np.roll(1 - ct, 5, 1), "after_mr": 1 - ct}
            for key, image in keys.items():
                noisy = image + 0.02 * noise.standard_normal(image.shape, np.float32)
                arrays[f"{key}_{plane}"] = np.clip(noisy, 0, 1).astype(np.float16)
        arrays |= {f"histogram_{stage}_{name}": counts for stage in ("before", "after") for name in ("pet", "mr")}
        (folder / "cases" / row["case"]).mkdir(parents=True)
        np.savez(folder / "cases" / row["case"] / "qc.npz", **arrays)
    write_csv(folder / "cases.csv", rows)
    return folder


def probabilities(label: np.ndarray, classes: int, strength: float, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(len(label), classes)) + strength * np.eye(classes)[label]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def write_run(folder: Path, cohort: Path, cases: int = 24, classes: int = 2, **metrics: object) -> Path:
    """A run over ``cases`` cases with its single-modality runs; two thirds are test cases."""
    claim(folder, "run")
    label = np.random.default_rng(5).permutation(np.arange(cases) % classes)
    part = np.array(["test" if index % 3 else ("train", "validation")[index // 3 % 2] for index in range(cases)])
    test, names = part == "test", [f"class{k}" for k in range(classes)]
    chances = {None: probabilities(label, classes, 1.2, 3), "ct": probabilities(label, classes, 0.8, 1)}
    chances["pet"] = probabilities(label, classes, 1.1, 2)
    estimates = {}
    for modality, chance in chances.items():
        place = folder if modality is None else folder / "single" / modality
        place.mkdir(parents=True, exist_ok=True)
        rows = [
            {"case": f"c{i:03d}_1", "subject": f"c{i:03d}", "session": "1", "part": part[i], "label": names[label[i]]}
            | {f"p_{name}": f"{chance[i, k]:.6f}" for k, name in enumerate(names)}
            | {"predicted": names[chance[i].argmax()], "modalities": modality or "ct pet"}
            for i in range(cases)
        ]
        write_csv(place / "predictions.csv", rows)
        estimates[modality] = classification_metrics(label[test], chance[test], threshold=0.45, resamples=200)
    comparison = {
        m: {
            "auc": estimates[m]["auc"].as_dict(),
            "difference": compare(label[test], chances[None][test], chances[m][test], resamples=200).as_dict(),
        }
        for m in ("ct", "pet")
    }
    found = {name: estimate.as_dict() for name, estimate in estimates[None].items()}
    written = {"part": "test", "n": int(test.sum()), "threshold": 0.45, "metrics": found, "comparison": comparison}
    (folder / "metrics.json").write_text(json.dumps(written | metrics), encoding="utf-8")
    options = {"strategy": "single_level", "encoder": "resnet10", "modalities": ["ct", "pet"], "cohort": str(cohort)}
    options |= {"classes": names, "seed": 0, "versions": {"torch": "2.13"}}
    (folder / "options.json").write_text(json.dumps(options), encoding="utf-8")
    write_csv(
        folder / "split.csv", [{"case": f"c{i:03d}_1", "subject": f"c{i:03d}", "part": part[i]} for i in range(cases)]
    )
    history = [
        {"epoch": e, "train_loss": f"{0.7 * 0.9**e:.4f}", "validation_loss": f"{0.7 - 0.02 * e:.4f}"}
        | {"validation_auc": f"{0.5 + 0.03 * e:.3f}"}
        for e in range(1, 13)
    ]
    write_csv(folder / "history.csv", history)
    return folder


def draw_folds(n: int = 60, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels ``[N]``, folds ``[N]`` and scores ``[N]`` whose scale differs between folds, as that of models does."""
    noise, fold, label = np.random.default_rng(seed), np.arange(n) % folds, np.arange(n) // folds % 2
    shift = noise.normal(0, 2, folds)[fold]
    logits = {name: gain * label + noise.normal(size=n) for name, gain in (("fusion", 1.4), ("ct", 0.4), ("pet", 1.1))}
    return label, fold, {name: 1 / (1 + np.exp(-(one + shift))) for name, one in logits.items()}


def write_folds(
    folder: Path,
    label: np.ndarray,
    scores: Mapping[str, np.ndarray],
    fold: np.ndarray,
    *,
    thresholds: Mapping[int, float] | None = None,
    missing: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """A cross-validation as :func:`mmfusion.training.write_metrics` takes it: predictions, and the model of each fold.

    Args:
        folder: of the run.
        label: ``[N]`` class indices, of classes ``class0``, ``class1``, ...
        scores: ``fusion`` and modalities to ``[N]`` the probability of class 1, or ``[N, K]``; a modality is written
            into ``single/<modality>``.
        fold: ``[N]`` numbers.
        thresholds: fold to that of its model; 0.5 where none is given.
        missing: modality to the cases that it lacks, by number.
    """
    for name, score in scores.items():
        run = claim(folder, "run") if name == "fusion" else folder / "single" / name
        share = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
        classes = [f"class{k}" for k in range(share.shape[1])]
        equal = (1 / len(classes),) * len(classes)
        levels = {number: (thresholds or {}).get(number, 0.5) for number in np.unique(fold).tolist()}
        for number, level in levels.items():
            case = resolve({"modalities": ["ct", "pet"]}, "case")
            about = (resolve({}, "network"), case, equal, equal, level if len(classes) == 2 else None)
            model = Model(("ct", "pet"), tuple(classes), *about)
            (run / f"fold_{number}").mkdir(parents=True)
            (run / f"fold_{number}" / "model.json").write_text(json.dumps({"format": 1, **asdict(model)}))
        positive = share[:, 1] >= np.array([levels[number] for number in fold.tolist()])
        called = positive.astype(int) if len(classes) == 2 else share.argmax(axis=1)
        rows = [
            {"case": f"c{i:03d}_1", "subject": f"c{i:03d}", "session": "1", "part": "test", "label": classes[label[i]]}
            | {f"p_{one}": f"{share[i, k]:.6f}" for k, one in enumerate(classes)}
            | {"predicted": classes[called[i]], "modalities": name, "fold": fold[i]}
            for i in range(len(label))
            if i not in (missing or {}).get(name, ())
        ]
        write_csv(run / "predictions.csv", rows)
    options = {"strategy": "single_level", "modalities": [name for name in scores if name != "fusion"]}
    (folder / "options.json").write_text(json.dumps(options | {"classes": classes}), encoding="utf-8")
    return folder
