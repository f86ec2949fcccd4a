"""Prompt lookup: when the text repeats itself, its own past is the draft."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, PyTree

from paradec.decode.trees import chain
from paradec.types import DecodeState, Scored, Tree, Verdict


@struct.dataclass
class PromptLookup:
    """Drafts what followed the most recent earlier occurrence of the text's longest suffix n-gram (n <= max_ngram).

    Source: prompt lookup decoding (2023), a readme without a paper. Deviations: the most recent match instead of the
    first (`latest=False` restores it); a match so near that its continuation runs into the end of the text goes on
    periodically; and with `adapt` the draft length follows success, so text that never repeats costs no wider calls.
    Every step still looks up what it would have drafted and compares it with what came: trust is regained for free.
    """

    num_draft: int = struct.field(pytree_node=False, default=10)
    max_ngram: int = struct.field(pytree_node=False, default=3)
    min_ngram: int = struct.field(pytree_node=False, default=1)
    latest: bool = struct.field(pytree_node=False, default=True)
    adapt: bool = struct.field(pytree_node=False, default=True)
    taps: tuple[int, ...] = struct.field(pytree_node=False, default=())

    @property
    def depth(self) -> int:
        return self.num_draft

    @property
    def span(self) -> int:
        return self.num_draft

    @property
    def nodes(self) -> int:
        return self.num_draft + 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Call widths below the full one: no draft, and about a third of it."""
        return tuple(w for w in (1, 1 + (self.num_draft + 1) // 3) if w < self.nodes) if self.adapt else ()

    def init(self, params: PyTree, batch: int, slots: int) -> Int32[Array, "B"]:
        """Trust: how many tokens lookup has lately got right in a row. A new row starts with none."""
        return jnp.zeros(batch, jnp.int32)

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        draft, found = self.look_up(state)
        allowed = jnp.where(state.carry >= 2, state.carry, 0) if self.adapt else self.num_draft
        index = lax.iota(jnp.int32, self.num_draft)[None]
        valid = found[:, None] & (index < jnp.reshape(allowed, (-1, 1)))
        return chain(state, draft, valid), (draft, found)

    def look_up(self, state: DecodeState) -> tuple[Int[Array, "B K"], Bool[Array, "B"]]:
        """The continuation of the best match, and whether there is one of at least `min_ngram` tokens."""
        tokens, end = state.tokens, state.length[:, None] - 1
        slot = lax.broadcasted_iota(jnp.int32, tokens.shape, 1)
        matched, running = jnp.zeros(tokens.shape, jnp.int32), slot < end  # never the suffix itself
        for back in range(self.max_ngram):
            wanted = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0), axis=1)
            shifted = jnp.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1]]
            running = running & (shifted == wanted) & (slot >= back)
            matched = matched + running.astype(jnp.int32)
        recency = slot if self.latest else tokens.shape[1] - slot
        at = jnp.argmax(matched * (tokens.shape[1] + 1) + recency, axis=1)[:, None]
        found = jnp.take_along_axis(matched, at, axis=1)[:, 0] >= self.min_ngram
        period = jnp.maximum(end - at, 1)
        source = at + 1 + lax.iota(jnp.int32, self.num_draft)[None] % period
        return jnp.take_along_axis(tokens, jnp.minimum(source, tokens.shape[1] - 1), axis=1), found

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> Int32[Array, "B"]:
        """Trust grows by what was foreseen; after a miss, half of the streak just seen remains."""
        if tree is None:
            return state.carry
        draft, found = scratch
        index = lax.iota(jnp.int32, self.num_draft)[None]
        known = index < verdict.count[:, None]
        right = (draft == verdict.token[:, : self.num_draft]) & found[:, None]
        hits = jnp.sum(jnp.cumprod(right & known, axis=1), axis=1).astype(jnp.int32)
        unbroken = hits == jnp.minimum(verdict.count, self.num_draft)
        trust = jnp.where(unbroken, jnp.minimum(state.carry + hits, self.num_draft), hits // 2)
        return jnp.where(verdict.count > 0, trust, state.carry)
