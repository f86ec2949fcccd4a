"""Diagonal affine recurrences `h_n = a_n * h_parent(n) + b_n`, over a chain or over a draft tree, in float32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def tree_scan(
    a: Float[Array, "B N D"],
    b: Float[Array, "B N D"],
    parent: Int[Array, "B N"] | None,
    h0: Float[Array, "B D"],
) -> Float[Array, "B N D"]:
    """The state after every node (float32); a node that is its own parent hangs on `h0`, and None means one chain.

    Parents may stand anywhere. The chain is one associative scan; the tree composes each node's affine map with its
    parent's, then its grandparent's, …: log2 N rounds of pointer doubling (Wyllie's list ranking). On a chain of 4,
    round 1 composes nodes (1, 0), (2, 1), (3, 2) and lets 2 and 3 point to 0 and 1; round 2 completes 2 and 3.
    """
    a, b, h0 = (x.astype(jnp.float32) for x in (a, b, h0))
    if parent is None:
        b = b.at[:, 0].add(a[:, 0] * h0)
        return lax.associative_scan(lambda x, y: (y[0] * x[0], y[0] * x[1] + y[1]), (a, b), axis=1)[1]
    root = (parent == lax.broadcasted_iota(parent.dtype, parent.shape, 1))[..., None]
    b = jnp.where(root, a * h0[:, None] + b, b)
    a = jnp.where(root, 0.0, a)  # a root is a constant, so composing it with itself changes nothing
    for _ in range((parent.shape[1] - 1).bit_length()):
        up = parent[..., None]
        b = a * jnp.take_along_axis(b, up, axis=1) + b
        a = a * jnp.take_along_axis(a, up, axis=1)
        parent = jnp.take_along_axis(parent, parent, axis=1)
    return b
