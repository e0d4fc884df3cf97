"""A DICOM series as one volume: slices sorted by where they lie, each with its own rescaling."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import MmfusionError, ReadError, UnitsError, first_line
from mmfusion.io.dates import scan_date
from mmfusion.io.frame_choice import FrameChoice, choose_frames
from mmfusion.io.frames import Frames, frames_of, times_of
from mmfusion.io.header import Opened, kind_of, settled_kind
from mmfusion.io.image_kinds import of_one_kind, split_kind
from mmfusion.io.lattice import Lattice, stack
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.people import person_digest
from mmfusion.io.pictures import hounsfield, named, without_pictures
from mmfusion.io.pixels import plain_plane
from mmfusion.io.series import names_uid, one_series
from mmfusion.io.slices import Slice, normal_of, parallel, slices_of, unusual_cosines
from mmfusion.io.suv_dicom import earliest_acquisition, own_units, suv_factor
from mmfusion.io.tags import IDENTITY, lenient_dicom, names_damage, number, read_tags, series_name
from mmfusion.io.voxels import empty_voxels, fill, slabs
from mmfusion.io.walk import Unread, walk
from mmfusion.io.zipped import Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile

_PARALLEL = 0.99  # cosine between the normals of two slices


@names_damage
@lenient_dicom()
def open_dicom(path: Path, *, series: str | None = None, **reading: Any) -> Opened:
    """Read the headers of one series: in a folder, that of any file in a folder, or in a zip file.

    Args:
        path: the folder or file; a series whose UID is given may also lie in the folders below.
        series: which series is meant, see :func:`mmfusion.io.series.one_series`.
        reading: ``modality``, ``frame``, ``suv``, ``weight_unit`` and ``pet`` of :func:`mmfusion.io.load_volume`.

    Raises:
        ReadError: no image series or several; slices that do not form a regular stack, or form several (frames) and
            none was chosen; a modality that contradicts the header; a zip file that cannot be trusted or read.
        UnitsError: HU or SUV cannot be known.
        GeometryError: a singular affine.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return _open_zip(path, series=series, **reading)
    folder, below = path, path.is_dir() and names_uid(series)
    if not path.is_dir():
        folder = path.parent
        header = read_tags(path, IDENTITY)
        if header is None:
            raise ReadError(f"{path} is not a DICOM file, or is damaged")
        named, image_kind = split_kind(series)
        named = named or series_name(header)
        series = f"{named}:{image_kind}" if image_kind else named
    unread = Unread()
    inside = sorted((*walk(folder, unread, below=below), *unread.broken_links))
    if folder in unread.unreadable:
        raise ReadError(f"folder {folder} cannot be read; check its permissions")
    opened = open_files(inside, path, f"folder {folder}", series=series, **reading)
    if unread.unreadable:
        opened.doubts.append(
            f"{len(unread.unreadable)} files or folders beside the slices may not be read, and may hold some. Check "
            "their permissions."
        )
    return opened


def _open_zip(path: Path, **reading: Any) -> Opened:
    archive = Archive(path)
    with archive:
        opened = open_files(archive.members, path, f"zip file {path}", **reading)
    nested = sum(member.suffix.lower() == ".zip" for member in archive.members)
    if nested:
        opened.notes.append(f"{nested} zip files inside the zip file left out")
    read_members = opened.read

    def read() -> np.ndarray:
        with archive:
            return read_members()

    opened.read = read
    return opened


@names_damage
@lenient_dicom()
def open_files(inside: Sequence[DicomFile], path: Path, where: str, **reading: Any) -> Opened:
    """:func:`open_dicom` of these files alone.

    Args:
        inside: the files.
        path: what messages call the scan.
        where: what messages call the place where the files lie.
        reading: the arguments of :func:`open_dicom`.
    """
    try:
        return _opened(inside, path, where, settled=False, **reading)
    except (MmfusionError, MemoryError, OSError):
        raise
    except Exception:  # a value that is none, and pydicom raises nearly anything: name it, or do without it
        return _opened(inside, path, where, settled=True, **reading)


