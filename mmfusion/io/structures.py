"""Masks whose headers have been read, and which of the structures in them is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from mmfusion.errors import ReadError, few
from mmfusion.io.spelling import clean_name
from mmfusion.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from mmfusion.volume import Grid

_NEVER = {"EXTERNAL"}
_NO_LESION = {  # RTROIInterpretedType (3006,00A4)
    *("ORGAN", "AVOIDANCE", "SUPPORT", "FIXATION", "BOLUS", "CONTROL", "MARKER", "ISOCENTER", "REGISTRATION"),
    *("CONTRAST_AGENT", "DOSE_REGION", "DOSE_MEASUREMENT", "BRACHY_CHANNEL", "BRACHY_ACCESSORY", "BRACHY_SRC_APP"),
    *("BRACHY_CHNL_SHLD",),
}
_TARGET = r"gtv|ctv|ptv|itv|tumou?r|lesion|metasta"
# words of TG-263 names of the body, of normal organs, and of equipment
_NORMAL_WORDS = """
    external body skin patient outline
    lung heart liver kidney spleen stomach pancreas bladder rectum bowel bowelbag colon sigmoid duodenum jejunum ileum
    esophagus oesophagus trachea bronchus bronchi bronchial carina aorta artery vein vena cava pericardium atrium
    ventricle valve brain brainstem stem cerebellum cerebrum hippocampus hypothalamus pituitary chiasm opticchiasm optic
    opticnerve nerve cord spinal spinalcord spinalcanal canal spine vertebra vertebrae cauda equina cochlea ear eye lens
    globe retina cornea lacrimal gland glnd parotid submandibular submandibula submand thyroid larynx glottis pharynx
    constrictor oral oralcavity cavity mandible lip tongue mouth tooth teeth palate femur femoral femoralhead femurhead
    head neck hip pelvis bone marrow sacrum rib chestwall chest wall thorax breast nipple ovary uterus vagina cervix
    testis testes testicle penilebulb penile bulb penis prostate urethra ureter seminal seminalvesicle vesicle
    gallbladder bile bileduct duct adrenal pulmonary coronary lad nrv brachial brachialplexus plexus muscle musc fat
    thymus orbit rectal lobe temporal frontal parietal occipital cortex matter csf largebowel smallbowel
    couch couchsurface couchinterior table tabletop bolus support fixation isocenter isocentre marker fiducial air
    background artifact artefact
"""
# words that only say which of them
_BESIDE_WORDS = """
    l r lt rt left right bilat bilateral both a v n o post posterior ant anterior sup superior inf inferior upper lower
    middle medial lateral prox proximal dist distal total whole all inner outer large small white grey gray prv mm cm
    internal interior exterior surface contour bag constrict z
