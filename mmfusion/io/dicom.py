"""A DICOM series as one volume: slices sorted by where they lie, each with its own rescaling."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import MmfusionError, ReadError, UnitsError, first_line
from mmfusion.io.frames import Frames, frames_of
from mmfusion.io.header import Opened, chosen_frame, kind_of, settled_kind
from mmfusion.io.image_kinds import of_one_kind, split_kind
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.pixels import plain_plane
from mmfusion.io.series import one_series
from mmfusion.io.slices import Slice, check_parallel, slices_of, stack
from mmfusion.io.suv_dicom import earliest_acquisition, stored_suv, suv_factor
from mmfusion.io.tags import IDENTITY, lenient_dicom, names_damage, read_tags
from mmfusion.io.voxels import empty_voxels, fill, slabs
from mmfusion.io.zipped import Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from mmfusion.io.zipped import DicomFile


@names_damage
@lenient_dicom()
def open_dicom(path: Path, *, series: str | None = None, **reading: Any) -> Opened:
    """Read the headers of one series: in a folder, that of any file in a folder, or in a zip file.

    Args:
        path: the folder or file.
        series: which series is meant, see :func:`mmfusion.io.series.one_series`.
        reading: ``modality``, ``frame``, ``suv`` and ``pet`` of :func:`mmfusion.io.load_volume`.

    Raises:
        ReadError: no image series or several; slices that do not form a regular stack, or form several (frames) and
            none was chosen; a modality that contradicts the header; a zip file that cannot be trusted or read.
        UnitsError: HU or SUV cannot be known.
        GeometryError: a singular affine.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        return _open_zip(path, series=series, **reading)
    folder = path
    if not path.is_dir():
        folder = path.parent
        header = read_tags(path, IDENTITY)
        if header is None:
            raise ReadError(f"{path} is not a DICOM file, or is damaged")
        named, image_kind = split_kind(series)
        named = named or str(header.get("SeriesInstanceUID", ""))
        series = f"{named}:{image_kind}" if image_kind else named
    inside = sorted(entry for entry in folder.iterdir() if entry.is_file())
    return open_files(inside, path, f"folder {folder}", series=series, **reading)


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
    pet: Mapping[str, Any] | None = None,
) -> Opened:
    notes: list[str] = []
    files, image_kind = one_series(inside, where, series=series, kind=kind_of(modality), settled=settled, notes=notes)
    slices = [piece for file, header in files for piece in slices_of(file, header)]
    slices = of_one_kind(slices, image_kind, path, notes)
    first = files[0][1]
    kind = settled_kind(modality, str(first.get("Modality", "")), path)
    _refuse_unscaled(slices, kind, path)
    check_parallel(slices, path)
    frames = frames_of(slices, path)
    affine, ordered = _stacked(frames, frame, path, notes)
    factors = [[1.0] * len(pieces) for pieces in ordered]
    if kind == "pet":
        # decay correction refers to the start of the series, so to its first slice, whichever frame is used
        begin = earliest_acquisition(piece.header for piece in slices)
        suv_of = partial(suv_factor, suv=suv, first_acquisition=begin, pet=pet, source=path)
        factors = [[suv_of(piece.header) for piece in pieces] for pieces in ordered]
        notes += _suv_notes(first, suv, factors[0][0])
    columns, rows = slices[0].size
    return Opened(
        path,
        (columns, rows, len(ordered[0])),
        LPS_TO_RAS @ affine,
        partial(_read_mean, ordered, factors, LPS_TO_RAS @ affine, path),
        kind=kind,
        frame_of_reference=str(first.get("FrameOfReferenceUID") or ""),
        frames=len(frames.sets),
        has_units=True,
        notes=notes,
    )


def _stacked(
    frames: Frames, frame: str | int | None, path: Path, notes: list[str]
) -> tuple[np.ndarray, list[list[Slice]]]:
    """``[4, 4]`` index to LPS mm, and in order of place the slices of the chosen frame, or of all for their mean."""
    index = chosen_frame(frame, len(frames.sets), frames.summary, path)
    if len(frames.sets) > 1:
        which = "their mean" if index is None else f"frame {index} ({frames.tag} {frames.values[index]})"
        notes.append(f"{len(frames.sets)} frames: {which} is used")
    used = frames.sets if index is None else frames.sets[index : index + 1]
    lattices = [stack(pieces, path) for pieces in used]
    affine = lattices[0][0]
    if not all(np.allclose(other, affine, atol=0.02) for other, _ in lattices):
        raise ReadError(f"{path}: the frames do not lie at one place, so they have no mean; choose one with --frame")
    return affine, [[pieces[n] for n in order] for pieces, (_, order) in zip(used, lattices, strict=True)]


def _suv_notes(header: Dataset, suv: str, factor: float) -> list[str]:
    units = str(header.get("Units")).upper()
    if units == "BQML":
        return [f"Bq/mL to SUV{suv} by {factor:.4g} per Bq/mL"]
    if units == "GML" and stored_suv(header) == "LBM":
        return ["SUVlbm as it was exported, by a formula for lean body mass that the DICOM does not name"]
    return []


def _refuse_unscaled(slices: list[Slice], kind: str, source: object) -> None:
    units = {"ct": "HU", "pet": "SUV"}.get(kind)
    if units and any(piece.slope is None or piece.intercept is None for piece in slices):
        raise UnitsError(
            f"{source}: {units} cannot be known, DICOM lacks RescaleSlope (0028,1053) or RescaleIntercept (0028,1052)"
        )


@names_damage
@lenient_dicom()
def _read_mean(frames: list[list[Slice]], factors: list[list[float]], affine: np.ndarray, source: object) -> np.ndarray:
    """``[columns, rows, slices]`` float32: the mean of the frames, each in the volume's units."""
    out = empty_voxels((*frames[0][0].size, len(frames[0])), affine, source)
    decoded = lru_cache(maxsize=1)(pixels_of)  # one file may hold all frames
    one = out
    for n, (slices, scales) in enumerate(zip(frames, factors, strict=True)):
        if n == 1:
            one = np.empty_like(out)
        _read_into(one, slices, np.asarray(scales) / len(frames), decoded)
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
