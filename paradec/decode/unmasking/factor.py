"""As many as can be wrong together: Fast-dLLM's factor rule."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, count, rank
from paradec.system import RULE, System


@struct.dataclass
class Factor(Select):
    """Commits the longest prefix of n positions in falling confidence with (n + 1)(1 - c_n) <= `f` (arXiv 2505.22618).

    By the paper's theorem 1, up to f = 1 the tokens that are likeliest one by one are also likeliest together.
    `compat` repeats the published code, in which the last mask of a block is committed with the one before it whatever
    its confidence.
    """

    f: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(1.0))
    compat: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, f: float = 1.0, compat: bool = False) -> Factor:
        """A factor from a plain number."""
        return cls(jnp.float32(f), compat)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        place = rank(view.sure, view.eligible)
        # Confidence falls with the rank and the threshold rises, so what passes is a prefix; the first always does.
        sure = view.confidence >= 1 - self.f / (place + 2).astype(jnp.float32)
        accept = view.eligible & (sure | (place == 0))
        if self.compat:
            passed, masks = count(accept), count(view.eligible)
            accept = accept | (view.eligible & (place == masks[:, None] - 1) & (passed >= masks - 1)[:, None])
        return Choice(accept)


SYSTEMS = (System(
    name="factor", title="Fast-dLLM: factor", slot="select", arxiv="2505.22618", make=Factor.of, laws=RULE,
    meanings={"f": "the bound; up to 1 the tokens are also likeliest together", "compat": "as the published code"},
    cost="None beside the call.", proof="pytest tests/decode/test_originals.py -k factor",
),)  # fmt: skip
