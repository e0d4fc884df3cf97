"""Splits and folds: properties on random cohorts, and scikit-learn as the second opinion."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from mmfusion.cohort import Case, fold_parts, folds, leakage, refuse_leakage, split_cases
from mmfusion.errors import LeakageError, ManifestError, OptionError


def cohort(seed: int, classes: int = 2, least: int = 12) -> list[Case]:
    """Random subjects with 1 to 3 sessions, in random order; a class has at least ``least`` subjects."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(least, 4 * least, classes))
    cases = [
        Case(f"S{n:03}", str(visit), str(label))
        for n, label in enumerate(rng.permutation(labels))
        for visit in range(rng.integers(1, 4))
    ]
    return [replace(cases[n], line=line) for line, n in enumerate(rng.permutation(len(cases)), 2)]


def subjects(count: int, label: str, **more) -> list[Case]:
    return [Case(f"{label}{n:02}", label=label, **more) for n in range(count)]


def by_part(cases: list[Case], parts: dict) -> dict:
    """Part to the set of (subject, label)."""
    out = defaultdict(set)
    for case in cases:
        out[parts[case.id]].add((case.subject, case.label))
    return out


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_disjoint_stratified_and_of_the_size_asked_for(seed: int) -> None:
    cases = cohort(seed, classes=2 + seed % 3)
    validation, test = 0.1 + 0.02 * seed, 0.2
    parts = split_cases(cases, validation=validation, test=test, seed=seed)
    groups = by_part(cases, parts)
    assert parts.keys() == {case.id for case in cases} and leakage(cases, parts) == ""
    total = sum(len(group) for group in groups.values())
    assert total == len({case.subject for case in cases})
    sizes = Counter(label for group in groups.values() for _, label in group)
    for part, share in (("validation", validation), ("test", test)):
        members = Counter(label for _, label in groups[part])
        assert all(members[label] >= 2 for label in sizes)
        assert all(abs(members[label] - share * sizes[label]) < 1.0001 for label in sizes)
        assert abs(len(groups[part]) - share * total) <= 0.5001 + (min(members.values()) == 2)


@pytest.mark.parametrize("seed", range(4))
def test_class_counts_agree_with_scikit_learn(seed: int) -> None:
    cases = cohort(seed)
    labels = {case.subject: case.label for case in cases}
    count = round(0.25 * len(labels))
    _, theirs = train_test_split(list(labels.values()), test_size=count, stratify=list(labels.values()))
    ours = Counter(label for _, label in by_part(cases, split_cases(cases, validation=0, test=0.25))["test"])
    assert sum(ours.values()) == count  # where remainders tie, theirs are drawn at random
    assert all(abs(ours[label] - number) <= 1 for label, number in Counter(theirs).items())


