"""Prompts from a file: of JSONL a bad line is named by its number and skipped, the others still run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from paradec.data import text
from paradec.errors import InputError
from paradec.io import json_lines
from paradec.request import EACH, Given, Request, is_chat, one_text


@dataclasses.dataclass(frozen=True)
class Line:
    """What a line of a file asks for: a prompt, and what the user says after each answer. Its number counts from 1.

    `own` holds the fields of `request.EACH` that the line has, and `ids` what names it: `id`, `task_id`, ….
    """

    number: int
    prompt: Given
    then: tuple[str, ...] = ()
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_prompts(path: str | Path, complain: Callable[[str], None], limit: int | None = None) -> list[Given]:
    """The prompts of `read_lines`; of turns, the first."""
    return [line.prompt for line in read_lines(path, complain, limit)]


def read_lines(path: str | Path, complain: Callable[[str], None], limit: int | None = None) -> list[Line]:
    """The first `limit` lines of a file of `{"prompt": …}`, `{"question": …}`, `{"messages": [{"role": …, "content":
    …}, …]}` or `{"turns": [first, …]}`. Of messages, an answer at the end is left out. A `.txt` file is one prompt,
    without the line feed at its end.

    `complain` gets one sentence per malformed line; blank lines are skipped. Raises `InputError` where the file
    cannot be read or holds no prompt at all, for a limit below 1, and where some lines have a seed and others none.
    """
    if limit is not None and limit < 1:
        raise InputError(f"At least 1 prompt of a file must be read; {limit} were asked for.")
    if Path(path).suffix == ".txt":
        whole = text.read(path).removesuffix("\n")
        lines = [Line(1, whole)] if whole.strip() else []
    else:
        found = json_lines.read(path, "prompts", line_of, complain)
        lines = [dataclasses.replace(line, number=number) for number, line in itertools.islice(found, limit)]
    if not lines:
        raise InputError(f'{path} holds no prompt; each line should read {{"prompt": "…"}}.')
    without = next((line.number for line in lines if "seed" not in line.own), 0)
    if without and (seeded := next((line.number for line in lines if "seed" in line.own), 0)):
        raise InputError(
            f"In {path}, line {seeded} has a seed and line {without} has none; give all lines one, or none."
        )
    return lines


def total_turns(lines: Sequence[Line]) -> int:
    """How many answers they ask for: one, and one for each turn that follows."""
    return sum(1 + len(line.then) for line in lines)


def line_of(line: Any) -> Line:
    """What a parsed line asks for, still without its number. Raises ValueError with what is wrong."""
    if not isinstance(line, dict):
        raise ValueError("a line must be a JSON object.")
    prompt, *then = _said(line)
    own = {name: line[name] for name in EACH if name in line}
    try:
        Request(**own)
    except InputError as error:
        raise ValueError(str(error)) from None
    if several := next((name for name, value in own.items() if isinstance(value, list)), None):
        raise ValueError(f"{several} must be one value.")
    ids = {name: value for name, value in line.items() if name == "id" or name.endswith("_id")}
    return Line(0, prompt, tuple(then), own, ids)


def _said(line: Mapping[str, Any]) -> list[Any]:
    """The prompt, and what follows its answers."""
    if "messages" in line:
        return [_messages(line["messages"])]
    if "turns" in line:
        turns = line["turns"] if isinstance(line["turns"], list) else []
        return [_text(turn, f"turns[{i}]") for i, turn in enumerate(turns or [None])]
    name = next((k for k in ("prompt", "question") if k in line), None)
    if name is None:
        raise ValueError('it has none of "prompt", "question", "messages" and "turns".')
    return [_text(line[name], name)]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty.")
    return json_lines.string(value, name)


def drawn(lines: Sequence[Line], base: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Request` for these lines: what `base` says, and where a line says it of its own, one for each."""
    own = {name for line in lines for name in line.own}
    plain = {name: base.get(name, getattr(Request(), name)) for name in own}
    return {**base, **{name: tuple(line.own.get(name, plain[name]) for line in lines) for name in own}}


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
