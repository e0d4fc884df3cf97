"""One case from its scans to one tensor: load, register, read everything once onto one grid, normalize, stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmfusion.cohort.files import pet_details, region_of, with_region
from mmfusion.errors import GeometryError, MmfusionError, OptionError, VoxelError
from mmfusion.io import load_mask, load_volume
from mmfusion.options import resolve
from mmfusion.prepare.measuring import mask_facts, region_facts, registration_facts, scan_facts
from mmfusion.prepare.pictures import case_pictures
from mmfusion.prepare.placing import (
    BRAIN_OF,
    Region,
    brain_on,
    check_crop,
    check_reference,
    choose_reference,
    kept_voxels,
    mask_and_owner,
    place_grid,
    registered,
)
from mmfusion.prepare.scaling import check_pet, scaling
from mmfusion.volume import (
    Grid,
    Transform,
    Volume,
    clip_level,
    clipped_share,
    correct_bias,
    coverage,
    foreground,
    resample,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmfusion.cohort import Case
    from mmfusion.registration import Registration

_LEAST_COVERAGE = 0.05  # of the grid; a scan that shows less of it is reported
_MASK_OUTSIDE = 0.05  # of the mask; more than that outside the grid is reported


class Doubt(NamedTuple):
    """Why a case is doubtful: the cause, by which doubtful cases are counted, and a sentence."""

    cause: str
    """One of :data:`mmfusion.report.files.CAUSES`."""
    sentence: str


@dataclass(frozen=True, eq=False)
class CaseResult:
    """A prepared case.

    Attributes:
        image: ``[M, D, H, W]`` float32, one channel a modality, about 0..1; a missing modality is a zero channel.
        present: ``[M]`` bool, which modalities the case has.
        valid: ``[M, D, H, W]`` bool, where each scan looked.
        modalities: names of the M channels, in order.
        grid: where the D x H x W voxels lie (D, H, W run to right, anterior, superior).
        reference: the modality that the others were registered to.
        world: whose world the grid lies in: that of the reference, or of a template.
        registrations: by moving modality, where a point of the reference lies in it, and how far to trust that; under
            the name of a template, where a point of the template lies in the reference.
        doubts: what is to be looked at before the case is used.
        facts: plain facts by column name, for ``cases.csv``.
        pictures: small arrays for the QC page, see :func:`mmfusion.prepare.pictures.qc_pictures`.
        on_grid: if asked for, each scan on the grid in its physical unit, and ``mask``.
        mask_digest: SHA-256 of the mask's voxels on the scan that it was drawn on; empty if no mask was read.
    """

    image: np.ndarray
    present: np.ndarray
    valid: np.ndarray
    modalities: tuple[str, ...]
    grid: Grid
    reference: str
    world: str = ""
    registrations: Mapping[str, Registration] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    on_grid: Mapping[str, Volume] = field(default_factory=dict)
    mask_digest: str = ""

    @property
    def status(self) -> str:
        """``done``, or ``doubtful``."""
        return "doubtful" if self.doubts else "done"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is doubtful, one sentence each."""
        return tuple(doubt.sentence for doubt in self.doubts)


def load_case(case: Case, **options: Any) -> dict[str, Volume]:
    """The case's volumes by modality, in physical units.

    Args:
        case: a row of the manifest.
        options: the group ``case`` of :mod:`mmfusion.options`; ``modalities`` selects and orders.

    Raises:
        ReadError: a file is missing, broken or not what its column says (units and orientation included).
        VoxelError: a scan is constant or not finite.
    """
    options = resolve(options, "case")
    wanted = options["modalities"] or list(case.images)
    check_pet(options)
    case = with_region(case, options["suvr"])
    pet = pet_details(case)
    volumes = {}
    for modality in wanted:
        if modality in case.images:
            volumes[modality] = load_volume(
                case.images[modality],
                modality=modality,
                suv=options["suv"],
                suvr=region_of(case, options["suvr"]),
                weight_unit=options["weight_unit"],
                frame=options["frame"],
                assume_orientation=options["assume_orientation"],
                nan=options["nan"],
                pet=pet or None,
            )
    return volumes


