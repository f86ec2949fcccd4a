"""List operations as token rows, with one token an item: ParallelBench's waiting lines without the words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paradec.config import several
from paradec.data.text import Row
from paradec.errors import InputError

OPERATIONS = (
    "copy", "reverse", "sort", "shuffle", "insert_index", "insert_random", "remove_index", "remove_random",
    "replace_index", "replace_random",
)  # fmt: skip


class Lists:
    """Rows `operation, index, word, item … item, answer … answer`, in which the answer alone is learned.

    Items are tokens 0 to `symbols` - 1, all different; then come the operations, an index 0 to `items`, "none" for an
    index or a word that an operation does not need, and the mask. Every valid answer of a random operation is equally
    likely, the unchanged order of a shuffle included. Row i depends on the seed and i alone. Raises `InputError` for an
    unknown operation, fewer symbols than items and a new word need, or more than there are letters.
    """

    def __init__(
        self, items: int = 6, symbols: int = 16, rows: int = 100_000, seed: int = 0,
        operations: Sequence[str] | str = OPERATIONS,
    ):  # fmt: skip
        operations = several(operations)
        unknown = [o for o in operations if o not in OPERATIONS]
        if unknown or not operations:
            raise InputError(f"There is no list operation {unknown[:1]}; there are {', '.join(OPERATIONS)}.")
        if not 2 <= items < symbols <= 26:
            raise InputError(f"{items} items and a new word need more than {items} symbols, 26 at most; not {symbols}.")
        self.items, self.symbols, self.rows, self.seed, self.operations = items, symbols, rows, seed, operations

    @property
    def none(self) -> int:
        return self.symbols + len(OPERATIONS) + self.items + 1

    @property
    def mask_id(self) -> int:
        return self.none + 1

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    @property
    def words(self) -> list[str]:
        """How each token is written, the mask last. Items are letters."""
        items = [chr(ord("A") + i) for i in range(self.symbols)]
        return [*items, *OPERATIONS, *map(str, range(self.items + 1)), "-", "<|mask|>"]

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return self.items + 3

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.prompt + self.items + 1

    def answer_length(self, operation: str) -> int:
        """Tokens of an operation's answer."""
        return self.items + operation.startswith("insert") - operation.startswith("remove")

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng((self.seed, index))
        operation = self.operations[rng.integers(len(self.operations))]
        drawn = rng.permutation(self.symbols)[: self.items + 1]
        given, word = drawn[:-1].tolist(), int(drawn[-1])
        kind, _, place = operation.partition("_")
        at = int(rng.integers(self.items + (kind == "insert")))
        answer = _answer(kind, given, word, at, rng)
        shown = [self.symbols + OPERATIONS.index(operation), self.none, self.none]
        if place == "index":
            shown[1] = self.symbols + len(OPERATIONS) + at
        if kind in ("insert", "replace"):
            shown[2] = word
        token = np.asarray([*shown, *given, *answer], np.int32)
        return {"token": token, "learn": np.arange(len(token)) >= self.prompt}

    def right(self, token: Sequence[int] | np.ndarray, answer: Sequence[int] | np.ndarray) -> bool:
        """Whether `answer` is valid for the prompt that a row's `token` begins with."""
        operation, index, word, *given = (int(t) for t in token[: self.prompt])
        kind, _, place = OPERATIONS[operation - self.symbols].partition("_")
        if kind == "shuffle":
            return sorted(given) == sorted(int(t) for t in answer)
        places = range(self.items + (kind == "insert"))
        if place == "index":
            places = [index - self.symbols - len(OPERATIONS)]
        rng = np.random.default_rng(0)
        return any(_answer(kind, given, word, at, rng) == [int(t) for t in answer] for at in places)


def _answer(kind: str, given: list[int], word: int, at: int, rng: np.random.Generator) -> list[int]:
    match kind:
        case "copy":
            return given
        case "reverse":
            return given[::-1]
        case "sort":
            return sorted(given)
        case "shuffle":
            return [int(i) for i in rng.permutation(given)]
        case "insert":
            return [*given[:at], word, *given[at:]]
        case "remove":
            return [*given[:at], *given[at + 1 :]]
    return [*given[:at], word, *given[at + 1 :]]
