"""Gated linear attention as Pallas kernels in Triton style, forward and backward.

A program walks all of time for one head and one tile of its values, in chunks of 16 rows, with the state [K, tile] in
registers. The backward pass is two such walks, which need no saved state: forwards, where the state comes along, for
dq; backwards, where the state's cotangent comes along, for dk and dv. dq and dk of a tile are partial sums. dg is a
reversed cumulative sum of q dq - k dk over all of time, as in `gla_chunk.cotangents` but with the last state, in XLA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from paradec.ops.kernels import table
from paradec.ops.kernels.gla_chunk import HIDDEN, cumulative, product

C = 16
"""Rows of a chunk: the least that Triton multiplies."""

Heads = Float[Array, "B T H _"]


def refusal(K: int, V: int) -> str | None:
    """Why there is no kernel for keys and values of these widths, as a sentence; None where there is."""
    if K & (K - 1) or not 16 <= K <= 256 or V % 16:
        return (
            "The GLA kernel for GPUs takes keys of 16, 32, 64, 128 or 256 and values of a multiple of 16, "
            f"not {K} and {V}; use implementation='chunk'."
        )
    return None


def forward(
    q: Heads,
    k: Heads,
    v: Heads,
    g: Heads,
    state: Float[Array, "B H K V"],
    scale: float,
    blocks: table.Blocks | None,
    interpret: bool,
) -> tuple[Heads, Array]:
    """The outputs, in q's type, and the last state."""
    walk = HeadWalk(q, v, blocks, interpret)
    inputs = (walk.rows(q), walk.rows(k), walk.tiles(v), walk.rows(g), walk.state(state))
    o, end = walk(partial(_forward, scale=scale), inputs, (walk.tiles(like=q.dtype), walk.state()))
    return walk.cut(o), end


