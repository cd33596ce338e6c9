"""The notebooks: two files in step, no outputs kept, and every one runs and ends in a finding."""

from __future__ import annotations

import re
import time
from pathlib import Path

import jupytext
import nbformat
import pytest

from experiments import run_notebooks

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = run_notebooks.names()
SECONDS_EACH = 120  # on two cores


def test_every_notebook_has_both_files():
    assert NAMES and [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_is_in_step_and_stripped(name: str):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    source = jupytext.read(FOLDER / f"{name}.py")
    cells = lambda n: [(cell.cell_type, cell.source.strip()) for cell in n.cells]
    assert cells(notebook) == cells(source), f"run: jupytext --sync notebooks/{name}.py"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, "outputs belong into runs/notebooks, see `make notebooks`"


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_first_and_finds_last(name: str):
    cells = jupytext.read(FOLDER / f"{name}.py").cells
    assert cells[0].source.startswith("# ") and any("**Question.**" in cell.source for cell in cells[:2])
    assert cells[-2].source.strip() == "## Finding" and "assert " in cells[-1].source
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert re.search(r"plot_|subplots", code), "a notebook shows a picture"


def test_an_unknown_notebook_is_refused():
    with pytest.raises(FileNotFoundError, match="01_first_wafer"):
        run_notebooks.execute("00_none")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str):
    began = time.process_time(), time.perf_counter()
    notebook = run_notebooks.execute(name)
    assert time.perf_counter() - began[1] < 4 * SECONDS_EACH  # of which other work on this machine may take most
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 2
    assert not [out for out in outputs if "<Figure" in out.get("data", {}).get("text/plain", "") and "image/png" not in out["data"]]
    said = run_notebooks.finding(notebook)
    assert len(re.findall(r"\d+", said)) >= 3, "a finding is in numbers"
    errors = [out.text for out in outputs if out.get("name") == "stderr"]
    assert not errors