@pytest.mark.parametrize("split", [split_cases, folds])
def test_order_of_rows_does_not_matter_and_the_seed_does(split) -> None:
    cases = cohort(3)
    assert split(cases, seed=1) == split(cases[::-1], seed=1)
    assert split(cases, seed=1) != split(cases, seed=2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_are_leak_safe_and_as_even_as_scikit_learn(seed: int, k: int) -> None:
    cases = cohort(seed, classes=2 + seed % 2)
    groups = by_part(cases, folds(cases, k, seed))
    labels = {case.subject: case.label for case in cases}
    assert leakage(cases, folds(cases, k, seed)) == "" and sorted(groups) == list(range(k))
    assert max(map(len, groups.values())) - min(map(len, groups.values())) <= 1
    names, y = list(labels), np.array(list(labels.values()))
    for label in set(y):
        ours = sorted(sum(one == label for _, one in group) for group in groups.values())
        theirs = sorted(np.sum(y[test] == label) for _, test in StratifiedKFold(k).split(names, y))
        assert ours == theirs


def test_a_small_cohort_still_has_two_of_each_class_in_each_part() -> None:
    cases = subjects(6, "1") + subjects(40, "0")
    count = Counter((part, id[0]) for id, part in split_cases(cases, validation=0.05, test=0.05, seed=4).items())
    assert all(count[part, label] >= 2 for part in ("train", "validation", "test") for label in "01")
    with pytest.raises(ManifestError, match=r"class 1 has 5 subjects \(40 subjects of class 0, 5 subjects of"):
        split_cases(subjects(5, "1") + subjects(40, "0"))
    assert "test" not in split_cases(subjects(5, "1") + subjects(40, "0"), test=0).values()


def test_a_subject_counts_by_most_of_its_sessions_then_by_the_last() -> None:
    mixed = [Case("M", str(n), label) for n, label in enumerate(["1", "1", "0"])]
    tied = [Case("T", "1", "0"), Case("T", "2", "1"), Case("T", "3", None)]
    base = subjects(4, "0")
    with pytest.raises(ManifestError, match="4 subjects of class 0, 2 subjects of class 1"):
        folds([*base, *mixed, *tied], 3)
    assert set(folds([*base, *mixed, *tied], 2).values()) == {0, 1}


def test_column_split_decides() -> None:
    cases = [
        replace(case, split=part)
        for label in "01"
        for part, some in zip(("train", "validation", "test"), np.split(np.array(subjects(9, label)), 3), strict=True)
        for case in some
    ]  # fmt: skip
    assert split_cases(cases, seed=5) == {case.id: case.split for case in cases}


def test_validation_is_made_out_of_train_if_the_column_has_none(caplog: pytest.LogCaptureFixture) -> None:
    train = subjects(10, "0", split="train") + subjects(10, "1", split="train")
    test = [Case(f"t{n}", label=str(n % 2), images={}, split="test", covariates={"n": str(n)}) for n in range(6)]
    with caplog.at_level(logging.WARNING):
        parts = split_cases(train + test, validation=0.3)
    assert "names no validation part: 6 of 20 training subjects were drawn" in caplog.text
    assert Counter(parts.values()) == {"train": 14, "validation": 6, "test": 6}
    assert all(parts[case.id] == "test" for case in test)
    assert "validation" not in split_cases(train + test, validation=0).values()


@pytest.mark.parametrize("split", [split_cases, folds])
def test_spellings_that_may_be_one_person_are_drawn_to_one_side(split) -> None:
    cases = [*subjects(9, "0"), *subjects(9, "1")]
    twins = [replace(case, subject=f"{int(case.subject)} .") for case in cases]
    for seed in range(4):
        parts = split([*cases, *twins], seed=seed)
        assert all(parts[case.id] == parts[twin.id] for case, twin in zip(cases, twins, strict=True))
    number = folds([*cases, *twins], 3)
    parts = fold_parts([*cases, *twins], number, 1)
    assert all(parts[case.id] == parts[twin.id] for case, twin in zip(cases, twins, strict=True))


def test_spellings_of_one_person_on_two_sides_are_a_leak(caplog: pytest.LogCaptureFixture) -> None:
    base = [
        Case(f"{part}{label}{n}", label=label, split=part)
        for part in ("train", "validation", "test")
        for label in "01"
        for n in range(3)
    ]
    one = [Case("M\u00fc 7", "", "0", split="train", line=3), Case("mu\u0308-7", "", "0", split="test", line=5)]
    words = r"mu\u0308-7 \(lines 3, 5; rename one if they are two people\)\. Splits are"
    with pytest.raises(LeakageError, match=f"^1 subject is in both train and test: M\u00fc 7 alias {words}"):
        split_cases(base + one)
    two = [Case("P7", label="0", split="train"), Case("P007", label="0", split="test")]
    assert split_cases(base + two) == {case.id: case.split for case in base + two}
    assert "column split: 1 subject is in both train and test: P007 alias P7 (rename" in caplog.text
    assert split_cases(base + [replace(case, subject=name) for case, name in zip(two, ("1-11", "11-1"), strict=True)])
    assert caplog.text.count("alias") == 1


def test_leaks_are_named_with_lines() -> None:
    cases = [
        Case("017", "1", "0", split="train", line=18),
        Case("017", "2", "0", split="test", line=41),
        Case("023", "b", "1", split="test", line=7),
        Case("023", "a", "1", split="train", line=9),
        Case("9", "a", "1", split="validation", line=3),
    ]
    message = (
        r"^2 subjects are in both train and test: 017 \(lines 18, 41\), 023 \(lines 7, 9\)\. "
        r"Splits are by subject; use column session for the visit\.$"
    )
    with pytest.raises(LeakageError, match=message):
        split_cases(cases)
    parts = {case.id: {"train": 0, "test": 1}.get(case.split, 2) for case in cases}
    with pytest.raises(LeakageError, match="2 subjects are in both fold 0 and fold 1: 017"):
        refuse_leakage(cases, parts)
    with pytest.raises(LeakageError, match=r"1 subject is in both fold 0 and fold 1: A\. "):
        folds([Case("A", "1", "0", fold="0"), Case("A", "2", "0", fold="1"), Case("B", "", "1", fold="1")])


def test_column_fold_decides_and_needs_every_class_in_each() -> None:
    cases = [replace(case, fold=str(n % 2)) for label in "01" for n, case in enumerate(subjects(6, label))]
    assert folds(cases, k=5) == {case.id: int(case.fold) for case in cases}
    one_sided = [replace(case, fold=case.label or "") for case in cases]
    with pytest.raises(ManifestError, match="fold 0 has 6 subjects of class 0, 0 subjects of class 1; each"):
        folds(one_sided)


@pytest.mark.parametrize("split", [split_cases, folds])
def test_labels_are_needed(split) -> None:
    with pytest.raises(ManifestError, match=r"12 subjects have no label: A00, .*A09 and 2 more. Splits"):
        split(subjects(5, "0") + [Case(f"A{n:02}") for n in range(12)])
    with pytest.raises(ManifestError, match="all 9 subjects have the label '1'; at least two classes"):
        split(subjects(9, "1"))


def test_columns_that_cannot_be_used() -> None:
    cases = subjects(6, "0", split="train") + subjects(6, "1", split="train")
    with pytest.raises(ManifestError, match=r"column split is empty for 1 of 13 rows: X \(line 4\). Fill it"):
        split_cases([*cases, Case("X", label="0", line=4)])
    many = [Case(f"X{n}", label="0") for n in range(11)]
    with pytest.raises(ManifestError, match=r"11 of 23 rows.* and 1 more"):
        split_cases([*cases, *many])
    with pytest.raises(ManifestError, match="test has 2 subjects of class 0, 1 subjects of class 1; at least 2"):
        test = [Case("t1", label="0"), Case("t2", label="0"), Case("t3", label="1")]
        split_cases(cases + [replace(case, split="test") for case in test])
    with pytest.raises(ManifestError, match="column split has no subject in train"):
        split_cases([replace(case, split="test") for case in cases])


@pytest.mark.parametrize("shares", [{"validation": -0.1}, {"test": -1}, {"validation": 0.5, "test": 0.5}])
def test_shares_must_leave_some_to_train_on(shares: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="must leave some to train on"):
        split_cases(cohort(0), **shares)


def test_too_many_or_too_few_folds() -> None:
    with pytest.raises(ManifestError, match=r"5 folds cannot each have every class: .* Use at most 3 folds"):
        folds(subjects(3, "1") + subjects(9, "0"), 5)
    with pytest.raises(OptionError, match="at least 2 folds, found 1"):
        folds(cohort(0), 1)


# one fold of a cross-validation


def test_draws_stay_what_they_were() -> None:
    cases = subjects(9, "0") + subjects(9, "1")
    parts, number = split_cases(cases, seed=3), folds(cases, 3, seed=3)
    found = {part: " ".join(id for id in parts if parts[id] == part) for part in ("validation", "test")}
    assert found == {"validation": "000 003 101 103", "test": "001 006 100 104"}
    assert "".join(str(number[case.id]) for case in cases) == "202101012211021002"


@pytest.mark.parametrize("seed", range(4))
def test_folds_spread_cases_and_classes_as_scikit_learn_does_at_best(seed: int) -> None:
    cases, k = cohort(seed, classes=3), 4
    label, subject = np.array([case.label for case in cases]), np.array([case.subject for case in cases])
    dealt = folds(cases, k, seed)
    ours = np.array([dealt[case.id] for case in cases])
    theirs = np.zeros(len(cases), int)
    for number, (_, test) in enumerate(
        StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(ours, label, subject)
    ):
        theirs[test] = number

    def spread(fold: np.ndarray) -> int:
        """Of the subjects of a class in a fold, the largest minus the smallest number."""
        count = [[len(set(subject[(fold == f) & (label == one)])) for f in range(k)] for one in set(label)]
        return int(np.ptp(count, axis=1).max())

    for fold in (ours, theirs):
        assert all(len(set(fold[subject == one])) == 1 for one in set(subject))
    assert spread(ours) <= 1 and spread(ours) <= spread(theirs)


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_all_folds(seed: int) -> None:
    cases, k = cohort(seed, classes=2 + seed % 2, least=15), 3 + seed % 3
    number = folds(cases, k, seed)
    parts = [fold_parts(cases, number, fold, validation=0.25, seed=seed) for fold in range(k)]
    for fold, one in enumerate(parts):
        assert one.keys() == number.keys() and leakage(cases, one) == ""
        assert {id for id in one if one[id] == "test"} == {id for id in number if number[id] == fold}
        groups = by_part(cases, one)
        rest = Counter(label for _, label in groups["train"] | groups["validation"])
        drawn = Counter(label for _, label in groups["validation"])
        assert all(abs(drawn[label] - 0.25 * rest[label]) < 1.0001 for label in rest)
    assert all(sum(one[case.id] == "test" for one in parts) == 1 for case in cases)
    learned = ["train" in {one[case.id] for one in parts} for case in cases]
    assert np.mean(learned) > 0.85  # one validation for all folds would keep a quarter from every training
    again = cases[::-1]
    assert fold_parts(again, folds(again, k, seed), 1, validation=0.25, seed=seed) == parts[1]
    assert fold_parts(cases, number, 1, validation=0.25, seed=seed + 9) != parts[1]


def test_a_fold_that_is_not_there() -> None:
    cases = [replace(case, fold=str(1 + n % 3)) for label in "01" for n, case in enumerate(subjects(9, label))]
    with pytest.raises(OptionError, match="^there is no fold 0; this study has the folds 1, 2, 3$"):
        fold_parts(cases, folds(cases), 0)
    with pytest.raises(ManifestError, match="column fold has fold 1 alone; cross-validation needs at least 2"):
        folds([replace(case, fold="1") for case in cases])
    with pytest.raises(ManifestError, match="class 0 has 3 subjects .*; train, validation need at least 2"):
        fold_parts(cases[:5] + cases[9:], folds(cases[:5] + cases[9:]), 1)


def test_test_cases_of_column_split_stay_out_of_all_folds(caplog: pytest.LogCaptureFixture) -> None:
    known = subjects(8, "0") + subjects(8, "1")
    held = [Case(f"t{n}", label=str(n % 2), split="test", fold="1") for n in range(4)]
    for split in ("", "train"):
        cases = [replace(case, split=split) for case in known] + held
        with caplog.at_level(logging.WARNING):
            number = folds(cases, 2)
        assert number == folds(known, 2) and "column split: 4 test cases stay out of all folds" in caplog.text
        assert fold_parts(cases, number, 1).keys() == number.keys()
    parts = ["validation" if n % 4 == 0 else "train" for n in range(16)]
    assert folds([replace(case, split=part) for case, part in zip(known, parts, strict=True)], 2) == number


def test_a_subject_in_a_fold_and_in_the_test_is_a_leak() -> None:
    cases = [replace(case, line=line) for line, case in enumerate(subjects(8, "0") + subjects(8, "1"), 2)]
    with pytest.raises(LeakageError, match=r"1 subject is in both test and the folds: 003 \(lines 5, 18\)"):
        folds([*cases, Case("003", "2", "0", split="test", line=18)], 2)


def test_column_split_is_complete_or_names_the_test_alone() -> None:
    cases = [replace(case, split="train") for case in subjects(8, "0") + subjects(8, "1")]
    with pytest.raises(ManifestError, match=r"column split is empty for 1 of 16 rows: 005\. Fill it"):
        folds([replace(case, split="" if case.subject == "005" else "train") for case in cases], 2)
