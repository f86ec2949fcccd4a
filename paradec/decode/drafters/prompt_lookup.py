"""Prompt lookup: when the text repeats itself, its own past is the draft."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from paradec import struct
from paradec.decode.seams import ChainDrafter
from paradec.decode.trees import chain
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Tree


@struct.dataclass
class PromptLookup(ChainDrafter):
    """Drafts what followed the most recent earlier occurrence of the text's suffix, the longest match first.

    The draft adapts: a match of fewer than `min_ngram` tokens drafts nothing, and a step in which no row drafts is a
    call of one token, so text that does not repeat itself costs what plain decoding costs. Match lengths are told
    apart up to `max_ngram`. Source: prompt lookup decoding (2023), a readme without a paper; its settings are
    `max_ngram=3`, `min_ngram=1`, `latest=False`. Deviations: by default the most recent match wins, not the first, and
    only from three tokens on (on open questions shorter ones cost more than they bring); and a match so near that its
    continuation runs into the end of the text goes on periodically.
    """

    num_draft: int = struct.field(pytree_node=False, default=10)
    max_ngram: int = struct.field(pytree_node=False, default=8)
    min_ngram: int = struct.field(pytree_node=False, default=3)
    latest: bool = struct.field(pytree_node=False, default=True)

    widths = (1,)  # a step in which no row drafts is as narrow as plain decoding

    def __post_init__(self) -> None:
        """Raises `ValueError` for match lengths that find nothing, or that are too many to be compared one by one."""
        if self.min_ngram > self.max_ngram:
            raise ValueError("Option min_ngram of prompt_lookup is above max_ngram, so it never drafts; lower it.")
        if self.max_ngram > 64:
            raise ValueError(
                "Option max_ngram of prompt_lookup must be at most 64: each length is compared on its own."
            )

    @property
    def depth(self) -> int:
        return self.num_draft

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        draft, found = self.look_up(state)
        return chain(state, draft, jnp.broadcast_to(found[:, None], draft.shape)), None

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


SYSTEMS = (System(
    name="prompt_lookup", title="Prompt lookup decoding", slot="draft", family="lookup", make=PromptLookup,
    exact_to=ExactTo("ar", "ar"), laws=EXACT,
    meanings={"num_draft": "tokens drafted a call", "max_ngram": "longest match that is told apart, at most 64",
        "min_ngram": "shortest match that drafts anything",
        "latest": "the most recent of equal matches, not the first"},
    cost="A call is num_draft + 1 rows wide in a step in which a row drafts, else one; no weights of its own.",
    proof="pytest tests/decode/test_drafters.py -k lookup",
),)  # fmt: skip
