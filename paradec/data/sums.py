"""Running sums: answers of which each token follows from the one before, so that only their order makes them easy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paradec.data.text import Row
from paradec.errors import InputError


class Sums:
    """Rows `digit … digit, sum … sum`, in which the sums are learned: the i-th is that of the first i digits.

    Digits and sums are tokens 0 to `base` - 1, sums modulo `base`; then comes the mask. Row i depends on the seed and i
    alone. Raises `InputError` for less than 1 digit or a base below 2.
    """

    def __init__(self, items: int = 24, base: int = 10, rows: int = 100_000, seed: int = 0):
        if items < 1 or base < 2:
            raise InputError(f"A running sum needs a digit and base 2; {items} digits in base {base} were asked for.")
        self.items, self.base, self.rows, self.seed = items, base, rows, seed

    @property
    def mask_id(self) -> int:
        return self.base

    @property
    def vocab_size(self) -> int:
        return self.base + 1

    @property
    def words(self) -> list[str]:
        """How each token is written, the mask last."""
        return [*map(str, range(self.base)), "<|mask|>"]

    @property
    def prompt(self) -> int:
        """Tokens before the answer."""
        return self.items

    @property
    def length(self) -> int:
        """Tokens of every row."""
        return 2 * self.items

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        digits = np.random.default_rng((self.seed, index)).integers(self.base, size=self.items)
        token = np.asarray([*digits, *self.solved(digits)], np.int32)
        return {"token": token, "learn": np.arange(self.length) >= self.prompt}

    def solved(self, token: Sequence[int] | np.ndarray) -> list[int]:
        """The sums of the digits that `token` begins with."""
        return (np.cumsum(np.asarray(token[: self.items])) % self.base).tolist()

    def right(self, token: Sequence[int] | np.ndarray, answer: Sequence[int] | np.ndarray) -> bool:
        """Whether `answer` holds the sums of the digits that `token` begins with."""
        return [int(t) for t in answer] == self.solved(token)
