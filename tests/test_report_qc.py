"""qc.html as a reader and a browser get it: every case, worst first, filtered and sorted, with its pictures."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from report_folders import write_cohort, write_csv, write_large_cohort
from report_reader import Page, in_browser, shown_cases

from mmfusion.errors import CohortError
from mmfusion.files import MARK, claim, read_rows
from mmfusion.report import qc, write_qc
from mmfusion.report.files import read_pictures, score_of, verdict_of
from mmfusion.report.numbers import NUMBERS


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("study") / "cohort", cases=24)


def write_rows(cohort: Path, changes: list[dict]) -> None:
    """Change the rows of a cohort's table, the first ones first; rows beyond the changes go."""
    rows = read_rows(cohort / "cases.csv")
    write_csv(cohort / "cases.csv", [row | change for row, change in zip(rows, changes, strict=False)])


def files_of(cohort: Path) -> dict[str, int]:
    """The picture files beside the page, with their times of change."""
    return {path.name: path.stat().st_mtime_ns for path in (cohort / "qc").glob("*")}


def test_the_page_needs_nothing_from_elsewhere(cohort):
    page = Page(write_qc(cohort))
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert page.images and all(len(image["alt"]) > 20 for image in page.images)
    assert page.tags.count("script") == 1 and page.tags.count("h1") == 1 and not page.unlabeled
    raw = (cohort / "qc.html").read_text()
    assert not re.search(r"url\(|@import|src=\"http|fetch\(|import\(|innerHTML|eval", raw)
    assert not (cohort / "qc").exists() and [path.name for path in cohort.glob(".*")] == [MARK]


def test_every_case_has_a_card_the_worst_first(cohort):
    page = Page(write_qc(cohort))
    status = re.findall(r"c\d{3}_1 (failed|doubtful|ok) subject", page.text)
    assert status == ["failed"] * 6 + ["doubtful"] * 6 + ["ok"] * 12
    scores = [float(s) for s in re.findall(r"pet ok (0\.\d+)", page.text)]
    assert scores == [0.35] * 6 + [0.62] * 6 + [0.91] * 6
    assert "24 cases of 24 subjects: 12 ok, 6 doubtful, 6 failed." in page.text


def test_it_says_what_was_measured(cohort):
    page = Page(write_qc(cohort))
    for words in ("0.213 → 0.874", "97 %", "12.3", "2.5", "0.98 × 0.98 × 3.27", "LPS", "SUVbw"):
        assert words in page.text
    assert "steps at the body contour mean misalignment" in page.text
    assert "translation of 61 mm is large" in page.text
    assert len(page.images) == 18 * 2


def test_strings_of_the_study_are_harmless(tmp_path):
    cohort = write_cohort(tmp_path / "cohort")
    bad = "<script>document.title = 'bad'</script>"
    write_rows(cohort, [{"subject": bad, "site": f'"{bad}', "label": bad, "pet_units": bad, "case": bad}] + [{}] * 3)
    raw = write_qc(cohort).read_text(encoding="utf-8")
    assert raw.count("<script") == 1 and "<b>017</b>" not in raw and "&lt;b&gt;017&lt;/b&gt;" in raw
    assert raw.count("&lt;script&gt;") >= 8 and "A&amp;B" in raw and not Page(cohort / "qc.html").unlabeled


@pytest.mark.parametrize("case", ["..", ".", "", "../cases/c000_1", "c000_1/../c000_1"])
def test_pictures_are_read_from_the_folder_of_the_case_only(tmp_path, case):
    cohort = write_cohort(tmp_path / "cohort", cases=1)
    for place in (cohort, cohort / "cases"):
        (place / "qc.npz").write_bytes((cohort / "cases" / "c000_1" / "qc.npz").read_bytes())
    assert read_pictures(cohort, case) == {} and read_pictures(cohort, "c000_1")


def test_columns_are_those_that_the_cohort_has(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=2)
    plain = Page(write_qc(cohort)).text
    assert "mask outside" not in plain and "folding" not in plain and "split" not in plain and "site A&B" in plain
    more = {"foreground_outside": "0.123", "mask_outside": "0", "pet_folding": "0.0", "split": "train"}
    write_rows(cohort, [more, {"split": "test", "pet_coverage": "0.4", "ct_coverage": "0.9", "pet_folding": "0.01"}])
    page = Page(write_qc(cohort)).text
    assert "split train · site A&B · foreground outside 12.3 % · mask outside 0.0 %" in page
    assert "grid seen" in page and "any test (1) train (1)" in page and "1.00 %" in page and "0.00 %" not in page


def test_the_worst_of_the_modalities_stands_for_the_case():
    row = {"modalities": "ct pet mr", "reference": "ct", "template": "mni152", "mni152_motion_mm": "90"}
    row |= {"pet_motion_mm": "3.25", "mr_motion_mm": "12.5", "pet_overlap": "0.5", "mr_overlap": "1.0"}
    row |= {
        "pet_score": "x",
        "mni152_score": "0.4",
        "mr_score": "0.9",
        "mr_verdict": "ok",
        "mni152_verdict": "doubtful",
    }
    found = {one.key: one.of_case(row) for one in NUMBERS}
    assert (found["motion_mm"], found["overlap"], found["score"]) == ("12.5", "50 %", "0.400")
    assert found["rotation_deg"] is None and verdict_of(row) == "doubtful" and verdict_of({}) is None


