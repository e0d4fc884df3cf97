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
# # Explore one case
#
# From the files of one subject to the tensor that a network sees: load, look, register, believe or not, prepare.
# The subject is **simulated**. To look at a case of your own, replace the paths in the second cell; nothing else
# changes.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import numpy as np

from mmfusion.cohort import Case
from mmfusion.cohort.simulate import draw_subjects, target_registration_error, write_raw_study
from mmfusion.io import load_volume
from mmfusion.prepare import prepare_case
from mmfusion.registration import mutual_information, register
from mmfusion.report import figure_joint_histogram, figure_overlay, figure_slices
from mmfusion.volume import Grid, coverage, foreground, mask_center, resample

# %% [markdown]
# ## The files
#
# CT and PET are DICOM series, MR is a NIfTI file; each has its own voxel size, orientation and position.

# %%
scratch = tempfile.TemporaryDirectory()
subject = draw_subjects(8, seed=3)[4]
study = write_raw_study([subject], Path(scratch.name) / "study") / subject.subject
paths = {"ct": study / "CT", "pet": study / "PET", "mr": study / "mr.nii.gz"}

# %% [markdown]
# ## Load
#
# Every volume comes in physical units, with its axes turned (never interpolated) so that they run closest to right,
# anterior and superior. `notes` says what was converted or repaired on the way.

# %%
volumes = {name: load_volume(path, modality=name) for name, path in paths.items()}
for name, volume in volumes.items():
    spacing = " x ".join(f"{step:.1f}" for step in volume.spacing)
    low, high = np.percentile(volume.array, [1, 99])
    print(f"{name:3s} {volume.array.shape} voxels of {spacing} mm, stored as {volume.meta['stored_orientation']}")
    print(f"    1st to 99th percentile {low:.4g} to {high:.4g} {volume.units} {volume.meta['notes']}")

# %% [markdown]
# ## Look
#
# Voxel (20, 30, 40) of one scan has nothing to do with voxel (20, 30, 40) of another. To see the three side by side,
# each is read on one grid of the world, centered on the patient in the CT. Nothing is registered yet.

# %%
fixed = volumes["ct"]
center = mask_center(foreground(fixed), fixed.grid)
grid = Grid.around(center.tolist(), spacing=[2, 2, 2], size=[100, 120, 100])
before = {name: resample(volume, grid).array for name, volume in volumes.items()}
before["ct"] = before["ct"].clip(-160, 240)
figure_slices(before, spacing=grid.spacing, title="As the headers say")

# %% [markdown]
# ## Register
#
# `register` finds where a point of the fixed scan lies in the moving one (`fixed_to_moving`, RAS, mm) and how far to
# believe it. It moves no voxel.

# %%
found = {name: register(fixed, volumes[name]) for name in ("pet", "mr")}
for name, registration in found.items():
    print(
        f"{name:3s} {registration.verdict} (score {registration.score:.2f}): "
        f"{registration.translation_mm:.1f} mm and {registration.rotation_deg:.1f} degrees; "
        f"similarity {registration.similarity_before:.3f} to {registration.similarity_after:.3f}"
    )
    for reason in registration.reasons:
        print("   ", reason)

# %% [markdown]
# The true positions of a simulated subject are known, so here (and only here) the error can be measured: the mean
# distance between where brain landmarks end up and where they are.

# %%
for name, registration in found.items():
    error = target_registration_error(subject, "ct", name, registration.fixed_to_moving)
    print(f"{name:3s} is off by {error:.2f} mm")

# %% [markdown]
# ## Before and after
#
# The outline of the CT on the other scan: before, it cuts through the head; after, it follows the skin.

# %%
after = {name: resample(volumes[name], grid, found[name].fixed_to_moving).array for name in found}
still = resample(fixed, grid).array + 1000
figure_overlay(still, before["mr"], kind="contour", spacing=grid.spacing, title="CT outline on MR, before")

# %%
figure_overlay(still, after["mr"], kind="contour", spacing=grid.spacing, title="CT outline on MR, after")

# %% [markdown]
# In a checkerboard the edges should continue from square to square; in color, CT is magenta and PET green.

# %%
figure_overlay(still, after["mr"], kind="checkerboard", spacing=grid.spacing, title="CT and MR by turns, after")

# %%
figure_overlay(still, after["pet"], kind="color", spacing=grid.spacing, title="CT (magenta) and PET (green), after")

# %% [markdown]
# ## Joint histogram
#
# How often a CT value meets an MR value. Where the scans are aligned, a tissue is a spot or a thin ridge; where they
# are not, tissues mix into a haze. Mutual information is that impression as a number, over the voxels that both scans
# saw.

# %%
seen = coverage(fixed.grid, grid) & coverage(volumes["mr"].grid, grid, found["mr"].fixed_to_moving)
body = resample(fixed.replace(array=foreground(fixed)), grid, order=0).array > 0
for words, moving in (("before", before["mr"]), ("after", after["mr"])):
    print(words, round(mutual_information(before["ct"], moving, seen & body), 3))
figure_joint_histogram(before["ct"], before["mr"], mask=seen & body, title="CT and MR, before")

# %%
figure_joint_histogram(before["ct"], after["mr"], mask=seen & body, title="CT and MR, after")

# %% [markdown]
# ## The prepared tensor
#
# `mmfusion prepare` does all of this for each case of a study, and reads every scan once, through its transform, onto
# the grid of the network. In Python it is one function.

# %%
case = Case(subject.subject, images=paths)
result = prepare_case(case, modalities=["ct", "pet", "mr"], spacing=[4, 4, 4], size=[40, 48, 40])
print(f"image {result.image.shape} {result.image.dtype}, present {result.present}, status {result.status}")
print({name: round(float(result.valid[channel].mean()), 3) for channel, name in enumerate(result.modalities)})
channels = dict(zip(result.modalities, result.image, strict=True))
figure_slices(channels, spacing=result.grid.spacing, title="What the network sees")

# %% [markdown]
# A modality that the case lacks is a channel of zeros with `present` False; it is data, not an error.

# %%
less = prepare_case(
    Case(subject.subject, images={"ct": paths["ct"], "mr": paths["mr"]}),
    modalities=["ct", "pet", "mr"],
    spacing=[4, 4, 4],
    size=[40, 48, 40],
)
print(less.present, "largest value of the PET channel:", less.image[1].max())

# %%
scratch.cleanup()
