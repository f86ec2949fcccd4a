"""The laws of the canvas engine as functions: each asks one question of any method, and raises a sentence if it fails.

Everything that varies between trials (temperature, prompt lengths, limits, order of rows) is a value, so all laws of a
method share one compiled program of its prompt and one of its loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from paradec.decode import loop
from paradec.decode.canvas import Canvas
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.seams import Method
from paradec.testing.laws import same
from paradec.types import OPEN, DecodeState, Prompt

LENGTHS, LIMITS, SLOTS = (8, 1, 5), (24, 15, 24), 24
"""Of the rows that a method is tried on. A prompt of 8 is a whole block, which must not be forgotten."""


def prompts(vocab: int, lengths: Sequence[int] = LENGTHS, slots: int = SLOTS, seed: int = 0) -> Prompt:
    """Random prompts of these lengths; behind them stand random tokens, which must not count."""
    token = np.random.default_rng(seed).integers(vocab, size=(len(lengths), slots))
    return Prompt(token=jnp.asarray(token, jnp.int32), length=jnp.asarray(lengths, jnp.int32))


def decode(
    method: Method, params: PyTree, prompt: Prompt, *, limit: Any = LIMITS, temperature: Any = 0.0, key: Any = None
) -> DecodeState:
    """A finished decode; rows are keyed by their number."""
    return loop.run(method, params, started(method, params, prompt, limit, temperature, key), OPEN)


def started(
    method: Method, params: PyTree, prompt: Prompt, limit: Any, temperature: Any, key: Any = None
) -> DecodeState:
    """The state after the prompt."""
    rows = len(prompt.length)
    key = row_keys(0, range(rows)) if key is None else key
    how = sampling(rows, temperature=np.asarray(temperature).tolist())
    limit = jnp.asarray(limit, jnp.int32)
    return loop.start(method, params, prompt, limit, key, how, slots=prompt.token.shape[1], chunk=16)


def base(method: Any) -> Canvas:
    """The canvas that a method steps or wraps."""
    return method if isinstance(method, Canvas) else method.base


def trace(method: Any, prompt: Prompt, state: DecodeState) -> None:
    """The prompt stands as it stood; every position behind it is committed by a call that the row made, none beyond its
    limit, none by the mask token; only a rule that may take tokens back has revised any; and every row is done."""
    select, target = base(method).select, base(method).target
    tokens, at, limit, length = (np.asarray(x) for x in (state.tokens, state.committed_at, state.limit, state.length))
    assert np.asarray(state.done).all(), "run returned although a row is not done"
    for b, n in enumerate(np.asarray(prompt.length)):
        assert (at[b, :n] == 0).all(), f"row {b}: a prompt position is not committed by call 0"
        assert np.array_equal(tokens[b, :n], prompt.token[b, :n]), f"row {b}: the prompt has changed"
        assert length[b] <= max(limit[b], n), f"row {b} ends at {length[b]}, beyond its limit of {limit[b]}"
        assert (at[b, limit[b] :] == OPEN).all(), f"row {b}: a position beyond its limit of {limit[b]} is committed"
        new, calls = at[b, n : length[b]], int(state.calls[b])
        assert (new != OPEN).all(), f"row {b}: its text holds a masked position"
        assert new.size == 0 or (new.min() >= 1 and new.max() <= calls), f"row {b}: {calls} calls, but {new} commit"
        if target.mask_id is not None:
            assert (tokens[b, n : length[b]] != target.mask_id).all(), f"row {b}: its text holds the mask token"
    revised = np.asarray(front(state).revised)
    assert select.revocable or select.noisy or not revised.any(), "a rule that never takes back a token has revised one"


def front(state: DecodeState) -> Any:
    """The `Front` of a state, also of one that a wrapper holds."""
    return state.carry if hasattr(state.carry, "revised") else state.carry.front  # what wraps a canvas holds its front


def budget(method: Any, prompt: Prompt, state: DecodeState) -> None:
    """No row takes more calls than its rule declares for so many positions in so many blocks."""
    canvas = base(method)
    for b, n in enumerate(np.asarray(prompt.length)):
        positions = max(int(state.limit[b]) - int(n), 0)
        size = canvas.region.reach or positions
        blocks = -(-positions // max(size, 1)) + (1 if canvas.target.block else 0)  # a prompt may end inside one
        blocks = blocks if canvas.region.fixed else max(positions, 1)  # else a block may be a single position
        most, calls = canvas.select.most_calls(positions, blocks), int(state.calls[b])
        assert calls <= most, f"row {b} took {calls} calls for {positions} positions; its rule declares {most}"


def rows(method: Any, params: PyTree, prompt: Prompt, *, permute: bool = True, limit: Any = LIMITS) -> None:
    """A row has the same text and the same trace in any company, at any place in the batch, and at any padding."""
    count, limit = len(prompt.length), np.asarray(limit)
    hot = np.asarray([0.8, 0.0, 1.0])[np.arange(count) % 3]
    together = decode(method, params, prompt, limit=limit, temperature=hot)
    text = jnp.arange(prompt.token.shape[1])[None] < prompt.length[:, None]
    padded = prompt.replace(token=jnp.where(text, prompt.token, 5))
    pairs = [(b, b) for b in range(count)]
    same(together, decode(method, params, padded, limit=limit, temperature=hot), pairs)
    alone = np.where(np.arange(count) == count - 1, limit, np.asarray(prompt.length))  # others are done from the start
    same(together, decode(method, params, prompt, limit=alone, temperature=hot), pairs[-1:])
    if permute:
        order = np.roll(np.arange(count), 1)
        moved = jax.tree.map(lambda x: x[order], prompt)
        key = row_keys(0, range(count))[order]
        other = decode(method, params, moved, limit=limit[order], temperature=hot[order], key=key)
        same(together, other, [(int(b), i) for i, b in enumerate(order)])


def loops(method: Any, params: PyTree, prompt: Prompt, *, limit: Any = LIMITS) -> None:
    """`stream` ends where `run` ends; without a rule that takes tokens back, nothing that it shows changes later."""
    final = loop.snapshot(decode(method, params, prompt, limit=limit))
    shown = list(loop.stream(method, params, started(method, params, prompt, limit, 0.0)))
    jax.tree.map(np.testing.assert_array_equal, shown[-1], final)
    for now in [] if base(method).select.revocable else shown:
        done = now.committed_at != OPEN
        assert np.array_equal(now.tokens[done], final.tokens[done]), "a token that was shown has changed later"


def texts_of_base(method: Any, params: PyTree, prompt: Prompt, *, limit: Any = LIMITS) -> None:
    """What wraps a method returns that method's texts, from no more calls."""
    plain = decode(base(method), params, prompt, limit=limit)
    fast = decode(method, params, prompt, limit=limit)
    same(plain, fast, [(b, b) for b in range(len(prompt.length))], stamps=False)
    assert (np.asarray(fast.calls) <= np.asarray(plain.calls)).all(), f"calls {fast.calls}, of its base {plain.calls}"
