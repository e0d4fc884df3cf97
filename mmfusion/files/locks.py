"""A folder that one program writes into, and no other."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Lock as ThreadLock
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from mmfusion.errors import CohortError
from mmfusion.files.writing import clear_temporary

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


_all: WeakSet[FolderLock] = WeakSet()


def _forget() -> None:
    """In a forked process, which must not hold the lock on when its parent has ended."""
    for lock in list(_all):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class FolderLock:
    """The lock of a folder, held until :meth:`release`, or until nobody has this object any more.

    It is on the folder itself, leaves no file, and ends with this process, however that ends. A copy in another
    process (pickled) holds nothing.
    """

    def __init__(self, handle: int | None = None) -> None:
        self._handle = handle
        _all.add(self)

    def release(self) -> None:
        """Let others in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __reduce__(self) -> Any:
        return FolderLock, ()


def lock_folder(folder: str | Path, who: str) -> FolderLock:
    """The lock of a folder that is there.

    Args:
        folder: to be locked.
        who: who else may have it, for the message, as ``mmfusion prepare``.

    Raises:
        CohortError: somebody else has it.
        OSError: the folder is not there.
    """
    if fcntl is None:
        return FolderLock()
    lock = FolderLock(os.open(folder, os.O_RDONLY))
    try:
        fcntl.flock(lock._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        lock.release()
        raise CohortError(
            f"another {who} is writing into {folder}; wait until it has ended, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    return lock


def clear_if_free(folder: str | Path, *below: str) -> None:
    """Remove the temporary files of killed commands in a folder of ours, and in these folders below it, unless somebody
    is writing there now."""
    folder = Path(folder)
    with suppress(CohortError, OSError), lock_folder(folder, "mmfusion"):
        clear_temporary([folder, *(folder / name for name in below)])


_own: WeakValueDictionary[tuple[int, int], FolderLock] = WeakValueDictionary()
_guard = ThreadLock()


def lock_for_process(folder: str | Path, who: str) -> FolderLock:
    """As :func:`lock_folder`, but whoever asks in the process that has the lock gets it again.

    A program may set up a training twice; what must not be is that two programs train in one folder.
    """
    with _guard:
        facts = Path(folder).stat()
        key = (facts.st_dev, facts.st_ino)
        lock = _own.get(key)
        if lock is None or lock._handle is None:
            lock = _own[key] = lock_folder(folder, who)
        return lock
