"""Whether two identifiers may be spellings of one person's."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SPELLING_DIFFERENCES = "only in case, spaces, punctuation, leading zeros or Unicode form"
"""How spellings differ that :func:`folded` does not tell apart."""

_NOBODY = {  # what anonymizers write, folded
    *("anonymous", "anonym", "anonymized", "anonymised", "anon", "anonymouspatient", "deidentified", "removed"),
    *("unknown", "none", "noid", "na", "null", "nan", "empty", "test", "patient", "subject", "id", "x", "xx", "xxx"),
    *("", "0"),
}


def clean_name(name: str) -> str:
    """A name or identifier without spaces around it, in Unicode's form NFC: macOS writes names of files in another."""
    return unicodedata.normalize("NFC", name).strip()


@lru_cache(1 << 16)  # asked for every file of a tree
def folded(identifier: str, *, zeros: bool = True) -> str:
    """What two spellings of one person have in common: ``P-01``, ``p 1`` and ``sub-P1`` are ``p1``.

    Case, spaces, punctuation (``^`` of DICOM too), BIDS's ``sub-`` and the form of Unicode do not count. Between
    digits punctuation does, since ``1-11`` and ``11-1`` are two people: any of it is one ``-`` there.

    Args:
        identifier: of a person.
        zeros: leading zeros of numbers do not count, either.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", identifier).casefold())
    words = "".join(" " if unicodedata.category(sign)[0] in "PSZC" else sign for sign in text).split()
    if len(words) > 1 and words[0] == "sub":
        words = words[1:]
    if zeros:
        words = [re.sub(r"(?<!\d)0+(?=\d)", "", word) for word in words]
    joined = re.sub(r"(?<=\d) (?=\d)", "-", " ".join(words)).replace(" ", "")
    return joined or text.strip()


def names_nobody(identifier: str) -> bool:
    """True for an empty identifier, and for one such as ``ANONYMOUS`` that anonymizers give to everybody."""
    return folded(identifier) in _NOBODY


def persons(identifiers: Iterable[str], *, zeros: bool = True) -> dict[str, str]:
    """For each identifier the first, sorted, of all that :func:`folded` takes for the same person."""
    alike: dict[str, list[str]] = defaultdict(list)
    for identifier in sorted(set(identifiers)):
        alike[folded(identifier, zeros=zeros)].append(identifier)
    return {identifier: members[0] for members in alike.values() for identifier in members}
