"""Where the pictures of a page lie: inside it, or in a folder beside it that follows the page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mmfusion.files import atomic_path

_FORMAT = "1"  # of the pictures; a change draws every one again


class Album:
    """Pictures of a page, drawn when they are not there yet.

    A file is named by what it is drawn from: one that is there is right, and writing may stop anywhere, since the old
    page has its pictures until the new one is there.

    Args:
        folder: beside the page; None for pictures inside the page.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._used: set[str] = set()

    def add(self, name: str, content: list[np.ndarray], draw: Callable[[], bytes]) -> tuple[bytes, str]:
        """A picture as PNG, and its address seen from the page, which is empty if it is to lie inside.

        Args:
            name: what its file name begins with, safe as such.
            content: all that it is drawn from.
            draw: draws it.
        """
        if self.folder is None:
            return draw(), ""
        digest = hashlib.blake2b(_FORMAT.encode(), digest_size=6)
        for array in content:
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        path = self.folder / f"{name}-{digest.hexdigest()}.png"
        if not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_bytes(draw())
        self._used.add(path.name)
        return path.read_bytes(), quote(f"{self.folder.name}/{path.name}")

    def remove_others(self, folder: Path) -> None:
        """Remove the pictures in a folder that were not added: of cases that are gone, or have changed."""
        for path in folder.glob(f"*-{'[0-9a-f]' * 12}.png"):
            if path.name not in self._used:
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
