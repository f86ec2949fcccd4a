"""What a canvas call recomputes and what it reads from a cache: one policy each for the published ones.

A policy has two kinds of call. A block that has just opened is due for an *opening* call, which is wide and may store
keys and values; the calls after it are *steady*, as narrow as the policy allows, and store nothing. Rows that open
blocks at different times would keep every call wide, so where an opening call is dear, rows wait for each other at
block borders: no token depends on it, since rows do not see each other.

For a model that sees the whole canvas a cache is an approximation (exact for one layer); for a block-causal model
the finished blocks are exact.

What each policy computes, for a canvas of 16 slots, a prompt of 6, limit 14 and blocks of 4 that are counted from the
prompt's end; the block [6, 10) opens. `span` are positions computed, `stored` those whose keys go to the cache:

    policy  opening call: span, stored   steady calls: span, keys read from the cache
    none    0..15, nothing               0..15, none
    dual    0..15, 0..13                 6..9, 0..5 and 10..13, as the opening call saw them
    prefix  0..15, 0..5                  6..13 (8 wide, the narrowest quarter that reaches 14), 0..5
    block   2..9, 2..5                   6..9, 0..5: 0 and 1 were stored by the prefill, for good
    causal  2..9, 2..5                   6..9, 0..5: the same, with 2..5 read causally

With shifted logits a steady span begins one further left: row 5 answers for position 6. That row is not `fresh`, so its
own keys come from the cache.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec.decode.seams import CachePolicy, CallCost, Reply
from paradec.types import OPEN, DecodeState, Denoiser, Place, Rows


class Span(NamedTuple):
    """A stretch of the canvas to recompute: `size` positions from `at` on, of which those in [new, end) count anew.

    The first `store` rows go to the cache, which then has `length` slots in use.
    """

    at: Int32[Array, "B"]
    size: int
    new: Int32[Array, "B"]
    end: Int32[Array, "B"]
    store: Int32[Array, "B"]
    length: Int32[Array, "B"]


def border(target: Denoiser, position: Int[Array, "..."], prompt: Int[Array, "..."]) -> Int32[Array, "..."]:
    """Where the model's block that holds `position` begins. Needs a block-causal model.

    Blocks of 4 and a prompt of 6: position 9 is in the block from 8 on of the grid "text", from 6 on of "prompt", whose
    first block of the prompt is cut short: position 1 is in the block from -2 on.
    """
    first = prompt if target.grid == "prompt" else 0
    return (position - first) // target.block * target.block + first


def horizon(target: Denoiser, position: Int[Array, "B M"], state: DecodeState) -> Int32[Array, "B M"]:
    """The first position that a row does not see: the end of its block, or of the row.

    Of a model with a causal cache, rows before the open block see themselves and what is before them, and those from
    there on this block's end.
    """
    limit = jnp.broadcast_to(state.limit[:, None], position.shape)
    if not target.block:
        return limit
    if target.causal_cache:
        base = border(target, state.carry.block_start, state.prompt)[:, None]
        return jnp.where(position < base, position + 1, jnp.minimum(base + target.block, limit))
    return jnp.minimum(border(target, position, state.prompt[:, None]) + target.block, limit)


def ask(
    target: Denoiser, params: PyTree, cache: PyTree, state: DecodeState, span: Span, window: int, shadows: bool,
    live: Bool[Array, "B"],
) -> tuple[Reply, PyTree]:  # fmt: skip
    """One model call on a span, and its delta. `live`: rows whose cache is read."""
    slots, begin = state.tokens.shape[1], state.carry.block_start
    # `position` is what is computed, `wanted` what the reply is about: the block and what follows,
    # or everything in a whole window.
    position = span.at[:, None] + lax.iota(jnp.int32, span.size)[None]
    wanted = begin[:, None] + lax.iota(jnp.int32, window)[None]
    if window == slots:
        wanted = jnp.broadcast_to(lax.iota(jnp.int32, slots)[None], wanted.shape)
    # `read` finds the row that answers for each wanted position. Clipped are positions past the span, which are past
    # the block's end, or the limit, too: nobody looks at their logits.
    here = jnp.minimum(position, slots - 1)
    fresh = (position >= span.new[:, None]) & (position < span.end[:, None])
    read = jnp.clip(wanted - span.at[:, None] - int(target.shift), 0, span.size - 1)
    token, beside = seen(target, state, here), None
    if shadows:  # one mask row more for each wanted position, behind the canvas rows; logits :window are the canvas's
        token = jnp.concatenate([token, jnp.full(wanted.shape, target.mask_id, jnp.int32)], axis=1)
        beside = jnp.concatenate([jnp.zeros_like(fresh), jnp.ones(wanted.shape, bool)], axis=1)
        position = jnp.concatenate([position, wanted], axis=1)
        fresh = jnp.concatenate([fresh, (wanted >= begin[:, None]) & (wanted < state.limit[:, None])], axis=1)
        read = jnp.concatenate([read, span.size + jnp.broadcast_to(lax.iota(jnp.int32, window), wanted.shape)], axis=1)
    start = border(target, begin, state.prompt) if target.causal_cache else None
    sees = horizon(target, position, state)
    place = Place(position=position, sees=sees, fresh=fresh, shadow=beside, block_start=start)
    rows = Rows.canvas(token, place, read, condition=heard(state, position))
    out, delta = target.extend(params, cache, rows, live=live)
    shadow = out.logits[:, window:] if shadows else None
    return Reply(logits=out.logits[:, :window], position=wanted, shadow=shadow), delta


def heard(state: DecodeState, position: Int[Array, "B M"]) -> Float[Array, "B M D"] | None:
    """What the rows at these positions are told of the block's last call: 0 outside the block and in its first call."""
    front = state.carry
    if front.condition is None:
        return None
    at = position - front.block_start[:, None]
    size = front.condition.shape[1]
    told = jnp.take_along_axis(front.condition, jnp.clip(at, 0, size - 1)[..., None], axis=1)
    return jnp.where(((at >= 0) & (at < size) & ~front.fresh[:, None])[..., None], told, 0)


