"""Everything of low entropy: the rule that dParallel decodes with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.view import Choice, View, best


@struct.dataclass
class Entropy:
    """Settles every position of at most `delta` nats, and always the one of least entropy (arXiv 2509.26488).

    Below 0 it is one position a call, in the order of entropy, which is not that of confidence.
    """

    delta: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.5))

    @classmethod
    def of(cls, delta: float = 0.5) -> Entropy:
        """A bound from a plain number, in nats."""
        return cls(jnp.float32(delta))

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        return ()

    def __call__(self, view: View, carry: PyTree) -> Choice:
        nats = view.entropy
        return Choice(view.eligible & (nats <= self.delta) | best(-nats, view.eligible))
