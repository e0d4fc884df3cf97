"""The pages as a reader and a browser get them: well-formed, self-contained, escaped, worst first, right numbers."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_folders import write_cohort, write_csv, write_run

from mmfusion.errors import CohortError
from mmfusion.report import qc, write_qc, write_report
from mmfusion.report.files import read_rows, score_of
from mmfusion.report.page import Html, element, text
from mmfusion.report.result import read_result
from mmfusion.report.words import summary, warnings

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart; refuses tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [given[key] for key in ("src", "href") if key in given]
        self.ids += [given["id"]] if "id" in given else []
        self.images += [given] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("study") / "cohort", cases=24)


@pytest.fixture(scope="module")
def run(cohort) -> Path:
    ceilings = {"ct": 0.5, "pet": 0.83, "all": 0.941, "a comment": "as drawn"}
    return write_run(cohort.parent / "a", cohort, simulated=True, ceilings=ceilings, notes=["Best <epoch> 7."])


@pytest.fixture(scope="module")
def report(run) -> Page:
    return Page(write_report(run))


def test_pages_need_nothing_from_elsewhere(cohort, report):
    for page in (Page(write_qc(cohort)), report):
        assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
        assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
        assert page.images and all(len(image["alt"]) > 20 for image in page.images)
        assert "script" not in page.tags and page.tags.count("h1") == 1
        assert page.tags.count("caption") <= page.tags.count("table") and "th" in page.tags
    style = Path(write_qc(cohort)).read_text().split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_qc_has_the_worst_first(cohort):
    page = Page(write_qc(cohort))
    status = re.findall(r"c\d{3}_1 (failed|doubtful|ok)", page.text.split("All cases")[0])
    assert status == ["failed"] * 6 + ["doubtful"] * 6 + ["ok"] * 12
    scores = [float(s) for s in re.findall(r"pet ok (0\.\d+)", page.text)]
    assert scores == [0.35] * 6 + [0.62] * 6 + [0.91] * 6
    assert "24 cases of 24 subjects: 12 ok, 6 doubtful, 6 failed." in page.text


def test_qc_says_what_was_measured(cohort):
    page = Page(write_qc(cohort))
    for words in ("0.213 → 0.874", "97 %", "12.3", "2.5", "0.98 × 0.98 × 3.27", "LPS", "SUVbw"):
        assert words in page.text
    assert "steps at the body contour mean misalignment" in page.text
    assert "translation of 61 mm is large" in page.text
    assert len(page.images) == 18 * 4


def test_strings_of_the_study_are_escaped(cohort):
    raw = write_qc(cohort).read_text(encoding="utf-8")
    assert "<b>017</b>" not in raw and "&lt;b&gt;017&lt;/b&gt;" in raw and "A&amp;B" in raw


def test_pictures_stop_where_the_page_would_be_too_large(cohort, monkeypatch):
    monkeypatch.setattr(qc, "PICTURED", 8)
    page = Page(write_qc(cohort))
    assert "16 cases with higher scores have no pictures here" in page.text and len(page.images) == 8
    monkeypatch.setattr(qc, "BYTES", 30_000)
    assert len(Page(write_qc(cohort)).images) < 8


def test_a_cohort_without_pictures_still_has_its_table(tmp_path):
    cohort = write_cohort(tmp_path / "cohort")
    (cohort / "cases" / "c000_1" / "qc.npz").write_bytes(b"torn")
    (cohort / "cases" / "c001_1" / "qc.npz").unlink()
    (cohort / "options.json").unlink()
    with np.load(cohort / "cases" / "c002_1" / "qc.npz") as arrays:
        kept = {name: array for name, array in arrays.items() if "histogram" not in name}
    np.savez(cohort / "cases" / "c002_1" / "qc.npz", **kept)
    page = Page(write_qc(cohort))
    assert len(page.images) == 2 and all(f"c00{i}_1" in page.text for i in range(4))


def test_a_kept_position_is_shown_once(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=1)
    path = cohort / "cases" / "c000_1" / "qc.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name.replace("before", "after")] for name in arrays.files}
    np.savez(path, **kept)
    page = Page(write_qc(cohort))
    assert len(page.images) == 2 and "ct and pet, position kept, so the same" in page.text


def test_the_template_of_a_case_is_shown_and_counts(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=1)
    path = cohort / "cases" / "c000_1" / "qc.npz"
    with np.load(path) as arrays:
        more = {key.replace("after_pet", "template"): array for key, array in arrays.items() if "after_pet" in key}
        np.savez(path, **arrays, **more)
    (row,) = read_rows(cohort / "cases.csv")
    row |= {"template": "mni152", "mni152_verdict": "ok", "mni152_score": "0.571", "mni152_rotation_deg": "8.4"}
    write_csv(cohort / "cases.csv", [row])
    page = Page(write_qc(cohort))
    assert len(page.images) == 6 and "mni152 and ct, after registration: axial, coronal, sagittal" in page.text
    assert "mni152 ok 0.571" in page.text and "8.4" in page.text and score_of(row) == 0.571


def test_report_has_the_numbers_of_the_metrics(run, report):
    metrics = json.loads((run / "metrics.json").read_text())
    for estimate in metrics["metrics"].values():
        assert f"{estimate['value']:.3f} {estimate['low']:.3f} to {estimate['high']:.3f}" in report.text
    for modality, entry in metrics["comparison"].items():
        gap = entry["difference"]
        assert f"{modality} alone {entry['auc']['value']:.3f}" in report.text
        assert f"{gap['value']:.3f} {gap['low']:.3f} to {gap['high']:.3f}" in report.text
    assert "0.941" in report.text and "Ceiling of a comment: as drawn" in report.text


def test_report_says_what_it_is_in_words(run, report):
    auc = json.loads((run / "metrics.json").read_text())["metrics"]["auc"]
    assert f"single-level fusion of ct and pet reached AUC {auc['value']:.3f}" in report.text
    assert "On 16 test cases of 16 subjects" in report.text
    assert "Research use only" in report.text and "Simulated data" in report.text
    assert "Best <epoch> 7." in report.text
    assert re.search(r"Few subjects \(\d+ of class class0, \d+ of class class1\)", report.text)
    wanted = ["Warnings", "Patients", "Performance on the test part", "Each modality alone", "Wrong cases",
              "Registration", "Training", "Options and versions"]  # fmt: skip
    assert [name for name in report.headings if name in wanted] == wanted


def test_report_tells_the_flow_of_patients(report):
    assert "24 cases in the cohort 6 failed in preparation, left out 6 with a doubtful registration" in report.text
    assert "4 cases for training 4 cases for validation 16 cases for test" in report.text
    assert "c003_1: subject <b>017</b>: ct file" in report.text
    assert "part cases subjects label 0 label 1 without ct without pet" in report.text


def test_report_shows_the_worst_and_the_median_registration(report):
    cards = [image["alt"] for image in report.images if "Checkerboard" in image["alt"] and "after" in image["alt"]]
    assert len(cards) == 2 and "c001_1" in cards[0] and "c014_1" in cards[1]


def test_confusion_and_mistakes_use_the_threshold(run, report):
    text_of = (run / "predictions.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in text_of if ",test," in line]
    right = sum((float(row[6]) >= 0.45) == (row[4] == "class1") for row in rows)
    assert any(f"Confusion matrix: {right} of 16 cases are right" in image["alt"] for image in report.images)
    assert f"{16 - right} of 16 cases, the most confident mistakes first" in report.text


def test_three_classes(cohort):
    page = Page(write_report(write_run(cohort.parent / "three", cohort, classes=3)))
    assert "sensitivity" not in [cell.strip() for cell in page.words]
    assert any("ROC curves of class0, class1, class2" in image["alt"] for image in page.images)
    assert "Simulated data" not in page.text


def test_a_bare_run_has_a_report(tmp_path):
    run = write_run(tmp_path / "bare", tmp_path / "nowhere", comparison={}, part="validation", threshold=None)
    for name in ("split.csv", "history.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "single")
    page = Page(write_report(run))
    assert "These are validation cases" in page.text and "The cohort folder was not found" in page.text
    assert "Each modality alone" not in page.headings and "Training" not in page.headings


def test_one_class_and_perfect_predictions(tmp_path):
    run = write_run(tmp_path / "one", tmp_path)
    rows = [
        {"case": f"<{i}>", "subject": i, "part": "test", "label": "class1", "p_class0": 0.2, "p_class1": 0.8}
        for i in range(5)
    ]
    write_csv(run / "predictions.csv", rows)
    none = {"value": None, "low": None, "high": None, "n": 5, "method": "", "reason": "one class only"}
    entry = {"auc": none, "difference": none}
    written = {"part": "test", "metrics": {"auc": none}, "comparison": {"ct": entry, "pet": entry}}
    (run / "metrics.json").write_text(json.dumps(written))
    page = Page(write_report(run))
    assert "no AUC can be given for single-level fusion of ct and pet: one class only" in page.text
    assert "None." in page.text and not any("Forest" in image["alt"] for image in page.images)


@pytest.mark.parametrize(("low", "high", "words"), [
    (0.01, 0.2, "the interval lies above zero"),
    (-0.2, -0.01, "fusion was worse here"),
    (-0.1, 0.1, "do not show which of the two is better"),
    (None, None, "The best modality alone, ct, reached 0.700."),
])  # fmt: skip
def test_the_verdict_follows_the_interval(tmp_path, low, high, words):
    entry = {"auc": {"value": 0.7}, "difference": {"value": 0.05, "low": low, "high": high}}
    run = write_run(tmp_path / "a", tmp_path, comparison={"ct": entry, "pet": {"auc": {"value": 0.6}}})
    assert words in summary(read_result(run))


def test_leakage_is_a_warning(tmp_path):
    run = write_run(tmp_path / "a", tmp_path)
    write_csv(run / "split.csv", [{"case": p, "subject": "s9", "part": p} for p in ("train", "test")])
    assert "Leakage: subjects in more than one part of the split: s9." in warnings(read_result(run))


def test_folders_that_are_not_ready(tmp_path):
    with pytest.raises(
        CohortError, match=r"a has no predictions.csv: run the bundle's evaluate.yaml with --run .*a first"
    ):
        write_report(tmp_path / "a")
    with pytest.raises(CohortError, match=r"has no cases.csv: run `mmfusion prepare"):
        write_qc(tmp_path)
    run = write_run(tmp_path / "b", tmp_path)
    (run / "metrics.json").unlink()
    with pytest.raises(CohortError, match=r"b has no metrics.json: run the bundle's evaluate.yaml"):
        write_report(run)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("metrics.json", "{", "is no JSON"),
    ("metrics.json", "[]", "holds a list, expected an object"),
    ("metrics.json", '{"part": "train2"}', "no rows of part 'train2' with a label"),
    ("predictions.csv", "case,part,label\n1,test,0\n", "columns case, part, label; expected p_<class>"),
    ("predictions.csv", "case,part,label,p_0,p_1\n7,test,x,0.5,0.5\n", "case 7: found 'x', expected a label of 0, 1"),
    ("predictions.csv", "case,part,label,p_0,p_1\n7,test,1,0.5,\n", r"case 7: found \[0.5, None\]"),
    ("predictions.csv", b"\xff\xfe\x00", "is no CSV table"),
])  # fmt: skip
def test_files_that_are_broken(tmp_path, name, content, message):
    run = write_run(tmp_path / "a", tmp_path)
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CohortError, match=message):
        write_report(run)


def test_a_broken_single_run_is_left_out(tmp_path):
    run = write_run(tmp_path / "a", tmp_path)
    (run / "single" / "ct" / "predictions.csv").write_text("case,part,label\n1,test,0\n")
    alts = [image["alt"] for image in Page(write_report(run)).images]
    assert any(alt.startswith("ROC curves of fusion, pet alone.") for alt in alts)


def test_pages_are_the_same_twice(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert not list(run.glob(".*"))


def test_elements_escape_all_but_html():
    assert element("p", "<&>", class_='"x"') == '<p class="&quot;x&quot;">&lt;&amp;&gt;</p>'
    assert element("p", Html("<b>1</b>")) == "<p><b>1</b></p>"
    assert (text(None), text(0.123456), text([1, "<"])) == ("–", "0.1235", "1, &lt;")


@pytest.mark.slow
def test_a_browser_shows_the_page_without_complaint(run, tmp_path):
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no chromium to render with")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom",
               "--enable-logging=stderr", "--v=0", write_report(run).resolve().as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr and "Report of a" in done.stdout
    assert done.stdout.count("<img") == write_report(run).read_text().count("<img")