def narrowest(spans: tuple[Span, ...], done: Bool[Array, "B"]) -> Int32[Array, ""]:
    """The first of these spans, which widen, that reaches every row's end; rows that are done need none."""
    holds = jnp.stack([jnp.all(done | (span.at + span.size >= span.end)) for span in spans])
    return jnp.argmax(holds).astype(jnp.int32)


def seen(target: Denoiser, state: DecodeState, at: Int[Array, "B M"]) -> Int32[Array, "B M"]:
    """The tokens the model is shown at these slots: what stands there, and the mask where nothing is committed."""
    token = jnp.take_along_axis(state.tokens, at, axis=1)
    if target.mask_id is None:
        return token
    return jnp.where(jnp.take_along_axis(state.committed_at, at, axis=1) == OPEN, target.mask_id, token)


@dataclasses.dataclass(frozen=True)
class Whole(CachePolicy):
    """No cache: every call reads the whole canvas. The truth that the others are measured against."""

    name = "none"

    def init(self, target: Denoiser, batch: int, slots: int) -> PyTree:
        return target.init_cache(batch, 0)

    def call(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, shadows: bool
    ) -> tuple[Reply, PyTree, Bool[Array, "B"], CallCost]:
        """The reply, the cache after it, the rows that took part, and what it cost."""
        zero = jnp.zeros_like(state.limit)
        span = Span(zero, state.tokens.shape[1], zero, state.limit, zero, zero)
        reply, _ = ask(target, params, state.cache, state, span, window, shadows, live=jnp.zeros_like(state.done))
        rows = span.size + (window if shadows else 0)
        return reply, state.cache, ~state.done, CallCost(zero + rows, jnp.zeros_like(state.done))

    def width(self, target: Denoiser, state: DecodeState, window: int) -> Int32[Array, ""]:
        """Which of the widths of a call that stores nothing is enough for this state."""
        return jnp.int32(0)

    def peek(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, live: Bool[Array, "B"],
        width: Int[Array, ""],
    ) -> tuple[Reply, Int32[Array, "B"]]:  # fmt: skip
        """A call that stores nothing, for blocks that are open already, and its cost in rows. `live` as in `ask`."""
        reply, _, _, cost = self.call(target, params, state, window, False)
        return reply, cost.queries


