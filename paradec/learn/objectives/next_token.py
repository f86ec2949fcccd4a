"""Next-token prediction: what every causal model is trained by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from paradec import params
from paradec.learn.step import Loss, Share
from paradec.types import Output, TextBatch

LIMITS: Mapping[str, tuple[float, float]] = {"solver_residual": (1e-3, 1.0)}
"""Of what is reported of a solver: above the first number a run warns, above the second it stops."""


@dataclasses.dataclass(frozen=True)
class NextToken:
    """The cross-entropy of every token that is to be learned, given those before it in its document.

    Reports `accuracy`, and of a model that solves for its states `solver_residual` and `solver_fallbacks`, which
    `limits` bounds. A document's first token has nothing before it and teaches nothing.
    """

    model: Any
    limits: ClassVar[Mapping[str, tuple[float, float]]] = LIMITS
    remat: bool = False  # recompute each layer in the backward pass: less memory, a third more work

    def __call__(self, trainable: PyTree, frozen: PyTree, batch: TextBatch, key: jax.Array) -> Loss:
        given = {"segment": batch.segment, "position": batch.position}
        facts = {name: x[:, :-1] for name, x in given.items() if x is not None}
        if self.remat:
            facts["remat"] = True
        out = self.model.forward(params.merge(trainable, frozen), batch.token[:, :-1], **facts)
        learn = batch.learn[:, 1:]
        if batch.segment is not None:
            learn = learn & (batch.segment[:, 1:] == batch.segment[:, :-1])
        loss, right = cross_entropy(out.logits, batch.token[:, 1:])
        weight = learn.astype(jnp.float32)
        count = jnp.sum(weight)
        return Loss(jnp.sum(loss * weight), count, {"accuracy": Share(jnp.sum(right * weight), count)} | solved(out))


def solved(out: Output) -> dict[str, Share]:
    """Of a model that solves for its states: the greatest residual of its layers, and the solver's windows that the
    exact scan had to take, a layer. Nothing of other models."""
    if out.info is None:
        return {}
    layers = jnp.float32(out.info.residual.shape[0])
    return {
        "solver_residual": Share(jnp.max(out.info.residual), jnp.float32(1)),
        "solver_fallbacks": Share(jnp.sum(out.info.fell_back.astype(jnp.float32)), layers),
    }


def cross_entropy(
    logits: Float[Array, "*B V"], target: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The negative log-likelihood of each target in nats, and 1 where it is the best guess; both float32."""
    logits = logits.astype(jnp.float32)
    wanted = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    right = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - wanted, right
