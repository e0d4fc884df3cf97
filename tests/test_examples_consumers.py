"""What takes a bundle elsewhere: its card on the Hugging Face Hub, MONAI Label, MONAI Deploy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from local_hub import local_hub
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage
from tiny_cohort import write_scans

from mmfusion.bundle import run_config, write_model_card
from mmfusion.cohort import Case
from mmfusion.errors import CohortError, VoxelError
from mmfusion.files import Predictions
from mmfusion.io import load_volume
from mmfusion.io.dicom_write import save_dicom_series
from mmfusion.predict import load_model, predict_case

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "bundles" / "feature_fusion_classification"


# Hugging Face


@pytest.fixture
def bundle(tmp_path):
    """A bundle with weights, in a folder of its own."""
    folder = shutil.copytree(PUBLISHED, tmp_path / "fusion", ignore=shutil.ignore_patterns("models"))
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What a hub on this machine was sent, and nothing that could reach another one."""
    library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with local_hub() as (url, files):
        monkeypatch.setattr(library.constants, "ENDPOINT", url)
        yield files


def metadata_of(bundle, **changed):
    """Change entries of a bundle's metadata; None takes one out."""
    path = bundle / "configs" / "metadata.json"
    facts = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


def test_the_card_is_the_front_matter_the_page_and_the_facts(bundle):
    metadata_of(bundle, version="3.2.1")
    text = write_model_card(bundle).read_text()
    front, rest = text.split("---\n\n", 1)
    assert front.startswith("---\nlicense: apache-2.0\nlibrary_name: monai\npipeline_tag: image-classification\n")
    assert rest.startswith((bundle / "docs" / "README.md").read_text().strip() + "\n\n## Facts\n")
    assert "| version | 3.2.1 |" in text and "| modalities | ct, pet, mr |" in text
    assert "| classes | 0, 1 |" in text and "not a medical device |" in text


def test_the_hubs_own_parser_reads_the_card(bundle, hub):
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_model_card(bundle))
    card.validate()
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "monai")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["monai", "medical", "mmfusion", "multimodal", "3d", "ct", "pet", "mr"]


def test_an_unknown_license_is_pointed_to_and_not_guessed(bundle, hub):
    from huggingface_hub import ModelCard

    (bundle / "LICENSE").write_text("All rights reserved.")
    data = ModelCard.load(write_model_card(bundle)).data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "see-license", "LICENSE")


def test_the_layout_is_that_of_push_to_hf_hub(bundle, hub):
    from huggingface_hub import HfApi
    from monai.bundle import push_to_hf_hub

    push_to_hf_hub("someone/fusion", "fusion", str(bundle.parent), token="none", version="0.1.0")
    by_monai = dict(hub)
    hub.clear()
    write_model_card(bundle)
    HfApi(token="none").upload_folder(repo_id="someone/fusion", folder_path=bundle)
    assert set(hub) >= {"README.md", "LICENSE", "docs/README.md", "configs/metadata.json", "models/model.pt"}
    assert hub["README.md"] == (bundle / "README.md").read_bytes()
    assert hub | {"README.md": b""} == by_monai | {"README.md": b""}
    assert b"pipeline_tag" in hub["README.md"] and b"pipeline_tag" not in by_monai["README.md"]


def test_a_card_needs_the_files_and_entries_that_it_shows(bundle):
    metadata_of(bundle, intended_use=None)
    with pytest.raises(CohortError, match=r"metadata.json has no entry 'intended_use': a model card needs it. Add it"):
        write_model_card(bundle)
    (bundle / "LICENSE").unlink()
    with pytest.raises(CohortError, match=r"fusion has no LICENSE: a model card needs it. Add it, or check the path"):
        write_model_card(bundle)


# one case in memory, which both servers call


def case_of(folder, subject, *modalities):
    """The case whose scans ``write_scans`` wrote."""
    return Case(subject, images={name: folder / f"{subject}_{name}.nii.gz" for name in modalities})


