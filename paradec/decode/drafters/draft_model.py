"""Speculative decoding with a second, smaller model."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from paradec import struct
from paradec.decode.sampling import DRAFT, NEXT, next_tokens, warp
from paradec.decode.seams import Accept, ChainDrafter
from paradec.decode.trees import chain, last_token
from paradec.system import EXACT, ExactTo, System
from paradec.types import DecodeState, Model, Rows, Scored, Tree, Verdict


@struct.dataclass
class DraftModel(ChainDrafter):
    """`num_draft` tokens from another model, whose parameters are `params["draft"]`.

    It samples like the target. With `shared_noise` it uses the target's own noise, which makes equal laws draw equal
    tokens (for the `Match` rule); without, its own, and the law `logq` it drew from goes along (for `Rejection`).
    It never commits what may be refused: it drafts on its cache plus a pending delta, and `observe` commits the part
    that became text. Its cache covers length - 1 tokens, or one fewer after a full acceptance, whose last token it has
    never read: so the first draft call always reads two. Its table may be longer or shorter than the target's
    `vocab_size` (0: as long), as where two models of one tokenizer are padded differently: it never drafts what only it
    has, and reads what only the target has as its own last token. Sources: 2211.17192, 2302.01318.

    Example, num_draft = 3. Text a b c d, cache a b c, so `behind` is 0. The first call has rows (c, d); d hangs on the
    cache, c is junk. It drafts x; the next calls read x and y and draft y and z; z is read by no call. Delta rows are
    now (c, d, x, y). If the target keeps x y z and adds w, the cache takes rows 1 to 3 (d x y), and the text
    a b c d x y z w is two ahead of it: `behind` is 1, and the next first call has rows (z, w) with w hanging on z. If
    it keeps x alone and adds u, the cache takes rows 1 and 2 (d x) of a text a b c d x u: `behind` is 0.
    """

    model: Model = struct.field(pytree_node=False)
    num_draft: int = struct.field(pytree_node=False, default=4)
    shared_noise: bool = struct.field(pytree_node=False, default=True)
    vocab_size: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def of(
        cls, target: Model, draft: Model, accept: Accept, num_draft: int = 4, shared_noise: bool | None = None
    ) -> DraftModel:
        """The drafter with `draft` for `target`; unless told, it shares the target's noise where `accept` allows."""
        shared = not accept.own_noise if shared_noise is None else shared_noise
        return cls(draft, num_draft, shared, target.vocab_size)

    @property
    def models(self) -> Mapping[str, Model]:
        return {"draft": self.model}

    @property
    def depth(self) -> int:
        return self.num_draft

    @property
    def calls(self) -> int:
        """Calls of the draft model per step."""
        return self.num_draft

    def init(self, params: PyTree, batch: int, slots: int) -> PyTree:
        return self.model.init_cache(batch, slots)

    def propose(self, params: PyTree, state: DecodeState) -> tuple[Tree, PyTree]:
        cache, weights, K = state.carry, params["draft"], self.num_draft
        behind = state.length - 1 - cache.length  # 0, or 1 after a full acceptance
        B = behind.shape[0]
        before = jnp.take_along_axis(state.tokens, jnp.maximum(state.length - 2, 0)[:, None], axis=1)
        index = lax.iota(jnp.int32, K + 1)[None]
        # Row 0 is the token before the last one; where the cache has it already, nobody hangs on it.
        parent = jnp.where(index == 1, jnp.where(behind > 0, 0, 1)[:, None], jnp.maximum(index - 1, 0))
        two = Rows(
            token=jnp.concatenate([before, last_token(state)[:, None]], axis=1),
            depth=jnp.stack([jnp.zeros_like(behind), behind], axis=1),
            parent=parent,
        )
        out, delta = self.model.extend(
            weights, cache, self._read(two), self.model.init_delta(B, K + 1), live=~state.done
        )
        first, law = self._draw(out.logits[:, 1:], state, jnp.int32(0))
        draft = jnp.zeros((B, K), jnp.int32).at[:, 0].set(first)
        laws = None if law is None else jnp.zeros((B, K, law.shape[-1]), law.dtype).at[:, 0].set(law)

        def more(i: Array | int, carry: tuple) -> tuple:
            draft, laws, delta = carry
            token = lax.dynamic_slice_in_dim(draft, i - 1, 1, axis=1)
            rows = Rows(token=token, depth=(behind + i)[:, None], parent=parent, start=i + 1)
            out, delta = self.model.extend(weights, cache, rows, delta, live=~state.done)
            token, law = self._draw(out.logits, state, i)
            if laws is not None:
                laws = lax.dynamic_update_slice_in_dim(laws, law[:, None], i, axis=1)
            return draft.at[:, i].set(token), laws, delta

        draft, laws, delta = lax.fori_loop(1, K, more, (draft, laws, delta))
        tree = chain(state, draft)
        if laws is not None:
            tree = tree.replace(logq=jnp.pad(laws, ((0, 0), (1, 0), (0, 0))))
        return tree, (delta, behind)

    def _read(self, rows: Rows) -> Rows:
        """The rows with tokens that the draft model has."""
        if self.vocab_size <= self.model.vocab_size:
            return rows
        return rows.replace(token=jnp.minimum(rows.token, self.model.vocab_size - 1))

    def _draw(self, logits: Array, state: DecodeState, step: Array | int) -> tuple[Int[Array, "B"], Array | None]:
        if self.vocab_size:  # the target's, so that noise and laws of both are of one length
            lacking = max(self.vocab_size - logits.shape[-1], 0)
            logits = jnp.pad(logits[..., : self.vocab_size], ((0, 0), (0, 0), (0, lacking)), constant_values=-jnp.inf)
        at, here = state.length + step, jnp.zeros_like(logits[:, :, 0], dtype=jnp.int32)
        purpose = NEXT if self.shared_noise else DRAFT
        token = next_tokens(logits, state.sampling, state.key, at, here, 0, purpose)[:, 0]
        law = None if self.shared_noise else jax.nn.log_softmax(warp(logits, state.sampling)[:, 0], axis=-1)
        return token, law

    def observe(
        self, params: PyTree, state: DecodeState, tree: Tree | None, scored: Scored, verdict: Verdict, scratch: PyTree
    ) -> PyTree:
        if tree is None:
            return self._read_prompt(params, state, verdict)
        delta, behind = scratch
        read = jnp.minimum(verdict.count, self.num_draft)  # the last drafted token was never fed
        count = jnp.where(verdict.count > 0, behind + read, 0)
        # Delta row 0 is committed only where the cache was behind: the path is rows 0, 1, … there, else 1, 2, ….
        path = 1 - behind[:, None] + lax.iota(jnp.int32, self.num_draft + 1)[None]
        return self.model.commit(state.carry, delta, jnp.minimum(path, self.num_draft), count)

    def _read_prompt(self, params: PyTree, state: DecodeState, verdict: Verdict) -> PyTree:
        at = state.carry.length[:, None] + lax.iota(jnp.int32, verdict.token.shape[1])[None]
        token = jnp.take_along_axis(state.tokens, jnp.minimum(at, state.tokens.shape[1] - 1), axis=1)
        rows = self._read(Rows.chain(token))
        _, delta = self.model.extend(params["draft"], state.carry, rows, live=verdict.count > 0)
        return self.model.commit(state.carry, delta, None, verdict.count)


SYSTEMS = (System(
    name="draft_model", title="Speculative decoding", slot="draft", arxiv="2211.17192", family="draft model",
    make=DraftModel.of, needs=("target", "draft", "accept"), exact_to=ExactTo("ar", "ar"), laws=EXACT,
    meanings={"num_draft": "tokens drafted a call",
        "shared_noise": "draw with the target's own noise; unset: unless the accept rule asks for the draft's law"},
    cost="A call is num_draft + 1 rows wide, and num_draft calls of the draft model come before it.",
    proof="pytest tests/decode/test_drafters.py -k draft",
),)  # fmt: skip
