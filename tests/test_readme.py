"""The README's Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import paradec
from tests.fixtures import write_tiny_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_blocks_run_in_order(tmp_path, monkeypatch):
    """On small models: a decoder for those that continue a text, the shipped diffusion model for the others."""
    monkeypatch.chdir(tmp_path)  # where the figure goes
    real, tiny = paradec.load, str(write_tiny_model(tmp_path / "tiny"))
    monkeypatch.setattr(paradec, "load", lambda name: real(tiny if name == "smollm2-135m" else name))
    names: dict = {"prompts": ["Name three colours.", "Name two."]}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        if "compose(model" in block:
            lm = real("lists")
            names |= {"lm": lm, "model": lm.model, "prompts": ["sort - - D A C B F E"]}
        exec(block, names)
