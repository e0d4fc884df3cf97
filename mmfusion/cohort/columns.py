"""Which column of the manifest a series becomes, and which of several series is the best for it."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmfusion.cohort.found import why_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mmfusion.io import Series

COLUMNS = {"CT": "ct", "PT": "pet", "MR": "mr", "NM": "spect"}
_PARTS = ("water", "fat", "inphase", "opposed", "fatfraction", "phase", "real", "imaginary", "velocity")
_ANATOMY = ("flair", "swi", "stir", "t2", "t1", "t1gd", "pd")  # what may be called MR and no more
_PLAIN = ("magnitude", "other")  # kinds of image that do not say which sequence it is
_SEQUENCES = (  # the first that matches names an MR series; T2 FLAIR is FLAIR, an ADC map is not DWI
    ("flair", r"flair|dark.?fluid"),
    ("eadc", r"(?<![a-z])e(xp[ _-]?)?adc(?![a-z])"),
    ("adc", r"(?<![a-z])adc|apparent.?diff"),
    ("dwi", r"dwi|diff|trace|(?<![a-z])(dti|dki|dsi|hardi)(?![a-z])|(?<![a-z])calc\w*b|(?<![a-z])b\d{3}"),
    ("perfusion", r"(?<![a-z])(p?c?asl|perf\w*|dsc|r?cbf|r?cbv|mtt|ttp)(?![a-z])"),
    ("bold", r"(?<![a-z])(bold|fmri|rest(ing)?[ _-]?state)"),
    ("swi", r"(?<![a-z])swi|suscept"),
    ("stir", r"(?<![a-z])stir"),
    ("t2", r"(?<![a-z])t2"),
    ("t1", r"(?<![a-z])t1|mp.?rage|spgr"),
    ("pd", r"(?<![a-z])pd|proton"),
)
SEQUENCES = ("t1gd", *(name for name, _ in _SEQUENCES))
"""The sequences of MR that words of a description name."""
_MAP = r"(?<![a-z0-9])(t1|t2|r1|r2|pd|b0|b1)[ _-]*(\*|star)?.*(map(?![a-z])|mapping|mapit)"
_AGENT = r"gd|gad\w*|km|mdc|ce|c|contrast\w*|kontrast\w*|inj\w*"
_WITH_AGENT = (
    rf"(?<![a-z])(gd|gad\w*|km|mdc|ce|contrast\w*|kontrast\w*|inje[ck]t\w*|t1c|post({_AGENT})?(?![ _-]*op))(?![a-z])"
    r"|\+ ?c(?![a-z])|(?<![a-z])c ?\+"
)
_NATIVE = (
    rf"(?<![a-z])(pre({_AGENT})?(?![ _-]*op)|nati[vf]\w*|unenhanced|non?[ _-]*({_AGENT})"
    r"|(without|w/?o|ohne|sans|senza|sin|zonder)(?![ _-]*(fs|fat|fett)))(?![a-z])"
)
_UNCORRECTED = (
    r"(?<![a-z])(nac|non?[ _-]?ac|non[ _-]?att\w*|non[ _-]?corr\w*|uncorr\w*|ac[ _-]?(off|aus)"
    r"|(ohne|sans)[ _-]?(ac|sk|ca|schw\w*|corr\w*))(?![a-z])"
)
_ATTENUATION = r"(?<![a-z])(mrac|[uµ]-?map|mu[ _-]?map|att\w*[ _-]?map)"
_MANY_FRAMES = 10  # of an echo-planar series: it follows the blood, not the anatomy


@dataclass(frozen=True)
class Candidate:
    """Images of one kind of a series, which may become a column."""

    series: Series
    image_kind: str
    """Names what is meant of a series with several kinds of image; empty for a series of one kind."""


def candidates(members: Iterable[Series], *, several: bool) -> Iterator[tuple[str, Candidate]]:
    """Column and candidate for each kind of image of each usable series.

    Args:
        members: the usable series of a session.
        several: the study has MR of several sequences (:func:`sequences_of`), which the columns must name.
    """
    for one in members:
        for kind in one.kinds:
            column = COLUMNS[one.modality]
            if one.modality == "MR" and kind in _PARTS:
                column = f"mr_{kind}"
            elif one.modality == "MR" and (several or _sequence(one, kind) not in ("", *_ANATOMY)):
                column = f"mr_{_sequence(one, kind) or _slug(one.description)}"
            yield column, Candidate(one, kind if len(one.kinds) > 1 else "")


def sequences_of(members: Iterable[Series]) -> set[str]:
    """The MR sequences of a session; parts of an image (water, phase) do not count."""
    return {
        _sequence(one, kind) or _slug(one.description)
        for one in members
        for kind in one.kinds
        if one.modality == "MR" and kind not in _PARTS
    }


def rank(candidate: Candidate) -> tuple[bool, bool, int, int, str]:
    """The sort key of a candidate: the best comes first."""
    one = candidate.series
    derived = tuple(part.upper() for part in one.image_type[:2]) != ("ORIGINAL", "PRIMARY")
    return one.frames > 1, derived, -one.count, one.series_number or 0, one.series_uid


def why_better(best: Candidate, other: Candidate) -> str:
    """What the best candidate has and another lacks."""
    words = ("which has one frame", "which is original, not derived", "which has more images")
    return why_first(words, rank(best), rank(other))


def why_unfit(series: Series) -> str:
    """Why an image series is no column, by what its header says; empty if it may be one."""
    if re.search(_ATTENUATION, _words(series)):
        return "an attenuation map"
    if is_uncorrected(series):
        return "not corrected for attenuation"
    if series.modality == "MR" and _is_functional(series):
        return f"a functional or perfusion series of {series.frames} frames"
    return ""


def is_uncorrected(series: Series) -> bool:
    """Whether PET is not corrected for attenuation: by CorrectedImage, and by words only if the header lacks it."""
    if series.modality != "PT":
        return False
    if series.corrected is not None:
        return not series.corrected
    return bool(re.search(_UNCORRECTED, series.description.lower()))


def with_plausible_agents(series: Sequence[Series]) -> list[Series]:
    """The series; in studies whose every MR header names a contrast agent, only words count, if they name it at all.

    There the agent was entered at the scanner before the first series, or an export copied it into all.
    """
    studies: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        if one.modality == "MR" and one.is_image:
            studies[one.study_uid].append(one)
    everywhere = {
        uid
        for uid, members in studies.items()
        if all(one.contrast_agent for one in members)
        and any(re.search(_WITH_AGENT, text) and not re.search(_NATIVE, text) for text in map(_words, members))
    }
    return [replace(one, contrast_agent=False) if one.study_uid in everywhere else one for one in series]


def without_free_text(series: Series) -> Series:
    """The series without the free text of its header, which may name the patient: only what the rules see in it."""
    sequence = _by_words(series) if series.modality == "MR" else ""
    words = [sequence, "umap" if re.search(_ATTENUATION, _words(series)) else ""]
    corrected = False if is_uncorrected(series) else series.corrected
    return replace(
        series,
        description=" ".join(filter(None, words)),
        protocol="",
        corrected=corrected,
        contrast_agent=sequence == "t1gd",
    )


def _words(series: Series) -> str:
    return f"{series.description} {series.protocol}".lower()


def _is_functional(series: Series) -> bool:
    kinds = {_sequence(series, kind) for kind in series.kinds}
    if kinds & {"dwi", "adc"} or series.frames < 2:
        return False
    return bool(kinds & {"bold", "perfusion"}) or (series.echo_planar and series.frames >= _MANY_FRAMES)


def _slug(text: str) -> str:
    """A description as a name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"


def _sequence(series: Series, kind: str) -> str:
    """The MR sequence of images of one kind: by ImageType, else by words, else by what the scanner was set to.

    ImageType that says no more than diffusion leaves it to words whether it is a map of it.
    """
    words = _by_words(series)
    if kind == "dwi":
        traced = any("TRACE" in part.upper() for part in series.image_type)
        return words if words in ("adc", "eadc") and not traced else "dwi"
    if kind not in _PLAIN:
        return kind
    return words or ("epi" if series.echo_planar else "")


def _by_words(series: Series) -> str:
    """The MR sequence by the description, or by the protocol if the description says nothing; empty if neither does."""
    for text in (series.description.lower(), series.protocol.lower()):
        if found := re.search(_MAP, text):
            return f"{found[1]}{'star' if found[2] else ''}map"
        for name, words in _SEQUENCES:
            if re.search(words, text):
                return "t1gd" if name == "t1" and _has_agent(series, text) else name
    return ""


def _has_agent(series: Series, text: str) -> bool:
    """Whether a contrast agent was given: some scanners name it in the series before the injection, too."""
    return not re.search(_NATIVE, text) and (series.contrast_agent or bool(re.search(_WITH_AGENT, text)))
