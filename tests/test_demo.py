"""The demo: the whole job on simulated subjects, resumed, and honest about what it is."""

import json

import numpy as np
import pytest

from mmfusion import demo
from mmfusion.cli import main
from mmfusion.cohort.simulate import draw_subjects
from mmfusion.errors import CohortError
from mmfusion.options import resolve
from mmfusion.prepare import open_cohort
from mmfusion.prepare.simulated import simulate_onto_grid

OPTIONS = resolve({**demo.GRID, "modalities": list(demo.MODALITIES)}, "case")
TINY = {"subjects": 4, "train_subjects": 40, "test_subjects": 16, "epochs": 1, "threads": 1}


def _end(text):
    """The table that a demo ends with."""
    return text[text.index("Trained on") : text.index("took")]


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_a_folder_holds_one_demo(tmp_path):
    demo._refuse_another(tmp_path, {"seed": 0, "train": 40})
    demo._refuse_another(tmp_path, {"seed": 0, "train": 40})
    with pytest.raises(CohortError, match="holds a demo with seed 0; choose another --out"):
        demo._refuse_another(tmp_path, {"seed": 1, "train": 40})


def test_table_shows_a_dash_where_there_is_no_interval():
    nothing = {"value": 1.0, "low": None, "high": None, "n": 4}
    metrics = {"metrics": {"auc": nothing}, "comparison": {"pet": {"auc": nothing, "difference": nothing}}}
    registered = {"pairs": 3, "median_mm": 0.5, "worst_mm": 3.0, "within_2_mm": 2 / 3, "beyond_2_mm_not_doubtful": 1}
    raw = {"auc": {"value": None, "low": None, "high": None, "n": 0}, "ceiling": 0.9, "registration": registered}
    facts = {"ceilings": {"all": 0.9, "pet": 0.8}, "raw": raw}
    text = demo._table(metrics, facts, 40, 16, 4)
    assert "  fusion             1.000 [-, -]             4   0.900\n" in text
    assert "pet alone" in text and "+1.000 [-, -]" in text and "67% within 2 mm" in text


def test_too_few_subjects_are_one_sentence(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--subjects", "3"]) == 1
    assert capsys.readouterr().err == "error: option subjects must be 8 or more, found 3\n"


@pytest.mark.slow
def test_the_whole_demo_and_again(tmp_path, capsys):
    assert demo.run_demo(tmp_path, **TINY) == 0
    text = capsys.readouterr().out
    assert text.startswith("SIMULATED DATA, seed 0 | 4 subjects as raw scans, 40 + 16 on the grid")
    for line in ("  fusion   ", "  ct alone", "  pet alone", "  mr alone", "  fusion, raw scans", "Registration of"):
        assert f"\n{line}" in text
    assert f"report: {tmp_path / 'run' / 'report.html'}" in text and "0 errors" in text

    pages = [tmp_path / "prediction" / "cohort" / "qc.html", *sorted((tmp_path / "run").rglob("report.html"))]
    assert len(pages) == 5 and all("Simulated data" in page.read_text() for page in pages)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["simulated"] is True and sorted(metrics["comparison"]) == ["ct", "mr", "pet"]
    assert metrics["raw"]["registration"]["worst_mm"] < 2

    raw = open_cohort(tmp_path / "prediction" / "cohort")
    for subject, one in zip(draw_subjects(4, 1, prefix="RAW", missing=0.08), raw.cases, strict=True):
        short = simulate_onto_grid(subject, OPTIONS)
        for channel, there in enumerate(short.present):
            assert not there or correlation(short.image[channel], np.load(one.file)[channel]) > 0.9

    models = sorted((tmp_path / "run").rglob("model.pt"))
    written = [path.stat().st_mtime_ns for path in models]
    assert demo.run_demo(tmp_path, **TINY) == 0
    assert len(models) == 4 and [path.stat().st_mtime_ns for path in models] == written
    again = capsys.readouterr()
    assert "epoch" not in again.err and _end(again.out) == _end(text)
    with pytest.raises(CohortError, match="holds a demo with epochs 1"):
        demo.run_demo(tmp_path, **{**TINY, "epochs": 2})
