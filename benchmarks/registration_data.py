"""Pairs of volumes with a known answer, for `registration.py`: real scans moved by known motions, and open MS data.

Each set is a list of :class:`Plan`; ``plan.make()`` loads or draws the :class:`Trial`. The same names give the same
trials in every run. Simulated heads are in `registration_heads.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from mmfusion.io import load_transform, load_volume
from mmfusion.volume import Transform, Volume, coverage, foreground

FOLDERS = {"ct": "CT", "pet": "PET", "mr": "MR_T1"}
MR_OFF_AT_REST = ("STS_006", "STS_012")  # MR does not fit CT where the headers put it, so the truth is wrong there
STS_DEGREES, STS_MM, STS_TRIALS = 15.0, 25.0, 10
OPEN_MS_TRIALS = 12  # for each of the two pairs


class Maps(Protocol):
    """Where points of the fixed world lie in the moving world."""

    def apply(self, points: np.ndarray) -> np.ndarray: ...


class Trial(NamedTuple):
    """One pair and its answer.

    Attributes:
        subject: whose volumes; what intervals are clustered by.
        trial: number within the subject.
        fixed, moving: without a frame of reference.
        truth: fixed to moving, RAS mm: a Transform, or a smooth field.
        landmarks: ``[N, 3]`` in the fixed world, RAS mm; errors are mean distances over them.
    """

    subject: str
    trial: int
    fixed: Volume
    moving: Volume
    truth: Maps
    landmarks: np.ndarray

    def error_mm(self, found: Maps) -> float:
        """Mean distance of the landmarks from where they belong in the moving world, mm."""
        apart = found.apply(self.landmarks) - self.truth.apply(self.landmarks)
        return float(np.linalg.norm(apart, axis=1).mean())


class Plan(NamedTuple):
    """A trial that is not made yet; ``facts`` are plain words and numbers for its row (``half``, ``moving``)."""

    subject: str
    trial: int
    facts: dict[str, str | int]
    make: Callable[[], Trial]

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.trial:02d}"


def rigid_about(center: np.ndarray, degrees: float, mm: float, rng: np.random.Generator) -> Transform:
    """Turn by ``degrees`` about a random axis through ``center``, then shift by ``mm`` in a random direction."""
    axis, way = rng.normal(size=(2, 3))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(degrees)).as_matrix()
    matrix[:3, 3] = center - matrix[:3, :3] @ center + way / np.linalg.norm(way) * mm
    return Transform(matrix)


def moved(volume: Volume, motion: Transform) -> Volume:
    """The volume elsewhere in the world: only its header changes."""
    return volume.replace(affine=motion.matrix @ volume.affine)


def halves(root: Path) -> dict[str, str]:
    """Subjects of the sarcoma study, in order, and the half they belong to: even positions are for tuning."""
    names = sorted(path.name for path in Path(root).glob("STS_*"))
    if not names:
        raise SystemExit(f"{root}: no folders STS_* found; give the folder of the sarcoma study")
    return {name: ("tune", "holdout")[position % 2] for position, name in enumerate(names)}


@cache
def _sts_scan(root: Path, subject: str, modality: str) -> Volume:
    volume = load_volume(root / subject / FOLDERS[modality], modality=modality)
    return volume.replace(meta={})  # no source, and no frame of reference that would give the answer away


@cache
def sts_landmarks(root: Path, subject: str, modality: str, count: int = 500) -> np.ndarray:
    """``[N, 3]`` points of the body inside both fields of view at rest, RAS mm, the same for all trials."""
    fixed, moving = _sts_scan(root, subject, "ct"), _sts_scan(root, subject, modality)
    seen = np.argwhere(foreground(fixed) & coverage(moving.grid, fixed.grid))
    return fixed.grid.to_world(np.random.default_rng(0).choice(seen, min(count, len(seen)), replace=False))


def sts_trial(root: Path, subject: str, modality: str, number: int) -> Trial:
    """CT (fixed) and PET or MR of one subject, the latter moved by a random rigid motion about its field of view."""
    fixed, moving = _sts_scan(root, subject, "ct"), _sts_scan(root, subject, modality)
    rng = np.random.default_rng([int(subject[-3:]), number, sorted(FOLDERS).index(modality)])
    truth = rigid_about(moving.grid.center, rng.uniform(0, STS_DEGREES), rng.uniform(0, STS_MM), rng)
    return Trial(subject, number, fixed, moved(moving, truth), truth, sts_landmarks(root, subject, modality))


def sts_plans(root: Path, modality: str, trials: int = STS_TRIALS) -> list[Plan]:
    """The real sarcoma study: ``trials`` motions of each subject's ``pet`` or ``mr``; all subjects, then again."""
    return [
        Plan(subject, number, {"half": half, "moving": modality}, partial(sts_trial, root, subject, modality, number))
        for number in range(trials)
        for subject, half in halves(root).items()
    ]


def sts_trials(root: Path, modality: str, half: str = "tune", trials: int = STS_TRIALS) -> Iterator[Trial]:
    """The trials of one half (``tune``, ``holdout``) of the sarcoma study, or of ``all`` of it."""
    for plan in sts_plans(Path(root), modality, trials):
        if half in ("all", plan.facts["half"]):
            yield plan.make()


@lru_cache(maxsize=2)
def _open_ms_pair(root: Path, name: str) -> tuple[Volume, Volume, Transform, np.ndarray]:
    """FLAIR, another MR contrast, the published affine between them, and points of the head."""
    folder = root / "longitudinal_raw" / "patient01"
    fixed, moving = (load_volume(folder / f"study1_{one}.nii.gz", modality="mr") for one in ("FLAIR", name))
    # the published files are ITK transforms: they map points of FLAIR, the fixed image, to the moving image
    published = load_transform(folder / f"study1_{name}_intrastudy_to_FLAIR.txt")
    head = np.argwhere(foreground(fixed) & coverage(moving.grid, fixed.grid, published))
    points = fixed.grid.to_world(np.random.default_rng(0).choice(head, 500, replace=False))
    return fixed.replace(meta={}), moving.replace(meta={}), published, points


def open_ms_trial(root: Path, name: str, number: int) -> Trial:
    """FLAIR (fixed) and T1 or T2, moved by a random rigid motion; the truth is the published affine, moved."""
    fixed, moving, published, points = _open_ms_pair(root, name)
    rng = np.random.default_rng([number, ("T1W", "T2W").index(name)])
    motion = rigid_about(moving.grid.center, rng.uniform(0, STS_DEGREES), rng.uniform(0, STS_MM), rng)
    return Trial(name, number, fixed, moved(moving, motion), published.compose(motion), points)


def open_ms_plans(root: Path, trials: int = OPEN_MS_TRIALS) -> list[Plan]:
    """Raw scans of one patient with slices of 3 and 4 mm: T1 to FLAIR and T2 to FLAIR."""
    return [
        Plan(name, number, {"moving": name}, partial(open_ms_trial, root, name, number))
        for number in range(trials)
        for name in ("T1W", "T2W")
    ]