def test_one_case_in_memory_is_the_case_of_the_inference_bundle(tiny_run, tmp_path):
    subjects = {"A": ("ct", "pet", "mr"), "B": ("pet", "mr"), "C": ("ct",)}
    manifest = write_scans(tmp_path, subjects)
    run_config("inference", run_dir=str(tiny_run), manifest=str(manifest), out=str(tmp_path / "out"), device="cpu")
    model, network = load_model(tiny_run)
    for row in Predictions.read(tmp_path / "out" / "predictions.csv"):
        one = predict_case(case_of(tmp_path, row["subject"], *subjects[row["subject"]]), model, network)
        assert one.probabilities == {name: pytest.approx(float(row[f"p_{name}"]), abs=1e-5) for name in model.classes}
        assert (one.predicted, " ".join(one.modalities)) == (row["predicted"], row["modalities"])
        assert (one.status, " | ".join(one.reasons)) == (row["status"], row["reasons"])


def test_one_case_without_any_of_the_networks_modalities_is_refused(train, tmp_path):
    model, network = load_model(train(tmp_path / "run", modalities=["pet", "mr"], epochs=1))
    write_scans(tmp_path, {"A": ("ct",)})
    with pytest.raises(VoxelError, match="A: all modalities are absent; a case needs at least one"):
        predict_case(case_of(tmp_path, "A", "ct"), model, network)


# MONAI Deploy


def python_of(example):
    """The interpreter of an example's own environment; without one, the test skips."""
    variable, folder = f"MMFUSION_{example.upper()}_PYTHON", ROOT / "examples" / example
    python = Path(os.environ.get(variable, folder / ".venv" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"no environment for examples/{example}: see its README, or set {variable} to its python")
    return python


def run_app(scans, run, out):
    """The MONAI Deploy app, as its README starts it."""
    command = [python_of("monai_deploy"), ROOT / "examples" / "monai_deploy" / "app.py"]
    where = ["-i", str(scans), "-o", str(out), "-m", str(run)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *where], capture_output=True, text=True, env=environment, cwd=out.parent)


def report_in(folder):
    """The one report of a folder, and its content items as (concept, value)."""
    report = dcmread(next(folder.glob("*.dcm")))

    def walk(items):
        for item in items:
            name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
            if item.ValueType == "NUM":
                yield name, item.MeasuredValueSequence[0].FloatingPointValue
            elif item.ValueType == "CODE":
                yield name, item.ConceptCodeSequence[0].CodeMeaning
            else:
                yield name, item.get("TextValue")
            yield from walk(item.get("ContentSequence", []))

    return report, list(walk(report.ContentSequence))


