"""Atomic writing: a reader sees the old file or the new one, never half of one."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmfusion.files import atomic_path, write_csv, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text("old", tmp_path / "a.txt")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_the_temporary_path_keeps_folder_and_ending_and_makes_the_folder(tmp_path):
    with atomic_path(tmp_path / "new" / "b.nii.gz") as temporary:
        assert temporary.parent == tmp_path / "new"
        assert temporary.name.endswith(".nii.gz") and not (tmp_path / "new" / "b.nii.gz").exists()
        temporary.write_bytes(b"x")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["b.nii.gz"]


def test_text_is_utf8_without_translated_line_ends(tmp_path):
    write_text("µm\n", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc2\xb5m\n"


def test_json_takes_arrays_paths_data_classes_and_writes_nan_as_null(tmp_path):
    @dataclass
    class Point:
        x: float
        where: Path

    write_json({"a": np.arange(2), "n": np.float32(0.5), "bad": [float("nan"), np.inf], 1: Point(2.0, Path("p"))},
               tmp_path / "a.json")  # fmt: skip
    read = json.loads((tmp_path / "a.json").read_text())
    assert read == {"a": [0, 1], "n": 0.5, "bad": [None, None], "1": {"x": 2.0, "where": "p"}}


def test_json_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_csv_columns_come_in_order_of_appearance_and_none_is_empty(tmp_path):
    write_csv([{"subject": "001", "auc": None}, {"subject": "NA", "note": 'a,"b"'}], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [{"subject": "001", "auc": "", "note": ""}, {"subject": "NA", "auc": "", "note": 'a,"b"'}]


def test_csv_with_given_columns_writes_only_those_and_a_header_for_no_rows(tmp_path):
    write_csv([{"a": 1, "b": 2}], tmp_path / "a.csv", columns=["b"])
    write_csv([], tmp_path / "b.csv", columns=["x", "y"])
    assert (tmp_path / "a.csv").read_text() == "b\n2\n"
    assert (tmp_path / "b.csv").read_text() == "x,y\n"
