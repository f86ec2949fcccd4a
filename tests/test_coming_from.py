"""The right-hand columns of docs/coming-from.md run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import paradec
from paradec import cli, loading
from tests.fixtures import write_tiny_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = [
    line.split(" | ")[-1].removesuffix(" |") for line in PAGE.splitlines() if line.startswith("| `") or " | `" in line
]
CODE = [found[1] for row in ROWS if (found := re.fullmatch(r"`([^`]+)`", row))]
PYTHON = [code for code in CODE if "." in code.split("(")[0] and not code.startswith(("paradec ", "python "))]
SHELL = [code for code in CODE if code.startswith("paradec ") and not code.startswith("paradec lm-eval")]
"""The harness's own lines run in tests/oracle/test_harness.py."""
PROGRAMS = [code.split()[1] for code in CODE if code.startswith("python ")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that the lines name, and a small model in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"turns": ["Name a colour.", "And two?"]}), json.dumps({"prompt": "Name three."})]
    for name in ("in.jsonl", "question.jsonl"):
        Path(name).write_text("\n".join(lines))
    # `paradec.load` is looked up on first use and kept: asked after the patch below, it would keep the small model for
    # every test that follows.
    real, tiny = paradec.load, str(write_tiny_model(tmp_path / "tiny"))
    load = lambda name, **options: real(tiny, **options)
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(paradec, "load", load)


def test_the_python_lines(place):
    (first,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    names: dict = {}
    exec(first, names)
    assert len(PYTHON) > 30
    for line in PYTHON:
        exec(line.replace("layers:4", "layers:1"), names)  # the small model has two


def test_the_shell_lines(place, capsys):
    assert {code.split()[1] for code in SHELL} == {"generate", "compare"}
    for line in dict.fromkeys(SHELL):
        assert cli.main(shlex.split(line.replace(",medusa", ""))[1:]) == 0, line  # the small model has no heads
    assert Path("out.jsonl").read_text().count("\n") == 2


def test_the_programs_are_there():
    assert PROGRAMS and all((ROOT / name).is_file() for name in PROGRAMS)