def prepare_case(
    case: Case,
    *,
    pictures: bool = True,
    keep_volumes: bool = False,
    features: Sequence[str] = (),
    device: str = "cpu",
    **options: Any,
) -> CaseResult:
    """Everything from the files of one case to its tensor.

    Args:
        case: a row of the manifest.
        pictures: also make the arrays of the QC page.
        keep_volumes: also return the scans on the grid.
        features: of the mask in each scan, values of the option ``features``; they go to the facts.
        device: where registration runs, ``cpu`` or a torch device; elsewhere than on a CPU, results differ by rounding.
        options: the group ``case`` of :mod:`mmfusion.options`.

    Raises:
        ReadError, VoxelError: see :func:`load_case`.
        GeometryError: scans cannot be brought together, or there is nothing to center on.
        OptionError: the case has none of the wanted modalities, options that do not go together, or see
            :func:`check_reference`.
    """
    options = resolve(options, "case")
    volumes = load_case(case, **options)
    if not volumes:
        raise OptionError(
            f"subject {case.subject}: none of the modalities {', '.join(options['modalities'])} is in the manifest row"
        )
    options["modalities"] = options["modalities"] or list(volumes)
    also: dict[str, Any] = {"pictures": pictures, "keep_volumes": keep_volumes, "features": features, "device": device}
    return prepare_volumes(volumes, mask=_mask_reader(case, options), **also, **options)