def references_of(report):
    """(series, instance) of all evidence of a report."""
    return {
        (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def study_of(folder, *series, **tags):
    """A DICOM study of small scans: ``(modality, folder)`` each."""
    manifest = write_scans(folder / "nifti", {"A": ("ct", "pet", "mr")})
    for modality, name in series:
        volume = load_volume(manifest.parent / f"A_{modality}.nii.gz", modality=modality)
        kind = {"ct": "CT", "pet": "PT", "mr": "MR"}[modality]
        given = {"modality": kind, "patient_id": "S01", "study_uid": "1.2.3.4", "tags": tags}
        save_dicom_series(volume, folder / "dicom" / name, **given)
    return folder / "dicom"


@pytest.mark.slow
@pytest.mark.realdata
def test_deploy_reports_what_mmfusion_says_of_a_real_study(tiny_run, testdata, tmp_path):
    study = testdata / "sts_dicom" / "STS_004"
    done = run_app(study, tiny_run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report, content = report_in(tmp_path / "out")
    images = {"ct": study / "CT", "pet": study / "PET", "mr": study / "MR_T1"}
    said = predict_case(Case("STS_004", images=images), *load_model(tiny_run))
    assert {name: value for name, value in content if name.startswith("Probability of ")} == {
        f"Probability of {name}": pytest.approx(share, abs=1e-5) for name, share in said.probabilities.items()
    }
    headers = [dcmread(file, stop_before_pixels=True) for path in images.values() for file in path.glob("*.dcm")]
    assert references_of(report) == {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in headers}
    assert (report.StudyInstanceUID, report.PatientID) == (headers[0].StudyInstanceUID, "STS_004")
    assert ("Predicted class", said.predicted) in content and ("Comment", "Modalities used: ct, pet, mr") in content
    assert report.ContentQualification == "RESEARCH" and report.SOPClassUID == Comprehensive3DSRStorage
    assert any(str(text).startswith("Intended use: Research use only.") for name, text in content if name == "Comment")


@pytest.mark.slow
def test_deploy_takes_a_study_without_mr_and_copies_no_more_than_a_report_needs(tiny_run, tmp_path):
    planted = {"PatientComments": "fell off a bridge", "InstitutionName": "Saint Wobblesworth", "StationName": "KN-3"}
    planted |= {"OtherPatientIDs": "OTHER-8812", "SeriesDescription": "for Ada", "StudyDescription": "Pumpernickel"}
    scans = study_of(tmp_path, ("ct", "a"), ("pet", "b"), PatientName="Quill^Ada", **planted)
    done = run_app(scans, tiny_run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report, content = report_in(tmp_path / "out")
    assert ("Comment", "Modalities used: ct, pet") in content
    assert (report.PatientID, report.PatientName, report.StudyInstanceUID) == ("S01", "Quill^Ada", "1.2.3.4")
    written = next((tmp_path / "out").glob("*.dcm")).read_bytes()
    assert b"Quill^Ada" in written and not [text for text in planted.values() if text.encode() in written]


@pytest.mark.slow
def test_deploy_does_not_choose_between_two_series(tiny_run, tmp_path):
    done = run_app(study_of(tmp_path, ("ct", "a"), ("ct", "b")), tiny_run, tmp_path / "out")
    assert done.returncode == 1 and not list(tmp_path.glob("out/*"))
    assert "error: ct: 2 series of the study fit the rule, one is expected. Narrow it in rules.json" in done.stderr


# MONAI Label


@pytest.fixture
def label_server(tiny_run, tmp_path):
    """A function (studies) that starts the app's server and returns a function (image id) to status and answer."""
    processes, python = [], python_of("monai_label")

    def start(studies):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        app = shutil.copytree(ROOT / "examples" / "monai_label", tmp_path / "app")  # the server writes into it
        command = [python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "model", tiny_run]
        command += ["--conf", "python", sys.executable]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        log = (tmp_path / "log.txt").open("w")
        processes.append((subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path), log))

        def ask(image):
            query = urlencode({"image": image, "output": "json"})
            request = Request(f"http://127.0.0.1:{port}/infer/fusion?{query}", method="POST")
            try:
                with urlopen(request) as answer:
                    return answer.status, json.load(answer)
            except HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        for _ in range(600):
            assert processes[0][0].poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
            try:
                urlopen(f"http://127.0.0.1:{port}/info/").close()
                return ask
            except OSError:
                time.sleep(0.2)
        raise AssertionError((tmp_path / "log.txt").read_text()[-2000:])

    yield start
    for process, log in processes:
        process.terminate()
        process.wait()
        log.close()


@pytest.mark.slow
def test_label_finds_the_siblings_and_says_what_mmfusion_says(label_server, tiny_run, tmp_path):
    subjects = {"A": ("ct", "pet", "mr"), "B_2": ("pet", "mr"), "D": ("ct",)}
    studies = write_scans(tmp_path / "studies", subjects).parent
    dicom = study_of(tmp_path, ("ct", "C_ct"), ("pet", "C_pet"))
    for folder in dicom.iterdir():
        folder.rename(studies / folder.name)
    shutil.copy(studies / "D_ct.nii.gz", studies / "D_ct.mha")
    ask, (model, network) = label_server(studies), load_model(tiny_run)
    cases = {"A_mr": case_of(studies, "A", "ct", "pet", "mr"), "B_2_pet": case_of(studies, "B_2", "pet", "mr")}
    cases["C"] = Case("C", images={"ct": studies / "C_ct", "pet": studies / "C_pet"})
    for image, case in cases.items():
        status, answer = ask(image)
        said = predict_case(case, model, network)
        assert status == 200 and answer["modalities"] == list(said.modalities), answer
        assert {one["label"]: one["score"] for one in answer["prediction"]} == pytest.approx(dict(said.probabilities))
        assert (answer["predicted"], answer["status"]) == (said.predicted, said.status)
        assert answer["intended_use"].startswith("Research use only.")
    status, text = ask("D_ct")
    assert status == 422 and "subject D has two scans for ct: D_ct.mha, D_ct.nii.gz; keep one" in text
    assert "the image is not in the folder of studies" in ask(str(tiny_run / "model.pt"))[1]
