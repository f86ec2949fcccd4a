"""The blocks of docs/extending.md run: those of a section in order, in one namespace, and none is long."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import jax
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.M)[1:] if "```python" in part}


def blocks(section):
    """The Python of a section."""
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.S)


def test_there_are_blocks_and_none_is_long():
    assert len(SECTIONS) >= 2 and PAGE.count("```python") == sum(len(blocks(section)) for section in SECTIONS)
    for section in SECTIONS:
        for block in blocks(section):
            assert block.count("\n") <= 40, f"{section}: {block[:80]}"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_run_in_order(section, tmp_path, monkeypatch):
    """As in a reader's own program: in a module, and with jax's usual promotion of ranks and types."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("extending")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number, block in enumerate(blocks(section), start=1):
            name = f"docs/extending.md, {section}, block {number}"
            exec(compile(block, name, "exec", dont_inherit=True), module.__dict__)
