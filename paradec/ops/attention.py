"""Grouped-query attention that returns `(out, lse)`, and the exact merge of partial results.

`merge` is associative and exact, so a softmax over any set of keys may be computed in pieces: blocks of a cache, a
prefix and a draft tree, shards of a ring. Queries are laid out "B H G Q K": H key/value heads, G queries for each.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec import struct
from paradec.ops.mask import Facts, Mask

HIDDEN = -1e30  # score of a forbidden key: finite, so a row without any key stays a number and merges with weight 0


@struct.dataclass
class Partial:
    """Attention over some keys: `out` is their normalised mix, `lse` the log of the weight it carries in a merge."""

    out: Float[Array, "B H G Q K"]
    lse: Float[Array, "B H G Q"]


def attend(
    q: Float[Array, "B H G Q K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    see: Bool[Array, "#B #Q S"] | None,
    scale: float,
) -> Partial:
    """Softmax attention in float32 over the keys that `see` allows (None: all). Without any key, lse is near -1e30."""
    score = jnp.einsum("bhgqk,bhsk->bhgqs", q, k, preferred_element_type=jnp.float32) * scale
    if see is not None:
        score = jnp.where(see[:, None, None], score, HIDDEN)
    top = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - top)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    out = jnp.einsum("bhgqs,bhsk->bhgqk", weight.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return Partial(out, (top + jnp.log(total))[..., 0])


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint sets of keys."""
    top = jnp.maximum(a.lse, b.lse)
    wa, wb = jnp.exp(a.lse - top), jnp.exp(b.lse - top)
    total = wa + wb
    return Partial((a.out * wa[..., None] + b.out * wb[..., None]) / total[..., None], top + jnp.log(total))


def attend_cache(
    own: Partial,
    q: Float[Array, "B H G Q K"],
    k: Float[Array, "L B H S K"],
    v: Float[Array, "L B H S K"],
    layer: Int[Array, ""],
    bound: Int[Array, ""],
    see: Callable[[Array], Array],
    scale: float,
    block: int,
) -> Partial:
    """`own` merged with attention over the first `bound` slots of one layer of a stacked cache.

    `see(slots)` says which of them each query may see, "#B Q block". Slots are read block by block, straight from the
    stack (as a scanned slice each layer would be copied), and only as many blocks as `bound`, a traced number, needs.
    S must be a multiple of `block`: the last read would clamp.
    """
    _, B, H, S, K = k.shape
    if not S:
        return own
    if S % block:
        raise ValueError(f"A cache of {S} slots is no multiple of the attention block {block}; round it up.")

    def one(i: Array | int, so_far: Partial) -> Partial:
        at = (layer, 0, 0, i * block, 0)
        keys = lax.dynamic_slice(k, at, (1, B, H, block, K))[0]
        values = lax.dynamic_slice(v, at, (1, B, H, block, K))[0]
        slots = i * block + lax.iota(jnp.int32, block)
        return merge(so_far, attend(q, keys, values, see(slots), scale))

    return lax.fori_loop(0, (bound + block - 1) // block, one, own)


def attend_masked(
    q: Float[Array, "B H G T K"],
    k: Float[Array, "B H T K"],
    v: Float[Array, "B H T K"],
    mask: Mask,
    facts: Facts,
    scale: float,
    chunk: int = 512,
) -> Float[Array, "B H G T K"]:
    """Full-sequence attention under a structured mask, for training and truth.

    Longer sequences go through in chunks of queries, recomputed in the backward pass, so memory is T x chunk.
    Queries without any key return 0.
    """
    T = q.shape[3]

    def some(q: Array, query: Facts) -> Array:
        see = mask(query, facts)
        if facts.valid is not None:
            see = see & facts.valid[:, None, :]
        out = attend(q, k, v, see, scale).out
        return jnp.where(see.any(-1)[:, None, None, :, None], out, 0.0)

    if T <= chunk or T % chunk:
        return some(q, facts)
    pieces = jnp.moveaxis(q.reshape(*q.shape[:3], T // chunk, chunk, q.shape[4]), 3, 0)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], T // chunk, chunk), 1, 0), facts)
    out = lax.map(lambda args: jax.checkpoint(some)(*args), (pieces, split))
    return jnp.moveaxis(out, 0, 3).reshape(q.shape)
