"""Everything that is sure enough: Fast-dLLM's confidence-aware parallel decoding."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, bar
from paradec.system import RULE, System


@struct.dataclass
class Threshold(Select):
    """Settles every position whose confidence is at least `tau` (arXiv 2505.22618); `strict`: above it (2509.26328).

    Above 1 it is one position a call; at exactly 1 it is not, since a float32 softmax reaches 1.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    strict: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, tau: float = 0.9, strict: bool = False) -> Threshold:
        """A threshold from a plain number."""
        return cls(bar(tau), strict)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = view.confidence > self.tau if self.strict else view.confidence >= self.tau
        return Choice(view.eligible & sure)


SYSTEMS = (
    System(
        name="threshold",
        title="Fast-dLLM: confidence threshold",
        slot="select",
        arxiv="2505.22618",
        make=Threshold.of,
        laws=RULE,
        about="Every position whose confidence c = p(proposed token) is at least tau; one where there is none.",
        meanings={"tau": "confidence that is enough; above 1 one position a call", "strict": "above tau, not at it"},
        cost="None beside the call.",
        proof="pytest tests/decode/test_originals.py -k threshold",
    ),
)
