"""Masked diffusion and block diffusion: hide tokens at random, and predict them from the others.

What differs between the published losses is how much is hidden (per row or per block, over which range), what a hidden
token counts, whether a row is also learned with the complement hidden, and which row of the model speaks of a token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from paradec import params
from paradec.errors import check_fields, check_kinds
from paradec.learn.objectives.next_token import cross_entropy
from paradec.learn.step import Loss, Share
from paradec.models.block_diffusion import BlockDiffusion
from paradec.types import TextBatch

LEAST = 1e-3
"""The smallest share of tokens that is hidden: below it 1 / share would drown everything else."""


class StreamView(NamedTuple):
    """One noisy look at a batch: the tokens shown, which of them are hidden, and what each counts."""

    token: Int[Array, "B T"]
    hidden: Bool[Array, "B T"]
    weight: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Noise:
    """How tokens are hidden.

    The share t of hidden tokens is uniform between `low` and `high`, drawn for each row or, with `block` above 0, for
    each block of so many tokens; shares of a batch are stratified, so that each is spread evenly over the range. A
    hidden token counts 1 / t (LLaDA, MDLM; arXiv 2502.09992), which makes the loss a bound on the likelihood; 1, if
    `even` or if `low` is above a half (as BD3-LM does, 2503.09573). `pair` adds the complement of every view, so that
    each token is learned once (Fast-dLLM v2, 2509.26328); it counts evenly.
    """

    block: int = 0
    """Tokens that share one share; 0: a whole row."""
    low: float = LEAST
    """The least share."""
    high: float = 1.0
    """The greatest share."""
    even: bool = False
    """Every hidden token counts the same."""
    pair: bool = False
    """Every row comes twice, with complementary views."""

    def __post_init__(self) -> None:
        """Raise `InputError` for a value of another kind, or a range that is none."""
        check_kinds(self)
        check_fields(self, {
            "low": (0 < self.low <= self.high, f"above 0 and at most high ({self.high})"),
            "high": (self.high <= 1, "at most 1"),
            "block": (self.block >= 0, "0 (one share a row) or more"),
        })  # fmt: skip

    def views(
        self, key: jax.Array, token: Int[Array, "B T"], learn: Bool[Array, "B T"], mask_id: int
    ) -> tuple[StreamView, ...]:
        """One view of a batch, or two that hide complements of each other; only tokens in `learn` are ever hidden.

        Consumes the key.
        """
        share_key, hide_key = jax.random.split(key)
        B, T = token.shape
        parts = -(-T // self.block) if self.block else 1
        share = self._shares(share_key, B * parts).reshape(B, parts)
        share = jnp.repeat(share, self.block or T, axis=1, total_repeat_length=parts * (self.block or T))[:, :T]
        hidden = learn & (jax.random.uniform(hide_key, (B, T)) < share)
        plain = self.even or self.pair or self.low > 0.5
        weight = jnp.ones_like(share) if plain else 1 / share
        show = lambda hidden: StreamView(jnp.where(hidden, mask_id, token), hidden, weight)
        return (show(hidden), show(learn & ~hidden)) if self.pair else (show(hidden),)

    def _shares(self, key: jax.Array, count: int) -> Float[Array, "N"]:
        offset, order = jax.random.split(key)
        even = (jax.random.uniform(offset) + lax.iota(jnp.float32, count)) / count % 1
        return self.low + (self.high - self.low) * jax.random.permutation(order, even)


@dataclasses.dataclass(frozen=True)
class Masked:
    """The cross-entropy of hidden tokens, by `noise`; for a block-causal model all blocks in one pass of two streams.

    The weight of a batch is the number of tokens that may be learned, hidden or not, so with 1 / t the loss is an upper
    bound on the negative log-likelihood a token. Reports `accuracy` on hidden tokens. With a shifted model the first
    token of a row, and of a document in it, cannot be learned: no row of its own document speaks of it.
    """

    model: BlockDiffusion
    noise: Noise = Noise()
    remat: bool = False

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: TextBatch, key: jax.Array) -> Loss:
        weights = params.merge(trainable, frozen)
        learn = batch.learn & _spoken_of(batch) if self.model.shift else batch.learn
        loss, right, hidden = jnp.float32(0), jnp.float32(0), jnp.float32(0)
        views = self.noise.views(key, batch.token, learn, self.model.mask_id)
        for view in views:
            each, best = cross_entropy(self.logits(weights, view, batch), batch.token)
            count = view.hidden.astype(jnp.float32)
            loss += jnp.sum(each * count * view.weight)
            right, hidden = right + jnp.sum(best * count), hidden + jnp.sum(count)
        return Loss(loss, jnp.sum(learn, dtype=jnp.float32), {"accuracy": Share(right, hidden)})

    def logits(self, weights: PyTree, view: StreamView, batch: TextBatch) -> Float[Array, "B T V"]:
        """What the model says of every token, each at its own place, and never the mask."""
        facts: dict[str, Any] = {"remat": True} if self.remat else {}
        if self.model.block:
            if batch.segment is not None:
                raise ValueError("Block diffusion learns from full rows; packed documents would share blocks.")
            out = self.model.two_streams(weights, view.token, batch.token, **facts)
        else:
            out = self.model.forward(weights, view.token, segment=batch.segment, position=batch.position, **facts)
        token = lax.broadcasted_iota(jnp.int32, out.logits.shape, 2)
        return jnp.where(token == self.model.mask_id, -jnp.inf, self.model.aligned(out.logits))


def _spoken_of(batch: TextBatch) -> Bool[Array, "B T"]:
    """Whether the row before each token is one of its document, as a shifted model needs."""
    segment = jnp.zeros_like(batch.token) if batch.segment is None else batch.segment
    return jnp.pad(segment[:, 1:] == segment[:, :-1], ((0, 0), (1, 0)))
