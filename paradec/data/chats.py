"""Conversations as training rows: the model learns what the assistant says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paradec.data.text import Row
from paradec.errors import InputError
from paradec.io.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


def read(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file, one `{"messages": [{"role": …, "content": …}, …]}` a line.

    Raises `InputError` that names the first line which is not such an object, or in which the assistant never speaks.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; give a JSONL file of conversations.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    found = [_messages(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path} holds no conversations.")
    return found


def _messages(path: Path, number: int, line: str) -> list[dict[str, str]]:
    where = f"Line {number} of {path}"
    try:
        messages = json.loads(line)["messages"]
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}); correct or remove it.") from None
    except (KeyError, TypeError):
        raise InputError(f'{where} is no object with "messages"; correct or remove it.') from None
    for message in messages if isinstance(messages, list) else [None]:
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise InputError(f"{where}: a message needs a role, one of {', '.join(ROLES)}; got {message!r}.")
        if not isinstance(message.get("content"), str):
            raise InputError(f"{where}: the content of a message must be a string; got {message.get('content')!r}.")
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(f"{where} has no assistant's turn, so there is nothing to learn from it.")
    return messages


class Chats:
    """Conversations through a model's chat template: a source for `chain.batches`, to be packed.

    Each assistant's turn is tokenised on its own, as decoding would produce it after the prompt before it. Longer
    conversations than `length` are cut at the end.
    """

    def __init__(self, conversations: Sequence[Sequence[Mapping[str, Any]]], tokenizer: Tokenizer, length: int):
        self.conversations, self.tokenizer, self.length = conversations, tokenizer, length

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Row:
        token, learn = encode(self.tokenizer, self.conversations[index])
        return {"token": token[: self.length], "learn": learn[: self.length]}


def encode(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation, and which of them the assistant wrote (the end of its turn among them).

    Raises `InputError` for a template whose earlier turns change with later ones: then no mask is right.
    """
    ids: list[int] = []
    learn: list[bool] = []
    before = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.chat(messages[:i]) if i else ""
        told = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
        if not asked.startswith(before) or not told.startswith(asked):
            raise InputError(
                "This model's chat template rewrites earlier turns, so the assistant's words cannot be told apart. "
                "Give each turn as a conversation of its own."
            )
        for text, mine in ((asked[len(before) :], False), (told[len(asked) :], True)):
            new = tokenizer.encode(text, special=False)
            ids += new
            learn += [mine] * len(new)
        before = told
    return np.asarray(ids, np.int32), np.asarray(learn, bool)
