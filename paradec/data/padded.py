"""Answers of different lengths, padded with end-of-text: for masked models that must also say where they end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paradec.config import several
from paradec.data.text import Row
from paradec.errors import InputError

OPERATIONS = ("count", "repeat", "sort")


class Padded:
    """Rows `operation, argument … argument, answer …, end … end`, in which answer and ends are learned.

    "count a b" is answered by the numbers from a to b, "repeat w k" by k times w, "sort" by its 4 to `items` different
    numbers in rising order. Numbers are tokens 0 to `symbols` - 1; then come the operations, "none" for a missing
    argument, the end of text and the mask. There is one right answer, of `shortest` to `longest` tokens, in a canvas of
    `answer`. Row i depends on the seed and i alone. Raises `InputError` for an unknown operation, and for lengths that
    the numbers or the canvas cannot hold.
    """

    def __init__(
        self, items: int = 8, symbols: int = 32, rows: int = 100_000, seed: int = 0,
        operations: Sequence[str] | str = OPERATIONS, *, shortest: int = 4, longest: int = 24, answer: int = 32,
    ):  # fmt: skip
        operations = several(operations)
        unknown = [o for o in operations if o not in OPERATIONS]
        if unknown or not operations:
            raise InputError(f"There is no operation {unknown[:1]}; there are {', '.join(OPERATIONS)}.")
        if not max(shortest, 2) <= items <= longest < min(symbols, answer):
            raise InputError(
                f"{shortest} (shortest), {items} (items) and {longest} (longest) must rise, from 2 at least, and stay "
                f"below {symbols} symbols and {answer} tokens of answer."
            )
        self.items, self.symbols, self.rows, self.seed, self.operations = items, symbols, rows, seed, operations
        self.shortest, self.longest, self.answer = shortest, longest, answer

    @property
    def none(self) -> int:
        return self.symbols + len(OPERATIONS)

    @property
    def eos(self) -> int:
        return self.none + 1

    @property
    def mask_id(self) -> int:
        return self.eos + 1

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    @property
    def words(self) -> list[str]:
        """How each token is written, the mask last."""
        return [*map(str, range(self.symbols)), *OPERATIONS, "-", "<|endoftext|>", "<|mask|>"]

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return self.items + 1

    @property
    def length(self) -> int:
        """Tokens of every row."""
        return self.prompt + self.answer

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng((self.seed, index))
        operation = self.operations[rng.integers(len(self.operations))]
        n = int(rng.integers(self.shortest, self.longest + 1))
        match operation:
            case "count":
                first = int(rng.integers(self.symbols - n + 1))
                given = [first, first + n - 1]
            case "repeat":
                given = [int(rng.integers(self.symbols)), n]
            case _:
                size = int(rng.integers(self.shortest, self.items + 1))
                given = rng.permutation(self.symbols)[:size].tolist()
        shown = [self.symbols + OPERATIONS.index(operation), *given, *[self.none] * (self.items - len(given))]
        answer = self.solved(shown)
        token = np.asarray([*shown, *answer, *[self.eos] * (self.answer - len(answer))], np.int32)
        return {"token": token, "learn": np.arange(self.length) >= self.prompt}

    def solved(self, token: Sequence[int] | np.ndarray) -> list[int]:
        """The answer to the prompt that `token` begins with, without its ends."""
        operation, *given = (int(t) for t in token[: self.prompt] if t != self.none)
        match OPERATIONS[operation - self.symbols]:
            case "count":
                return list(range(given[0], given[1] + 1))
            case "repeat":
                return [given[0]] * given[1]
        return sorted(given)

    def right(self, token: Sequence[int] | np.ndarray, answer: Sequence[int] | np.ndarray) -> bool:
        """Whether `answer` up to its first end is the one for the prompt that `token` begins with."""
        text = [int(t) for t in answer]
        return text[: text.index(self.eos)] == self.solved(token) if self.eos in text else text == self.solved(token)
