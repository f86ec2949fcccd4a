"""Draft trees: a chain, and several chains merged into a trie."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from paradec.types import DecodeState, Tree


def last_token(state: DecodeState) -> Int[Array, "B"]:
    """Each row's last committed token: the root of every draft."""
    return jnp.take_along_axis(state.tokens, state.length[:, None] - 1, axis=1)[:, 0]


def chain(state: DecodeState, draft: Int[Array, "B K"], valid: Bool[Array, "B K"] | None = None) -> Tree:
    """The last token, then `draft` in a row. `valid` must be a prefix of each row; K may be 0."""
    token = jnp.concatenate([last_token(state)[:, None], draft], axis=1)
    index = lax.broadcasted_iota(jnp.int32, token.shape, 1)
    if valid is None:
        valid = jnp.ones(draft.shape, bool)
    valid = jnp.concatenate([jnp.ones_like(valid[:, :1], shape=(token.shape[0], 1)), valid], axis=1)
    parent = jnp.where(valid, jnp.maximum(index - 1, 0), index)
    return Tree(token=token, parent=parent, depth=index, valid=valid, walk=jnp.ones(token.shape, bool))


def trie(guess: Int[Array, "B G K"], valid: Bool[Array, "B G"], first: int) -> tuple[Array, Array, Array]:
    """Parents, depths and validity of G chains of K tokens under the root, as nodes `first + g * K + k`.

    Chains that start alike share the nodes of the earliest one, so siblings carry distinct tokens and the walk never
    has to choose between equals; the duplicates are invalid.

    Example with first = 1: chains x y and x z are nodes 1 2 and 3 4. Node 3 repeats node 1, so it is invalid and its
    own parent, and node 4 hangs on node 1: parents (0, 1, 3, 1), depths (1, 2, 1, 2).
    """
    B, G, K = guess.shape
    same = jnp.cumprod(guess[:, :, None] == guess[:, None], axis=-1).astype(bool)  # chains g, h agree up to k
    same = same & valid[:, None, :, None] & valid[:, :, None, None]
    owner = jnp.argmax(same, axis=2).astype(jnp.int32)  # "B G K": the first chain with this prefix
    g, k = jnp.meshgrid(jnp.arange(G, dtype=jnp.int32), jnp.arange(K, dtype=jnp.int32), indexing="ij")
    # A node counts if no earlier chain has the same prefix; its parent is whoever owns the prefix one token shorter.
    mine = valid[:, :, None] & (owner == g[None])
    up = first + owner[:, :, :-1] * K + k[None, :, :-1]
    above = jnp.concatenate([jnp.zeros((B, G, 1), jnp.int32), up], axis=2)
    parent = jnp.where(mine, above, first + (g * K + k)[None])
    depth = jnp.broadcast_to(k[None] + 1, guess.shape)
    return parent.reshape(B, G * K), depth.reshape(B, G * K), mine.reshape(B, G * K)
