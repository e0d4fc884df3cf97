"""Options: the table, the check of a value, who gave what, and files that a person writes."""

import json

import pytest
import yaml

from mmfusion.errors import OptionError, ReadError
from mmfusion.files import read_options
from mmfusion.options import GROUPS, OPTIONS, Option, resolve, settle, unknown
from mmfusion.registration import INITS, KINDS, TEMPLATES
from mmfusion.systems import System


def test_every_group_names_existing_options_and_every_option_is_used():
    named = {name for names in GROUPS.values() for name in names}
    assert named <= set(OPTIONS)
    assert set(OPTIONS) == named


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


# who gave what

ROWS = {
    "small": System("A row", {"encoder": "cnn", "encoder_options": {"channels": [4, 8]}, "epochs": 3}),
    "other": System("Another row", {"encoder": "vit", "width": 2.0}),
}
NETWORK = ("bundle new", "network")


def put(file=None, typed=None):
    return settle(NETWORK, ("file", file or {}), ("command line", typed or {}), systems=ROWS)


def test_what_is_given_last_is_used_and_nothing_and_null_are_not_given():
    settings = put({"width": 0.5, "norm": "batch", "fusion": None}, {"width": 0.25, "norm": None})
    assert (settings.used["width"], settings.used["norm"], settings.used["fusion"]) == (0.25, "batch", None)
    assert settings.chosen == {"width": 0.25, "norm": "batch"}
    assert settings.given == {
        "width": {"value": 0.25, "from": "command line"},
        "norm": {"value": "batch", "from": "file"},
    }
    assert put().used == {name: OPTIONS[name].default for name in put().used} and put().given == {}


def test_a_system_stands_below_the_options_of_the_place_that_names_it():
    settings = put({"system": "small", "width": 0.5, "encoder": "resnet18"})
    assert (settings.used["encoder"], settings.used["encoder_options"]) == ("resnet18", {"channels": [4, 8]})
    assert settings.given["encoder_options"]["from"] == "system small" and settings.used["epochs"] == 3
    settings = put({"width": 0.5, "norm": "batch"}, {"system": "other", "dropout": 0.1})  # typed: above the whole file
    assert (settings.used["width"], settings.used["norm"], settings.used["encoder"]) == (2.0, "batch", "vit")
    assert put({"system": "small"}, {"system": "other"}).used["encoder_options"] is None  # one system, the highest
    assert put({"system": "small"}, {"system": "none"}).chosen == {}
    with pytest.raises(OptionError, match="unknown system 'smal'; did you mean 'small'"):
        put({"system": "smal"})


def test_the_word_none_takes_away_what_a_lower_place_gives():
    settings = put({"system": "small", "width": 0.5}, {"encoder_options": "none", "width": "none", "encoder": {}})
    assert settings.used["encoder_options"] is None and settings.used["encoder"] == "resnet10"
    assert settings.used["width"] == 1.0 and "width" not in settings.chosen
    assert settings.given["width"] == {"value": "none", "from": "command line"}
    assert put({"losses": {"unimodal": 1}}, {"losses": {}}).used["losses"] == {}  # a value: no further loss
    assert resolve({"spacing": "none", "reference": ["none"]}, "geometry")["spacing"] == [2.0, 2.0, 2.0]


def test_where_none_is_a_value_it_is_that_value():
    given = settle("prepare", ("file", {"register": "affine", "suv": "bw"}), ("command line", {"register": "none"}))
    assert given.used["register"] == "none" and resolve({"suv": "none"}, "case")["suv"] == "none"
    assert [option.name for option in OPTIONS.values() if "none" in option.choices] == ["register", "suv", "kind"]


def test_names_in_a_table_are_checked():
    with pytest.raises(OptionError, match="unknown losses 'unimodl'; did you mean 'unimodal'"):
        resolve({"losses": {"unimodl": 1}}, "network")


def test_help_is_a_sentence():
    for option in OPTIONS.values():
        assert option.help[0].isupper() and option.help[-1] not in ".,:" and "(default" not in option.help, option.name


# files with options


@pytest.mark.parametrize("name", ["study.yaml", "study.json"])
def test_a_file_of_options_is_yaml_or_json(tmp_path, name):
    options = {"spacing": [3, 3, 4], "suv_max": 15, "register": "none", "frame": None}
    file = tmp_path / name
    file.write_text(json.dumps(options) if name.endswith("json") else yaml.safe_dump(options))
    assert read_options(file, "prepare") == options
    file.write_text("learning_rate: 1e-3")  # which YAML takes for text
    assert read_options(file, "bundle new") == {"learning_rate": 0.001}
    file.write_text("# nothing yet\n")
    assert read_options(file, "prepare") == {}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("spaceing: [2, 2, 2]", OptionError, "study.yaml: unknown option 'spaceing'; did you mean 'spacing'?"),
        ("epochs: 3", OptionError, "study.yaml: unknown option 'epochs'"),  # not of this command
        ("size: [2, 2]", OptionError, r"study.yaml: option size takes 3 values, found \[2, 2\]"),
        ("roi: [no, 7]", OptionError, r"found False \(bool\); write roi in quotes"),
        ("options: more.yaml", OptionError, "names a further file of options"),
        ("- spacing", OptionError, "holds no options by name; write one a line"),
        ("spacing: [2, 2", ReadError, "is neither YAML nor JSON"),
        ("register: !!python/object/apply:os.getcwd []", ReadError, "is neither YAML nor JSON"),
    ],
)
def test_mistakes_in_a_file_of_options_are_named(tmp_path, text, error, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(error, match=message):
        read_options(tmp_path / "study.yaml", "prepare")
    with pytest.raises(ReadError, match="gone.yaml cannot be read"):
        read_options(tmp_path / "gone.yaml", "prepare")
