"""dInfer's hierarchical rule: one position of every gap, so that gaps are halved."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from paradec import struct
from paradec.decode.view import Choice, View, bar


@struct.dataclass
class Hierarchical:
    """Settles every position above `tau`, and the best of each run of neighbouring masks if it is above `low`.

    Source: dInfer (arXiv 2510.08666). `low` above 1 is `Threshold(tau, strict=True)`.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    low: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.4))

    @classmethod
    def of(cls, tau: float = 0.9, low: float = 0.4) -> Hierarchical:
        """The rule from plain numbers."""
        return cls(bar(tau), bar(low, "low"))

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        return ()

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = view.confidence > self.tau
        return Choice(view.eligible & (sure | (self._best_of_run(view) & (view.confidence > self.low))))

    def _best_of_run(self, view: View) -> Bool[Array, "B W"]:
        """Whether a position is the surest of its run of eligible neighbours, the first of equals."""
        begins = view.eligible & ~jnp.pad(view.eligible, ((0, 0), (1, 0)))[:, :-1]
        run = jnp.cumsum(begins, axis=-1, dtype=jnp.int32)
        slot = lax.iota(jnp.int32, run.shape[1])
        together = (run[:, None] == run[:, :, None]) & view.eligible[:, None]
        mine, other = view.sure[:, :, None], view.sure[:, None]
        beaten = together & ((other > mine) | ((other == mine) & (slot[None, None] < slot[None, :, None])))
        return view.eligible & ~beaten.any(-1)
