"""A depthwise causal convolution over a few positions (Mamba, 2312.00752), with its state, on chains and on trees."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from paradec.models.mixer import Call
from paradec.ops.mask import Facts


def short_conv(x: Float[Array, "B T D"], weight: Float[Array, "W D"], facts: Facts) -> Float[Array, "B T D"]:
    """`y[t] = sum over d of weight[W - 1 - d] * x[t - d]`, float32, within a segment; what is not valid counts as 0."""
    W, T = weight.shape[0], x.shape[1]
    x, weight = x.astype(jnp.float32), weight.astype(jnp.float32)[:, None, None]
    if facts.valid is not None:
        x = jnp.where(facts.valid[..., None], x, 0)
    total = x * weight[-1]
    for back in range(1, min(W, T)):
        moved = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :T]
        if facts.segment is not None:
            same = facts.segment == jnp.pad(facts.segment, ((0, 0), (back, 0)), mode="edge")[:, :T]
            moved = jnp.where(same[..., None], moved, 0)
        total = total + moved * weight[-1 - back]
    return total


def conv_rows(
    x: Float[Array, "B N D"], weight: Float[Array, "W D"], tail: Float[Array, "B W-1 D"], call: Call, count: int
) -> Float[Array, "B M D"]:
    """The convolution at the `count` rows of a call, float32. `x` are the inputs of all N rows of the delta.

    `tail` are the last W - 1 inputs before the rows. Row n's d-th ancestor is found by following parents; past a root
    the walk goes on in the tail from its end. With W = 3 a node below a root reads itself, the root and tail[-1].
    """
    W, rows, weight = weight.shape[0], call.rows, weight.astype(jnp.float32)[:, None, None]
    index = lax.broadcasted_iota(jnp.int32, x.shape[:2], 1)
    parent = jnp.maximum(index - 1, 0) if rows.parent is None else rows.parent
    mine = lambda a: lax.dynamic_slice_in_dim(a, rows.start, count, axis=1)
    node, past = mine(index), jnp.zeros((x.shape[0], count), jnp.int32)
    at = lambda a, i: jnp.take_along_axis(a.astype(jnp.float32), i[..., None], axis=1)
    total = at(x, node) * weight[-1]
    for back in range(1, W):
        above = jnp.take_along_axis(parent, node, axis=1)
        past = past + (above == node).astype(jnp.int32)  # at a root: one step further into the tail each time
        node = above
        value = jnp.where((past > 0)[..., None], at(tail, jnp.maximum(W - 1 - past, 0)), at(x, node))
        total = total + value * weight[-1 - back]
    return total


def conv_commit(
    tail: Float[Array, "L B tail D"],
    x: Float[Array, "L B N D"],
    path: Int[Array, "B P"] | None,
    count: Int[Array, "B"],
) -> Float[Array, "L B tail D"]:
    """The last W - 1 inputs after rows `path[:count]`: of the old tail and the kept rows together, the end."""
    kept = x if path is None else jnp.take_along_axis(x, path[None, :, :, None], axis=2)
    both = jnp.concatenate([tail, kept.astype(tail.dtype)], axis=2)
    place = count[:, None] + lax.iota(jnp.int32, tail.shape[2])[None]
    return jnp.take_along_axis(both, place[None, :, :, None], axis=2)
