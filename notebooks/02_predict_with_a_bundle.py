# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Predict with a bundle
#
# From a bundle and the raw scans of a few subjects to probabilities, and to pictures of what they rest on.
#
# Subjects, scans and the study that the bundle was trained on are **simulated data**: the numbers below show how the
# tools work, and say nothing about any disease. Research use only; not a medical device.

# %%
# %matplotlib inline
import json
import sys
import tempfile
import warnings
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import logit

warnings.filterwarnings("ignore", "IProgress not found")  # a library's bar for notebooks; none is drawn here

import mmfusion
from mmfusion.cohort import build_index, read_manifest, write_manifest
from mmfusion.cohort.simulate import draw_subjects, write_raw_study
from mmfusion.files import Predictions
from mmfusion.predict import load_engine, predict_manifest, probabilities, read_model
from mmfusion.prepare import load_image, open_cohort
from mmfusion.prepare.simulated import simulate_study
from mmfusion.report import figure_map
from mmfusion.volume import Grid

# %% [markdown]
# ## The bundle
#
# This one lies in the repository: one 3D network a modality, whose features are fused. For another, change the path; a
# run folder will do, too. Only `models/` is read, and nothing in the bundle is executed.

# %%
bundle = Path(mmfusion.__file__).parents[1] / "bundles" / "feature_fusion_classification"
model = read_model(bundle)
print("modalities ", *model.modalities, "| classes", *model.classes)
print("prepared to", model.case["size"], "voxels of", model.case["spacing"], "mm")
print(f"temperature {model.temperature:.2f} | class {model.classes[-1]} from probability {model.threshold:.2f} on")

# %% [markdown]
# ## New scans
#
# Four subjects, two of each class, as a scanner would leave them: DICOM for CT and PET, NIfTI for MR, each in a
# position of its own. With scans of yours, begin at `build_index`.

# %%
scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)
drawn = draw_subjects(8, seed=21, prefix="NEW")
subjects = [drawn[number] for number in (1, 2, 6, 7)]
study = write_raw_study(subjects, work / "study")
build_index(study).write(work / "manifest.csv")
print((work / "manifest.csv").read_text())

# %% [markdown]
# ## Predict
#
# The same as `mmfusion predict BUNDLE MANIFEST --out OUT`: every case is registered and resampled as those of the
# training were, and goes through the network once.

# %%
with redirect_stderr(sys.stdout):  # it tells there how far it is
    table = predict_manifest(bundle, work / "manifest.csv", work / "out", workers=1)

# %% [markdown]
# `predictions.csv` has a row a case. `p_1` is the calibrated probability of class 1, `entropy` how undecided it is (0
# is certain, 0.69 the toss of a coin). The column `truth` is not in the file; the simulation knows it.

# %%
truth = {subject.subject: subject.label for subject in subjects}
complete = {row["subject"]: row for row in Predictions.read(table)}
print("case       p_0    p_1  predicted  entropy  modalities  status  | truth")
for name, row in complete.items():
    print(
        f"{name}  {float(row['p_0']):.3f}  {float(row['p_1']):.3f}  {row['predicted']:9s}  {float(row['entropy']):7.2f}"
        f"  {row['modalities']:10s}  {row['status']:6s}  | {truth[name]}"
    )

# %% [markdown]
# `predictions/<case>.json` says the same of one case for other programs, and what preparing measured. Look at the
# verdicts of the registration (and at `cohort/qc.html`) before you believe a probability.

# %%
shown = max(complete, key=lambda name: float(complete[name]["p_1"]))
facts = json.loads((table.with_suffix("") / f"{shown}.json").read_text())
print(shown, facts["probabilities"], facts["uncertainty"], "|", facts["notice"])
for name, found in facts["preparation"]["modalities"].items():
    verdict = found.get("verdict", "is the reference")
    print(f"{name:3s} {verdict}, {found['units']}, voxels of {found['spacing']} mm, {found['notes'] or 'no notes'}")

# %% [markdown]
# ## Leave a modality out
#
# A scan that was not made is an empty cell of the manifest. Here each subject comes twice more: without PET, and
# without MR.

# %%
cases = read_manifest(work / "manifest.csv")
fewer = [
    replace(case, session=f"no-{left_out}", images={n: path for n, path in case.images.items() if n != left_out})
    for case in cases
    for left_out in ("pet", "mr")
]
write_manifest(fewer, work / "fewer.csv", model.modalities)
with redirect_stderr(sys.stdout):
    rows = Predictions.read(predict_manifest(bundle, work / "fewer.csv", work / "fewer", workers=1))

