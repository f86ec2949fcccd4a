"""Grouped-query attention that returns `(out, lse)`, and the exact merge of partial results.

`merge` is associative and exact, so a softmax over any set of keys may be computed in pieces: blocks of a cache, a
prefix and a draft tree, shards of a ring. Queries are laid out "B H G Q K": H key/value heads, G queries for each.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from paradec import struct
from paradec.ops.mask import Block, Facts, Mask
from paradec.ops.product import wide_einsum

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
    score = wide_einsum("bhgqk,bhsk->bhgqs", q, k) * scale
    if see is not None:
        score = jnp.where(see[:, None, None], score, HIDDEN)
    top = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - top)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    out = wide_einsum("bhgqs,bhsk->bhgqk", weight.astype(v.dtype), v) / total
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

    def some(q: Array, query: Facts) -> Array:
        see = _seen(mask(query, facts), facts)
        out = attend(q, k, v, see, scale).out
        return jnp.where(see.any(-1)[:, None, None, :, None], out, 0.0)

    return _in_chunks(some, q, facts, chunk)


def attend_two_stream(
    q: Float[Array, "B2 H G T K"],
    k: Float[Array, "B2 H T K"],
    v: Float[Array, "B2 H T K"],
    block: int,
    facts: Facts,
    scale: float,
    chunk: int = 512,
) -> Float[Array, "B2 H G T K"]:
    """Attention of block-diffusion training (BD3-LM, 2503.09573): row 2b is text b with noise, row 2b + 1 it, clean.

    A clean token sees clean tokens of its block and before; a noisy one its own noisy block, and the clean blocks
    before it. The noisy rows' two parts are merged, so neither 2T x 2T scores nor a mask of that shape ever exist.
    `facts` are those of B rows whose positions begin at 0. Raises `ValueError` unless T is a multiple of `block`.
    """
    B, H, G, T, K = q.shape[0] // 2, *q.shape[1:]
    if T % block:
        raise ValueError(f"Rows of {T} tokens do not split into blocks of {block}; pad them.")
    (qn, qc), (kn, kc), (vn, vc) = (unpair(x) for x in (q, k, v))
    clean = attend_masked(qc, kc, vc, Block(block), facts, scale, chunk)

    def before(q: Array, query: Facts) -> Partial:
        mine, theirs = query.position[:, :, None] // block, facts.position[:, None] // block
        return attend(q, kc, vc, _seen(theirs < mine, facts), scale)

    def fold(x: Array) -> Array:  # blocks become rows
        apart = x.reshape(*x.shape[:-2], T // block, block, K)
        return jnp.moveaxis(apart, -3, 1).reshape(B * (T // block), *x.shape[1:-2], block, K)

    inside = None if facts.valid is None else facts.valid.reshape(-1, 1, block)
    own = attend(fold(qn), fold(kn), fold(vn), inside, scale)
    own = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(B, T // block, H, G, block, *x.shape[4:]), 1, 3), own)
    own = Partial(own.out.reshape(B, H, G, T, K), own.lse.reshape(B, H, G, T))
    noisy = merge(own, _in_chunks(before, qn, facts, chunk)).out
    return pair(noisy, clean.astype(noisy.dtype))


def pair(noisy: Shaped[Array, "B ..."], clean: Shaped[Array, "B ..."]) -> Shaped[Array, "B2 ..."]:
    """Two streams as one batch, row beside row: one after the other, a batch that is split over devices would have the
    noisy rows on some and their clean ones on others, and every layer would send all keys around."""
    return jnp.stack([noisy, clean], axis=1).reshape(-1, *noisy.shape[1:])


def unpair(both: Shaped[Array, "B2 ..."]) -> tuple[Shaped[Array, "B ..."], Shaped[Array, "B ..."]]:
    """The two streams of a batch that `pair` made."""
    apart = both.reshape(-1, 2, *both.shape[1:])
    return apart[:, 0], apart[:, 1]


def _seen(see: Bool[Array, "B Q S"], facts: Facts) -> Bool[Array, "B Q S"]:
    return see if facts.valid is None else see & facts.valid[:, None, :]


def _in_chunks(
    some: Callable[[Array, Facts], PyTree], q: Float[Array, "B H G T K"], facts: Facts, chunk: int
) -> PyTree:
    """`some` of `chunk` queries at a time; every leaf of its result has the queries at axis 3."""
    T = q.shape[3]
    if T <= chunk or T % chunk:
        return some(q, facts)
    pieces = jnp.moveaxis(q.reshape(*q.shape[:3], T // chunk, chunk, q.shape[4]), 3, 0)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], T // chunk, chunk), 1, 0), facts)
    out = lax.map(lambda args: jax.checkpoint(some)(*args), (pieces, split))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], T, *x.shape[5:]), out)
