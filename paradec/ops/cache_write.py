"""The one write of a decode step: append each row's accepted entries to a stacked cache, in place.

The obvious scatter makes the TPU compiler copy the whole cache to another layout and back, four times a step. A loop
over rows that reads a window, replaces what counts and writes it back does not; inside `shard_map` each device loops
over its own rows and heads, so nothing is gathered either.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from paradec import mesh

AXES = ("layers", "batch", "kv_heads", None, None)
"""The logical axes of a stacked cache, and of what is written to it."""


def cache_write(
    buffer: Shaped[Array, "L B H S K"],
    new: Shaped[Array, "L B H P K"],
    start: Int[Array, "B"],
    count: Int[Array, "B"],
    *,
    implementation: str | None = None,
) -> Shaped[Array, "L B H S K"]:
    """`buffer` with `new[:, b, :, :count[b]]` at slot `start[b]` of every row b; other slots keep their bits.

    A row that writes needs `start + count <= S`: what does not count may stick out behind the end, as it does where a
    prompt's last chunk or a last draft is wider than what is left. A row with count 0 may start anywhere.
    `implementation` is "window" (default) or "scatter", the reference.
    """
    if implementation == "scatter":
        return _scatter(buffer, new, start, count)
    active = mesh.current()
    if active is None:
        return _window(buffer, new, start, count)
    stack = active.spec(AXES, buffer.shape)
    row = active.spec(("batch",), start.shape)
    return jax.shard_map(_window, in_specs=(stack, stack, row, row), out_specs=stack)(buffer, new, start, count)


def _window(buffer: Array, new: Array, start: Array, count: Array) -> Array:
    L, B, H, S, K = buffer.shape
    P = min(new.shape[3], S)
    i = lax.iota(jnp.int32, P)[:, None]
    # A slice that sticks out would be moved back without a word. So the window begins early enough to fit, and its
    # entries as many slots further inside it. S = 8, P = 4, start 6, count 2: the window is slots 4 to 7, `shift` is 2,
    # `fresh` is the padded entries from P - 2 on, (0, 0, new 0, new 1), and entries 2 and 3 of the window are replaced.
    first = jnp.minimum(start, S - P)
    shift = start - first
    padded = jnp.pad(new[:, :, :, :P], ((0, 0), (0, 0), (0, 0), (P, 0), (0, 0)))

    def row(b: Array | int, buffer: Array) -> Array:
        at, size = (0, b, 0, first[b], 0), (L, 1, H, P, K)
        old = lax.dynamic_slice(buffer, at, size)
        fresh = lax.dynamic_slice(padded, (0, b, 0, P - shift[b], 0), size)
        inside = (i >= shift[b]) & (i < shift[b] + count[b])
        return lax.dynamic_update_slice(buffer, jnp.where(inside, fresh, old), at)

    # As many turns as there may be writers, which no compiler knows: the loop of a single row would be unrolled, and on
    # TPU the cache then copied after all.
    writers = jnp.max(jnp.where(count > 0, lax.iota(jnp.int32, B) + 1, 0))
    return lax.fori_loop(0, writers, row, buffer)


def _scatter(buffer: Array, new: Array, start: Array, count: Array) -> Array:
    i = lax.iota(jnp.int32, new.shape[3])
    at = jnp.where(i[None] < count[:, None], start[:, None] + i[None], buffer.shape[3])  # out of range: dropped
    put = jax.vmap(jax.vmap(lambda c, u, at: c.at[at].set(u, mode="drop"), (0, 0, None)), (0, 0, 0))
    return jax.vmap(put, (0, 0, None))(buffer, new, at)