def _opened(
    inside: Sequence[DicomFile],
    path: Path,
    where: str,
    *,
    settled: bool,
    modality: str = "",
    frame: str | int | None = None,
    series: str | None = None,
    suv: str = "bw",
    **details: Any,
) -> Opened:
    notes: list[str] = []
    doubts: list[str] = []
    files, image_kind = one_series(
        inside, where, series=series, kind=kind_of(modality), settled=settled, notes=notes, doubts=doubts
    )
    files = without_pictures(files, inside, path, notes)
    slices = [piece for file, header in files for piece in slices_of(file, header)]
    slices, odd = parallel(of_one_kind(slices, image_kind, path, notes), path)
    _report_left_out(odd, slices[0], inside, notes, doubts)
    notes += unusual_cosines(slices)
    first = slices[0].header
    kind = settled_kind(modality, str(first.get("Modality", "")), path)
    if kind == "ct":
        headers = {id(piece.header): piece.header for piece in slices}.values()
        in_hounsfield, *about = hounsfield(headers, modality, path)
        kind = kind if in_hounsfield else ""
        notes += about[0]
        doubts += about[1]
    _refuse_unscaled(slices, kind, path, doubts)
    frames = frames_of(slices, path)
    values = [f"{frames.tag} {value}" for value in frames.values]
    choice = choose_frames(frame, len(frames.sets), frames.summary, path, partial(times_of, frames), values)
    notes += [choice.note] if choice.note else []
    doubts += choice.doubts
    lattice, ordered = _stacked(frames, choice, path)
    if kind == "pet":
        doubts += _too_few(first, len(lattice.order), len(slices))
    factors, units = [[1.0] * len(pieces) for pieces in ordered], ""
    if kind == "pet" and suv != "none":
        try:
            factors, units = _suv_factors(slices, ordered, notes, doubts, suv=suv, source=path, **details), f"SUV{suv}"
        except UnitsError as error:
            if kind_of(modality) or not modality:
                raise
            reason = str(error).removeprefix(f"{path}: ").partition(". ")[0]
            doubts.append(f"the values are not SUV: {reason}. Use --suv none if they are to be as stored for all cases")
    if kind == "pet" and not units:
        units = own_units(first, notes, doubts)
    columns, rows = slices[0].size
    affine = LPS_TO_RAS @ lattice.affine
    return Opened(
        path,
        (columns, rows, lattice.depth),
        affine,
        partial(_read_stack, ordered, factors, choice.weights, lattice.weights, affine, path),
        kind=kind,
        frame_of_reference=str(first.get("FrameOfReferenceUID") or ""),
        series_uid=str(first.get("SeriesInstanceUID") or ""),
        frames=len(frames.sets),
        choice=choice,
        has_units=True,
        pet_units=units,
        notes=[*notes, *lattice.notes],
        doubts=[*doubts, *lattice.doubts],
        scanned=scan_date(first),
        person=person_digest(first),
    )


def _report_left_out(
    odd: list[Slice], usual: Slice, inside: Sequence[DicomFile], notes: list[str], doubts: list[str]
) -> None:
    """A note for images across the slices; a doubt for slices along them, which may be the end of the stack."""
    across = [piece.path for piece in odd if abs(normal_of(piece.axes) @ normal_of(usual.axes)) < _PARALLEL]
    along = [piece.path for piece in odd if piece.path not in across]
    if across:
        notes.append(f"{len(across)} images across the slices left out ({named(across, inside)})")
    if along:
        doubts.append(
            f"{len(along)} slices of another size or direction left out ({named(along, inside)}): the stack may end "
            "too early. Export the series again, or leave these files out"
        )


def _suv_factors(
    slices: list[Slice], frames: list[list[Slice]], notes: list[str], doubts: list[str], **how: Any
) -> list[list[float]]:
    """What turns the values of each slice of each used frame into SUV."""
    # decay correction refers to the start of the series, so to its first slice, whichever frame is used
    how["first_acquisition"] = earliest_acquisition((piece.header for piece in slices), notes)
    suv_factor(frames[0][0].header, notes=notes, doubts=doubts, **how)
    factors = [[suv_factor(piece.header, **how) for piece in pieces] for pieces in frames]
    low, high = min(map(min, factors)), max(map(max, factors))
    if frames[0][0].header.get("DecayCorrection") != "NONE" and high > 1.001 * low:  # else each has its own time
        doubts.append(
            f"the factors from stored values to SUV of its slices differ by up to {high / low - 1:.0%}: Units, weight, "
            "dose or times are not the same in all headers. Correct them, or give them in the manifest"
        )
    return factors


def _stacked(frames: Frames, choice: FrameChoice, path: Path) -> tuple[Lattice, list[list[Slice]]]:
    """The lattice, and in order of place the slices of each frame that is used."""
    used = [frames.sets[index] for index in choice.indices]
    lattices = [stack(pieces, path) for pieces in used]
    first = lattices[0]
    if not all(one.depth == first.depth and np.allclose(one.affine, first.affine, atol=0.02) for one in lattices):
        raise ReadError(f"{path}: the frames do not lie at one place, so they have no mean; choose one with --frame")
    return first, [[pieces[n] for n in one.order] for pieces, one in zip(used, lattices, strict=True)]


def _too_few(first: Dataset, there: int, images: int) -> list[str]:
    """A doubt if a PET header counts more slices than there are (of some makers, more images of all frames)."""
    counted = number(first.get("NumberOfSlices")) or 0
    if counted <= there or counted == images:
        return []
    return [
        f"{there} slices are there, but NumberOfSlices is {counted:g}: the stack may end too early. Export the series "
        "again if it was not cut on purpose"
    ]


