"""What a file is by its name and first bytes, without reading it: DICOM, something else, or a slice that is lost."""

from __future__ import annotations

import re
from struct import unpack_from

_NAMES = (".dcm", ".ima", ".dicom")
_LONG_VRS = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"))
_VRS = _LONG_VRS | frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
_MOST_AT_FIRST = 1 << 10  # bytes of the first element: a character set, an image type, a UID
_APPLE_DOUBLE = b"\0\5\x16\7"  # what macOS writes beside a file, under its name
_FOLDER_FILES = ("dicomdir", "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store")
_OTHER_ENDINGS = {  # endings that say what a file is: no DICOM
    ".7z", ".avi", ".bak", ".bat", ".bib", ".bmp", ".bval", ".bvec", ".bz2", ".cfg", ".cmd", ".conf", ".css", ".csv",
    ".db", ".dll", ".doc", ".docx", ".exe", ".gif", ".gz", ".h5", ".hdf5", ".hdr", ".htm", ".html", ".ico", ".inf",
    ".ini", ".ipynb", ".jar", ".jpeg", ".jpg", ".js", ".json", ".lnk", ".log", ".m", ".mat", ".md", ".md5", ".mgh",
    ".mgz", ".mha", ".mhd", ".mp4", ".nhdr", ".nii", ".npy", ".npz", ".nrrd", ".ods", ".odt", ".pdf", ".pkl", ".png",
    ".ppt", ".pptx", ".ps1", ".py", ".r", ".rar", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".so", ".sqlite", ".stl",
    ".svg", ".tar", ".tex", ".tfm", ".tgz", ".tif", ".tiff", ".toml", ".tsv", ".txt", ".url", ".vtk", ".xls", ".xlsx",
    ".xml", ".xz", ".yaml", ".yml", ".zip",
}  # fmt: skip
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"%PDF", b"PK\3\4", b"II*\0", b"MM\0*", b"\x1f\x8b", b"SQLi")


def is_named_dicom(name: str) -> bool:
    """True for an ending that only DICOM has, also with ``.gz`` behind it."""
    return name.lower().removesuffix(".gz").endswith(_NAMES)


def is_apple_double(head: bytes) -> bool:
    """True for the companion ``._name`` that macOS writes beside each file on a foreign disk."""
    return head.startswith(_APPLE_DOUBLE)


def begins_as_dicom(head: bytes) -> bool:
    """True if a file without preamble begins as a little endian data set does (or its file meta information).

    Its first element is of group 0002 or 0008, explicit with a VR or implicit, short and of even length, and the tag
    behind it is a later one of the first groups: no text begins so.
    """
    if len(head) < 16:
        return False
    group, element, vr, short, long = unpack_from("<HH2sHI", head)
    size = 8 + int.from_bytes(head[4:8], "little")
    if vr in _VRS:
        size = 12 + long if vr in _LONG_VRS else 8 + short
    if group not in (0x2, 0x8) or size % 2 or not 8 <= size <= min(_MOST_AT_FIRST, len(head) - 4):
        return False
    return (group, element) < unpack_from("<HH", head, size) < (0x29, 0)


def ending_of(name: str) -> str:
    """The ending of a name in lower case, with its dot; empty for none, and for digits as at the end of a UID."""
    match = re.search(r".(\.(?=\w*[a-z])\w{1,8})$", name.lower())
    return match[1] if match else ""


def is_common(ending: str) -> bool:
    """True for an ending that says what a file is, as ``.txt`` does, and cannot be a part of a person's name."""
    return ending in _OTHER_ENDINGS


def pattern_of(name: str) -> str:
    """The name with its numbers left open: slices of one series usually share it."""
    return re.sub(r"\d+", "#", name)


def stands_for_slice(name: str, head: bytes, patterns: set[str]) -> str:
    """Whether a file that is no DICOM lies in the folder of a series in place of a slice: cut, empty, of zeros, ...

    Args:
        name: of the file.
        head: its first bytes; none for a link that leads nowhere.
        patterns: :func:`pattern_of` the names of the slices.

    Returns:
        ``yes`` if it is called like a slice, or has no ending but a number and is no text; ``perhaps`` if nothing says
        what it is; empty if it is something else.
    """
    if name.lower() in _FOLDER_FILES or is_apple_double(head) or head[128:132] == b"DICM":
        return ""
    if pattern_of(name) in patterns:
        return "yes"
    if is_common(ending_of(name)) or head.startswith(_PICTURES) or _is_text(head):
        return ""
    if not ending_of(name) and re.search(r"\d", name):
        return "yes"
    return "perhaps"


def _is_text(head: bytes) -> bool:
    return bool(head) and (
        head[:2] in (b"\xff\xfe", b"\xfe\xff") or not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head)
    )
