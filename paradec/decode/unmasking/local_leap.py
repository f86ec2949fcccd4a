"""LocalLeap: near a sure position, less sure ones may be committed too."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, as_threshold
from paradec.system import RULE, System


@struct.dataclass
class LocalLeap(Select):
    """Commits positions of confidence `kappa`, and those of `tau` within `radius` of one of them (arXiv 2510.07081).

    A committed position is no anchor, and the neighbourhood does not reach out of the block. `radius` 0 or
    `tau` = `kappa` is `Threshold`; `kappa` above 1 is one position a call.
    """

    kappa: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.75))
    radius: int = struct.field(pytree_node=False, default=4)

    @classmethod
    def of(cls, kappa: float = 0.9, tau: float = 0.75, radius: int = 4) -> LocalLeap:
        """The rule from plain numbers. Raises `ValueError` for a negative radius or a `tau` above `kappa`."""
        if radius < 0 or tau > kappa:
            raise ValueError(f"local_leap wants radius >= 0 and tau <= kappa; {radius}, {tau}, {kappa} were given.")
        return cls(as_threshold(kappa, "kappa"), as_threshold(tau), radius)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        anchor = view.eligible & (view.confidence >= self.kappa)
        near = anchor | (view.eligible & (view.confidence >= self.tau) & self._around(anchor))
        return Choice(near)

    def _around(self, anchor: Bool[Array, "B W"]) -> Bool[Array, "B W"]:
        reach = min(self.radius, anchor.shape[1])  # of the window at most, lest its padding outgrow the memory
        pooled = lax.reduce_window(
            anchor.astype(jnp.int32), 0, lax.max, (1, 2 * reach + 1), (1, 1), ((0, 0), (reach, reach))
        )
        return pooled > 0


SYSTEMS = (System(
    name="local_leap", title="LocalLeap", slot="select", arxiv="2510.07081", make=LocalLeap.of, laws=RULE,
    meanings={"kappa": "confidence of an anchor", "tau": "confidence that is enough beside an anchor",
        "radius": "positions to each side that are beside it"},
    cost="None beside the call.", proof="pytest tests/decode/test_unmasking.py -k local_leap",
),)  # fmt: skip