def measure_case(
    case: Case, transforms: Mapping[str, Transform], features: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """The facts of the mask's region in a case that is prepared already: nothing is registered or resampled to a grid.

    Args:
        case: a row of the manifest.
        transforms: where a point of the reference lies in each other scan.
        features: values of the option ``features``.
        options: the group ``case`` of :mod:`mmfusion.options`, as the case was prepared.

    Returns:
        By column of ``cases.csv``; empty if the case has no mask.

    Raises:
        ReadError, VoxelError: see :func:`load_case`.
        GeometryError: the mask is empty, or drawn on a scan that the case does not have.
    """
    options = resolve(options, "case")
    read_mask = _mask_reader(case, options)
    if read_mask is None:
        return {}
    volumes = {name: _bias_corrected(volume, options) for name, volume in load_case(case, **options).items()}
    mask, owner = mask_and_owner(read_mask, volumes, choose_reference(list(volumes), options["reference"]))
    return region_facts(volumes, transforms, mask, owner, features, cache(lambda name: foreground(volumes[name])))


def _mask_reader(case: Case, options: Mapping[str, Any]) -> Callable[[Grid], Volume] | None:
    if case.mask is None:
        return None
    roi = case.roi or options["roi"]
    return partial(load_mask, case.mask, roi=roi, assume_orientation=options["assume_orientation"])


def prepare_volumes(
    volumes: Mapping[str, Volume],
    *,
    mask: Callable[[Grid], Volume] | None = None,
    grid: Grid | None = None,
    pictures: bool = True,
    keep_volumes: bool = False,
    features: Sequence[str] = (),
    device: str = "cpu",
    **options: Any,
) -> CaseResult:
    """Volumes in memory to one tensor. Every voxel of the result comes from one interpolation of its scan.

    Args:
        volumes: by modality, in physical units (HU, SUV, a.u.); those absent become zero channels.
        mask: reads the region of interest on a given grid; needed for ``center="mask"``, and measured.
        grid: the target grid in the world of the reference (with ``to``, of the template), instead of ``spacing``,
            ``size`` and ``center``.
        pictures: also make the arrays of the QC page.
        keep_volumes: also return the scans on the grid.
        features: of the mask in each scan, values of the option ``features``; they go to the facts.
        device: where registration runs, ``cpu`` or a torch device.
        options: the group ``case`` of :mod:`mmfusion.options`; ``modalities`` orders the channels.

    Raises:
        GeometryError: no overlap, a registration that failed, nothing to center on, or no brain on the grid.
        VoxelError: a scan is constant on the grid (it would be taken for a missing one).
        OptionError: ``crop_margin`` with nothing to crop to, options of PET that do not go together, or see
            :func:`check_reference`.
    """
    options = resolve(options, "case")
    check_crop(options)
    check_pet(options)
    modalities = tuple(options["modalities"] or volumes)
    check_reference(options["reference"], modalities)
    available = [name for name in modalities if name in volumes]
    if not available:
        raise GeometryError(f"none of the modalities {', '.join(modalities)} is there")
    volumes = {name: _bias_corrected(volumes[name], options) for name in available}
    body_of = cache(lambda name: foreground(volumes[name]))
    reference = choose_reference(available, options["reference"])
    head = options["to"] or (BRAIN_OF if options["brain_mask"] else None)
    registrations = registered(volumes, reference, head, options, device)
    # first within the patient, from the reference to each modality; then from the world of the grid
    within = {name: one.fixed_to_moving for name, one in registrations.items() if name != head}
    transforms = within
    to_reference = registrations[head].fixed_to_moving if head else Transform()
    if options["to"]:
        transforms = {reference: to_reference} | {name: to_reference.compose(t) for name, t in within.items()}
    named = [("reading", name, volume.meta.get("doubts", ())) for name, volume in volumes.items()]
    named += [("registration", name, one.reasons) for name, one in registrations.items() if one.verdict != "ok"]
    doubts = [Doubt(cause, f"{name}: {sentence}") for cause, name, sentences in named for sentence in sentences]
    body = _body(volumes[reference], partial(body_of, reference), transforms.get(reference), options)
    drawn, lesion = None, None
    if mask is not None:
        try:
            drawn, owner = mask_and_owner(mask, volumes, reference)
            lesion = Region.of(drawn.array > 0, drawn.grid, transforms.get(owner))
            doubts += [Doubt("mask", f"mask: {doubt}") for doubt in drawn.meta.get("doubts", ())]
        except MmfusionError as error:
            if options["center"] == "mask":
                raise
            doubts.append(Doubt("mask", f"mask: {error}"))
    if grid is None:
        grid = place_grid(options, volumes, reference, body, lesion)
    to_head = Transform() if options["to"] else to_reference.inverse()
    brain = brain_on(grid, to_head, head) if head and options["brain_mask"] else None
    kept = kept_voxels(options, grid, body, lesion, brain)

    image = np.zeros((len(modalities), *grid.shape), np.float32)
    valid = np.zeros(image.shape, bool)
    facts: dict[str, Any] = _shares(grid, body, lesion, doubts)
    masked = None if drawn is None else resample(drawn, grid, transforms.get(owner), order=0, fill=0)
    scalings: dict[str, Callable[[Volume], np.ndarray]] = {}
    on_grid: dict[str, Volume] = {}
    for name in available:
        volume = volumes[name]
        scalings[name] = scaling(name, volume, options, partial(body_of, name))
        channel = modalities.index(name)
        moved = resample(volume, grid, transforms.get(name))
        valid[channel] = coverage(volume.grid, grid, transforms.get(name))
        if kept is not None:
            moved = moved.replace(array=np.where(kept, moved.array, np.float32(volume.fill)))
        image[channel] = scalings[name](moved)
        share = float(valid[channel].mean())
        if np.ptp(image[channel]) == 0:
            raise VoxelError(
                f"{name} is constant on the prepared grid ({share:.0%} of the grid lies in its field of view): "
                "check its units and position, choose another --center, or leave the cell empty"
            )
        if share < _LEAST_COVERAGE:
            doubts.append(Doubt("coverage", f"{name}: its field of view covers only {share:.0%} of the grid"))
        level = clip_level(volume.units, options["suv_max"], options["pet_max"])
        seen = valid[channel] if kept is None else valid[channel] & kept
        clipped = clipped_share(moved, level, None if masked is None else (masked.array > 0) & seen)
        facts |= scan_facts(name, volume, share, clipped) | registration_facts(name, registrations.get(name))
        if keep_volumes:
            on_grid[name] = moved
    if head:
        facts |= {"template": head} | registration_facts(head, registrations[head])
    if drawn is not None:
        facts |= mask_facts(drawn)
        facts |= region_facts(volumes, within, drawn, owner, features, body_of)
    if brain is not None:
        facts["brain_ml"] = round(float(brain.sum() * np.prod(grid.spacing) / 1000), 1)
    if keep_volumes and masked is not None:
        on_grid["mask"] = masked
    return CaseResult(
        image=image,
        present=np.array([name in volumes for name in modalities]),
        valid=valid,
        modalities=modalities,
        grid=grid,
        reference=reference,
        world=options["to"] or reference,
        registrations=registrations,
        doubts=tuple(doubts),
        facts=facts,
        pictures=case_pictures(volumes, reference, transforms, grid, scalings, head, to_head, registrations)
        if pictures
        else {},
        on_grid=on_grid,
        mask_digest="" if drawn is None else sha256(np.packbits(drawn.array > 0).tobytes()).hexdigest(),
    )


def _bias_corrected(volume: Volume, options: Mapping[str, Any]) -> Volume:
    if volume.units != "a.u." or not options["bias_correction"]:
        return volume
    return correct_bias(volume, foreground(volume))


def _body(
    volume: Volume, body_of: Callable[[], np.ndarray], transform: Transform | None, options: Mapping[str, Any]
) -> Region | None:
    """The patient in the reference; None if nothing stands out and the grid need not be centered on it."""
    try:
        return Region.of(body_of(), volume.grid, transform)
    except VoxelError:
        if options["center"] == "foreground" and not options["to"]:
            raise
        return None


def _shares(grid: Grid, body: Region | None, lesion: Region | None, doubts: list[Doubt]) -> dict[str, Any]:
    """How much of the body and of the mask the grid misses, 0 to 1; a cut mask is a reason to doubt."""
    facts: dict[str, Any] = {}
    if body is not None:
        facts["foreground_outside"] = round(body.outside(grid), 4)
    if lesion is not None:
        facts["mask_outside"] = share = round(lesion.outside(grid), 4)
        if share > _MASK_OUTSIDE:
            words = f"mask: {share:.0%} of it falls outside the grid; use --center mask, or a larger grid"
            doubts.append(Doubt("mask", words))
    return facts
