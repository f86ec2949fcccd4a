"""The entropy-bounded sampler."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.view import Choice, View, best, rank


@struct.dataclass
class EntropyBounded:
    """Settles the longest prefix in rising entropy whose entropies, without the greatest, add up to at most `gamma`.

    EB-sampler, arXiv 2505.24857: that sum bounds what the prefix loses by being settled together. In nats; below 0 it
    is one position a call, in the order of entropy.
    """

    gamma: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.1))

    @classmethod
    def of(cls, gamma: float = 0.1) -> EntropyBounded:
        """A bound from a plain number, in nats."""
        return cls(jnp.float32(gamma))

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        return ()

    def __call__(self, view: View, carry: PyTree) -> Choice:
        nats = view.entropy
        place = rank(-nats, view.eligible)
        before = (place[:, None] < place[:, :, None]) & view.eligible[:, None]
        spent = jnp.sum(jnp.where(before, nats[:, None], 0.0), axis=-1)
        return Choice(view.eligible & (spent <= self.gamma) | best(-nats, view.eligible))
