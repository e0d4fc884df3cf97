"""RTSTRUCT: structures that were drawn as contours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError
from mmfusion.io.contours import crossing_layers, inside_contours, is_planar, without_repeats
from mmfusion.io.metaimage import LPS_TO_RAS
from mmfusion.io.series_facts import referenced_series
from mmfusion.io.structures import OpenedMask, Structure, choose
from mmfusion.io.tags import listed, names_damage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydicom import Dataset

    from mmfusion.volume import Grid

RTSTRUCT_TAGS = (
    "StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence", "ReferencedFrameOfReferenceSequence",
)  # fmt: skip
_CLOSED, _XOR = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR"


@names_damage
def open_rtstruct(path: Path, header: Dataset, wanted: Sequence[str] | None) -> OpenedMask:
    """The structures of an RTSTRUCT that are meant, to be drawn.

    Contours are closed if their ContourGeometricType says so, or if it is missing or unknown and they have three points
    or more in a plane. Points and open lines are left out. An outline that is written twice counts once.

    Raises:
        ReadError: see :func:`mmfusion.io.structures.choose`; no closed contours; structures of different worlds.
    """
    drawings: dict[int, list[Dataset]] = {}
    for item in header.get("ROIContourSequence") or []:
        drawings.setdefault(int(item.get("ReferencedROINumber", -1)), []).extend(item.get("ContourSequence") or [])
    kinds = {
        int(item.get("ReferencedROINumber", -1)): str(item.get("RTROIInterpretedType") or "").strip().upper()
        for item in header.get("RTROIObservationsSequence") or []
    }
    rois = {int(item.ROINumber): item for item in header.get("StructureSetROISequence") or []}
    structures = [
        Structure(n, str(item.get("ROIName") or n).strip(), kinds.get(n, ""), any(map(_encloses, drawings.get(n, []))))
        for n, item in rois.items()
    ]
    if not any(one.drawn for one in structures):
        raise ReadError(f"{path} holds no closed planar contours")
    mask = OpenedMask(path, referenced_series=tuple(referenced_series(header)))
    chosen = choose(structures, wanted, mask)
    shapes = [_contours(one.name, drawings.get(one.number, []), mask) for one in chosen]
    shapes = [(contours, layers) for contours, layers in shapes if contours]
    if not shapes:
        raise ReadError(f"{path} holds no closed planar contours of {', '.join(mask.rois)}")
    frames = {str(rois[one.number].get("ReferencedFrameOfReferenceUID") or "") for one in chosen} - {""}
    if len(frames) > 1:
        raise ReadError(f"{path}: {', '.join(mask.rois)} were drawn in different frames of reference; name one of them")
    main = (header.get("ReferencedFrameOfReferenceSequence") or [{}])[0].get("FrameOfReferenceUID")
    mask.frame_of_reference = next(iter(frames), str(main or ""))

    def draw(grid: Grid) -> np.ndarray:
        drawn = [inside_contours(contours, grid, layers) for contours, layers in shapes]
        return np.any(drawn, axis=0).astype(np.uint8)

    mask.draw = draw
    return mask


def _kind(contour: Dataset) -> str:
    return str(contour.get("ContourGeometricType") or "").strip().upper()


def _encloses(contour: Dataset) -> bool:
    return not _kind(contour).startswith(("POINT", "OPEN"))


def _contours(name: str, drawn: Sequence[Dataset], mask: OpenedMask) -> tuple[list[np.ndarray], list[int]]:
    """Closed contours ``[N, 3]`` of one structure, RAS mm, and their layers; ``mask`` takes what was unusual."""
    closed, xor, supposed, lines = list[np.ndarray](), list[np.ndarray](), 0, 0
    for contour in drawn:
        kind, points = _kind(contour), _points(contour) @ LPS_TO_RAS[:3, :3]
        if kind == _XOR:
            xor.append(points)
        elif kind == _CLOSED:
            closed.append(points)
        elif _encloses(contour) and len(points) >= 3 and is_planar(points):
            closed.append(points)
            supposed += 1
        elif kind != "POINT":
            lines += 1
    once = without_repeats(closed)
    if supposed:
        mask.notes.append(f"{supposed} contours of {name} have no known ContourGeometricType and are taken as closed")
    if len(once) < len(closed):
        mask.notes.append(f"{len(closed) - len(once)} outlines of {name} are written twice and count once")
    if cancelled := len(xor) - len(without_repeats(xor)):
        mask.doubts.append(
            f"{cancelled} outlines of {name} are written twice and cancel each other, as CLOSEDPLANAR_XOR says. Check "
            "the mask"
        )
    if lines and (once or xor):
        mask.doubts.append(
            f"{lines} of {len(drawn)} contours of {name} are open lines and left out. Close them, or check the mask"
        )
    layers = crossing_layers(once)
    if any(layers):
        mask.notes.append(f"outlines of {name} cross each other; what one of them encloses is inside")
    return once + xor, layers + [0] * len(xor)


def _points(contour: Dataset) -> np.ndarray:
    """``[N, 3]`` LPS mm, from the text as stored: pydicom would make an object of each number, which takes long."""
    if "ContourData" not in contour:
        return np.empty((0, 3))
    stored = contour.get_item("ContourData").value
    text = stored if isinstance(stored, bytes) else "\\".join(map(str, listed(stored))).encode()
    text = text.rstrip(b" \0")
    return np.array(text.split(b"\\") if text else [], dtype=np.float64).reshape(-1, 3)
