"""Gated linear attention for the rows of a draft, chain or tree, on top of a state that stays as it is.

What rows leave behind is not a state each, "K V", but the factors of one: key, value and gate. From those of the rows
that are kept the next state is one product.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from paradec.ops.gla_chunk import bounded
from paradec.ops.recurrent import state_dtype

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def gla_rows(
    q: Float[Array, "B M Q K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    g: Float[Array, "B N H K"],
    state: Float[Array, "B H K V"],
    see: Bool[Array, "B N N"],
    *,
    start: Int[Array, ""] | int = 0,
    scale: float | None = None,
) -> Float[Array, "B M Q V"]:
    """The outputs of rows `start` to `start + M` of a tree of N rows, in q's type; computed as `ops.gla.gla` does.

    `see[b, i, j]` says whether row j is row i or an ancestor of it (`ops.mask.ancestors`). Rows may stand in any order;
    what no query sees may be anything finite.

    With b_i the sum of the gates of i and its ancestors, row i reads the state through `exp(b_i)` and row j through
    `exp(b_i - b_j)`. In the tree 0 -> 1 -> 2, 0 -> 3, row 2 reads row 0 through g_1 + g_2, and 3 through g_3.
    """
    dtype, (B, M, Q, K), H = state_dtype(q), q.shape, k.shape[2]
    k, v, g, state = (x.astype(dtype) for x in (k, v, g, state))
    wide = q.astype(dtype).reshape(B, M, H, Q // H, K) * (K**-0.5 if scale is None else scale)
    total = _einsum("bij,bjhk->bihk", see.astype(dtype), bounded(g))
    mine = lambda x: lax.dynamic_slice_in_dim(x, start, M, axis=1)
    b, sees = mine(total), mine(see)
    # A pair's exponent is taken before `exp`: apart, exp(-b_j) would overflow. The sum over K never stands in memory.
    decay = jnp.exp(jnp.where(sees[..., None, None], b[:, :, None] - total[:, None], -jnp.inf))
    scores = jnp.sum(wide[:, :, None] * (k[:, None] * decay)[:, :, :, :, None], axis=-1)  # "B M N H G"
    # Rows and groups as one axis of the product, for the reason in `gla_chunk.attend`.
    read = (wide * jnp.exp(b)[:, :, :, None]).transpose(0, 2, 1, 3, 4).reshape(B, H, -1, K)
    past = _einsum("bhtk,bhkv->bhtv", read, state).reshape(B, H, M, Q // H, -1).transpose(0, 2, 1, 3, 4)
    o = past + _einsum("bmnhg,bnhv->bmhgv", scores, v)
    return o.reshape(B, M, Q, -1).astype(q.dtype)


def gla_commit(
    state: Float[Array, "B H K V"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    g: Float[Array, "B N H K"],
    path: Int[Array, "B P"] | None,
    count: Int[Array, "B"],
) -> Float[Array, "B H K V"]:
    """The state after rows `path[:count]` (None: rows 0, 1, 2, …), in its own type; a count of 0 keeps every bit.

    Each kept row's entry decays by the gates of those kept after it: with rows 0, 1, 2 kept, row 0 by g_1 + g_2.
    """
    if path is not None:
        k, v, g = (jnp.take_along_axis(x, path[:, :, None, None], axis=1) for x in (k, v, g))
    dtype = state.dtype
    keep = (lax.broadcasted_iota(jnp.int32, k.shape[:2], 1) < count[:, None])[..., None, None]
    g = jnp.where(keep, bounded(g.astype(dtype)), 0)
    here_on = lax.cumsum(g, axis=1, reverse=True)
    behind = jnp.pad(here_on[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    left = jnp.where(keep, k.astype(dtype), 0) * jnp.exp(behind)
    entries = _einsum("bnhk,bnhv->bhkv", left, jnp.where(keep, v.astype(dtype), 0))
    after = jnp.exp(here_on[:, 0])[..., None] * state + entries
    return jnp.where((count > 0)[:, None, None, None], after, state)
