"""What the cells of ParaRNN (arXiv 2510.21450) share: recurrent weights that are vectors, so that every number of a
state depends on its own channel alone, and input projections in heads.

A cell is a frozen dataclass, static and compared by value. `inputs` projects whole sequences at once, `step` is one
step of the recurrence, elementwise over leading axes, and `output` what leaves it. `structure` says what Jacobian the
step has, `states` how many arrays a state is made of, and `recurrent` which of the weights the step reads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from paradec import struct
from paradec.errors import check_fields
from paradec.ops.product import wide_einsum
from paradec.types import Spec


@struct.dataclass
class ParaWeights:
    """Weights of a cell with H heads, N numbers a state array; a channel is `head * N / H + j`. In a stack leaves lead
    with L. `bias` is learned on top of the first row's start, `-linspace(0, 1, N)`."""

    recurrent: Float[Array, "*L 3 N"]  # A: each gate's weight on h
    peephole: Float[Array, "*L 2 N"] | None  # C: of an LSTM, on c
    input: Float[Array, "*L H I 3 J"] | None  # B: from a head's inputs to its channels
    bias: Float[Array, "*L 3 N"] | None


@dataclasses.dataclass(frozen=True)
class ParaCell:
    """A cell with `num_heads` heads of `head_dim` numbers a state array. Subclasses say what a step computes."""

    num_heads: int = 2
    head_dim: int = 64

    structure = "diagonal"
    states = 1
    peepholes = 0

    def __post_init__(self) -> None:
        """Raise `InputError` for a size that is none."""
        check_fields(self, {name: (getattr(self, name) >= 1, "at least 1") for name in ("num_heads", "head_dim")})

    @property
    def width(self) -> int:
        """Numbers that enter and leave it."""
        return self.num_heads * self.head_dim

    @property
    def fan_out(self) -> int:
        """What the deviation of the input projection counts as outputs, as the paper's code does."""
        return self.width

    def specs(self, layers: int, width: int, dtype: str) -> ParaWeights:
        """The weights, a `Spec` at every leaf, for inputs of this width, a multiple of the heads.

        Deviations are those of the paper's code: `2 / sqrt(5 N)` of recurrent weights, and that of its uniform draw,
        `sqrt(2 / (fan in + fan out))`, of the input projection, which is drawn normally here.
        """
        L, N, H = layers, self.width, self.num_heads
        check_fields(self, {"num_heads": (width % H == 0, f"a divisor of the width {width}")})
        axes, small = ("layers", None, "mlp"), 2 / (5 * N) ** 0.5
        by_head = ("layers", "kv_heads", None, None, None)
        spread = (2 / (width // H + self.fan_out)) ** 0.5
        return ParaWeights(
            recurrent=Spec((L, 3, N), axes, small, dtype),
            peephole=Spec((L, self.peepholes, N), axes, small, dtype) if self.peepholes else None,
            input=Spec((L, H, width // H, 3, self.head_dim), by_head, spread, dtype, (2, 1)),
            bias=Spec((L, 3, N), axes, "zeros", dtype),
        )  # fmt: skip

    def inputs(self, w: ParaWeights, x: Float[Array, "*B D"]) -> Float[Array, "*B 3 N"]:
        """The projected inputs of all positions, at least float32."""
        x = x.reshape(*x.shape[:-1], self.num_heads, -1)
        narrow = x.dtype in (jnp.bfloat16, jnp.float16)
        u = (wide_einsum if narrow else jnp.einsum)("...hi,hivj->...vhj", x, w.input.astype(x.dtype))
        u = u.reshape(*u.shape[:-2], self.width)
        bias = w.bias.astype(u.dtype).at[0].add(-jnp.linspace(0, 1, self.width, dtype=u.dtype))
        return u + bias.reshape((1,) * (u.ndim - 2) + bias.shape)

    def recurrent(self, w: ParaWeights) -> ParaWeights:
        """The weights that `step` reads, alone: a gradient of the others is not summed over steps."""
        return w.replace(input=None, bias=None)

    def zeros(self, *batch: int) -> PyTree:
        """The state before any step, float32."""
        one = jnp.zeros((*batch, self.width), jnp.float32)
        return one if self.states == 1 else (one,) * self.states

    def step(self, w: ParaWeights, state: Any, u: Float[Array, "*B 3 N"]) -> Any:
        """The state after one step on projected inputs."""
        raise NotImplementedError

    def output(self, h: Any) -> Float[Array, "*B N"]:
        """What leaves the cell."""
        raise NotImplementedError