"""
_NORMAL, _BESIDE = frozenset(_NORMAL_WORDS.split()), frozenset(_BESIDE_WORDS.split())
_MOST_SHOWN = 15


@dataclass(frozen=True)
class Structure:
    """One structure of an RTSTRUCT, segment of a SEG or label of a label file.

    Attributes:
        number: by which the file knows it.
        name: its name, as it was written.
        kind: RTROIInterpretedType, such as ``GTV``, ``ORGAN`` or ``EXTERNAL``; empty if unknown.
        drawn: False if nothing of it is there.
    """

    number: int
    name: str
    kind: str = ""
    drawn: bool = True


def _nothing(grid: Grid) -> np.ndarray:
    return np.zeros(grid.shape, np.uint8)


@dataclass(eq=False)
class OpenedMask:
    """A mask whose header has been read; nothing has been drawn.

    Attributes:
        source: the file.
        draw: the mask on a grid, ``[i, j, k]`` uint8; may append to the lists below.
        frame_of_reference: in whose world it was drawn; empty if unknown.
        referenced_series: SeriesInstanceUIDs of the scans that it was drawn on.
        rois: names of the structures that are used; empty for a label file of which all labels are.
        others: names of those that are not.
        notes, doubts: as of :class:`mmfusion.io.Header`.
    """

    source: Path
    draw: Callable[[Grid], np.ndarray] = _nothing
    frame_of_reference: str = ""
    referenced_series: tuple[str, ...] = ()
    rois: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def on(self, grid: Grid) -> Volume:
        """The mask on a grid; see :func:`mmfusion.io.load_mask`."""
        array = self.draw(grid)
        empty = [] if array.any() else ["no voxel of the grid lies inside the mask"]
        meta = {
            "source": str(self.source),
            "frame_of_reference": self.frame_of_reference,
            "referenced_series": self.referenced_series,
            "rois": list(self.rois),
            "others": list(self.others),
            "notes": [*dict.fromkeys(self.notes), *empty],
            "doubts": list(self.doubts),
        }
        return Volume(array, grid.affine, "mask", "label", meta)


def choose(structures: Sequence[Structure], wanted: Sequence[str] | None, mask: OpenedMask) -> list[Structure]:
    """The structures that are meant; ``mask`` takes their names, those of the others, and a note.

    Args:
        structures: all of the file.
        wanted: names, in any case; or patterns with ``*`` and ``?``, also several with commas between them. None: the
            only one that can be a lesion. The body, organs and equipment cannot, by name (TG-263) or by
            RTROIInterpretedType.
        mask: the mask that the structures are of.

    Raises:
        ReadError: there is no such structure, or without a name none or several that can be a lesion.
    """
    chosen = _only_lesion(structures, mask.source) if wanted is None else _named(structures, wanted, mask.source)
    mask.rois = [one.name for one in chosen]
    mask.others = [one.name for one in structures if one not in chosen]
    used = f"joined: {', '.join(mask.rois)}" if len(chosen) > 1 else f"{mask.rois[0]} is used"
    if mask.others:
        why = ", the only one that can be a lesion" if wanted is None else ""
        mask.notes.append(f"{used}{why}; beside it {_listed(mask.others)}")
    elif len(chosen) > 1:
        mask.notes.append(used)
    return chosen


def _only_lesion(structures: Sequence[Structure], source: Path) -> list[Structure]:
    drawn = [one for one in structures if one.drawn] or list(structures)
    alone = len(drawn) == 1  # then a type other than that of the body tells nothing apart, and many programs set one
    candidates = [one for one in drawn if _can_be_lesion(one, _NEVER if alone else _NEVER | _NO_LESION)]
    names = _listed(one.name for one in candidates or drawn)
    ways = "#NAME behind its path, in column roi, or by --roi (* and ? stand for any letters)"
    if not candidates:
        raise ReadError(
            f"{source} holds {names}, which is the body, an organ or equipment, and no lesion. If it is meant all the "
            f"same, name it by {ways}"
        )
    if len(candidates) > 1:
        raise ReadError(
            f"{source} holds {len(candidates)} structures that can be the lesion: {names}. Name the one that is meant "
            f"by {ways}"
        )
    return candidates


def _can_be_lesion(structure: Structure, kinds: set[str]) -> bool:
    name = structure.name
    if re.search(_TARGET, name, re.IGNORECASE):
        whole, minus, _ = name.partition("-")  # TG-263: Lungs-GTV is what is left of the lungs without the target
        return structure.kind not in _NEVER and not (minus and _is_normal(whole))
    return not _is_normal(name) and structure.kind not in kinds


def _is_normal(name: str) -> bool:
    """Whether a name is that of the body, a normal organ or equipment."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", name)
    plain = [word.lower().removesuffix("s") if word.lower() not in _NORMAL else word.lower() for word in words]
    return any(word in _NORMAL for word in plain) and all(word in _NORMAL or word in _BESIDE for word in plain)


def _named(structures: Sequence[Structure], wanted: Sequence[str], source: Path) -> list[Structure]:
    chosen: list[Structure] = []
    for text in wanted:
        whole = [one for one in structures if one.name == text] or _matching(structures, text)
        for part in [text] if whole else text.split(","):
            matching = whole or _matching(structures, part)
            if not matching:
                has = _listed(sorted(one.name for one in structures))
                raise ReadError(f"{source} has no structure named {part.strip()}; it has {has}")
            chosen += [one for one in matching if one not in chosen]
    return chosen


def _matching(structures: Sequence[Structure], pattern: str) -> list[Structure]:
    """Those whose name a pattern with ``*`` and ``?`` fits, in any case and either Unicode spelling."""
    plain = (
        clean_name(pattern.strip()).casefold().replace("[", "[[]")
    )  # which fnmatch would take for a choice of letters
    return [one for one in structures if fnmatchcase(clean_name(one.name).casefold(), plain)]


def _listed(names: Iterable[str]) -> str:
    return few(list(names), _MOST_SHOWN)
