"""The entropy-bounded sampler."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from paradec import struct
from paradec.decode.seams import Choice, Select
from paradec.decode.view import View, best, rank
from paradec.system import RULE, System


@struct.dataclass
class EntropyBounded(Select):
    """Commits the longest prefix in rising entropy whose entropies, without the greatest, add up to at most `gamma`.

    EB-sampler, arXiv 2505.24857: that sum bounds what the prefix loses by being committed together. In nats; below 0 it
    is one position a call, in the order of entropy.
    """

    gamma: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.1))

    @classmethod
    def of(cls, gamma: float = 0.1) -> EntropyBounded:
        """A bound from a plain number, in nats."""
        return cls(jnp.float32(gamma))

    def __call__(self, view: View, carry: PyTree) -> Choice:
        return Choice(bounded(view.entropy, view.eligible, self.gamma))


def bounded(nats: Float[Array, "B W"], among: Bool[Array, "B W"], gamma: Float[Array, ""]) -> Bool[Array, "B W"]:
    """The longest prefix in rising entropy whose entropies, without the greatest, add up to at most `gamma`.

    At least one position, where there is one. Example: entropies 0, .3, .5 and .4 rise in the order of positions 0, 1,
    3, 2, and what stands before each adds up to 0, 0, .3 and .7. A bound of .6 gives positions 0, 1 and 3; .7 all.
    """
    place = rank(-nats, among)
    before = (place[:, None] < place[:, :, None]) & among[:, None]
    spent = jnp.sum(jnp.where(before, nats[:, None], 0.0), axis=-1)
    return among & (spent <= gamma) | best(-nats, among)


SYSTEMS = (System(
    name="eb", title="EB-sampler", slot="select", arxiv="2505.24857", make=EntropyBounded.of, laws=RULE,
    meanings={"gamma": "the bound, in nats; below 0 one position a call"},
    cost="The entropy of every position, and a table of pairs.",
    proof="pytest tests/decode/test_unmasking.py -k bound",
),)  # fmt: skip
