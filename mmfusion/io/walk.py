"""Walking a tree of scans: each file once, under whatever name, and an account of all that is not read."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.files import MARK, folder_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYSTEM = re.compile(  # what version control, file servers and file managers keep for themselves
    r"\.git|\.svn|\.hg|\.snapshots?|~snapshot|\.zfs|\.trash.*|\.spotlight-v100|\.fseventsd|__macosx|@eadir|"
    r"#recycle|#snapshot|\$recycle\.bin|system volume information",
    re.IGNORECASE,
)


@dataclass
class Unread:
    """What a walk met and did not read as DICOM.

    Attributes:
        damaged: files that are DICOM with values that are none, or say they are DICOM and are not.
        special: pipes, sockets and devices, and links to them.
        unreadable: files and folders that may not be read.
        broken_links: links that lead nowhere.
        repeated: links to folders that were read already, or that hold the root.
        ours: folders that mmfusion wrote: cohorts, runs.
        system: folders of the system that were not entered, by name.
        volumes: files with the ending of a volume.
        endings: other files, by ending (lower case, with its dot; empty for those without).
    """

    damaged: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    broken_links: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    ours: list[Path] = field(default_factory=list)
    system: Counter[str] = field(default_factory=Counter)
    volumes: list[Path] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)


def walk(root: Path, unread: Unread | None = None, *, below: bool = True) -> Iterator[Path]:
    """The regular files below a folder, in order of name, those of a folder before those of the folders in it.

    Links to folders are followed after all else, and each folder is entered once: it has the name under which it lies
    below the root if it has one, and a link that leads back ends there. Names that begin with a dot are names like
    others. Not entered are folders of the system (``.git``, ``.snapshot``, ``@eaDir``, ...) and those below the root
    that mmfusion wrote (but for a simulated raw study, which holds scans).

    Args:
        root: the folder, itself of any kind.
        unread: takes what is not given: ``special``, ``unreadable``, ``broken_links``, ``repeated``, ``ours`` and
            ``system``.
        below: enter folders; else only what lies directly in the root is given.
    """
    unread = Unread() if unread is None else unread
    known = {_identity(folder) for folder in root.resolve().parents}
    places = deque([root])  # the root and the links
    while places:
        folders = [places.popleft()]
        while folders:
            folder = folders.pop()
            try:
                identity = _identity(folder)
                if identity in known:
                    unread.repeated.append(folder)
                    continue
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=attrgetter("name"))
            except OSError:
                unread.unreadable.append(folder)
                continue
            known.add(identity)
            if folder != root and any(entry.name == MARK for entry in entries) and folder_kind(folder) != "raw study":
                unread.ours.append(folder)
                continue
            inside: list[Path] = []
            for entry in entries:
                kind = _kind(entry, unread)
                if kind == "file":
                    yield Path(entry.path)
                elif not below:
                    continue
                elif kind and _SYSTEM.fullmatch(entry.name):
                    unread.system[entry.name] += 1
                elif kind:
                    (places if kind == "link" else inside).append(Path(entry.path))
            folders += reversed(inside)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _kind(entry: os.DirEntry[str], unread: Unread) -> str:
    """``file``, ``folder``, ``link`` to a folder, or empty for what ``unread`` takes; asks the disk for links only."""
    if entry.is_file(follow_symlinks=False):
        return "file"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if not entry.is_symlink():
        unread.special.append(Path(entry.path))
        return ""
    try:
        mode = entry.stat().st_mode
    except PermissionError:
        unread.unreadable.append(Path(entry.path))
        return ""
    except OSError:
        unread.broken_links.append(Path(entry.path))
        return ""
    if stat.S_ISDIR(mode):
        return "link"
    if stat.S_ISREG(mode):
        return "file"
    unread.special.append(Path(entry.path))
    return ""
