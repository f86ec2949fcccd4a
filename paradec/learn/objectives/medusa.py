"""Medusa-1: heads learn to guess ahead from the hidden states of a base model that stays as it is."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from paradec import struct
from paradec.learn.objectives.next_token import cross_entropy
from paradec.learn.step import Loss
from paradec.models.heads import HeadWeights, MedusaHeads, ShortList


@struct.dataclass
class HeadBatch:
    """Text with the base model's hidden states after its final norm. `learn[b, t]` says whether token t is a target.

    Hidden states are recorded once: the base does not change, so no epoch needs to run it again.
    """

    hidden: Float[Array, "B T D"]
    token: Int32[Array, "B T"]
    learn: Bool[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Medusa1:
    """The sum over heads of `decay**k` times the cross-entropy of head k, which reads token t and guesses token t+2+k.

    `frozen` is a `ShortList` with ascending tokens (the whole vocabulary is one too). Targets outside it cannot be
    drafted and teach nothing; the weight is what head 0 can learn. Reports each head's accuracy over all its targets,
    those outside counted as misses. Source: Medusa, 2401.10774, section 3.2.
    """

    heads: MedusaHeads
    decay: float = 0.8

    def __call__(self, trainable: HeadWeights, frozen: ShortList, batch: HeadBatch, key: jax.Array) -> Loss:
        logits = self.heads.logits(trainable, batch.hidden.reshape(-1, batch.hidden.shape[-1]), frozen.table)
        total, weight, sums = jnp.float32(0), jnp.float32(0), {}
        for k in range(self.heads.num_heads):
            index, listed, learn = targets(batch, frozen, k)
            loss, right = cross_entropy(logits[k], index)
            use = (learn & listed).astype(jnp.float32)
            total += self.decay**k * jnp.sum(loss * use)
            weight = jnp.sum(use) if k == 0 else weight
            # Reported per unit of head 0's weight; the caller's division by it must give a share of all targets.
            share = jnp.sum(right * use) / jnp.maximum(jnp.sum(learn), 1)
            sums[f"head_{k}"] = share * weight
        return Loss(total, weight, sums)


def targets(batch: HeadBatch, short: ShortList, k: int) -> tuple[Int[Array, "N"], Bool[Array, "N"], Bool[Array, "N"]]:
    """For all B * T positions: head k's target as a row of the list, whether it is listed, and whether it counts.

    The last 2 + k positions of a row have no target.
    """
    ahead = 2 + k
    token = jnp.pad(batch.token[:, ahead:], ((0, 0), (0, ahead))).reshape(-1)
    learn = jnp.pad(batch.learn[:, ahead:], ((0, 0), (0, ahead))).reshape(-1)
    index = jnp.clip(jnp.searchsorted(short.token, token), 0, short.token.shape[0] - 1).astype(jnp.int32)
    return index, short.token[index] == token, learn


@partial(jax.jit, static_argnums=(0, 4))
def calibrate(
    heads: MedusaHeads, weights: HeadWeights, short: ShortList, batch: HeadBatch, ranks: int
) -> tuple[Float[Array, "Q R"], Float[Array, "Q"]]:
    """How often guess r of head k was right, and of how many targets: sums, to be added over batches and divided.

    Each head is divided by its own number of targets. (The published script divides all by head 0's, which makes later
    heads look worse than they are.) The quotient is what `trees.best_first` grows a tree from.
    """
    logits = heads.logits(weights, batch.hidden.reshape(-1, batch.hidden.shape[-1]), short.table)
    best = jax.lax.top_k(logits, ranks)[1]
    hits, counts = [], []
    for k in range(heads.num_heads):
        index, listed, learn = targets(batch, short, k)
        right = (best[k] == index[:, None]) & (listed & learn)[:, None]
        hits.append(jnp.sum(right, axis=0, dtype=jnp.float32))
        counts.append(jnp.sum(learn, dtype=jnp.float32))
    return jnp.stack(hits), jnp.stack(counts)