def _refuse_unscaled(slices: list[Slice], kind: str, source: object, doubts: list[str]) -> None:
    units = {"ct": "HU", "pet": "SUV"}.get(kind)
    if units and any(piece.slope is None or piece.intercept is None for piece in slices):
        raise UnitsError(
            f"{source}: {units} cannot be known, DICOM lacks RescaleSlope (0028,1053) other than 0, or "
            "RescaleIntercept (0028,1052)"
        )
    unscaled = sum(piece.slope is None for piece in slices)
    if unscaled and any(piece.slope not in (None, 1.0) for piece in slices):
        doubts.append(
            f"{unscaled} of {len(slices)} slices have no RescaleSlope, and are as bright as others only by chance. "
            "Export the series again"
        )


@names_damage
@lenient_dicom()
def _read_stack(
    frames: list[list[Slice]],
    factors: list[list[float]],
    shares: Sequence[float],
    weights: np.ndarray | None,
    affine: np.ndarray,
    source: object,
) -> np.ndarray:
    """``[columns, rows, slices]`` float32 of the lattice, in the volume's units: see :attr:`Lattice.weights`."""
    stored = _read_mean(frames, factors, shares, affine, source)
    if weights is None:
        return stored
    out = empty_voxels((*stored.shape[:2], weights.shape[1]), affine, source)
    for plane, finer in zip(stored, out, strict=True):
        finer[...] = plane @ weights
    return out


def _read_mean(
    frames: list[list[Slice]],
    factors: list[list[float]],
    shares: Sequence[float],
    affine: np.ndarray,
    source: object,
) -> np.ndarray:
    """``[columns, rows, slices]`` float32: the mean of the frames by their shares, each in the volume's units."""
    out = empty_voxels((*frames[0][0].size, len(frames[0])), affine, source)
    decoded = lru_cache(maxsize=1)(pixels_of)  # one file may hold all frames
    one = out
    for n, (slices, scales, share) in enumerate(zip(frames, factors, shares, strict=True)):
        if n == 1:
            one = np.empty_like(out)
        _read_into(one, slices, np.asarray(scales) * share / sum(shares), decoded)
        if n:
            out += one
    return out


def _read_into(
    out: np.ndarray, slices: list[Slice], factors: np.ndarray, decoded: Callable[[DicomFile], np.ndarray]
) -> None:
    """Fill ``out [columns, rows, slices]`` with rescaled values times the factors, some slices at a time."""
    slopes = np.array([1.0 if piece.slope is None else piece.slope for piece in slices]) * factors
    intercepts = np.array([piece.intercept or 0.0 for piece in slices]) * factors
    for part in slabs(out.shape, voxel_bytes=2):
        stored = np.empty(0)
        for n, piece in enumerate(slices[part]):
            plane = _plane(piece, decoded)
            if n == 0:
                stored = np.empty((len(slices[part]), *plane.shape), plane.dtype)
            stored = stored.astype(np.result_type(stored, plane), copy=False)  # slices may differ in it
            stored[n] = plane
        fill(out[:, :, part], stored.T, slopes[part], intercepts[part])


def _plane(piece: Slice, decoded: Callable[[DicomFile], np.ndarray]) -> np.ndarray:
    """Stored values ``[rows, columns]`` of a slice."""
    plane = plain_plane(piece.path, piece.header, piece.frame)
    if plane is None:
        pixels = decoded(piece.path)
        plane = pixels if pixels.ndim == 2 else pixels[piece.frame]
        if plane.shape != piece.size[::-1]:
            raise ReadError(f"{piece.path}: one gray value a pixel is expected, found an array {pixels.shape}")
    return plane


def pixels_of(path: DicomFile) -> np.ndarray:
    """Stored pixel values of a DICOM file, ``[rows, columns]`` or ``[frames, rows, columns]``.

    Compressed pixels (JPEG, JPEG-LS, JPEG 2000: GDCM; RLE: pydicom) are always decoded by the same decoder, whatever
    others are installed.

    Raises:
        ReadError: the pixels are missing, cut off, damaged, or compressed in a way that the decoders do not know.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    header = read_tags(path, pixels=True)
    if header is None:
        raise ReadError(f"{path} cannot be read as DICOM")
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    name, decoder = getattr(syntax, "name", "unknown"), ""
    if isinstance(syntax, UID) and syntax.is_transfer_syntax and syntax.is_compressed:
        decoder = "pydicom" if name == "RLE Lossless" else "gdcm"
        try:
            known = decoder in get_decoder(str(syntax)).available_plugins
        except NotImplementedError:
            known = False
        if not known:
            raise ReadError(
                f"{path}: pixels are compressed as {name}, which is not decoded here. Export the series uncompressed, "
                "or in lossless JPEG, JPEG-LS, JPEG 2000 or RLE"
            )
        header.pixel_array_options(decoding_plugin=decoder)
    try:
        return header.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like, and of broken codes nothing that helps
        reason = f"{decoder} cannot decode them" if decoder else first_line(error).rstrip(".")
        raise ReadError(f"{path}: pixels cannot be read ({reason}; {name}). Copy or export the series again") from None
