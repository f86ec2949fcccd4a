"""The entropy-bounded sampler."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, best, rank
from paradec.system import RULE, System


@struct.dataclass
class EntropyBounded(Select):
    """Settles the longest prefix in rising entropy whose entropies, without the greatest, add up to at most `gamma`.

    EB-sampler, arXiv 2505.24857: that sum bounds what the prefix loses by being settled together. In nats; below 0 it
    is one position a call, in the order of entropy.
    """

    gamma: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.1))

    @classmethod
    def of(cls, gamma: float = 0.1) -> EntropyBounded:
        """A bound from a plain number, in nats."""
        return cls(jnp.float32(gamma))

    def __call__(self, view: View, carry: PyTree) -> Choice:
        nats = view.entropy
        place = rank(-nats, view.eligible)
        before = (place[:, None] < place[:, :, None]) & view.eligible[:, None]
        spent = jnp.sum(jnp.where(before, nats[:, None], 0.0), axis=-1)
        return Choice(view.eligible & (spent <= self.gamma) | best(-nats, view.eligible))


SYSTEMS = (
    System(
        name="eb",
        title="EB-sampler",
        slot="select",
        arxiv="2505.24857",
        make=EntropyBounded.of,
        laws=RULE,
        about="The longest prefix in rising entropy with `sum_i H_i - max_i H_i <= gamma`, which bounds the mutual "
        "information that is lost by committing it at once.",
        meanings={"gamma": "the bound, in nats; below 0 one position a call"},
        cost="The entropy of every position, and a table of pairs.",
        proof="pytest tests/decode/test_unmasking.py -k bound",
    ),
)
