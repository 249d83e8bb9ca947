"""The notebooks run from top to bottom, at smoke size."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_its_pictures(path, tmp_path, monkeypatch, quick_flags):
    monkeypatch.setenv("LAB_PRESET", "smoke")
    monkeypatch.setenv("LAB_WORKDIR", str(tmp_path / "run"))
    # most of the time is compilation, of programs that run once
    monkeypatch.setenv("XLA_FLAGS", quick_flags)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_opens_with_its_minutes_and_installs_from_the_one_address(path):
    spec = importlib.util.spec_from_file_location("install", FOLDER / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    title, first = nbformat.read(path, as_version=4).cells[:2]
    assert title.cell_type == "markdown" and re.search(
        r"\*\*Takes\*\* about \d+ minutes? on two CPU cores", title.source
    )
    assert first.cell_type == "code" and first.source == install.cell(), "python notebooks/install.py"


def test_first_cell_asks_where_the_package_is(monkeypatch):
    """An index could have anything under its name."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    monkeypatch.delenv("LAB_SOURCE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^SOURCE is empty: set it to .*a wheel, a git.* or a folder$"):
        exec(next(cell.source for cell in notebook.cells if cell.cell_type == "code"), {})
