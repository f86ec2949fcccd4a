"""How far a cache leads a canvas decode astray: its logits beside the true ones, on the uncached decode's own canvases.

Texts that were decoded under different logits soon differ in every respect, so comparing their logits says little. Here
the decode goes where the uncached one goes; at every call the cache is asked too, and kept as it would be kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from paradec.decode.canvas import Canvas, keep
from paradec.decode.canvas_cache import Whole
from paradec.errors import InputError
from paradec.types import OPEN, DecodeState


class Seen(NamedTuple):
    """What one turn says of each row: its open positions of the block, before the call."""

    count: Int[Array, "B"]  # 0 for a row that is done, or waits
    largest: Float[Array, "B"]  # |difference of a logit|
    total: Float[Array, "B"]  # sum over positions of their largest
    same: Int[Array, "B"]  # positions whose likeliest token is the same
    opening: Bool[Array, "B"]


class Drift(NamedTuple):
    """Cached against true logits, over all calls and open positions of a decode."""

    positions: int
    largest: float
    """The greatest difference of any logit."""
    opening: float
    """The same of opening calls alone, in which the policy has just recomputed what it keeps."""
    mean: float
    """Each position's greatest difference, averaged."""
    same: float
    """Share of positions whose likeliest token is the same."""


def drift(method: Canvas, params: PyTree, state: DecodeState) -> Drift:
    """Decode from a state that `loop.start` made to the end, without the cache of `method` but beside it.

    Raises `InputError` for a method that keeps nothing.
    """
    if not method.cache.keeps:
        raise InputError("Without a cache there is no drift; give the method one.")
    turns = []
    while not bool(state.done.all()):
        state, seen = turn(method, params, state)
        turns.append(jax.device_get(seen))
    count, largest, total, same, opening = (np.stack(x) for x in zip(*turns, strict=True))
    n = int(count.sum())
    at_opening = float(np.max(largest, where=opening, initial=0.0))
    return Drift(n, float(largest.max()), at_opening, float(total.sum()) / n, int(same.sum()) / n)


@jax.jit
def turn(method: Canvas, params: PyTree, state: DecodeState) -> tuple[DecodeState, Seen]:
    """One turn along the uncached decode. Rows take their turns when the policy lets them."""
    window = method.window(state.tokens.shape[1])
    cached, called, acting = method.predict(params, state)
    true, *_ = Whole().call(method.target, params["target"], state, window, method.select.shadows)
    after = keep(method.transition(called, true), state, acting)
    slot = jnp.minimum(cached.position, state.tokens.shape[1] - 1)
    end = jnp.minimum(after.carry.block_end, state.limit)[:, None]
    open_ = jnp.take_along_axis(state.committed_at, slot, axis=1) == OPEN
    read = open_ & (cached.position >= state.carry.block_start[:, None]) & (cached.position < end) & acting[:, None]
    a, b = (method.suppress(reply.logits) for reply in (cached, true))
    away = jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(a - b), 0.0), axis=-1, initial=0.0)
    away = jnp.where(read, away, 0.0)
    same = read & (jnp.argmax(a, axis=-1) == jnp.argmax(b, axis=-1))
    count = lambda x: jnp.sum(x, axis=-1, dtype=jnp.int32)
    return after, Seen(count(read), jnp.max(away, axis=-1), jnp.sum(away, axis=-1), count(same), state.carry.fresh)
