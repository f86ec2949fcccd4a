"""A gated diagonal linear recurrence: the simplest mixer, and the reference of those that follow."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from paradec import struct
from paradec.models.mixer import Call, Mixer, chosen
from paradec.ops.mask import Facts
from paradec.ops.scan import affine_scan, tree_scan
from paradec.types import Spec


@struct.dataclass
class DiagonalWeights:
    """The gates and the way back. Leaves lead with L."""

    mix: Float[Array, "L D 3 D"]  # decay, input and output gate
    out: Float[Array, "L D D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Diagonal(Mixer):
    """`h = a * h_before + (1 - a) * input`, a sigmoid of the input, and an output gate: HGRN (2311.04823) and minGRU
    (2410.01201) at their simplest. The delta holds the state after every row, and trees are one scan."""

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> DiagonalWeights:
        """The weights, a `Spec` at every leaf."""
        L, D = layers, width
        return DiagonalWeights(
            mix=Spec((L, D, 3, D), ("layers", "embed", None, "mlp"), D**-0.5, dtype, (1, 1)),
            out=Spec((L, D, D), ("layers", "mlp", "embed"), branch * D**-0.5, dtype, (1, 1)),
        )

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> Float[Array, "L B D"]:
        """Zeros, float32."""
        return jnp.zeros((layers, batch, width), jnp.float32)

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> Float[Array, "L B N D"]:
        """States of `rows` rows."""
        return jnp.zeros((layers, batch, rows, width), jnp.float32)

    def forward(self, w: DiagonalWeights, x: Float[Array, "B T D"], facts: Facts) -> tuple[Float[Array, "B T D"], None]:
        """Whole sequences, by one affine scan."""
        a, b, gate = self._gates(w, x)
        timed = lambda x: None if x is None else x.swapaxes(0, 1)
        h = affine_scan(timed(a), timed(b), segment=timed(facts.segment), valid=timed(facts.valid))
        return self._out(w, h.swapaxes(0, 1), gate, x.dtype), None

    def extend(
        self, w: DiagonalWeights, x: Float[Array, "B M D"], state: Float[Array, "B D"], call: Call, pending: Any
    ) -> tuple[Float[Array, "B M D"], Float[Array, "B N D"]]:
        """Rows on top of the state. Earlier rows are known: maps that ignore what came before."""
        a, b, gate = self._gates(w, x)
        if pending is not None:
            a, b = call.written(a, jnp.zeros_like(pending)), call.written(b, pending)
        h = tree_scan(a, b, call.rows.parent, state)
        mine = lax.dynamic_slice_in_dim(h, call.rows.start, x.shape[1], axis=1)
        return self._out(w, mine, gate, x.dtype), h

    def commit(
        self,
        state: Float[Array, "L B D"],
        delta: Float[Array, "L B N D"],
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int32[Array, "B"],
    ) -> Float[Array, "L B D"]:
        """The state after the last kept row."""
        return chosen(delta, state, path, count)

    def _gates(self, w: DiagonalWeights, x: Array) -> tuple[Array, Array, Array]:
        """Decay, what is added, and the output gate; the first two float32."""
        mixed = jnp.einsum("btd,dce->btce", x, w.mix).astype(jnp.float32)
        a = jax.nn.sigmoid(mixed[:, :, 0] + 1.0)  # remembers a few tokens, not just the last
        return a, (1 - a) * mixed[:, :, 1], jax.nn.silu(mixed[:, :, 2])

    def _out(self, w: DiagonalWeights, h: Array, gate: Array, dtype: Any) -> Array:
        return (h * gate).astype(dtype) @ w.out
