"""Conversations as training rows: the model learns what the assistant says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paradec.data.text import Row
from paradec.errors import InputError
from paradec.io import json_lines
from paradec.io.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
Messages = Sequence[Mapping[str, Any]]


class Conversation(NamedTuple):
    """Messages, and the line that they were read from."""

    messages: Messages
    where: str


def read(path: str | Path) -> list[Conversation]:
    """The conversations of a JSONL file, one `{"messages": [{"role": …, "content": …}, …]}` a line.

    Raises `InputError` that names the first line which is not such an object, or in which the assistant never speaks.
    """
    lines = json_lines.read(path, "conversations", _messages)
    found = [Conversation(messages, f"Line {number} of {path}") for number, messages in lines]
    if not found:
        raise InputError(f"{path} holds no conversations.")
    return found


def _messages(line: Any) -> Messages:
    if not isinstance(line, dict) or "messages" not in line:
        raise ValueError('it is no object with "messages"; correct or remove it.')
    messages = line["messages"]
    for message in messages if isinstance(messages, list) else [None]:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            got = f"the role {role[:40]!r}" if isinstance(role, str) else json_lines.kind(message)
            raise ValueError(f"a message needs a role, one of {', '.join(ROLES)}; got {got}.")
        json_lines.string(message.get("content"), "the content of a message")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("it has no assistant's turn, so there is nothing to learn from it.")
    return messages


class Chats:
    """Conversations as rows of tokens: a source for `chain.batches`, to be packed."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    @classmethod
    def of(
        cls, conversations: Sequence[Conversation], tokenizer: Tokenizer, length: int, complain: Callable[[str], None]
    ) -> Chats:
        """Conversations through a model's chat template, cut at the end after `length` tokens.

        One of which nothing is learned then is left out, and `complain` gets a sentence that names it. Raises
        `InputError` where none is left, and for a conversation that the template refuses, by its line.
        """
        if length < 2:
            raise InputError(f"A row of {length} tokens predicts nothing; take at least 2.")
        rows = []
        for messages, where in conversations:
            try:
                token, learn = (x[:length] for x in encode(tokenizer, messages))
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            if learn[1:].any():  # a row's first token has nothing before it
                rows.append({"token": token, "learn": learn})
            else:
                complain(f"{where} is left out: the assistant says nothing within {length} tokens; raise data.length.")
        if not rows:
            raise InputError(f"No conversation reaches the assistant within {length} tokens; raise data.length.")
        return cls(rows)

    def split(self, share: float) -> tuple[Chats, Chats]:
        """All rows but the last `share` of them, and those. Raises `InputError` unless each side has one."""
        if len(self.rows) < 2:
            raise InputError("One conversation is learned and one measures what was learned: give at least 2.")
        cut = max(len(self.rows) - max(round(len(self.rows) * share), 1), 1)
        return Chats(self.rows[:cut]), Chats(self.rows[cut:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def encode(tokenizer: Tokenizer, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation, and which of them the assistant wrote (the end of its turn among them).

    The whole text is tokenised at once, and a token is the assistant's if any of its characters is. Raises
    `InputError` for a template whose earlier turns change with later ones: then no mask is right.
    """
    text = tokenizer.chat(messages, add_generation_prompt=False)
    mine = np.zeros(len(text) + 1, np.int32)
    for first, last in _turns(tokenizer, messages, text):
        mine[first + 1 : last + 1] = 1
    ids, spans = tokenizer.encode_with_offsets(text)
    before = np.cumsum(mine)  # the assistant's characters before each place
    start, end = np.asarray(spans, np.int64).reshape(-1, 2).T
    return np.asarray(ids, np.int32), before[end] > before[start]


def _turns(tokenizer: Tokenizer, messages: Messages, text: str) -> list[tuple[int, int]]:
    """The assistant's turns in a conversation's text: each begins where the prompt for it ends."""
    found = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.chat(messages[:i]) if i else _opening(tokenizer, message)
        told = tokenizer.chat(messages[: i + 1], add_generation_prompt=False) if i + 1 < len(messages) else text
        if not told.startswith(asked) or not text.startswith(told):
            raise InputError(
                "This model's chat template rewrites earlier turns, so the assistant's words cannot be told apart. "
                "Give each turn as a conversation of its own."
            )
        found.append((len(asked), len(told)))
    return found


def _opening(tokenizer: Tokenizer, message: Mapping[str, Any]) -> str:
    """What stands before the words of an assistant who begins: a default system prompt, and what opens its turn.

    No template renders a conversation without messages, so it is what two such conversations share.
    """
    other = {**message, "content": "\1" if message["content"].startswith("\0") else "\0"}
    told, also = (tokenizer.chat([m], add_generation_prompt=False) for m in (message, other))
    shared = told[: next(i for i, (a, b) in enumerate(zip(told, also, strict=False)) if a != b)]
    header = tokenizer.chat([message]).removeprefix(told)  # what opens the next turn of the assistant
    at = shared.rfind(header)
    return shared if at < 0 else shared[: at + len(header)]
