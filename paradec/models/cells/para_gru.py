"""The ParaGRU (arXiv 2510.21450): a GRU whose recurrent weights are diagonal, so its Jacobian is."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from paradec.models.cells.para import ParaCell, ParaWeights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ParaGRU(ParaCell):
    """`h' = (1 - z) h + z tanh(A_c h r + u_c)` with `z = σ(A_z h + u_z)`, `r = σ(A_r h + u_r)`; gates in this order:
    z, r, c."""

    def step(self, w: ParaWeights, state: Float[Array, "*B N"], u: Float[Array, "*B 3 N"]) -> Float[Array, "*B N"]:
        """h after one step on projected inputs."""
        h = state
        a = w.recurrent.astype(h.dtype).reshape((3,) + (1,) * (h.ndim - 1) + (-1,))
        z = sigmoid(a[0] * h + u[..., 0, :])
        r = sigmoid(a[1] * h + u[..., 1, :])
        c = jnp.tanh(a[2] * h * r + u[..., 2, :])
        return (1 - z) * h + z * c

    def output(self, h: Float[Array, "*B N"]) -> Float[Array, "*B N"]:
        """h."""
        return h
