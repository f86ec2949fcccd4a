"""What the cells of the FlashRNN family (arXiv 2412.07752) share: heads, each with small recurrent matrices of its own.

A cell is a frozen dataclass, static and compared by value. `inputs` projects whole sequences at once, `step` is one
step of the recurrence, elementwise over leading axes, `output` what leaves it; `structure` says that every number of a
head's new state depends on all of its old h.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from paradec import struct
from paradec.errors import check_fields
from paradec.ops.recurrent import Gates, States, raw_gates, state_dtype
from paradec.types import Spec


@struct.dataclass
class HeadwiseWeights:
    """The input projection, the (out, in) matrix of every gate and head, and biases. In a stack leaves lead with L."""

    gates: Float[Array, "*L D Gi N K"]
    recurrent: Float[Array, "*L Gr N K K"]
    bias: Float[Array, "*L Gb N K"]


@dataclasses.dataclass(frozen=True)
class HeadwiseCell:
    """A cell with `num_heads` independent heads of `head_dim` numbers a state. Subclasses say what a step computes."""

    num_heads: int
    head_dim: int

    names = ()
    """The gates in the order of their biases."""
    states = 1
    """Arrays of a state; the first is the output h."""
    gates = Gates(1, 1, 1)
    structure = "dense"

    def __post_init__(self) -> None:
        """Raise `InputError` for a size that is none."""
        check_fields(self, {name: (getattr(self, name) >= 1, "at least 1") for name in ("num_heads", "head_dim")})

    @property
    def offset(self) -> tuple[float, ...]:
        """What is added to the learned bias of each gate: so that a new cell remembers."""
        return (0.0,) * self.gates.bias

    def specs(self, layers: int, width: int, dtype: str) -> HeadwiseWeights:
        """The weights, a `Spec` at every leaf; matrices are drawn with standard deviation `1 / sqrt(fan in)`."""
        L, D, N, K = layers, width, self.num_heads, self.head_dim
        recurrent, given, bias = self.gates
        axes = ("layers", None, "kv_heads", None)
        return HeadwiseWeights(
            gates=Spec((L, D, given, N, K), ("layers", "embed", *axes[1:]), D**-0.5, dtype, (1, 1)),
            recurrent=Spec((L, recurrent, N, K, K), (*axes, None), K**-0.5, dtype, (3, 1)),
            bias=Spec((L, bias, N, K), axes, "zeros", dtype),
        )

    def inputs(self, w: HeadwiseWeights, x: Float[Array, "*B D"]) -> Float[Array, "*B Gi N K"]:
        """The projected inputs of all positions."""
        return jnp.einsum("...d,dgnk->...gnk", x, w.gates)

    def biases(self, w: HeadwiseWeights) -> Float[Array, "Gb N K"]:
        """The bias of every gate: what was learned and `offset`, at least float32."""
        bias = w.bias.astype(state_dtype(w.bias))
        return bias + jnp.asarray(self.offset, bias.dtype)[:, None, None]

    def zeros(self, *batch: int) -> States:
        """The states before any step, float32."""
        return tuple(jnp.zeros((*batch, self.num_heads, self.head_dim), jnp.float32) for _ in range(self.states))

    def step(self, w: HeadwiseWeights, h: States, u: Float[Array, "*B Gi N K"]) -> States:
        """The states "… N K" after one step on projected inputs, at least float32."""
        wide = state_dtype(u)
        product = jnp.einsum(
            "...nd,gned->...gne", h[0].astype(w.recurrent.dtype), w.recurrent, preferred_element_type=wide
        )  # fmt: skip
        by_gate = lambda x, n: [x[..., g, :, :] for g in range(n)]
        bias = [x.reshape((1,) * (h[0].ndim - 2) + x.shape) for x in self.biases(w)]
        gates = self.gates
        raw = raw_gates(gates, by_gate(product, gates.recurrent), by_gate(u.astype(wide), gates.input), bias)
        return self.pointwise(h, raw)

    def pointwise(self, states: States, raw: States) -> States:
        """The states after one step, elementwise, from those before and the raw gates."""
        raise NotImplementedError

    def output(self, h: States) -> Float[Array, "*B N K"]:
        """What leaves the cell: h."""
        return h[0]
