"""The notebooks of colab/ run from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

COLAB = Path(__file__).parents[1] / "colab"


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, smollm2, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as a reader has
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=290, resources={"metadata": {"path": str(COLAB)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs), "a notebook draws at least one figure"
