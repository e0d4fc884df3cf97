import pytest

from mmfusion.errors import OptionError
from mmfusion.options import GROUPS, OPTIONS, Option, resolve, unknown
from mmfusion.registration import INITS, KINDS, TEMPLATES


def test_every_group_names_existing_options_and_every_option_is_used():
    named = {name for names in GROUPS.values() for name in names}
    assert named <= set(OPTIONS)
    alone = {"cohort", "manifest", "run_dir", "part", "resamples", "case_control"}  # bundle configurations name these
    assert set(OPTIONS) - named == alone


def test_defaults_fit_their_own_rules():
    for option in OPTIONS.values():
        assert option.check(option.default) == option.default


def test_choices_are_those_of_the_registration():
    assert OPTIONS["register"].choices == OPTIONS["kind"].choices == KINDS
    assert (OPTIONS["init"].choices, OPTIONS["to"].choices) == (INITS, TEMPLATES)


def test_resolve_fills_defaults_and_keeps_what_is_given():
    out = resolve({"spacing": [1, 2, 3], "center": None}, "geometry")
    assert out["spacing"] == [1.0, 2.0, 3.0] and out["center"] == "foreground"
    assert set(out) == set(GROUPS["geometry"])


def test_the_center_is_a_rule_or_a_point():
    center = OPTIONS["center"]
    assert [center.check(text) for text in ("mask", "-8, 20.5,1e1")] == ["mask", "-8.0,20.5,10.0"]
    for text in ("1,2", "1,2,x", "1,2,nan"):
        with pytest.raises(OptionError, match=f"unknown center '{text}'"):
            center.check(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rte": 1}, "unknown option 'learning_rte'; did you mean 'learning_rate'"),
        ({"epochs": "5"}, r"option epochs takes a whole number, found '5' \(str\)"),
        ({"epochs": True}, "takes a whole number, found True"),
        ({"augment": 1}, "takes True or False"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(OptionError, match=message):
        resolve(given, "training")


def test_lists_and_choices():
    with pytest.raises(OptionError, match=r"spacing takes 3 values, found \[1\]"):
        resolve({"spacing": [1]}, "geometry")
    with pytest.raises(OptionError, match="unknown center 'masks'; did you mean 'mask'"):
        resolve({"center": "masks"}, "geometry")
    assert resolve({"reference": "pet"}, "geometry")["reference"] == ["pet"]
    with pytest.raises(OptionError, match="at least one value"):
        resolve({"reference": []}, "geometry")


def test_flag_and_unknown():
    assert Option("batch_size", int, 4, "").flag == "--batch-size"
    assert unknown("encoder", "zzz", ("a", "b")) == "unknown encoder 'zzz'. Known: a, b"


def test_ranges_rise_and_names_are_said_once():
    with pytest.raises(OptionError, match="ct_window takes rising values, found 240.0 -160.0"):
        resolve({"ct_window": [240, -160]}, "intensity")
    with pytest.raises(OptionError, match="modalities names something twice: ct ct"):
        resolve({"modalities": ["ct", "ct"]}, "case")
    with pytest.raises(OptionError, match="epochs must be 1 or more, found 0"):
        resolve({"epochs": 0}, "training")
    with pytest.raises(OptionError, match="dropout must lie between 0 and 0.95, found 1"):
        resolve({"dropout": 1.0}, "network")
