"""Jacobi decoding: guess a window of the future, and let every call correct all of it at once."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Int32, PyTree

from paradec import struct
from paradec.decode.sampling import DRAFT, uniform
from paradec.decode.seams import ChainDrafter
from paradec.decode.trees import chain
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Scored, Tree, Verdict


def text_tokens(state: DecodeState, position: Int[Array, "B W"]) -> Int32[Array, "B W"]:
    """A token of the row's own text, drawn uniformly for each absolute position (DRAFT noise): a first guess."""
    u = uniform(state.key, position, DRAFT)
    at = jnp.floor(u * state.length[:, None].astype(u.dtype)).astype(jnp.int32)
    return jnp.take_along_axis(state.tokens, jnp.minimum(at, state.length[:, None] - 1), axis=1)


@struct.dataclass
class Jacobi(ChainDrafter):
    """A sliding window of `window` guesses, each replaced by the target's choice of the call before.

    The fixed point of the iteration is the autoregressive text; every call commits the leading guesses that agree and
    one more token, and keys and values of agreeing guesses are kept. Under position-keyed noise the same holds for
    sampling. Sources: 2002.03629, 2305.10427. Deviation: the window slides (fresh guesses enter on the right as tokens
    leave) where the published loop waits for a whole block to converge.
    """

    window: int = struct.field(pytree_node=False, default=8)

    @property
    def depth(self) -> int:
        return self.window

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        """The window, and whether it has been filled."""
        return jnp.zeros((batch, self.window), jnp.int32), jnp.zeros(batch, bool)

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        window, filled = state.carry
        position = state.length[:, None] + lax.iota(jnp.int32, self.window)[None]
        return chain(state, jnp.where(filled[:, None], window, text_tokens(state, position))), None

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        if tree is None:
            return state.carry
        window, filled = state.carry
        # choice[i] is the target's opinion of the token after node i; the first `count` of them are text now.
        at = verdict.count[:, None] + lax.iota(jnp.int32, self.window)[None]
        newest = jnp.take_along_axis(scored.choice, jnp.minimum(at, self.window), axis=1)
        fresh = text_tokens(state, state.length[:, None] + at)
        moved = verdict.count > 0
        window = jnp.where(moved[:, None], jnp.where(at <= self.window, newest, fresh), window)
        return window, filled | moved


SYSTEMS = (System(
    name="jacobi", title="Jacobi decoding", slot="draft", arxiv="2305.10427", family="fixed point", make=Jacobi,
    exact_to=ExactTo("ar", "ar"), laws=EXACT,
    meanings={"window": "guesses that a call corrects at once"},
    cost="A call is window + 1 rows wide; no weights of its own.",
    proof="pytest tests/decode/test_drafters.py -k jacobi",
),)  # fmt: skip
