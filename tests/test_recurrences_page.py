"""The blocks of docs/recurrences.md run, in order, in one namespace."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import jax

PAGE = (Path(__file__).parents[1] / "docs" / "recurrences.md").read_text(encoding="utf-8")


def test_the_blocks_run(monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) == PAGE.count("```python") >= 2
    module = types.ModuleType("recurrences_page")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with jax.numpy_rank_promotion("allow"):  # as a reader has it
        for number, block in enumerate(blocks, 1):
            code = compile(block, f"docs/recurrences.md, block {number}", "exec", dont_inherit=True)
            exec(code, module.__dict__)


def test_every_kind_of_layer_is_listed():
    from paradec.models.mixers import KINDS

    rows = re.findall(r"^\| (`.*?`) \|", PAGE, flags=re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(KINDS) <= named
