"""Prompts from a file: of JSONL a bad line is named by its number and skipped, the others still run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from paradec.data import text
from paradec.errors import InputError
from paradec.io import json_lines
from paradec.request import Given, is_chat, one_text


def read_prompts(path: str | Path, complain: Callable[[str], None], limit: int | None = None) -> list[Given]:
    """The first `limit` prompts of a file of `{"prompt": …}`, `{"question": …}`, `{"messages": [{"role": …, "content":
    …}, …]}` or `{"turns": [first, …]}` lines. Of messages, an answer at the end is left out. A `.txt` file is one
    prompt, without the line feed at its end.

    `complain` gets one sentence per malformed line; blank lines are skipped. Raises `InputError` where the file
    cannot be read or holds no prompt at all, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"At least 1 prompt of a file must be read; {limit} were asked for.")
    if Path(path).suffix == ".txt":
        whole = text.read(path).removesuffix("\n")
        prompts: list[Given] = [whole] if whole.strip() else []
    else:
        found = json_lines.read(path, "prompts", prompt_of, complain)
        prompts = [prompt for _, prompt in itertools.islice(found, limit)]
    if not prompts:
        raise InputError(f'{path} holds no prompt; each line should read {{"prompt": "…"}}.')
    return prompts


def prompt_of(line: Any) -> Given:
    """The prompt of one parsed line. Raises ValueError with what is wrong."""
    if not isinstance(line, dict):
        raise ValueError("a line must be a JSON object.")
    if "messages" in line:
        return _messages(line["messages"])
    if "turns" in line:
        turns = line["turns"]
        value = turns[0] if isinstance(turns, list) and turns else None
        name = "turns[0]"
    else:
        name = next((k for k in ("prompt", "question") if k in line), None)
        if name is None:
            raise ValueError('it has none of "prompt", "question", "messages" and "turns".')
        value = line[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty.")
    return json_lines.string(value, name)


def question(prompt: Given) -> str:
    """What a prompt of text asks: of messages, the last one. Raises `InputError` for token ids."""
    if isinstance(prompt, str):
        return prompt
    if not is_chat(prompt):
        raise InputError("Token ids are no text; give a string, or messages.")
    return prompt[-1].get("content") or ""


def _messages(given: Any) -> Given:
    """Messages up to the last one that wants an answer."""
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise ValueError('"messages" must be a list of objects, each with a role and a content.')
    try:
        messages = cast("list[dict[str, Any]]", one_text(given))
    except InputError as error:
        raise ValueError(str(error)) from None
    for message in messages:
        json_lines.string(message.get("content") or "", "the content of a message")
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] != "assistant"), None)
    if last is None or messages[last]["role"] in ("system", "developer"):
        raise ValueError("its messages ask for no answer: there is none of a user.")
    return messages[: last + 1]
