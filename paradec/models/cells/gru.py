"""The GRU (arXiv 1406.1078) in cuDNN's and torch's form, whose reset gate stands behind the recurrent product."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from paradec.models.cells.headwise import HeadwiseCell
from paradec.ops.recurrent import Gates, States


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GRU(HeadwiseCell):
    """`h' = σ(z) h + (1 - σ(z)) tanh(n + σ(r) g)`. Of the gates g, r, z, n the first three read the state and the last
    three the input, so `g = R_g h + b_g` and `n = Wx_n + b_n`: torch's b_hn and b_in. `remember` is added to z's bias.
    """

    remember: float = 1.0

    names = ("g", "r", "z", "n")
    states = 1
    gates = Gates(3, 3, 4)

    @property
    def offset(self) -> tuple[float, ...]:
        """`remember` for z."""
        return (0.0, 0.0, self.remember, 0.0)

    def pointwise(self, states: States, raw: States) -> States:
        """h after one step."""
        (h,), (g, r, z, n) = states, raw
        keep = sigmoid(z)
        return (keep * h + (1 - keep) * jnp.tanh(n + sigmoid(r) * g),)
