"""Splits by subject: no person is on both sides, every class is on each.

Subjects whose names may be spellings of one person (:func:`mmfusion.io.folded`) are drawn as one. Where columns put
them on two sides, that is a leak if they differ only in case, spaces, punctuation or the form of Unicode; ``P1`` and
``P01`` may be two people there, and the log warns.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from mmfusion.cohort.manifest import PARTS, Case
from mmfusion.errors import LeakageError, ManifestError, OptionError, few, printable
from mmfusion.io import persons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LOG = logging.getLogger(__name__)
LEAK_REMEDY = "Splits are by subject; use column session for the visit."
_LEAST = 2  # subjects of a class in a part: below that an AUC has no interval


def split_cases(cases: Sequence[Case], *, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, str]:
    """Divide cases into train, validation and test, by subject and stratified by label.

    If the manifest has a column ``split``, it decides; where it names no validation part, one is made out of
    train. Otherwise each class gives each part its share of subjects, rounded so that the parts as a whole have
    the size asked for, and never fewer than two. The same cases and seed give the same split in any order of
    the rows.

    Args:
        cases: the cases, all with labels. A subject counts by the label most of its sessions have, the last
            session's where they tie.
        validation: share of the subjects (of train's, where the column made the rest) for validation.
        test: share of the subjects for the test.
        seed: of the random choice.

    Returns:
        Case id to ``train``, ``validation`` or ``test``.

    Raises:
        OptionError: the shares are negative or leave nothing to train on.
        ManifestError: a subject has no label or (in part of the rows) no split, there are fewer than two
            classes, or a part has fewer than two subjects of a class.
        LeakageError: column ``split`` puts a subject into two parts.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise OptionError(
            f"validation {validation:g} and test {test:g} are shares of the subjects and must leave some to train on"
        )
    person = _persons(cases)
    labels = _subject_labels(cases, person)
    if parts := _column(cases, "split"):
        learned = {person[case.subject] for case in cases if parts[case.id] == "train"}
        train = {subject: label for subject, label in labels.items() if subject in learned}
        if not train:
            raise ManifestError("column split has no subject in train; nothing could be learned")
        if validation and "validation" not in parts.values():
            drawn = _draw(train, {"train": 1 - validation, "validation": validation}, seed)
            parts |= {case.id: drawn[person[case.subject]] for case in cases if parts[case.id] == "train"}
            _LOG.warning(
                "column split names no validation part: %d of %d training subjects were drawn for it",
                Counter(drawn.values())["validation"],
                len(train),
            )
    else:
        shares = {"train": 1 - validation - test, "validation": validation, "test": test}
        drawn = _draw(labels, shares, seed)
        parts = {case.id: drawn[person[case.subject]] for case in cases}
    for part in PARTS:
        members = Counter(labels[who] for who in {person[case.subject] for case in cases if parts[case.id] == part})
        if members and min(members[label] for label in set(labels.values())) < _LEAST:
            raise ManifestError(
                f"{part} has {_counts(members, labels)}; at least {_LEAST} of each class are needed. "
                "Change column split or leave it out."
            )
    return parts


def folds(cases: Sequence[Case], k: int = 5, seed: int = 0) -> dict[str, int]:
    """Divide cases into ``k`` folds for cross-validation, by subject and stratified by label.

    Cases that column ``split`` puts into the test are in no fold; what it says of the others is not used. If the
    manifest has a column ``fold``, it decides and ``k`` is not used. Otherwise the subjects of each class are dealt
    one by one, so that neither a class nor the whole differs by more than one subject between folds. The same cases
    and seed give the same folds in any order of the rows.

    Returns:
        Case id to fold, from 0 (or as the column numbers them).

    Raises:
        OptionError: ``k`` is below 2.
        ManifestError: a subject has no label or (in part of the rows) no fold, there are fewer than two classes or
            folds, or a fold would lack a class.
        LeakageError: column ``fold`` puts a subject into two folds, or column ``split`` into test and another part.
    """
    cases = _without_test(cases)
    person = _persons(cases)
    labels = _subject_labels(cases, person)
    if given := _column(cases, "fold"):
        number = {id: int(fold) for id, fold in given.items()}
        if len(set(number.values())) < 2:
            raise ManifestError(
                f"column fold has fold {number[min(number)]} alone; cross-validation needs at least 2. "
                "Fill it or leave it out."
            )
        for fold in sorted(set(number.values())):
            members = Counter(
                labels[who] for who in {person[case.subject] for case in cases if number[case.id] == fold}
            )
            if len(members) < len(set(labels.values())):
                raise ManifestError(
                    f"fold {fold} has {_counts(members, labels)}; each fold needs every class. "
                    "Change column fold or leave it out."
                )
        return number
    if k < 2:
        raise OptionError(f"cross-validation needs at least 2 folds, found {k}")
    few = min(Counter(labels.values()).values())
    if few < k:
        raise ManifestError(
            f"{k} folds cannot each have every class: there are {_counts(Counter(labels.values()), labels)}. "
            f"Use at most {few} folds."
        )
    dealt: dict[str, int] = {}
    for label in sorted(set(labels.values())):
        for subject in _shuffled([s for s in labels if labels[s] == label], seed, f"fold {label}"):
            dealt[subject] = len(dealt) % k
    return {case.id: dealt[person[case.subject]] for case in cases}


def fold_parts(
    cases: Sequence[Case], number: Mapping[str, int], fold: int, *, validation: float = 0.2, seed: int = 0
) -> dict[str, str]:
    """The parts of one fold's training: its own cases are the test, and validation is drawn out of the other folds.

    Each fold draws its validation anew, so that no subject is kept from all trainings.

    Args:
        cases: the cases, all with labels.
        number: case id to fold, of :func:`folds`; other cases take no part.
        fold: which fold is the test.
        validation: share of the other folds' subjects for validation, stratified by label.
        seed: of the random choice.

    Returns:
        Case id to ``train``, ``validation`` or ``test``.

    Raises:
        OptionError: there is no such fold.
        ManifestError: the other folds have too few subjects of a class for train and validation.
    """
    there = sorted(set(number.values()))
    if fold not in there:
        raise OptionError(f"there is no fold {fold}; this study has the folds {', '.join(map(str, there))}")
    others, person = [case for case in cases if number.get(case.id, fold) != fold], _persons(cases)
    parts = _draw(
        _subject_labels(others, person),
        {"train": 1 - validation, "validation": validation},
        f"{seed} without fold {fold}",
    )
    return {
        case.id: "test" if number[case.id] == fold else parts[person[case.subject]]
        for case in cases
        if case.id in number
    }


def keep_for_head(cases: Sequence[Case], parts: Mapping[str, str], share: float, seed: int = 0) -> dict[str, str]:
    """Parts in which some training subjects are kept from the training, for a head that is fitted after it.

    Args:
        cases: those of ``parts``; others take no part.
        parts: case id to ``train``, ``validation`` or ``test``.
        share: of the training subjects, stratified by label, at least two of each class.
        seed: of the random choice.

    Returns:
        ``parts``, with ``head`` for the cases of these subjects.

    Raises:
        ManifestError: there are fewer than four training subjects of a class.
    """
    learned, person = [case for case in cases if parts.get(case.id) == "train"], _persons(cases)
    drawn = _draw(_subject_labels(learned, person), {"train": 1 - share, "head": share}, f"{seed} head")
    return {**parts, **{case.id: drawn[person[case.subject]] for case in learned}}


def leakage(cases: Sequence[Case], parts: Mapping[str, str | int], *, zeros: bool = False) -> str:
    """Names every subject with cases in more than one part, without a full stop; empty if there is none.

    Args:
        cases: the cases.
        parts: case id to part or fold; cases that are not in it (or in part ``""``) count nowhere.
        zeros: names that differ in leading zeros are one subject, too, as those that differ in case and punctuation.
    """
    places: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    person = persons((case.subject for case in cases), zeros=zeros)
    for case in cases:
        part = parts.get(case.id, "")
        if part != "":
            places[person[case.subject]][f"fold {part}" if isinstance(part, int) else part].append(case)
    both: dict[str, list[str]] = defaultdict(list)
    for found in places.values():
        if len(found) > 1:
            names = sorted(found, key=lambda part: (PARTS.index(part) if part in PARTS else len(PARTS), part))
            members = [case for name in names for case in found[name]]
            lines = sorted(case.line for case in members if case.line)
            spelled = sorted({case.subject for case in members})
            facts = [f"lines {', '.join(map(str, lines))}"] if lines else []
            facts += ["rename one if they are two people"] if len(spelled) > 1 else []
            at = f" ({'; '.join(facts)})" if facts else ""
            both[" and ".join(names)].append(f"{' alias '.join(spelled)}{at}")
    sentences = [
        f"{len(who)} {'subjects are' if len(who) > 1 else 'subject is'} in both {names}: {', '.join(who)}"
        for names, who in both.items()
    ]
    return "; ".join(sentences)


def refuse_leakage(cases: Sequence[Case], parts: Mapping[str, str | int]) -> None:
    """Stop if a subject has cases in more than one part.

    Raises:
        LeakageError: with the subjects and their lines.
    """
    if found := leakage(cases, parts):
        raise LeakageError(f"{found}. {LEAK_REMEDY}")


def _persons(cases: Sequence[Case]) -> dict[str, str]:
    """Subject to the name that draws it: one for all names that may be spellings of one."""
    return persons(case.subject for case in cases)


def _subject_labels(cases: Sequence[Case], person: Mapping[str, str]) -> dict[str, str]:
    """Person to its label, sorted by person."""
    sessions: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case in cases:
        labeled = sessions[person[case.subject]]
        if case.label is not None:
            labeled.append((case.session, case.label))
    bare = sorted(subject for subject, found in sessions.items() if not found)
    if bare:
        raise ManifestError(
            f"{len(bare)} subjects have no label: {few(bare)}. "
            "Splits are stratified by label: give it, or leave these cases out."
        )
    labels = {}
    for subject in sorted(sessions):
        found = [label for _, label in sorted(sessions[subject])]
        count = Counter(found)
        labels[subject] = max(reversed(found), key=lambda label: count[label])
    if len(set(labels.values())) < 2:
        raise ManifestError(
            f"all {len(labels)} subjects have the label {next(iter(labels.values()), 'none')!r}; "
            "at least two classes are needed."
        )
    return labels


def _without_test(cases: Sequence[Case]) -> list[Case]:
    """The cases without those that column ``split`` keeps for a test after cross-validation."""
    if any(case.split in ("train", "validation") for case in cases):
        _column(cases, "split")  # then it has to be complete
    _refuse_column(cases, {case.id: "test" if case.split == "test" else "the folds" for case in cases}, "split")
    left = [case for case in cases if case.split != "test"]
    if len(left) < len(cases):
        _LOG.warning("column split: %d test cases stay out of all folds", len(cases) - len(left))
    return left


def _column(cases: Sequence[Case], name: str) -> dict[str, str]:
    """Case id to the value of column ``split`` or ``fold``; empty if no row has one."""
    values = {case.id: str(getattr(case, name)) for case in cases}
    if not any(values.values()):
        return {}
    _refuse_column(cases, {id: int(v) for id, v in values.items() if v} if name == "fold" else values, name)
    empty = [case for case in cases if not values[case.id]]
    if empty:
        who = few([case.subject + (f" (line {case.line})" if case.line else "") for case in empty])
        raise ManifestError(
            f"column {name} is empty for {len(empty)} of {len(cases)} rows: {who}. Fill it or leave it out."
        )
    return values


def _refuse_column(cases: Sequence[Case], parts: Mapping[str, str | int], name: str) -> None:
    """As :func:`refuse_leakage`; and warn of those who may be one person."""
    refuse_leakage(cases, parts)
    if found := leakage(cases, parts, zeros=True):
        _LOG.warning("column %s: %s", name, printable(found))


def _draw(labels: Mapping[str, str], shares: Mapping[str, float], seed: int | str) -> dict[str, str]:
    """Subject to part: stratified, each class at least :data:`_LEAST` a part."""
    shares = {part: share for part, share in shares.items() if share > 0}
    sizes = Counter(labels.values())
    for label in sorted(sizes):
        if sizes[label] < _LEAST * len(shares):
            raise ManifestError(
                f"class {label} has {sizes[label]} subjects ({_counts(sizes, labels)}); {', '.join(shares)} "
                f"need at least {_LEAST} of each class. Lower the shares to 0, or add subjects."
            )
    members = {label: [s for s in labels if labels[s] == label] for label in sorted(sizes)}
    left = {label: _shuffled(members[label], seed, label) for label in members}
    out: dict[str, str] = {}
    for part in [part for part in shares if part != "train"]:
        wanted = round(shares[part] * len(labels))
        exact = {label: shares[part] * sizes[label] for label in members}
        count = {label: int(exact[label]) for label in members}
        # largest remainders first; ties by label
        for label in sorted(members, key=lambda one: (count[one] - exact[one], one)):
            count[label] += sum(count.values()) < wanted
        for label, subjects in left.items():
            others = _LEAST * (len(shares) - 1 - len({out[s] for s in members[label] if s in out}))
            take = max(_LEAST, min(count[label], len(subjects) - others))
            out |= dict.fromkeys(subjects[:take], part)
            left[label] = subjects[take:]
    return {subject: out.get(subject, "train") for subject in labels}


def _shuffled(subjects: Sequence[str], seed: int | str, salt: str) -> list[str]:
    """The same order on every machine and Python version, whatever the order of the rows."""
    return sorted(subjects, key=lambda one: hashlib.sha256(f"{seed}\0{salt}\0{one}".encode()).digest())


def _counts(members: Mapping[str, int], labels: Mapping[str, str]) -> str:
    """``class 0: 7 subjects, class 1: 1`` for a message."""
    return ", ".join(f"{members.get(label, 0)} subjects of class {label}" for label in sorted(set(labels.values())))
