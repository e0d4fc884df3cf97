"""A DICOM series as one volume: slices sorted by where they lie, each with its own rescaling."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.errors import ReadError, UnitsError
from mmfusion.io.header import Opened, settled_kind
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.pixels import plain_plane
from mmfusion.io.slices import Slice, slices_of, stack
from mmfusion.io.suv import earliest_acquisition, suv_factor
from mmfusion.io.tags import (
    GEOMETRY,
    IDENTITY,
    PIXELS,
    VALUES,
    is_image,
    is_localizer,
    lenient_dicom,
    names_damage,
    read_tags,
)
from mmfusion.io.voxels import empty_voxels, fill, slabs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydicom import Dataset


@names_damage
@lenient_dicom()
def open_dicom(
    path: Path,
    *,
    modality: str = "",
    series_uid: str | None = None,
    pet: Mapping[str, Any] | None = None,
) -> Opened:
    """Read the headers of one series: a folder that holds it, or any file of it.

    Raises:
        ReadError: no image series or several in the folder; slices that do not form a regular stack; a modality
            that contradicts the header.
        UnitsError: HU or SUV cannot be known.
        GeometryError: a singular affine.
    """
    folder = path
    if not path.is_dir():
        folder = path.parent
        header = read_tags(path, IDENTITY)
        if header is None:
            raise ReadError(f"{path} is not a DICOM file, or is damaged")
        series_uid = series_uid or str(header.get("SeriesInstanceUID", ""))
    notes: list[str] = []
    files = _one_series(folder, series_uid, notes)
    slices = [piece for file, header in files for piece in slices_of(file, header)]
    first = files[0][1]
    kind = settled_kind(modality, str(first.get("Modality", "")), path)
    affine, order = stack(slices, path)
    slices = [slices[n] for n in order]
    factors = _factors(slices, kind, pet, path)
    if kind == "pet" and str(first.get("Units")) == "BQML":
        notes.append(f"Bq/mL to SUVbw by {factors[0]:.4g} g/mL per Bq/mL")
    columns, rows = slices[0].size
    return Opened(
        path,
        (columns, rows, len(slices)),
        LPS_TO_RAS @ affine,
        partial(_read_pixels, slices, factors, LPS_TO_RAS @ affine, path),
        kind=kind,
        frame_of_reference=str(first.get("FrameOfReferenceUID") or ""),
        from_dicom=True,
        notes=notes,
    )


def _one_series(folder: Path, series_uid: str | None, notes: list[str]) -> list[tuple[Path, Dataset]]:
    """The image files of the wanted series (or of the only one), each object once, without localizers."""
    groups: dict[str, dict[str, tuple[Path, Dataset]]] = {}
    others: set[str] = set()
    repeated: dict[str, int] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        header = read_tags(path, (*IDENTITY, *GEOMETRY, *VALUES, *PIXELS))
        if header is None:
            continue
        if not is_image(header):
            others.add(str(header.get("Modality") or "no modality"))
            continue
        uid = str(header.get("SeriesInstanceUID", ""))
        series = groups.setdefault(uid, {})
        if str(header.get("SOPInstanceUID", path)) in series:
            repeated[uid] = repeated.get(uid, 0) + 1
        series.setdefault(str(header.get("SOPInstanceUID", path)), (path, header))
    if series_uid:  # the short form that the list of series prints is enough
        groups = {uid: files for uid, files in groups.items() if uid.endswith(series_uid)}
    if not groups:
        found = f" (found {', '.join(sorted(others))})" if others else ""
        wanted = f" of series {series_uid}" if series_uid else ""
        raise ReadError(f"folder {folder} holds no DICOM image{wanted} with a position{found}; give the series' folder")
    if len(groups) > 1:
        raise ReadError(
            f"folder {folder} holds {len(groups)} image series: {'; '.join(_described(groups))}. "
            "Keep each series in a folder of its own, give one of its files, or name it by series_uid"
        )
    (uid, objects), *_ = groups.items()
    files = list(objects.values())
    if repeated.get(uid):
        notes.append(f"{repeated[uid]} files are copies of others; left out")
    kept = [(path, header) for path, header in files if not is_localizer(header)]
    if kept and len(kept) < len(files):
        notes.append(f"{len(files) - len(kept)} localizer images left out")
    return kept or files


def _described(groups: dict[str, dict[str, tuple[Path, Dataset]]]) -> Iterator[str]:
    """What tells series apart, without their descriptions: free text may name the patient, and errors are kept."""
    for uid, objects in sorted(groups.items()):
        header = next(iter(objects.values()))[1]
        modality, number = header.get("Modality", ""), header.get("SeriesNumber", "-")
        yield f"...{uid[-8:]} {modality} number {number}, {len(objects)} files"


def _factors(slices: list[Slice], kind: str, pet: Mapping[str, Any] | None, source: object) -> list[float]:
    """What the rescaled values of each slice are multiplied by to get the volume's units."""
    if kind == "ct" and any(piece.slope is None or piece.intercept is None for piece in slices):
        raise UnitsError(
            f"{source}: HU cannot be known, DICOM lacks RescaleSlope (0028,1053) or RescaleIntercept (0028,1052)"
        )
    if kind != "pet":
        return [1.0] * len(slices)
    first = earliest_acquisition(piece.header for piece in slices)
    return [suv_factor(piece.header, first_acquisition=first, pet=pet, source=source) for piece in slices]


