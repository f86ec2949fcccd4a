"""What a transformer remembers: the key/value cache, and the delta that a call would add to it."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from paradec import struct
from paradec.ops.cache_write import AXES, cache_write

BLOCK = 128
"""Slots read at once. Caches are rounded up to it; a call reads as many blocks as its longest live row needs."""


@struct.dataclass
class KVCache:
    """Keys and values of every committed token but the last, head-major and stacked over layers."""

    k: Float[Array, "L B H S K"]
    v: Float[Array, "L B H S K"]
    length: Int32[Array, "B"]

    def axes(self) -> KVCache:
        """The logical axes of every leaf, named as in `Spec.axes`."""
        return self.replace(k=AXES, v=AXES, length=("batch",))


@struct.dataclass
class KVDelta:
    """Keys and values that an `extend` computed and nobody has stored yet."""

    k: Float[Array, "L B H N K"]
    v: Float[Array, "L B H N K"]


def empty_cache(layers: int, batch: int, heads: int, slots: int, head_dim: int, dtype: str) -> KVCache:
    """A cache of no tokens; slots are rounded up to the attention block, since block reads clamp silently."""
    slots = -(-slots // BLOCK) * BLOCK
    k = jnp.zeros((layers, batch, heads, slots, head_dim), dtype)
    return KVCache(k=k, v=jnp.zeros_like(k), length=jnp.zeros(batch, jnp.int32))


def commit(cache: KVCache, delta: KVDelta, path: Int[Array, "B P"] | None, count: Int[Array, "B"]) -> KVCache:
    """The cache with delta rows `path[:count]` appended to each row. Only the accepted path is touched.

    A row of length 5, path (0, 2, 3), count 2: slots 5 and 6 get the keys of nodes 0 and 2, and the length is 7.
    """

    def along(x: Float[Array, "L B H N K"]) -> Float[Array, "L B H P K"]:
        return x if path is None else jnp.take_along_axis(x, path[None, :, None, :, None], axis=3)

    # All P nodes of a path are gathered, P being static; `store` writes the first `count` of them.
    moved = KVDelta(k=along(delta.k), v=along(delta.v))
    return store(cache, moved, cache.length, count, cache.length + count)


def store(
    cache: KVCache, delta: KVDelta, start: Int[Array, "B"], count: Int[Array, "B"], length: Int[Array, "B"]
) -> KVCache:
    """The cache with delta rows `:count` at slots `start` on, and with `length` slots in use."""
    k = cache_write(cache.k, delta.k, start, count)
    return KVCache(k=k, v=cache_write(cache.v, delta.v, start, count), length=length)