@dataclasses.dataclass(frozen=True)
class Cached(Whole):
    """What the caching policies share: opening calls that store, steady calls that read."""

    keeps = True
    synchronous_blocks: bool = True
    """Whether rows that are due wait until all are. Without waiting one row's opening widens everybody's call."""

    def init(self, target: Denoiser, batch: int, slots: int) -> PyTree:
        return target.init_cache(batch, slots)

    def opening(self, target: Denoiser, state: DecodeState) -> Span:
        """The call of a block that has just opened."""
        raise NotImplementedError

    def steady(self, target: Denoiser, state: DecodeState, window: int) -> tuple[Span, ...]:
        """Every other call: spans that differ in width alone, the narrowest that holds all rows' ends is taken."""
        raise NotImplementedError

    def call(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, shadows: bool
    ) -> tuple[Reply, PyTree, Bool[Array, "B"], CallCost]:
        """The reply, the cache after it, the rows that took part, and what it cost."""
        due, live = state.carry.fresh & ~state.done, ~state.done
        wide = jnp.all(due | state.done) if self.synchronous_blocks else jnp.any(due)
        first, later = self.opening(target, state), self.steady(target, state, window)
        # Where rows wait, a call is wide when all live rows are due; else one row that is due makes it wide for all.
        # A row that is not due, in a call that is wide for others, recomputes just what it would have alone.
        mixed = first._replace(
            new=jnp.where(due, first.new, later[0].new), end=jnp.where(due, first.end, later[0].end),
            store=jnp.where(due, first.store, 0), length=jnp.where(due, first.length, state.cache.length),
        )  # fmt: skip

        # A row that is due recomputes all that counts from `new` on: where that is 0 it reads nothing of the cache.
        def open_(cache: PyTree) -> tuple[Reply, PyTree]:
            reads = live & (~due | (mixed.new > 0))
            reply, delta = ask(target, params, cache, state, mixed, window, shadows, live=reads)
            return reply, target.store(cache, delta, mixed.at, mixed.store, mixed.length)

        which = jnp.where(wide, 0, 1 + narrowest(later, state.done))
        # A loop of one turn or none, because a branch that hands a cache on copies it.
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: open_(state.cache)[0]))
        opened, cache = lax.fori_loop(0, wide.astype(jnp.int32), lambda _, held: open_(held[1]), (blank, state.cache))
        go_on = lambda span: ask(target, params, cache, state, span, window, shadows, live=live)[0]
        reply = lax.switch(which, [lambda: opened, *(partial(go_on, span) for span in later)])
        rows = jnp.asarray([first.size, *(span.size for span in later)])[which] + (window if shadows else 0)
        acting = live & (wide | ~due)
        return reply, cache, acting, CallCost(jnp.broadcast_to(rows, due.shape), due & acting)

    def width(self, target: Denoiser, state: DecodeState, window: int) -> Int32[Array, ""]:
        """The narrowest steady call that holds all rows."""
        return narrowest(self.steady(target, state, window), state.done)

    def peek(
        self, target: Denoiser, params: PyTree, state: DecodeState, window: int, live: Bool[Array, "B"],
        width: Int[Array, ""],
    ) -> tuple[Reply, Int32[Array, "B"]]:  # fmt: skip
        """A steady call of this width."""
        spans = self.steady(target, state, window)
        look = lambda span: ask(target, params, state.cache, state, span, window, False, live=live)[0]
        reply = lax.switch(width, [partial(look, span) for span in spans])
        return reply, jnp.broadcast_to(jnp.asarray([span.size for span in spans])[width], state.limit.shape)


