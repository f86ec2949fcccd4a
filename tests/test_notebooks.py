"""The notebooks of colab/ run from top to bottom, and from wherever they were opened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from tests.quick import quick_environment

COLAB = Path(__file__).parents[1] / "colab"
ADDRESS = "git+https://example.org/paradec"


def cells(path: Path) -> list[str]:
    """The code of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_one_place_says_where_paradec_comes_from():
    first = {cells(path)[0] for path in COLAB.glob("*.ipynb")}
    assert len(first) == 1 and first.pop().count('SOURCE = ""') == 1


@pytest.mark.parametrize(
    ("installed", "checkout", "source", "asked", "error"),
    [
        (True, True, "", [], None),
        (True, False, ADDRESS, [], None),
        (False, True, "", ["the checkout"], None),
        (False, True, ADDRESS, [ADDRESS], None),
        (False, False, ADDRESS, [ADDRESS], None),
        (False, False, "", [], "write in SOURCE"),
        (False, False, "no.whl", ["no.whl"], "could not install paradec from 'no.whl'(?s:.*)not found"),
    ],
)
def test_where_paradec_comes_from(installed, checkout, source, asked, error, tmp_path, monkeypatch):
    """Installed; in a checkout; from an address that the reader fills in; from nowhere, which is said."""
    (tmp_path / "colab").mkdir()
    if checkout:
        (tmp_path / "paradec").mkdir()
        (tmp_path / "paradec" / "__init__.py").touch()
        (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "colab")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    found = []

    def run(command, **_):
        found.append("the checkout" if command[-1] == str(tmp_path) else command[-1])
        return subprocess.CompletedProcess(command, returncode=command[-1] == "no.whl", stderr="not found")

    monkeypatch.setattr(subprocess, "run", run)
    cell = cells(COLAB / "quickstart.ipynb")[0].replace('SOURCE = ""', f"SOURCE = {source!r}")
    with pytest.raises(ModuleNotFoundError, match=error) if error else contextlib.nullcontext():
        exec(cell, {})
    assert found == asked


@pytest.mark.notebook
@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, smollm2, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    quick = quick_environment()  # one device, as a reader has
    if path.stem == "quickstart":  # a real model, which would run slowly
        del quick["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    for name, value in quick.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=290, resources={"metadata": {"path": str(COLAB)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "a notebook draws at least one figure"
