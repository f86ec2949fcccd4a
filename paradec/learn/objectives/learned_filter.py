"""Learn2PD: a filter learns to say which proposals are final, from the confidences of their block."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from paradec import struct
from paradec.learn.step import Loss, Share
from paradec.models.heads import ConfidenceFilter, FilterWeights

PUBLISHED = 0.96
"""The threshold that a filter's word must pass in decoding."""


@struct.dataclass
class FilterBatch:
    """Calls on a block of W: what the filter is shown, whether each proposal is final, and which are still asked."""

    confidence: Float[Array, "B W"]
    final: Bool[Array, "B W"]
    open: Bool[Array, "B W"]


@dataclasses.dataclass(frozen=True)
class FilterLoss:
    """Binary cross-entropy of the filter's logits at open positions; a proposal that is not final counts `wrong`.

    Reports how often an open position passes `threshold` (`passed`), how many of those are final (`precision`), and how
    many of the final ones pass (`recall`). Source: Learn2PD, arXiv 2509.25188. Deviations: committed positions are
    shown but not learned, since nobody asks about them; the published loss counts both errors alike, as `wrong` of 1
    does.
    """

    filter: ConfidenceFilter
    wrong: float = 1.0
    threshold: float = PUBLISHED

    def __call__(self, trainable: FilterWeights, frozen: PyTree, batch: FilterBatch, key: jax.Array) -> Loss:
        logits = self.filter(trainable, batch.confidence)
        final, use = batch.final & batch.open, batch.open.astype(jnp.float32)
        each = optax.sigmoid_binary_cross_entropy(logits, final.astype(jnp.float32))
        weight = jnp.sum(use)
        passed = (jax.nn.sigmoid(logits) > self.threshold) & batch.open
        count = lambda which: jnp.sum(which, dtype=jnp.float32)
        sums = {
            "passed": Share(count(passed), weight),
            "precision": Share(count(passed & final), count(passed)),
            "recall": Share(count(passed & final), count(final)),
        }
        return Loss(jnp.sum(each * use * jnp.where(final, 1.0, self.wrong)), weight, sums)


class Verdicts(NamedTuple):
    """Of every open position, in no order: how sure the filter is, how sure the model, and what was true."""

    sure: Float[np.ndarray, "P"]
    confidence: Float[np.ndarray, "P"]
    final: Bool[np.ndarray, "P"]

    def at(self, threshold: float) -> dict[str, float]:
        """Precision and recall of the filter at a threshold, over all positions together; of nothing passed, 1 and
        0."""
        return _quality(self.sure > threshold, self.final)

    def of_confidence(self, threshold: float) -> dict[str, float]:
        """The same of the model's confidence, as the threshold rule reads it."""
        return _quality(self.confidence >= threshold, self.final)

    def accuracy(self, by_threshold: bool = False) -> float:
        """The greatest share of verdicts that are right with any one threshold, for the filter or for the
        confidence."""
        score = self.confidence if by_threshold else self.sure
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)  # a threshold cannot part equal scores
        passed = np.append(0, np.cumsum(np.where(self.final[order], 1, -1))[last])
        return float((passed.max() + (~self.final).sum()) / len(score))


def verdicts(filter: ConfidenceFilter, weights: FilterWeights, batch: FilterBatch) -> Verdicts:
    """What a filter says of all open positions of some calls."""
    seen = (_sure(filter, weights, batch), batch.confidence, batch.final)
    return Verdicts(*(np.asarray(x)[np.asarray(batch.open)] for x in seen))


@partial(jax.jit, static_argnums=0)
def _sure(filter: ConfidenceFilter, weights: FilterWeights, batch: FilterBatch) -> Float[Array, "B W"]:
    return jax.nn.sigmoid(filter(weights, batch.confidence))


def _quality(passed: Bool[np.ndarray, "P"], final: Bool[np.ndarray, "P"]) -> dict[str, float]:
    both = float((passed & final).sum())
    precision = both / passed.sum() if passed.any() else 1.0
    return {"passed": float(passed.mean()), "precision": float(precision), "recall": both / max(final.sum(), 1)}


def filter_batch(rows: dict[str, np.ndarray]) -> FilterBatch:
    """Stacked rows of `record.canvas_calls` as this objective reads them."""
    return FilterBatch(confidence=rows["confidence"], final=rows["final"].astype(bool), open=rows["open"].astype(bool))
