"""Next-token prediction: what every causal model is trained by."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from paradec import params
from paradec.learn.step import Loss, Share
from paradec.types import TextBatch


@dataclasses.dataclass(frozen=True)
class NextToken:
    """The cross-entropy of every token that is to be learned, given those before it in its document.

    Reports `accuracy`. A document's first token has nothing before it and teaches nothing.
    """

    model: Any
    remat: bool = False  # recompute each layer in the backward pass: less memory, a third more work

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: TextBatch, key: jax.Array) -> Loss:
        given = {"segment": batch.segment, "position": batch.position}
        facts = {name: x[:, :-1] for name, x in given.items() if x is not None}
        if self.remat:
            facts["remat"] = True
        logits = self.model.forward(params.merge(trainable, frozen), batch.token[:, :-1], **facts).logits
        learn = batch.learn[:, 1:]
        if batch.segment is not None:
            learn = learn & (batch.segment[:, 1:] == batch.segment[:, :-1])
        loss, right = cross_entropy(logits, batch.token[:, 1:])
        weight = learn.astype(jnp.float32)
        count = jnp.sum(weight)
        return Loss(jnp.sum(loss * weight), count, {"accuracy": Share(jnp.sum(right * weight), count)})


def cross_entropy(
    logits: Float[Array, "*B V"], target: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The negative log-likelihood of each target in nats, and 1 where it is the best guess; both float32."""
    logits = logits.astype(jnp.float32)
    wanted = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - wanted, right
