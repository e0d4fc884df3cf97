"""Pictures as plain arrays: equalized planes, checkerboards, letters for the directions. Fast, for many cases.

A plane is ``[x, y]`` along two RAS axes. Pictures show it with x to the right and y upward, so the left of an
axial or coronal picture is the patient's left (neurological display); the letters L, R, A, P, S, I say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

PLANES = {"axial": "LRPA", "coronal": "LRIS", "sagittal": "PAIS"}
"""Planes in the order they are shown, with the letters at the left, right, bottom and top."""

_GLYPHS = {
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "I": "01110 00100 00100 00100 00100 00100 01110",
}
LENGTH = 128  # pixels that the longest side of a plane is enlarged to, about; the browser enlarges on
GRAYS = 192  # of the 256 indices of a picture; the others are colors of a joint histogram


def equalize(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gray values 0..1 by rank, so that two modalities give a body the same average gray.

    Without it the squares of a checkerboard differ in brightness everywhere, and that pattern hides the steps
    one looks for. Below a threshold lies the background, which stays dark; values above it get 0.3..1 by their
    rank among all images given. The threshold is Otsu's on fourth roots, so that a hot lesion in PET does not turn
    the rest of the body into background.

    Args:
        images: arrays of any shape, of one modality.
    """
    from skimage.filters import threshold_otsu

    values = np.concatenate([np.clip(np.nan_to_num(image.astype(np.float32)), 0, None).ravel() for image in images])
    roots = np.clip(values, 0, np.percentile(values, 99.5)) ** 0.25
    if not roots.max() > roots.min():
        return [np.zeros(image.shape, np.float32) for image in images]
    level = (0.84 * threshold_otsu(roots)) ** 4
    # the bits of half precision numbers rise with them, so that counting sorts
    scale = 2.0 ** np.ceil(np.log2(values.max()))
    bits = (values / scale).astype(np.float16).view(np.uint16)
    counts = np.bincount(bits)
    found = np.arange(len(counts), dtype=np.uint16).view(np.float16).astype(np.float32) * scale
    inside = np.where(found > level, counts, 0)
    rank = (np.cumsum(inside) - inside / 2) / inside.sum()  # midranks: a saturated body becomes gray, not white
    gray = np.where(found > level, 0.3 + 0.7 * rank, 0.3 * found / level).astype(np.float32)[bits]
    parts = np.split(gray, np.cumsum([image.size for image in images])[:-1])
    return [part.reshape(image.shape) for part, image in zip(parts, images, strict=True)]


