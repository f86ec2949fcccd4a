"""What the rules of the canvas engine see of one model call, and the order that they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32

from paradec import struct
from paradec.decode.sampling import ORDER, uniform
from paradec.ops.argmax import argmax

SCORES = ("probability", "margin", "entropy", "random", "position")
"""How sure a call is of a position, greater is surer: the proposed token's probability, the lead of the likeliest over
the second, minus the entropy in nats, nothing but chance, or its place alone, the first counting most."""


LATE = -1e30  # a score below all others, and finite: such positions are still eligible

CERTAIN = 2.0**-53
"""What float64 takes for nothing beside 1. The published loops compute in it, and of positions that are surer than this
they commit the first; so does this engine."""


@struct.dataclass
class View:
    """One call on a window of W positions. Positions at or past the row's limit are neither open nor eligible."""

    logits: Float[Array, "B W V"]  # float32, the mask token suppressed, rewritten if there is a rewrite
    law: Float[Array, "B W V"]  # by which positions are judged: `logits`, or those after temperature and filters
    position: Int32[Array, "B W"]
    token: Int32[Array, "B W"]  # what the call proposes
    current: Int32[Array, "B W"]  # what stands there
    confidence: Float[Array, "B W"]  # probability of `token` by `law`; `LATE` where it shall be committed last
    open: Bool[Array, "B W"]
    inside: Bool[Array, "B W"]  # within the block
    block_start: Int32[Array, "B"]  # the block is [block_start, block_end)
    block_end: Int32[Array, "B"]
    prompt: Int32[Array, "B"]
    limit: Int32[Array, "B"]
    turn: Int32[Array, "B"]  # steps the row has made before this one
    fresh: Bool[Array, "B"]  # this is the block's first call
    key: jax.Array
    shadow: Float[Array, "B W V"] | None = None  # logits of rows that see all but their own position

    def within(self, block_end: Int32[Array, "B"]) -> View:
        """The same view with the block ending before `block_end`."""
        end = jnp.minimum(block_end, self.limit)[:, None]
        return self.replace(
            block_end=block_end, inside=(self.position >= self.block_start[:, None]) & (self.position < end)
        )

    @property
    def eligible(self) -> Bool[Array, "B W"]:
        """Open positions of the block: what a rule may accept."""
        return self.open & self.inside

    @property
    def sure(self) -> Float[Array, "B W"]:
        """What orders positions by confidence: its logarithm, which tells apart what float32 rounds to 0 or 1."""
        known = jnp.minimum(likelihood(self.law, self.token)[1], -CERTAIN)
        return jnp.where(self.confidence == LATE, LATE, known)

    @property
    def entropy(self) -> Float[Array, "B W"]:
        """Of the law at each position, in nats; a sum of what is not negative, so that small ones keep their digits.

        The likeliest entry is told from the rest by its index. A compiler may compute a rewritten law once for each of
        these sums, rounded otherwise each time, so that the greatest entry need not equal the maximum to the last bit.
        """
        law = self.law
        top = lax.broadcasted_iota(jnp.int32, law.shape, 2) == argmax(law)[..., None]
        under = jnp.where(top, 0.0, jnp.maximum(jnp.max(law, axis=-1, keepdims=True) - law, 0.0))
        weight = jnp.exp(-under)
        rest = jnp.sum(jnp.where(top, 0.0, weight), axis=-1)
        return jnp.log1p(rest) + jnp.sum(jnp.where(weight > 0, weight * under, 0.0), axis=-1) / (1 + rest)

    def score(self, name: str) -> Float[Array, "B W"]:
        """One of `SCORES`, as a number to be compared with a threshold."""
        match name:
            case "probability":
                return self.confidence
            case "margin":
                return jnp.exp(self.order("margin"))
        return self.order(name)

    def order(self, name: str) -> Float[Array, "B W"]:
        """One of `SCORES` as far as its order goes: probability and margin as logarithms, see `sure`."""
        match name:
            case "probability":
                return self.sure
            case "margin":
                law = self.law
                top, which = lax.top_k(law, 2)
                lead = jax.nn.log1mexp(top[..., 0] - top[..., 1])
                return jnp.minimum(lead + likelihood(law, which[..., 0])[1], -CERTAIN)
            case "entropy":
                return -self.entropy
            case "random":
                return uniform(self.key, self.position, ORDER)
            case "position":
                return -self.position.astype(jnp.float32)
        raise ValueError(f"There is no score {name!r}; there are {', '.join(SCORES)}.")


def likelihood(law: Float[Array, "B W V"], token: Int[Array, "B W"]) -> tuple[Float[Array, "B W"], Float[Array, "B W"]]:
    """The probability of one token at each position, and its logarithm, from log weights of any size.

    The logarithm is fine at both ends: near 1 it is what all others weigh together, near 0 a difference of log weights.
    With w_i = exp(law_i - max) and r the sum of the w_i of all other tokens, p = w / (w + r). For the likeliest token w
    is 1 and log p = -log1p(r): of r = 1e-12, where p rounds to 1 in float32, it is -1e-12, and not 0.
    """
    top = jnp.max(law, axis=-1, keepdims=True)
    mine = jnp.take_along_axis(law, token[..., None], axis=-1)
    own = lax.broadcasted_iota(token.dtype, law.shape, 2) == token[..., None]
    rest = jnp.sum(jnp.where(own, 0.0, jnp.exp(law - top)), axis=-1)
    under = (mine - top)[..., 0]
    weight = jnp.exp(under)
    return weight / (weight + rest), jnp.where(under < 0, under - jnp.log(weight + rest), -jnp.log1p(rest))


def rank(score: Float[Array, "B W"], among: Bool[Array, "B W"]) -> Int32[Array, "B W"]:
    """Place of each position in falling order of score, 0 first; ties go to the lower position, others get W.

    Scores (.2, .9, .9, .5), the last one not among them: (2, 0, 1, 4).
    """
    slot = lax.broadcasted_iota(jnp.int32, among.shape, 1)
    order = lax.sort((~among, -score, slot), dimension=1, is_stable=True, num_keys=2)[2]
    # `order[k]` is the position of place k; its inverse permutation, a second sort, is the place of each position.
    place = jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)
    return jnp.where(among, place, score.shape[-1])


def best(score: Float[Array, "B W"], among: Bool[Array, "B W"]) -> Bool[Array, "B W"]:
    """The one position of greatest score, the lowest of equals; none where there is none."""
    at = jnp.argmax(jnp.where(among, score, -jnp.inf), axis=-1)
    first = jnp.argmax(among, axis=-1)  # where all scores are -inf
    at = jnp.where(jnp.take_along_axis(among, at[:, None], axis=1)[:, 0], at, first)
    return among & (lax.broadcasted_iota(at.dtype, among.shape, 1) == at[:, None])


def as_threshold(confidence: float, name: str = "tau") -> Float[Array, ""]:
    """A confidence to be reached, as a leaf; above 1 nothing reaches it. Raises `ValueError` below 0 and for NaN."""
    if not confidence >= 0:
        raise ValueError(f"{name} is a confidence, so 0 or more (above 1: never reached); {confidence} was given.")
    return jnp.float32(confidence)


def count(mask: Bool[Array, "B W"]) -> Int[Array, "B"]:
    """How many are true in each row."""
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)
