"""The blocks of docs/extending.md run: those of a section in order, in one namespace, and none is long."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import jax
import pytest

from paradec import catalog

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.M)[1:] if "```python" in part}

GIVEN = {"A drafter": "Your model: a function, linen or nnx"}
"""Sections that use the `lm` of another one, which is there after its second block."""


def blocks(section):
    """The Python of a section."""
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.S)


def test_there_are_blocks_and_none_is_long():
    assert len(SECTIONS) >= 2 and PAGE.count("```python") == sum(len(blocks(section)) for section in SECTIONS)
    for section in SECTIONS:
        for block in blocks(section):
            assert block.count("\n") <= 40, f"{section}: {block[:80]}"


def run(module, section, number):
    """One block, by its number from 1 on."""
    name = f"docs/extending.md, {section}, block {number}"
    exec(compile(blocks(section)[number - 1], name, "exec", dont_inherit=True), module.__dict__)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_run_in_order(section, tmp_path, monkeypatch):
    """As in a reader's own program: in a module, and with jax's usual promotion of ranks and types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "ADDED", {})
    module = types.ModuleType("extending")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for number in (1, 2) if section in GIVEN else ():
            run(module, GIVEN[section], number)
        for number in range(1, len(blocks(section)) + 1):
            run(module, section, number)


def test_a_block_that_is_a_file_is_one(tmp_path, monkeypatch):
    """The drafter stands alone in its file, and its row, which the command on the page names, is added from there."""
    monkeypatch.setattr(catalog, "ADDED", {})
    path = tmp_path / "last_seen.py"
    path.write_text(blocks("A drafter")[0])
    file, _, name = re.search(r"--method-file (\S+)", SECTIONS["A drafter"])[1].partition(":")
    assert file == path.name
    row = catalog.from_file(path, name)
    assert catalog.find("last_seen") is row and row.options["depth"].default == 3
