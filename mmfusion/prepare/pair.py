"""Two files: one registered to the other, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cohort import misplaced
from mmfusion.errors import OptionError, ReadError, printable
from mmfusion.files import check_output_file
from mmfusion.io import (
    check_transform_name,
    check_volume_name,
    load_mask,
    load_transform,
    load_volume,
    save_transform,
    save_volume,
    split_series,
)
from mmfusion.options import OPTIONS
from mmfusion.volume import check_device, resample

if TYPE_CHECKING:
    from mmfusion.registration import Registration
    from mmfusion.volume import Volume


def register_files(
    fixed: str,
    moving: str,
    out: str,
    *,
    transform_out: str | None = None,
    overwrite: bool = False,
    fixed_modality: str = "",
    moving_modality: str = "",
    device: str = "cpu",
    frame: str | None = None,
    assume_orientation: str | None = None,
    nan: str = "refuse",
    suv: str = "bw",
    **search: str | None,
) -> Registration:
    """Bring one scan onto the grid of another, and write it, and the transform.

    It stands here because it needs what files hold, who they are of, and how they are registered; no room below knows
    all three.

    Args:
        fixed: volume that stays, or the name of a template.
        moving: volume that is brought to it.
        out: volume file to write.
        transform_out: transform file to write, fixed to moving.
        overwrite: replace these files if they are there; never one that is read.
        fixed_modality, moving_modality: what the volumes hold, where their files do not say.
        device: where the search runs.
        frame, assume_orientation, nan, suv: how volumes are read, see :func:`mmfusion.io.load_volume`.
        search: ``kind``, ``init``, ``transform_in``, ``fixed_mask`` and ``moving_mask`` of :mod:`mmfusion.options`.

    Raises:
        ReadError, GeometryError, UnitsError, VoxelError: a file cannot be read, or cannot be registered.
        OptionError: options that do not go together.
        OutputError: a file to write is there already, or is read.
    """
    from mmfusion.registration import TEMPLATES, template  # late: who only opens a cohort does without torch

    check_device(device)
    named = [fixed, moving, *(search.get(name) for name in ("transform_in", "fixed_mask", "moving_mask"))]
    reads = [split_series(path)[0] for path in named if path]
    for scan in reads[:2]:
        if words := misplaced(scan, "scan", "scans"):
            raise ReadError(words)
    check_output_file(check_volume_name(out), overwrite=overwrite, reads=reads)
    if transform_out:
        check_output_file(check_transform_name(transform_out), overwrite=overwrite, reads=[*reads, out])
    reading: dict[str, Any] = {"frame": frame, "assume_orientation": assume_orientation, "nan": nan, "suv": suv}
    to_template = fixed in TEMPLATES and not Path(fixed).exists()
    still = template(fixed).volume if to_template else load_volume(fixed, modality=fixed_modality, **reading)
    other = load_volume(moving, modality=moving_modality, **reading)
    registration = _register(still, other, fixed if to_template else "", device, assume_orientation, **search)
    for path in (out, transform_out):  # registering takes its time
        if path:
            check_output_file(path, overwrite=overwrite, reads=reads)
    save_volume(resample(other, still.grid, registration.fixed_to_moving), out)
    if transform_out:
        save_transform(registration.fixed_to_moving, transform_out)
    return registration


def _register(
    still: Volume,
    other: Volume,
    head: str,
    device: str,
    assume_orientation: str | None,
    *,
    kind: str | None = None,
    init: str | None = None,
    transform_in: str | None = None,
    fixed_mask: str | None = None,
    moving_mask: str | None = None,
) -> Registration:
    """The registration of one pair, as the options say; ``head`` names the template, if that is the fixed volume."""
    from mmfusion.registration import measure, register, register_to_template

    threads = min(os.cpu_count() or 1, 8)  # a single pair gains nothing from more
    start = load_transform(transform_in) if transform_in else None
    if start is not None and init:
        raise OptionError("--transform-in and --init both say where to start; give one of them")
    if head and kind != "none":
        names = {"init": init, "transform_in": transform_in, "fixed_mask": fixed_mask, "moving_mask": moving_mask}
        given = [OPTIONS[name].flag for name, value in names.items() if value]
        if given:
            raise OptionError(
                f"{head} has a start and a mask of its own; leave out {' '.join(given)}, or use --kind none"
            )
        return register_to_template(other, head, kind=kind or "affine", device=device, threads=threads)
    masks = {
        f"{side}_mask": load_mask(path, volume.grid, assume_orientation=assume_orientation).array > 0
        for side, path, volume in (("fixed", fixed_mask, still), ("moving", moving_mask, other))
        if path
    }
    if start is not None and not start.is_linear:
        if kind != "none":
            raise OptionError(
                f"{transform_in} has a displacement field; a search starts from a linear transform. "
                "Use --kind none to apply it as it is"
            )
        return measure(still, other, start, **masks, threads=threads)
    how: dict[str, Any] = {**masks, "init": init or "auto" if start is None else start, "device": device}
    return register(still, other, kind or "rigid", **how, threads=threads)


def pair_words(registration: Registration, *, field_is_kept: bool = False) -> str:
    """What a person reads of a registration: matrix, displacement field, motion, similarity, verdict and reasons."""
    matrix, field = registration.fixed_to_moving.matrix, registration.fixed_to_moving.displacement
    rows = "\n".join("  " + " ".join(f"{value:10.4f}" for value in row) for row in matrix)
    reasons = "".join(f"\n  {printable(reason)}" for reason in registration.reasons)
    reasons += f"\n  not used: {registration.alternative.words}" if registration.alternative else ""
    bend = ""
    if field is not None:
        shape = " x ".join(map(str, field.grid.shape))
        bend = (
            f"after a displacement field of {shape} voxels, up to {(field.array**2).sum(-1).max() ** 0.5:.1f} mm; "
            f"{registration.folding:.2%} of it folds"
            + ("" if field_is_kept else "; --transform-out FILE.h5 keeps it")
            + "\n"
        )
    return (
        f"fixed_to_moving (RAS, mm):\n{rows}\n{bend}"
        f"translation {registration.translation_mm:.2f} mm, rotation {registration.rotation_deg:.2f} degrees\n"
        f"similarity {registration.similarity_before:.4f} before, {registration.similarity_after:.4f} after; "
        f"overlap {registration.overlap:.0%}\n"
        f"verdict {registration.verdict}{reasons}"
    )
