"""CreditDecoding: a prediction that stays gains credit, and passes the threshold earlier."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.decode.seams import Rewrite
from paradec.decode.view import View, likelihood
from paradec.ops.argmax import argmax
from paradec.system import RULE, System


@struct.dataclass
class Credit(Rewrite):
    """Adds `alpha` log(1 + credit) to the logits (arXiv 2510.06133); any select rule may follow.

    At each call the block's credit decays by `beta`, then every open position gives its likeliest token p**`gamma`, and
    only then the logits are rewritten. Credit starts anew with the block. `alpha` 0 changes nothing. Of constant
    probability p it grows to p**gamma / (1 - beta), so at (.7, .2, .8) and tau .9 nothing below .727 ever passes.
    """

    alpha: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.7))
    gamma: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.2))
    beta: Float[Array, ""] = struct.field(default_factory=lambda: jnp.float32(0.8))

    @classmethod
    def of(cls, alpha: float = 0.7, gamma: float = 0.2, beta: float = 0.8) -> Credit:
        """The rewrite from plain numbers. Raises `ValueError` where credit would not decay, count against a token or be
        no number: infinite ones, and a negative power of a probability that may be 0."""
        if not 0 <= alpha < math.inf or not 0 <= beta < 1 or not 0 <= gamma < math.inf:
            raise ValueError(
                f"credit wants finite alpha, gamma >= 0 and 0 <= beta < 1, not {alpha}, {gamma} and {beta}."
            )
        return cls(jnp.float32(alpha), jnp.float32(gamma), jnp.float32(beta))

    def init(self, batch: int, window: int, vocab: int) -> PyTree:
        """Credit of every token at every position of the window, from the block's beginning."""
        return jnp.zeros((batch, window, vocab), jnp.float32)

    def __call__(self, view: View, carry: PyTree) -> tuple[Float[Array, "B W V"], PyTree]:
        credit = jnp.where(view.fresh[:, None, None], 0.0, carry * self.beta)
        top = argmax(view.logits)
        p, _ = likelihood(view.logits, top)
        token = lax.broadcasted_iota(top.dtype, view.logits.shape, 2)
        gain = jnp.where(view.eligible, p**self.gamma, 0.0)
        credit = credit + jnp.where(token == top[..., None], gain[..., None], 0.0)
        return view.logits + self.alpha * jnp.log1p(credit), credit


SYSTEMS = (System(
    name="credit", title="CreditDecoding", slot="rewrite", arxiv="2510.06133", make=Credit.of, laws=RULE,
    meanings={"alpha": "weight of the credit", "gamma": "power of the probability that is credited",
        "beta": "share of the credit that a call leaves, below 1"},
    cost="One float a position and token.", proof="pytest tests/decode/test_unmasking.py -k credit",
),)  # fmt: skip
