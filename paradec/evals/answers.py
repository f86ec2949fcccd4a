"""What a diffusion model answers to questions whose right answers are known, and what each answer costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int32, PyTree

from paradec.data.text import Row
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.seams import Method
from paradec.types import OPEN, DecodeState, Prompt


class Questions(Protocol):
    """Rows of a prompt and one right answer, the part that is learned; others may be right too."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def right(self, token: Sequence[int] | np.ndarray, answer: Sequence[int] | np.ndarray) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Answers:
    """One answer to every question of a source, with the row's own costs."""

    canvas: Int32[np.ndarray, "R S"]  # prompt and answer, whatever stands behind the end included
    text: Int32[np.ndarray, "R S"]  # the same up to the answer's end, then -1
    committed_at: Int32[np.ndarray, "R S"]
    right: Bool[np.ndarray, "R"]
    tokens: Int[np.ndarray, "R"]  # of the answer, up to its first end-of-text where there is one
    calls: Int[np.ndarray, "R"]
    queries: Int[np.ndarray, "R"]  # positions that the model computed
    refreshes: Int[np.ndarray, "R"]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())

    @property
    def error(self) -> float:
        """One standard deviation of `accuracy`."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))

    @property
    def tokens_per_call(self) -> float:
        """Answer tokens, padding behind the end-of-text not counted, over all calls."""
        return float(self.tokens.sum() / self.calls.sum())

    def agreement(self, other: Answers) -> float:
        """The share of rows whose answers are the same, token for token."""
        return float((self.text == other.text).all(-1).mean())


def ask(
    method: Method, weights: PyTree, source: Questions, *, temperature: float = 0.0, seed: int = 0,
    eos: Sequence[int] = (),
) -> Answers:  # fmt: skip
    """Every question of `source` answered in one batch. Row i draws from key (seed, i).

    `eos` says where an answer ends for counting its tokens; the method has its own.
    """
    rows = [source[index] for index in range(len(source))]
    begin, end = (np.asarray([f(r) for r in rows], np.int32) for f in (lambda r: int(r["learn"].argmax()), _length))
    slots = -(-int(end.max()) // 16) * 16
    token = np.zeros((len(rows), slots), np.int32)
    for line, row, first in zip(token, rows, begin, strict=True):
        line[:first] = row["token"][:first]
    prompt = Prompt(token=jnp.asarray(token), length=jnp.asarray(begin))
    own = dict(temperature=temperature, seed=seed, rows=range(len(rows)))
    return _answers(source, rows, begin, end, filled(method, jax.device_put(weights), prompt, end, slots, **own), eos)


def filled(
    method: Method, weights: PyTree, prompt: Prompt, end: Int[np.ndarray, "R"], slots: int, *,
    temperature: float = 0.0, seed: int = 0, rows: Sequence[int] = (0,),
) -> DecodeState:  # fmt: skip
    """The finished decode of canvases up to `end`. A row draws from key (seed, its number in `rows`)."""
    keys, how, params = row_keys(seed, rows), sampling(len(end), temperature=temperature), {"target": weights}
    state = loop.start(method, params, prompt, jnp.asarray(end), keys, how, slots=slots, chunk=16)
    return loop.run(method, params, state, OPEN)


def bare(rows: int) -> Prompt:
    """Prompts without a token, for denoisers that have been told everything in their parameters."""
    return Prompt(token=jnp.zeros((rows, 1), jnp.int32), length=jnp.zeros(rows, jnp.int32))


def _length(row: Row) -> int:
    return len(row["token"])


def _answers(
    source: Questions, rows: Sequence[Row], begin: Int32[np.ndarray, "R"], end: Int32[np.ndarray, "R"],
    state: DecodeState, eos: Sequence[int],
) -> Answers:  # fmt: skip
    canvas, length = np.asarray(state.tokens), np.minimum(np.asarray(state.length), end)
    answers = [line[first:last] for line, first, last in zip(canvas, begin, length, strict=True)]
    right = [source.right(row["token"], answer) for row, answer in zip(rows, answers, strict=True)]
    ended = [np.isin(answer, eos) for answer in answers]
    tokens = np.asarray([int(e.argmax()) + 1 if e.any() else len(e) for e in ended])
    text = np.where(np.arange(canvas.shape[1]) < (begin + tokens)[:, None], canvas, -1)
    stats = state.stats
    return Answers(
        canvas, text, np.asarray(state.committed_at), np.asarray(right), tokens, np.asarray(state.calls),
        np.asarray(stats.queries), np.asarray(stats.refreshes),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trial:
    """One rule at one setting: what was right, what it agreed with, and its costs a row."""

    operation: str
    rule: str
    setting: str
    accuracy: float
    error: float
    tokens_per_call: float
    calls: float
    queries: float
    refreshes: float
    agreement: float
    """With one position a call, the most confident first."""
    theory: float | None = None

    @classmethod
    def of(cls, operation: str, rule: str, setting: str, answers: Answers, static: Answers) -> Trial:
        """The means of `answers`, beside those of static decoding."""
        costs = (float(x.mean()) for x in (answers.calls, answers.queries, answers.refreshes))
        quality = answers.accuracy, answers.error, answers.tokens_per_call
        return cls(operation, rule, setting, *quality, *costs, answers.agreement(static))


def matched(trials: Sequence[Trial], floor: float) -> Mapping[str, Trial | None]:
    """Of each rule the setting with the fewest calls whose accuracy is at least `floor`; None where none is."""
    found: dict[str, Any] = {}
    for trial in trials:
        best = found.setdefault(trial.rule, None)
        if trial.accuracy >= floor and (best is None or trial.calls < best.calls):
            found[trial.rule] = trial
    return found
