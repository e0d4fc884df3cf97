"""Everything that a user can cause and mend, as one tree of errors.

::

    MmfusionError            any of the below: the command line prints its one sentence and exits with 1
    ├── OptionError          an option, a name or a value that does not exist (with the nearest one that does)
    ├── ReadError            a file that is missing, broken, or not what it claims to be
    │   ├── OrientationError left and right (or the directions of the axes) cannot be known from the file
    │   └── UnitsError       the header lacks what the physical unit needs (SUV, HU)
    ├── GeometryError        volumes that cannot be brought together: no overlap, 2D, singular affine
    ├── VoxelError           voxels that cannot be used: not finite, constant, empty
    ├── ManifestError        a manifest or label table with problems (all of them listed)
    │   └── LeakageError     one subject on both sides of a split
    ├── CohortError          a cohort or run folder that is missing, incomplete, or contradicts the options
    ├── OutputError          a file or folder that must not be written (it is not ours), or cannot be (the disk is full)
    ├── NetworkError         an illegal combination of network parts, or a tensor that does not fit the network
    └── EvaluationError      numbers that cannot be computed from what is there (one class, no rows)

A message says which case and file, what was found, what was expected and what to do, in one sentence or two.
It never holds a patient's name: subjects are named by their study identifier.

What is printed goes through :func:`printable`: names, labels and headers come from other people, and a terminal obeys
what it is sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MmfusionError",
    "OptionError",
    "ReadError",
    "OrientationError",
    "UnitsError",
    "GeometryError",
    "VoxelError",
    "ManifestError",
    "LeakageError",
    "CohortError",
    "OutputError",
    "LostError",
    "NetworkError",
    "EvaluationError",
]

# control characters, line and paragraph separators, directions of writing, and bytes of file names that are no text
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class MmfusionError(Exception):
    """Base of every error that a user can cause and mend."""


class OptionError(MmfusionError):
    """An option, name or value that does not exist or is out of range."""


class ReadError(MmfusionError):
    """A file that is missing, broken, or not what it claims to be."""


class OrientationError(ReadError):
    """The directions of the axes, and so left and right, cannot be known from the file."""


class UnitsError(ReadError):
    """The header lacks what the physical unit of the voxels needs."""


class GeometryError(MmfusionError):
    """Volumes or grids that cannot be brought together."""


class VoxelError(MmfusionError):
    """Voxels that cannot be used: not finite, constant, or empty."""


class ManifestError(MmfusionError):
    """A manifest or label table with problems; the message lists all of them."""


class LeakageError(ManifestError):
    """One subject on both sides of a split."""


class CohortError(MmfusionError):
    """A cohort or run folder that is missing, incomplete, or contradicts the options."""


class OutputError(MmfusionError):
    """A file or folder that must not be written, because it is not ours, or cannot be, because the disk is full."""


class LostError(MmfusionError):
    """Work whose process crashed, was ended from outside, or took too long."""


class NetworkError(MmfusionError):
    """An illegal combination of network parts, or a tensor that does not fit the network."""


class EvaluationError(MmfusionError):
    """Numbers that cannot be computed from what is there."""


def first_line(error: BaseException) -> str:
    """What an error of another library says first; its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def few(names: Sequence[str], most: int = 10) -> str:
    """The first ``most`` of the names, and how many more there are: ``a, b and 3 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(text: object) -> str:
    """The text as one line for a terminal or a log: what it would obey, and not show, is spelled out, as ``\\x1b``."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def sentence(error: MmfusionError) -> str:
    """What a program prints when this error ends it: one line, or the list of a manifest's problems."""
    lines = str(error).split("\n  ") if isinstance(error, ManifestError) else [str(error)]
    return "error: " + "\n  ".join(map(printable, lines))
