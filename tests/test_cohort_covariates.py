"""Covariates as numbers: kinds, standardization over subjects, unknown values, what is refused."""

import json
import logging
from dataclasses import asdict

import numpy as np
import pytest

from mmfusion.cohort.covariates import as_layout, as_number, count_inputs, encode_covariates, fit_covariates
from mmfusion.errors import CohortError, OptionError

SUBJECTS = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}  # a has two cases


def column(*values):
    return dict(zip(SUBJECTS, values, strict=True))


COLUMNS = {
    "table": column(*(np.array([[n, 5.0, np.nan if n == 3 else n]]) for n in (1, 3, 2, 4, 6))),
    "age": column("50", "70", "40", "n/a", "80"),
    "sex": column("f", "f", "m", "m", ""),
    "site": column("x", "x", "y", "z", "z"),
}


def test_words_that_python_takes_for_numbers_are_words():
    assert [as_number(text) for text in ("2024_01", "nan", "inf", "", "-1.5e3", "07")] == [None] * 4 + [-1500.0, 7.0]


def test_inputs_are_standardized_over_subjects_with_tables_behind():
    layout = fit_covariates(COLUMNS, SUBJECTS)
    assert [(one.name, one.kind, len(one.mean)) for one in layout] == [
        ("age", "number", 1),
        ("sex", "category", 1),
        ("site", "category", 3),
        ("table", "table", 3),
    ]
    assert layout[0].mean == (60.0,) and layout[0].sd == pytest.approx(((400 / 1.5) ** 0.5,))  # of 60, 40 and 80
    assert layout[1].levels == ("f", "m") and layout[1].mean == (2 / 3,)
    inputs = encode_covariates(layout, COLUMNS, SUBJECTS)
    assert count_inputs(layout) == 8 and inputs["a1"].shape == (8,) and inputs["a1"].dtype == np.float32
    assert inputs["a1"][0] == pytest.approx((50 - 60) / (400 / 1.5) ** 0.5)
    assert np.isnan(inputs["c"][0]) and np.isnan(inputs["d"][1])
    assert inputs["b"][2:5] == pytest.approx((np.array([0, 1, 0]) - [1 / 4, 1 / 4, 1 / 2]) / np.sqrt([3, 3, 4]) * 4)
    assert (inputs["b"][6], inputs["c"][6]) == (0, 0)  # constant in the training
    assert np.isnan(inputs["a2"][7]) and not np.isnan(inputs["a1"][5:]).any()
    assert as_layout(json.loads(json.dumps([asdict(one) for one in layout]))) == layout


def test_the_order_of_cases_changes_nothing():
    turned = dict(reversed(SUBJECTS.items()))
    assert fit_covariates(COLUMNS, turned) == fit_covariates(COLUMNS, SUBJECTS)


def test_what_the_training_did_not_know_is_unknown_and_warned_of(caplog):
    layout = fit_covariates({name: COLUMNS[name] for name in ("age", "sex", "site")}, SUBJECTS)
    new = {"age": {"n": "old", "o": "60"}, "site": {"n": "Zimmermann", "o": "x"}}
    with caplog.at_level(logging.WARNING):
        inputs = encode_covariates(layout, new, ["n", "o"])
    assert np.isnan(inputs["n"]).all() and np.isnan(inputs["o"]).tolist() == [False, True, False, False, False]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "covariate age has a value that no training subject had in 1 of 2 cases, where it counts as unknown",
        "covariate sex is in no column of these cases",
        "covariate site has a value that no training subject had in 1 of 2 cases, where it counts as unknown",
    ]
    assert "Zimmermann" not in caplog.text and "old" not in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (column("1", "1.0", "1", "", "1"), "covariate x is the same in all training subjects"),
        (column("a", "a", "", "a", "a"), "covariate x is the same in all training subjects"),
        (column("", "n/a", "NaN", "", ""), "covariate x is unknown in all training subjects"),
        (column("1", "3", "2", "2", "2"), "covariate x is the same in all training subjects"),  # 1 and 3: subject a
        (column(*[np.ones(2)] * 5), "covariate x is the same"),
    ],
)
def test_columns_that_tell_nothing_are_refused(values, words):
    with pytest.raises(OptionError, match=words):
        fit_covariates({"x": values}, SUBJECTS)


def test_too_many_words_are_refused():
    names = {str(n): str(n) for n in range(21)}
    with pytest.raises(OptionError, match="covariate x holds text with 21 different values .* at most 20"):
        fit_covariates({"x": {n: f"name {n}" for n in names}}, names)


@pytest.mark.parametrize(("value", "found"), [("text", "no table"), (np.ones(3), r"a table of shape \[3\]")])
def test_a_table_of_another_shape_is_refused(value, found):
    layout = fit_covariates({"table": COLUMNS["table"]}, SUBJECTS)
    assert np.isnan(encode_covariates(layout, {"table": {"n": ""}}, ["n"])["n"][0])
    with pytest.raises(CohortError, match=rf"covariate table must be a table of shape \[1, 3\], found {found}"):
        encode_covariates(layout, {"table": {"n": value}}, ["n"])


@pytest.mark.parametrize("value", [3, [3], [{"name": "x"}], [{"name": "x", "kind": "number", "mean": [1], "sd": [-1]}]])
def test_a_layout_that_is_none(value):
    with pytest.raises(ValueError, match="a list of covariates"):
        as_layout(value)
