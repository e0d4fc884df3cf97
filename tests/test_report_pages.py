"""The report of a run as a reader and a browser get it: well-formed, self-contained, escaped, right numbers."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_folders import write_cohort, write_csv, write_run
from report_reader import Page, in_browser

from mmfusion.errors import CohortError, ReadError
from mmfusion.files import MARK, read_rows
from mmfusion.report import write_qc, write_report
from mmfusion.report.page import Html, element, text, void
from mmfusion.report.result import read_result
from mmfusion.report.words import summary, warnings


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


def test_the_page_needs_nothing_from_elsewhere(run, report):
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in report.links)
    assert all(link[1:] in report.ids for link in report.links if link.startswith("#"))
    assert report.images and all(len(image["alt"]) > 20 for image in report.images)
    assert "script" not in report.tags and report.tags.count("h1") == 1
    assert report.tags.count("caption") <= report.tags.count("table") and "th" in report.tags
    style = (run / "report.html").read_text().split("</style>")[0]
    assert "url(" not in style and "@import" not in style


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
    assert "24 cases in the cohort 6 failed in preparation, left out 6 doubtful 4 cases" in report.text
    assert "4 cases for training 4 cases for validation 16 cases for test" in report.text
    assert "c003_1: subject <b>017</b>: ct file" in report.text
    assert "part cases subjects label 0 label 1 without ct without pet" in report.text


def test_report_counts_doubtful_cases_and_shows_the_auc_without_them(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=24)
    rows = read_rows(cohort / "cases.csv")
    doubtful = [row for row in rows if row["status"] == "doubtful"]
    causes = ("registration", "registration mask", "coverage", "", "mask", "reading")
    for row, words in zip(doubtful, causes, strict=True):
        row["causes"] = words
    doubtful[-1] |= {"status": "accepted", "accepted": "2026-01-02T03:04:05+00:00"}
    write_csv(cohort / "cases.csv", rows)
    split = read_rows(write_run(tmp_path / "a", cohort) / "split.csv")
    tested = {row["case"] for row in split if row["part"] == "test"}
    sure = [row["case"] for row in doubtful[:-1] if row["case"] in tested]
    auc = {"value": 0.8126, "low": 0.5, "high": 0.9, "n": 12}
    for named, outdated in ((sure, False), (sure[:1], True)):
        entry = {"doubtful": named, "auc": auc}
        page = Page(write_report(write_run(tmp_path / "a", cohort, without_doubtful=entry)))
        assert "Doubtful cases" in page.headings and "5 doubtful 1 doubtful, and accepted by a person" in page.text
        table = page.text.split("in doubt for cohort")[1].split("AUC value")[0]
        shown = "registration|mask|coverage|not recorded|all doubtful cases|by a person"
        found = re.findall(rf"({shown}) (\d) \d \d \d", table)
        assert [int(count) for _, count in found] == [2, 2, 1, 1, 5, 1] and "reading" not in table
        assert f"without the {len(named)} doubtful 0.813 0.500 to 0.900 12 –" in page.text
        assert ("Evaluate again" in page.text) == outdated


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
    (None, None, "reached the highest AUC on these same cases, 0.700, which flatters it a little."),
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
    with pytest.raises(CohortError, match=r"a has no predictions.csv: run mmfusion evaluate .*a first"):
        write_report(tmp_path / "a")
    with pytest.raises(CohortError, match=r"has no cases.csv: run `mmfusion prepare"):
        write_qc(tmp_path)
    run = write_run(tmp_path / "b", tmp_path)
    (run / "metrics.json").unlink()
    with pytest.raises(CohortError, match=r"b has no metrics.json: run mmfusion evaluate"):
        write_report(run)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("metrics.json", "{", "is not JSON, or is damaged"),
    ("metrics.json", "[]", "holds no fields"),
    ("metrics.json", '{"part": "train2"}', "no rows of part 'train2' with a label"),
    ("predictions.csv", "case,part,label\n1,test,0\n", "columns case, part, label; expected p_<class>"),
    ("predictions.csv", "case,part,label,p_0,p_1\n7,test,x,0.5,0.5\n", "case 7: found 'x', expected a label of 0, 1"),
    ("predictions.csv", "case,part,label,p_0,p_1\n7,test,1,0.5,\n", r"case 7: found \['0.5', ''\]"),
    ("predictions.csv", b"\xff\xfe\x00", "is not text in UTF-8"),
])  # fmt: skip
def test_files_that_are_broken(tmp_path, name, content, message):
    run = write_run(tmp_path / "a", tmp_path)
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((CohortError, ReadError), match=message):
        write_report(run)


def test_a_broken_single_run_is_left_out(tmp_path):
    run = write_run(tmp_path / "a", tmp_path)
    (run / "single" / "ct" / "predictions.csv").write_text("case,part,label\n1,test,0\n")
    alts = [image["alt"] for image in Page(write_report(run)).images]
    assert any(alt.startswith("ROC curves of fusion, pet alone.") for alt in alts)


def test_pages_are_the_same_twice(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert [path.name for path in run.glob(".*")] == [MARK]


def test_elements_escape_all_but_html():
    assert element("p", "<&>", class_='"x"') == '<p class="&quot;x&quot;">&lt;&amp;&gt;</p>'
    assert element("p", Html("<b>1</b>")) == "<p><b>1</b></p>"
    assert (text(None), text(0.123456), text([1, "<"])) == ("–", "0.1235", "1, &lt;")
    assert void("input", value="", data_use="max", id="") == '<input value="" data-use="max">'


@pytest.mark.slow
def test_a_browser_shows_the_page_without_complaint(run, tmp_path):
    dom = in_browser(write_report(run), tmp_path)
    assert "Report of a" in dom and dom.count("<img") == write_report(run).read_text().count("<img")
