"""Prompts from a JSONL file: a bad line is named by its number and skipped, the others still run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paradec.errors import InputError
from paradec.io import json_lines


def read_prompts(path: str | Path, complain: Callable[[str], None], limit: int | None = None) -> list[str]:
    """The first `limit` prompts of a file of `{"prompt": …}`, `{"question": …}` or `{"turns": [first, …]}` lines.

    `complain` gets one sentence per malformed line; blank lines are skipped. Raises `InputError` where the file
    cannot be read or holds no prompt at all, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"At least 1 prompt of a file must be read; {limit} were asked for.")
    found = json_lines.read(path, "prompts", prompt_of, complain)
    prompts = [prompt for _, prompt in itertools.islice(found, limit)]
    if not prompts:
        raise InputError(f'{path} holds no prompt; each line should read {{"prompt": "…"}}.')
    return prompts


def prompt_of(line: Any) -> str:
    """The prompt of one parsed line. Raises ValueError with what is wrong."""
    if not isinstance(line, dict):
        raise ValueError("a line must be a JSON object.")
    if "turns" in line:
        turns = line["turns"]
        value = turns[0] if isinstance(turns, list) and turns else None
        name = "turns[0]"
    else:
        name = next((k for k in ("prompt", "question") if k in line), None)
        if name is None:
            raise ValueError('it has none of "prompt", "question" and "turns".')
        value = line[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty.")
    return json_lines.string(value, name)
