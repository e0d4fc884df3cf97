"""Notebooks: the .ipynb is the .py, without outputs, and it runs from top to bottom and draws."""

import os
import sys
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
REMEDY = "run: jupytext --to ipynb notebooks/*.py"


def test_there_is_a_source_for_each_notebook():
    assert SOURCES and [path.stem for path in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_is_its_source_and_holds_no_output(source):
    text, notebook = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    kinds = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (text, notebook)]
    assert kinds[0] == kinds[1], REMEDY
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of jupyter's own machinery; the notebook's warnings stay in its process
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_runs_without_a_warning_and_draws(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == sum("figure_" in cell.source and "import" not in cell.source for cell in notebook.cells)
