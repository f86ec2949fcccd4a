"""Everything that is sure enough: Fast-dLLM's confidence-aware parallel decoding."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.view import Choice, View, bar


@struct.dataclass
class Threshold:
    """Settles every position whose confidence is at least `tau` (arXiv 2505.22618); `strict`: above it (2509.26328).

    Above 1 it is one position a call; at exactly 1 it is not, since a float32 softmax reaches 1.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    strict: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, tau: float = 0.9, strict: bool = False) -> Threshold:
        """A threshold from a plain number."""
        return cls(bar(tau), strict)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        return ()

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = view.confidence > self.tau if self.strict else view.confidence >= self.tau
        return Choice(view.eligible & sure)
