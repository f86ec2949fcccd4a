"""Drivers: `start` a decode, `run` it to the end on the device, or `stream` it. All three use the method's one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Int, Int32, PyTree

from paradec.decode.logprobs import room
from paradec.decode.seams import Method
from paradec.mesh import constrain
from paradec.types import OPEN, DecodeState, Logprobs, Prompt, Sampling


class Snapshot(NamedTuple):
    """Host copies of what a reader of a running decode needs; the state itself is donated to the next step."""

    tokens: Int32[np.ndarray, "B S"]
    committed_at: Int32[np.ndarray, "B S"]
    length: Int32[np.ndarray, "B"]
    done: Bool[np.ndarray, "B"]
    calls: Int32[np.ndarray, "B"]
    logprobs: Logprobs | None = None


def snapshot(state: DecodeState) -> Snapshot:
    """Fetch the small leaves of a state; where processes hold a part each, every process gets all rows."""
    leaves = (state.tokens, state.committed_at, state.length, state.done, state.calls, state.logprobs)
    if not state.tokens.is_fully_addressable:
        leaves = multihost_utils.process_allgather(leaves, tiled=True)
    return Snapshot(*jax.tree.map(np.asarray, jax.device_get(leaves)))


def finished(state: DecodeState) -> bool:
    """Whether every row is done. Waits for the device."""
    done = state.done
    return bool(np.asarray(done).all() if done.is_fully_addressable else jnp.all(done))


@dataclasses.dataclass
class Pace:
    """How many turns to ask of `run` at once: about a second's.

    Nothing interrupts a device call, and each costs some milliseconds besides its turns. The processes of one
    job must all ask for the same number, and each has a clock of its own: there it is fixed.
    """

    turns: int = 1
    seconds = 1.0
    together = 32

    def __post_init__(self) -> None:
        if jax.process_count() > 1:
            self.turns = self.together

    def took(self, turns: int, seconds: float) -> None:
        """Learn from a call of so many turns that left rows to be done."""
        if jax.process_count() == 1:
            fitting = turns * self.seconds / max(seconds, 1e-6)
            self.turns = int(min(max(fitting, 1), 16 * self.turns, OPEN))


def axes(state: PyTree) -> PyTree:
    """The logical axes of every leaf of a state: a cache names its own (`cache.axes()`), all others are batch first."""

    def one(x: Any) -> Any:
        return x.axes() if named(x) else ("batch", *(None,) * x.ndim)[: x.ndim]

    return jax.tree.map(one, state, is_leaf=named)


def named(x: Any) -> bool:
    """Whether a part of a state names the logical axes of its leaves, as the cache of a model does."""
    return hasattr(x, "axes")  # a model's cache is a type of its own; an array has none


def placed(state: DecodeState) -> DecodeState:
    """The state, laid out on the mesh in use (see `mesh.use`); without one, as it is."""
    return jax.tree.map(constrain, state, axes(state))


@partial(jax.jit, static_argnames=("slots", "chunk", "logprobs"))
def start(
    method: Method,
    params: PyTree,
    prompt: Prompt,
    limit: Int[Array, "B"],
    key: jax.Array,
    sampling: Sampling,
    *,
    slots: int,
    chunk: int,
    logprobs: int | None = None,
) -> DecodeState:
    """The state after reading the prompt; no token is generated yet. Compiles once per (batch, slots, chunk).

    With `logprobs` those of every token to come are noted in the state, and of so many of the likeliest in its place.
    """
    state = method.init(params, prompt, limit, key, sampling, slots)
    if logprobs is not None:
        state = state.replace(logprobs=room(*state.tokens.shape, logprobs))
    return placed(method.prefill(params, placed(state), chunk))


@partial(jax.jit, donate_argnames=("state",))
def run(method: Method, params: PyTree, state: DecodeState, turns: Int[Array, ""] | int = OPEN) -> DecodeState:
    """Step until every row is done, or at most `turns` times (a value, not a shape). The state is donated."""

    def unfinished(carry: tuple[Array, DecodeState]) -> Array:
        return (carry[0] < turns) & ~jnp.all(carry[1].done)

    def turn(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        # Laid out as it came in: else the compiler may choose anew, and the donated buffers would not fit.
        return carry[0] + 1, placed(method.step(params, carry[1]))

    return lax.while_loop(unfinished, turn, (jnp.int32(0), state))[1]


def stream(method: Method, params: PyTree, state: DecodeState, every: int = 1) -> Iterator[Snapshot]:
    """Yield what is committed after every `every` turns, until all rows are done. It is `run`, a few turns at a
    time."""
    while True:
        state = run(method, params, state, np.int32(every))
        now = snapshot(state)
        yield now
        if now.done.all():
            return


def bucket(n: int, smallest: int = 16) -> int:
    """`n` rounded up to a power of two or the middle between two, so that few shapes are ever compiled."""
    size = smallest
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size