@names_damage
@lenient_dicom()
def _read_pixels(slices: list[Slice], factors: list[float], affine: np.ndarray, source: object) -> np.ndarray:
    """``[columns, rows, slices]`` float32 in the volume's units."""
    shape = (*slices[0].size, len(slices))
    out = empty_voxels(shape, affine, source)
    slopes = np.array([1.0 if piece.slope is None else piece.slope for piece in slices]) * factors
    intercepts = np.array([piece.intercept or 0.0 for piece in slices]) * factors
    decoded = lru_cache(maxsize=1)(pixels_of)  # one file may hold all frames
    for part in slabs(shape, voxel_bytes=2):
        stored = np.empty((len(slices[part]), *shape[1::-1]), _plane(slices[part][0], decoded).dtype)
        for n, piece in enumerate(slices[part]):
            plane = _plane(piece, decoded)
            stored = stored.astype(np.result_type(stored, plane), copy=False)  # slices may differ in it
            stored[n] = plane
        fill(out[:, :, part], stored.T, slopes[part], intercepts[part])
    return out


def _plane(piece: Slice, decoded: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Stored values ``[rows, columns]`` of a slice."""
    plane = plain_plane(piece.path, piece.header, piece.frame)
    if plane is None:
        pixels = decoded(piece.path)
        plane = pixels if pixels.ndim == 2 else pixels[piece.frame]
        if plane.shape != piece.size[::-1]:
            raise ReadError(f"{piece.path}: one gray value a pixel is expected, found an array {pixels.shape}")
    return plane


def pixels_of(path: Path) -> np.ndarray:
    """Stored pixel values of a DICOM file, ``[rows, columns]`` or ``[frames, rows, columns]``.

    Raises:
        ReadError: the pixels are missing, cut off, or compressed in a way that no installed decoder reads.
    """
    header = read_tags(path, pixels=True)
    if header is None:
        raise ReadError(f"{path} cannot be read as DICOM")
    try:
        return header.pixel_array
    except Exception as error:  # decoders raise what they like
        syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
        name = getattr(syntax, "name", "unknown")
        if getattr(syntax, "is_compressed", False):
            raise ReadError(
                f"{path}: pixels are compressed as {name}, which cannot be decoded here ({_first_line(error)}). "
                "Export uncompressed, or install pylibjpeg with its plugins"
            ) from None
        raise ReadError(f"{path}: pixels cannot be read ({_first_line(error)}; {name})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
