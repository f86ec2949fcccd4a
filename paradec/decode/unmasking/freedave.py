"""FreeDave: speculation over the canvas engine's own step. Exact, and faster, for any deterministic rule."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from paradec import struct
from paradec.decode.canvas import Canvas, Front, keep
from paradec.decode.seams import Method, Reply
from paradec.system import ExactTo, System
from paradec.types import OPEN, DecodeState, Denoiser, Prompt, Sampling


@struct.dataclass
class Held:
    """What a FreeDave row carries: the base method's own carry, and the reply to the state as it stands."""

    front: Front
    reply: Reply


@struct.dataclass
class FreeDave(Method):
    """Returns the texts of `base` from fewer calls (arXiv 2510.00294).

    From one reply the base's transition is applied again and again, which gives the next state for certain and guesses
    for `drafts` - 1 more. One call as many times wider looks at all of them; the true successors of each are
    computed, and the chain is followed as far as guess and truth agree in every token, open position and border.
    The reply to the last state that was reached is already there, so no call is spent on it, and no decode takes more
    calls than its base.

    Deviations: any rule and any composition may be the base, thresholds included, because agreement is asked of whole
    states (the paper's second draft mode compares subsets, and is not exact); states may lie beyond the block where
    no cache is kept (the paper's eager mode). With a cache a chain ends at the border.
    """

    kind: ClassVar[str] = "canvas"

    base: Canvas
    drafts: int = struct.field(pytree_node=False, default=4)

    @classmethod
    def of(cls, base: Canvas, drafts: int = 4) -> FreeDave:
        """The method around `base`. Raises `ValueError` for fewer drafts than one."""
        if drafts < 1:
            raise ValueError(f"freedave looks at one state or more; drafts={drafts} was given.")
        return cls(base, drafts)

    @property
    def target(self) -> Denoiser:
        return self.base.target

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def eos(self) -> Int[Array, "E"]:
        return self.base.eos

    def init(
        self, params: PyTree, prompt: Prompt, limit: Int[Array, "B"], key: jax.Array, sampling: Sampling, slots: int
    ) -> DecodeState:
        """The base's first state, without a reply yet."""
        state = self.base.init(params, prompt, limit, key, sampling, slots)
        depths = jnp.zeros((prompt.length.shape[0], self.drafts - 1), jnp.int32)
        state = state.replace(stats=state.stats.replace(offered=depths, accepted=depths))
        reply = jax.eval_shape(lambda: self.base.predict(params, state)[0])
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), reply)
        return state.replace(carry=Held(front=state.carry, reply=empty))

    def prefill(self, params: PyTree, state: DecodeState, chunk: int) -> DecodeState:
        """Read the prompt, and make the first call, which drafts and commits nothing yet."""
        plain = self.base.prefill(params, state.replace(carry=state.carry.front), chunk)
        reply, called, acting = self.base.predict(params, plain)
        called = keep(called, plain, acting)
        return called.replace(carry=Held(front=called.carry, reply=reply))

    def step(self, params: PyTree, state: DecodeState) -> DecodeState:
        """One call, `drafts` times as wide as the base's; or, where all rows open a block, the base's opening call."""
        held = state.carry
        plain = state.replace(carry=held.front)
        first = keep(self.base.transition(plain, held.reply), plain, ~state.done)
        if not self.base.cache.keeps:
            return self.chain(params, state, first, jnp.zeros_like(state.done))
        due = first.carry.fresh & ~first.done
        wide = jnp.all(due | first.done)
        # A loop of one turn or none, and no cache through the branch below: it would be copied.
        ready = first.replace(carry=Held(front=first.carry, reply=held.reply))
        opened = lax.fori_loop(0, wide.astype(jnp.int32), lambda _, s: self.open(params, s), ready)
        state, first = state.replace(cache=opened.cache), first.replace(cache=opened.cache)
        bare = lambda s: s.replace(cache=None)
        new = lax.cond(wide, lambda: bare(opened), lambda: bare(self.chain(params, state, first, due)))
        return new.replace(cache=opened.cache)

    def open(self, params: PyTree, ready: DecodeState) -> DecodeState:
        """The opening call of a block under a cache: no drafts."""
        first = ready.replace(carry=ready.carry.front)
        reply, called, acting = self.base.predict(params, first)
        called = keep(called, first, acting)
        return called.replace(carry=Held(front=called.carry, reply=reply))

    def chain(self, params: PyTree, state: DecodeState, first: DecodeState, due: Bool[Array, "B"]) -> DecodeState:
        """Draft from the old reply, look at all drafts in one call, follow them as far as they are true.

        Rows that are `due` for an opening call wait. Example with T the transition and r0 the reply in hand, 3 drafts:
        s1 = T(s0, r0) is certain; g2 = T(s1, r0) and g3 = T(g2, r0) are guesses; one call replies r1, q2, q3 to them.
        s2 = T(s1, r1) is the truth. If s2 is g2, q2 is its reply and s3 = T(s2, q2) the next truth; if s3 is not g3, s2
        and q2 are kept, two states on. If s2 is not g2, s1 and r1 are kept: never less than the base's own step.
        """
        fixed = dict(key=first.key, sampling=first.sampling)
        bare = lambda s: s.replace(cache=None, key=None, sampling=None)
        after = lambda s: keep(self.base.transition(s, state.carry.reply), s, ~s.done)
        guess = lambda s, _: (bare(after(s.replace(**fixed))),) * 2
        _, rest = lax.scan(guess, bare(first), None, length=self.drafts - 1)
        drafts = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), bare(first), rest)
        # One `live` for all drafts: were it each draft's own, each would read its own blocks of the cache, by gathers.
        width = self.base.width(first)  # drafts never reach back before it
        look = lambda s: self.base.peek(params, s.replace(cache=first.cache, **fixed), ~first.done, width)
        replies, cost = jax.vmap(look)(drafts)
        acting = ~first.done & ~due
        called = first.replace(cache=None, calls=first.calls + acting.astype(jnp.int32))
        kept, depth = self.follow(called, drafts, replies, acting)
        stats, d = first.stats, jnp.arange(self.drafts - 1)[None]
        stats = stats.replace(
            queries=stats.queries + jnp.where(first.done, 0, jnp.sum(cost, axis=0)),  # also of a row that waits
            offered=stats.offered + acting[:, None].astype(jnp.int32),
            accepted=stats.accepted + (acting[:, None] & (d < depth[:, None])).astype(jnp.int32),
        )
        new = kept.replace(cache=first.cache, stats=stats)
        # What has finished with its first state needs no call; what is due keeps its state, and its reply, and waits.
        done = first.replace(carry=Held(front=first.carry, reply=state.carry.reply))
        return keep(keep(new, done, acting), state.replace(stats=stats), ~due & ~state.done)

    def follow(
        self, state: DecodeState, drafts: DecodeState, replies: Reply, acting: Bool[Array, "B"]
    ) -> tuple[DecodeState, Int[Array, "B"]]:
        """The last state that the drafts reach, with its reply (or its successor, if that is the end), and how many
        drafts were true."""

        def one(so_far: tuple, seen: tuple[Reply, DecodeState]) -> tuple[tuple, None]:
            now, kept, alive, depth = so_far
            reply, ahead = seen
            after = self.base.transition(now, reply)
            holding = lambda s: s.replace(carry=Held(front=s.carry, reply=reply))
            best = keep(holding(after), holding(now), after.done)
            kept = keep(best, kept, alive)
            # `ahead` is the next draft, whose reply is known: the truth goes on only where it is that draft.
            same = agree(after, ahead) & ~after.done
            if self.base.cache.keeps:
                same &= ~after.carry.fresh
            depth = depth + (alive & (same | after.done)).astype(jnp.int32)
            return (keep(after, now, alive), kept, alive & same, depth), None

        # Step i compares with draft i + 1. The last has none: what stands in its place changes nothing any more.
        last = jax.tree.map(lambda x: jnp.concatenate([x[1:], x[-1:]]), drafts)
        start = state.replace(carry=Held(front=state.carry, reply=jax.tree.map(lambda x: x[0], replies)))
        zero = jnp.zeros_like(state.calls)
        (_, kept, _, depth), _ = lax.scan(one, (state, start, acting, zero), (replies, last))
        return kept, jnp.minimum(depth, self.drafts - 1)


def agree(a: DecodeState, b: DecodeState) -> Bool[Array, "B"]:
    """Whether two states show the model the same canvas, and rules the same block."""
    open_a, open_b = a.committed_at == OPEN, b.committed_at == OPEN
    tokens = jnp.where(open_a, 0, a.tokens) == jnp.where(open_b, 0, b.tokens)
    x, y = a.carry, b.carry
    fronts = (
        (x.block_start == y.block_start) & (x.block_end == y.block_end) & (x.fresh == y.fresh) & (a.limit == b.limit)
    )
    return fronts & jnp.all(tokens & (open_a == open_b), axis=-1)


SYSTEMS = (System(
    name="freedave", title="FreeDave", slot="wrap", arxiv="2510.00294", make=FreeDave.of, needs=("base",),
    exact_to=ExactTo("base", "base"), laws=("base", "trace", "budget", "rows"),
    meanings={"drafts": "states that a call looks at; 1 is the base itself"},
    cost="A call is `drafts` times as wide; no decode takes more calls than its base.",
    proof="pytest tests/decode/test_freedave.py",
),)  # fmt: skip