def test_clipped_pet_is_a_number_of_its_case_and_a_sentence(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=3)
    rows = [
        {"status": "done", "reasons": "", "modalities": "ct pet", "pet_clipped": share}
        for share in ("0.31", "0.05", "0")
    ]
    write_rows(cohort, rows)
    (cohort / "options.json").write_text('{"suv_max": 10.0}')
    hot = "hot volume (SUV of 4 or more; brain, heart and bladder count, too)"
    words = "lies above suv_max 10 and is clipped (c000_1: 31%): larger --suv-max"
    page = Page(write_qc(cohort)).text
    assert "31.0 %" in page and "5.0 %" in page and "0.0 %" not in page
    assert f"in 1 of 3 cases more than 5% of the {hot} {words}" in page
    write_rows(cohort, [row | {"mask_outside": mask} for row, mask in zip(rows, ("0", "0.1", ""), strict=True)])
    assert f"in 1 of 2 cases more than 5% of the mask {words}" in Page(write_qc(cohort)).text
    write_rows(cohort, [{"pet_clipped": "0.04"}] * 3)
    assert "clipped (" not in Page(write_qc(cohort)).text


def test_a_cohort_without_pictures_still_has_its_cards(tmp_path):
    cohort = write_cohort(tmp_path / "cohort")
    (cohort / "cases" / "c000_1" / "qc.npz").write_bytes(b"torn")
    (cohort / "cases" / "c001_1" / "qc.npz").unlink()
    (cohort / "options.json").unlink()
    with np.load(cohort / "cases" / "c002_1" / "qc.npz") as arrays:
        kept = {name: array for name, array in arrays.items() if "histogram" not in name}
    np.savez(cohort / "cases" / "c002_1" / "qc.npz", **kept)
    page = Page(write_qc(cohort))
    assert len(page.images) == 2 and all(f"case-c00{i}_1" in page.ids for i in range(4))


def test_a_kept_position_is_shown_once(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=1)
    path = cohort / "cases" / "c000_1" / "qc.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name.replace("before", "after")] for name in arrays.files}
    np.savez(path, **kept)
    page = Page(write_qc(cohort))
    assert len(page.images) == 1 and "ct and pet, position kept, so the same" in page.text


