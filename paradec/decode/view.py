"""What the rules of the canvas engine see of one model call, and the order that they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import struct
from paradec.decode.sampling import ORDER, uniform

SCORES = ("probability", "margin", "entropy", "random")
"""How sure a call is of a position, greater is surer: the proposed token's probability, the lead of the likeliest over
the second, minus the entropy in nats, or nothing but chance."""


@struct.dataclass
class View:
    """One call on a window of W positions. Positions at or past the row's limit are neither open nor eligible."""

    logits: Float[Array, "B W V"]  # float32, the mask token suppressed, rewritten if there is a rewrite
    law: Float[Array, "B W V"]  # by which positions are judged: `logits`, or those after temperature and filters
    position: Int32[Array, "B W"]
    token: Int32[Array, "B W"]  # what the call proposes
    current: Int32[Array, "B W"]  # what stands there
    confidence: Float[Array, "B W"]  # probability of `token` under `law`
    open: Bool[Array, "B W"]
    inside: Bool[Array, "B W"]  # within the block
    lo: Int32[Array, "B"]  # the block is [lo, hi)
    hi: Int32[Array, "B"]
    prompt: Int32[Array, "B"]
    limit: Int32[Array, "B"]
    turn: Int32[Array, "B"]  # steps the row has made before this one
    fresh: Bool[Array, "B"]  # this is the block's first call
    key: jax.Array
    shadow: Float[Array, "B W V"] | None = None  # logits of rows that see all but their own position

    def within(self, hi: Int32[Array, "B"]) -> View:
        """The same view with the block ending before `hi`."""
        end = jnp.minimum(hi, self.limit)[:, None]
        return self.replace(hi=hi, inside=(self.position >= self.lo[:, None]) & (self.position < end))

    @property
    def eligible(self) -> Bool[Array, "B W"]:
        """Open positions of the block: what a rule may accept."""
        return self.open & self.inside

    @property
    def entropy(self) -> Float[Array, "B W"]:
        """Of the law at each position, in nats."""
        log_p = jax.nn.log_softmax(self.law, axis=-1)
        return -jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0), axis=-1)

    def score(self, name: str) -> Float[Array, "B W"]:
        """One of `SCORES`."""
        match name:
            case "probability":
                return self.confidence
            case "entropy":
                return -self.entropy
            case "margin":
                top = lax.top_k(jax.nn.softmax(self.law, axis=-1), 2)[0]
                return top[..., 0] - top[..., 1]
            case "random":
                return uniform(self.key, self.position, ORDER)
        raise ValueError(f"There is no score {name!r}; there are {', '.join(SCORES)}.")


@struct.dataclass
class Choice:
    """What a select rule decides: positions to settle, settled ones to open again, and its next carry.

    `token`, if given, is written instead of the proposal; where a position is settled already, that is an edit.
    """

    accept: Bool[Array, "B W"]
    carry: PyTree = ()
    reopen: Bool[Array, "B W"] | None = None
    token: Int32[Array, "B W"] | None = None


def probability(logits: Float[Array, "B W V"], token: Int[Array, "B W"]) -> Float[Array, "B W"]:
    """Of one token at each position, by its float32 logits.

    Written as a quotient of sums around the largest logit, which resolves 6e-8 near 1. exp(x - logsumexp(x)) is rounded
    to the size of the logits: at 40 it calls 1 - 1e-7 and 1 - 8e-7 equal, and the order of positions is lost.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    own = jnp.exp(jnp.take_along_axis(logits, token[..., None], axis=-1) - top)
    return (own / jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True))[..., 0]


def rank(score: Float[Array, "B W"], among: Bool[Array, "B W"]) -> Int32[Array, "B W"]:
    """Place of each position in falling order of score, 0 first; ties go to the lower position, others get W."""
    slot = lax.broadcasted_iota(jnp.int32, among.shape, 1)
    order = lax.sort((~among, -score, slot), dimension=1, is_stable=True, num_keys=2)[2]
    place = jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)
    return jnp.where(among, place, score.shape[-1])


def best(score: Float[Array, "B W"], among: Bool[Array, "B W"]) -> Bool[Array, "B W"]:
    """The one position of greatest score, the lowest of equals; none where there is none."""
    at = jnp.argmax(jnp.where(among, score, -jnp.inf), axis=-1)
    first = jnp.argmax(among, axis=-1)  # where all scores are -inf
    at = jnp.where(jnp.take_along_axis(among, at[:, None], axis=1)[:, 0], at, first)
    return among & (lax.broadcasted_iota(at.dtype, among.shape, 1) == at[:, None])


def bar(confidence: float, name: str = "tau") -> Float[Array, ""]:
    """A confidence to be reached, as a leaf; above 1 nothing reaches it. Raises `ValueError` below 0 and for NaN."""
    if not confidence >= 0:
        raise ValueError(f"{name} is a confidence, so 0 or more (above 1: never reached); {confidence} was given.")
    return jnp.float32(confidence)


def count(mask: Bool[Array, "B W"]) -> Int[Array, "B"]:
    """How many are true in each row."""
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)
