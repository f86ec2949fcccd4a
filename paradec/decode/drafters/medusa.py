"""Medusa: heads on the last hidden state guess the next tokens, all at once, and a fixed tree combines the guesses."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PyTree

from paradec import struct
from paradec.decode.seams import Drafter
from paradec.decode.trees import last_token
from paradec.models.heads import DraftHeads, MedusaHeads
from paradec.models.ranked_tree import Path, ranked
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Scored, Tree, Verdict


@struct.dataclass
class MedusaCarry:
    """Every head's best guesses, best first, and whether there are any yet (a prompt of one token gives none)."""

    guess: Int32[Array, "B Q R"]
    ready: Bool[Array, "B"]


@struct.dataclass
class Medusa(Drafter):
    """A tree of the heads' guesses: the path (0, 2) is head 0's first guess, then head 1's third.

    `params["heads"]` are `DraftHeads`; `base` is the target, whose vocabulary head they may use. The guesses for the
    next step come from the hidden state of the last accepted node, so drafting costs no call of its own. Source:
    Medusa, 2401.10774. Deviation: the next root is the target's own token, drawn at the accepted node, not drawn anew
    in the next step.
    """

    heads: MedusaHeads = struct.field(pytree_node=False)
    tree: tuple[Path, ...] = struct.field(pytree_node=False)
    num_draft: int = struct.field(pytree_node=False, default=63)
    base: Any = struct.field(pytree_node=False, default=None)

    @classmethod
    def of(cls, target: Any, heads: tuple[MedusaHeads, tuple[Path, ...]], num_draft: int = 63) -> Medusa:
        """The drafter with these heads and this tree of theirs for `target`."""
        return cls(*heads, num_draft, target)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The nodes in use: the first `num_draft` of the tree, which is stored best first."""
        return self.tree[: self.num_draft]

    @property
    def depth(self) -> int:
        return max(len(path) for path in self.paths)

    @property
    def span(self) -> int:
        return self.depth

    @property
    def nodes(self) -> int:
        return len(self.paths) + 1

    @property
    def ranks(self) -> int:
        """How many guesses of a head the tree uses."""
        return 1 + max(max(path) for path in self.paths)

    def init(self, params: PyTree, batch: int, slots: int) -> MedusaCarry:
        guess = jnp.zeros((batch, self.depth, self.ranks), jnp.int32)
        return MedusaCarry(guess=guess, ready=jnp.zeros(batch, bool))

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        parent, depth, rank = ranked(self.paths)
        B, index = state.length.shape[0], np.arange(self.nodes, dtype=np.int32)
        drafted = state.carry.guess[:, depth[1:] - 1, rank[1:]]
        valid = state.carry.ready[:, None] | (index == 0)[None]
        wide = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (B, self.nodes))
        return Tree(
            token=jnp.concatenate([last_token(state)[:, None], drafted], axis=1),
            parent=jnp.where(valid, wide(parent), wide(index)),
            depth=wide(depth),
            valid=valid,
            walk=jnp.ones((B, self.nodes), bool),
        ), None

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> MedusaCarry:
        live = verdict.count > 0
        end = jnp.take_along_axis(verdict.path, jnp.maximum(verdict.count - 1, 0)[:, None], axis=1)
        hidden = jnp.take_along_axis(scored.hidden, end[:, :, None], axis=1)[:, 0]
        guess = self.guesses(params, hidden)
        return MedusaCarry(
            guess=jnp.where(live[:, None, None], guess, state.carry.guess), ready=state.carry.ready | live
        )

    def guesses(self, params: PyTree, hidden: Float[Array, "B D"]) -> Int32[Array, "B Q R"]:
        """The best tokens of the heads that the tree uses, best first."""
        own: DraftHeads = params["heads"]
        short, table = own.short, None
        if own.weights.unembed is None:
            table = self.base.unembed(params["target"]) if short is None else short.table
        logits = self.heads.logits(own.weights, hidden, table)[: self.depth]
        best = jnp.moveaxis(lax.top_k(logits, self.ranks)[1], 0, 1)
        return best if short is None else short.token[best]


SYSTEMS = (System(
    name="medusa", title="Medusa heads", slot="draft", arxiv="2401.10774", family="heads", make=Medusa.of,
    needs=("target", "heads"), exact_to=ExactTo("ar", "ar"), laws=EXACT,
    meanings={"num_draft": "nodes of the tree, best first, besides its root"},
    cost="A call is num_draft + 1 rows wide, and the heads read one hidden state a row.",
    proof="pytest tests/decode/test_medusa.py",
),)  # fmt: skip
