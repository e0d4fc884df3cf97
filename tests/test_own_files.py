"""Our own files, damaged, saved by a spreadsheet or of a newer version: one sentence, or the work is done."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from tiny_cohort import MODALITIES, OPTIONS, write_tiny_cohort

from mmfusion.bundle import new_bundle, run_config
from mmfusion.bundle.begin import own_error
from mmfusion.bundle.new import pack_model
from mmfusion.cli import main
from mmfusion.cohort import check_manifest, read_manifest
from mmfusion.cohort.simulate.study import read_truth
from mmfusion.demo import _refuse_another
from mmfusion.errors import CohortError, ManifestError, MmfusionError, ReadError
from mmfusion.files import Predictions, claim, read_fields, read_rows
from mmfusion.predict import Model, load_model, read_model, save_model
from mmfusion.prepare import damaged_files, load_image, open_cohort
from mmfusion.prepare.folder import read_case
from mmfusion.prepare.standard import are_landmarks

NETWORK = {"strategy": "single_level", "encoder": "cnn", "width": 0.125}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort and a model, untrained."""
    folder = tmp_path_factory.mktemp("own")
    write_tiny_cohort(folder / "cohort", ["no", "yes"] * 2)
    model = Model(MODALITIES, ("no", "yes"), NETWORK, OPTIONS, (0.5, 0.5), (0.8, 0.2), 0.4)
    save_model(folder / "run", model.build(), model)
    return folder


@pytest.fixture
def cohort(made, tmp_path):
    return shutil.copytree(made / "cohort", tmp_path / "cohort")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def edit(path, **fields):
    """Other fields in a JSON file; those that are ``...`` go."""
    facts = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"units": "x"}, "has units, which this version does not know: it was written by a newer version of mmfusion"),
        ({"network": NETWORK | {"depth": 3}}, "model.json: network has depth, which this version does not know"),
        ({"network": NETWORK | {"encoder": "resnet11"}}, "unknown encoder 'resnet11'; did you mean 'resnet1"),
        ({"network": NETWORK | {"strategy": "input", "fusion": "mean"}}, "strategy 'input' takes fusion"),
        ({"network": NETWORK | {"encoder_options": {"x": 1}}}, "x"),
        ({"case": ...}, "lacks case: it is damaged, or was written by another version of mmfusion; train again"),
        ({"case": {n: v for n, v in OPTIONS.items() if n != "spacing"}}, "model.json: case lacks spacing"),
        ({"case": OPTIONS | {"size": "big"}}, "option size takes"),
        ({"case": OPTIONS | {"modalities": None}}, "no case is prepared with ct"),
        ({"classes": ["yes"]}, "training_prior has 2 numbers for 1 classes"),
        ({"classes": "no yes"}, "classes must be a list of names, found 'no yes'"),
        ({"classes": ["yes", "yes"]}, "classes must be a list of names, each once"),
        ({"modalities": []}, "modalities must be a list of names, found"),
        ({"training_prior": [0.5, "x"]}, "training_prior must be a number above 0, found"),
        ({"target_prior": [0.5, 0]}, "target_prior must be a number above 0"),
        ({"threshold": True}, "threshold must be a number, found True"),
        ({"temperature": 10**400}, "temperature must be a number above 0"),
        ({"simulated": "no"}, "simulated must be true or false, found 'no'"),
        ({"format": 2}, r"written by another version of mmfusion \(format 2, 1 is expected\); update mmfusion"),
    ],
)
def test_a_description_of_a_model_is_checked_field_by_field(run, fields, said):
    edit(run / "model.json", **fields)
    with pytest.raises(MmfusionError, match=said):
        load_model(run)


def test_a_model_that_is_whole_comes_back(run):
    assert read_model(run).threshold == 0.4
    raw = (run / "model.json").read_bytes()
    (run / "model.json").write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
    assert load_model(run)[0] == read_model(run)


