"""Drafters with known behaviour: always right, right at a given rate, always wrong, random, and every odd tree."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from paradec import struct
from paradec.decode.sampling import DRAFT, uniform
from paradec.decode.seams import ChainDrafter, Drafter
from paradec.decode.trees import chain, last_token, trie
from paradec.types import DecodeState, Scored, Tree, Verdict


def ahead(state: DecodeState, count: int) -> Int[Array, "B K"]:
    """The absolute positions of the next `count` tokens."""
    return state.length[:, None] + lax.iota(jnp.int32, count)[None]


def look(text: Int[Array, "B S"], position: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """`text` at these positions; beyond its end, its last token."""
    return jnp.take_along_axis(text, jnp.minimum(position, text.shape[1] - 1), axis=1)


@struct.dataclass
class FixedChain(ChainDrafter):
    """What the chain drafters share: `num_draft` tokens, no carry, no taps."""

    num_draft: int = struct.field(pytree_node=False)
    vocab: int = struct.field(pytree_node=False)

    @property
    def depth(self) -> int:
        return self.num_draft

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        return ()

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        return state.carry


@struct.dataclass
class Random(FixedChain):
    """Uniform tokens, keyed by position: right once in `vocab` times."""

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        u = uniform(state.key, ahead(state, self.num_draft), DRAFT)
        return chain(state, jnp.floor(u * self.vocab).astype(jnp.int32)), None


@struct.dataclass
class OracleDrafter(FixedChain):
    """Knows `text`, what the target will say; each token it drafts is right with probability `accuracy`.

    The coin of a position is keyed, and a coin that was looked at belongs to a committed position: so coins are
    independent, and with accuracy a a call commits (1 - a^(k+1)) / (1 - a) tokens on average.
    """

    text: Int[Array, "B S"] = struct.field(kw_only=True)
    accuracy: Float[Array, ""] = struct.field(kw_only=True)

    @classmethod
    def of(cls, text: Int[Array, "B S"], num_draft: int, vocab: int, accuracy: float = 1.0) -> OracleDrafter:
        """The oracle with `accuracy` as a leaf; 0 makes the adversary, whose every token is wrong."""
        return cls(num_draft, vocab, text=jnp.asarray(text), accuracy=jnp.float32(accuracy))

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        position = ahead(state, self.num_draft)
        right = uniform(state.key, position, DRAFT) < self.accuracy
        truth = look(self.text, position)
        return chain(state, jnp.where(right, truth, (truth + 1) % self.vocab)), None


@struct.dataclass
class RandomTree(Drafter):
    """A random tree of `nodes` nodes, another one each call, with siblings, unused nodes and auxiliary rows.

    Among the children of a node on the true path one may be right, at any rank: so accepted paths jump about the tree
    and compaction has work to do. A quarter of the nodes is unused (their own parent), another quarter auxiliary, with
    random embeddings of `width` numbers, or the tokens' own where that is 0; walkable nodes hang on walkable ones.
    """

    text: Int[Array, "B S"]
    vocab: int = struct.field(pytree_node=False)
    nodes: int = struct.field(pytree_node=False, default=12)
    depth: int = struct.field(pytree_node=False, default=3)
    width: int = struct.field(pytree_node=False, default=0)

    @property
    def span(self) -> int:
        return self.depth + 1  # an auxiliary node may hang on the deepest walkable one

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        return ()

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        N, B = self.nodes, state.length.shape[0]
        u = uniform(state.key, state.length[:, None] * 3 * N + lax.iota(jnp.int32, 3 * N)[None], DRAFT)
        u, kind, turn = u[:, :N], u[:, N : 2 * N], u[:, 2 * N :]
        valid = (kind < 0.75).at[:, 0].set(True)
        walk = (kind < 0.5).at[:, 0].set(True)
        index = lax.broadcasted_iota(jnp.int32, (B, N), 1)
        at = lambda x, n: jnp.take_along_axis(x, n[:, None], axis=1)[:, 0]

        def add(n: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            parent, depth, shift = carry
            deepest = jnp.where(walk[:, n], self.depth - 1, self.depth)[:, None]
            fit = walk & (index < n) & (depth <= deepest)  # who may be the parent; node 0 always may
            which = jnp.floor(u[:, n] * jnp.sum(fit, axis=1).astype(u.dtype)).astype(jnp.int32)[:, None]
            mine = jnp.argmax(jnp.cumsum(fit, axis=1) > which, axis=1).astype(jnp.int32)
            rank = jnp.sum((parent == mine[:, None]) & (index < n) & (index > 0) & valid, axis=1, dtype=jnp.int32)
            first = jnp.floor(at(turn, mine) * 3).astype(jnp.int32)  # the right one may come first, second or third
            return (
                parent.at[:, n].set(jnp.where(valid[:, n], mine, n)),
                depth.at[:, n].set(jnp.where(valid[:, n], at(depth, mine) + 1, 0)),
                shift.at[:, n].set((rank + first) % 3 + rank // 3 * 3),
            )

        parent, depth, shift = lax.fori_loop(1, N, add, (index, jnp.zeros_like(index), jnp.zeros_like(index)))
        truth = look(self.text, state.length[:, None] + depth - 1)
        token = ((truth + shift) % self.vocab).at[:, 0].set(last_token(state))
        embed = None
        if self.width:
            embed = jnp.sin(jnp.arange(self.width, dtype=jnp.float32)[None, None] * (1 + 7 * turn[:, :, None]))
        return Tree(token=token, parent=parent, depth=depth, valid=valid, walk=walk, embed=embed), None

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        return state.carry


@struct.dataclass
class TapReader(Drafter):
    """Two chains: one read off a tapped vector through `params["reader"]` "K D V", one from `text`, mostly right.

    The seam of every method that reads hidden states: the carry is the tap and the final hidden state of the last row
    that became text (the one before the last token), which a law compares with `forward`. Right tokens in the second
    chain make that row a node somewhere in the tree.
    """

    text: Int[Array, "B S"]
    num_draft: int = struct.field(pytree_node=False, default=3)
    width: int = struct.field(pytree_node=False, default=32)
    taps: tuple[int, ...] = struct.field(pytree_node=False, default=(0,))

    @property
    def depth(self) -> int:
        return self.num_draft

    @property
    def span(self) -> int:
        return self.num_draft

    @property
    def nodes(self) -> int:
        return 1 + 2 * self.num_draft

    def init(self, params: PyTree, batch: int, slots: int) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        return jnp.zeros((batch, self.width)), jnp.zeros((batch, self.width))

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        position, B = ahead(state, self.num_draft), state.length.shape[0]
        read = jnp.argmax(jnp.einsum("bd,kdv->bkv", state.carry[0], params["reader"]), axis=-1).astype(jnp.int32)
        known = jnp.where(uniform(state.key, position, DRAFT) < 0.7, look(self.text, position), -1)  # -1: nobody's
        parent, depth, valid = trie(jnp.stack([read, known], axis=1), jnp.ones((B, 2), bool), first=1)
        root = lambda x, value: jnp.pad(x, ((0, 0), (1, 0)), constant_values=value)
        token = jnp.concatenate([last_token(state)[:, None], read, jnp.maximum(known, 0)], axis=1)
        walk = jnp.ones(token.shape, bool)
        return Tree(token=token, parent=root(parent, 0), depth=root(depth, 0), valid=root(valid, True), walk=walk), None

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        last = jnp.maximum(verdict.count - 1, 0)[:, None]
        node = jnp.take_along_axis(verdict.path, last, axis=1)[:, :, None]

        def latest(new: Float[Array, "B N D"], old: Float[Array, "B D"]) -> Float[Array, "B D"]:
            return jnp.where(verdict.count[:, None] > 0, jnp.take_along_axis(new, node, axis=1)[:, 0], old)

        return latest(scored.taps[0], state.carry[0]), latest(scored.hidden, state.carry[1])
