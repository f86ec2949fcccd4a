"""The LSTM with a forget gate (Hochreiter and Schmidhuber, 1997; Gers et al., 2000)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from paradec.models.cells.headwise import HeadwiseCell
from paradec.ops.recurrent import Gates, States


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LSTM(HeadwiseCell):
    """`c' = σ(f) c + σ(i) tanh(z)`, `h' = σ(o) tanh(c')`; gates i, f, z, o. torch's order is the same, and its g is z.

    `forget` is added to the bias of f.
    """

    forget: float = 1.0

    names = ("i", "f", "z", "o")
    states = 2  # h, c
    gates = Gates(4, 4, 4)

    @property
    def offset(self) -> tuple[float, ...]:
        """`forget` for f."""
        return (0.0, self.forget, 0.0, 0.0)

    def pointwise(self, states: States, raw: States) -> States:
        """h and c after one step."""
        (_, c), (i, f, z, o) = states, raw
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(z)
        return sigmoid(o) * jnp.tanh(c), c
