"""Lookahead decoding: Jacobi iterates as a source of n-grams, verified in the same call."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, PyTree

from paradec import struct
from paradec.decode.drafters.jacobi import text_tokens
from paradec.decode.seams import Drafter
from paradec.decode.trees import last_token, trie
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Scored, Tree, Verdict


@struct.dataclass
class LookaheadCarry:
    """The window of past iterates (its corner, the last committed token, is not stored) and the n-gram pool."""

    window: Int32[Array, "B R W"]
    filled: Bool[Array, "B"]
    pool: Int32[Array, "B Q G"]
    age: Int32[Array, "B Q"]  # call in which an entry was last seen; -1: empty


@struct.dataclass
class Lookahead(Drafter):
    """n-grams harvested from the diagonals of `ngram - 1` Jacobi iterates of width `window`; `guesses` tried per call.

    Tree: root, then the window (auxiliary: row r of column j hangs on row r-1 of its column, row 0 on its left
    neighbour, so ancestry alone gives the published mask), then the pool's n-grams that start with the last token, as a
    trie. Source: 2402.02057. Deviations: the pool is a ring per row (least recently seen leaves) instead of a table
    over the vocabulary; the window starts full of tokens of the text, without warm-up calls; the target's own token
    after a full match is used.

    Example with ngram 3 and window 3: two rows, R0 at depths 0 to 2 and R1 at 1 to 3, and the target's choices after R1
    are the newest iterate N, at 2 to 4. Node 0 is the root.

        R0   0  1  2        parents  0  0  1     (each on its left neighbour)
        R1   3  4  5                 0  1  2     (each on the node above)
        N    -  -  -        n-grams of the pool: R0[j] R1[j] N[j], three tokens in a row of the text for every column j

    Then the window moves: R1 without its first becomes R0 (its first is the new root), and N becomes R1.
    """

    ngram: int = struct.field(pytree_node=False, default=5)
    window: int = struct.field(pytree_node=False, default=7)
    guesses: int = struct.field(pytree_node=False, default=7)
    pool: int = struct.field(pytree_node=False, default=128)

    def __post_init__(self) -> None:
        """Raises `ValueError` for n-grams that no iterate would ever complete."""
        if self.ngram < 3:
            raise ValueError("Option ngram of lookahead must be at least 3: with 2 there is no window row to iterate.")

    @property
    def rows(self) -> int:
        return self.ngram - 1

    @property
    def depth(self) -> int:
        return self.ngram - 1

    @property
    def span(self) -> int:
        return max(self.rows + self.window - 2, self.depth)

    @property
    def tries(self) -> int:
        """n-grams tried per call: no more than the pool holds."""
        return min(self.guesses, self.pool)

    @property
    def nodes(self) -> int:
        return self.rows * self.window + self.tries * (self.ngram - 1)

    def init(self, params: PyTree, batch: int, slots: int) -> LookaheadCarry:
        return LookaheadCarry(
            window=jnp.zeros((batch, self.rows, self.window), jnp.int32),
            filled=jnp.zeros(batch, bool),
            pool=jnp.zeros((batch, self.pool, self.ngram), jnp.int32),
            age=jnp.full((batch, self.pool), -1, jnp.int32),
        )

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        carry, root = state.carry, last_token(state)
        B, size = root.shape[0], self.rows * self.window
        position = state.length[:, None] + lax.iota(jnp.int32, size)[None]
        guess = text_tokens(state, position).reshape(B, self.rows, self.window)
        window = jnp.where(carry.filled[:, None, None], carry.window, guess).at[:, 0, 0].set(root)

        # The most recently seen n-grams that begin with the root; an age of -1 says that there are no more of them.
        match = jnp.where(carry.pool[:, :, 0] == root[:, None], carry.age, -1)
        age, best = lax.top_k(match, self.tries)
        grams = jnp.take_along_axis(carry.pool, best[:, :, None], axis=1)[:, :, 1:]
        parent, depth, valid = trie(grams, age >= 0, first=size)

        # Node r * W + j is row r of column j, at depth r + j.
        r, j = jnp.meshgrid(jnp.arange(self.rows), jnp.arange(self.window), indexing="ij")
        above = jnp.where(r > 0, (r - 1) * self.window + j, jnp.maximum(j - 1, 0)).astype(jnp.int32)
        flat = lambda x: jnp.broadcast_to(x.reshape(1, size).astype(jnp.int32), (B, size))
        tree = Tree(
            token=jnp.concatenate([window.reshape(B, size), grams.reshape(B, -1)], axis=1),
            parent=jnp.concatenate([flat(above), parent], axis=1),
            depth=jnp.concatenate([flat(r + j), depth], axis=1),
            valid=jnp.concatenate([jnp.ones((B, size), bool), valid], axis=1),
            walk=jnp.broadcast_to((jnp.arange(self.nodes) >= size).at[0].set(True)[None], (B, self.nodes)),
        )
        return tree, window

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> LookaheadCarry:
        carry = state.carry
        if tree is None:
            return carry
        window, end = scratch, self.rows * self.window
        newest = scored.choice[:, end - self.window : end]
        grams = jnp.concatenate([window.swapaxes(1, 2), newest[:, :, None]], axis=2)
        pool, age = _remember(carry.pool, carry.age, grams, state.calls)
        # The window moves one column to the right per call, however many tokens were accepted.
        first = jnp.concatenate([window[:, :1, :1], window[:, 1:2, 1:]], axis=2)
        moved = jnp.concatenate([first, window[:, 2:], newest[:, None]], axis=1)
        new = LookaheadCarry(window=moved, filled=jnp.ones_like(carry.filled), pool=pool, age=age)
        live = verdict.count > 0
        pick = lambda a, b: jnp.where(live.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)
        return LookaheadCarry(
            window=pick(new.window, carry.window),
            filled=carry.filled | live,
            pool=pick(pool, carry.pool),
            age=pick(age, carry.age),
        )


def _remember(
    pool: Int[Array, "B Q G"], age: Int[Array, "B Q"], grams: Int[Array, "B W G"], now: Int[Array, "B"]
) -> tuple[Int32[Array, "B Q G"], Int32[Array, "B Q"]]:
    """The pool with each n-gram in it once: known ones become young again, new ones replace the oldest.

    Ages (4, 7, -1), call 9: a known n-gram in entry 0 gives (9, 7, -1); a new one goes to entry 2, (9, 7, 9); the next
    new one to entry 1. One after the other, so that equal n-grams of one call find each other.
    """

    def add(w: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        pool, age = carry
        gram = grams[:, w]
        known = jnp.all(pool == gram[:, None], axis=-1) & (age >= 0)
        at = jnp.where(known.any(-1), jnp.argmax(known, axis=-1), jnp.argmin(age, axis=-1))[:, None]
        here = lax.broadcasted_iota(at.dtype, age.shape, 1) == at
        return jnp.where(here[:, :, None], gram[:, None], pool), jnp.where(here, now[:, None], age)

    return lax.fori_loop(0, grams.shape[1], add, (pool, age))


SYSTEMS = (System(
    name="lookahead", title="Lookahead decoding", slot="draft", arxiv="2402.02057", family="fixed point",
    make=Lookahead, exact_to=ExactTo("ar", "ar"), laws=EXACT,
    meanings={"ngram": "length of the n-grams, at least 3; ngram - 1 iterates are kept",
        "window": "positions of an iterate", "guesses": "n-grams verified a call",
        "pool": "n-grams that a row remembers"},
    cost="A call is (ngram - 1) (window + guesses) rows wide; no weights of its own.",
    proof="pytest tests/decode/test_drafters.py -k lookahead",
),)  # fmt: skip
