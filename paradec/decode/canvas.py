"""The canvas engine: masked and block diffusion. Every unmasking rule of the catalogue is a part of its one step.

One step: the model predicts every position of a window (`predict`, which knows the caches); the engine proposes a token
each; the region says where a block that has just opened ends; a rewrite may change the logits; the select rule accepts
some positions; the engine sees to it that at least one is (for rules that `idle`, none may be); a stop rule may commit
everything at once; what was accepted is written, what was reopened is open again, and a block without open positions
gives way to the next. All but the first part is `transition`, which calls no model: that is what FreeDave speculates
over.

Rows are ragged throughout: each has its own prompt, block, limit and end, and counts its own calls.

Example of a transition: prompt of 4, limit 10, open block [4, 8), position 4 committed before, a threshold of .9.

    position     4    5    6    7    8    9
    open         -    x    x    x    x    x     OPEN in `committed_at`, and below the limit
    inside       x    x    x    x    -    -     within the block
    confidence  .99  .95  .60  .93  .97  .50    of the proposed tokens
    accept       -    x    -    x    -    -     eligible (open and inside), and at least .9

The call writes its number to `committed_at` of 5 and 7. The first open position is 6, so `length` becomes 6 (7 waits
for it) and the block stays: block_start is 4, `fresh` is False. A later call that commits 6 leaves no open position
below block_end: then block_start becomes 8 and `fresh` True, and the next call asks the region where the block from 8
on ends.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.decode.canvas_cache import Whole
from paradec.decode.logprobs import noted
from paradec.decode.sampling import filtered, next_tokens
from paradec.decode.seams import CachePolicy, Cut, Method, Region, Reply, Rewrite, Select, Stop
from paradec.decode.view import LATE, View, best, likelihood
from paradec.types import OPEN, DecodeState, Denoiser, Prompt, Sampling, Stats


@struct.dataclass
class Front:
    """Where a row works on its canvas, and what its rules remember. `DecodeState.carry` of a canvas."""

    block_start: Int32[Array, "B"]  # everything before it is committed
    block_end: Int32[Array, "B"]
    fresh: Bool[Array, "B"]  # the block has had no call yet
    turn: Int32[Array, "B"]  # steps made: those of a plain decode, whoever speculates
    revised: Int32[Array, "B S"]  # how often a committed position was opened again or overwritten, or noise changed
    rewrite: PyTree
    select: PyTree
    condition: Float[Array, "B W D"] | None = None  # what the block's last call says to the next: see `Reply.told`


@struct.dataclass
class Canvas(Method):
    """A method of the canvas engine. `params` of its functions is a dict with the model's tree under "target"."""

    kind: ClassVar[str] = "canvas"

    target: Denoiser = struct.field(pytree_node=False)
    select: Select
    region: Region
    rewrite: Rewrite | None = None
    stop: Stop | None = None
    cut: Cut | None = None
    cache: CachePolicy = struct.field(pytree_node=False, default=Whole())
    eos: Int[Array, "E"] = struct.field(default_factory=lambda: jnp.zeros(0, jnp.int32))
    eos_policy: str = struct.field(pytree_node=False, default="free")
    """End-of-text: "free" like any token, "late" (its confidence counts least), or "never" (it cannot be proposed)."""
    temper_confidence: bool = struct.field(pytree_node=False, default=False)
    """Whether positions are judged by the law after temperature and filters (Dream) or before (LLaDA). In both it is
    the proposed token's probability that counts, be it drawn or the likeliest."""
    vocab_limit: int = struct.field(pytree_node=False, default=0)
    """Token ids from here on do not exist: a checkpoint's vocabulary may be padded. 0: all do."""
    name: str = struct.field(pytree_node=False, default="canvas")
    """What results call it."""

    def window(self, slots: int) -> int:
        """W: how many positions from the block's start on a call predicts, of a canvas of `slots`."""
        whole = self.stop is not None or self.cut is not None  # they read all that is open
        # What a rule noted of later positions must still be there when their block opens.
        whole |= self.select.remembers and not self.cache.keeps and not self.target.block
        return slots if whole else min(self.region.reach or slots, slots)

    def init(
        self, params: PyTree, prompt: Prompt, limit: Int[Array, "B"], key: jax.Array, sampling: Sampling, slots: int
    ) -> DecodeState:
        """The state before any call: `slots` is the canvas length S, `limit` the text length to fill up to."""
        B, T = prompt.token.shape
        W, V = self.window(slots), self.target.vocab_size
        tokens = jnp.zeros((B, slots), jnp.int32).at[:, :T].set(prompt.token[:, :slots])
        inside = lax.broadcasted_iota(jnp.int32, (B, slots), 1) < prompt.length[:, None]
        zero, at = jnp.zeros(B, jnp.int32), jnp.where(inside, 0, OPEN)
        told, slot = self.target.conditioned, lax.broadcasted_iota(jnp.int32, (B, slots), 1)
        blank = self.select.noise(key, slot, V) if self.select.noisy else jnp.zeros_like(tokens)
        front = Front(
            block_start=prompt.length, block_end=prompt.length, fresh=jnp.ones(B, bool), turn=zero,
            revised=jnp.zeros((B, slots), jnp.int32),
            rewrite=() if self.rewrite is None else self.rewrite.init(B, W, V),
            select=self.select.init(B, W, V),
            condition=jnp.zeros((B, W, told), self.target.dtype) if told else None,
        )  # fmt: skip
        none = jnp.zeros((B, 0), jnp.int32)
        return DecodeState(
            tokens=jnp.where(inside, tokens, blank), committed_at=at, prompt=prompt.length, length=prompt.length,
            limit=limit, calls=zero, done=prompt.length >= limit, key=key, sampling=sampling,
            cache=self.cache.init(self.target, B, slots), carry=front,
            stats=Stats(offered=none, accepted=none, queries=zero, drafts=zero, refreshes=zero),
        )  # fmt: skip

    def prefill(self, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """Read what of the prompt a cache can keep for good, `chunk` tokens a call."""
        return self.cache.prefill(self.target, params["target"], state, chunk)

    def step(self, params: PyTree, state: DecodeState) -> DecodeState:
        """One call for every row that is not done, or, where rows wait for each other, for those whose turn it is."""
        reply, called, acting = self.predict(params, state)
        return keep(self.transition(called, reply), state.replace(stats=called.stats), acting)

    def predict(self, params: PyTree, state: DecodeState) -> tuple[Reply, DecodeState, Bool[Array, "B"]]:
        """The model's reply, the state with cache and counters after it, and the rows that took part."""
        shadows = self.select.shadows
        W = self.window(state.tokens.shape[1])
        reply, cache, acting, cost = self.cache.call(self.target, params["target"], state, W, shadows)
        if self.target.conditioned:
            reply = reply.replace(told=self.tell(params, state, reply))
        stats = state.stats.replace(
            queries=state.stats.queries + jnp.where(state.done, 0, cost.queries),  # also of a row that waits
            refreshes=state.stats.refreshes + (acting & cost.refreshed).astype(jnp.int32),
        )
        return reply, state.replace(cache=cache, calls=state.calls + acting.astype(jnp.int32), stats=stats), acting

    def tell(self, params: PyTree, state: DecodeState, reply: Reply) -> Float[Array, "B W D"]:
        """What a call says to the next one: what the model makes of its own logits, as hot as the rule reads them."""
        logits, front = self.suppress(reply.logits), state.carry
        if self.select.heated:
            logits = logits / self.select.heat(front.select, front.fresh)[:, None, None]
        return self.target.soften(params["target"], logits)

    def width(self, state: DecodeState) -> Int[Array, ""]:
        """How wide a `peek` at this state must be, and at every state that follows it in the same blocks."""
        return self.cache.width(self.target, state, self.window(state.tokens.shape[1]))

    def peek(
        self, params: PyTree, state: DecodeState, live: Bool[Array, "B"], width: Int[Array, ""]
    ) -> tuple[Reply, Int[Array, "B"]]:
        """The reply to a state whose block is open already, and its cost in rows. Nothing is stored or counted.

        Rows that are not `live` may read none of the cache. Of a batch of states one `width` serves all: were each its
        own, every width would be computed for each.
        """
        return self.cache.peek(self.target, params["target"], state, self.window(state.tokens.shape[1]), live, width)

    def transition(self, state: DecodeState, reply: Reply) -> DecodeState:
        """The state after one step with this reply; it is stamped with the number of calls so far. No model call."""
        front = state.carry
        view, memory = self.look(state, reply), front.rewrite
        own = view.logits  # log-probabilities are the model's own, before any rewrite
        # Only a block without a call yet is asked for its end, which is at least one position on and within the limit.
        block_end = jnp.where(
            front.fresh, jnp.clip(self.region(view), view.block_start + 1, view.limit), front.block_end
        )
        view = view.within(block_end)
        if self.rewrite is not None:  # proposals and confidences are taken again, from the logits that count
            logits, memory = self.rewrite(view, memory)
            view = self.look(state, reply.replace(logits=logits)).within(block_end)
        choice = self.select(view, front.select)
        accept, edit = choice.accept & view.eligible, jnp.zeros_like(view.open)
        if not self.select.idles:
            accept = accept | (best(view.sure, view.eligible) & ~accept.any(-1, keepdims=True))
        if choice.token is not None:  # a rule that writes tokens of its own may overwrite committed ones
            edit = choice.accept & view.inside & ~view.open & (choice.token != view.current)
            view = view.replace(token=choice.token)
        if self.stop is not None:  # all that is open, beyond the block too
            accept = jnp.where(self.stop(view)[:, None], view.open, accept)
        remask = jnp.zeros_like(accept) if choice.remask is None else choice.remask & view.inside & ~view.open
        if self.cut is not None:
            limit = jnp.maximum(self.cut(view, accept), view.block_start + 1)
            state, block_end = state.replace(limit=limit), jnp.minimum(block_end, limit)
            accept = accept & (view.position < limit[:, None])
            # What was committed behind the new end belongs to no text any more.
            slot = lax.iota(jnp.int32, state.committed_at.shape[1])[None]
            state = state.replace(committed_at=jnp.where(slot < limit[:, None], state.committed_at, OPEN))
        front = front.replace(
            block_end=block_end, rewrite=memory, select=choice.carry, turn=front.turn + 1, condition=reply.told
        )
        if state.logprobs is not None:
            at = jnp.where(accept | edit, view.position, state.tokens.shape[1])
            state = state.replace(logprobs=noted(state.logprobs, own, view.token, at))
        state = write(state.replace(carry=front), view, accept | edit, remask)
        return self.advance(state if choice.noise is None else redraw(state, view, choice.noise, ~accept))

    def look(self, state: DecodeState, reply: Reply) -> View:
        """The reply as rules see it, with a proposal for every position. The block is still the last call's."""
        front, logits = state.carry, self.suppress(reply.logits)
        first = reply.position[:, :1]
        # Position p is "depth" p - first here: noise is keyed by the absolute position, as in the prefix engine.
        token = next_tokens(logits, state.sampling, state.key, first[:, 0], reply.position - first, logits.shape[1] - 1)
        law = filtered(logits, state.sampling) if self.temper_confidence else logits
        confidence, _ = likelihood(law, token)  # p(token), which need not be the likeliest
        if self.eos_policy == "late":
            confidence = jnp.where(jnp.isin(token, self.eos), LATE, confidence)
        at = jnp.minimum(reply.position, state.tokens.shape[1] - 1)
        read = lambda x: jnp.take_along_axis(x, at, axis=1)
        exists = reply.position < state.limit[:, None]
        return View(
            logits=logits, law=law, position=reply.position, token=token, confidence=confidence,
            current=read(state.tokens),
            open=exists & (read(state.committed_at) == OPEN),
            inside=exists, block_start=front.block_start, block_end=front.block_end, prompt=state.prompt,
            limit=state.limit, turn=front.turn,
            fresh=front.fresh, key=state.key,
            shadow=None if reply.shadow is None else self.suppress(reply.shadow),
        )  # fmt: skip

    def suppress(self, logits: Float[Array, "B W V"]) -> Float[Array, "B W V"]:
        """Logits in float32 without the mask token, which a canvas never commits, and without padding."""
        logits, token = logits.astype(jnp.float32), lax.broadcasted_iota(jnp.int32, logits.shape, 2)
        if 0 < self.vocab_limit < logits.shape[-1]:
            logits = jnp.where(token >= self.vocab_limit, -jnp.inf, logits)
        if self.target.mask_id is not None and self.target.mask_id < logits.shape[-1]:
            logits = jnp.where(token == self.target.mask_id, -jnp.inf, logits)
        return jnp.where(jnp.isin(token, self.eos), -jnp.inf, logits) if self.eos_policy == "never" else logits

    def advance(self, state: DecodeState) -> DecodeState:
        """Close blocks without open positions, measure the committed text, and end rows at end-of-text or limit.

        Where a rule may take tokens back, those of an open block are not committed yet.
        """
        front, slots = state.carry, state.tokens.shape[1]
        slot = lax.iota(jnp.int32, slots)[None]
        open_ = (state.committed_at == OPEN) & (slot < state.limit[:, None])
        first_open = jnp.where(open_.any(-1), jnp.argmax(open_, axis=-1), state.limit).astype(jnp.int32)
        closed, revocable = first_open >= front.block_end, jnp.asarray(self.select.revocable)
        # End-of-text counts once nothing is open before it: till then a committed one may still be far from the text.
        block_start = jnp.where(closed, front.block_end, front.block_start)
        ended = jnp.isin(state.tokens, self.eos) & (slot >= state.prompt[:, None]) & (slot < first_open[:, None])
        has_end = ended.any(-1) & (closed | ~revocable)
        committed = jnp.where(revocable & (first_open < state.limit), block_start, first_open)
        length = jnp.where(has_end, jnp.argmax(ended, axis=-1).astype(jnp.int32) + 1, committed)
        return state.replace(
            length=length,
            done=has_end | (first_open >= state.limit),
            carry=front.replace(block_start=block_start, fresh=closed),
        )


def write(state: DecodeState, view: View, accept: Bool[Array, "B W"], remask: Bool[Array, "B W"]) -> DecodeState:
    """Commit accepted positions with the view's tokens, and open others again."""
    # Writing is a scatter of fixed shape: what is not to be written goes to slot S, which mode="drop" leaves out.
    front, beyond = state.carry, state.tokens.shape[1]
    put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
    at, back = (jnp.where(mask, view.position, beyond) for mask in (accept, remask))
    add = jax.vmap(lambda x, at: x.at[at].add(1, mode="drop"))
    now = jnp.broadcast_to(state.calls[:, None], at.shape)
    edited = jnp.where(accept & ~view.open, view.position, beyond)
    return state.replace(
        tokens=put(state.tokens, at, view.token),
        committed_at=put(put(state.committed_at, at, now), back, jnp.full_like(back, OPEN)),
        carry=front.replace(revised=add(add(front.revised, back), edited)),
    )


def redraw(state: DecodeState, view: View, noise: Int[Array, "B W"], among: Bool[Array, "B W"]) -> DecodeState:
    """Put noise at eligible positions `among` these, which stay open. What changes there counts as revised."""
    front, beyond = state.carry, state.tokens.shape[1]
    at = jnp.where(view.eligible & among & (noise != view.current), view.position, beyond)
    put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
    add = jax.vmap(lambda x, at: x.at[at].add(1, mode="drop"))
    return state.replace(tokens=put(state.tokens, at, noise), carry=front.replace(revised=add(front.revised, at)))


def keep(new: DecodeState, old: DecodeState, rows: Bool[Array, "B"]) -> DecodeState:
    """The new state in these rows, the old one in the others. The cache is taken as it is: it was written by row."""

    def one(new: Array, old: Array) -> Array:
        return jnp.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), new, old)

    fixed = dict(cache=None, key=None, sampling=None)
    kept = jax.tree.map(one, new.replace(**fixed), old.replace(**fixed))
    return kept.replace(cache=new.cache, key=new.key, sampling=new.sampling)
