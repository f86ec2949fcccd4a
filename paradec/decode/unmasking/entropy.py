"""Everything of low entropy: the rule that dParallel decodes with."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, best
from paradec.system import RULE, System


@struct.dataclass
class Entropy(Select):
    """Commits every position of at most `delta` nats, and always the one of least entropy (arXiv 2509.26488).

    Below 0 it is one position a call, in the order of entropy, which is not that of confidence.
    """

    delta: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.5))

    @classmethod
    def of(cls, delta: float = 0.5) -> Entropy:
        """A bound from a plain number, in nats."""
        return cls(jnp.float32(delta))

    def __call__(self, view: View, carry: PyTree) -> Choice:
        nats = view.entropy
        return Choice(view.eligible & (nats <= self.delta) | best(-nats, view.eligible))


SYSTEMS = (System(
    name="entropy", title="dParallel: entropy threshold", slot="select", arxiv="2509.26488", make=Entropy.of,
    laws=RULE,
    meanings={"delta": "entropy that is low enough, in nats; below 0 one position a call"},
    cost="The entropy of every position.", proof="pytest tests/decode/test_unmasking.py -k entropy",
),)  # fmt: skip
