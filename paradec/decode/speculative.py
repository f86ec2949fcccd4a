"""The prefix engine: propose, score, verify, commit. Every autoregressive method is a drafter and an accept rule in it.

One step: the drafter proposes a tree under each row's last token; the target scores all nodes in one call; the rule
keeps a path; its keys and values (or states) are appended to the cache, its tokens to the text; the drafter looks at
what happened. Rows are ragged throughout: each accepts its own number of tokens and stops on its own.

Example: the text is a b c, so the cache covers a b, and the draft is the chain x y under c.

    node       0 (c)  1 (x)  2 (y)
    choice       x      z      -     the target's own next token after each node
    path, token  0: x   1: z         x is the child of c that the target chose; no child of x is z

The verdict has count 2. The tokens x z go to positions 3 and 4, the keys of nodes 0 and 1 (c x) to the cache's slots 2
and 3: the text is a b c x z and the cache covers all of it but z, as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from paradec import struct
from paradec.decode.logprobs import noted
from paradec.decode.sampling import choose
from paradec.decode.seams import Accept, Drafter, Method, Part
from paradec.decode.verify import Match, cut
from paradec.ops.mask import ancestors
from paradec.types import (
    OPEN,
    DecodeState,
    Model,
    Prompt,
    Rows,
    Sampling,
    Scored,
    Stats,
    Tree,
    Verdict,
)


@struct.dataclass
class Speculative(Method):
    """A method of the prefix engine. `params` of its functions is a dict with the target's tree under "target"."""

    kind: ClassVar[str] = "prefix"

    target: Model = struct.field(pytree_node=False)
    drafter: Drafter
    accept: Accept
    eos: Int[Array, "E"]

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"draft": self.drafter, "accept": self.accept}

    @property
    def models(self) -> Mapping[str, Model]:
        """Whose weights a step reads, by their names in `params`."""
        return {"target": self.target, **self.drafter.models}

    def init(
        self, params: PyTree, prompt: Prompt, limit: Int[Array, "B"], key: jax.Array, sampling: Sampling, slots: int
    ) -> DecodeState:
        """The state before any call: `slots` is the canvas length; `limit` the text length at which a row stops."""
        B, T = prompt.token.shape
        tokens = jnp.zeros((B, slots), jnp.int32).at[:, :T].set(prompt.token)
        inside = lax.broadcasted_iota(jnp.int32, (B, slots), 1) < prompt.length[:, None]
        count, depths = jnp.zeros(B, jnp.int32), jnp.zeros((B, self.drafter.depth), jnp.int32)
        return DecodeState(
            tokens=jnp.where(inside, tokens, 0),
            committed_at=jnp.where(inside, 0, OPEN),
            prompt=prompt.length,
            length=prompt.length,
            limit=limit,
            calls=count,
            done=prompt.length >= limit,
            key=key,
            sampling=sampling,
            cache=self.target.init_cache(B, slots),
            carry=self.drafter.init(params, B, slots),
            stats=Stats(offered=depths, accepted=depths, queries=count, drafts=count, refreshes=count),
        )

    def prefill(self, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """Read the prompt, all but its last token, `chunk` tokens a call: memory is bounded by the chunk."""

        def left(s: DecodeState) -> Array:
            return jnp.where(s.done, 0, s.length - 1 - s.cache.length)

        def some(s: DecodeState) -> DecodeState:
            count = jnp.clip(left(s), 0, chunk)
            # One token more than is read: each row's verdict is the token after it.
            at = s.cache.length[:, None] + lax.iota(jnp.int32, chunk + 1)[None]
            token = jnp.take_along_axis(s.tokens, jnp.minimum(at, s.tokens.shape[1] - 1), axis=1)
            rows = Rows.chain(token[:, :-1])
            out, delta = self.target.extend(params["target"], s.cache, rows, taps=self.drafter.taps, live=count > 0)
            # What the text says next plays the verdict, so drafters need no prompt code of their own.
            verdict = Verdict(path=rows.depth, token=token[:, 1:], count=count)
            scored = Scored(choice=token[:, 1:], logits=None, hidden=out.hidden, taps=out.taps)
            carry = self.drafter.observe(params, s, None, scored, verdict, None)
            return s.replace(cache=self.target.commit(s.cache, delta, None, count), carry=carry)

        return lax.while_loop(lambda s: jnp.any(left(s) > 0), some, state)

    def step(self, params: PyTree, state: DecodeState) -> DecodeState:
        """One target call for every row that is not done: each commits 1 to depth + 1 tokens."""
        tree, scratch = self.drafter.propose(params, state)
        scored, delta, width = self.score(params, state, tree)
        full = self.accept(tree, scored, state, self.drafter.depth)
        verdict, done = cut(full, state, self.eos)
        calls = state.calls + (~state.done).astype(jnp.int32)
        # Tokens of the verdict go to the slots behind the text; those beyond the count to slot S, which is dropped.
        i = lax.iota(jnp.int32, verdict.token.shape[1])[None]
        at = jnp.where(i < verdict.count[:, None], state.length[:, None] + i, state.tokens.shape[1])
        write = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
        if state.logprobs is not None:
            raw = jnp.take_along_axis(scored.raw, verdict.path[..., None], axis=1)
            state = state.replace(logprobs=noted(state.logprobs, raw, verdict.token, at))
        return state.replace(
            tokens=write(state.tokens, at, verdict.token),
            committed_at=write(state.committed_at, at, jnp.broadcast_to(calls[:, None], at.shape)),
            length=state.length + verdict.count,
            calls=calls,
            done=done,
            cache=self.target.commit(state.cache, delta, verdict.path, verdict.count),
            carry=self.drafter.observe(params, state, tree, scored, verdict, scratch),
            stats=self._account(state, tree, full, width),
        )

    def score(self, params: PyTree, state: DecodeState, tree: Tree) -> tuple[Scored, PyTree, Array]:
        """The target's next token after every node, the delta of all nodes, and how many rows were computed.

        A drafter may name `widths`, numbers of nodes: then the call is only as wide as the longest valid draft of
        this step needs, so a step without any draft costs what plain decoding costs.
        """
        N = tree.token.shape[1]
        widths = (*self.drafter.widths, N)
        # One more than the last valid node of any live row. `which` is the first of the widths that is not below it.
        last = jnp.max(jnp.where(tree.valid, lax.iota(jnp.int32, N)[None] + 1, 0), axis=-1)
        needed = jnp.max(jnp.where(state.done, 1, last))
        which = jnp.sum(needed > jnp.asarray(widths))
        if len(widths) == 1:
            scored, delta = self._score(params, state, tree, N)
        else:
            scored, delta = lax.switch(which, [lambda w=w: self._score(params, state, tree, w) for w in widths])
        return scored, delta, jnp.asarray(widths, jnp.int32)[which]

    def _score(self, params: PyTree, state: DecodeState, tree: Tree, width: int) -> tuple[Scored, PyTree]:
        B, N = tree.token.shape
        near = jax.tree.map(lambda x: x[:, :width], tree)
        rows = Rows(token=near.token, depth=near.depth, parent=tree.parent)
        if tree.embed is not None:
            rows = rows.replace(embed=near.embed, aux=~near.walk)
        pending = None if width == N else self.target.init_delta(B, N)
        out, delta = self.target.extend(
            params["target"], state.cache, rows, pending, taps=self.drafter.taps, live=~state.done
        )
        # A narrow call's results are padded to N nodes, so that all widths return one shape; no walk reaches the rest.
        see = ancestors(near.parent)
        choice, logits = choose(out.logits, near, see, state, min(self.drafter.span, width - 1))
        wide = lambda x: jnp.pad(x, ((0, 0), (0, N - width)) + ((0, 0),) * (x.ndim - 2))
        return Scored(
            choice=wide(choice),
            logits=wide(logits) if self.accept.needs_logits else None,
            hidden=wide(out.hidden),
            taps=tuple(wide(t) for t in out.taps),
            raw=None if state.logprobs is None else wide(out.logits),
        ), delta

    def _account(self, state: DecodeState, tree: Tree, verdict: Verdict, width: Array) -> Stats:
        depth = lax.iota(jnp.int32, self.drafter.depth) + 1
        live = ~state.done
        usable = tree.valid & tree.walk
        # Depth d was offered where a usable node stands there, accepted where the verdict holds more than d tokens.
        offered = (usable[:, None] & (tree.depth[:, None] == depth[None, :, None])).any(-1)
        accepted = verdict.count[:, None] > depth[None]
        s = state.stats
        return Stats(
            offered=s.offered + (offered & live[:, None]).astype(jnp.int32),
            accepted=s.accepted + (accepted & live[:, None]).astype(jnp.int32),
            queries=s.queries + jnp.where(live, width, 0),
            drafts=s.drafts + jnp.where(live, self.drafter.calls, 0),
            refreshes=s.refreshes,
        )


def speculative(target: Model, drafter: Any, *, accept: Any = None, eos: Any = ()) -> Speculative:
    """A prefix-engine method: `drafter` proposes, `accept` (default `Match`, exact) decides, `eos` ids end a row."""
    ids = jnp.asarray(sorted(eos), jnp.int32).reshape(-1)
    return Speculative(target=target, drafter=drafter, accept=Match() if accept is None else accept, eos=ids)