def test_a_changed_byte_in_a_weight_is_seen(run):
    with zipfile.ZipFile(run / "model.pt") as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
        weights = parts.read(largest)
    raw = bytearray((run / "model.pt").read_bytes())
    raw[raw.find(weights) + len(weights) // 2] ^= 1
    (run / "model.pt").write_bytes(raw)
    with pytest.raises(
        CohortError, match="model.pt is not a file of weights alone.*not have the content that was writt"
    ):
        load_model(run)
    (run / "model.pt").write_bytes(raw[:1000])
    with pytest.raises(CohortError, match="model.pt is not a file of weights alone"):
        load_model(run)


@pytest.mark.parametrize("content", ["null", "[]", "5", '{"a": 1', '{"a": "\\ud800"}', '{"a":' * 100_000, "\0", ""])
def test_json_of_ours_that_is_none(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ReadError, match=r"a\.json .*a demo is expected"):
        read_fields(tmp_path / "a.json", "a demo")


@pytest.mark.parametrize("name", ["options.json", "cases.csv"])
@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"null", b"\0" * 100, b"a;b\n1;2\n"])
def test_a_damaged_cohort_is_one_sentence(cohort, capsys, name, raw):
    (cohort / name).write_bytes(raw)
    for command in ("check", "report"):
        if command == "report" and name == "options.json" and raw == b"a;b\n1;2\n":
            continue
        assert main([command, str(cohort)]) == 1
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spacing": ...}, "options.json lacks spacing"),
        ({"spacing": [1, 2]}, "options.json: option spacing takes"),
        ({"modalities": None}, "options.json is damaged, it names no modalities"),
        ({"simulated": "yes"}, "simulated must be true or false"),
        ({"glow": 1}, "options.json has glow, which this version does not know: it was written by a newer version"),
    ],
)
def test_options_of_a_cohort_are_checked(cohort, fields, said):
    edit(cohort / "options.json", **fields)
    with pytest.raises(ReadError, match=said):
        open_cohort(cohort)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: b"\xef\xbb\xbf" + raw.replace(b",", b";").replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b",", b"\t"),
        lambda raw: raw.decode().replace(",", "\t").encode("utf-16"),
        lambda raw: b"sep=;\n" + raw.replace(b",", b";"),
    ],
)
def test_a_table_that_a_spreadsheet_saved_works(cohort, change):
    before = open_cohort(cohort).hash
    (cohort / "cases.csv").write_bytes(change((cohort / "cases.csv").read_bytes()))
    assert open_cohort(cohort).hash == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"S01,S01", b"1,S01", "row 3 is damaged: case is '1', but subject and session make 'S01'"),
        (
            b"cases/S01/image.npy",
            b"../../x/image.npy",
            "row 3 is damaged: file is '../../x/image.npy', not 'cases/S01/",
        ),
        (b"S01,S01", b"S00,S00", "row 3 is damaged: file is"),
        (b",done,", b",fine,", "row 2 is damaged: status is 'fine', not one of done, doubtful, accepted, failed"),
        (b"ct pet mr", b"ct us", "row 2 is damaged: modalities are 'ct us', not some of ct, pet, mr"),
        (b"status", b"state", "has no column status"),
        (b"done", b"d\xf6ne", "cases.csv is not text in UTF-8 .*Save it as UTF-8"),
    ],
)
def test_a_row_that_does_not_fit_its_cohort_is_named(cohort, old, new, said):
    raw = (cohort / "cases.csv").read_bytes()
    assert old in raw
    (cohort / "cases.csv").write_bytes(raw.replace(old, new, 1))
    with pytest.raises(ReadError, match=said):
        open_cohort(cohort)


