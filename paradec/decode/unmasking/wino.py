"""WINO: commit early, look again, and take back what does not hold."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, as_threshold, best, count, likelihood, rank
from paradec.system import RULE, System


@struct.dataclass
class Wino(Select):
    """Commits positions above `tau`, and opens committed ones of the block again whose token falls below `tau_remask`
    in the eyes of a shadow row, which sees the canvas but not the token itself (arXiv 2507.18578).

    At most max(.7 of the masks, 5) and at most 20 are committed in a call; at most one less than the call before
    committed is taken back, the worst; nothing in a call that commits one. So every block ends. A shadow sees the token
    through its neighbours' states from the second layer on: it is no leave-one-out law.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.6))
    tau_remask: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    most: Int32[Array, ""] = struct.field(default_factory=lambda: jnp.int32(20))
    shadows = True
    revocable = True

    @classmethod
    def of(cls, tau: float = 0.6, tau_remask: float = 0.9, most: int = 20) -> Wino:
        """The rule from plain numbers. Raises `ValueError` for a cap below 1."""
        if most < 1:
            raise ValueError(f"wino commits at least one position a call; most={most} was given.")
        return cls(as_threshold(tau), as_threshold(tau_remask, "tau_remask"), jnp.int32(most))

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """How many positions the call before committed; 30 at a block's beginning, as published."""
        return jnp.full(batch, 30, jnp.int32)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        last = jnp.where(view.fresh, 30, carry)
        cap = jnp.minimum(jnp.maximum((0.7 * count(view.eligible).astype(jnp.float32)).astype(jnp.int32), 5), self.most)
        accept = view.eligible & (view.confidence > self.tau) & (rank(view.sure, view.eligible) < cap[:, None])
        accept = accept | (best(view.sure, view.eligible) & ~accept.any(-1, keepdims=True))
        committed = count(accept)
        held, log_held = likelihood(view.shadow, view.current)
        doubted = view.inside & ~view.open & (view.position >= view.prompt[:, None]) & (held < self.tau_remask)
        worst = rank(-log_held, doubted)  # logarithms tell the worst of what float32 takes for 0
        most = jnp.where(count(doubted) >= last, last - 1, view.position.shape[1])
        remask = doubted & (worst < most[:, None]) & (committed > 1)[:, None]
        return Choice(accept, carry=committed, remask=remask)


SYSTEMS = (System(
    name="wino", title="WINO", slot="select", arxiv="2507.18578", make=Wino.of, laws=RULE,
    meanings={"tau": "confidence that is exceeded",
        "tau_remask": "probability in a shadow's eyes below which a token is taken back",
        "most": "positions committed a call at most"},
    cost="One shadow row more for every position of the block.", proof="pytest tests/decode/test_published.py -k wino",
),)  # fmt: skip
