"""Medusa: heads learn to guess ahead from hidden states, of a base that stays as it is (1) or learns with them (2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PyTree

from paradec import params, struct
from paradec.learn.objectives.next_token import cross_entropy
from paradec.learn.step import Loss, Share
from paradec.models import lora
from paradec.models.heads import HeadWeights, MedusaHeads, ShortList
from paradec.types import TextBatch


@struct.dataclass
class HeadBatch:
    """Text with the base model's hidden states after its final norm. `learn[b, t]` says whether token t is a target.

    Hidden states are recorded once: the base does not change, so no epoch needs to run it again.
    """

    hidden: Float[Array, "B T D"]
    token: Int32[Array, "B T"]
    learn: Bool[Array, "B T"]
    segment: Int32[Array, "B T"] | None = None


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
            index, listed, learn = targets(batch, frozen.token, k)
            loss, right = cross_entropy(logits[k], index)
            use = (learn & listed).astype(jnp.float32)
            total += self.decay**k * jnp.sum(loss * use)
            weight = jnp.sum(use) if k == 0 else weight
            sums[f"head_{k}"] = Share(jnp.sum(right * use), jnp.sum(learn, dtype=jnp.float32))
        return Loss(total, weight, sums)


@dataclasses.dataclass(frozen=True)
class Medusa2:
    """Base model and heads learn together: the base's loss + weight * share * the heads' loss of `Medusa1`.

    Each is its own mean over the batch. As the two have different numbers of targets, `ratio` brings the sum of the
    second to the weight of the first; `over` counts it in the whole batch, so that micro-batches add up to it.
    `share` is 1, or rises over `steps`: "sine" as sin(pi/2 t/T), "linear" as t/T. The base's loss is next-token
    cross-entropy, or with `distil` that against the law of the base without its adapters (self-distillation, for text
    that the model wrote itself). `trainable` and `frozen` are dicts: "base" and "heads", and in `frozen` the ids of
    the short list as "short". Reports `base` and each head's accuracy. Source: Medusa, 2401.10774, section 3.2 and the
    code of its axolotl fork.
    """

    model: Any
    heads: MedusaHeads
    decay: float = 0.8
    weight: float = 0.2
    rise: str = "constant"
    steps: int = 1
    distil: bool = False
    share: Any = 1.0
    ratio: Any = None

    def over(self, frozen: PyTree, batch: TextBatch) -> Medusa2:
        """The objective of every part of a batch."""
        _, listed, learn = targets(batch, frozen["short"], 0)
        count = lambda which: jnp.sum(which, dtype=jnp.float32)
        return dataclasses.replace(self, ratio=count(_apart(batch, 1)) / jnp.maximum(count(learn & listed), 1.0))

    def at(self, step: Int[Array, ""]) -> Medusa2:
        """The objective of one step of the run."""
        part = jnp.minimum((step + 1) / self.steps, 1.0)
        return dataclasses.replace(self, share=RISES[self.rise](part))

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: TextBatch, key: jax.Array) -> Loss:
        ratio = self.over(frozen, batch).ratio if self.ratio is None else self.ratio
        base = params.merge(trainable["base"], frozen["base"])
        given = {"segment": batch.segment, "position": batch.position}
        facts = {name: x for name, x in given.items() if x is not None}
        out = self.model.forward(base, batch.token, **facts)
        learn = _apart(batch, 1)
        if self.distil:
            teacher = lax.stop_gradient(self.model.forward(lora.removed(base), batch.token, **facts).logits)
            student = jax.nn.log_softmax(out.logits)
            loss = -jnp.sum(jax.nn.softmax(teacher) * student, axis=-1)
            loss = jnp.pad(loss[:, :-1], ((0, 0), (0, 1)))
        else:
            loss, _ = cross_entropy(out.logits, _ahead(batch.token, 1))
        count = jnp.sum(learn, dtype=jnp.float32)
        own = jnp.sum(loss * learn)
        table = self.model.unembed(base)[frozen["short"]]
        guessed = HeadBatch(hidden=out.hidden, token=batch.token, learn=batch.learn, segment=batch.segment)
        short = ShortList(token=frozen["short"], table=table)
        first = Medusa1(self.heads, self.decay)(trainable["heads"], short, guessed, key)
        sums = first.sums | {"base": Share(own, count)}
        return Loss(own + self.weight * self.share * first.total * ratio, count, sums)


RISES = {"constant": lambda part: 1.0, "linear": lambda part: part, "sine": lambda part: jnp.sin(jnp.pi / 2 * part)}


def _ahead(x: Array, ahead: int) -> Array:
    return jnp.pad(x[:, ahead:], ((0, 0), (0, ahead)))


def _apart(batch: TextBatch | HeadBatch, ahead: int) -> Bool[Array, "B T"]:
    """Whether the token `ahead` of each is to be learned and of the same document."""
    learn = _ahead(batch.learn, ahead)
    if batch.segment is None:
        return learn
    return learn & (_ahead(batch.segment, ahead) == batch.segment)


def targets(
    batch: TextBatch | HeadBatch, short: Int32[Array, "W"], k: int
) -> tuple[Int[Array, "N"], Bool[Array, "N"], Bool[Array, "N"]]:
    """For all B * T positions: head k's target as a row of the short list, whether it is listed, whether it counts.

    The last 2 + k positions of a row, or of a document in it, have no target.
    """
    token, learn = _ahead(batch.token, 2 + k).reshape(-1), _apart(batch, 2 + k).reshape(-1)
    index = jnp.clip(jnp.searchsorted(short, token), 0, short.shape[0] - 1).astype(jnp.int32)
    return index, short[index] == token, learn


@partial(jax.jit, static_argnums=(0, 4))
def calibrate(
    heads: MedusaHeads, weights: HeadWeights, short: ShortList, batch: HeadBatch, ranks: int
) -> tuple[Float[Array, "Q R"], Float[Array, "Q"]]:
    """How often guess r of head k was right, and of how many targets: sums, to be added over batches and divided.

    Each head is divided by its own number of targets. (The published script divides all by head 0's, which makes later
    heads look worse than they are.) The quotient is what `ranked_tree.best_first` grows a tree from.
    """
    logits = heads.logits(weights, batch.hidden.reshape(-1, batch.hidden.shape[-1]), short.table)
    best = lax.top_k(logits, ranks)[1]
    hits, counts = [], []
    for k in range(heads.num_heads):
        index, listed, learn = targets(batch, short.token, k)
        right = (best[k] == index[:, None]) & (listed & learn)[:, None]
        hits.append(jnp.sum(right, axis=0, dtype=jnp.float32))
        counts.append(jnp.sum(learn, dtype=jnp.float32))
    return jnp.stack(hits), jnp.stack(counts)


def accuracy(
    heads: MedusaHeads, weights: HeadWeights, short: ShortList, batches: Iterable[HeadBatch], ranks: int
) -> np.ndarray:
    """How often guess r of head k is right over all of `batches`: float64 "Q R"."""
    sums = [jax.device_get(calibrate(heads, weights, short, batch, ranks)) for batch in batches]
    hits, counts = (np.stack(parts).sum(axis=0, dtype=np.float64) for parts in zip(*sums, strict=True))
    return hits / np.maximum(counts[:, None], 1)


def head_batch(rows: dict[str, np.ndarray]) -> HeadBatch:
    """Stacked rows of `record.traces` as this objective reads them."""
    return HeadBatch(hidden=rows["hidden"], token=rows["token"].astype(np.int32), learn=rows["learn"].astype(bool))
