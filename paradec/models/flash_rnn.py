"""A recurrence with recurrent matrices as a mixer (FlashRNN, arXiv 2412.07752): LSTM, GRU, Elman, sLSTM."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PyTree

from paradec import struct
from paradec.models.cells.headwise import HeadwiseCell, HeadwiseWeights
from paradec.models.mixer import Call, Mixer, chosen, states_after
from paradec.ops.mask import Facts
from paradec.ops.norm import rms_norm
from paradec.ops.recurrent import States, flash_rnn
from paradec.types import Spec


@struct.dataclass
class FlashWeights:
    """The cell's weights, the norm of its output, and the way back. Leaves lead with L."""

    cell: HeadwiseWeights
    head_norm: Float[Array, "L N K"]
    out: Float[Array, "L N K D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlashRNN(Mixer):
    """Project to the gates of `cell`, run it, RMS norm of every head, project back.

    The states are float32 and the memory of a decode is theirs, whatever the length. A delta holds the states after
    every row. `unroll`, `gradient_clip` and `implementation` are those of `ops.recurrent.flash_rnn`.
    """

    cell: HeadwiseCell
    norm_eps: float = 1e-6
    unroll: int = 1
    gradient_clip: float | None = None
    implementation: str = "scan"

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> FlashWeights:
        """The weights, a `Spec` at every leaf."""
        N, K = self.cell.num_heads, self.cell.head_dim
        back = Spec(
            (layers, N, K, width), ("layers", "kv_heads", None, "embed"), (N * K) ** -0.5 * branch, dtype, (1, 2)
        )  # fmt: skip
        norm = Spec((layers, N, K), ("layers", "kv_heads", None), "ones", dtype)
        return FlashWeights(cell=self.cell.specs(layers, width, dtype), head_norm=norm, out=back)

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> States:
        """The states before any token: zeros, float32."""
        return self.cell.zeros(layers, batch)

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> States:
        """States of `rows` rows."""
        return self.cell.zeros(layers, batch, rows)

    def axes(self, state: PyTree) -> PyTree:
        """The logical axes of the states: heads are split as their weights are."""
        return jax.tree.map(lambda x: ("layers", "batch", "kv_heads", None), state)

    def forward(self, w: FlashWeights, x: Float[Array, "B T D"], facts: Facts) -> tuple[Float[Array, "B T D"], None]:
        """Whole sequences, step by step."""
        after, _ = flash_rnn(
            self.cell.inputs(w.cell, x), w.cell.recurrent, self.cell.biases(w.cell), cell=self.cell,
            unroll=self.unroll, gradient_clip=self.gradient_clip, segment=facts.segment, valid=facts.valid,
            implementation=self.implementation,
        )  # fmt: skip
        return self._out(w, after[0], x), None

    def extend(
        self, w: FlashWeights, x: Float[Array, "B M D"], state: States, call: Call, pending: States | None
    ) -> tuple[Float[Array, "B M D"], States]:
        """Rows on top of the states: a chain step by step, a tree in as many sweeps as it is deep."""
        step = lambda h, u: self.cell.step(w.cell, h, u)
        after = states_after(step, state, self.cell.inputs(w.cell, x), call, pending)
        mine = jax.lax.dynamic_slice_in_dim(self.cell.output(after), call.rows.start, x.shape[1], axis=1)
        return self._out(w, mine, x), after

    def commit(
        self,
        state: States,
        delta: States,
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int32[Array, "B"],
    ) -> States:
        """The states after the last kept row."""
        return chosen(delta, state, path, count)

    def _out(self, w: FlashWeights, h: Float[Array, "B T N K"], x: Array) -> Float[Array, "B T D"]:
        plain = rms_norm(h, jnp.ones(h.shape[-1], h.dtype), self.norm_eps)
        normed = plain * w.head_norm.astype(h.dtype)[None, None]
        return jnp.einsum("btnk,nkd->btd", normed.astype(x.dtype), w.out)