def backward(
    q: Heads, k: Heads, v: Heads, g: Heads, start: Array, end: Array, do: Heads, dend: Array, scale: float,
    blocks: table.Blocks | None, interpret: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """Cotangents of q, k, v, g and the first state."""
    walk = HeadWalk(q, v, blocks, interpret)
    inputs = (walk.rows(k), walk.tiles(v), walk.rows(g), walk.tiles(do), walk.state(start))
    (dq,) = walk(partial(_queries, scale=scale), inputs, (walk.parts(),))
    inputs = (walk.rows(q), *inputs[:-1], walk.state(dend))
    outputs = (walk.parts(), walk.tiles(like=v.dtype), walk.state())
    dk, dv, dstart = walk(partial(_keys_and_values, scale=scale), inputs, outputs)
    dq, dk = (walk.cut(jnp.sum(x, axis=0)) for x in (dq, dk))
    late = q.astype(jnp.float32) * dq - k.astype(jnp.float32) * dk
    dg = lax.cumsum(late, axis=1, reverse=True) + jnp.sum(end * dend, axis=-1)[:, None]
    return dq.astype(q.dtype), dk.astype(k.dtype), walk.cut(dv), dg.astype(g.dtype), dstart


class HeadWalk:
    """The programs of one walk, and how each sees the arrays: as refs of [T, K], [T, tile] and [K, tile]. Each method
    gives a block specification with an array (an input) or with a shape (an output)."""

    def __init__(self, q: Heads, v: Heads, blocks: table.Blocks | None, interpret: bool):
        self.B, self.T, self.H, self.K = q.shape
        self.V, self.interpret, self.sizes = v.shape[-1], interpret, table.blocks("gla", "gpu", blocks)
        self.long = self.T + -self.T % C
        # A tile is a power of two that divides V; the table says how much of a state registers shall hold.
        self.tile = min(self.V & -self.V, max(16, self.sizes["state"] // self.K))

    def __call__(self, body: Callable, inputs: tuple, outputs: tuple) -> tuple[Array, ...]:
        call = pl.pallas_call(
            body,
            grid=(self.B, self.H, self.V // self.tile),
            in_specs=[spec for spec, _ in inputs],
            out_specs=[spec for spec, _ in outputs],
            out_shape=[shape for _, shape in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=self.sizes["warps"], num_stages=self.sizes["stages"]),
            interpret=self.interpret,
            name="gla",
        )
        return tuple(call(*(array for _, array in inputs)))

    def rows(self, x: Array) -> tuple[pl.BlockSpec, Array]:
        """Of keys, queries and gates."""
        return pl.BlockSpec((None, self.long, None, self.K), lambda b, h, n: (b, 0, h, 0)), self._padded(x)

    def tiles(self, x: Array | None = None, like: Any = None) -> tuple[pl.BlockSpec, Any]:
        """Of values and outputs."""
        whole = jax.ShapeDtypeStruct((self.B, self.long, self.H, self.V), like) if x is None else self._padded(x)
        return pl.BlockSpec((None, self.long, None, self.tile), lambda b, h, n: (b, 0, h, n)), whole

    def parts(self) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """Of what each tile of values adds to the cotangents of queries or keys."""
        spec = pl.BlockSpec((None, None, self.long, None, self.K), lambda b, h, n: (n, b, 0, h, 0))
        shape = (self.V // self.tile, self.B, self.long, self.H, self.K)
        return spec, jax.ShapeDtypeStruct(shape, jnp.float32)

    def state(self, x: Array | None = None) -> tuple[pl.BlockSpec, Any]:
        spec = pl.BlockSpec((None, None, self.K, self.tile), lambda b, h, n: (b, h, 0, n))
        return spec, jax.ShapeDtypeStruct((self.B, self.H, self.K, self.V), jnp.float32) if x is None else x

    def cut(self, x: Array) -> Array:
        return x[:, : self.T]

    def _padded(self, x: Array) -> Array:
        """To whole chunks, with zeros, which leave the state alone."""
        return jnp.pad(x, [(0, 0), (0, self.long - self.T), (0, 0), (0, 0)]) if self.long > self.T else x


def _forward(q_ref: Any, k_ref: Any, v_ref: Any, g_ref: Any, start: Any, o_ref: Any, end: Any, *, scale: float) -> None:
    precision = _precision(q_ref, k_ref, v_ref)

    def one(t: Array, S: Array) -> Array:
        at = pl.ds(t * C, C)
        q, k, v, g = _load(at, q_ref, k_ref, v_ref, g_ref)
        b, last = cumulative(g), jnp.sum(g, axis=0)
        A = lax.fori_loop(0, C, lambda j, A: _with_column(A, j, _pairs(q, k_ref, b, t, j)), jnp.zeros((C, C)))
        o = product(q * jnp.exp(b), S, "k", precision) + product(A, v, "k", precision)
        o_ref[at, :] = (scale * o).astype(o_ref.dtype)
        return jnp.exp(last)[:, None] * S + product(k * jnp.exp(last[None] - b), v, "tn", precision)

    end[...] = lax.fori_loop(0, q_ref.shape[0] // C, one, start[...])


def _queries(k_ref: Any, v_ref: Any, g_ref: Any, do_ref: Any, start: Any, dq_ref: Any, *, scale: float) -> None:
    precision = _precision(k_ref, v_ref)

    def one(t: Array, S: Array) -> Array:
        at = pl.ds(t * C, C)
        k, v, g, do = _load(at, k_ref, v_ref, g_ref, do_ref)
        b, last = cumulative(g), jnp.sum(g, axis=0)
        dA = product(do, v, "nt", precision)

        def key(j: Array, dq: Array) -> Array:
            return dq + _column(dA, j) * _row_of(k_ref, t, j) * _decay(b, j)

        inter = product(do, S, "nt", precision) * jnp.exp(b)
        dq_ref[at, :] = scale * lax.fori_loop(0, C, key, inter)
        return jnp.exp(last)[:, None] * S + product(k * jnp.exp(last[None] - b), v, "tn", precision)

    lax.fori_loop(0, k_ref.shape[0] // C, one, start[...])


def _keys_and_values(
    q_ref: Any, k_ref: Any, v_ref: Any, g_ref: Any, do_ref: Any, dend: Any, dk_ref: Any, dv_ref: Any, dstart: Any, *,
    scale: float,
) -> None:  # fmt: skip
    precision, chunks = _precision(q_ref, k_ref, v_ref), q_ref.shape[0] // C

    def one(i: Array, dS: Array) -> Array:
        t = chunks - 1 - i
        at = pl.ds(t * C, C)
        q, k, v, g, do = _load(at, q_ref, k_ref, v_ref, g_ref, do_ref)
        b, last = cumulative(g), jnp.sum(g, axis=0)
        do, left = scale * do, jnp.exp(last[None] - b)
        dA = product(do, v, "nt", precision)

        def key(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            A, dk = carry
            row = lax.broadcasted_iota(jnp.int32, dk.shape, 0)
            mine = jnp.sum(_column(dA, j) * q * _decay(b, j), axis=0, keepdims=True)
            return _with_column(A, j, _pairs(q, k_ref, b, t, j)), dk + jnp.where(row == j, mine, 0.0)

        A, dk = lax.fori_loop(0, C, key, (jnp.zeros((C, C)), product(v, dS, "nt", precision) * left))
        dk_ref[at, :] = dk
        dv = product(A, do, "tn", precision) + product(k * left, dS, "k", precision)
        dv_ref[at, :] = dv.astype(dv_ref.dtype)
        return jnp.exp(last)[:, None] * dS + product(q * jnp.exp(b), do, "tn", precision)

    dstart[...] = lax.fori_loop(0, chunks, one, dend[...])


def _load(at: Any, *refs: Any) -> list[Array]:
    return [ref[at, :].astype(jnp.float32) for ref in refs]


def _precision(*refs: Any) -> lax.Precision:
    narrow = all(jnp.dtype(ref.dtype).itemsize == 2 for ref in refs)
    return lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST


def _row_of(ref: Any, t: Array, j: Array) -> Float[Array, "1 K"]:
    return ref[t * C + j, :].astype(jnp.float32)[None]


def _pairs(q: Array, k_ref: Any, b: Array, t: Array, j: Array) -> Float[Array, "c 1"]:
    """How much each row of the chunk takes from its key j."""
    return jnp.sum(q * _row_of(k_ref, t, j) * _decay(b, j), axis=1, keepdims=True)


def _decay(b: Float[Array, "c K"], j: Array) -> Float[Array, "c K"]:
    """From key j to each row of the chunk; 0 for the rows before it. Triton takes no row of a value but by a sum."""
    row = lax.broadcasted_iota(jnp.int32, b.shape, 0)
    mine = jnp.sum(jnp.where(row == j, b, 0.0), axis=0, keepdims=True)
    return jnp.exp(jnp.where(row >= j, b - mine, HIDDEN))


def _column(x: Float[Array, "c c"], j: Array) -> Float[Array, "c 1"]:
    column = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.sum(jnp.where(column == j, x, 0.0), axis=1, keepdims=True)


def _with_column(x: Float[Array, "c c"], j: Array, new: Float[Array, "c 1"]) -> Float[Array, "c c"]:
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) == j, new, x)