def equalized(planes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """:func:`equalize` for the planes of one modality, by name."""
    return dict(zip(planes, equalize(list(planes.values())), strict=True))


def checkerboard(a: np.ndarray, b: np.ndarray, squares: int = 6) -> np.ndarray:
    """Squares of a and b by turns, of one shape ``[x, y]``; ``squares`` along the longer side."""
    side = max(1, -(-max(a.shape) // squares))
    x, y = np.indices(a.shape) // side
    return np.where((x + y) % 2 == 0, a, b)


def planes_of(arrays: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray] | None:
    """The three planes stored as ``<key>_axial`` and so on; None if one is absent."""
    found = {plane: arrays.get(f"{key}_{plane}") for plane in PLANES}
    return {p: a for p, a in found.items() if a is not None} if all(a is not None for a in found.values()) else None


def strip(fixed: Mapping[str, np.ndarray], moving: Mapping[str, np.ndarray], squares: int = 6) -> np.ndarray:
    """Checkerboards of three planes side by side, with letters: a picture ``[height, width]``, uint8.

    Args:
        fixed, moving: a 2D array for each name of :data:`PLANES`, of the same shapes, :func:`equalized`.
        squares: along the longer side of each plane.
    """
    longest = max(max(plane.shape) for plane in fixed.values())
    boards = {plane: checkerboard(fixed[plane], moving[plane], squares) for plane in PLANES}
    tiles = [_tile(board, longest, PLANES[plane]) for plane, board in boards.items()]
    height = max(tile.shape[0] for tile in tiles)
    padded = []
    for tile in tiles:
        above = (height - tile.shape[0]) // 2
        padded.append(np.pad(tile, ((above, height - tile.shape[0] - above), (3, 3))))
    return np.hstack(padded)


def comparison(
    fixed: Mapping[str, np.ndarray], moving: Mapping[str, np.ndarray], counts: np.ndarray | None = None
) -> np.ndarray:
    """What the QC page shows of two volumes: :func:`strip`, and to the right of it their joint histogram.

    Returns:
        ``[height, width]`` uint8, indices into :func:`palette`: one byte a pixel, which compresses twice as well as
        three do.
    """
    planes = np.round(strip(fixed, moving) * ((GRAYS - 1) / 255)).astype(np.uint8)
    if counts is None:
        return planes
    histogram = histogram_picture(counts, planes.shape[0])
    height = max(planes.shape[0], histogram.shape[0])
    tiles = [np.pad(tile, ((0, height - tile.shape[0]), (3, 3))) for tile in (planes, histogram)]
    return np.hstack(tiles)


def histogram_picture(counts: np.ndarray, height: int = LENGTH) -> np.ndarray:
    """A joint histogram ``[reference, moving]`` about ``height`` pixels high: log counts, indices into the palette.

    Reference intensity runs to the right, moving intensity upward.
    """
    logs = np.log1p(np.clip(np.nan_to_num(counts), 0, None)).T[::-1]
    shades = (GRAYS + np.round((255 - GRAYS) * logs / max(logs.max(), 1e-12))).astype(np.uint8)
    factor = max(1, height // len(shades))
    return shades.repeat(factor, axis=0).repeat(factor, axis=1)


@cache
def palette() -> np.ndarray:
    """``[256, 3]`` uint8: grays from black to white, then the colors of joint histograms."""
    from matplotlib import colormaps

    grays = np.linspace(0, 255, GRAYS).round().astype(np.uint8)[:, None].repeat(3, axis=1)
    return np.concatenate([grays, colormaps["magma"](np.linspace(0, 1, 256 - GRAYS), bytes=True)[:, :3]])


def _tile(plane: np.ndarray, longest: int, letters: str) -> np.ndarray:
    step = -(-longest // 512)
    picture = np.clip(255 * plane.T[::-1][::step, ::step], 0, 255).astype(np.uint8)
    picture = _enlarge(picture, longest)
    height, width = picture.shape
    size = 2 if min(height, width) >= 240 else 1
    left, right, bottom, top = tuple(letters)
    for letter, row, column in (
        (left, height / 2, 6 * size),
        (right, height / 2, width - 6 * size),
        (bottom, height - 7 * size, width / 2),
        (top, 7 * size, width / 2),
    ):
        _stamp(picture, letter, int(row), int(column), size)
    return picture


def _enlarge(picture: np.ndarray, longest: int) -> np.ndarray:
    """Whole pixels, by one factor for all planes of a case, so that they keep one scale."""
    factor = max(1, round(LENGTH / longest))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _stamp(picture: np.ndarray, letter: str, row: int, column: int, size: int) -> None:
    """White on black, centered at row and column, in place; left out where the picture is too small."""
    glyph = _glyph(letter, size)
    row, column = row - glyph.shape[0] // 2, column - glyph.shape[1] // 2
    place = picture[max(row, 0) : row + glyph.shape[0], max(column, 0) : column + glyph.shape[1]]
    if place.shape == glyph.shape:
        place[:] = glyph


@cache
def _glyph(letter: str, size: int) -> np.ndarray:
    bits = np.array([[int(bit) for bit in line] for line in _GLYPHS[letter].split()], dtype=np.uint8)
    return np.pad(255 * bits, 1).repeat(size, axis=0).repeat(size, axis=1)
