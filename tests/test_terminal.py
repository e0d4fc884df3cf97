"""What is printed: names, labels and headers of other people never reach the terminal as they are."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from io_dicom import voxels, write_series

from mmfusion.bundle.begin import _one_sentence, _Printable
from mmfusion.cli import main
from mmfusion.cohort import check_manifest, format_problems
from mmfusion.errors import CohortError, ManifestError, printable, sentence
from mmfusion.files import write_csv
from mmfusion.io import save_volume
from mmfusion.progress import progress_line
from mmfusion.volume import Volume

EVIL = "P1\x1b]0;owned\x07\x9b2J\u202ecba\x7f"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def test_what_a_terminal_obeys_is_spelled_out():
    assert printable(EVIL) == r"P1\x1b]0;owned\x07\x9b2J\u202ecba\x7f"
    assert printable("a\nb\tc\r") == r"a\nb\tc\r" and printable("\u2067\udce9") == r"\u2067\udce9"
    assert printable("Müller, 北京 µ-map – 5 %") == "Müller, 北京 µ-map – 5 %"
    assert printable(printable(EVIL)) == printable(EVIL) and printable(7) == "7"


def test_an_error_is_one_line_and_the_list_of_a_manifest_stays_a_list():
    assert sentence(CohortError("a\nerror: b")) == r"error: a\nerror: b"
    assert (
        sentence(ManifestError("m.csv has 2 problems:\n  a\x1b\n  b")) == "error: m.csv has 2 problems:\n  a\\x1b\n  b"
    )


def test_a_row_of_check_stays_one_line(tmp_path):
    write_csv([{"subject": f"{EVIL}\nx", "ct": "gone.nii", "label": "a\x1b[2J"}], tmp_path / "m.csv")
    text = format_problems(check_manifest(tmp_path / "m.csv"))
    assert not OBEYED.search(text) and r"\nx" in text and len(text.splitlines()) == 6


def test_commands_print_nothing_that_a_terminal_obeys(tmp_path, capsys):
    folder = tmp_path / "dicom\x1b[31m"
    write_series(folder / "ct", voxels((7, 5, 6)), PatientID="S\x1b[2J1", SeriesDescription="a\x1b[2Jb")
    write_series(folder / "scout", voxels((7, 5, 1)), PatientID="S\x1b[2J1", SeriesDescription="\x1b]0;x\x07")
    main(["index", str(folder), "--out", str(tmp_path / "m\x1b.csv")])
    main(["check", str(tmp_path / "m\x1b.csv")])
    save_volume(Volume(np.full((5, 6, 7), np.nan, np.float32), np.eye(4), modality="ct"), tmp_path / "nan.nii.gz")
    write_csv([{"subject": f"{EVIL}\nx", "ct": "nan.nii.gz"}], tmp_path / "m.csv")
    main(["prepare", str(tmp_path / "m.csv"), "--out", str(tmp_path / "c\x9b"), "--workers", "1"])
    main(["prepare", str(tmp_path / "gone\x1b\nerror: all is well.csv"), "--out", str(tmp_path / "c")])
    progress_line("cases")(1, 1, EVIL)
    said = capsys.readouterr()
    assert not OBEYED.search(said.out + said.err), said
    assert r"S\x1b[2J1" in said.out and r"P1\x1b]0;owned" in said.err and "\nerror: all is well" not in said.err


def test_the_end_and_the_log_of_a_bundle_run(capsys):
    _one_sentence(CohortError, CohortError(f"{EVIL} has no options.json"), None)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "ended by %s\nand more", (EVIL,), None)
    text = _Printable(None).format(record)
    assert not OBEYED.search(capsys.readouterr().err + text) and text.count("\n") == 1


def test_a_file_name_that_is_no_text_is_printed(tmp_path):
    name = bytes(tmp_path) + b"/caf\xe9.csv"
    Path(os.fsdecode(name)).write_bytes(b"patient,ct\n1,a.nii\n")
    done = subprocess.run([sys.executable, "-m", "mmfusion", "check", name], capture_output=True, text=True)
    assert done.returncode == 1 and r"caf\udce9.csv" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_stays_on_its_line(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    progress_line("cases")(1, 2, "a\nb\x1b")
    assert "\n" not in capsys.readouterr().err.rstrip("\n")
