"""State tracking: read a word symbol by symbol, and say after each where the machine stands.

A word over permutations of five things composes to another, which no circuit of constant depth can find (Barrington,
1989), and neither parity nor this is learned for longer words than those trained on by transformers, or by linear
recurrences whose decays are positive (arXiv 2404.08819, 2411.12537). Recurrences with recurrent matrices learn both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from paradec.data.text import Row
from paradec.errors import InputError, UnknownName

TASKS = ("parity", "counter", "s3", "s5")


class Machine(NamedTuple):
    """A finite machine that begins in state 0: `after[symbol, state]` is the state that follows."""

    symbols: list[str]
    states: list[str]
    after: Int[np.ndarray, "A S"]


class Tracking:
    """Rows of random symbols, each with the state that the machine is in after it as its `label`, learned everywhere.

    Symbols are tokens 0 on, and so are states, the beginning being 0: input and answer have tables of their own, so a
    model wants an untied head. `vocab_size` is the larger number of both. `test` are the rows of `test_length` (0: four
    times `length`) that a model is asked, of another seed. Row i depends on the seed and i alone.

    | task | symbols | states |
    | --- | --- | --- |
    | parity | 0, 1 | whether the number of ones is odd |
    | counter | -, 0, + | the sum of the steps modulo `modulus` |
    | s3, s5 | swaps of neighbours, and the identity: 3, 5 | the arrangement of three or five things: 6, 120 |

    Raises `UnknownName` for another task and `InputError` for a length, a modulus or a number of rows that is none.
    """

    def __init__(
        self, task: str = "parity", length: int = 40, test_length: int = 0, modulus: int = 5, rows: int = 100_000,
        seed: int = 0,
    ):  # fmt: skip
        if task not in TASKS:
            raise UnknownName("task of state tracking", task, TASKS)
        if min(length, rows) < 1 or test_length < 0 or modulus < 2:
            raise InputError(
                f"A word needs a symbol and a counter two states; length {length}, test length {test_length}, modulus "
                f"{modulus} and {rows} rows were asked for."
            )
        self.task, self.length, self.test_length, self.modulus = task, length, test_length or 4 * length, modulus
        self.rows, self.seed, self.machine = rows, seed, _machine(task, modulus)

    @property
    def vocab_size(self) -> int:
        """Tokens: as many as symbols or states, whatever is more."""
        return max(len(self.machine.symbols), len(self.machine.states))

    @property
    def test(self) -> Tracking:
        """Rows of the test length, 1,000 at most."""
        rows = min(self.rows, 1000)
        return Tracking(self.task, self.test_length, self.test_length, self.modulus, rows, self.seed + 1)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng((self.seed, index))
        token = rng.integers(len(self.machine.symbols), size=self.length).astype(np.int32)
        return {"token": token, "label": self.solved(token), "learn": np.ones(self.length, bool)}

    def solved(self, token: Sequence[int] | np.ndarray) -> Int[np.ndarray, " T"]:
        """The state after every symbol."""
        after, state = self.machine.after, 0
        found = np.empty(len(token), np.int32)
        for t, symbol in enumerate(token):
            found[t] = state = after[symbol, state]
        return found


def _machine(task: str, modulus: int) -> Machine:
    match task:
        case "parity":
            return Machine(["0", "1"], ["even", "odd"], np.asarray([[0, 1], [1, 0]], np.int32))
        case "counter":
            state = np.arange(modulus, dtype=np.int32)
            after = np.stack([(state + step) % modulus for step in (-1, 0, 1)])
            return Machine(["-", "0", "+"], [str(s) for s in state], after)
    return _arrangements(int(task[1:]))


def _arrangements(things: int) -> Machine:
    """All orders of some things, from the sorted one by their names; symbol s swaps the things at places s - 1 and s.

    Of three: "abc" is state 0, and symbol 1 leads to "bac", symbol 2 from there to "bca".
    """
    orders = list(itertools.permutations(range(things)))
    number = {order: i for i, order in enumerate(orders)}
    moves = [list(range(things)) for _ in range(things)]
    for s in range(1, things):
        moves[s][s - 1], moves[s][s] = s, s - 1
    after = np.asarray([[number[tuple(order[i] for i in move)] for order in orders] for move in moves], np.int32)
    names = "abcdefgh"[:things]
    symbols = ["".join(names[i] for i in move) for move in moves]
    return Machine(symbols, ["".join(names[i] for i in order) for order in orders], after)
