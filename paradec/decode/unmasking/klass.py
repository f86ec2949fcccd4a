"""KLASS: sure, and no longer changing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.view import Choice, View, bar


@struct.dataclass
class Klass:
    """Settles positions of confidence above `tau` whose law moved by less than `kl` nats in each of the last
    `history` calls, KL(now || before); with none, the surest (arXiv 2511.05664).

    A block's first call has no call before it, so nothing is stable there. Deviation: the published code compares that
    call with zeros, which comes to the same.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    kl: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.01))
    history: int = struct.field(pytree_node=False, default=2)

    @classmethod
    def of(cls, tau: float = 0.9, kl: float = 0.01, history: int = 2) -> Klass:
        """The rule from plain numbers. Raises `ValueError` for a history below 1."""
        if history < 1:
            raise ValueError(f"klass wants a history of 1 call or more; {history} was given.")
        return cls(bar(tau), jnp.float32(kl), history)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """The log laws of the call before, and for how many calls in a row each position was stable."""
        return jnp.zeros((batch, window, vocab), jnp.float32), jnp.zeros((batch, window), jnp.int32)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        before, calm = carry
        now = jnp.maximum(jax.nn.log_softmax(view.logits, axis=-1), jnp.log(1e-12))
        moved = jnp.sum(jnp.exp(now) * (now - before), axis=-1)
        calm = jnp.where(view.fresh[:, None] | (moved >= self.kl), 0, calm + 1)
        accept = view.eligible & (view.confidence > self.tau) & (calm >= self.history)
        return Choice(accept, carry=(now, calm))