# %%
print("p_1       complete  without PET  without MR  | truth")
for name, row in complete.items():
    less = {one["session"]: float(one["p_1"]) for one in rows if one["subject"] == name}
    print(f"{name}  {float(row['p_1']):8.3f}  {less['no-pet']:11.3f}  {less['no-mr']:10.3f}  | {truth[name]}")

# %% [markdown]
# In this simulation PET and MR carry one sign of class 1 each, and CT carries none. What the network uses of them is
# another matter: a probability that stays when a scan is left out did not depend on that scan.
#
# ## PET on CT
#
# What the network saw of the case with the highest probability: its volumes on one grid, straight in the world of the
# reference (left, right, front and back are the patient's). The PET is in color, the CT in gray.

# %%
cohort = open_cohort(work / "out" / "cohort")
case = next(one for one in cohort.cases if one.case.subject == shown)
image = load_image(case.file, model.modalities, cohort.modalities)
volume = dict(zip(model.modalities, image, strict=True))
about = json.loads(case.file.with_name("case.json").read_text())
grid = Grid(image.shape[1:], np.array(about["affine"]))
print(f"axes {grid.orientation}, voxels of {grid.spacing} mm, in the world of the {about['world']}")
suv = volume["pet"] * model.case["suv_max"]
figure_map(volume["ct"], suv, label="PET, SUVbw", spacing=grid.spacing, title=f"{shown}, simulated: PET on CT")

# %% [markdown]
# ## Which places the answer rests on
#
# **Occlusion**: put something ordinary in one place of one modality, ask again, and see how far the answer moves. What
# is ordinary? Here the mean of 20 prepared cases of class 0, simulated as the training's were; with a study of yours,
# take its training cohort.

# %%
known = simulate_study(work / "known", train_subjects=50, test_subjects=1, suv_max=model.case["suv_max"])
others = [one for one in known.cases if one.case.label == "0" and one.modalities == known.modalities][:20]
ordinary = np.mean([load_image(one.file, model.modalities, known.modalities) for one in others], axis=0)
_, answer = load_engine(bundle)


def evidence(images: np.ndarray) -> np.ndarray:
    """[B] log odds of class 1 of complete images [B, M, D, H, W]."""
    present = torch.ones(images.shape[:2], dtype=torch.bool)
    return logit(probabilities(answer(torch.from_numpy(images), present), model)[:, 1])


# %% [markdown]
# The place is a soft ball of 12 mm (one standard deviation), one every 24 mm. The map is the sum of the balls, each
# times the change that it made.


# %%
def occlusion(channel: int, step: int = 6, sigma: float = 3.0) -> np.ndarray:
    """[D, H, W] by how much the log odds of class 1 fall where one channel is made ordinary."""
    axes = np.indices(image.shape[1:], dtype=np.float32)
    points = np.argwhere(ordinary[0] > 0.15)  # in the head: a CT value above air
    points = points[(points % step == step // 2).all(1)]
    total, weight = np.zeros(image.shape[1:]), np.zeros(image.shape[1:])
    for part in np.array_split(points, len(points) // 16):
        balls = np.exp(-((axes - part[:, :, None, None, None]) ** 2).sum(1) / (2 * sigma**2))
        changed = image[None].repeat(len(part), axis=0)
        changed[:, channel] += balls * (ordinary[channel] - image[channel])
        total += np.tensordot(evidence(image[None]) - evidence(changed), balls, 1)
        weight += balls.sum(0)
    return total / weight.max()


maps = {name: occlusion(channel) for channel, name in enumerate(model.modalities)}
for name, found in maps.items():
    print(f"{name:3s} from {found.min():+.2f} to {found.max():+.2f}")

# %%
strongest = {name: np.unravel_index(np.abs(found).argmax(), found.shape) for name, found in maps.items()}
largest = max(np.abs(found).max() for found in maps.values())  # one scale for all figures
words = {"signed": True, "largest": largest, "label": "log odds of class 1", "spacing": grid.spacing}
figure_map(
    volume["pet"], maps["pet"], center=strongest["pet"], title=f"{shown}, simulated: evidence in the PET", **words
)

# %%
figure_map(volume["mr"], maps["mr"], center=strongest["mr"], title=f"{shown}, simulated: evidence in the MR", **words)

# %% [markdown]
# What such a map says: how **this** network answers **this** case when a place is exchanged. What it does not say: that
# there is a lesion, where a disease is, or that the network is right. It depends on what is put in place (zeros, a blur
# or another mean give another map) and on the size of the ball. Evidence that stands in two places or two modalities at
# once can hide: exchanging one of them leaves the other. And a ball is seen as a change of its own, however soft.
#
# The planes go through the strongest voxel of each map. Red speaks for class 1, blue against it.

# %%
scratch.cleanup()