def test_the_template_of_a_case_is_shown_and_counts(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", cases=1)
    path = cohort / "cases" / "c000_1" / "qc.npz"
    with np.load(path) as arrays:
        more = {key.replace("after_pet", "template"): array for key, array in arrays.items() if "after_pet" in key}
        np.savez(path, **arrays, **more)
    row = {"template": "mni152", "mni152_verdict": "ok", "mni152_score": "0.571", "mni152_rotation_deg": "8.4"}
    write_rows(cohort, [row])
    page = Page(write_qc(cohort))
    assert len(page.images) == 3 and "mni152 and ct, after registration" in page.text
    assert "mni152 ok 0.571" in page.text and "8.4" in page.text
    assert score_of(read_rows(cohort / "cases.csv")[0]) == 0.571


def test_pictures_of_a_large_cohort_lie_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(qc, "INSIDE", 3)
    cohort = write_cohort(tmp_path / "cohort", cases=7)
    images = Page(write_qc(cohort)).images
    assert sorted(image["src"] for image in images) == sorted(f"qc/{name}" for name in files_of(cohort))
    assert len(images) == 6 * 2 and "base64" not in (cohort / "qc.html").read_text()
    for image in images:
        size = struct.unpack(">II", (cohort / image["src"]).read_bytes()[16:24])
        assert (int(image["width"]), int(image["height"])) == size and image["loading"] == "lazy"


def test_picture_files_follow_the_cohort(tmp_path, monkeypatch):
    monkeypatch.setattr(qc, "INSIDE", 3)
    cohort = write_cohort(tmp_path / "cohort", cases=7)
    write_qc(cohort)
    first = files_of(cohort)
    write_qc(cohort)
    assert files_of(cohort) == first  # nothing is drawn twice
    path = cohort / "cases" / "c004_1" / "qc.npz"
    path.write_bytes((cohort / "cases" / "c005_1" / "qc.npz").read_bytes())
    (cohort / "qc" / "notes.txt").write_text("of the reader")
    write_rows(cohort, [{}] * 6)  # c006_1 is gone
    write_qc(cohort)
    second = files_of(cohort)
    gone, new = set(first) - set(second), set(second) - set(first) - {"notes.txt"}
    assert {name[:6] for name in gone} == {"c004_1", "c006_1"} and {name[:6] for name in new} == {"c004_1"}
    assert all(second[name] == first[name] for name in first if name not in gone)
    write_rows(cohort, [{}] * 3)
    assert "base64" in write_qc(cohort).read_text() and list(files_of(cohort)) == ["notes.txt"]
    (cohort / "qc" / "notes.txt").unlink()
    write_qc(cohort)
    assert not (cohort / "qc").exists()


def test_the_docs_name_what_an_address_can_hold():
    text = (Path(__file__).parent.parent / "docs" / "preparing.md").read_text()
    assert all(f"`{column.key}`" in text for column in qc.COLUMNS if column.use)


def test_an_empty_cohort_is_an_empty_page(tmp_path):
    claim(tmp_path, "cohort")
    (tmp_path / "cases.csv").write_text("case,subject,status,modalities\n")
    assert "0 cases of 0 subjects: 0 ok, 0 doubtful, 0 failed." in Page(write_qc(tmp_path)).text


def test_a_cohort_without_a_table(tmp_path):
    with pytest.raises(CohortError, match=r"has no cases.csv: run `mmfusion prepare"):
        write_qc(tmp_path)


# in a browser


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Four cases whose motions are 5, 40, none (failed), 20 mm, and whose sites are Oslo, A&B, A&B, A&B."""
    cohort = write_cohort(tmp_path_factory.mktemp("measured") / "cohort")
    changes = [{"pet_motion_mm": "5"}, {"pet_motion_mm": "40"}, {"pet_motion_mm": "20"}, {"pet_motion_mm": ""}]
    write_rows(cohort, [changes[0] | {"site": "Oslo"}, *changes[1:]])
    write_qc(cohort)
    return cohort / "qc.html"


@pytest.mark.slow
@pytest.mark.parametrize(("fragment", "cases"), [
    ("", ["c003_1", "c001_1", "c002_1", "c000_1"]),
    ("#status=failed", ["c003_1"]),
    ("#status=ok&status=doubtful&sort=motion_mm", ["c001_1", "c002_1", "c000_1"]),
    ("#sort=motion_mm&reverse=1", ["c000_1", "c002_1", "c001_1", "c003_1"]),
    ("#site=A%26B&sort=case", ["c001_1", "c002_1", "c003_1"]),
    ("#find=61+MM&label=1", ["c001_1"]),
    ("#status=ok&site=Nowhere&verdict=ok&sort=score", ["c002_1", "c000_1"]),
    ("#case-c002_1", ["c003_1", "c001_1", "c002_1", "c000_1"]),
])  # fmt: skip
def test_the_address_filters_and_sorts(measured, tmp_path, fragment, cases):
    dom = in_browser(measured, tmp_path, fragment)
    assert shown_cases(dom) == cases
    assert re.search(r'<output id="shown"[^>]*>([^<]*)', dom)[1] == f"{len(cases)} of 4 cases"
    rows = re.findall(r'<tr>\s*<th scope="row"><a href="#case-([^"]+)"', dom)
    assert rows == cases and 'aria-label="Filter and sort">' in dom  # not hidden


@pytest.mark.slow
def test_hands_change_the_address(measured, tmp_path):
    steps = """<script>
      const head = document.querySelector("[data-key=motion_mm] button"), form = document.forms.choose;
      head.click(); head.click();
      form.elements.find.value = "PET"; form.elements.find.dispatchEvent(new Event("input", { bubbles: true }));
      form.elements.status[0].click();
      document.title = location.hash;
      setTimeout(() => { document.getElementById("clear").click(); head.click(); }, 50);
      setTimeout(() => { document.title += location.hash; }, 100);
    </script></body>"""
    page = measured.with_name("steps.html")
    page.write_text(measured.read_text().replace("</body>", steps))
    dom = in_browser(page, tmp_path, "", "--virtual-time-budget=1000")
    assert "<title>#status=failed&amp;find=PET&amp;sort=motion_mm&amp;reverse=1#sort=motion_mm</title>" in dom
    assert dom.count(' aria-sort="') == 1 and re.search(r'data-key="motion_mm"[^>]* aria-sort="descending"', dom)
    assert shown_cases(dom) == ["c001_1", "c002_1", "c000_1", "c003_1"]


@pytest.mark.slow
def test_a_thousand_cases(tmp_path):
    cohort = write_large_cohort(tmp_path / "cohort")
    page = write_qc(cohort)
    pictures = files_of(cohort)
    assert len(pictures) == 975 * 4 and page.stat().st_size < 6e6
    assert sum((cohort / "qc" / name).stat().st_size for name in pictures) < 200e6
    count = """<script>setTimeout(() => {
      const there = [...document.images].filter((image) => image.complete && image.naturalWidth);
      document.title = `${there.length} ${there.every((image) => image.naturalWidth == image.getAttribute("width"))}`;
    }, 2000);</script></body>"""
    counting = page.with_name("counting.html")
    counting.write_text(page.read_text().replace("</body>", count))
    usual = "--blink-settings=lazyLoadEnabled=true"  # of a window; headless is without
    dom = in_browser(counting, tmp_path, "#status=ok&sort=motion_mm", usual, "--virtual-time-budget=5000")
    assert shown_cases(dom)[:2] == ["c0321", "c0642"] and "975 of 1000 cases" in dom
    loaded, as_announced = re.search(r"<title>(\d+) (\w+)</title>", dom).groups()
    assert 2 <= int(loaded) < 200 and as_announced == "true"  # of 3900: the others come when they are reached
