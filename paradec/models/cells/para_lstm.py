"""The ParaLSTM (arXiv 2510.21450): an LSTM whose recurrent weights are diagonal, so its Jacobian is 2 x 2 a channel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jaxtyping import Array, Float

from paradec.models.cells.para import ParaCell, ParaWeights

State = tuple[Float[Array, "*B N"], Float[Array, "*B N"]]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ParaLSTM(ParaCell):
    """`c' = f c + (1 - f) tanh(A_c h + u_c)`, `h' = o tanh(c')`, with `f = σ(A_f h + C_f c + u_f)` and
    `o = σ(A_o h + C_o c' + u_o)`: the input gate is `1 - f`, and gates see c. Gates f, o, c; the state is (c, h).

    The Jacobian is that of this map. The paper's code takes c' of the iterate before in it: the same solution, other
    iterates on the way.
    """

    structure = "block"
    states = 2
    peepholes = 2

    @property
    def fan_out(self) -> int:
        """A head's channels: the paper's code counts so for this cell, and all channels for the GRU."""
        return self.head_dim

    def step(self, w: ParaWeights, state: State, u: Float[Array, "*B 3 N"]) -> State:
        """c and h after one step on projected inputs."""
        c, h = state
        lift = lambda a: a.astype(h.dtype).reshape((-1,) + (1,) * (h.ndim - 1) + h.shape[-1:])
        (a_f, a_o, a_c), (c_f, c_o) = lift(w.recurrent), lift(w.peephole)
        f = sigmoid(a_f * h + c_f * c + u[..., 0, :])
        c = f * c + (1 - f) * jnp.tanh(a_c * h + u[..., 2, :])
        o = sigmoid(a_o * h + c_o * c + u[..., 1, :])
        return c, o * jnp.tanh(c)

    def output(self, h: State) -> Float[Array, "*B N"]:
        """h, without c."""
        return h[1]