@pytest.mark.parametrize("name", ["../S00/image.npy", "/etc/passwd", "..\\x", "a" * 300, ""])
def test_a_record_that_names_files_elsewhere_is_damaged(cohort, name):
    assert read_case(cohort, "S01") is not None
    path = cohort / "cases" / "S01" / "case.json"
    edit(path, checksums={name: "0"})
    assert read_case(cohort, "S01") is None and damaged_files(cohort) == ["cases/S01/case.json"]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (
            np.zeros((3, 17, 19, 17), np.float32),
            r"it holds float32 in shape \[3, 17, 19, 17\], float32 or float16 in s",
        ),
        (np.zeros((2, 17, 19, 18), np.float32), r"in shape \[2, 17, 19, 18\]"),
        (np.zeros((17, 19, 18), np.float32), r"in shape \[17, 19, 18\]"),
        (np.zeros((3, 17, 19, 18), complex), "it holds complex128"),
        (np.full((3, 17, 19, 18), None), "Python objects"),
    ],
)
def test_a_tensor_of_another_kind_is_named_by_its_case(cohort, array, said):
    from mmfusion.predict import dataset_items

    np.save(cohort / "cases" / "S02" / "image.npy", array, allow_pickle=True)
    opened = open_cohort(cohort)
    with pytest.raises(ReadError, match=rf"case S02: .*image.npy is damaged \(.*{said}.*delete .*S02 and run mmfusion"):
        dataset_items(opened, opened.cases, ["ct"])


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{", b"\x80\x04N."])
def test_a_damaged_tensor_is_named_by_its_case(cohort, raw):
    file = cohort / "cases" / "S02" / "image.npy"
    file.write_bytes(raw)
    with pytest.raises(ReadError, match="case S02: .*image.npy is damaged"):
        load_image(file, ["ct"], MODALITIES)


def test_the_sentence_is_found_in_the_traces_of_a_process_that_loads():
    text = "Caught RuntimeError in DataLoader worker process 0.\nTraceback (most recent call last):\n  ...\n"
    text += (
        "mmfusion.errors.ReadError: case S02: damaged; prepare again\n\nThe above exception ...\nRuntimeError: applying"
    )
    found = own_error(RuntimeError(text))
    assert type(found) is ReadError and str(found) == "case S02: damaged; prepare again"


@pytest.mark.slow
def test_a_tensor_that_changes_under_a_training_is_one_sentence(cohort, tmp_path, monkeypatch):
    write_tiny_cohort(tmp_path / "more", ["no", "yes"] * 8)
    monkeypatch.setattr("mmfusion.predict.batches.open_image", lambda *_: None)  # it was whole when training began
    for case in (tmp_path / "more" / "cases").iterdir():
        (case / "image.npy").write_bytes(b"")
    given = {"cohort": str(tmp_path / "more"), "run_dir": str(tmp_path / "r"), **NETWORK, "epochs": 1, "loaders": 2}
    with pytest.raises(ReadError, match=r"^case S\d+: .*image.npy is damaged .*run mmfusion prepare again$"):
        run_config("train", **given, device="cpu")


def test_damaged_metadata_leave_the_bundle_as_it_was(made, tmp_path):
    bundle = new_bundle(tmp_path / "b", modalities=list(MODALITIES))
    edit(bundle / "configs" / "metadata.json", network_data_format=[])
    with pytest.raises(
        ReadError, match=r"metadata.json is damaged.*put back the metadata as mmfusion bundle new wrote"
    ):
        pack_model(bundle, made / "run")
    assert not (bundle / "models" / "model.json").exists()


def test_files_of_the_simulation_and_the_demo(tmp_path):
    (tmp_path / "truth.json").write_text('{"subjects": [{"label": 1}]}')
    with pytest.raises(ReadError, match=r"truth.json is damaged.*simulate the study again"):
        read_truth(tmp_path)
    demo = claim(tmp_path / "demo", "demo")
    (demo / "demo.json").write_text("[]")
    with pytest.raises(ReadError, match=r"demo.json holds no fields"):
        _refuse_another(demo, {"seed": 0})


def test_landmarks_that_were_changed_are_measured_again():
    assert not any(are_landmarks(kept) for kept in (None, [], {"mr": 1}, {"mr": [1.0]}, {"mr": ["x"] * 11}))


def test_a_table_with_zero_bytes_or_a_huge_cell_is_none(tmp_path):
    for content in ("a,b\n\0,1\n", f"a,b\n{'x' * 200_000},1\n"):
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(ReadError, match=r"t\.csv is no table"):
            read_rows(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("subject,ct", f"{'a' * 300},x.nii", "subject and session have 300 characters, more than 150"),
        (
            "subject,session,ct",
            f"{'a' * 100},{'b' * 50},x.nii",
            "subject and session have 151 characters, more than 150",
        ),
        (f"subject,ct_{'a' * 60}", "A,x.nii", "is a modality, and no file can be called so"),
        ("subject,ct_a/b", "A,x.nii", "column ct_a/b is a modality, and no file can be called so"),
        ("subject,ct", f"A,{'a' * 300}.nii", "ct file aaa.*does not exist"),
        ("subject,ct", "A,~nobody-of-that-name/x.nii", "ct file ~nobody-of-that-name/x.nii does not exist"),
    ],
)
def test_what_is_too_long_or_no_name_is_a_problem_of_the_manifest(tmp_path, header, cells, said):
    (tmp_path / "x.nii").write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"{header}\n{cells}\n")
    assert any(one.level == "error" for one in check_manifest(tmp_path / "m.csv"))
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "m.csv")


def test_predictions_saved_by_a_spreadsheet_are_read(tmp_path):
    text = "case;subject;session;part;label;p_no;p_yes;predicted\r\nA;A;;test;no;0.25;0.75;yes\r\n"
    (tmp_path / "predictions.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Predictions.read(tmp_path / "predictions.csv")[0]["p_yes"] == "0.75"
