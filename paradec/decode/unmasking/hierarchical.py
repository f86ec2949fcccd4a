"""dInfer's hierarchical rule: one position of every gap, so that gaps are halved."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, as_threshold
from paradec.system import RULE, System


@struct.dataclass
class Hierarchical(Select):
    """Commits every position above `tau`, and the best of each run of neighbouring masks if it is above `low`.

    Source: dInfer (arXiv 2510.08666). `low` above 1 is `Threshold(tau, strict=True)`.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    low: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.4))

    @classmethod
    def of(cls, tau: float = 0.9, low: float = 0.4) -> Hierarchical:
        """The rule from plain numbers."""
        return cls(as_threshold(tau), as_threshold(low, "low"))

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = view.confidence > self.tau
        return Choice(view.eligible & (sure | (self._best_of_run(view) & (view.confidence > self.low))))

    def _best_of_run(self, view: View) -> Bool[Array, "B W"]:
        """Whether a position is the most confident of its run of eligible neighbours, the first of equals."""
        begins = view.eligible & ~jnp.pad(view.eligible, ((0, 0), (1, 0)))[:, :-1]
        run = jnp.cumsum(begins, axis=-1, dtype=jnp.int32)
        slot = lax.iota(jnp.int32, run.shape[1])
        together = (run[:, None] == run[:, :, None]) & view.eligible[:, None]
        mine, other = view.sure[:, :, None], view.sure[:, None]
        beaten = together & ((other > mine) | ((other == mine) & (slot[None, None] < slot[None, :, None])))
        return view.eligible & ~beaten.any(-1)


SYSTEMS = (System(
    name="hierarchical", title="dInfer: hierarchical", slot="select", arxiv="2510.08666", make=Hierarchical.of,
    laws=RULE,
    meanings={"tau": "confidence that is exceeded", "low": "confidence that the best of a run exceeds"},
    cost="None beside the call.", proof="pytest tests/decode/test_unmasking.py -k hierarchical",
),)  # fmt: skip
