"""A cohort folder of the simulated study, whose cases are made where preparing raw scans would have put them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.cohort import Case
from mmfusion.cohort.simulate import (
    MODALITIES,
    SimulatedSubject,
    draw_covariates,
    draw_subjects,
    measure_regions,
    mr_scaling,
    prepared_grid,
    simulate_volumes,
    template_pose,
)
from mmfusion.errors import OptionError
from mmfusion.files import CohortFolder, writing
from mmfusion.options import resolve
from mmfusion.prepare.case import CaseResult
from mmfusion.prepare.covariates import write_covariates
from mmfusion.prepare.folder import Cohort, open_cohort, refuse_contradictions, write_case, write_cohort
from mmfusion.prepare.placing import place_grid
from mmfusion.volume import coverage, normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRID: dict[str, Any] = {"spacing": [4.0, 4.0, 4.0], "size": [40, 48, 40]}
_KEY = "simulated"  # stands for the key of a case that comes from no file


def simulate_study(
    out: str | Path,
    *,
    train_subjects: int = 400,
    test_subjects: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Cohort:
    """A cohort folder of the simulated study.

    Args:
        out: the cohort folder; one that is finished is opened as it is.
        train_subjects: subjects to train on; the first fifth of them is the validation part.
        test_subjects: subjects of the test part, drawn anew.
        seed: of the subjects.
        progress: called with (done, all, case) after each case.
        options: see :func:`simulated_cohort`.

    Raises:
        OptionError: see :func:`simulated_cohort`.
    """
    return simulated_cohort(Path(out), *study_subjects(train_subjects, test_subjects, seed), progress, **options)


def study_subjects(train: int, test: int, seed: int) -> tuple[list[SimulatedSubject], list[SimulatedSubject]]:
    """The subjects to train on, and those of the test."""
    known = draw_subjects(train, seed * 3 + 2, prefix="TRAIN", missing=0.05)
    return known, draw_subjects(test, seed * 3 + 3, prefix="TEST", missing=0.05)


def simulated_cohort(
    folder: Path,
    known: Sequence[SimulatedSubject],
    fresh: Sequence[SimulatedSubject],
    progress: Callable[[int, int, str], None] | None = None,
    *,
    suv_max: float | None = None,
    to: str | None = None,
    with_covariates: bool = False,
    measure: bool = False,
) -> Cohort:
    """A cohort folder of these subjects: ``known`` to train and, the first fifth, to validate on; ``fresh`` to test.

    Args:
        folder: the cohort folder; one that is finished is opened as it is.
        known, fresh: the subjects.
        progress: called with (done, all, case) after each case.
        suv_max: SUV that becomes 1; the default of ``mmfusion prepare`` if None.
        to: ``mni152`` puts all cases on one grid in template space; None on one around each head.
        with_covariates: give each case what :func:`~mmfusion.cohort.simulate.draw_covariates` draws: the site in
            ``cases.csv``, the others in ``covariates.csv``.
        measure: write what :func:`~mmfusion.cohort.simulate.measure_regions` finds into ``cases.csv``.

    Raises:
        OptionError: a finished cohort has another ``suv_max`` or ``to``, or lacks the covariates or measurements.
    """
    files = CohortFolder(folder).claim("simulated cohort")
    if files.table.is_file():  # written last
        cohort = open_cohort(folder)
        refuse_contradictions(cohort, {"suv_max": suv_max, "to": to})
        for flag, wanted, written in (
            ("--with-covariates", with_covariates, any(row["site"] for row in cohort.rows)),
            ("--measure", measure, any("brain_volume_ml" in row for row in cohort.rows)),
        ):
            if wanted and not written:
                raise OptionError(
                    f"the cohort {folder} was simulated without {flag}; leave it out, or give another --out"
                )
        return cohort
    options = resolve({**GRID, "modalities": list(MODALITIES), "suv_max": suv_max, "to": to}, "case")
    validation = len(known) // 5
    splits = ["validation"] * validation + ["train"] * (len(known) - validation) + ["test"] * len(fresh)
    cases, rows = [], []
    with files.lock(), writing(folder):
        files.clear()
        for subject, split in zip([*known, *fresh], splits, strict=True):
            cases.append(simulated_case(subject, split, with_covariates=with_covariates))
            result = simulate_onto_grid(subject, options, measure=measure)
            rows.append(write_case(folder, cases[-1], result, key=_KEY))
            if progress:
                progress(len(rows), len(splits), subject.subject)
        if with_covariates:
            write_covariates(folder, cases)
        return write_cohort(folder, {**options, "simulated": True}, rows, qc=False)


def simulated_case(subject: SimulatedSubject, split: str, *, with_covariates: bool = False) -> Case:
    """The row that the manifest of a study would have for a subject, without its files."""
    values = draw_covariates(subject) if with_covariates else {}
    return Case(subject.subject, label=str(subject.label), split=split, site=values.pop("site", ""), covariates=values)


def simulate_onto_grid(subject: SimulatedSubject, options: dict[str, Any], *, measure: bool = False) -> CaseResult:
    """A subject scanned where preparing with these options (group ``case``) would have put its scans."""
    if options["to"]:
        grid, pose = place_grid(options, {}, "", None, None), template_pose(subject)
    else:
        grid, pose = prepared_grid(subject, tuple(options["spacing"]), tuple(options["size"])), subject.reference_pose
    volumes = simulate_volumes(subject, grid, pose)
    image = np.zeros((len(MODALITIES), *grid.shape), np.float32)
    for name, volume in volumes.items():
        scaling = mr_scaling(volume) if name == "mr" else (0.0, 1.0)
        image[MODALITIES.index(name)] = normalize(
            volume, ct_window=tuple(options["ct_window"]), suv_max=options["suv_max"], mr_scaling=scaling
        )
    present = np.array([name in volumes for name in MODALITIES])
    valid = np.broadcast_to(coverage(grid, grid), image.shape) & present[:, None, None, None]
    reference = next(iter(volumes))
    return CaseResult(
        image,
        present,
        valid,
        MODALITIES,
        grid,
        reference=reference,
        world=options["to"] or reference,
        facts=measure_regions(subject, volumes, pose) if measure else {},
    )
