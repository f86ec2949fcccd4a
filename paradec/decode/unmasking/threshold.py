"""Everything that is sure enough: Fast-dLLM's confidence-aware parallel decoding."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, as_threshold
from paradec.system import RULE, System


@struct.dataclass
class Threshold(Select):
    """Commits every position whose confidence is at least `tau` (arXiv 2505.22618); `strict`: above it (2509.26328).

    Above 1 it is one position a call; at exactly 1 it is not, since a float32 softmax reaches 1. With `max_steps` above
    0 a block's call of that number commits whatever is left: vLLM's `confidence_threshold` policy for
    Nemotron-Labs-Diffusion, which compares logarithms and differs by their rounding alone.
    """

    tau: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.9))
    strict: bool = struct.field(pytree_node=False, default=False)
    max_steps: Int32[Array, ""] | None = None  # None: no limit, and nothing is counted

    @classmethod
    def of(cls, tau: float = 0.9, strict: bool = False, max_steps: int = 0) -> Threshold:
        """A threshold from plain numbers; `max_steps` 0: as many calls as it takes. Raises `ValueError` below 0."""
        if max_steps < 0:
            raise ValueError(f"max_steps is 0 (off) or more; {max_steps} was given.")
        return cls(as_threshold(tau), strict, jnp.int32(max_steps) if max_steps else None)

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Calls that the block has had, where they are limited."""
        return () if self.max_steps is None else jnp.zeros(batch, jnp.int32)

    def __call__(self, view: View, carry: PyTree) -> Choice:
        sure = view.confidence > self.tau if self.strict else view.confidence >= self.tau
        if self.max_steps is None:
            return Choice(view.eligible & sure)
        step = jnp.where(view.fresh, 0, carry)
        last = step >= self.max_steps - 1
        return Choice(view.eligible & (sure | last[:, None]), carry=step + 1)


SYSTEMS = (System(
    name="threshold", title="Fast-dLLM: confidence threshold", slot="select", arxiv="2505.22618",
    make=Threshold.of, laws=RULE,
    meanings={"tau": "confidence that is enough; above 1 one position a call", "strict": "above tau, not at it",
        "max_steps": "calls of a block, of which the last commits all that is left; 0: no limit"},
    cost="None beside the call.", proof="pytest tests/decode/test_originals.py -k threshold",
),)  # fmt: skip