@dataclasses.dataclass(frozen=True)
class DualCache(Cached):
    """Fast-dLLM's dual cache (arXiv 2505.22618): one call on the whole canvas for each block, then the block alone."""

    name = "dual"

    def opening(self, target: Denoiser, state: DecodeState) -> Span:
        zero = jnp.zeros_like(state.limit)
        return Span(zero, state.tokens.shape[1], zero, state.limit, state.limit, state.limit)

    def steady(self, target: Denoiser, state: DecodeState, window: int) -> tuple[Span, ...]:
        front, zero = state.carry, jnp.zeros_like(state.limit)
        size = min(window + int(target.shift), state.tokens.shape[1])
        return (
            Span(
                jnp.maximum(front.block_start - int(target.shift), 0),
                size,
                front.block_start,
                front.block_end,
                zero,
                state.cache.length,
            ),
        )

    def check(self, target: Denoiser, region: Any) -> str | None:
        if target.block:
            kind = f"block-causal ({target.block})"
            return f"cache '{self.name}' is for models that see the whole canvas; this one is {kind}."
        return None if region.reach else f"cache '{self.name}' needs blocks; the region here is the whole canvas."


@dataclasses.dataclass(frozen=True)
class PrefixCache(DualCache):
    """Fast-dLLM's prefix cache: what stands before the block is stored, everything from it on is recomputed.

    Compiled for the quarters of the canvas, and a call is as wide as the longest suffix of its rows needs.
    """

    name = "prefix"

    def opening(self, target: Denoiser, state: DecodeState) -> Span:
        return super().opening(target, state)._replace(store=state.carry.block_start, length=state.carry.block_start)

    def steady(self, target: Denoiser, state: DecodeState, window: int) -> tuple[Span, ...]:
        front, zero, slots = state.carry, jnp.zeros_like(state.limit), state.tokens.shape[1]
        sizes = sorted({max(-(-slots * k // 4), min(window + int(target.shift), slots)) for k in (1, 2, 3, 4)})
        at = jnp.maximum(front.block_start - int(target.shift), 0)
        return tuple(Span(at, size, front.block_start, state.limit, zero, state.cache.length) for size in sizes)


@dataclasses.dataclass(frozen=True)
class BlockCache(Cached):
    """Finished blocks are stored for good: exact for a block-causal model.

    A block is stored by the opening call of the next one, which is two blocks wide, so that keeping costs no call of
    its own.

    Example, blocks of 4 from position 0 on, a prompt of 6: the model's block is [4, 8). The prefill stores nothing; the
    opening call computes 0 to 7 and stores 0 to 3; steady calls compute 4 to 7. The next opening call computes 4 to 11
    and stores 4 to 7, which are final now.
    """

    name = "block"

    def prefill(self, target: Denoiser, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """Store the prompt's whole blocks but the last, which the first opening call stores."""
        size = -(-max(chunk, 2 * target.block) // target.block) * target.block
        size = min(size, state.tokens.shape[1])
        last = jnp.maximum(border(target, state.prompt, state.prompt) - target.block, 0)
        last = jnp.where(state.done, 0, last)

        def some(s: DecodeState) -> DecodeState:
            # The call is `size` wide wherever it stands. At the canvas' end it begins early, at `start` before `at`:
            # what it computes again there is stored again.
            at = s.cache.length
            end = jnp.minimum(border(target, at + size, s.prompt), last)
            count = jnp.maximum(end - at, 0)
            start = jnp.minimum(at, s.tokens.shape[1] - size)  # the write is as wide as the call
            span = Span(start, size, at, at + count, count, at + count)
            _, delta = ask(target, params, s.cache, s, span, 1, False, live=count > 0)
            stored = jnp.where(count > 0, at + count - start, 0)
            return s.replace(cache=target.store(s.cache, delta, start, stored, at + count))

        return lax.while_loop(lambda s: jnp.any(s.cache.length < last), some, state)

    def opening(self, target: Denoiser, state: DecodeState) -> Span:
        # The block before and the own one; near the canvas' end the span begins early, since it may not stick out.
        base = self.base(target, state)
        at = jnp.maximum(base - target.block, 0)
        size = min(2 * target.block, state.tokens.shape[1])
        at = jnp.minimum(at, state.tokens.shape[1] - size)
        end = jnp.minimum(base + target.block, state.limit)
        return Span(at, size, jnp.maximum(base - target.block, 0), end, base - at, base)

    def steady(self, target: Denoiser, state: DecodeState, window: int) -> tuple[Span, ...]:
        base, zero = self.base(target, state), jnp.zeros_like(state.limit)
        at = jnp.maximum(base - int(target.shift), 0)
        size = min(target.block + int(target.shift), state.tokens.shape[1])
        return (Span(at, size, base, jnp.minimum(base + target.block, state.limit), zero, state.cache.length),)

    def base(self, target: Denoiser, state: DecodeState) -> Int32[Array, "B"]:
        """Where the model's block begins in which each row works."""
        return border(target, state.carry.block_start, state.prompt)

    def check(self, target: Denoiser, region: Any) -> str | None:
        if not target.block:
            return f"cache '{self.name}' is for block-causal models; this one sees the whole canvas."
        if target.causal_cache:
            return f"cache '{self.name}' keeps blocks read both ways; this model reads them causally: take 'causal'."
        return None


@dataclasses.dataclass(frozen=True)
class SubBlockCache(BlockCache):
    """Fast-dLLM v2 (arXiv 2509.26328): inside a block, the sub-block alone, against what the block looked like when
    the sub-block opened. With sub-blocks as long as the block it is `BlockCache`.

    Deviation: every sub-block opens with a wide call, so it is right for models without shift too, and a call wide
    enough for the block before is spent each time.

    Example, blocks of 8, sub-blocks of 4, the block [8, 16): both sub-blocks open with a call on 0 to 15 that stores
    all of it; steady calls compute 8 to 11, later 12 to 15, and read the rest as the opening call saw it.
    """

    name = "sub_block"

    def opening(self, target: Denoiser, state: DecodeState) -> Span:
        span = super().opening(target, state)
        return span._replace(store=span.end - span.at, length=span.end)

    def steady(self, target: Denoiser, state: DecodeState, window: int) -> tuple[Span, ...]:
        front, zero = state.carry, jnp.zeros_like(state.limit)
        # The whole sub-block: where a prompt ends inside it, its last tokens have seen this sub-block's masks too.
        new = jnp.clip(front.block_end - window, self.base(target, state), front.block_start)
        size = min(window + int(target.shift), state.tokens.shape[1])
        return (Span(jnp.maximum(new - int(target.shift), 0), size, new, front.block_end, zero, state.cache.length),)


@dataclasses.dataclass(frozen=True)
class CausalCache(BlockCache):
    """For a model that reads finished text causally and denoises an open block that sees this text and all of itself.

    Only the keys of the causal pass are stored. A block's opening call reads the block before it once more, causally,
    in its final form, and stores it; rows of the new block ride along, so the commit costs no call of its own. Every
    other call computes the open block alone. The last block of a text is never stored. Exact: it is what the policy
    "none" computes, which reads all finished text causally in every call.

    Example, blocks of 4 behind a prompt of 6: the prefill stores positions 0 and 1; the opening call computes 2 to 9,
    of which 2 to 5 are causal and stored; steady calls compute 6 to 9; the next opening call 6 to 13.
    """

    name = "causal"

    def check(self, target: Denoiser, region: Any) -> str | None:
        if not target.causal_cache:
            return f"cache '{self.name}' is for models that read finished text causally, and this one does not."
        return None


POLICIES: dict[str, type[Whole]] = {
    p.name: p for p in (Whole, DualCache, PrefixCache, BlockCache, SubBlockCache, CausalCache)
}
