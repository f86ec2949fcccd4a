"""A layer of ParaRNN (arXiv 2510.21450): Mamba's block around a nonlinear recurrence that is solved in parallel."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32, PyTree

from paradec import struct
from paradec.errors import check_fields
from paradec.models.cells.para import ParaCell
from paradec.models.cells.para_gru import ParaGRU
from paradec.models.cells.para_lstm import ParaLSTM
from paradec.models.mixer import Call, Mixer, chosen, states_after
from paradec.models.short_conv import conv_commit, conv_rows, short_conv
from paradec.ops.jacobian import check_cell
from paradec.ops.mask import Facts
from paradec.ops.newton import Info, solve
from paradec.ops.norm import rms_norm
from paradec.params import is_spec
from paradec.types import Spec


@struct.dataclass
class ParaRNNWeights:
    """The weights of a layer; E is the cell's width, W the convolution's. Leaves lead with L."""

    into: Float[Array, "L D 2 E"]  # what the cell reads, and the gate
    conv: Float[Array, "L W E"] | None
    cell: PyTree
    norm: Float[Array, "L E"]
    out: Float[Array, "L E D"]


@struct.dataclass
class ParaRNNState:
    """The last W - 1 inputs of the convolution, "... W-1 E", and the cell's state, "... E", float32. As a delta these
    are the inputs and the states of every row, "... N E"."""

    inputs: Float[Array, "..."] | None
    cell: PyTree


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ParaRNN(Mixer):
    """A projection to (x, gate), a causal convolution with SiLU on x, the cell, `rms_norm(h) * silu(gate)`, and a
    projection back.

    `cell` is any with the members of `ParaCell`; one of another class than ours is tried once
    (`ops.jacobian.check_cell`), and `InputError` says what is wrong with it. `conv` 0: no convolution. `method`,
    `iterations`, `tol` and `window` are those of `ops.newton.solve`, which computes whole sequences; rows of a decode
    are computed one by one. Both branches of the block are as wide as the cell.
    """

    cell: ParaCell = ParaGRU()
    conv: int = 4
    norm_eps: float = 1e-6
    method: str = "auto"
    iterations: int | None = None
    tol: float = 1e-5
    window: int = 512

    skip_scale = True

    def __post_init__(self) -> None:
        """Raise `InputError` for a cell that is not what it declares, or a size that is none."""
        check_fields(self, {"conv": (self.conv >= 0, "at least 0")})
        if type(self.cell) not in (ParaGRU, ParaLSTM):  # the tests have tried these
            _try(self.cell)

    def specs(self, layers: int, width: int, dtype: str, branch: float) -> ParaRNNWeights:
        """The weights, a `Spec` at every leaf."""
        L, D, E = layers, width, self.cell.width
        return ParaRNNWeights(
            into=Spec((L, D, 2, E), ("layers", "embed", None, "mlp"), D**-0.5, dtype, (1, 1)),
            conv=Spec((L, self.conv, E), ("layers", None, "mlp"), self.conv**-0.5, dtype) if self.conv else None,
            cell=self.cell.specs(L, E, dtype),
            norm=Spec((L, E), ("layers", None), "ones", dtype),
            out=Spec((L, E, D), ("layers", "mlp", "embed"), branch * E**-0.5, dtype, (1, 1)),
        )

    def init_state(self, layers: int, batch: int, slots: int, width: int, dtype: str) -> ParaRNNState:
        """Zeros."""
        shape = (layers, batch, self.conv - 1, self.cell.width)
        return ParaRNNState(inputs=jnp.zeros(shape, dtype) if self.conv else None, cell=self.cell.zeros(layers, batch))

    def init_delta(self, layers: int, batch: int, rows: int, width: int, dtype: str) -> ParaRNNState:
        """Inputs and states of `rows` rows."""
        shape = (layers, batch, rows, self.cell.width)
        return ParaRNNState(
            inputs=jnp.zeros(shape, dtype) if self.conv else None, cell=self.cell.zeros(layers, batch, rows)
        )

    def forward(self, w: ParaRNNWeights, x: Float[Array, "B T D"], facts: Facts) -> tuple[Float[Array, "B T D"], Info]:
        """Whole sequences, and how the solve went."""
        inner, gate = self._into(w, x)
        if self.conv:
            inner = jax.nn.silu(short_conv(inner, w.conv, facts)).astype(x.dtype)
        timed = lambda a: None if a is None else a.swapaxes(0, 1)
        cell = self.cell
        h, info = solve(
            cell.step, cell.recurrent(w.cell), timed(cell.inputs(w.cell, inner)), cell.zeros(x.shape[0]),
            structure=cell.structure, method=self.method, iterations=self.iterations, tol=self.tol, window=self.window,
            segment=timed(facts.segment), valid=timed(facts.valid),
        )  # fmt: skip
        return self._out(w, timed(cell.output(h)), gate), info

    def extend(
        self,
        w: ParaRNNWeights,
        x: Float[Array, "B M D"],
        state: ParaRNNState,
        call: Call,
        pending: ParaRNNState | None,
    ) -> tuple[Float[Array, "B M D"], ParaRNNState]:
        """Rows on top of one layer's state, step by step: a chain, or a tree level by level."""
        M, cell = x.shape[1], self.cell
        inner, gate = self._into(w, x)
        every = None
        if self.conv:
            every = call.written(inner, None if pending is None else pending.inputs)
            inner = jax.nn.silu(conv_rows(every, w.conv, state.inputs, call, M)).astype(x.dtype)
        u = cell.inputs(w.cell, inner)
        step = functools.partial(cell.step, cell.recurrent(w.cell))
        h = states_after(step, state.cell, u, call, None if pending is None else pending.cell)
        mine = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, call.rows.start, M, axis=1), h)
        return self._out(w, cell.output(mine), gate), ParaRNNState(every, h)

    def commit(
        self,
        state: ParaRNNState,
        delta: ParaRNNState,
        path: Int[Array, "B P"] | None,
        count: Int[Array, "B"],
        length: Int32[Array, "B"],
    ) -> ParaRNNState:
        """The state after the last kept row, and the last inputs up to it."""
        inputs = conv_commit(state.inputs, delta.inputs, path, count) if self.conv else None
        return ParaRNNState(inputs, chosen(delta.cell, state.cell, path, count))

    def _into(self, w: ParaRNNWeights, x: Array) -> tuple[Array, Array]:
        """What the cell reads, before the convolution, and the gate."""
        both = jnp.einsum("btd,dce->btce", x, w.into)
        return both[:, :, 0], both[:, :, 1]

    def _out(self, w: ParaRNNWeights, y: Array, gate: Array) -> Array:
        """Normed first, then gated."""
        y = rms_norm(y, w.norm, self.norm_eps) * jax.nn.silu(gate.astype(jnp.float32))
        return y.astype(gate.dtype) @ w.out


@functools.lru_cache(maxsize=64)
def _try(cell: Any) -> None:
    """Raise `InputError` for a cell that is not what it declares, at random weights. Once a cell."""
    rng, width = np.random.default_rng(0), cell.width
    draw = lambda shape: (0.5 * rng.standard_normal(shape)).astype(np.float32)
    with jax.ensure_compile_time_eval():
        w = jax.tree.map(lambda spec: draw(spec.shape[1:]), cell.specs(1, width, "float32"), is_leaf=is_spec)
        u = jax.jit(cell.inputs)(w, draw((2, width)))
        check_cell(cell.step, cell.recurrent(w), cell.zeros(2), u, cell.structure)
